"""The seam of importers: one from outside the package reads a file by its name, and by its columns once listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.cli.main import run
from align.core.config import BadInput, build
from align.core.files import read_jsonl, write_jsonl
from annotation.importers.importer import IMPORTERS
from annotation.importers.run import ImportConfig, import_preferences
from annotation.store.store import Store

ROWS: list[dict[str, Any]] = [
    {"question": "What is a fen?", "answers": ["A wetland.", "A coin.", "Water."], "stars": [5, 1, 5], "rater": "bob"},
    {"question": "What is a mire?", "answers": ["A bog.", "A horse."], "stars": [4, 2], "rater": "ann"},
    {"question": "What is a moor?", "answers": ["A heath."], "stars": [3], "rater": "ann"},
    {"question": "What is a heath?", "answers": ["A moor.", "A hat."], "stars": [3], "rater": "ann"},
]


def written(folder: Path) -> Path:
    write_jsonl(folder / "rated.jsonl", ROWS)
    return folder / "rated.jsonl"


def rankings(feedback: Path) -> list[tuple[str, list[list[str]]]]:
    """Annotator and texts by tie group of every judgment."""
    with Store.open(feedback) as store:
        texts = {c.id: [response.text for response in c.responses] for c in store.comparisons()}
        return [
            (j.annotator, [sorted(texts[j.comparison_id][index] for index in group) for group in j.ranking])
            for j in store.judgments()
        ]


def config(folder: Path, format: Any, **settings: Any) -> ImportConfig:
    data = {"run": folder / "run", "data": written(folder), "feedback": folder / "f.db", "format": format} | settings
    return build(ImportConfig, data, "test.yaml")


def test_an_importer_from_elsewhere_reads_its_schema(tmp_path: Path) -> None:
    record = import_preferences(config(tmp_path, "toy_importer:Stars"))
    both = [("ann", [["A bog."], ["A horse."]]), ("bob", [["A wetland.", "Water."], ["A coin."]])]
    assert sorted(rankings(tmp_path / "f.db")) == both
    assert record.headline["format"] == "toy_importer:Stars" and record.headline["dropped"] == 2
    assert record.resolved["format"] == {"kind": "toy_importer:Stars", "least": 0}
    assert "format" in record.inputs, "its code is an input"
    reasons = [(row["row"], row["reason"]) for row in read_jsonl(tmp_path / "run" / "dropped.jsonl")]
    assert reasons == [(3, "no two responses with a number as rank ([-3])"), (4, "not one number of stars per answer")]


def test_its_own_settings_are_validated_by_its_own_schema(tmp_path: Path) -> None:
    import_preferences(config(tmp_path, {"kind": "toy_importer:Stars", "least": 2}))
    assert ("ann", [["A bog."], ["A horse."]]) in rankings(tmp_path / "f.db")
    assert not any("A coin." in group for _, groups in rankings(tmp_path / "f.db") for group in groups)
    with pytest.raises(BadInput, match="format.*leest.*least"):
        config(tmp_path, {"kind": "toy_importer:Stars", "leest": 2})
    with pytest.raises(BadInput, match="'toy_importer:Moons'.*has no 'Moons'"):
        config(tmp_path, "toy_importer:Moons")


@pytest.mark.parametrize(
    ("format", "problem"),
    [
        (
            "zebra",
            "test.yaml: key 'format': 'zebra' is no format; write auto, trl, .* importer .*SHP.*, or module:",
        ),
        ("tlr", "did you mean 'trl'\\? write auto"),
        ({"kind": "HH"}, "did you mean 'hh'\\?"),
        ("shp", "did you mean 'SHP'\\?"),
        ("jsonl", "a file is read as jsonl by its ending; leave format out"),
        (3, "key 'format'"),
        ({"kind": "Parquet"}, "did you mean 'parquet'\\?"),
    ],
)
def test_an_unknown_format_is_answered_with_the_nearest_and_with_all(tmp_path: Path, format: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        config(tmp_path, format)


def test_a_format_may_be_written_as_a_kind_too(tmp_path: Path) -> None:
    assert config(tmp_path, {"kind": "trl"}).format == config(tmp_path, "trl").format == "trl"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Bare", "class Bare: layouts is None; write"),
        ("Flat", r"class Flat: layouts is \('question', 'answers'\); write \(\(\"question\""),
        ("Rated", 'class Rated: holds is ratings; write "preferences", "votes" or "rankings"'),
        ("Mapped", r"class Mapped: columns is {'prompt': 'question'}; write Columns\("),
        ("Worded", r"class Worded: labels is {'left': '1'}; write Labels\("),
        ("Maker", r"class Maker: makes is label; write \(\"label\",\)"),
    ],
)
def test_a_class_that_declares_something_else_is_refused_when_it_is_chosen(
    tmp_path: Path, name: str, problem: str
) -> None:
    with pytest.raises(BadInput, match=f"test.yaml: key 'format': importer odd_importers:{name}: {problem}"):
        config(tmp_path, f"odd_importers:{name}")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Nothing", "rewrite returned None, not columns by name"),
        ("Listed", r"rewrite returned \[1\], not columns by name"),
        ("Numbered", r"rewrite returned {1: 'a'}, not columns by name"),
        ("Undeclared", "rewrite returned column 'split', which neither the file nor `makes` has; add it to makes"),
        ("Yields", "rewrite returned <generator"),
        ("Ends", "SystemExit: 3 at odd_importers.py:"),
        ("Raises", "KeyError: 'stars' at odd_importers.py:"),
    ],
)
def test_what_rewrite_may_not_do_is_one_line_with_file_and_row(tmp_path: Path, name: str, problem: str) -> None:
    odd = config(tmp_path, f"odd_importers:{name}")
    write_jsonl(odd.data, [{"question": "q", "answers": ["a", "b"]}])
    with pytest.raises(BadInput, match=rf"rated.jsonl: row 1: importer odd_importers:{name}: {problem}") as error:
        import_preferences(odd)
    assert "\n" not in str(error.value)


def test_rewrite_gets_a_copy_of_the_row(tmp_path: Path) -> None:
    """What it does to its argument is lost; only what it returns counts."""
    odd = config(tmp_path, "odd_importers:Edits")
    write_jsonl(odd.data, [{"question": "q", "left": "x", "right": "y", "label": "a", "info": {"who": "ann"}}])
    import_preferences(odd)
    assert rankings(tmp_path / "f.db") == [("ann", [["x"], ["y"]])]


def test_ranks_as_text_are_numbers_or_refused(tmp_path: Path) -> None:
    odd = config(tmp_path, "odd_importers:Ranked")
    ranks: list[list[Any]] = [["10", " 9 ", 2.0], ["1_0", "9", 2], ["first", "second", "third"], [True, 2, 3]]
    write_jsonl(odd.data, [{"q": f"q{n}", "options": ["x", "y", "z"], "places": row} for n, row in enumerate(ranks)])
    import_preferences(odd)
    assert [order for _, order in rankings(tmp_path / "f.db")] == [[["z"], ["y"], ["x"]]]
    reasons = [(row["row"], row["reason"].partition(" (")[0]) for row in read_jsonl(tmp_path / "run" / "dropped.jsonl")]
    assert reasons == [(row, "no two responses with a number as rank") for row in (2, 3, 4)]


def test_an_error_in_its_code_is_told_with_file_and_row(tmp_path: Path) -> None:
    odd = config(tmp_path, "toy_importer:Stars")
    write_jsonl(odd.data, [ROWS[0], {"question": "q", "answers": ["a", "b"], "stars": [1, "many"]}])
    with pytest.raises(BadInput, match=r"rated.jsonl: row 2: importer .*: TypeError.* at toy_importer.py:"):
        import_preferences(odd)


def test_one_line_makes_it_known_by_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPORTERS.shipped, "stars", "toy_importer:Stars")  # type: ignore[arg-type]
    assert import_preferences(config(tmp_path, "auto")).headline["format"] == "stars"
    with pytest.raises(BadInput, match="format SHP reads the columns history, human_ref_A.*it has answers"):
        import_preferences(config(tmp_path, "SHP", run=tmp_path / "other"))


def test_the_command_line_takes_it_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["import", str(written(tmp_path)), "format=toy_importer:Stars", f"feedback={tmp_path / 'f.db'}", "--dry-run"]
    assert run(line) == 0
    shown = capsys.readouterr().out
    assert "read as toy_importer:Stars: 4 rows, 2 comparisons, 2 judgments, 2 dropped" in shown
    assert "-> better: A wetland." in shown and "-> worse: A coin." in shown
