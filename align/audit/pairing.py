"""Choose the evaluations that a gate is judged by: every pair of candidate and reference with equal fingerprints.

In: a gate and the policies with all their evaluations. Out: the pairs, and a reason for each evaluation that is in
none. Of several pairs the worst decides, so that evaluating again gains nothing. Not here: verdicts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from align.audit.evaluations import POLICIES, EvaluatedPolicy, Evaluation, chance_of
from align.audit.gates import Finding, Gate, insufficient
from align.audit.guards import guarded
from align.audit.lineage import UNKNOWN, other_base, started_from, unknown_origin
from align.audit.verdict import judge_gate
from align.core.declarations import Declaration, Metric
from align.evals.fingerprint import differences
from align.evals.training_reward import LABEL, trained_on, training_metrics

MAX_TRAINED = 0.1  # share of items that were trained on beyond which an evaluation says nothing of others
RANK = {"fail": 0, "insufficient": 1, "pass": 2}


class GateDecision(NamedTuple):
    """A gate's finding, the evaluations that decided it (none where nothing did), and all that were considered."""

    gate: Gate
    finding: Finding
    deciding: Sequence[Evaluation]
    considered: list[dict[str, Any]]


class EvaluationPair(NamedTuple):
    """Evaluations to judge a gate by, the candidate's first; ``problem`` says why they cannot be."""

    sides: Sequence[Evaluation]
    problem: str | None


def judge_by_worst(gate: Gate, policies: Mapping[str, EvaluatedPolicy], gates: Sequence[Gate]) -> GateDecision:
    """Judge one of ``gates`` by every usable pair of evaluations; the worst finding is the gate's.

    A pair over fewer items than the gate asks for decides only where there is no other.
    """
    if gate.against is not None and gate.against not in policies:
        return GateDecision(gate, insufficient(gate, f"no {gate.against} was named: give {gate.against}=RUN"), (), [])
    roles = ["candidate"] if gate.against is None else ["candidate", gate.against]
    if reason := _of_unknown_origin(gate, policies["candidate"]):
        return GateDecision(gate, insufficient(gate, reason), (), [])
    by_role = [_counting(gate, policies[role]) for role in roles]
    if lacking := [role for role, some in zip(roles, by_role, strict=True) if not some]:
        return GateDecision(gate, insufficient(gate, _lacking(gate, policies, lacking)), (), [])
    pairs = _pairs(gate, policies, by_role)
    judged = [(pair, guarded(gate, gates, pair.sides[0], _judge(gate, pair))) for pair in pairs if pair.problem is None]
    unused = [_row(pair, None, False) for pair in pairs if pair.problem is not None]
    if not judged:
        nearest = min((pair.problem or "" for pair in pairs), key=lambda problem: problem.count("' differs"))
        return GateDecision(gate, insufficient(gate, nearest), (), unused)
    deciding, finding = min(judged, key=lambda one: _badness(gate, *one))
    used = [_row(pair, one, pair is deciding) for pair, one in judged]
    if finding.verdict == "pass" and (reason := _left_out(gate, by_role[-1], [pair for pair, _ in judged])):
        finding = finding.model_copy(update={"verdict": "insufficient", "status": "missing", "reason": reason})
    return GateDecision(gate, finding, deciding.sides, [*used, *unused])


def same_question(one: EvaluatedPolicy, other: EvaluatedPolicy, suite: str) -> list[tuple[Evaluation, Evaluation]]:
    """Return the pairs of evaluations of a suite by two policies as they act by themselves, with equal fingerprints."""
    sides = [[e for e in s.evaluations if e.suite == suite and e.policy in POLICIES] for s in (one, other)]
    return [(a, b) for a in sides[0] for b in sides[1] if not asked_differently(a, b)]


def asked_differently(one: Evaluation, other: Evaluation, allowed: Collection[str] = ()) -> str | None:
    """Return why two evaluations cannot be compared and what to do, or None where they can."""
    if one.fingerprint is None or other.fingerprint is None:
        unknown = one if one.fingerprint is None else other
        return f"{unknown.name} does not record how it was asked (an earlier version wrote it); evaluate again"
    if metric := _declared_differently(one.declaration, other.declaration):
        return f"{one.name} and {other.name} declare {metric} in different ways (another version); evaluate again"
    if lines := differences(one.fingerprint, other.fingerprint, allowed):
        return f"{one.name} and {other.name} are not alike: {'; '.join(lines)}; evaluate both alike"
    return None


def _declared_differently(one: Declaration, other: Declaration) -> str | None:
    """Return a metric of both suites that one declares otherwise than the other."""
    own = {metric.name: metric for metric in one.metrics}
    return next((m.name for m in other.metrics if own.get(m.name, m) != m), None)


def _of_unknown_origin(gate: Gate, candidate: EvaluatedPolicy) -> str | None:
    if gate.against is None or UNKNOWN in gate.allow:
        return None
    reason = unknown_origin(candidate, gate.against)
    return f"{reason}; 'allow: [{UNKNOWN}]' takes your word for it" if reason else None


