"""Suite `preference`: measure how good the policy's answers are, and how far it moved from SFT.

Gold utility where the truth is known, reward score, win rate against SFT's own answers to the same prompts, exact
KL to SFT along the policy's samples, length, and the share that ended. Length and KL are reported beside every gain
because both buy reward. Not here: length-controlled win rates, human or model judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

from align.core.declarations import FORMULA, Metric
from align.core.hashes import code_hash
from align.core.records import ItemResult
from align.core.stats.estimates import Kind
from align.evals.fluency import is_empty, is_garbage
from align.evals.generation import Answered, SamplingConfig, answer_items, reward_scores
from align.evals.items import Item
from align.evals.kl import exact_kl
from align.evals.likelihood import improbable
from align.evals.measurements import measure
from align.evals.results import item_result
from align.evals.suite import Suite
from align.evals.targets import EvaluationTarget
from align.evals.training_reward import REWARD_MODEL
from align.losses.kl import best_of_n_kl
from align.model.packing import Tree
from align.model.roles import RoleModel

SampleScores = list[list[float | None]]


class PreferenceItem(Item):
    """A prompt to answer."""

    kinds = ("generate",)


def _metric(name: str, higher_is_better: bool, kind: Kind = "unbounded", **facts: Any) -> Metric:
    """Declare a metric that garbage may score well on."""
    return Metric(name=name, higher_is_better=higher_is_better, kind=kind, needs_answers=True, **facts)


class Preference(Suite):
    """Generated answers, by gold utility, reward, and against SFT's own."""

    name = "preference"
    title = "Preference"
    item = PreferenceItem
    reads: ClassVar = frozenset({"gold", "reward", "sft", "measured_higher", "measured_lower"})
    garbage_metric = "garbage"
    says_missing = False
    metrics = (
        _metric("gold_utility", True, judged_by=("gold",)),
        _metric("reward_score", True, judged_by=("reward",)),
        _metric(
            "win_rate_vs_sft", True, "share", against="sft", judged_by=("gold", "reward"), length_metric="n_tokens"
        ),
        _metric("kl", False, low=0.0, has_own_scale=True, against="sft"),
        _metric("measured_higher", True, has_slices_only=True),
        _metric("measured_lower", False, has_slices_only=True),
        Metric(name="garbage", higher_is_better=False, kind="binary"),
        Metric(name="empty", higher_is_better=False, kind="binary"),
        _metric("n_tokens", False, low=0.0, capped_by="max_new_tokens"),
        _metric("ended", True, "binary"),
    )

    def judges(self, items: Sequence[Item], target: EvaluationTarget) -> dict[str, str]:
        return {} if target.gold is None else {target.gold_name: code_hash(target.gold)}

    def row_of_pair(self, name: str, pair: Mapping[str, Any]) -> dict[str, Any]:
        """Make an item of a held-out prompt, to be answered."""
        prompt = {"prompt": pair["prompt"], "tools": pair.get("tools")}
        return {"id": name, "suite": self.name, "kind": "generate"} | prompt

    def results(self, items: Sequence[Item], target: EvaluationTarget, sampling: SamplingConfig) -> list[ItemResult]:
        """Return the results per answer, and of ``win_rate_vs_sft`` per prompt."""
        answered = answer_items(target.policy, items, sampling, target.reward)
        utility = _gold(target, answered)
        rewards = reward_scores(target.reward, answered, target.policy) if target.reward else None
        results: list[ItemResult] = []
        if utility is not None:
            results += _per_answer(
                answered, "gold_utility", target.named(target.gold_name), utility, "the utility has no opinion"
            )
        if rewards is not None:
            results += _per_answer(
                answered,
                "reward_score",
                target.named(REWARD_MODEL),
                rewards,
                "the reward model cannot read it (too long, or cut inside its reasoning)",
            )
        if target.sft is not None:
            rivals = answer_items(target.sft, items, sampling.plain, None)
            results += _win_rate(target, answered, rivals, utility, rewards)
            results += _kl(target.policy, target.sft, answered, sampling)
        results += _measured(target, answered)
        results += _fluency(target.policy, answered)
        lengths: SampleScores = [[float(len(answer.ids)) for answer in one.answers] for one in answered]
        ended: SampleScores = [[float(answer.ended) for answer in one.answers] for one in answered]
        results += _per_answer(answered, "n_tokens", "count", lengths, "")
        return results + _per_answer(answered, "ended", "count", ended, "")


def _per_answer(
    answered: Sequence[Answered], metric: str, judge: str, scores: SampleScores, reason: str
) -> list[ItemResult]:
    results = []
    for one, values in zip(answered, scores, strict=True):
        per_sample = values or [None]  # an item without answers is one failed result
        results += [item_result(one, metric, judge, value, reason, number) for number, value in enumerate(per_sample)]
    return results


