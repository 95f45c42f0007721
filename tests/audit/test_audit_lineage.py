"""References that the candidate does not come from are refused, and what is not known is never a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.audit_world import World, content, edit_run, measured, verdicts, write_evaluation, write_run

from align.audit.compare import CompareConfig, compare
from align.audit.run import AuditConfig, audit
from align.core.config import BadInput
from align.core.files import write_json, write_text
from align.core.hashes import artefact_hash
from align.core.inputs import input_hash
from align.core.run_record import read_run

GOOD = measured(112, 10, 1.5)


def test_a_foreign_base_is_refused(world: World, tmp_path: Path) -> None:
    """A weak base makes any candidate look good; a copy of the right one is the right one."""
    config = world(GOOD)
    for name, told in (("base", None), ("weak", "weak .* is not the base of .*dpo")):
        folder = tmp_path / "elsewhere" / name
        write_json(folder / "config.json", {"name": name})
        own = AuditConfig(**config.model_dump() | {"base": folder, "run": config.run.parent / f"audit-{name}"})
        if told is None:
            assert set(verdicts(own).values()) == {"pass"}
        else:
            with pytest.raises(BadInput, match=told):
                audit(own)


def test_a_base_that_changed_since_is_refused(world: World) -> None:
    config = world(GOOD)
    write_json(config.base / "config.json", {"name": "base", "changed": True})
    with pytest.raises(BadInput, match="is not the base of .*another model, or changed since"):
        audit(config)


def test_a_base_is_compared_by_the_rule_that_the_candidate_was_recorded_by(world: World) -> None:
    """An older run knows its base by an older hash: that of a folder in it."""
    config = world(GOOD)
    write_json(config.base / "adapter" / "left.json", {"over": True})
    older = artefact_hash(config.base, 1)
    assert older != artefact_hash(config.base)
    for run in ("dpo", "ppo", "sft"):
        record = read_run(config.run.parent / run)
        edit_run(config.run.parent / run, hash_version=1, lineage=record.lineage | {"base": older})
    audit(config)  # not refused; what was evaluated on another rule's hash is no evidence
    assert content(config)["verdict"] == "insufficient"


def test_an_evaluation_that_ran_on_another_base_is_no_evidence(world: World) -> None:
    config = world(None)
    runs = config.run.parent
    write_evaluation(runs, "eval-dpo", config.candidate, GOOD, lineage={"base": "f" * 64})
    assert set(verdicts(config).values()) == {"insufficient"}
    assert "eval-dpo ran candidate on another base (ffffffffffff) than it was trained on" in content(config)["sentence"]
    write_evaluation(runs, "eval-ppo", runs / "ppo", GOOD)
    with pytest.raises(BadInput, match="compare: eval-dpo ran dpo on another base"):
        compare(CompareConfig(run=runs / "compare", arms=[runs / "dpo", runs / "ppo"]))


def test_an_sft_that_the_candidate_did_not_start_from_is_refused(world: World) -> None:
    config = world(GOOD)
    runs = config.run.parent
    worse = write_run(
        runs, "worse-sft", "sft", parents={"model": config.base}, lineage={"base": input_hash(config.base)}
    )
    write_evaluation(runs, "eval-worse", worse, measured(20, 119, -2.0))
    with pytest.raises(BadInput, match="worse-sft .* is not what .*dpo started from"):
        audit(AuditConfig(**config.model_dump() | {"sft": worse}))


@pytest.mark.parametrize("role", ["base", "sft", "rival"])
def test_a_candidate_is_not_compared_with_itself(world: World, role: str) -> None:
    config = world(GOOD)
    with pytest.raises(BadInput, match=f"{role} and candidate are one artefact"):
        audit(AuditConfig(**config.model_dump() | {role: config.candidate}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lineage": {"base": "f" * 64}}, "candidate and rival differ in 'base'"),
        ({"inputs": {"policy": {"path": "x", "sha256": "f" * 64}}}, "candidate and rival differ in 'sft'"),
        ({"lineage": {}}, "ppo records no base, so a rival"),
    ],
)
def test_a_rival_of_another_family_is_refused(world: World, changes: dict[str, Any], told: str) -> None:
    config = world(GOOD)
    rival = config.run.parent / "ppo"
    edit_run(rival, **changes)
    with pytest.raises(BadInput, match=told):
        audit(AuditConfig(**config.model_dump() | {"rival": rival}))


def test_a_model_folder_does_not_say_where_it_comes_from(world: World, tmp_path: Path) -> None:
    """Merged weights: judged against base and SFT only where the gates take the user's word."""
    config = world(None)
    merged = tmp_path / "merged"
    write_json(merged / "config.json", {"name": "merged"})
    write_evaluation(config.run.parent, "eval-merged", merged, GOOD)
    config = AuditConfig(**config.model_dump() | {"candidate": merged})
    assert set(verdicts(config).values()) == {"insufficient"}
    assert "does not record whether it comes from this sft; 'allow: [lineage]'" in content(config)["sentence"]
    write_text(config.gates, config.gates.read_text().replace("}", ", allow: [lineage]}"))
    config = AuditConfig(**config.model_dump() | {"run": config.run.parent / "audit-2"})
    assert set(verdicts(config).values()) == {"pass"}


def test_the_distance_from_another_policy_than_the_sft_is_no_evidence(world: World) -> None:
    """A candidate is at no distance from itself."""
    config = world(None)
    runs = config.run.parent
    rows = [{"suite": "preference", "metric": "kl", "item_id": str(i), "score": 0.01 * (i % 3)} for i in range(120)]
    write_text(
        config.gates, "gates: [{name: near, suite: preference, metric: kl, type: at_most, limit: 1, range: [0, 10]}]"
    )
    found = {}
    for name, sft in (("itself", config.candidate), ("sft", runs / "sft")):
        write_evaluation(runs, "eval-dpo", config.candidate, rows, asked={"sft": input_hash(sft)})
        own = AuditConfig(**config.model_dump() | {"run": runs / f"audit-{name}"})
        found[name] = verdicts(own)["near"]
    assert found == {"itself": "insufficient", "sft": "pass"}
    sentence = read_run(runs / "audit-itself").headline["sentence"]
    assert "measured kl against another policy than the SFT that this audit is about" in sentence


@pytest.mark.parametrize(("role", "stage"), [("candidate", "reward"), ("candidate", "pairs"), ("sft", "eval")])
def test_what_is_audited_is_a_policy(world: World, role: str, stage: str) -> None:
    config = world(GOOD)
    lineage = {"base": input_hash(config.base)}
    other = write_run(config.run.parent, "other", stage, parents={"policy": config.run.parent / "sft"}, lineage=lineage)
    write_evaluation(config.run.parent, "eval-other", other, GOOD)
    with pytest.raises(
        BadInput, match=f"{role}: .*other is a run of '{stage}' and no policy; name a run of sft, dpo, ppo or"
    ):
        audit(AuditConfig(**config.model_dump() | {role: other}))
