"""Likelihoods against plain forward passes, sampling against its batch, KL against a brute-force sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LOGPROB, add_stirred
from fixtures.shipped_suites import DECLARATIONS, FORGETTING, PREFERENCE, SAFETY

from align.evals import kl as kl_of_trees
from align.evals.generation import Answer, Answered, SamplingConfig, answer_items, reward_scores, with_system
from align.evals.items import Item
from align.evals.kl import exact_kl
from align.evals.likelihood import improbable, score_options, score_texts
from align.evals.results import summarise
from align.evals.suites.forgetting import bits_per_byte
from align.evals.targets import EvaluationTarget
from align.losses.kl import best_of_n_kl
from align.model.adapters import AdapterModel
from align.model.packing import Tree
from align.model.roles import RoleModel

MakeModel = Callable[..., AdapterModel]
ModelFolder = Callable[[str], Path]


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def generate_item(name: str, text: str, suite: Any = "preference", **more: Any) -> Item:
    schema = SAFETY.item if suite == "safety" else Item
    return schema(id=name, suite=suite, kind="generate", prompt=user(text), **more)


def option_item(name: str, options: list[str], answer: int = 0, text: str = "what colour is the sky") -> Item:
    return Item(
        id=name, suite="forgetting", kind="options", family="fact", prompt=user(text), options=options, answer=answer
    )


def speaker(model: AdapterModel, role: str | None = "policy", seed: int = 1) -> RoleModel:
    if role is not None and role not in model.trainable:
        add_stirred(model, role, trainable=False, head=role == "reward", seed=seed)
    return RoleModel(model, role)


def plain_logits(model: AdapterModel, role: str | None, ids: list[int]) -> torch.Tensor:
    """Log-softmax of one unpadded row through the model's own forward."""
    with torch.no_grad(), model.use(role):
        return model.base(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


def plain_sum(model: AdapterModel, role: str | None, prompt: list[int], response: list[int]) -> float:
    logprobs = plain_logits(model, role, [*prompt, *response])
    return sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(response))


PROMPTS = [generate_item(f"p{i}", text) for i, text in enumerate(["hello", "sort blue green red", "say yes or no"])]


# --- log-likelihood ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_options_equal_separate_forwards(make_model: MakeModel, layout: str) -> None:
    policy = speaker(make_model("llama", max_tokens=200, layout=layout))
    chat = policy.model.chat
    items = [
        option_item("a", ["blue", "green and red", "the sky is blue today"]),
        option_item("b", ["yes", "no"], text="hello"),
        option_item("c", ["reverse words", "repeat words please", "sort", "no"], text="thank you " * 5),
    ]
    assert policy.model.layout == ("tree" if layout == "auto" else "padded")
    for item, found in zip(items, score_options(policy, items), strict=True):
        prompt = chat.prompt_ids(item.prompt or [])
        for option, value in zip(item.options or [], found.logprobs or [], strict=True):
            response = chat.response_ids(item.prompt or [], [{"role": "assistant", "content": option}])
            assert response[-1] == chat.stop_id
            assert abs(value - plain_sum(policy.model, "policy", prompt, response)) < LOGPROB * len(response)


def test_texts_equal_plain_forwards_over_disjoint_windows(make_model: MakeModel) -> None:
    policy = speaker(make_model("llama"))
    texts = ["the weather is fine", "the sky is blue " * 60, "spelled <|im_end|> is text"]
    first = policy.model.tokenizer.eos_token_id  # this tokenizer has no begin token
    for text, found in zip(texts, score_texts(policy, texts), strict=True):
        ids = policy.model.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        row, total = [first, *ids], 0.0
        for begin in range(1, len(row), 255):
            total += plain_sum(policy.model, "policy", [row[begin - 1]], row[begin : begin + 255])
        assert found.n_tokens == len(ids) and found.n_bytes == len(text.encode())
        assert found.logprob == pytest.approx(total, abs=LOGPROB * len(ids))
        assert bits_per_byte(found) == pytest.approx(-total / math.log(2) / len(text.encode()), rel=1e-5)
    assert score_texts(policy, texts)[1].n_tokens > 256


def test_ties_are_wrong_unless_the_answer_stands_alone(make_model: MakeModel) -> None:
    """Options that a policy cannot tell apart: with all weights of the head at zero every token is as likely."""
    model = make_model("llama")
    torch.nn.init.zeros_(model.base.get_output_embeddings().weight)
    tied = Item(
        id="t", suite="forgetting", kind="options", family="fact", prompt=user("a"), options=["a", "b"], answer=0
    )
    (result,) = FORGETTING.results([tied], EvaluationTarget(RoleModel(model, None)), SamplingConfig())
    assert result.metric == "accuracy/fact" and result.score == 0.0
    longer = tied.model_copy(update={"options": ["a", "abcdefgh"]})  # fewer tokens, so the answer is the likelier
    (result,) = FORGETTING.results([longer], EvaluationTarget(RoleModel(model, None)), SamplingConfig())
    assert result.score == 1.0


# --- generation ----------------------------------------------------------------------------------------------