def _gold(target: EvaluationTarget, answered: Sequence[Answered]) -> SampleScores | None:
    """Compute the gold utility of every answer, by TRL's reward signature; None where no gold is known."""
    if target.gold is None:
        return None
    flat = [(one, answer) for one in answered for answer in one.answers]
    completions = [[{**answer.message, "content": answer.text}] for _, answer in flat]
    values = iter(
        target.gold(
            prompts=[one.item.prompt for one, _ in flat],
            completions=completions,
            ended=[answer.ended for _, answer in flat],
        )
    )
    return [[next(values) for _ in one.answers] for one in answered]


def _fluency(policy: RoleModel, answered: Sequence[Answered]) -> list[ItemResult]:
    """Count the answers that are none, under names apart from the safety suite's."""
    garbage: SampleScores = [
        [
            float(odd or is_garbage(answer.text, one.item.last_user_text))
            for answer, odd in zip(one.answers, strange, strict=True)
        ]
        for one, strange in zip(answered, improbable(policy, answered), strict=True)
    ]
    empty: SampleScores = [[float(is_empty(answer.text)) for answer in one.answers] for one in answered]
    results = _per_answer(answered, "garbage/preference", "fluency rules", garbage, "")
    return results + _per_answer(answered, "empty/preference", "fluency rules", empty, "")


def _measured(target: EvaluationTarget, answered: Sequence[Answered]) -> list[ItemResult]:
    """Return what `evaluate` modules measure of every answer."""
    texts = [answer.text for one in answered for answer in one.answers]
    results = []
    for measurement in target.measurements:
        for metric, values in measure(measurement, texts).items():
            rest = iter(values)
            scores: SampleScores = [[next(rest) for _ in one.answers] for one in answered]
            judge = f"evaluate: {measurement.name}"
            results += _per_answer(answered, metric, judge, scores, "the module gave no finite number")
    return results


# --- against SFT ---------------------------------------------------------------------------------------------


def _win_rate(
    target: EvaluationTarget,
    answered: Sequence[Answered],
    rivals: Sequence[Answered],
    utility: SampleScores | None,
    rewards: SampleScores | None,
) -> list[ItemResult]:
    """Return, per prompt, the share of (own, SFT) answer pairs that the policy wins; a tie is half a win.

    Judged by gold utility where it has an opinion on all of them, else by reward; never by what the policy was trained
    on, or what chose its answers.
    """
    assert target.sft is not None
    sides: list[tuple[str, SampleScores, SampleScores]] = []
    if utility is not None and target.gold_name not in target.own_judges:
        sides.append((target.gold_name, utility, _gold(target, rivals) or []))
    if rewards is not None and target.reward is not None and REWARD_MODEL not in target.own_judges:
        sides.append((REWARD_MODEL, rewards, reward_scores(target.reward, rivals, target.sft)))
    if not sides:
        return []
    results = []
    for i, (one, rival) in enumerate(zip(answered, rivals, strict=True)):
        score, judge = None, sides[0][0]
        for name, own, other in sides:
            if (score := _share_won(own[i], other[i])) is not None:
                judge = name
                break
        reason = rival.reason or "no judge has an opinion on all answers"
        results.append(item_result(one, "win_rate_vs_sft", judge, score, reason))
    return results


def _share_won(own: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """Return the mean of 1 (win), 0.5 (tie), 0 (loss) over all pairs; None if one lacks a value or there is none."""
    outcomes = []
    for mine, theirs in product(own, other):
        if mine is None or theirs is None:
            return None
        outcomes.append(0.5 if mine == theirs else float(mine > theirs))
    return sum(outcomes) / len(outcomes) if outcomes else None


def _kl(
    policy: RoleModel, reference: RoleModel, answered: Sequence[Answered], sampling: SamplingConfig
) -> list[ItemResult]:
    """Return the KL in nats per response: exact along each sample, and for best-of-n the formula's one value.

    The formula is best-of-n's distance from the policy it samples, SFT's own when SFT is evaluated.
    """
    if sampling.policy == "best-of-n":
        value = best_of_n_kl(sampling.n)
        suite = answered[0].item.suite
        return [ItemResult(suite=suite, metric="kl", item_id=f"best-of-{sampling.n}", score=value, judge=FORMULA)]
    values: SampleScores = [[] for _ in answered]
    if policy.model.tokenizer.get_vocab() != reference.model.tokenizer.get_vocab():
        return _per_answer(answered, "kl", "exact", values, "the SFT model has another vocabulary")
    usable = [i for i, one in enumerate(answered) if one.answers]
    trees = [Tree(answered[i].prompt, [answer.ids for answer in answered[i].answers]) for i in usable]
    others = trees
    if sampling.system_prompt:  # the reference reads the prompt without it
        chat, items = reference.model.chat, [answered[i].item for i in usable]
        prompts = [chat.prompt_ids(item.prompt or [], item.tools) for item in items]
        others = [tree._replace(prompt=ids) for tree, ids in zip(trees, prompts, strict=True)]
    for i, sums in zip(usable, exact_kl(policy, reference, trees, others), strict=True):
        values[i] = [*sums]
    return _per_answer(answered, "kl", "exact", values, "")
