"""Stage `dpo`: train a policy directly on preference pairs, with any preference loss.

In: a pairs run and the policy to start from (an SFT run; its frozen adapter is the reference). Out:
``adapter/``. Policy and reference compute the same packed batches, so bf16 rounding errors cancel. An SFT term on the
chosen responses keeps their likelihood from falling; an alarm is noted when it falls in spite of that.
Not here: the equations of the losses (``losses/pairwise.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from align.core.config import MOST_EPOCHS, Frozen, Optim, Watch
from align.core.plugins import RewardFunction
from align.core.problems import explain
from align.core.runs import Run
from align.core.stage import stage
from align.data.pairs import PairIndex, PromptPairs, index_pairs, load_pairs, prompts_hash, total_weight
from align.engine.distributed import Distributed
from align.engine.loop import TrainingConfig, TrainingLoop, epochs
from align.engine.samples import SampleLogger, sample_rows
from align.losses.pairwise import (
    Likelihood,
    LossSetting,
    PairLogprobs,
    PreferenceLoss,
    Sigmoid,
    check_losses,
    total_loss,
)
from align.model.adapters import AdapterModel
from align.model.load import context_length
from align.model.open import TRAINED_POLICY, open_models
from align.model.packing import pack
from align.train import guards

ALARM = -2.0  # nats per response: mean log-ratio of chosen responses below which likelihood displacement is noted
BETA, SFT_WEIGHT = 0.1, 0.2


class FormerLoss(Frozen):
    """The keys by which earlier versions set the loss."""

    beta: float = Field(default=BETA, gt=0)
    sft_weight: float = Field(default=SFT_WEIGHT, ge=0)

    def losses(self) -> list[dict[str, Any]]:
        """Return the same as a list of losses."""
        sigmoid = {"kind": "sigmoid", "weight": 1.0, "beta": self.beta}
        return [sigmoid, *([] if self.sft_weight == 0 else [{"kind": "sft", "weight": self.sft_weight}])]


class DPOConfig(TrainingConfig):
    """Hyper-parameters of DPO; ``batch`` counts prompts."""

    INPUTS: ClassVar[tuple[str, ...]] = ("pairs", "policy")
    SHARES_WORK: ClassVar[bool] = True

    stage: Literal["dpo"] = "dpo"
    pairs: Path = Field(description="a pairs run or a folder of its form")
    policy: Path = Field(description="the policy to start from: an SFT run")
    loss: LossSetting = Field(
        default=(Sigmoid(beta=BETA), Likelihood(weight=SFT_WEIGHT)),
        description="{kind: sigmoid, beta: 0.1}, or a list of losses with weights; kind: sigmoid, sft, or module:Class",
    )
    batch: int = Field(default=16, ge=1, description="prompts per optimiser step")
    epochs: int = Field(default=1, ge=1, le=MOST_EPOCHS, description="passes over the data")
    optim: Optim = Optim(lr=5e-5)
    min_rows: int = Field(default=20, ge=1, description="refuse to train on fewer rows")
    watch: Watch = Watch()

    @classmethod
    def renamed(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Read the former keys ``beta`` and ``sft_weight`` as the list ``loss``."""
        values = super().renamed(settings)
        former = {name: values.pop(name) for name in FormerLoss.model_fields if name in values}
        if former and values.get("loss") is not None:
            raise ValueError(f"{' and '.join(former)}: settings of the loss; write them in loss: alone")
        if former:
            try:
                values["loss"] = FormerLoss(**former).losses()
            except ValidationError as error:
                raise ValueError(explain(FormerLoss, error, "former keys of loss", former)) from None
        return values


class Sums(NamedTuple):
    """Sums over the pairs of a step; ``loss`` is already divided by the step's denominator."""

    loss: float = 0.0
    right: float = 0.0
    margin: float = 0.0
    chosen_ratio: float = 0.0
    rejected_ratio: float = 0.0
    pairs: float = 0.0

    def means(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "accuracy": self.right / self.pairs,
            "margin": self.margin / self.pairs,
            "chosen_logratio": self.chosen_ratio / self.pairs,
            "rejected_logratio": self.rejected_ratio / self.pairs,
            "pairs": self.pairs,
        }


@stage
def dpo(config: DPOConfig, run: Run, *, gold: RewardFunction | None = None) -> dict[str, Any]:
    """Train a policy on pairs; ``gold`` gives the true utility of its periodic samples, where it is known."""
    check_losses(config.loss)
    model = open_models(run, config, config.policy, TRAINED_POLICY, tuner=config.tuner)
    train = load_pairs(run, config.pairs, "train", model.chat, context_length(model.base), config.min_rows)
    run.record.lineage |= {"prompts": prompts_hash(train)}
    rows = sample_rows(config.pairs, config.watch.prompts)
    headline = _fit(config, run, model, train, SampleLogger(model, rows, config.watch, config.seed, gold=gold))
    if run.is_main:
        model.save_role("policy", run.path / "adapter")
    return headline | {"train_pairs": sum(len(prompt.rows) for prompt in train)}


