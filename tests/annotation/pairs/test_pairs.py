"""Votes to pairs: by hand, byte for byte, and without leaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.judging import ITEMS, comparison, edit, judgment, said

from align.core.config import BadInput, build
from align.core.hashes import file_hash
from align.core.messages import normalised
from align.core.records import Comparison, Judgment
from annotation.aggregation.votes import FIRST, SECOND, TIE, majority, tallies, votes_of
from annotation.agreement.run import AgreementConfig, agreement
from annotation.pairs.run import PairsConfig, pairs
from annotation.pairs.splits import place
from annotation.store.store import Store


def stored(path: Path, judgments: list[Judgment], items: list[Comparison], splits: dict | None = None) -> Path:
    with Store.open(path, write=True) as store:
        store.add_comparisons(items, splits)
        store.add_judgments(judgments)
    return path


def make_pairs(folder: Path, name: str, **more: object) -> dict[str, list[dict]]:
    pairs(PairsConfig(run=folder / name, feedback=folder / "feedback.db", **more))
    read = {s: (folder / name / f"{s}.jsonl").read_text().splitlines() for s in ("train", "validation", "test")}
    return {split: [json.loads(line) for line in lines] for split, lines in read.items()}


@pytest.mark.parametrize(("better", "worse"), [("good", "bad"), ("bad", "good")])
def test_majority_margin_and_drops_by_hand(tmp_path: Path, better: str, worse: str) -> None:
    """Both ways round: whichever of the two stands first in the comparison's own order."""
    a, b, c, d = (comparison(f"prompt {n}", better, worse) for n in "abcd")
    judged = [
        *(said(a, better, f"p{i}", strength=s) for i, s in enumerate((3, 1))), said(a, worse, "p2", strength=1),
        said(b, better, "p0"), said(b, worse, "p1"),
        judgment(c, "p0", [[0, 1]]), judgment(c, "p1", [[0, 1]]), said(c, better, "p2"),
        said(d, better, "p0"),
    ]  # fmt: skip
    stored(tmp_path / "feedback.db", judged, [a, b, c, d])
    written = make_pairs(tmp_path, "pairs", validation=0, test=0, min_votes=2)
    (row,) = written["train"]
    assert row["chosen"][0]["content"] == better and row["rejected"][0]["content"] == worse
    assert (row["margin"], row["votes"], row["weight"]) == (1.0, [2, 1, 0], 1.0)
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert manifest["dropped"] == {
        "chosen equals rejected": 0, "duplicate": 0, "leakage": 0, "tie": 2, "too few votes": 1
    }  # fmt: skip
    assert manifest["judgments"] == 9 and manifest["pairs"]["train"] == 1


@pytest.mark.parametrize(("counts", "expected"), [((2, 1, 0), 0), ((1, 2, 2), None), ((1, 0, 1), None), ((0, 1, 2), 2)])
def test_majority(counts: tuple[int, int, int], expected: int | None) -> None:
    assert majority(counts) == expected


def test_a_ranking_votes_on_all_its_pairs(tmp_path: Path) -> None:
    item = comparison("rank", "one", "two", "three", "four")
    cast = votes_of([judgment(item, "p", [[2], [0, 3], [1]])])
    outcomes = {(vote.first, vote.second): vote.outcome for vote in cast}
    assert outcomes == {(0, 1): FIRST, (0, 2): SECOND, (0, 3): TIE, (1, 2): SECOND, (1, 3): SECOND, (2, 3): FIRST}
    assert [t.counts for t in tallies(cast)][2] == (0, 0, 1)
    stored(tmp_path / "feedback.db", [judgment(item, "p", [[2], [0, 3], [1]], strength=2)], [item])
    rows = make_pairs(tmp_path, "pairs", validation=0, test=0)["train"]
    assert len(rows) == 5 and {row["margin"] for row in rows} == {0.0}
    best = item.responses[2].text
    assert sum(row["chosen"][0]["content"] == best for row in rows) == 3


def test_same_judgments_give_the_same_bytes_from_any_store(tmp_path: Path) -> None:
    items = [comparison(f"prompt {n}", f"good {n}", f"bad {n}") for n in range(60)]
    judged = [said(item, item.responses[0].text, f"p{i}") for item in items for i in range(3)]
    files = []
    for name, order in (("one", 1), ("two", -1)):
        stored(tmp_path / name / "feedback.db", judged[::order], items[::order])
        made = pairs(PairsConfig(run=tmp_path / name / "pairs", feedback=tmp_path / name / "feedback.db"))
        names = ("train.jsonl", "validation.jsonl", "test.jsonl", "manifest.json")
        hashes = json.loads((tmp_path / name / "pairs" / "manifest.json").read_text())["files"]
        assert hashes == {file: file_hash(tmp_path / name / "pairs" / file) for file in names[:3]}
        files.append(([(tmp_path / name / "pairs" / file).read_bytes() for file in names], made.artefact))
    assert files[0] == files[1]
    assert all(files[0][0])
    other = make_pairs(tmp_path / "one", "reseeded", seed=1)
    assert [row["prompt_id"] for row in other["test"]] != [
        json.loads(x)["prompt_id"] for x in files[0][0][2].splitlines()
    ]