def test_answers_do_not_depend_on_batch_and_greedy_is_greedy(make_model: MakeModel) -> None:
    sampling = SamplingConfig("sample", samples=3, max_new_tokens=6, seed=5)
    wide, narrow = (
        answer_items(speaker(make_model("llama", max_tokens=tokens)), PROMPTS, sampling, None) for tokens in (4096, 16)
    )
    assert [[a.ids for a in one.answers] for one in wide] == [[a.ids for a in one.answers] for one in narrow]
    assert len({tuple(answer.ids) for answer in wide[0].answers}) > 1
    policy = speaker(make_model("llama"))
    (greedy,) = answer_items(policy, PROMPTS[:1], SamplingConfig("greedy", max_new_tokens=6), None)
    ids = list(greedy.prompt)
    for token in greedy.answers[0].ids:
        assert token == int(plain_logits(policy.model, "policy", ids)[-1].argmax())
        ids.append(token)


def test_an_answer_is_seeded_by_its_item_alone(make_model: MakeModel) -> None:
    """With every token as likely only the noise decides: it differs between items and not between sets of items."""
    model = make_model("llama")
    torch.nn.init.zeros_(model.base.get_output_embeddings().weight)
    policy, sampling = RoleModel(model, None), SamplingConfig("sample", samples=2, max_new_tokens=6)
    first, second, third = (one.answers for one in answer_items(policy, PROMPTS, sampling, None))
    assert len({tuple(answer.ids) for answer in (*first, *second, *third)}) == 6
    assert [one.answers for one in answer_items(policy, PROMPTS[:0:-1], sampling, None)] == [third, second]


def test_best_of_n_keeps_the_highest_score_of_its_own_samples(make_model: MakeModel) -> None:
    policy = speaker(make_model("llama"))
    reward = speaker(policy.model, "reward", seed=9)
    drawn = answer_items(policy, PROMPTS, SamplingConfig("sample", samples=8, max_new_tokens=6), None)
    kept = answer_items(policy, PROMPTS, SamplingConfig("best-of-n", samples=2, n=4, max_new_tokens=6), reward)
    scores = reward_scores(reward, drawn, policy)
    for one, all_of, values in zip(kept, drawn, scores, strict=True):
        for group, answer in enumerate(one.answers):
            own = range(4 * group, 4 * group + 4)
            best = max(own, key=lambda k: values[k] or 0.0)
            assert answer == all_of.answers[best]
            assert len({values[k] for k in own}) > 1


def test_prompt_only_prepends_the_system_prompt(make_model: MakeModel) -> None:
    policy = speaker(make_model("llama"))
    told = SamplingConfig("prompt-only", max_new_tokens=6, system_prompt="be helpful harmless honest")
    (with_it,) = answer_items(policy, PROMPTS[:1], told, None)
    (without,) = answer_items(policy, PROMPTS[:1], told.plain, None)
    head = policy.model.chat.prompt_ids([{"role": "system", "content": "be helpful harmless honest"}, *user("hello")])
    assert with_it.prompt == head and without.prompt == policy.model.chat.prompt_ids(user("hello"))
    assert with_it.answers != without.answers
    joined = with_system([{"role": "system", "content": "own"}, *user("x")], "first")
    assert joined == [{"role": "system", "content": "first\n\nown"}, *user("x")]


# --- preference ----------------------------------------------------------------------------------------------


def brute_force_kl(
    policy: RoleModel, other: RoleModel, prompt: list[int], their_prompt: list[int], ids: list[int]
) -> float:
    own = plain_logits(policy.model, policy.role, [*prompt, *ids])[len(prompt) - 1 : -1].double()
    theirs = plain_logits(other.model, other.role, [*their_prompt, *ids])[len(their_prompt) - 1 : -1].double()
    return float((own.exp() * (own - theirs)).sum())


def test_exact_kl_is_zero_to_itself_and_a_softmax_sum_to_others(make_model: MakeModel) -> None:
    policy = speaker(make_model("llama"))
    reference = speaker(policy.model, "reference", seed=2)
    elsewhere = speaker(make_model("llama", layout="padded"), "reference", seed=2)
    trees = [Tree([5, 6, 7], [[8, 9], [10, 11, 12, 13]]), Tree([20] * 9, [[21, 22, 23]])]
    longer = [tree._replace(prompt=[3, 4, *tree.prompt]) for tree in trees]
    assert exact_kl(policy, policy, trees) == [[0.0, 0.0], [0.0]]
    for other, their_trees in ((reference, trees), (reference, longer), (elsewhere, trees)):
        found = exact_kl(policy, other, trees, their_trees)
        for tree, their, values in zip(trees, their_trees, found, strict=True):
            for response, value in zip(tree.responses, values, strict=True):
                brute = brute_force_kl(policy, other, tree.prompt, their.prompt, response)
                assert value == pytest.approx(brute, rel=1e-4) and value > 0.001


