"""What a file says of its judgments as a whole: people, repeated rows, splits, strengths, languages, empty answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.core.config import BadInput, build
from align.core.files import read_jsonl
from align.core.records import Comparison
from annotation.aggregation.votes import votes_of
from annotation.campaign.candidates import compare, read_candidates
from annotation.campaign.settings import Campaign, work_of
from annotation.importers.imported import ImportedFile
from annotation.importers.run import ImportConfig, import_preferences, read
from annotation.pairs.run import PairsConfig, pairs
from annotation.store.store import Store


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def preferences_in(path: Path, format: str = "auto", **settings: Any) -> ImportedFile:
    return read(ImportConfig(run=path.parent / "run", data=path, format=format, **settings))


@pytest.mark.parametrize(
    ("sizes", "strengths", "margins"),
    [
        ([0, 2, 3.0], [0, 2, 3], [None, None, None]),
        ([0.2, 1, 2.6, 3.4, 8.5], [None] * 5, [0.2, 1.0, 2.6, 3.4, 8.5]),
        (["3", "1"], [3, 1], [None, None]),
        ([2, -1, None, "much"], [2, None, None, None], [None] * 4),
        ([40, 1e3], [None, None], [40.0, 1000.0]),
    ],
    ids=["own scale", "any scale", "as text", "no strengths among them", "large"],
)
@pytest.mark.parametrize("column", ["strength", "margin"])
def test_strengths_keep_their_order_on_any_scale(
    tmp_path: Path, column: str, sizes: list[Any], strengths: list[Any], margins: list[Any]
) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", column: size} for n, size in enumerate(sizes)]
    loaded = preferences_in(write(tmp_path / "a.jsonl", rows))
    assert [judgment.strength for judgment in loaded.judgments] == strengths
    assert [judgment.margin for judgment in loaded.judgments] == margins
    remark = "\n".join(loaded.notes)
    assert ("kept as margins on that scale" in remark) == any(margins)
    assert ("1 rows give the chosen response the lower score" in remark) == (-1 in sizes)
    assert (f"1 cells of column '{column}' are no numbers" in remark) == ("much" in sizes)


def three_to_one(**more: Any) -> list[dict[str, Any]]:
    """Rows on one pair of texts: three for the first, one for the second."""
    both = [("x", "y")] * 3 + [("y", "x")]
    return [{"prompt": "p", "chosen": a, "rejected": b, **more} for a, b in both]


def pairs_of(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The record of an import, and the training pairs that come of it."""
    config = {"run": folder / "import", "data": write(folder / "a.jsonl", rows), "feedback": folder / "f.db"}
    record = import_preferences(ImportConfig(**config, **settings))
    pairs(PairsConfig(run=folder / "pairs", feedback=folder / "f.db", validation=0, test=0))
    return record, read_jsonl(folder / "pairs" / "train.jsonl")


@pytest.mark.parametrize("column", ["annotator", "worker_id"])
def test_three_people_against_one_are_four_votes_on_one_pair(tmp_path: Path, column: str) -> None:
    rows = [{**row, column: f"r{n}", "id": n} for n, row in enumerate(three_to_one())]
    record, (pair,) = pairs_of(tmp_path, rows)
    assert [record.headline[key] for key in ("comparisons", "judgments", "annotators", "dropped")] == [1, 4, 4, 0]
    assert (pair["chosen"][0]["content"], pair["votes"]) == ("x", [3, 1, 0])
    with Store.open(tmp_path / "f.db") as store:
        assert {judgment.annotator for judgment in store.judgments()} == {"r0", "r1", "r2", "r3"}
        assert all(vote.left is None for vote in votes_of(store.judgments())), "sides must not count as shown"


def test_a_named_person_who_answers_again_is_kept_apart_and_a_copied_row_is_none(tmp_path: Path) -> None:
    rows = three_to_one(annotator="ann")
    loaded = preferences_in(write(tmp_path / "a.jsonl", rows))
    assert [entry["reason"] for entry in loaded.dropped] == ["duplicate (of row 1)"] * 2
    first, second = loaded.judgments
    assert second.source == f"{first.source}#2" and first.ranking != second.ranking
    named = preferences_in(write(tmp_path / "a.jsonl", three_to_one()), annotator="bob")
    assert [judgment.annotator for judgment in named.judgments] == ["bob"] * 2


def test_rows_of_the_same_texts_stay_apart_by_their_own_ids_and_count_together_as_a_pair(tmp_path: Path) -> None:
    rows = [{**row, "id": f"r{n}"} for n, row in enumerate(three_to_one())]
    record, (pair,) = pairs_of(tmp_path, rows)
    assert [record.headline[key] for key in ("comparisons", "judgments", "dropped")] == [4, 4, 0]
    assert (pair["chosen"][0]["content"], pair["votes"]) == ("x", [3, 1, 0])
    with Store.open(tmp_path / "f.db") as store:
        stored = store.comparisons()
    assert sorted(c.item or "" for c in stored) == ["", "r1", "r2", "r3"] and len({c.id for c in stored}) == 4
    plain = Comparison.model_validate(stored[0].model_dump(exclude={"id", "item"}))
    assert plain.id == pair["comparison_id"], "the first row's id is that of its texts alone, as ever"
    again = preferences_in(write(tmp_path / "b.jsonl", [*rows, rows[0]]))
    assert [entry["reason"] for entry in again.dropped] == ["duplicate (of row 1)"]


