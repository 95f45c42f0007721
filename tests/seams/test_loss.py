"""A loss from outside the package trains a policy; one that couples pairs has the gradient of the whole step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import EXACT, GRADIENT, add_stirred, gradients, relative_l2
from fixtures.pairs_run import pair, write_pairs_run
from fixtures.small_trees import draw_ids
from torch import Tensor
from toy_loss import Quantiles

from align.core.config import BadInput, build
from align.core.files import read_jsonl
from align.data.pairs import PromptPairs
from align.engine.distributed import Distributed
from align.losses.pairwise import Likelihood, PairLogprobs, PreferenceLoss, Sigmoid, check_losses
from align.model.adapters import AdapterModel
from align.model.packing import Tree
from align.train.dpo import DPOConfig, _backward, dpo

MakeModel = Callable[..., AdapterModel]
ModelFolder = Callable[[str], Path]
PAIRS = [pair(f"prompt {n}", "yes", "no") for n in range(6)]
PAIRS = [row.model_copy(update={"weight": 0.5 + n / 4}) for n, row in enumerate(PAIRS)]
PROMPTS = [
    PromptPairs(f"p{n}", Tree(draw_ids(n, 5 + n), [draw_ids(20 + n, 4), draw_ids(40 + n, 3 + n)]), [0], [1], [row])
    for n, row in enumerate(PAIRS)
]


class Apart(Quantiles):
    """The same without saying that it couples pairs: each packed batch sorts its own."""

    COUPLES_PAIRS: ClassVar[bool] = False


class Coupled(Sigmoid):
    """DPO's loss by the road of a loss that couples pairs."""

    kind: str = "coupled"  # type: ignore[assignment]
    COUPLES_PAIRS: ClassVar[bool] = True


def step(make_model: MakeModel, losses: list[PreferenceLoss], max_tokens: int) -> tuple[Any, dict[str, Tensor]]:
    """Sums and gradient of one step whose policy is not its reference."""
    model = make_model("llama", max_tokens=max_tokens)
    add_stirred(model, "policy", seed=3)
    config = DPOConfig(run=Path("r"), pairs=Path("p"), policy=Path("p"), loss=losses)
    sums = _backward(config, model, Distributed(model.device), PROMPTS)
    return sums, gradients(model, "policy")


QUANTILES = {"kind": "toy_loss:Quantiles", "beta": 0.7}


def test_a_coupling_loss_has_the_gradient_of_the_whole_step_however_it_is_split(make_model: MakeModel) -> None:
    whole, expected = step(make_model, [Apart(kind="x", beta=0.7)], 1 << 16)  # one packed batch: it sees all pairs
    split, found = step(make_model, [Quantiles(kind="x", beta=0.7)], 32)
    assert relative_l2(found, expected) <= GRADIENT
    assert split.loss == pytest.approx(whole.loss, abs=EXACT) and split[1:] == pytest.approx(whole[1:], abs=10 * EXACT)
    apart, wrong = step(make_model, [Apart(kind="x", beta=0.7)], 32)
    assert relative_l2(wrong, expected) > 1e-2 and abs(apart.loss - whole.loss) > 1e-3, "or the test proves nothing"


def test_both_roads_give_the_same_gradient(make_model: MakeModel) -> None:
    one, expected = step(make_model, [Sigmoid(beta=0.3), Likelihood(weight=0.2)], 32)
    two, found = step(make_model, [Coupled(beta=0.3), Likelihood(weight=0.2)], 32)
    assert relative_l2(found, expected) <= GRADIENT
    assert two == pytest.approx(one, abs=EXACT)


def test_a_weighted_list_is_the_weighted_sum(make_model: MakeModel) -> None:
    parts = [step(make_model, [loss], 64) for loss in (Sigmoid(beta=0.3), Quantiles(kind="x"))]
    both, found = step(make_model, [Sigmoid(beta=0.3, weight=2), Quantiles(kind="x", weight=0.5)], 64)
    assert both.loss == pytest.approx(2 * parts[0][0].loss + 0.5 * parts[1][0].loss, abs=EXACT)
    expected = {name: 2 * parts[0][1][name] + 0.5 * parts[1][1][name] for name in found}
    assert relative_l2(found, expected) <= GRADIENT


