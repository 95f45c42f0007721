"""Periodic samples on fixed prompts: log the responses of a policy in training to samples.jsonl every few steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from align.core.config import Watch
from align.core.files import read_jsonl
from align.core.plugins import RewardFunction
from align.core.records import Message, prompt_id
from align.engine.metrics_logger import MetricsLogger
from align.generate.local import LocalSampler
from align.generate.sampler import Request, Sample, Sampler, sample_all
from align.model.adapters import AdapterModel
from align.model.chat import Chat, Unusable
from align.model.packing import Tree, pack
from align.model.roles import RoleModel


class PromptRow(NamedTuple):
    """The prompt of a training row, with its tools and template arguments."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    arguments: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return prompt_id(self.messages, self.tools)


class SampleLogger:
    """Logs periodic samples on fixed prompts, with score, KL and gold utility of each response.

    Args:
        rows: the prompts; they are rendered as in training.
        watch: the interval in steps, and the longest response.
        sampler: samples the responses; default: the local sampler.
        score: gives the score of each response of each tree, if given.
        gold: gives the true utility where it is known (TRL's reward signature).
    """

    def __init__(
        self,
        model: AdapterModel,
        rows: Sequence[PromptRow],
        watch: Watch,
        seed: int,
        *,
        sampler: Sampler | None = None,
        score: Callable[[Sequence[Tree]], list[list[float]]] | None = None,
        gold: RewardFunction | None = None,
    ) -> None:
        self.model, self.every, self.max_new_tokens, self.seed = model, watch.every, watch.max_new_tokens, seed
        self.sampler, self.score, self.gold = sampler or LocalSampler(), score, gold
        self.prompts = [(row, ids) for row in rows if (ids := _ids(model.chat, row)) is not None]

    def log(self, step: int, metrics: MetricsLogger) -> None:
        """Sample the policy once per prompt and append the rows to samples.jsonl, and to the tracker."""
        metrics.samples(step, self.rows("policy"))

    @torch.no_grad()
    def rows(self, role: str | None) -> list[dict[str, Any]]:
        """Return a record per prompt: id, texts, score, ended, gold utility, and k1 KL to the reference in nats."""
        if not self.prompts:
            return []
        with self.model.evaluating():
            return self._rows(role)

    def _rows(self, role: str | None) -> list[dict[str, Any]]:
        requests = [
            Request(
                str(number),
                (self.seed, "watch", row.id),
                row.messages,
                row.tools,
                row.arguments or {},
                ids,
                max_new_tokens=self.max_new_tokens,
            )
            for number, (row, ids) in enumerate(self.prompts)
        ]
        replies = sample_all(self.sampler, requests, RoleModel(self.model, role))
        answered = [
            (row, ids, reply.samples[0])
            for (row, ids), reply in zip(self.prompts, replies, strict=True)
            if reply.samples
        ]
        kl: Sequence[float | None] = [None] * len(answered)
        scores: Sequence[float | None] = kl
        if self.sampler.GIVES_TOKENS:
            trees = [Tree(ids, [sample.require_ids()]) for _, ids, sample in answered]
            kl = self._kl(role, trees)
            scores = [score for (score,) in self.score(trees)] if self.score else scores
        utility = self._utility([(row.messages, sample) for row, _, sample in answered])
        return [
            {
                "prompt_id": row.id,
                "prompt": str(row.messages[-1].get("content") or ""),
                "response": sample.message["content"],
                **{key: value for key, value in sample.message.items() if key in ("reasoning_content", "tool_calls")},
                "score": scores[i],
                "kl": kl[i],
                "ended": sample.ended,
                "utility": utility[i],
            }
            for i, (row, _, sample) in enumerate(answered)
        ]

    def _kl(self, role: str | None, trees: Sequence[Tree]) -> list[float]:
        kl = [0.0] * len(trees)
        for packed in pack(trees, self.model.compute.max_tokens, self.model.layout):
            packed = packed.to(self.model.device)
            with self.model.use(role):
                policy_N = self.model.logprobs(packed)
            with self.model.use(self.model.reference):
                reference_N = self.model.logprobs(packed)
            for (tree, _), value in zip(
                packed.response_index, packed.sums(policy_N - reference_N).tolist(), strict=True
            ):
                kl[tree] = value
        return kl

    def _utility(self, answered: Sequence[tuple[list[Message], Sample]]) -> list[float | None]:
        if self.gold is None:
            return [None] * len(answered)
        return self.gold(
            prompts=[messages for messages, _ in answered],
            completions=[[sample.message] for _, sample in answered],
            ended=[sample.ended for _, sample in answered],
        )


def sample_rows(pairs: Path, n: int) -> list[PromptRow]:
    """Return the first n validation prompts of a pairs run by prompt id (test prompts are for evaluation alone)."""
    rows: dict[str, PromptRow] = {}
    for row in read_jsonl(pairs / "validation.jsonl"):
        rows.setdefault(row["prompt_id"], prompt_row(row))
    return [rows[key] for key in sorted(rows)[:n]]


def prompt_row(row: Mapping[str, Any]) -> PromptRow:
    """Return the prompt of a pair or a demonstration."""
    return PromptRow(row["prompt"], row.get("tools"), row.get("template_arguments"))


def _ids(chat: Chat, row: PromptRow) -> list[int] | None:
    try:
        return chat.prompt_ids(*row)
    except Unusable:
        return None