def test_published_splits_hold_and_a_prompt_in_two_goes_to_the_one_held_out_most(tmp_path: Path) -> None:
    splits = ["train", "test", "Validation", "train", None, "train"]
    prompts = ["p1", "t1", "v1", "both", "none", "P1!"]
    rows = [
        {"prompt": prompt, "chosen": "x", "rejected": "y", "split": split}
        for prompt, split in zip(prompts, splits, strict=True)
    ]
    rows.append({"prompt": "Both?", "chosen": "z", "rejected": "y", "split": "test"})
    rows.append({"prompt": "p1", "chosen": "x", "rejected": "y", "split": "train", "note": "the same again"})
    data, feedback = write(tmp_path / "a.jsonl", rows), tmp_path / "f.db"
    record = import_preferences(ImportConfig(run=tmp_path / "import", data=data, feedback=feedback))
    with Store.open(feedback) as store:
        hints = store.splits()
        loaded = {c.prompt[0]["content"]: hints[c.id] for c in store.comparisons()}
    assert loaded == {"p1": "train", "P1!": "train", "t1": "test", "v1": "validation", "both": "test", "Both?": "test",
                     "none": None}  # fmt: skip
    remark = "1 prompts stand in several splits: all rows of each go to the one that is held out most"
    assert remark in record.notes
    assert {key: record.headline[key] for key in record.headline if key.endswith("_comparisons")} == {
        "train_comparisons": 2, "validation_comparisons": 1, "test_comparisons": 3,
    }  # fmt: skip
    pairs(PairsConfig(run=tmp_path / "pairs", feedback=feedback, validation=0, test=0))
    held_out = {row["prompt"][0]["content"] for row in read_jsonl(tmp_path / "pairs" / "test.jsonl")}
    assert held_out == {"t1", "both", "Both?"}
    whole = preferences_in(data, split="validation")
    assert [whole.splits[c.id] for c in whole.comparisons if c.prompt[0]["content"] == "none"] == ["validation"]


def test_a_duplicate_that_is_dropped_still_holds_its_prompt_out(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y", "split": split} for split in ("train", "test")]
    loaded = preferences_in(write(tmp_path / "a.jsonl", rows))
    assert len(loaded.kept) == len(loaded.dropped) == 1 and set(loaded.splits.values()) == {"test"}


def test_margins_reach_the_pairs_in_their_order(tmp_path: Path) -> None:
    sizes = [0.2, 1, 2.6, 3.4, 8.5]
    rows = [{"prompt": f"q{n}", "chosen": "x", "rejected": "y", "margin": size} for n, size in enumerate(sizes)]
    _, made = pairs_of(tmp_path, rows)
    assert sorted((pair["prompt"][0]["content"], pair["margin"]) for pair in made) == [
        (f"q{n}", size) for n, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_an_empty_answer_that_lost_is_a_response_of_no_text(tmp_path: Path, form: str) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "a", "chosen": "Apple.", "rejected": ""}, {"prompt": "b", "chosen": "", "rejected": "Chair."}]
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        write(path, rows)
    elif form == "csv":
        path.write_text("prompt,chosen,rejected\na,Apple.,\nb,,Chair.\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    loaded = preferences_in(path)
    (kept,) = loaded.kept
    assert [kept.comparison.responses[i].text for (i,) in kept.judgment.ranking] == ["Apple.", ""]
    assert [(entry["row"], entry["reason"]) for entry in loaded.dropped] == [(2, "a response is empty")]


@pytest.mark.parametrize(("side", "best"), [("left", "x"), ("right", "")])
def test_a_vote_for_an_empty_answer_is_a_vote(tmp_path: Path, side: str, best: str) -> None:
    """To leave it out would leave out votes by what they say: agreement would be that of the others."""
    result = [{"from_name": "c", "to_name": "a,b", "type": "pairwise", "value": {"selected": side}}]
    task = {"id": 1, "data": {"prompt": "q", "answer1": "x", "answer2": ""}, "annotations": [
        {"id": 1, "completed_by": 1, "result": result}
    ]}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps([task]))
    row = {"prompt": "q", "left": "x", "right": "", "label": side}
    for path in (tmp_path / "a.json", write(tmp_path / "a.jsonl", [row])):
        (kept,) = read(ImportConfig(run=tmp_path, data=path)).kept
        assert kept.comparison.responses[kept.judgment.ranking[0][0]].text == best


