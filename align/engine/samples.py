"""What a policy writes while it trains: the same prompts, the same seeds, every few steps, into samples.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from align.core.files import read_jsonl
from align.core.plugins import RewardFunction
from align.core.records import Message, prompt_id
from align.generate.local import sample_responses
from align.model.adapters import AdapterModel
from align.model.chat import Chat, Unusable
from align.model.load import context_length
from align.model.packing import Tree, pack
from align.model.parsing import parse_response


class Asked(NamedTuple):
    """A prompt as its training row has it."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    arguments: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return prompt_id(self.messages, self.tools)


class SampleLogger:
    """The prompts that are looked at, with what answers are judged by.

    Args:
        rows: the prompts, rendered as they are for training.
        score: gives each response of each tree the score that is written beside it, where there is one.
        gold: the world's own utility, where it is known (TRL's reward signature).
    """

    def __init__(
        self,
        model: AdapterModel,
        rows: Sequence[Asked],
        *,
        max_new_tokens: int,
        seed: int,
        score: Callable[[Sequence[Tree]], list[list[float]]] | None = None,
        gold: RewardFunction | None = None,
    ) -> None:
        self.model, self.max_new_tokens, self.seed = model, max_new_tokens, seed
        self.score, self.gold = score, gold
        context = context_length(model.base) or 1 << 30
        found = [(row, ids) for row in rows if (ids := _ids(model.chat, row)) is not None]
        self.prompts = [(row, ids) for row, ids in found if len(ids) + max_new_tokens <= context]

    @torch.no_grad()
    def look(self, role: str | None) -> list[dict[str, Any]]:
        """One sample a prompt: prompt id, texts, score, summed k1 KL to the reference (nats), ended, gold utility."""
        if not self.prompts:
            return []
        with self.model.evaluating():
            return self._look(role)

    def _look(self, role: str | None) -> list[dict[str, Any]]:
        keys = [(self.seed, "watch", row.id) for row, _ in self.prompts]
        samples = [
            found[0]
            for found in sample_responses(
                self.model, role, [ids for _, ids in self.prompts], keys, max_new_tokens=self.max_new_tokens
            )
        ]
        trees = [Tree(ids, [sample.ids]) for (_, ids), sample in zip(self.prompts, samples, strict=True)]
        kl = self._kl(role, trees)
        scores = [found[0] for found in self.score(trees)] if self.score else None
        messages = [
            parse_response(self.model.chat, ids, sample.ids, row.tools)
            for (row, ids), sample in zip(self.prompts, samples, strict=True)
        ]
        utility = self._utility(messages, [sample.ended for sample in samples])
        return [
            {
                "prompt_id": row.id,
                "prompt": str(row.messages[-1].get("content") or ""),
                "response": messages[i]["content"],
                **{key: value for key, value in messages[i].items() if key in ("reasoning_content", "tool_calls")},
                "score": scores[i] if scores else None,
                "kl": kl[i],
                "ended": samples[i].ended,
                "utility": utility[i],
            }
            for i, (row, _) in enumerate(self.prompts)
        ]

    def _kl(self, role: str | None, trees: Sequence[Tree]) -> list[float]:
        found = [0.0] * len(trees)
        for packed in pack(trees, self.model.compute.max_tokens, self.model.layout):
            packed = packed.to(self.model.device)
            with self.model.use(role):
                policy_N = self.model.logprobs(packed)
            with self.model.use(self.model.reference):
                reference_N = self.model.logprobs(packed)
            for (tree, _), value in zip(
                packed.response_index, packed.sums(policy_N - reference_N).tolist(), strict=True
            ):
                found[tree] = value
        return found

    def _utility(self, messages: Sequence[Message], ended: Sequence[bool]) -> list[float | None]:
        if self.gold is None:
            return [None] * len(messages)
        completions = [[message] for message in messages]
        return self.gold(prompts=[row.messages for row, _ in self.prompts], completions=completions, ended=list(ended))


def watched_rows(pairs: Path, n: int) -> list[Asked]:
    """The first n validation prompts of a pairs run by prompt id (test prompts are for evaluation alone)."""
    found: dict[str, Asked] = {}
    for row in read_jsonl(pairs / "validation.jsonl"):
        found.setdefault(row["prompt_id"], asked(row))
    return [found[key] for key in sorted(found)[:n]]


def asked(row: Mapping[str, Any]) -> Asked:
    """The prompt of a pair or a demonstration."""
    return Asked(row["prompt"], row.get("tools"), row.get("template_arguments"))


def _ids(chat: Chat, row: Asked) -> list[int] | None:
    try:
        return chat.prompt_ids(*row)
    except Unusable:
        return None
