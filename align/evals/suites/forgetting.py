"""Suite `forgetting`: what the base could do and the tuned policy may have lost.

Accuracy by option log-likelihood, per family, and bits per byte of held-out text. Nothing is generated, so a policy
that merely talks in another style has forgotten nothing. Not here: the comparison with base and SFT (the audit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from align.core.records import ItemResult
from align.evals.generation import SamplingConfig
from align.evals.items import Item
from align.evals.likelihood import OptionScores, TextScore, score_options, score_texts
from align.evals.targets import EvaluationTarget

OPTIONS_JUDGE = "option log-likelihood"
TEXT_JUDGE = "text log-likelihood"


def forgetting(items: Sequence[Item], subject: EvaluationTarget, sampling: SamplingConfig) -> list[ItemResult]:
    """One result an item: ``accuracy/<family>`` or ``bits_per_byte``."""
    choices = [item for item in items if item.kind == "options"]
    texts = [item for item in items if item.kind == "perplexity"]
    scored = score_options(subject.policy, choices, sampling.system_prompt)
    results = [_chosen(item, found) for item, found in zip(choices, scored, strict=True)]
    predicted = score_texts(subject.policy, [item.text or "" for item in texts])
    for item, found in zip(texts, predicted, strict=True):
        results.append(
            ItemResult(
                suite=item.suite,
                metric="bits_per_byte",
                item_id=item.id,
                family=item.family,
                cluster=item.cluster,
                score=bits_per_byte(found) if found.logprob is not None else None,
                reason=found.reason,
                judge=TEXT_JUDGE,
                prompt=item.text,
                n_tokens=found.n_tokens,
            )
        )
    return results


def _chosen(item: Item, found: OptionScores) -> ItemResult:
    """Right if the answer alone has the highest sum: an answer tied with another option is not known."""
    score, text = None, None
    if found.logprobs is not None:
        top = max(found.logprobs)
        best = [k for k, value in enumerate(found.logprobs) if value == top]
        score = float(best == [item.answer])
        text = "\n".join(
            f"{'>' if k in best else ' '} {option} ({value:.4f} nats)"
            for k, (option, value) in enumerate(zip(item.options or [], found.logprobs, strict=True))
        )
    return ItemResult(
        suite=item.suite,
        metric=f"accuracy/{item.family or 'all'}",
        item_id=item.id,
        family=item.family,
        cluster=item.cluster,
        score=score,
        reason=found.reason,
        judge=OPTIONS_JUDGE,
        text=text,
        prompt=item.prompt_text,
    )


def chance(items: Sequence[Item]) -> dict[str, float]:
    """What guessing scores on each accuracy metric: the mean of one over the number of options."""
    shares: dict[str, list[float]] = {}
    for item in items:
        if item.kind == "options" and item.options:
            shares.setdefault(f"accuracy/{item.family or 'all'}", []).append(1 / len(item.options))
    return {metric: sum(values) / len(values) for metric, values in shares.items()}


def bits_per_byte(found: TextScore) -> float:
    """``-log-likelihood / (ln 2 * bytes)``: comparable between tokenizers."""
    assert found.logprob is not None
    return -found.logprob / (math.log(2) * found.n_bytes)
