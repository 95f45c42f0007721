"""Stage `reward`: train a reward model on preference pairs, as an adapter and a scalar head on the shared base.

In: a pairs run and the policy to start from (an SFT run, or a model folder). Out: ``adapter/`` with
``head.safetensors``, held-out accuracy with its floors and ceiling, and calibration. Scores are centred so that
responses of the starting policy (``candidates``) have mean 0. With ``curve`` there is also the error by number of
training pairs. Not here: making pairs, and the uses of the score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from align.core.config import MOST_EPOCHS, BadInput, Optim
from align.core.plugins import RewardFunction
from align.core.records import Message, Pair
from align.core.runs import Run
from align.core.stage import stage
from align.core.stats.estimates import format_estimate, mean_interval, ratio_interval
from align.core.stats.learning_curve import CurvePoint
from align.data.pairs import (
    PromptPairs,
    candidate_trees,
    index_pairs,
    load_pairs,
    prompts_hash,
    read_pairs,
    total_weight,
)
from align.engine.loop import TrainingConfig, TrainingLoop, epochs
from align.losses.pairwise import bradley_terry
from align.model.adapters import AdapterModel
from align.model.load import context_length
from align.model.open import Role, open_models
from align.model.packing import pack
from rewards import learning_curve, metrics
from rewards.model import score

CENTRE = 256  # prompts whose responses determine the zero of the score


class RewardConfig(TrainingConfig):
    """Hyper-parameters of the reward model; ``batch`` counts prompts."""

    INPUTS: ClassVar[tuple[str, ...]] = ("pairs", "policy", "candidates")
    SHARES_WORK: ClassVar[bool] = True

    stage: Literal["reward"] = "reward"
    pairs: Path = Field(description="a pairs run or a folder of its form")
    policy: Path = Field(description="the policy to start from: an SFT run")
    candidates: Path | None = Field(
        default=None, description="samples of the policy, whose scores shall average 0; without: the pairs' responses"
    )
    batch: int = Field(default=16, ge=1, description="prompts per optimiser step")
    epochs: int = Field(default=2, ge=1, le=MOST_EPOCHS, description="passes over the data")
    optim: Optim = Optim(lr=1e-4)
    min_rows: int = Field(default=20, ge=1, description="refuse to train on fewer rows")
    curve: bool = Field(default=False, description="train on 1/8, 1/4 and 1/2 of the prompts too, to curve.jsonl")


@stage
def reward(config: RewardConfig, run: Run, *, gold: RewardFunction | None = None) -> dict[str, Any]:
    """Train and evaluate a reward model; ``gold`` (TRL's reward signature) adds the accuracy of the true utility."""
    roles = {"reward": Role(trainable=True, has_head=True)}
    model = open_models(run, config, config.policy, roles, tuner=config.tuner)
    context = context_length(model.base)
    train = load_pairs(run, config.pairs, "train", model.chat, context, config.min_rows)
    test = load_pairs(run, config.pairs, "test", model.chat, context, 0)
    run.record.lineage |= {"prompts": prompts_hash(train)}
    smaller = _smaller(config, run, model, train, test) if config.curve else []
    seconds = _fit(config, run, model, train)
    centred_on = _centre(config, run, model, train)
    if run.is_main:
        model.save_role("reward", run.path / "adapter")
    margins, lengths, scores = _margins(model, test)
    pairs = [pair for prompt in test for pair in prompt.rows]
    correct = metrics.outcomes(margins)
    clusters = [pair.prompt_id for pair in pairs]
    words = metrics.bag_of_words(read_pairs(config.pairs / "train.jsonl"), pairs)
    gains = [a - b for a, b in zip(correct, words, strict=False)]
    above = mean_interval(gains, "unbounded", clusters[: len(words)])
    if above.value is not None and (above.low is None or above.low <= 0):
        run.note(
            f"the reward model is not shown to beat a bag of words ({format_estimate(above, is_signed=True)}): "
            "the words of a response explain these votes as well"
        )
    headline = {
        "accuracy": mean_interval(correct, "binary", clusters).model_dump(),
        "floor_longer_wins": metrics.longer_wins(pairs).model_dump(),
        "floor_bag_of_words": mean_interval(words, "binary", clusters[: len(words)]).model_dump(),
        "above_bag_of_words": above.model_dump(),
        "ceiling_annotators": _ceiling(config.pairs),
        "expected_calibration_error": metrics.expected_calibration_error(margins),
        "accuracy_by_agreement": {name: one.model_dump() for name, one in metrics.by_agreement(margins, pairs).items()},
        "score_length_correlation": metrics.correlation(scores, lengths),
        "centred_on": {"what": "candidates" if config.candidates else "pairs", "n": centred_on},
        "train_pairs": sum(len(prompt.rows) for prompt in train),
        "train_seconds": seconds,
    }
    if config.curve:
        headline |= learning_curve.write(run, [*smaller, learning_curve.point(1.0, train, test, margins, seconds)])
    if gold is not None:
        headline |= _against_gold(gold, pairs, correct)
    return headline


def _smaller(
    config: RewardConfig, run: Run, model: AdapterModel, train: Sequence[PromptPairs], test: Sequence[PromptPairs]
) -> list[CurvePoint]:
    """Train on shares of the prompts; without the tracker, which logs the full training only."""
    untracked = config.model_copy(update={"tracker": "none"})

    def fit(part: Run, prompts: Sequence[PromptPairs]) -> float:
        return _fit(untracked, part, model, prompts)

    return learning_curve.train_on_shares(run, model, train, test, fit, lambda: _margins(model, test)[0])


def _fit(config: RewardConfig, run: Run, model: AdapterModel, train: Sequence[PromptPairs]) -> float:
    batches = epochs(len(train), config.batch, config.epochs, config.seed)
    with closing(TrainingLoop(run, config, model, {"reward": config.optim}, len(batches))) as loop:
        for step in loop.steps():
            prompts = [train[i] for i in batches[step - 1]]
            sums = loop.processes.sum(_backward(model, loop.share(prompts), total_weight(prompts)))
            metrics = {"loss": sums[0], "accuracy": sums[1] / sums[2], "pairs": int(sums[2])}
            loop.metrics.log(step, metrics | loop.update("reward"), ["loss"])
    return loop.metrics.seconds


def _backward(model: AdapterModel, prompts: Sequence[PromptPairs], denominator: float) -> list[float]:
    """Accumulate the gradient of these prompts; returns [loss, number of correct pairs, number of pairs]."""
    loss_sum, right, n_pairs = 0.0, 0.0, 0
    for packed in pack([prompt.tree for prompt in prompts], model.compute.max_tokens, model.layout):
        packed = packed.to(model.device)
        pairs = index_pairs(packed, prompts)
        with model.use("reward"):
            scores_B = model.scores("reward", packed)
            loss = bradley_terry(scores_B[pairs.chosen_P], scores_B[pairs.rejected_P], pairs.weight_P, denominator)
            loss.loss.backward()
        loss_sum += loss.loss.item()
        right += (loss.margin_P > 0).sum().item()
        n_pairs += len(loss.margin_P)
    return [loss_sum, right, float(n_pairs)]


def _centre(config: RewardConfig, run: Run, model: AdapterModel, train: Sequence[PromptPairs]) -> int:
    """Shift the head's bias so that responses of the starting policy have mean 0; returns the number of responses."""
    trees = [prompt.tree for prompt in train]
    if config.candidates is not None:
        _, trees = candidate_trees(run, config.candidates, model.chat, context_length(model.base))
        if not trees:
            raise BadInput(f"{config.candidates}: no response fits, so scores cannot be centred ({run.record.dropped})")
    scores = [value for tree in score(model, "reward", trees[:CENTRE]) for value in tree]
    with torch.no_grad():
        model.heads["reward"].linear.bias.sub_(sum(scores) / len(scores))
    return len(scores)


def _margins(model: AdapterModel, prompts: Sequence[PromptPairs]) -> tuple[list[float], list[float], list[float]]:
    """Return the score margin of each pair, and the length (tokens) and score of each response."""
    scores = score(model, "reward", [prompt.tree for prompt in prompts])
    margins = [
        own[c] - own[r]
        for prompt, own in zip(prompts, scores, strict=True)
        for c, r in zip(prompt.chosen, prompt.rejected, strict=True)
    ]
    lengths = [float(len(response)) for prompt in prompts for response in prompt.tree.responses]
    return margins, lengths, [value for own in scores for value in own]


def _ceiling(folder: Path) -> Any:
    """Return the agreement of annotators with each other, as the pairs run measured it; None if it did not."""
    file = folder / "manifest.json"
    return json.loads(file.read_text()).get("ceiling") if file.is_file() else None


def _against_gold(gold: RewardFunction, pairs: Sequence[Pair], correct: Sequence[float]) -> dict[str, Any]:
    """Return the accuracy relative to that of the gold utility, on the same pairs with the same noisy judgments."""

    def utility(side: Callable[[Pair], list[Message]]) -> list[float | None]:
        return gold(prompts=[pair.prompt for pair in pairs], completions=[side(pair) for pair in pairs])

    better, worse = utility(lambda pair: pair.chosen), utility(lambda pair: pair.rejected)
    known = [i for i, (b, w) in enumerate(zip(better, worse, strict=True)) if b is not None and w is not None]
    truth = metrics.outcomes([(better[i] or 0.0) - (worse[i] or 0.0) for i in known])
    clusters = [pairs[i].prompt_id for i in known]
    own = [correct[i] for i in known]
    return {
        "accuracy_on_gold_pairs": mean_interval(own, "binary", clusters).model_dump(),
        "accuracy_of_gold": mean_interval(truth, "binary", clusters).model_dump(),
        "share_of_gold": ratio_interval(own, truth, clusters).model_dump(),
    }