def _counting(gate: Gate, policy: EvaluatedPolicy) -> list[Evaluation]:
    """Return a policy's evaluations of the gate's suite as the policy acts by itself, or as the gate wants."""
    return [
        one
        for one in policy.evaluations
        if one.suite == gate.suite
        and one.declaration.has(gate.metric)
        and one.policy in ((gate.policy,) if gate.policy else POLICIES)
        and all((one.fingerprint or {}).get(key) == value for key, value in gate.fingerprint.items())
    ]


def _lacking(gate: Gate, policies: Mapping[str, EvaluatedPolicy], roles: Sequence[str]) -> str:
    wanted = [f"policy {gate.policy or ' or '.join(POLICIES)}"]
    wanted += [f"{key} {value}" for key, value in gate.fingerprint.items()]
    return f"no finished evaluation of suite {gate.suite} ({', '.join(wanted)}) for {' and '.join(roles)}"


def _pairs(
    gate: Gate, policies: Mapping[str, EvaluatedPolicy], by_role: Sequence[Sequence[Evaluation]]
) -> list[EvaluationPair]:
    pairs = []
    for candidate in by_role[0]:
        problem = other_base(policies["candidate"], candidate) or _unfit(gate, candidate, policies)
        if problem or gate.against is None:
            pairs.append(EvaluationPair((candidate,), problem))
            continue
        for reference in by_role[1]:
            problem = other_base(policies[gate.against], reference)
            pairs.append(
                EvaluationPair((candidate, reference), problem or asked_differently(candidate, reference, gate.allow))
            )
    return pairs


def _unfit(gate: Gate, candidate: Evaluation, policies: Mapping[str, EvaluatedPolicy]) -> str | None:
    """Return the reason why an evaluation of the candidate is no evidence, whatever it is compared with, or None."""
    if candidate.fingerprint is None:
        return f"{candidate.name} does not record how it was asked (an earlier version wrote it); evaluate again"
    if not candidate.record.headline.get("own_template") and "template_sha256" not in gate.allow:
        return f"{candidate.name} asked the candidate through another chat template than its own"
    if candidate.trained_share > MAX_TRAINED:
        return (
            f"{candidate.trained_share:.0%} of the items of {candidate.name} are prompts that the candidate was "
            "trained on; evaluate on others"
        )
    metric = _declared(gate, candidate)
    longest = candidate.fingerprint.get(metric.capped_by) if metric.capped_by else None
    if gate.limit is not None and longest is not None and gate.limit >= longest:
        return (
            f"{candidate.name} let no answer have more than {longest} tokens: no candidate could exceed {gate.limit:g}"
        )
    trained = trained_on(*(policies[role].record for role in ("candidate", gate.against) if role))
    if gate.metric in training_metrics(candidate.record, trained):
        return f"{candidate.name} measured {gate.metric} by a {LABEL}; evaluate with a reward that no side learned from"
    if metric.against == "sft" and "sft" not in gate.allow:
        starts = {policies["sft"].artefact} if "sft" in policies else _starts(policies["candidate"])
        if candidate.fingerprint.get("sft") not in starts:
            return (
                f"{candidate.name} measured {gate.metric} against another policy than the SFT that this audit is about"
            )
    return None


def _declared(gate: Gate, evaluation: Evaluation) -> Metric:
    return evaluation.declaration.metric(gate.metric)


def _starts(candidate: EvaluatedPolicy) -> set[str]:
    return started_from(candidate.record) if candidate.record else set()


def _left_out(gate: Gate, references: Sequence[Evaluation], judged: Sequence[EvaluationPair]) -> str | None:
    """Return the reason why the items of a pass may be a selection of the reference's items, or None."""
    if gate.against is None:
        return None
    judged_items = {item for pair in judged for item in pair.sides[0].scores(gate.metric).items}
    others = {one.name: set(one.scores(gate.metric).items) - judged_items for one in references}
    largest = max(others, key=lambda name: len(others[name]))
    if not others[largest]:
        return None
    return (
        f"{largest} asked {gate.against} {len(others[largest])} items that the candidate was not asked: evaluate it on "
        "all of them, or name the items in the gate's fingerprint"
    )


def _judge(gate: Gate, pair: EvaluationPair) -> Finding:
    new, *rest = (one.scores(gate.metric) for one in pair.sides)
    facts: dict[str, Any] = {"policy": pair.sides[0].policy, "evaluations": [one.name for one in pair.sides]}
    chance = chance_of(pair.sides[-1].record, gate.suite, gate.metric) if rest else None
    return judge_gate(gate, _declared(gate, pair.sides[0]), new, rest[0] if rest else None, chance, **facts)


def _badness(gate: Gate, pair: EvaluationPair, finding: Finding) -> tuple[bool, int, float]:
    """Return a key by which findings are sorted, the worst first."""
    metric = _declared(gate, pair.sides[0])
    bound = finding.low if metric.higher_is_better else finding.high
    turned = float("-inf") if bound is None else metric.turned(bound)
    is_fail = finding.verdict == "fail"
    return (finding.n < gate.min_items and not is_fail, RANK[finding.verdict], turned)


def _row(pair: EvaluationPair, finding: Finding | None, decides: bool) -> dict[str, Any]:
    return {
        "evaluations": [one.name for one in pair.sides],
        "decides": decides,
        "verdict": finding.verdict if finding else None,
        "reason": finding.reason if finding else pair.problem,
    }
