"""An optimiser that resumes to the bit, its schedule, and the order of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import add_stirred
from fixtures.small_trees import TREES, MakeModel, packed_of
from safetensors.torch import load, save

from align.core.config import NotFinite, Optim
from align.core.seeds import stage_seed
from align.engine.distributed import Distributed
from align.engine.loop import epochs
from align.engine.optimizer import RoleOptimizer
from align.model.adapters import AdapterModel


def train(model: AdapterModel, learner: RoleOptimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        tree = TREES[learner.done % len(TREES)]
        with model.use("policy"):
            loss = -model.logprobs(packed_of([tree])).mean()
            loss.backward()
        losses.append(float(loss.detach()))
        learner.step()
    return losses


def test_five_steps_and_five_more_are_ten_to_the_bit(make_model: MakeModel) -> None:
    optim = Optim(lr=0.01, weight_decay=0.1, schedule="cosine", warmup=0.3)

    def fresh() -> tuple[AdapterModel, RoleOptimizer]:
        model = make_model("llama")
        add_stirred(model, "policy")
        return model, RoleOptimizer(model.parameters("policy"), optim, 10, Distributed(torch.device("cpu")))

    whole, learner = fresh()
    losses = train(whole, learner, 10)
    first, half = fresh()
    early = train(first, half, 5)
    stored = load(save({name: tensor.contiguous() for name, tensor in half.tensors().items()}))
    second, resumed = fresh()
    resumed.restore(stored, 5)
    late = train(second, resumed, 5)
    assert early + late == losses and losses[-1] < losses[1]
    final, expected = resumed.tensors(), learner.tensors()
    assert final.keys() == expected.keys() and len(expected) == 4 * len(whole.parameters("policy"))
    assert all(torch.equal(final[name], expected[name]) for name in expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_warms_up_and_follows_its_schedule(schedule: Any) -> None:
    learner = RoleOptimizer(
        {"w": torch.nn.Parameter(torch.zeros(1))},
        Optim(lr=1.0, schedule=schedule, warmup=0.2),
        10,
        Distributed(torch.device("cpu")),
    )
    rates = []
    for learner.done in range(10):
        rates.append(learner.rate())
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(1.0 if schedule == "constant" else 0.5)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True) and min(rates) > 0


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    learner = RoleOptimizer({"w": weight}, Optim(), 4, Distributed(torch.device("cpu")))
    weight.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(NotFinite, match="step 1: the gradient is not finite"):
        learner.step()
    assert torch.equal(weight.detach(), torch.ones(2)) and learner.done == 0


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    batches = epochs(7, 3, 2, seed=4)
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1]
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert epochs(7, 3, 2, seed=4) == batches != epochs(7, 3, 2, seed=5)
    assert stage_seed(0, "dpo") == stage_seed(0, "dpo") != stage_seed(0, "ppo")