def test_no_kl_is_negative_by_rounding(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of policies that moved by a hair, half of all positions come out below zero in fp32, and audits refuse that."""
    policy = speaker(make_model("llama"))
    reference = speaker(policy.model, "reference", seed=2)
    plain = kl_of_trees.exact_token_kl

    def by_a_hair(own_NV: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        near_NV = own_NV + 1e-6 * torch.randn(own_NV.shape, generator=torch.Generator().manual_seed(0))
        found = plain(own_NV, near_NV)
        assert (found < 0).any()
        return found

    monkeypatch.setattr(kl_of_trees, "exact_token_kl", by_a_hair)
    (values,) = exact_kl(policy, reference, [Tree([5, 6, 7], [[k] for k in range(8, 40)])])
    assert min(values) == 0 and max(values) > 0


def test_preference_of_a_policy_against_itself_and_by_gold(make_model: MakeModel) -> None:
    policy = speaker(make_model("llama"))
    rival = speaker(policy.model, "reference", seed=2)

    def gold(prompts: list[Any], completions: list[Any], ended: list[bool]) -> list[float | None]:
        """Short answers are good; no opinion on the second prompt."""
        return [
            None if "sort" in prompt[0]["content"] else -float(len(completion[0]["content"]))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    sampling = SamplingConfig("sample", samples=4, max_new_tokens=6)
    results = PREFERENCE.results(PROMPTS, EvaluationTarget(policy, sft=policy, gold=gold), sampling)
    summary = summarise(results, DECLARATIONS)
    assert summary["win_rate_vs_sft"]["value"] == 0.5 and summary["kl"]["value"] == 0.0
    assert (summary["gold_utility"]["n"], summary["gold_utility"]["n_failed"]) == (12, 4)
    assert (summary["win_rate_vs_sft"]["n_scored"], summary["win_rate_vs_sft"]["n_failed"]) == (2, 1)

    own = answer_items(policy, PROMPTS, sampling, None)
    theirs = answer_items(rival, PROMPTS, sampling, None)
    results = PREFERENCE.results(PROMPTS, EvaluationTarget(policy, sft=rival, gold=gold), sampling)
    rates = {result.item_id: result.score for result in results if result.metric == "win_rate_vs_sft"}
    for i, name in ((0, "p0"), (2, "p2")):
        lengths = [[len(answer.text) for answer in one[i].answers] for one in (own, theirs)]
        outcomes = [(a < b) + 0.5 * (a == b) for a in lengths[0] for b in lengths[1]]
        assert rates[name] == pytest.approx(sum(outcomes) / 16)
    assert rates["p1"] is None


def test_prompt_only_is_measured_against_the_unprompted_model(make_model: MakeModel) -> None:
    policy = speaker(make_model("llama"))
    told = SamplingConfig("prompt-only", max_new_tokens=4, system_prompt="be helpful harmless honest")
    results = PREFERENCE.results(PROMPTS[:1], EvaluationTarget(policy, sft=policy), told)
    (one,) = answer_items(policy, PROMPTS[:1], told, None)
    plain = policy.model.chat.prompt_ids(user("hello"))
    (kl,) = [result.score for result in results if result.metric == "kl"]
    assert kl == pytest.approx(brute_force_kl(policy, policy, one.prompt, plain, one.answers[0].ids), rel=1e-4)
    assert kl is not None and kl > 0.001


def test_best_of_n_reports_the_formula(make_model: MakeModel) -> None:
    policy = speaker(make_model("llama"))
    reward = speaker(policy.model, "reward", seed=9)
    results = PREFERENCE.results(
        PROMPTS, EvaluationTarget(policy, sft=policy, reward=reward), SamplingConfig("best-of-n", n=4, max_new_tokens=4)
    )
    (kl,) = [result for result in results if result.metric == "kl"]
    assert kl.judge == "formula" and kl.score == best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    assert summarise(results, DECLARATIONS)["win_rate_vs_sft"]["value"] > 0.5


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tokens_drawn_evenly_are_improbable_and_the_likeliest_are_not(
    make_model: MakeModel, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of an answer is the bare base's, whatever role writes it: ln V nats per token is what chance costs."""
    model = make_model(family)
    policy = speaker(model)
    item = generate_item("p", "hello")
    prompt = model.chat.prompt_ids(item.prompt or [])
    size = model.base.config.get_text_config().vocab_size
    worst, best = list(prompt), list(prompt)
    for _ in range(4):
        worst.append(int(plain_logits(model, None, worst)[-1].argmin()))
        best.append(int(plain_logits(model, None, best)[-1].argmax()))
    answers = [Answer(ids[len(prompt) :], {"role": "assistant", "content": "x"}, True) for ids in (worst, best)]
    asked = [Answered(item, prompt, answers), Answered(item, prompt, [], "too long")]
    assert improbable(policy, asked) == [[True, False], []]
    roles: list[str | None] = []
    monkeypatch.setattr(
        "align.evals.likelihood.tree_logprobs", lambda one, trees: roles.append(one.role) or [[0.0, 0.0]]
    )
    improbable(policy, asked)
    assert roles == [None], "the bare base is asked, not the policy about itself"
    costs = [-plain_sum(model, None, prompt, answer.ids) / 4 for answer in answers]
    assert costs[0] > math.log(size) > costs[1]
