"""Check that an audit's references, and a comparison's arms, come from the same base, SFT run and data.

In: run records. Out: refusals, by name. Lineage is content hashes, so a copy of a base is that base, and a base that
was changed is another. Not here: how evaluations were asked (pairing).
"""

from __future__ import annotations

from collections.abc import Mapping

from align.audit.evaluations import EvaluatedPolicy, Evaluation
from align.core.config import BadInput
from align.core.inputs import input_hash
from align.core.run_record import RunRecord

WRITES = ("sft", "dpo", "ppo")  # stages that leave a policy
UNKNOWN = "lineage"  # what a gate allows when it takes the user's word for where a candidate comes from


def origin(record: RunRecord, key: str) -> str | None:
    """Return the hash of what a policy came from; its ``sft`` is the run or folder its training started from."""
    start = record.inputs.get("policy", {}).get("sha256")
    return start if key == "sft" and start else record.lineage.get(key)


def started_from(record: RunRecord) -> set[str]:
    """Return the artefacts of the policies that a run's training started from, back to the SFT run."""
    known = [record.inputs.get(name, {}).get("sha256") for name in ("policy", "model")]
    return {value for value in (*known, record.lineage.get("sft")) if value and value != record.artefact}


def check_references(policies: Mapping[str, EvaluatedPolicy]) -> None:
    """Refuse what is no policy, references that the candidate does not come from, and a rival of another family.

    A candidate that is a model folder records no lineage: its gates say so (:func:`unknown_origin`).

    Raises:
        BadInput: naming the role and both hashes.
    """
    candidate = policies["candidate"]
    for role, policy in policies.items():
        if policy.record and policy.record.stage not in WRITES:
            raise BadInput(
                f"audit: {role}: {policy.path} is a run of '{policy.record.stage}' and no policy; name a run of "
                f"{', '.join(WRITES)} or a model folder"
            )
        if role != "candidate" and policy.artefact == candidate.artefact:
            raise BadInput(f"audit: {role} and candidate are one artefact ({_short(candidate.artefact)}); name another")
    if "rival" in policies:
        _check_rival(candidate, policies["rival"])
    if candidate.record is None:
        return
    base, now = candidate.record.lineage.get("base"), input_hash(policies["base"].path, candidate.record.hash_version)
    if base is not None and base != now:
        raise BadInput(
            f"audit: {policies['base'].path} ({_short(now)}) is not the base of {candidate.path} "
            f"({_short(base)}): another model, or changed since; name the base that the candidate was trained on"
        )
    starts = started_from(candidate.record)
    if "sft" in policies and starts and policies["sft"].artefact not in starts:
        raise BadInput(
            f"audit: {policies['sft'].path} ({_short(policies['sft'].artefact)}) is not what {candidate.path} started "
            f"from ({', '.join(map(_short, sorted(starts)))}); name that policy"
        )


def unknown_origin(candidate: EvaluatedPolicy, against: str) -> str | None:
    """Return the reason why it is not known that a candidate comes from its reference, or None."""
    if candidate.record is None:
        return f"the candidate is a model folder and does not record whether it comes from this {against}"
    known = started_from(candidate.record) if against == "sft" else candidate.record.lineage.get("base")
    return None if known else f"the candidate's run records no {against} that it came from"


def other_base(policy: EvaluatedPolicy, evaluation: Evaluation) -> str | None:
    """Return the reason why an evaluation is on another base than the policy was trained on, or None."""
    trained = policy.record.lineage.get("base") if policy.record else None
    ran = evaluation.record.lineage.get("base")
    if trained is None or trained == ran:
        return None
    return (
        f"{evaluation.name} ran {policy.name} on another base ({_short(ran)}) than it was trained on "
        f"({_short(trained)}); evaluate again"
    )


def _check_rival(candidate: EvaluatedPolicy, rival: EvaluatedPolicy) -> None:
    for key in ("base", "sft"):
        hashes = [origin(one.record, key) if one.record else None for one in (candidate, rival)]
        if None in hashes:
            named = " and ".join(str(one.path) for one, h in zip((candidate, rival), hashes, strict=True) if h is None)
            raise BadInput(
                f"audit: {named} records no {key}, so a rival cannot be set beside the candidate; leave it out"
            )
        if hashes[0] != hashes[1]:
            raise BadInput(
                f"audit: candidate and rival differ in '{key}' ({', '.join(map(_short, hashes))}); "
                f"name a rival from the same {key}"
            )


def _short(value: str | None) -> str:
    return (value or "none")[:12]
