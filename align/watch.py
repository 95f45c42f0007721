"""What a policy writes while it trains: the same prompts, the same seeds, every few steps, into samples.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from align.core.files import read_jsonl
from align.core.models import Stack
from align.core.packing import Tree, pack
from align.core.text import Chat, Unusable
from align.rollout import respond
from annotation.types import Message, prompt_id
from rewards.functions import RewardFunction
from rewards.model import score


class Watched:
    """The prompts that are looked at, with what answers are judged by.

    Args:
        rows: prompts as lists of messages.
        reward_role: the role whose score is written, where there is one.
        gold: the world's own utility, where it is known (TRL's reward signature).
    """

    def __init__(
        self,
        stack: Stack,
        rows: Sequence[list[Message]],
        *,
        max_new_tokens: int,
        seed: int,
        reward_role: str | None = None,
        gold: RewardFunction | None = None,
    ) -> None:
        self.stack, self.max_new_tokens, self.seed = stack, max_new_tokens, seed
        self.reward_role, self.gold = reward_role, gold
        self.prompts = [(row, ids) for row in rows if (ids := _ids(stack.chat, row)) is not None]

    @torch.no_grad()
    def look(self, role: str | None) -> list[dict[str, Any]]:
        """One sample a prompt: prompt id, texts, score, summed k1 KL to the reference (nats), ended, gold utility."""
        if not self.prompts:
            return []
        keys = [(self.seed, "watch", prompt_id(row)) for row, _ in self.prompts]
        samples = [
            found[0]
            for found in respond(
                self.stack, role, [ids for _, ids in self.prompts], keys, max_new_tokens=self.max_new_tokens
            )
        ]
        trees = [Tree(ids, [sample.ids]) for (_, ids), sample in zip(self.prompts, samples, strict=True)]
        kl = self._kl(role, trees)
        scores = [found[0] for found in score(self.stack, self.reward_role, trees)] if self.reward_role else None
        texts = [self.stack.chat.text(sample.ids) for sample in samples]
        utility = self._utility(texts, [sample.ended for sample in samples])
        return [
            {
                "prompt_id": prompt_id(row),
                "prompt": str(row[-1].get("content") or ""),
                "response": texts[i],
                "score": scores[i] if scores else None,
                "kl": kl[i],
                "ended": samples[i].ended,
                "utility": utility[i],
            }
            for i, (row, _) in enumerate(self.prompts)
        ]

    def _kl(self, role: str | None, trees: Sequence[Tree]) -> list[float]:
        found = [0.0] * len(trees)
        for rectangle in pack(trees, self.stack.compute.max_tokens, self.stack.layout):
            rectangle = rectangle.to(self.stack.device)
            with self.stack.use(role):
                policy_N = self.stack.logprobs(rectangle)
            with self.stack.use(self.stack.reference):
                reference_N = self.stack.logprobs(rectangle)
            for (tree, _), value in zip(
                rectangle.members, rectangle.sums(policy_N - reference_N).tolist(), strict=True
            ):
                found[tree] = value
        return found

    def _utility(self, texts: Sequence[str], ended: Sequence[bool]) -> list[float | None]:
        if self.gold is None:
            return [None] * len(texts)
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        return self.gold([row for row, _ in self.prompts], completions, ended=list(ended))


def watched_rows(pairs: Path, n: int) -> list[list[Message]]:
    """The first n validation prompts of a pairs run by prompt id (test prompts are for evaluation alone)."""
    found: dict[str, list[Message]] = {}
    for row in read_jsonl(pairs / "validation.jsonl"):
        found.setdefault(row["prompt_id"], row["prompt"])
    return [found[key] for key in sorted(found)[:n]]


def _ids(chat: Chat, row: list[Message]) -> list[int] | None:
    try:
        return chat.prompt_ids(row)
    except Unusable:
        return None
