"""Simulated people: their faults are recovered, and a vote depends on nothing but itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.judging import comparison

from align.core.config import BadInput, build
from align.core.files import read_jsonl
from align.core.records import Judgment, Pair
from annotation.aggregation.votes import votes_of
from annotation.agreement.measures import measure
from annotation.agreement.run import AgreementConfig, agreement
from annotation.pairs.run import PairsConfig, pairs
from annotation.simulate.run import Annotator, SimulateConfig, simulate, simulate_votes
from annotation.store.store import Store

MANY = [comparison(f"question {n}", f"short {n}", f"long {n} " + "word " * 9 + str(n)) for n in range(3000)]
BETTER = {c.id: (1.0, 0.0) if i % 2 else (0.0, 1.0) for i, c in enumerate(MANY)}
EQUAL = {c.id: (0.0, 0.0) for c in MANY}


def test_a_vote_does_not_depend_on_the_others() -> None:
    people = [Annotator(name=name) for name in "abcd"]
    forward = simulate_votes(MANY[:50], BETTER, people, seed=1)
    backward = simulate_votes(MANY[49::-1], BETTER, people[::-1], seed=1)
    assert sorted(map(repr, forward)) == sorted(map(repr, backward))
    assert forward != simulate_votes(MANY[:50], BETTER, people, seed=2)
    assert len({(j.comparison_id, j.annotator) for j in forward}) == 150


def rate(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def test_faults_are_recovered_from_many_votes() -> None:
    """With a utility gap of 1 and no ties, reliability is the share of right votes; a bias is a logit of a share."""

    def cast(utilities: dict[str, tuple[float, float]], **fault: float) -> list[Judgment]:
        person = Annotator(name="a", **fault)
        return simulate_votes(MANY, utilities, [person], seed=3, votes_per_comparison=1, tie_threshold=0)

    right = [BETTER[j.comparison_id][j.ranking[0][0]] == 1.0 for j in cast(BETTER, reliability=0.8)]
    assert rate(right) == pytest.approx(0.8, abs=0.03)
    left = [j.ranking[0][0] == j.shown[0] for j in cast(EQUAL, position_bias=0.6)]
    assert rate(left) == pytest.approx(1 / (1 + np.exp(-0.6)), abs=0.03)
    lengths = {c.id: [len(r.text.split()) for r in c.responses] for c in MANY}
    longer = [
        max(lengths[j.comparison_id]) == lengths[j.comparison_id][j.ranking[0][0]] for j in cast(EQUAL, length_bias=0.1)
    ]
    gap = 10
    assert rate(longer) == pytest.approx(1 / (1 + np.exp(-0.1 * gap)), abs=0.03)
    assert rate([j.ranking[0][0] == j.shown[0] for j in cast(BETTER, reliability=0.9)]) == pytest.approx(0.5, abs=0.03)


def test_careless_annotator_is_fast_and_ranks_last() -> None:
    people = [Annotator(name=name, reliability=0.9) for name in "abc"] + [Annotator(name="z", careless=0.9)]
    cast = votes_of(simulate_votes(MANY[:800], BETTER, people, seed=5))
    report = measure(cast, {})["annotators"]
    by_agreement = sorted(report, key=lambda name: report[name]["agreement_with_others"]["value"])
    assert by_agreement[0] == "z"
    assert report["z"]["median_seconds"] < min(report[name]["median_seconds"] for name in "abc")


def longest_is_best(prompts: list, completions: list, ended: list, **columns: list) -> list[float | None]:
    values = [float(len(completion[-1]["content"].split())) for completion in completions]
    return [value - 5 * (not end) for value, end in zip(values, ended, strict=True)]


def candidates(path: Path, n: int = 30) -> Path:
    rows = []
    for number in range(n):
        texts = ["good answer with many words", "good answer", "bad", "bad"]
        responses = [
            {"messages": [{"role": "assistant", "content": f"{t}"}], "origin": "sft", "ended": True} for t in texts
        ]
        responses.append({"messages": [{"role": "assistant", "content": "and so on and"}], "ended": False})
        split = "test" if number % 5 == 0 else ""
        prompt = [{"role": "user", "content": f"What about number {number}?"}]
        rows.append(
            {"prompt_id": str(number), "prompt": prompt, "responses": responses, "family": "help", "split": split}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def simulated(folder: Path, **more: object) -> SimulateConfig:
    people = [{"name": name, "reliability": 0.95} for name in "abc"]
    data = {"stage": "simulate", "run": folder / "votes", "candidates": folder / "candidates.jsonl"}
    return build(SimulateConfig, {**data, "feedback": folder / "feedback.db", "annotators": people, **more}, "test")


def test_simulate_to_agreement_to_pairs(tmp_path: Path) -> None:
    candidates(tmp_path / "candidates.jsonl")
    record = simulate(simulated(tmp_path), utility=longest_is_best)
    assert record.dropped == {"identical response": 30, "response did not end": 30}
    assert record.headline["comparisons"] == 90 and record.headline["judgments"] == 270
    assert all(entry["value"] > 0.9 for entry in record.headline["agreement_with_gold"].values())
    feedback = tmp_path / "feedback.db"
    measured = agreement(AgreementConfig(run=tmp_path / "agreement", feedback=feedback))
    assert measured.headline["n_votes"] == 270 and measured.headline["alpha"]["value"] > 0.5
    made = pairs(PairsConfig(run=tmp_path / "pairs", feedback=feedback, test=0.0, validation=0.1))
    rows = {split: read_jsonl(tmp_path / "pairs" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    prompts = {split: {row["prompt_id"] for row in part} for split, part in rows.items()}
    assert len(prompts["test"]) == 6  # the hints of the candidates
    assert not prompts["train"] & prompts["test"] and not prompts["train"] & prompts["validation"]
    assert all(Pair.model_validate(row) for part in rows.values() for row in part)
    with Store.open(feedback) as store:
        assert made.inputs["feedback"]["sha256"] == measured.inputs["feedback"]["sha256"] == store.head()
    assert made.headline["annotator_ceiling"]["value"] > 0.9


def test_simulate_again_adds_nothing_and_a_killed_one_can_be_repeated(tmp_path: Path) -> None:
    candidates(tmp_path / "candidates.jsonl", 4)
    first = simulate(simulated(tmp_path), utility=longest_is_best)
    again = simulate(simulated(tmp_path, run=tmp_path / "again"), utility=longest_is_best)
    assert first.headline["new_judgments"] == first.headline["judgments"] > again.headline["new_judgments"] == 0
    assert first.artefact == again.artefact
    unended = simulate(simulated(tmp_path, run=tmp_path / "all", keep_unended=True), utility=longest_is_best)
    assert unended.headline["comparisons"] == 4 * 6
    some = simulate(simulated(tmp_path, run=tmp_path / "some", pairs_per_prompt=1), utility=longest_is_best)
    assert some.headline["comparisons"] == 4


def test_simulate_config_and_candidates_are_checked(tmp_path: Path) -> None:
    candidates(tmp_path / "candidates.jsonl", 2)
    with pytest.raises(BadInput, match="exceeds the 3 annotators"):
        simulated(tmp_path, votes_per_comparison=4)
    with pytest.raises(BadInput, match="gold"):
        simulate(simulated(tmp_path))
    with pytest.raises(BadInput, match="one each"):
        simulate(simulated(tmp_path), utility=lambda prompts, completions, **columns: [1.0])
    with pytest.raises(BadInput, match="no prompt has two"):
        simulate(simulated(tmp_path), utility=lambda prompts, completions, **columns: [None] * len(prompts))
    (tmp_path / "candidates.jsonl").write_text('{"prompt": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(BadInput, match="row 1"):
        simulate(simulated(tmp_path, run=tmp_path / "other"), utility=longest_is_best)