def _fit(
    config: DPOConfig, run: Run, model: AdapterModel, train: Sequence[PromptPairs], samples: SampleLogger
) -> dict[str, Any]:
    batches = epochs(len(train), config.batch, config.epochs, config.seed)
    metrics: dict[str, float] = {}
    with closing(TrainingLoop(run, config, model, {"policy": config.optim}, len(batches), samples=samples)) as loop:
        for step in loop.steps():
            prompts = [train[i] for i in batches[step - 1]]
            sums = _backward(config, model, loop.processes, prompts)
            if step == 1:
                guards.same_start(sums.margin, sums.chosen_ratio, sums.rejected_ratio, sums.pairs, model.compute.dtype)
            metrics = sums.means()
            loop.metrics.log(step, metrics | loop.update("policy"), ["loss", "accuracy"])
            if metrics["chosen_logratio"] < ALARM and not any(note.startswith("alarm") for note in run.record.notes):
                run.note(
                    f"alarm: at step {step} chosen responses are {-metrics['chosen_logratio']:.1f} nats below the "
                    "reference (likelihood displacement); raise beta or the weight of kind sft, or lower optim.lr"
                )
    return metrics | {"train_seconds": loop.metrics.seconds, "steps": len(batches)}


def _backward(config: DPOConfig, model: AdapterModel, processes: Distributed, prompts: Sequence[PromptPairs]) -> Sums:
    """Accumulate the gradient of this process's share of a step; returns the sums over all processes.

    Losses that couple pairs need two passes: a pass without gradients over all packed batches, which gives the
    derivative of the step's loss with respect to each log-probability, and then a backward pass from these derivatives
    for each packed batch.
    """
    share, denominator = processes.share(prompts), total_weight(prompts)
    coupled: StepLoss | None = None
    if any(loss.COUPLES_PAIRS for loss in config.loss):
        with torch.no_grad():
            parts = [pairs() for pairs in _pair_logprobs(model, share, denominator)]
        coupled = _step_loss(config.loss, parts, processes, denominator)
    sums, scale = Sums(loss=coupled.value if coupled and processes.index == 0 else 0.0), config.loss[0].reward_scale
    for number, packed_pairs in enumerate(_pair_logprobs(model, share, denominator)):
        pairs = packed_pairs()
        if coupled is None:
            loss = total_loss(config.loss, packed_pairs)
        else:
            chosen_P, rejected_P = coupled.derivatives[number]
            loss = (pairs.chosen_P * chosen_P + pairs.rejected_P * rejected_P).sum()
        loss.backward()
        margin_P = pairs.margin_P(scale).detach()
        part = Sums(
            loss.item() if coupled is None else 0.0,
            (margin_P > 0).sum().item(),
            margin_P.sum().item(),
            (pairs.chosen_P - pairs.reference_chosen_P).detach().sum().item(),
            (pairs.rejected_P - pairs.reference_rejected_P).detach().sum().item(),
            float(len(margin_P)),
        )
        sums = Sums(*(a + b for a, b in zip(sums, part, strict=True)))
    return Sums(*processes.sum(sums))


def _pair_logprobs(
    model: AdapterModel, prompts: Sequence[PromptPairs], denominator: float
) -> Iterator[Callable[[], PairLogprobs]]:
    """Yield what gives the pairs of each packed batch; run the backward pass before taking the next."""
    for packed in pack([prompt.tree for prompt in prompts], model.compute.max_tokens, model.layout):
        packed = packed.to(model.device)
        pairs = index_pairs(packed, prompts)
        with torch.no_grad(), model.use(model.reference):
            reference_B = packed.sums(model.logprobs(packed))
        with model.use("policy"):
            policy_B = packed.sums(model.logprobs(packed))
            yield functools.partial(_of_pairs, policy_B, reference_B, pairs, denominator)


def _of_pairs(policy_B: Tensor, reference_B: Tensor, pairs: PairIndex, denominator: float) -> PairLogprobs:
    c, r = pairs.chosen_P, pairs.rejected_P
    return PairLogprobs(
        policy_B[c],
        policy_B[r],
        reference_B[c],
        reference_B[r],
        pairs.n_tokens_B[c],
        pairs.n_tokens_B[r],
        pairs.weight_P,
        denominator,
    )


class StepLoss(NamedTuple):
    """The value of a loss over all pairs of a step, and its derivatives by the log-probabilities of each part."""

    value: float
    derivatives: list[tuple[Tensor, Tensor]]


def _step_loss(
    losses: Sequence[PreferenceLoss], parts: Sequence[PairLogprobs], processes: Distributed, denominator: float
) -> StepLoss:
    """Return the loss over the pairs of all processes, with the derivatives of this process's pairs."""
    whole, start = {}, 0
    for name in PairLogprobs._fields[:-1]:
        own_P = torch.cat([getattr(pairs, name) for pairs in parts]) if parts else torch.zeros(0)
        whole[name], start = processes.gather(own_P)
    sides = [whole[name].requires_grad_() for name in ("chosen_P", "rejected_P")]
    loss = total_loss(losses, lambda: PairLogprobs(**whole, denominator=denominator))
    chosen_P, rejected_P = torch.autograd.grad(loss, sides, materialize_grads=True)
    sizes = [len(pairs.chosen_P) for pairs in parts]
    own = slice(start, start + sum(sizes))
    derivatives = zip(chosen_P[own].split(sizes), rejected_P[own].split(sizes), strict=True)
    return StepLoss(loss.item(), list(derivatives))