def test_nobody_is_asked_to_judge_an_empty_answer(tmp_path: Path) -> None:
    loaded = preferences_in(write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "x", "rejected": r} for r in "y "]))
    both, empty = loaded.comparisons
    left_out: Counter[str] = Counter()

    def drop(reason: str, count: int) -> None:
        left_out[reason] += count

    work = work_of(Campaign(name="made up", feedback=tmp_path / "f.db"), [both, empty], drop, {})
    assert [comparison.id for comparison in work.comparisons] == [both.id] and left_out["empty response"] == 1
    row = {"prompt": both.prompt, "responses": [response.model_dump() for response in empty.responses]}
    (tmp_path / "candidates.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = read_candidates([tmp_path / "candidates.jsonl"], drop, keep_unended=True, at_least=2)
    assert compare(prompt, prompt.responses, drop) is None and left_out["empty response"] == 2


@pytest.mark.parametrize(
    ("named", "tag"),
    [
        ("English", "en"),
        ("german", "de"),
        ("pt_BR", "pt-BR"),
        ("EN", "en"),
        ("yue", "yue"),
        ("python", "fr"),
        ("go", "fr"),
    ],
)
def test_languages_come_by_name_or_by_tag(tmp_path: Path, named: str, tag: str) -> None:
    row = {"prompt": "p", "chosen": "x", "rejected": "y", "language": named}
    loaded = preferences_in(write(tmp_path / "a.jsonl", [row]), language="fr")
    assert loaded.comparisons[0].language == tag
    (note,) = loaded.notes
    assert ("name no language" in note) == (tag == "fr") and ("language=fr holds for no row" in note) == (tag != "fr")


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("annotator", "column 'annotator' holds no name"),
        ("id", "column 'id' holds no name"),
        ("split", "column 'split' holds no name"),
        ("language", "column 'language' holds no name"),
        ("system", "the system prompt is no text"),
        ("tools", "tools are not a list"),
        ("images", "holds 'images', and only text is read here"),
    ],
)
@pytest.mark.parametrize("sides", [{"chosen": "x", "rejected": "y"}, {"left": "x", "right": "y", "label": "a"}])
def test_a_cell_that_holds_something_else_is_no_name(
    tmp_path: Path, sides: dict[str, str], column: str, reason: str
) -> None:
    data = write(tmp_path / "a.jsonl", [{"prompt": "p", **sides, column: {"a": 1}}])
    loaded = read(ImportConfig(run=tmp_path, data=data))
    assert [entry["reason"].partition(" (")[0] for entry in loaded.dropped] == [reason]


def test_a_number_that_is_beyond_all_numbers_is_none(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "x", "rejected": "y", "margin": 10**400}
    (judgment,) = preferences_in(write(tmp_path / "a.jsonl", [row])).judgments
    assert (judgment.strength, judgment.margin) == (None, None)


def test_the_language_of_a_file_is_a_tag_too(tmp_path: Path) -> None:
    words = {"stage": "import", "run": tmp_path, "data": tmp_path / "a.jsonl"}
    assert build(ImportConfig, {**words, "language": "English"}, "here").language == "en"
    with pytest.raises(BadInput, match="'Klingonish' names no language"):
        build(ImportConfig, {**words, "language": "Klingonish"}, "here")


LONG_PROMPT = "What is the capital of France, please?"


@pytest.mark.parametrize(
    ("row", "remark"),
    [
        (
            {"prompt": "<|im_start|>user\nq<|im_end|>", "chosen": "x", "rejected": "y"},
            "template in their text: '<|im_start|>' (1)",
        ),
        ({"prompt": "Read:\nHuman: hi", "chosen": "x", "rejected": "y"}, "'Human:' (1); kept as they stand"),
        (
            {"prompt": LONG_PROMPT, "chosen": f"{LONG_PROMPT} Paris.", "rejected": f"{LONG_PROMPT} Rome."},
            "whole prompt",
        ),
        ({"prompt": LONG_PROMPT, "chosen": f"{LONG_PROMPT} Paris.", "rejected": "Rome."}, None),
        ({"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi!"}, None),
        ({"prompt": "q", "chosen": "a Human: b", "rejected": "y", "note": 1}, "columns not read: note"),
    ],
)
def test_what_was_read_as_it_stands_and_may_be_meant_otherwise_is_said(
    tmp_path: Path, row: dict[str, Any], remark: str | None
) -> None:
    loaded = preferences_in(write(tmp_path / "a.jsonl", [row]))
    assert len(loaded.kept) == 1
    assert loaded.notes == [] if remark is None else remark in "\n".join(loaded.notes)


@pytest.mark.parametrize(("name", "split"), [("test-00000-of-00001", "test"), ("validation", "validation")])
def test_a_file_that_is_called_by_a_split_is_said_to_tell_none(tmp_path: Path, name: str, split: str) -> None:
    path = write(tmp_path / f"{name}.jsonl", [{"prompt": "q", "chosen": "x", "rejected": "y"}])
    loaded = preferences_in(path)
    assert [f"split={split} holds all of them out" in note for note in loaded.notes] == [True] and not loaded.splits
    held_out = preferences_in(path, split=split)
    assert not held_out.notes and set(held_out.splits.values()) == {split}
