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
from align.losses.pairwise import Likelihood, PairLogprobs, PreferenceLoss, Sigmoid
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
    for given in ({"beta": 0.1, "loss": "sigmoid"}, {"sft_weight": 0, "loss": ["sigmoid"]}):
        with pytest.raises(BadInput, match="settings of the loss; write them in loss: alone"):
            losses(**given)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("hinge", "'hinge' is no kind of loss"),
        ({"kind": "sigmoid", "betta": 1}, "unknown key 'betta'; did you mean 'beta'"),
        ([QUANTILES, {"kind": "sft", "weight": 0}], "loss sft: key 'weight'"),
        ([], "key 'loss'"),
        ("toy_attention:Added", "a class derived from align.losses.pairwise:PreferenceLoss is one"),
    ],
)
def test_what_is_no_loss_is_refused(given: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        build(DPOConfig, {"run": "r", "pairs": "p", "policy": "p", "loss": given}, "test")


def test_a_loss_reads_what_it_is_told() -> None:
    """Token counts and weights of each pair reach the loss."""
    numbers = [torch.arange(3.0) + start for start in range(7)]
    pairs = PairLogprobs(*numbers, denominator=2.0)
    expected = -(numbers[6] * numbers[0] / numbers[4]).sum() / 2
    assert float(Likelihood().loss(pairs)) == pytest.approx(float(expected))
