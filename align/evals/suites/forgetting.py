"""Suite `forgetting`: measure what the base could do and the tuned policy may have lost.

Accuracy by option log-likelihood, per family, and bits per byte of held-out text. Nothing is generated, so a policy
that merely talks in another style has forgotten nothing. Not here: the comparison with base and SFT (the audit).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.core.declarations import Metric
from align.core.records import ItemResult
from align.evals.generation import SamplingConfig
from align.evals.items import Item, as_text
from align.evals.likelihood import OptionScores, TextScore, score_options, score_texts
from align.evals.suite import Suite
from align.evals.targets import EvaluationTarget

OPTIONS_JUDGE = "option log-likelihood"
TEXT_JUDGE = "text log-likelihood"


class ForgettingItem(Item):
    """Options to choose among, or a text to predict."""

    kinds = ("options", "perplexity")


class Forgetting(Suite):
    """Accuracy by option log-likelihood, per family, and bits per byte."""

    name = "forgetting"
    title = "Forgetting"
    item = ForgettingItem
    generates = False
    metrics = (
        Metric(name="accuracy", higher_is_better=True, kind="binary", has_chance=True),
        # a byte by chance costs 8 bits
        Metric(name="bits_per_byte", higher_is_better=False, kind="unbounded", low=0.0, widest=8.0, has_own_scale=True),
    )

    def metrics_of(self, item: Item) -> Sequence[str]:
        """Return the accuracy of an item's family for options, and the bits per byte for a text."""
        return [f"accuracy/{item.family or 'all'}" if item.kind == "options" else "bits_per_byte"]

    def results(self, items: Sequence[Item], target: EvaluationTarget, sampling: SamplingConfig) -> list[ItemResult]:
        """Return one result per item: ``accuracy/<family>`` or ``bits_per_byte``."""
        choices = [item for item in items if item.kind == "options"]
        texts = [item for item in items if item.kind == "perplexity"]
        scored = score_options(target.policy, choices, sampling.system_prompt)
        predicted = score_texts(target.policy, [item.text or "" for item in texts])
        return [
            *(_chosen(item, scores) for item, scores in zip(choices, scored, strict=True)),
            *(_predicted(item, score) for item, score in zip(texts, predicted, strict=True)),
        ]

    def chance(self, items: Sequence[Item]) -> dict[str, float]:
        """Return what guessing scores on each family: the mean of one over the number of options."""
        shares: dict[str, list[float]] = {}
        for item in items:
            if item.kind == "options" and item.options:
                shares.setdefault(f"accuracy/{item.family or 'all'}", []).append(1 / len(item.options))
        return {metric: sum(values) / len(values) for metric, values in shares.items()}

    def row_of_pair(self, name: str, pair: Mapping[str, Any]) -> dict[str, Any]:
        """Make an item of a held-out prompt, as text to predict that no stage was trained to write."""
        text = as_text(pair["prompt"])
        return {"id": name, "suite": self.name, "kind": "perplexity", "family": "text", "text": text}


def _chosen(item: Item, scores: OptionScores) -> ItemResult:
    """Score an item as right if its answer alone has the highest sum; a tie with another option is wrong."""
    score, text = None, None
    if scores.logprobs is not None:
        top = max(scores.logprobs)
        best = [k for k, value in enumerate(scores.logprobs) if value == top]
        score = float(best == [item.answer])
        text = "\n".join(
            f"{'>' if k in best else ' '} {option} ({value:.4f} nats)"
            for k, (option, value) in enumerate(zip(item.options or [], scores.logprobs, strict=True))
        )
    return ItemResult(
        suite=item.suite,
        metric=f"accuracy/{item.family or 'all'}",
        item_id=item.id,
        family=item.family,
        cluster=item.cluster,
        score=score,
        reason=scores.reason,
        judge=OPTIONS_JUDGE,
        text=text,
        prompt=item.prompt_text,
    )


def _predicted(item: Item, score: TextScore) -> ItemResult:
    return ItemResult(
        suite=item.suite,
        metric="bits_per_byte",
        item_id=item.id,
        family=item.family,
        cluster=item.cluster,
        score=bits_per_byte(score) if score.logprob is not None else None,
        reason=score.reason,
        judge=TEXT_JUDGE,
        prompt=item.text,
        n_tokens=score.n_tokens,
    )


def bits_per_byte(score: TextScore) -> float:
    """Compute ``-log-likelihood / (ln 2 * bytes)``, which is comparable between tokenizers."""
    assert score.logprob is not None
    return -score.logprob / (math.log(2) * score.n_bytes)
