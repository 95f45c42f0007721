"""Two tests for every equation: what padding holds means nothing, and a batch is the sum of its rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import EXACT
from fixtures.masked import JUNK, LENGTHS, MASK, B, T, close, draw
from torch import Tensor

from align.losses import kl, masked, pairwise, value
from align.losses import policy_gradient as pg

EQUATIONS = (kl, masked, pairwise, pg, value)

# --- pad test: masked-out columns may hold anything ----------------------------------------------------------

Fill = Callable[[Tensor], Tensor]


def junk(value: float) -> Fill:
    """Append columns of ``value``; a boolean mask gets False."""

    def fill(x: Tensor) -> Tensor:
        filler: float = False if x.dtype == torch.bool else value
        return torch.cat([x, torch.full((x.shape[0], JUNK), filler, dtype=x.dtype)], 1)

    return fill


def equations(fill: Fill) -> dict[str, Any]:
    """Every equation on inputs whose (B, T) tensors went through ``fill``; per-token results cut back to T."""
    a, b, c, d = (fill(draw(seed, B, T)) for seed in range(4))
    mask, scores, one = fill(MASK), draw(5, B), torch.ones(B)

    def sums(x: Tensor) -> Tensor:
        return torch.where(mask, x, torch.zeros_like(x)).sum(1)

    def cut(found: Any) -> Any:
        if isinstance(found, tuple):
            return tuple(map(cut, found))
        return torch.where(MASK, found[:, :T], torch.zeros(())) if found.dim() == 2 else found

    found = {
        "masked_sum": masked.masked_sum(a, mask),
        "bradley_terry": pairwise.bradley_terry(sums(a), sums(b), one, B),
        "dpo_loss": pairwise.dpo_loss(sums(a), sums(b), sums(c), sums(d), one, 0.1, B),
        "implicit_margin": pairwise.implicit_margin(sums(a), sums(b), sums(c), sums(d), 0.1),
        "likelihood_loss": pairwise.likelihood_loss(sums(a), mask.sum(1).float(), one, B),
        "token_kl": (kl.token_kl(a, b, "k1"), kl.token_kl(a, b, "k3")),
        "shape_rewards": pg.shape_rewards(scores, a, mask, 0.1),
        "gae": pg.gae(a, b, mask, 0.99, 0.9),
        "whiten": pg.whiten(a, torch.tensor(0.3), torch.tensor(2.0)),
        "policy_loss": pg.policy_loss(a, b, c, mask, 0.2, float(mask.sum())),
        "value_loss": value.value_loss(a, b, c, mask, 0.2, float(mask.sum())),
        "explained_variance": torch.tensor(value.explained_variance(a, b, mask)),
        "exact_token_kl": kl.exact_token_kl(a[:, :T], b[:, :T]),  # rows are positions: junk columns are not masked
    }
    return {name: cut(value) for name, value in found.items()}


NOT_MASKED = {"best_of_n_kl", "check_losses", "loss_value", "total_loss"}  # a number, and what is tested loss by loss


def test_the_pad_test_covers_every_equation_and_no_other_loss_exists() -> None:
    public = {
        name
        for module in EQUATIONS
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == set(equations(lambda x: x)) | NOT_MASKED


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, 0.0])
@pytest.mark.parametrize("name", sorted(equations(lambda x: x)))
def test_padding_changes_nothing(name: str, value: float) -> None:
    plain, padded = equations(lambda x: x)[name], equations(junk(value))[name]
    for before, after in zip(
        plain if isinstance(plain, tuple) else (plain,), padded if isinstance(padded, tuple) else (padded,), strict=True
    ):
        assert bool(torch.isfinite(before).all())
        torch.testing.assert_close(after, before, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", ["policy_loss", "value_loss"])
def test_padding_gets_no_gradient(name: str, filler: float) -> None:
    loss = pg.policy_loss if name == "policy_loss" else value.value_loss
    a, b, c = (junk(filler)(draw(seed, B, T)) for seed in range(3))
    a.requires_grad_()
    loss(a, b, c, junk(filler)(MASK), 0.2, 20.0).loss.backward()
    plain = draw(0, B, T).requires_grad_()
    loss(plain, b[:, :T], c[:, :T], MASK, 0.2, 20.0).loss.backward()
    assert a.grad is not None and plain.grad is not None
    assert torch.equal(a.grad[:, T:], torch.zeros(B, JUNK))
    torch.testing.assert_close(a.grad[:, :T], plain.grad, atol=EXACT, rtol=EXACT)


# --- split test: 1 batch of 8 equals 8 batches of 1 ----------------------------------------------------------

WEIGHT = draw(8, B).abs() + 0.1
TOTAL = float(WEIGHT.sum())
SPLIT: dict[str, Callable[[Tensor, slice], Any]] = {
    "bradley_terry": lambda x, s: pairwise.bradley_terry(x[s, 0], x[s, 1], WEIGHT[s], TOTAL).loss,
    "dpo_loss": lambda x, s: pairwise.dpo_loss(
        x[s, 0], x[s, 1], draw(1, B)[s], draw(2, B)[s], WEIGHT[s], 0.2, TOTAL
    ).loss,
    "likelihood_loss": lambda x, s: pairwise.likelihood_loss(x[s, 0], LENGTHS[s].float(), WEIGHT[s], TOTAL),
    "policy_loss": lambda x, s: pg.policy_loss(x[s], draw(1, B, T)[s], draw(2, B, T)[s], MASK[s], 0.2, 24.0),
    "value_loss": lambda x, s: value.value_loss(x[s], draw(1, B, T)[s], draw(2, B, T)[s], MASK[s], 0.2, 24.0),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SPLIT))
def test_splitting_a_batch_changes_nothing(name: str) -> None:
    def run(slices: list[slice]) -> tuple[list[float], Tensor]:
        x = draw(0, B, T).requires_grad_()
        totals = [0.0, 0.0, 0.0]
        for part in slices:
            found = SPLIT[name](x, part)
            numbers = list(found) if isinstance(found, tuple) else [found]
            numbers[0].backward()
            detached = [number.detach() for number in numbers]
            totals = [total + float(n) for total, n in zip(totals, [*detached, 0.0, 0.0], strict=False)]
        assert x.grad is not None
        return totals, x.grad

    whole, whole_gradient = run([slice(0, B)])
    parts, parts_gradient = run([slice(b, b + 1) for b in range(B)])
    close(parts, whole, 1e-5)
    torch.testing.assert_close(parts_gradient, whole_gradient, atol=EXACT, rtol=EXACT)
    assert float(whole_gradient.abs().sum()) > 0
