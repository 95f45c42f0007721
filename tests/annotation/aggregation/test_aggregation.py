"""Dawid-Skene against crowd-kit's numbers, Davidson against its closed forms, and pairs made by either."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.judging import comparison, judgment, said

from align.core.records import Comparison, Judgment
from annotation.aggregation.estimators import PRIOR, davidson, dawid_skene, outcome_probabilities
from annotation.aggregation.votes import FIRST, SECOND, TIE, Vote, votes_of
from annotation.pairs.run import PairsConfig, pairs
from annotation.simulate.run import Annotator, simulate_votes
from annotation.store.store import Store

EXACT = 1e-6
FILES = ("train.jsonl", "validation.jsonl", "test.jsonl", "manifest.json")


def cast_of(rows: list[tuple[str, str, int]]) -> list[Vote]:
    return [Vote(item, 0, 1, person, outcome, None, None, None) for item, person, outcome in rows]


def noisy_rows(seed: int, outcomes: list[int]) -> list[tuple[str, str, int]]:
    """40 items, five people of falling skill, four answers in ten missing."""
    generator, rows = random.Random(seed), []
    for item in range(40):
        truth = generator.choice(outcomes)
        for person in range(5):
            if generator.random() < 0.4:
                continue
            hits = generator.random() < 0.95 - 0.5 * person / 5
            rows.append((f"c{item:03d}", f"p{person}", truth if hits else generator.choice(outcomes)))
    return rows


# OneCoinDawidSkene(n_iter=100) of crowd-kit 1.4.2 on noisy_rows: skills of p0 to p4, the posterior of the last outcome
# summed over items, and the sum of all squared posteriors.
CROWD_KIT = {
    (1, "012"): ([0.974210231, 0.981682592, 0.761680443, 0.833781466, 0.657739625], 20.553185319, 36.824679595),
    (1, "01"): ([0.891513853, 1.0, 0.874006671, 0.863753098, 0.795992669], 16.030676641, 35.855828236),
    (2, "012"): ([0.645943676, 0.947784241, 0.664972459, 0.744953079, 0.661300461], 15.192824863, 33.141344483),
    (2, "01"): ([0.99638756, 0.792012656, 0.935182316, 0.610107559, 0.751599156], 19.638080585, 37.080983396),
}


@pytest.mark.parametrize(("seed", "outcomes"), CROWD_KIT)
def test_dawid_skene_equals_crowd_kit(seed: int, outcomes: str) -> None:
    skills, last, squares = CROWD_KIT[seed, outcomes]
    labels = [int(outcome) for outcome in outcomes]
    fit = dawid_skene(cast_of(noisy_rows(seed, labels)))
    assert [fit.reliability[f"p{n}"] for n in range(5)] == pytest.approx(skills, abs=EXACT)
    assert sum(row[labels[-1]] for row in fit.posterior.values()) == pytest.approx(last, abs=EXACT)
    assert sum(p * p for row in fit.posterior.values() for p in row) == pytest.approx(squares, abs=EXACT)


def test_dawid_skene_moves_no_bit_with_the_order_of_votes() -> None:
    rows = noisy_rows(3, [FIRST, SECOND, TIE])
    shuffled = random.Random(0).sample(rows, len(rows))
    assert dawid_skene(cast_of(rows)) == dawid_skene(cast_of(shuffled))


def test_dawid_skene_of_little() -> None:
    assert dawid_skene([]) == ({}, {})
    agreed = dawid_skene(cast_of([("c", "a", SECOND), ("c", "b", SECOND)]))
    assert agreed.posterior == {("c", 0, 1): (0.0, 1.0, 0.0)} and set(agreed.reliability.values()) == {1.0}
    three = dawid_skene(cast_of([("c", "a", FIRST), ("c", "b", FIRST), ("d", "a", SECOND), ("d", "b", SECOND)]))
    assert three.posterior["c", 0, 1][FIRST] == pytest.approx(1, abs=EXACT)


def test_simulated_annotators_come_out_in_their_true_order() -> None:
    items = [comparison(f"question {n}", f"answer {n}", f"reply {n}") for n in range(4000)]
    generator = random.Random(5)
    utilities = {item.id: (generator.gauss(0, 2), generator.gauss(0, 2)) for item in items}
    people = [
        Annotator(name="ada", reliability=0.90, position_bias=0.1),
        Annotator(name="ben", reliability=0.86, position_bias=0.2, length_bias=0.03),
        Annotator(name="cleo", reliability=0.82, position_bias=-0.1),
        Annotator(name="dan", reliability=0.80, position_bias=0.3, length_bias=0.05, careless=0.4),
    ]
    fit = dawid_skene(votes_of(simulate_votes(items, utilities, people, seed=0))).reliability
    assert sorted(fit, key=fit.__getitem__, reverse=True) == ["ada", "ben", "cleo", "dan"], fit


def test_dawid_skene_recovers_known_reliabilities() -> None:
    generator, truths = np.random.default_rng(0), np.random.default_rng(1).integers(0, 2, 3000)
    right = {"a": 0.95, "b": 0.8, "c": 0.65}
    rows = [
        (f"c{n:04d}", name, int(truth if generator.random() < p else 1 - truth))
        for n, truth in enumerate(truths)
        for name, p in right.items()
    ]
    assert dawid_skene(cast_of(rows)).reliability == pytest.approx(right, abs=0.04)


def test_one_vote_is_worth_three_quarters() -> None:
    """Without ties the gap d solves 1 / (1 + e^d) = d / (2 deviation^2); at deviation 1.5 that is 1.113."""
    fit = davidson(np.array([0]), np.array([1]), np.array([[1.0, 0.0, 0.0]]), 2)
    gap = fit.strength_N[0] - fit.strength_N[1]
    assert 1 / (1 + np.exp(gap)) == pytest.approx(gap / (2 * PRIOR**2), abs=1e-12)
    assert fit.tie == 0.0
    chance = outcome_probabilities(np.array([gap]), fit.tie)[0]
    assert chance == pytest.approx([0.752678, 0.247322, 0.0], abs=1e-5)


def test_davidson_has_its_closed_form_when_votes_are_many() -> None:
    """With one pair the model fits any three shares; many votes leave the prior nothing to say."""
    counts = np.array([[5e6, 2e6, 3e6]])
    fit = davidson(np.array([0]), np.array([1]), counts, 2)
    assert fit.strength_N[0] - fit.strength_N[1] == pytest.approx(np.log(5 / 2), abs=1e-5)
    assert fit.tie == pytest.approx(3 / np.sqrt(10), abs=1e-5)
    chance = outcome_probabilities(fit.strength_N[:1] - fit.strength_N[1:], fit.tie)[0]
    assert chance == pytest.approx([0.5, 0.2, 0.3], abs=1e-5)


def test_davidson_is_the_maximum_that_a_general_optimiser_finds() -> None:
    from scipy.optimize import minimize

    generator = np.random.default_rng(2)
    first, second = (np.array(side) for side in zip(*[(i, j) for i in range(6) for j in range(i)], strict=True))
    counts = generator.integers(0, 4, (len(first), 3)).astype(float)

    def loss(x: np.ndarray) -> float:
        p, q, nu = np.exp(x[first]), np.exp(x[second]), np.exp(x[-1])
        tied = nu * np.sqrt(p * q)
        total = p + q + tied
        likelihood = counts * np.log(np.stack([p / total, q / total, tied / total], 1))
        return float((x**2).sum() / (2 * PRIOR**2) - likelihood.sum())

    best = minimize(loss, np.zeros(7), method="BFGS", options={"gtol": 1e-9}).x
    fit = davidson(first, second, counts, 6)
    assert fit.strength_N == pytest.approx(best[:6], abs=1e-5)
    assert np.log(fit.tie) == pytest.approx(best[6], abs=1e-5)


def test_davidson_exists_in_parts_without_votes_and_after_losing_every_time() -> None:
    counts = np.array([[50.0, 0, 0], [0, 0, 0]])
    fit = davidson(np.array([0, 2]), np.array([1, 3]), counts, 5)
    assert np.isfinite(fit.strength_N).all() and fit.strength_N[2:].tolist() == [0, 0, 0]
    only_ties = davidson(np.array([0]), np.array([1]), np.array([[0.0, 0, 9]]), 2)
    assert np.isfinite(only_ties.tie) and only_ties.tie > 1 and only_ties.strength_N.tolist() == [0, 0]


def store(folder: Path, judged: list[Judgment], items: list[Comparison]) -> Path:
    with Store.open(folder / "feedback.db", write=True) as opened:
        opened.add_comparisons(items)
        opened.add_judgments(judged)
    return folder


def made(folder: Path, name: str, **more: object) -> tuple[list[dict], dict]:
    pairs(PairsConfig(run=folder / name, feedback=folder / "feedback.db", **{"validation": 0, "test": 0, **more}))
    rows = [json.loads(line) for line in (folder / name / "train.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / name / "manifest.json").read_text())


def mixed(n: int = 60) -> tuple[list[Judgment], list[Comparison]]:
    """Pairs and rankings with ties, strengths and flags, and one annotator who is always wrong."""
    generator = random.Random(11)
    items = [comparison(f"prompt {k}", *[f"answer {k} {r}" for r in range(2 + k % 3 // 2)]) for k in range(n)]
    judged = []
    for item in items:
        for name in ("ann", "bob", "cat"):
            order = list(range(len(item.responses)))
            if generator.random() < (0.9 if name == "cat" else 0.1):
                order.reverse()
            ranking = [order] if generator.random() < 0.15 else [[index] for index in order]
            flags = ["both_bad"] if generator.random() < 0.1 else []
            judged.append(judgment(item, name, ranking, strength=generator.randint(0, 3), flags=flags, source="s"))
    return judged, items


def test_default_pairs_keep_their_bytes(tmp_path: Path) -> None:
    """The hash is of files that were written when majority was the only method, and the manifest had no more to say.

    But for two things: an interval of the ceiling that was of width zero is none now, and has its ends apart.
    """

    def as_then(ceiling: dict[str, Any]) -> dict[str, Any]:
        interval = None if ceiling["low"] is None else [ceiling["low"], ceiling["high"]]
        counts = {key: ceiling[key] for key in ("n", "n_scored", "n_failed", "units")}
        return {"value": ceiling["value"], "interval": interval, **counts}

    store(tmp_path, *mixed())
    _, manifest = made(tmp_path, "pairs", validation=0.1, test=0.2)
    older = {key: value for key, value in manifest.items() if key not in ("guidelines", "excluded", "files")}
    splits = {split: as_then(older["ceiling"][split]) for split in ("train", "validation", "test")}
    older["ceiling"] = as_then(older["ceiling"]) | splits
    written = b"".join((tmp_path / "pairs" / name).read_bytes() for name in FILES[:3])
    digest = hashlib.sha256(written + (json.dumps(older, indent=1) + "\n").encode()).hexdigest()
    assert digest == "9f91d8d31b90303f792efc09eb0b573f6d34cf5be251cdfafc5a6e59b1140565"


@pytest.mark.parametrize("method", ["majority", "dawid-skene", "bradley-terry"])
@pytest.mark.parametrize("ties", ["drop", "half"])
def test_every_policy_gives_the_same_bytes_whatever_the_order(tmp_path: Path, method: str, ties: str) -> None:
    judged, items = mixed()
    files = []
    for name, order in (("one", 1), ("two", -1)):
        (tmp_path / name).mkdir()
        store(tmp_path / name, judged[::order], items[::order])
        rows, _ = made(tmp_path / name, "pairs", method=method, ties=ties, both_bad="drop")
        files.append([(tmp_path / name / "pairs" / file).read_bytes() for file in FILES])
        assert rows and all(0 < row["weight"] <= 1 for row in rows)
    assert files[0] == files[1]


def test_dawid_skene_hears_two_good_people_over_three_bad_ones(tmp_path: Path) -> None:
    generator = random.Random(4)
    items = [comparison(f"prompt {n}", "good", "bad") for n in range(200)]
    judged = []
    for item in items[1:]:
        judged += [said(item, "good", name) for name in ("ann", "bob", "cid")]
        judged += [said(item, generator.choice(["good", "bad"]), name) for name in ("x", "y", "z")]
    judged += [said(items[0], "good", "ann"), said(items[0], "good", "bob")]
    judged += [said(items[0], "bad", name) for name in ("x", "y", "z")]
    store(tmp_path, judged, items)
    contested = {}
    for method in ("majority", "dawid-skene"):
        rows, manifest = made(tmp_path, method, method=method)
        contested[method] = next(row for row in rows if row["comparison_id"] == items[0].id)
    assert contested["majority"]["chosen"][0]["content"] == "bad" and contested["majority"]["weight"] == 1.0
    assert contested["dawid-skene"]["chosen"][0]["content"] == "good" and contested["dawid-skene"]["weight"] > 0.99
    assert manifest["reliability"]["ann"] > 0.99 > 0.6 > manifest["reliability"]["x"]


def test_bradley_terry_decides_by_the_whole_graph(tmp_path: Path) -> None:
    """a beats b and b beats c many times; one slip for c over a does not turn the pair."""
    a_b, b_c, a_c = comparison("q", "a", "b"), comparison("q", "b", "c"), comparison("q", "a", "c")
    judged = [said(a_b, "a", f"p{n}") for n in range(8)] + [said(b_c, "b", f"p{n}") for n in range(8)]
    store(tmp_path, [*judged, said(a_c, "c", "p0")], [a_b, b_c, a_c])
    rows, manifest = made(tmp_path, "bt", method="bradley-terry")
    chosen = {row["comparison_id"]: row["chosen"][0]["content"] for row in rows}
    assert chosen == {a_b.id: "a", b_c.id: "b", a_c.id: "a"}
    assert manifest["tie_parameter"] == 0.0 and manifest["prior_deviation"] == PRIOR
    majority = {row["comparison_id"]: row["chosen"][0]["content"] for row in made(tmp_path, "majority")[0]}
    assert majority[a_c.id] == "c"


def test_a_tie_is_an_answer_or_half_a_vote_for_either_side(tmp_path: Path) -> None:
    mostly_tied, even = comparison("p", "good", "bad"), comparison("q", "good", "bad")
    judged = [judgment(item, name, [[0, 1]]) for item in (mostly_tied, even) for name in ("b", "c")]
    store(tmp_path, [*judged, said(mostly_tied, "good", "a"), judgment(even, "a", [[0, 1]])], [mostly_tied, even])
    (row,), manifest = made(tmp_path, "half", ties="half")
    assert (row["comparison_id"], row["votes"], row["weight"]) == (mostly_tied.id, [1, 0, 2], 1.0)
    assert manifest["dropped"]["tie"] == 1 and manifest["policy"]["ties"] == "half"


def test_both_bad_leaves_out_what_half_the_people_reject(tmp_path: Path) -> None:
    bad, fine = comparison("p", "good", "bad"), comparison("q", "good", "bad")
    judged = [said(item, "good", name) for item in (bad, fine) for name in ("a", "b")]
    judged += [judgment(bad, name, [[0, 1]], flags=["both_bad"]) for name in ("c", "d")]
    judged += [judgment(fine, "c", [[0, 1]], flags=["both_bad"])]
    store(tmp_path, judged, [bad, fine])
    kept, manifest = made(tmp_path, "keep", ties="half")
    assert len(kept) == 2 and "both bad" not in manifest["dropped"] and "both_bad" not in manifest["policy"]
    (row,), manifest = made(tmp_path, "drop", ties="half", both_bad="drop")
    assert row["comparison_id"] == fine.id
    assert manifest["dropped"]["both bad"] == 1 and manifest["policy"]["both_bad"] == "drop"