def test_a_loss_from_elsewhere_trains_a_policy_and_is_remembered(model_folder: ModelFolder, tmp_path: Path) -> None:
    rows = [(f"is the sky blue {n}", "yes thank you", "no maybe") for n in range(6)]
    pairs = write_pairs_run(tmp_path / "pairs", {"train": rows})
    given = {
        "run": tmp_path / "dpo", "policy": model_folder("llama"), "pairs": pairs, "batch": 3, "epochs": 3,
        "min_rows": 1, "optim": {"lr": 1e-2}, "watch": {"prompts": 0},
        "loss": [QUANTILES, {"kind": "sft", "weight": 0.1}],
    }  # fmt: skip
    config = build(DPOConfig, given, "test")
    record = dpo(config)
    losses = [row["loss"] for row in read_jsonl(tmp_path / "dpo" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    assert record.resolved["loss"] == [{**QUANTILES, "weight": 1.0}, {"kind": "sft", "weight": 0.1}]
    assert "loss[0]" in record.inputs and dpo(config) == record
    with pytest.raises(BadInput, match="key 'loss' differs"):
        dpo(build(DPOConfig, {**given, "loss": QUANTILES}, "test"))


def test_the_former_keys_of_the_loss_are_read() -> None:
    def losses(**given: Any) -> tuple[PreferenceLoss, ...]:
        return build(DPOConfig, {"run": "r", "pairs": "p", "policy": "p", **given}, "test").loss

    assert losses() == losses(beta=0.1) == losses(sft_weight=0.2) == (Sigmoid(beta=0.1), Likelihood(weight=0.2))
    assert losses(beta=0.3, sft_weight=0) == losses(loss={"kind": "sigmoid", "beta": 0.3}) == (Sigmoid(beta=0.3),)
    assert losses(sft_weight="0") == (Sigmoid(beta=0.1),), "a number may be quoted, as for every setting"
    for given in ({"beta": 0.1, "loss": "sigmoid"}, {"sft_weight": 0, "loss": ["sigmoid"]}):
        with pytest.raises(BadInput, match="settings of the loss; write them in loss: alone"):
            losses(**given)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"loss": "simpo"}, "key 'loss': 'simpo' is no kind of loss; write one of sft, sigmoid, or module:Class of"),
        ({"loss": "sigmod"}, "key 'loss': 'sigmod' is no kind of loss; did you mean 'sigmoid'?"),
        ({"loss": {"kind": 3}}, "key 'loss': 3 is no kind of loss; write one of sft, sigmoid"),
        (
            {"loss": {"kind": "sigmoid", "betta": 1}},
            "key 'loss': loss sigmoid: unknown key 'betta'; did you",
        ),
        ({"loss": {"kind": "sigmoid", "beta": -1}}, "key 'loss': loss sigmoid: key 'beta': must be greater"),
        ({"loss": {"kind": "sigmoid", "beta": float("inf")}}, "key 'beta': must be a finite number"),
        ({"loss": [QUANTILES, {"kind": "sft", "weight": 0}]}, "key 'loss.1': loss sft: key 'weight'"),
        ({"loss": []}, "key 'loss': holds too few values; give at least 1"),
        ({"loss": "toy_attention:Added"}, "a class derived from align.losses.pairwise:PreferenceLoss is one"),
        ({"beta": -1}, "former keys of loss: key 'beta': must be greater than 0"),
        ({"sft_weight": float("nan")}, "former keys of loss: key 'sft_weight': must be a finite number"),
    ],
)
def test_what_is_no_loss_is_refused_in_one_line(given: dict[str, Any], problem: str) -> None:
    """The line names the key that was written, and nothing else is said to be wrong."""
    with pytest.raises(BadInput) as error:
        build(DPOConfig, {"run": "r", "pairs": "p", "policy": "p", **given}, "test")
    assert problem in str(error.value) and str(error.value).count("test: ") == 1 and "loss.0" not in str(error.value)


