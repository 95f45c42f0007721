"""Stage `audit`: what got better and what broke, as a verdict.

In: base, candidate, and where given SFT and a rival (policy runs or model folders), gates.yaml, and every finished
evaluation run of their artefacts in the runs folders around. Out: ``audit.json`` with findings, every evaluation
that was considered by name, the worst flips with both texts, and what was not measured. Evaluations are inputs: a newer
one makes another audit. Not here: running an evaluation, and which evaluations may be compared (pairing).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.audit.evaluations import EvaluatedPolicy, evaluated_policy, kind_of, load_results
from align.audit.flips import worst_flips
from align.audit.gates import Finding, Gate, load_gates, overall, regressed
from align.audit.lineage import check_references
from align.audit.pairing import judge_by_worst, same_question
from align.core.config import StageConfig
from align.core.declarations import Declaration
from align.core.files import write_json
from align.core.runs import Run
from align.core.stage import stage
from align.core.stats.differences import paired_difference
from align.evals.declared import EARLIER
from align.evals.training_reward import trained_on, training_metrics

LIMITS = (
    "Training-seed variance: one training run per side. Every interval speaks about new items, not about new seeds.",
    "People's own opinion of these answers: every label was given by a rule, a reward model or known utility.",
)


class AuditConfig(StageConfig):
    """Who is audited against whom, and by which gates; ``evaluations`` are found, not given."""

    INPUTS: ClassVar[tuple[str, ...]] = ("base", "candidate", "sft", "rival", "gates", "evaluations")

    stage: Literal["audit"] = "audit"
    base: Path = Field(description="the model before any tuning")
    candidate: Path = Field(description="the policy that is judged")
    sft: Path | None = Field(default=None, description="the SFT run that preference training started from")
    rival: Path | None = Field(default=None, description="a policy to show differences against")
    gates: Path = Field(description="the file of gates")

    @cached_property
    def policies(self) -> dict[str, EvaluatedPolicy]:
        """The policies by role, with their evaluation runs."""
        given = {"base": self.base, "candidate": self.candidate, "sft": self.sft, "rival": self.rival}
        known = {role: path for role, path in given.items() if path is not None}
        folders = [self.run.parent, *(path.parent for path in known.values())]
        return {role: evaluated_policy(role, path, folders) for role, path in known.items()}

    @property
    def evaluations(self) -> list[Path]:
        """Folders of the evaluation runs that count, so that they are hashed into the record as inputs."""
        return sorted({Path(one.record.path) for policy in self.policies.values() for one in policy.evaluations})


@stage
def audit(config: AuditConfig, run: Run) -> dict[str, Any]:
    """Judge every gate, and write audit.json with the verdict in one sentence."""
    policies = config.policies
    gates = load_gates(config.gates, _declarations(policies))
    check_references(policies)
    judged = [judge_by_worst(gate, policies, gates) for gate in gates]
    findings = [one.finding for one in judged]
    verdict, worse = overall(findings), regressed(findings)
    sentence = _sentence(findings, worse)
    write_json(
        run.path / "audit.json",
        {
            "verdict": verdict,
            "banner": banner(findings),
            "sentence": sentence,
            "findings": [finding.model_dump() for finding in findings],
            "regressed": worse,
            "subjects": {role: _about(policy) for role, policy in policies.items()},
            "rival": _against_rival(gates, policies),
            "considered": [{"gate": one.gate.name} | row for one in judged for row in one.considered],
            "flips": worst_flips(judged),
            "judges": _judges(policies["candidate"]),
            "not_measured": _not_measured(findings, gates, policies),
        },
    )
    counts = {kind: sum(f.verdict == kind for f in findings) for kind in ("pass", "fail", "insufficient")}
    return {"verdict": verdict, "sentence": sentence, "gates": counts, "regressed": worse}


def _declarations(policies: dict[str, EvaluatedPolicy]) -> dict[str, Declaration]:
    """Return the declarations of suites, as the newest evaluation has them, the candidate's before others."""
    known = dict(EARLIER)
    for policy in (*(one for role, one in policies.items() if role != "candidate"), policies["candidate"]):
        known |= {one.suite: one.declaration for one in policy.evaluations}
    return known


