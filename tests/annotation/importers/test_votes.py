"""Votes cast elsewhere: columns by map, labels by meaning, texts by id, and what is no vote with its reason."""

from __future__ import annotations

import cProfile
import csv
import json
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest

from align.cli.main import run
from align.core.config import BadInput, build
from align.core.files import read_jsonl, write_jsonl
from annotation.aggregation.counting import counting_judgments, questions_of
from annotation.importers.columns import Columns, Labels
from annotation.importers.imported import ImportedFile
from annotation.importers.run import ImportConfig, import_preferences
from annotation.importers.run import read as read_file
from annotation.store.store import Store

HEADER = ["worker", "task", "question", "a", "b", "winner"]
WORKER = Columns(annotator="worker", item="task", prompt="question", left="a", right="b", label="winner")


def table(path: Path, rows: list[list[Any]], header: list[str] = HEADER, **style: Any) -> Path:
    with open(path, "w", newline="", encoding=style.pop("encoding", "utf-8")) as file:
        csv.writer(file, **style).writerows([header, *rows])
    return path


def read(path: Path, columns: Columns = WORKER, labels: Labels | None = None, **files: Any) -> ImportedFile:
    return read_file(
        ImportConfig(
            run=path.parent / "run", data=path, format="votes", columns=columns, labels=labels or Labels(), **files
        )
    )


def votes_of(loaded: ImportedFile) -> list[tuple[str, list[list[str]], list[str]]]:
    """Annotator, texts by rank and texts by place on screen of each vote."""
    reason = []
    for entry in loaded.kept:
        text = [response.text for response in entry.comparison.responses]
        ranking = [sorted(text[index] for index in group) for group in entry.judgment.ranking]
        reason.append((entry.judgment.annotator, ranking, [text[index] for index in entry.judgment.shown]))
    return reason


def test_sides_are_known_whichever_response_stands_left(tmp_path: Path) -> None:
    rows = [
        ["ann", 1, "q", "x", "y", "left"],
        ["bob", 1, "q", "y", "x", "LEFT "],
        ["cem", 1, "q", "x", "y", "model_b"],
        ["dee", 1, "q", "x", "y", "tie"],
        ["eve", 1, "q", "x", "y", "Both bad"],
    ]
    loaded = read(table(tmp_path / "v.csv", rows))
    assert not loaded.dropped and len(loaded.comparisons) == 1
    assert votes_of(loaded) == [
        ("ann", [["x"], ["y"]], ["x", "y"]),
        ("bob", [["y"], ["x"]], ["y", "x"]),
        ("cem", [["y"], ["x"]], ["x", "y"]),
        ("dee", [["x", "y"]], ["x", "y"]),
        ("eve", [["x", "y"]], ["x", "y"]),
    ]
    assert [entry.judgment.flags for entry in loaded.kept] == [[], [], [], [], ["both_bad"]]


def test_labels_take_a_meaning_or_name_the_winner(tmp_path: Path) -> None:
    rows = [["ann", 1, "q", "x", "y", 1], ["bob", 1, "q", "x", "y", "-1"], ["cem", 1, "q", "x", "y", "y"]]
    rows += [["dee", 1, "q", "x", "y", "lfet"], ["eve", 1, "q", "x", "y", ""], ["", 1, "q", "x", "y", "1"]]
    loaded = read(table(tmp_path / "v.csv", rows), labels=Labels(left=1, right=(-1,)))
    assert [ranking[0] for _, ranking, _ in votes_of(loaded)] == [["x"], ["y"], ["y"]]
    reasons = [(entry["row"], entry["id"], entry["reason"]) for entry in loaded.dropped]
    assert reasons == [
        (4, "1", "unknown label ('lfet' in column 'winner')"),
        (5, "1", "no label (column 'winner' is empty)"),
        (6, "1", "no annotator (column 'worker' is empty)"),
    ]
    assert "'lfet' (1)" in loaded.notes[0] and "labels.left" in loaded.notes[0]
    with pytest.raises(BadInput, match="'yes' has two meanings"):
        build(Labels, {"left": ["yes"], "tie": ["Yes"]}, "x.yaml")


