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
    with pytest.raises(BadInput, match="'zebra' is no kind of importer; write one of .*SHP.*, or module:Class"):
        config(tmp_path, "zebra")


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