def _sentence(findings: Sequence[Finding], worse: Sequence[str]) -> str:
    """Write the verdict in one sentence: what is broken, what probably is, and what is not known."""
    by = {kind: [f for f in findings if f.verdict == kind] for kind in ("pass", "fail", "insufficient")}
    also = f"; significantly worse after Holm's correction: {', '.join(worse)}" if worse else ""
    total, failed = len(findings), by["fail"]
    probable = [f for f in by["insufficient"] if f.status.startswith("probably")]
    unknown = [f for f in by["insufficient"] if f not in probable]
    parts = []
    if failed:
        named = "; ".join(f"{f.gate} ({f.metric}: {f.reason})" for f in failed)
        parts.append(f"{len(failed)} of {total} gates {_are(failed)} broken: {named}")
    if probable:
        parts.append(f"{len(probable)} of {total} {_are(probable)} probably broken: {_named(probable)}")
    if unknown:
        parts.append(f"{len(unknown)} of {total} cannot be decided: {_named(unknown)}")
    if not parts:
        return f"PASS: all {total} gates hold, each by its bound{also}."
    if not failed and not probable:
        parts.insert(0, "no gate is broken or probably broken")
    return f"{banner(findings)}: {'; '.join(parts)}{also}."


def banner(findings: Sequence[Finding]) -> str:
    """Write the verdict in capitals, for the top of a page; undecided is not the same as probably worse."""
    if overall(findings) == "insufficient" and any(f.status.startswith("probably") for f in findings):
        return "INSUFFICIENT, PROBABLY WORSE"
    return overall(findings).upper()


def _named(findings: Sequence[Finding]) -> str:
    return "; ".join(f"{f.gate} ({f.status}: {f.reason})" for f in findings)


def _are(findings: Sequence[Finding]) -> str:
    return "is" if len(findings) == 1 else "are"


def _about(policy: EvaluatedPolicy) -> dict[str, Any]:
    evaluations = [
        {"run": one.name, "suite": one.suite, "policy": one.policy, "seed": one.record.seed}
        for one in policy.evaluations
    ]
    return {"path": str(policy.path), "artefact": policy.artefact, "evaluations": evaluations}


def _against_rival(gates: Sequence[Gate], policies: dict[str, EvaluatedPolicy]) -> list[dict[str, Any]]:
    """Compute candidate - rival on every gated metric, for information: no gate needs it."""
    if "rival" not in policies:
        return []
    rows = []
    rewards = trained_on(policies["candidate"].record, policies["rival"].record)
    for suite, metric in dict.fromkeys((gate.suite, gate.metric) for gate in gates):
        for pair in same_question(policies["candidate"], policies["rival"], suite):
            if metric in training_metrics(pair[0].record, rewards):
                continue  # what one of the two was trained on compares nothing
            new, old = (one.scores(metric) for one in pair)
            kind = kind_of(pair[0].declaration.metric(metric), new, old)
            difference = paired_difference(new.by_item, old.by_item, kind, clusters=new.clusters)
            facts = {"suite": suite, "metric": metric, "evaluations": [one.name for one in pair]}
            rows.append(facts | difference.model_dump())
    return rows


def _judges(candidate: EvaluatedPolicy) -> dict[str, list[str]]:
    """Return the judges that scored each metric of the candidate."""
    by_metric: dict[str, set[str]] = {}
    for one in candidate.evaluations:
        for result in load_results(one.record):
            by_metric.setdefault(result.metric, set()).add(result.judge)
    return {metric: sorted(names) for metric, names in sorted(by_metric.items())}


def _not_measured(
    findings: Sequence[Finding], gates: Sequence[Gate], policies: dict[str, EvaluatedPolicy]
) -> list[str]:
    missing = [f"{f.gate}: {f.reason}." for f in findings if f.delta is None]
    if "sft" not in policies:
        missing.append(
            "No SFT policy was named, so the price of preference training alone is not separated from SFT's."
        )
    if "rival" not in policies:
        missing.append("No rival method was named.")
    elif not _against_rival(gates, policies):
        missing.append("The rival has no evaluation in common with the candidate, by what neither learned from.")
    missing += [f"{one.name}: {line}." for one in policies["candidate"].evaluations for line in one.caveats]
    return [*dict.fromkeys(missing), *LIMITS]