def test_texts_stand_in_a_file_of_items_or_are_named_by_id(tmp_path: Path) -> None:
    rows = [["ann", 7, 3, "m1", "m2", "left"], ["bob", 7, 3, "m1", "m2", "right"], ["cem", 8, 3, "m1", "m2", "left"]]
    votes = table(tmp_path / "v.csv", rows)
    items = tmp_path / "items.jsonl"
    write_jsonl(items, [{"id": 7, "text": "What is 1 + 1?", "one": "two", "other": "three", "a": "not read"}])
    by_item = Columns(annotator="worker", item="task", prompt="text", left="one", right="other", label="winner")
    loaded = read(votes, by_item, items=items)
    assert votes_of(loaded)[1] == ("bob", [["three"], ["two"]], ["two", "three"])
    assert loaded.comparisons[0].prompt == [{"role": "user", "content": "What is 1 + 1?"}]
    assert loaded.dropped == [{"row": 3, "id": "8", "reason": "its item is not in items.jsonl (task '8')"}]

    texts = table(tmp_path / "t.csv", [[3, "What is 1 + 1?"], ["m1", "two"], ["m2", "three"]], ["id", "text"])
    assert read(votes, texts=texts).comparisons == loaded.comparisons
    assert [vote[1] for vote in votes_of(read(votes, texts=texts))] == [[["two"], ["three"]], [["three"], ["two"]]] + [
        [["two"], ["three"]]
    ]
    table(texts, [[3, "What is 1 + 1?"], ["m1", "two"]], ["id", "text"])
    with_hole = read(votes, texts=texts)
    assert {entry["reason"] for entry in with_hole.dropped} == {"its right is not in t.csv (id 'm2')"}
    write_jsonl(items, [{"id": 7, "text": "a"}, {"id": 7, "text": "b"}])
    with pytest.raises(BadInput, match=r"items.jsonl: row 2: 'id' 7 stands twice with different contents"):
        read(votes, by_item, items=items)


def test_who_votes_again_is_compared_with_themselves_and_a_copied_row_counts_once(tmp_path: Path) -> None:
    rows = [["ann", 1, "q", "x", "y", "left"]] * 2 + [
        ["ann", 1, "q", "x", "y", "right"],
        ["ann", 2, "q", "x", "y", "a"],
    ]
    path = table(tmp_path / "v.csv", rows)
    loaded = read(path)
    assert [entry["reason"] for entry in loaded.dropped] == ["duplicate (of row 1)"]
    assert [entry.judgment.source for entry in loaded.kept] == [f"import:v.csv#{end}" for end in ("1", "1#2", "2")]
    config = ImportConfig(run=tmp_path / "r" / "one", data=path, feedback=tmp_path / "f.db", columns=WORKER)
    assert import_preferences(config).headline["new_judgments"] == 3
    again = import_preferences(config.model_copy(update={"run": tmp_path / "r" / "two"}))
    assert (again.headline["judgments"], again.headline["new_judgments"]) == (3, 0)
    with Store.open(config.feedback) as store:
        assert len(store.judgments()) == 3 and store.verify().ok
        counting = counting_judgments(store.judgments(), questions_of(store), ())
    assert [entry.source for entry in counting.judgments] == ["import:v.csv#1"] and counting.left_out[
        "asked again"
    ] == 2