def test_near_duplicate_prompts_share_a_split() -> None:
    words = ["How are you?", "how ARE you", " how  are you ?!", "How are they?"]
    assert len({normalised(comparison(w, "a", "b").prompt) for w in words[:3]}) == 1
    assert normalised(comparison("???", "a", "b").prompt) != normalised(comparison("!!!", "a", "b").prompt)
    items = [comparison(w.replace("you", f"you {n}"), "a", "b") for n in range(40) for w in words[:3]]
    placement = place(items, {}, validation=0.2, test=0.3, seed=0)
    for start in range(0, 120, 3):
        assert len({placement.split[item.id] for item in items[start : start + 3]}) == 1
    assert set(placement.split.values()) == {"train", "validation", "test"} and placement.near_duplicates == 80


def test_held_out_prompt_never_trains(tmp_path: Path) -> None:
    held_out, leaking, plain = (comparison(p, "good", "bad") for p in ("Same prompt", "same prompt!", "Other"))
    follower = comparison("same  prompt?", "good", "bad")
    items = [held_out, leaking, plain, follower]
    hints = {held_out.id: "test", leaking.id: "train", plain.id: "train"}
    stored(tmp_path / "feedback.db", [said(i, "good", "p") for i in items], items, hints)
    rows = make_pairs(tmp_path, "pairs", validation=0, test=0)
    assert [row["comparison_id"] for row in rows["train"]] == [plain.id]
    assert {row["comparison_id"] for row in rows["test"]} == {held_out.id, follower.id}
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert manifest["dropped"]["leakage"] == 1 and manifest["near_duplicate_prompts"] == 2


def test_the_same_pair_from_two_comparisons_counts_once(tmp_path: Path) -> None:
    two, three = comparison("q", "good", "bad"), comparison("q", "good", "bad", "worse")
    ranked = [[i] for i in sorted(range(3), key=lambda i: ("good", "bad", "worse").index(three.responses[i].text))]
    judged = [said(two, "good", "a"), said(two, "good", "b"), judgment(three, "a", ranked)]
    stored(tmp_path / "feedback.db", judged, [two, three])
    rows = make_pairs(tmp_path, "pairs", validation=0, test=0)["train"]
    assert len(rows) == 3
    assert [row["votes"] for row in rows if row["comparison_id"] == two.id] == [[2, 0, 0]]
    assert json.loads((tmp_path / "pairs" / "manifest.json").read_text())["dropped"]["duplicate"] == 1


def test_no_pairs_is_an_error_that_names_the_counts(tmp_path: Path, store_path: Path) -> None:
    stored(tmp_path / "ties.db", [judgment(i, "p", [[0, 1]]) for i in ITEMS], ITEMS)
    with pytest.raises(BadInput, match=r"4 comparisons with 4 judgments \(4 tie\)"):
        pairs(PairsConfig(run=tmp_path / "ties", feedback=tmp_path / "ties.db"))
    with pytest.raises(BadInput, match=r"0 judgments"):
        pairs(PairsConfig(run=tmp_path / "none", feedback=stored(tmp_path / "empty.db", [], ITEMS)))
    with pytest.raises(BadInput, match="min_rows asks for 5"):
        pairs(PairsConfig(run=tmp_path / "few", feedback=store_path, min_rows=5))
    with pytest.raises(BadInput, match="no judgments"):
        agreement(AgreementConfig(run=tmp_path / "silent", feedback=tmp_path / "empty.db"))
    with pytest.raises(BadInput, match="must leave prompts"):
        build(PairsConfig, {"stage": "pairs", "run": tmp_path / "p", "validation": 0.5, "test": 0.5}, "test")


def test_pairs_refuses_an_edited_store(tmp_path: Path, store_path: Path) -> None:
    edit(store_path, "UPDATE bodies SET body = replace(body, '[[0], [1]]', '[[1], [0]]') WHERE sequence = 6")
    with pytest.raises(BadInput, match="row 6"):
        pairs(PairsConfig(run=tmp_path / "pairs", feedback=store_path))


def test_what_older_stores_hold_keeps_its_ids_and_its_hash(tmp_path: Path) -> None:
    """Literals are from before a comparison could bear a row's name and a judgment a margin."""
    assert [item.id for item in ITEMS] == [
        "8edd8c1064b8fa9f", "e75237d09a92e058", "9d7ddbb4404f6f1f", "4b345ace648a7029"
    ]  # fmt: skip
    judged = [judgment(item, "ann", source="test", strength=2) for item in ITEMS]
    assert all("item" not in item.model_dump() for item in ITEMS) and "margin" not in judged[0].model_dump()
    stored(tmp_path / "feedback.db", judged, ITEMS)
    make_pairs(tmp_path, "pairs")
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    with Store.open(tmp_path / "feedback.db") as store:
        assert store.comparisons() == sorted(ITEMS, key=lambda item: item.id)
    assert manifest["content_sha256"] == ("a3ddcb54bef64b5f2acfb869c17e0bafbde2fb7f51f8ba817e00a84ab1c233ed")


def test_margins_count_where_nobody_gave_a_strength(tmp_path: Path) -> None:
    item = comparison("q", "good", "bad")
    judged = [said(item, "good", "a", margin=6.0), said(item, "good", "b", margin=2.5), said(item, "bad", "c")]
    (counted,) = tallies(votes_of(judged))
    assert counted.winner == (FIRST if item.responses[0].text == "good" else SECOND) and counted.margin == 4.25
    (both,) = tallies(votes_of([*judged, said(item, "good", "d", strength=1)]))
    assert [abs(size) for size in both.strengths] == [1.0], "two scales are not mixed"