class Mean(Sigmoid):
    """Divides by the number of pairs in place of the denominator of the step."""

    kind: str = "mean"  # type: ignore[assignment]

    def loss(self, pairs: PairLogprobs) -> Tensor:
        return -pairs.chosen_P.mean()


class Scripted(PreferenceLoss):
    """Gives what a test wrote down."""

    GIVES: ClassVar[Any] = None
    SCALE: ClassVar[Any] = 1.0

    @property
    def reward_scale(self) -> float:
        return self.SCALE

    def loss(self, pairs: PairLogprobs) -> Tensor:
        return self.GIVES(pairs)


def test_a_loss_that_couples_pairs_says_so(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Else each packed batch would sort its own pairs; a loss that says so and does not couple them is fine."""
    check_losses([Sigmoid(), Likelihood(), Quantiles(kind="toy"), Coupled()])
    pairs = write_pairs_run(tmp_path / "pairs", {"train": [("is the sky blue", "yes thank you", "no maybe")]})
    given = {"run": tmp_path / "dpo", "policy": model_folder("llama"), "pairs": pairs, "loss": f"{__name__}:Apart"}
    problem = "loss test_loss:Apart: it is .* on 8 pairs, and .* as the sum over two parts of them; a loss that couples"
    with pytest.raises(BadInput, match=f"{problem} pairs declares COUPLES_PAIRS"):
        dpo(build(DPOConfig, given, "test"))
    with pytest.raises(BadInput, match="divided by pairs.denominator"):
        check_losses([Mean()])


def weighted(pairs: PairLogprobs) -> Tensor:
    return (pairs.weight_P * pairs.chosen_P).sum()


@pytest.mark.parametrize(
    ("gives", "problem"),
    [
        (lambda pairs: 0.5, "gave a value of type float; it gives a tensor of shape"),
        (lambda pairs: None, "gave a value of type NoneType"),
        (lambda pairs: pairs.chosen_P, r"gave a tensor of shape \[8\]"),
        (lambda pairs: pairs.chosen_P.sum().detach(), "gave a number without a gradient"),
        (lambda pairs: (0 * pairs.chosen_P).sum(), "its gradient is zero on random log-probabilities"),
        (lambda pairs: weighted(pairs), "and .* with twice the denominator; divide the sum over pairs by"),
        (lambda pairs: pairs.chosen_P.sum() / pairs.denominator, "no pair's weight changes it; multiply each pair's"),
        (lambda pairs: pairs.chosen, r"AttributeError: .*'chosen' at test_loss.py:\d+; mend it"),
    ],
)
def test_a_loss_that_cannot_train_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, gives: Any, problem: str) -> None:
    monkeypatch.setattr(Scripted, "GIVES", staticmethod(gives))
    with pytest.raises(BadInput, match=f"^loss outside:Scripted: .*{problem}"):
        check_losses([Scripted(kind="outside:Scripted")])


@pytest.mark.parametrize("scale", [None, "1", float("nan")])
def test_the_scale_of_an_implicit_reward_is_a_finite_number(monkeypatch: pytest.MonkeyPatch, scale: Any) -> None:
    monkeypatch.setattr(Scripted, "SCALE", scale)
    with pytest.raises(BadInput, match="^loss outside:Scripted: reward_scale"):
        check_losses([Scripted(kind="outside:Scripted")])


def test_a_loss_reads_what_it_is_told() -> None:
    """Token counts and weights of each pair reach the loss."""
    numbers = [torch.arange(3.0) + start for start in range(7)]
    pairs = PairLogprobs(*numbers, denominator=2.0)
    expected = -(numbers[6] * numbers[0] / numbers[4]).sum() / 2
    assert float(Likelihood().loss(pairs)) == pytest.approx(float(expected))
