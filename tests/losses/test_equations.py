"""Every training equation: golden numbers and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fixtures.masked import LENGTHS, MASK, B, T, close, draw, true_mask

from align.losses import kl, pairwise, value
from align.losses import policy_gradient as pg
from align.losses.pairwise import Likelihood, PairLogprobs, Sigmoid, dpo_loss, likelihood_loss, total_loss

# --- golden numbers (computed by hand) ---------------------------------------------------------------------


def test_token_kl_golden() -> None:
    difference = torch.tensor([[0.2]])
    close(kl.token_kl(difference, torch.zeros(1, 1), "k1"), [[0.2]])
    close(kl.token_kl(difference, torch.zeros(1, 1), "k3"), [[0.0187308]])


def test_gae_golden() -> None:
    rewards, mask = true_mask(0.0, 0.0, 1.0)
    credit = pg.gae(rewards, torch.full((1, 3), 0.5), mask, gamma=1.0, lam=0.95)
    close(credit.advantages_BT, [[0.45125, 0.475, 0.5]])
    close(credit.returns_BT, [[0.95125, 0.975, 1.0]])


def test_whiten_golden() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]])
    close(pg.whiten(values, torch.tensor(2.0), torch.tensor(2 / 3)), [[-1.2247449, 0.0, 1.2247449]])


@pytest.mark.parametrize(("ratio", "advantage", "loss"), [(1.5, 1.0, -1.2), (0.5, -1.0, 0.8), (1.5, -1.0, 1.5)])
def test_policy_loss_golden(ratio: float, advantage: float, loss: float) -> None:
    logprob, mask = true_mask(math.log(ratio))
    found = pg.policy_loss(logprob, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, clip=0.2, denominator=1)
    close(found.loss, loss)
    close(found.clip_fraction, float(loss != 1.5))
    close(found.approx_kl, ratio - 1 - math.log(ratio))


def test_value_loss_golden() -> None:
    # old 0, return 1: a step to .5 inside a clip of .2 counts as a step to .2 -> .5 * .8^2
    values, mask = true_mask(0.5)
    found = value.value_loss(values, torch.zeros(1, 1), torch.ones(1, 1), mask, clip=0.2, denominator=1)
    close(found.loss, 0.32)
    close(found.clip_fraction, 1.0)
    close(value.value_loss(values, torch.zeros(1, 1), torch.ones(1, 1), mask, clip=9.0, denominator=1).loss, 0.125)
    down = value.value_loss(-values, torch.zeros(1, 1), -torch.ones(1, 1), mask, clip=0.2, denominator=1)
    close(down.loss, 0.32)
    # steps up and down that are clipped (1.8^2, 2.3^2), one away from the return (2^2), and a small one (1.1^2)
    values, mask = true_mask(2.0, -1.0, 3.0, 1.1)
    old, returns = torch.tensor([[1.0, 0.5, 1.0, 1.0]]), torch.tensor([[3.0, -2.0, 1.0, 0.0]])
    several = value.value_loss(values, old, returns, mask, clip=0.2, denominator=4)
    close(several.loss, 0.5 * (3.24 + 5.29 + 4 + 1.21) / 4)
    close(several.clip_fraction, 2 / 4)


def test_pair_losses_golden() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    close(pairwise.dpo_loss(zero, zero, zero, zero, one, beta=0.1, denominator=1).loss, 0.693147)
    close(pairwise.dpo_loss(one * 7, one * -3, zero, zero, one, beta=0.1, denominator=1).loss, 0.313262)
    close(pairwise.bradley_terry(one * 2, zero, one, denominator=1).loss, 0.126928)
    close(pairwise.bradley_terry(zero, zero, one, denominator=1).loss, math.log(2))


def test_pair_losses_weigh_their_pairs() -> None:
    margin, weight, zero = torch.tensor([2.0, 0.0]), torch.tensor([3.0, 0.5]), torch.zeros(2)
    expected = (3 * 0.126928 + 0.5 * 0.693147) / 3.5
    close(pairwise.bradley_terry(margin, zero, weight, denominator=3.5).loss, expected)
    close(pairwise.dpo_loss(margin * 4, zero, margin * 2, zero, weight, beta=0.5, denominator=3.5).loss, expected)


def test_margin_of_implicit_rewards_golden() -> None:
    # log-ratios 1 and -3 of the first pair, -2 and 2 of the second
    chosen_P, rejected_P = torch.tensor([-3.0, -6.0]), torch.tensor([-5.0, -1.0])
    reference = (torch.tensor([-4.0, -4.0]), torch.tensor([-2.0, -3.0]))
    pairs = PairLogprobs(chosen_P, rejected_P, *reference, torch.ones(2), torch.ones(2), torch.ones(2), denominator=2)
    close(pairs.margin_P(0.5), [2.0, -2.0])
    close(Sigmoid(beta=0.5).loss(pairs), (0.126928 + 2.126928) / 2)


def test_likelihood_loss_golden() -> None:
    # two answers of 4 and 2 tokens at -2 and -1 nats per token
    found = pairwise.likelihood_loss(torch.tensor([-8.0, -2.0]), torch.tensor([4.0, 2.0]), torch.tensor([1.0, 3.0]), 4)
    close(found, (2 + 3 * 1) / 4)


def test_shape_rewards_golden() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kl = torch.tensor([[0.5, 1.0, float("nan")], [2.0, float("inf"), 3.0]])
    found = pg.shape_rewards(torch.tensor([3.0, -1.0]), kl, mask, coefficient=0.1)
    close(found, [[-0.05, 2.9, 0.0], [-1.2, 0.0, 0.0]])


def test_best_of_n_kl() -> None:
    assert kl.best_of_n_kl(1) == 0
    close(kl.best_of_n_kl(4), math.log(4) - 0.75)
    # exact: the best of n of a continuous score has density n F^(n-1), so KL = integral of n u^(n-1) log(n u^(n-1))
    u = (np.arange(200_000) + 0.5) / 200_000
    density = 16 * u**15
    close(kl.best_of_n_kl(16), float(np.mean(density * np.log(density))), 1e-4)


def test_explained_variance() -> None:
    values, mask = true_mask(1.0, 2.0, 4.0)
    assert value.explained_variance(values, values, mask) == 1
    close(value.explained_variance(torch.zeros_like(values), values, mask), 0.0)
    assert value.explained_variance(values, torch.ones_like(values), mask) is None


# --- identities --------------------------------------------------------------------------------------------


def test_token_kl_is_zero_on_equal_inputs_and_k3_never_negative() -> None:
    logprob, reference = draw(0, B, T) * 5, draw(1, B, T) * 5
    for kind in ("k1", "k3"):
        assert bool((kl.token_kl(logprob, logprob, kind) == 0).all())
    assert bool((kl.token_kl(logprob, reference, "k3") >= 0).all())
    assert bool((kl.token_kl(logprob, reference, "k1") < 0).any())


def test_exact_kl_equals_torch_distributions_and_is_what_the_estimators_estimate() -> None:
    policy, reference = draw(0, 6, 11), draw(1, 6, 11)
    p, r = (torch.distributions.Categorical(logits=logits) for logits in (policy, reference))
    exact = kl.exact_token_kl(policy, reference)
    close(exact, torch.distributions.kl_divergence(p, r))
    every = torch.arange(11)[:, None].expand(11, 6)
    for kind in ("k1", "k3"):
        estimate = kl.token_kl(p.log_prob(every), r.log_prob(every), kind)
        close((p.log_prob(every).exp() * estimate).sum(0), exact)


def test_shaped_rewards_sum_to_score_minus_kl() -> None:
    scores, kl = draw(0, B), draw(1, B, T)
    found = pg.shape_rewards(scores, kl, MASK, coefficient=0.3)
    close(found.sum(1), scores - 0.3 * (kl * MASK).sum(1))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_a_slow_double_loop(gamma: float, lam: float) -> None:
    rewards, values = draw(0, B, T), draw(1, B, T)
    credit = pg.gae(rewards, values, MASK, gamma, lam)
    for b in range(B):
        n = int(LENGTHS[b])
        value = [*values[b, :n].tolist(), 0.0]
        delta = [float(rewards[b, t]) + gamma * value[t + 1] - value[t] for t in range(n)]
        for t in range(n):
            advantage = sum((gamma * lam) ** (later - t) * delta[later] for later in range(t, n))
            close(credit.advantages_BT[b, t], advantage, 1e-5)
            close(credit.returns_BT[b, t], advantage + value[t], 1e-5)


def test_gae_with_lambda_one_is_return_minus_value() -> None:
    rewards, values = draw(0, B, T), draw(1, B, T)
    to_go = (rewards * MASK).flip(1).cumsum(1).flip(1)
    close(pg.gae(rewards, values, MASK, 1.0, 1.0).advantages_BT, (to_go - values) * MASK, 1e-5)


def test_whiten_equals_numpy() -> None:
    values = draw(0, B, T) * 3 + 1
    real = values[MASK].numpy().astype(np.float64)
    whitened = pg.whiten(values, values[MASK].mean(), values[MASK].var(correction=0))[MASK]
    close(whitened, (real - real.mean()) / real.std(), 1e-5)
    close(whitened.mean(), 0.0, 1e-5)
    close((whitened**2).mean(), 1.0, 1e-5)


def test_policy_loss_at_ratio_one_is_minus_the_mean_advantage() -> None:
    logprob, advantages = draw(0, B, T).requires_grad_(), draw(1, B, T)
    n = int(MASK.sum())
    found = pg.policy_loss(logprob, logprob.detach(), advantages, MASK, clip=0.2, denominator=n)
    close(found.loss.detach(), -advantages[MASK].mean())
    assert found.clip_fraction == 0 and found.approx_kl == 0
    found.loss.backward()
    close(logprob.grad, -advantages * MASK / n)


def test_clipped_tokens_have_no_gradient() -> None:
    logprob = torch.tensor([[0.5, -0.5, 0.5, 0.1]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    pg.policy_loss(logprob, torch.zeros(1, 4), advantages, torch.ones(1, 4, dtype=torch.bool), 0.2, 1).loss.backward()
    assert logprob.grad is not None
    assert (logprob.grad == 0).tolist() == [[True, True, False, False]]


def test_swapping_the_sides_negates_the_margin() -> None:
    c, r, reference_c, reference_r = (draw(seed, B) for seed in range(4))
    one = torch.ones(B)
    kept = pairwise.dpo_loss(c, r, reference_c, reference_r, one, 0.3, B).margin_P
    swapped = pairwise.dpo_loss(r, c, reference_r, reference_c, one, 0.3, B).margin_P
    assert torch.equal(kept, -swapped)
    assert torch.equal(pairwise.bradley_terry(c, r, one, B).margin_P, -pairwise.bradley_terry(r, c, one, B).margin_P)


def test_gradcheck_in_float64() -> None:
    c, r, a, b = (draw(seed, B).double().requires_grad_() for seed in range(4))
    weight = draw(9, B).double().abs()
    assert torch.autograd.gradcheck(lambda c, r: pairwise.bradley_terry(c, r, weight, 3.0).loss, (c, r))
    assert torch.autograd.gradcheck(
        lambda c, r, a, b: pairwise.dpo_loss(c, r, a, b, weight, beta=0.7, denominator=3.0).loss, (c, r, a, b)
    )


def test_pair_losses_stay_finite_at_wide_margins() -> None:
    chosen = torch.tensor([-5000.0, 5000.0], requires_grad=True)
    found = pairwise.bradley_terry(chosen, -chosen.detach(), torch.ones(2), 2)
    found.loss.backward()
    assert bool(torch.isfinite(found.loss)) and chosen.grad is not None and bool(torch.isfinite(chosen.grad).all())
    close(chosen.grad, [-0.5, 0.0])


def test_several_losses_add_their_gradients_as_if_each_read_the_log_probabilities_itself() -> None:
    """To the bit: a step with an SFT term is the step of earlier versions, which indexed once per loss."""
    torch.manual_seed(0)
    n_pairs, policy_B, reference_B = 500, (50 * torch.randn(40)).requires_grad_(), 50 * torch.randn(40)
    c, r = torch.randint(0, 20, (n_pairs,)), torch.randint(20, 40, (n_pairs,))
    weight_P, n_tokens_B = torch.rand(n_pairs), torch.randint(3, 30, (40,)).float()

    def pairs() -> PairLogprobs:
        sides = (policy_B[c], policy_B[r], reference_B[c], reference_B[r])
        return PairLogprobs(*sides, n_tokens_B[c], n_tokens_B[r], weight_P, 7.0)

    (ours_B,) = torch.autograd.grad(total_loss([Sigmoid(beta=0.3), Likelihood(weight=0.2)], pairs), policy_B)
    loss = dpo_loss(policy_B[c], policy_B[r], reference_B[c], reference_B[r], weight_P, 0.3, 7.0).loss
    loss = loss + 0.2 * likelihood_loss(policy_B[c], n_tokens_B[c], weight_P, 7.0)
    (expected_B,) = torch.autograd.grad(loss, policy_B)
    assert torch.equal(ours_B, expected_B)
    once = pairs()
    (shared_B,) = torch.autograd.grad(total_loss([Sigmoid(beta=0.3), Likelihood(weight=0.2)], lambda: once), policy_B)
    assert not torch.equal(shared_B, expected_B), "the order of the sums is what this test is about"