def test_numbers_and_words_beside_a_vote(tmp_path: Path) -> None:
    row = {"annotator": 5, "prompt": "q", "left": "x", "right": "y", "label": "b"}
    more = [{"strength": -2, "seconds": 3.5, "language": "de", "rationale": " since "}, {"strength": 9, "seconds": -1}]
    path = tmp_path / "v.jsonl"
    write_jsonl(path, [row | more[0], row | more[1] | {"annotator": 6, "seconds": "soon"}])
    loaded = read(path, Columns())
    first, second = loaded.judgments
    assert (first.annotator, first.strength, first.seconds, first.rationale) == ("5", None, 3.5, "since")
    assert loaded.comparisons[0].language == "de"
    assert (second.strength, second.seconds, second.source) == (None, None, "import:v.jsonl")
    assert (first.margin, second.margin) == (2.0, 9.0)
    assert [note.split(" are ")[0] for note in loaded.notes] == [
        "1 cells of column 'seconds'",
        "strengths go from 2 to 9: kept as margins on that scale",
    ]


def test_whole_dialogues_hold_their_prompt(tmp_path: Path) -> None:
    def turns(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]

    row = {"annotator": "ann", "left": turns("x"), "right": turns("y"), "label": "right"}
    write_jsonl(tmp_path / "v.jsonl", [row, row | {"left": turns("y"), "annotator": "bob"}])
    loaded = read(tmp_path / "v.jsonl", Columns())
    assert loaded.comparisons[0].prompt == turns("x")[:1] and votes_of(loaded)[0][1] == [["y"], ["x"]]
    assert loaded.dropped[0]["reason"] == "left equals right"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"annotator": "wroker"}, "v.csv: has no column 'wroker' (columns.annotator); did you mean 'worker'?"),
        ({"label": None}, "v.csv: no column 'label'; say which holds it with columns.label=...; it has a, b, question"),
        ({"prompt": None}, "v.csv: no column 'prompt'"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_the_nearest(
    tmp_path: Path, columns: dict[str, Any], reason: str
) -> None:
    path = table(tmp_path / "v.csv", [["ann", 1, "q", "x", "y", "left"]])
    with pytest.raises(BadInput) as error:
        read(path, WORKER.model_copy(update=columns))
    assert reason in str(error.value)


def test_files_as_other_programs_write_them(tmp_path: Path) -> None:
    rows = [
        ["ann", 1, "q; really?", "x, y", "two\nlines", "left"],
        ["bob", 1, "q; really?", "x, y", "two\nlines", "tie"],
    ]
    plain = read(table(tmp_path / "v.csv", rows))
    assert len(plain.kept) == 2
    for name, style in {
        "bom": {"encoding": "utf-8-sig"},
        "semicolon": {"delimiter": ";"},
        "tab": {"delimiter": "\t"},
    }.items():
        assert votes_of(read(table(tmp_path / f"{name}.csv", rows, **style))) == votes_of(plain)
    path = tmp_path / "v.jsonl"
    path.write_text("\ufeff" + "".join(json.dumps(dict(zip(HEADER, row, strict=True))) + "\n" for row in rows))
    assert votes_of(read(path)) == votes_of(plain)
    broken = [["ann", 1, "nul \0", "lone \ud800", "y", "left"]]
    write_jsonl(path, [dict(zip(HEADER, row, strict=True)) for row in broken])
    loaded = read(path)
    assert loaded.scrubbed == 2 and votes_of(loaded) == [("ann", [["lone \ufffd"], ["y"]], ["lone \ufffd", "y"])]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("v.csv", "", "holds no rows"),
        ("v.csv", "worker,a,b,winner\n", "holds no rows"),
        ("v.csv", "worker,a,a\nann,x,y\n", "column 'a' stands twice in its header"),
        ("v.csv", "worker,a\nann,x,y\n", "row 1 has more fields than the header"),
        ("v.json", '{\n "votes": [{"label": "left"}]\n}', "found one JSON object; is it the list in 'votes'?"),
        ("v.json", "[[1]]", "expected a JSON object, found list"),
        ("v.json", "[" * 100_000, "not JSON that can be read"),
        ("v.jsonl", '{"left": ' + "[" * 800 + "]" * 800 + "}", "v.jsonl:1: not JSON (nested deeper than 100 levels)"),
        ("v.txt", "a", "rename it to end in .csv, .tsv, .jsonl or .parquet"),
        ("none.csv", None, "no such file"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_says_where(tmp_path: Path, name: str, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    words = [f"data={tmp_path / name}", "format=votes", f"feedback={tmp_path / 'f.db'}", f"run={tmp_path / 'run'}"]
    with pytest.raises(BadInput) as error:
        import_preferences(build(ImportConfig, dict(word.split("=") for word in words), "here"))
    assert reason in str(error.value).replace("no such file or folder", "no such file")
    assert not (tmp_path / "f.db").exists()


def test_a_setting_without_use_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "x", "rejected": "y"}])
    config = ImportConfig(run=tmp_path / "run", data=tmp_path / "p.jsonl", texts=tmp_path / "p.jsonl")
    with pytest.raises(
        BadInput, match="read as preferences, which have no use for 'texts'; leave it out .it belongs to votes"
    ):
        import_preferences(config)


def test_the_command_takes_a_bare_path_and_counts_what_it_drops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "my votes #1: all.csv", [["ann", 1, "q", "x", "y", "left"], ["bob", 1, "q", "x", "y", "?"]])
    words = [f"columns.{name}={column}" for name, column in WORKER.model_dump(exclude_none=True).items()]
    store, folder = tmp_path / "f.db", tmp_path / "run"
    assert run(["import", str(path), *words, f"feedback={store}", f"run={folder}"]) == 0
    assert {"format: votes", "new_judgments: 1", "dropped: 1"} <= set(capsys.readouterr().out.splitlines())
    assert json.loads((folder / "run.json").read_text())["dropped"] == {"unknown label": 1}
    assert [row["row"] for row in read_jsonl(folder / "rows.jsonl")] == [1]
    assert run(["import", str(path), str(path)]) == 2
    assert "reads one file at a time" in capsys.readouterr().err


def test_alpha_is_that_of_the_labels_people_chose_from(tmp_path: Path) -> None:
    """The order within a comparison is a hash's; who always prefers the left must not look like disagreement."""
    generator = np.random.default_rng(3)
    labels = generator.choice(["left", "right", "tie"], p=[0.7, 0.2, 0.1], size=(40, 3))
    rows = [
        [f"person {person}", task, "q", f"x{task}", f"y{task}", labels[task, person]]
        for task in range(40)
        for person in range(3)
    ]
    data = table(tmp_path / "v.csv", rows)
    words = [f"columns.{name}={column}" for name, column in WORKER.model_dump(exclude_none=True).items()]
    feedback = f"feedback={tmp_path / 'f.db'}"
    assert run(["import", str(data), *words, feedback, f"run={tmp_path / 'import'}"]) == 0
    assert run(["annotate", "agreement", feedback, f"run={tmp_path / 'agreement'}"]) == 0
    expected = krippendorff.alpha(reliability_data=labels.T, level_of_measurement="nominal", value_domain=None)
    loaded = json.loads((tmp_path / "agreement" / "agreement.json").read_text())["alpha"]
    assert loaded["value"] == pytest.approx(expected, abs=1e-12)


def test_the_work_of_an_import_grows_with_its_rows_and_no_faster(tmp_path: Path) -> None:
    """Counted in calls of Python functions, which are the same on every machine; seconds stand in BRIDGE.md."""

    def calls(n: int) -> int:
        rows = [[f"p{i % 50}", i // 4, f"q {i // 4}", "an answer " * 20, f"other {i // 4}", "a"] for i in range(n)]
        folder = tmp_path / str(n)
        folder.mkdir()
        data = table(folder / "v.csv", rows)
        config = ImportConfig(run=folder / "run", data=data, feedback=folder / "f.db", columns=WORKER)
        counted = cProfile.Profile()
        record = counted.runcall(import_preferences, config)
        assert (record.headline["comparisons"], record.headline["new_judgments"]) == (n // 4, n)
        return sum(entry.callcount for entry in counted.getstats())

    few, more, most = calls(500), calls(1000), calls(2000)
    assert most - more < 2.2 * (more - few)
