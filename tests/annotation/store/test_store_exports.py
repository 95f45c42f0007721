"""Exports: all of a store, readable elsewhere, and no name in it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from fixtures.judging import ITEMS, comparison, edit, judgment

from align.cli.main import run as align
from align.core.config import BadInput
from align.core.files import read_jsonl
from align.core.records import Comparison, Judgment
from annotation.store.database import APPLICATION_ID, MIGRATIONS
from annotation.store.erasure import ErasureTarget, remove
from annotation.store.exports import alias, export
from annotation.store.ledger import Ledger
from annotation.store.store import Store
from annotation.store.tables import KnownAnswer, Quarantined, Task

NAMES = ("ann", "bob.b@host.org", "zoë")
ODD = Comparison.model_validate(
    {
        "prompt": [{"role": "user", "content": "half a \ud83d pair?", "name": "x"}],
        "responses": [
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], "origin": "runs/a"},
            {"messages": [{"role": "assistant", "content": "no"}]},
        ],
        "tools": [{"type": "function"}],
        "template_arguments": {"thinking": True},
        "language": "he",
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three people, two versions, one judgment taken back, tasks, and something set aside."""
    file = tmp_path / "feedback.db"
    with Store.open(file, write=True) as store:
        store.add_comparisons([*ITEMS, ODD], {ITEMS[0].id: "test"})
        store.add_judgments(judgment(item, name, source=f"import:{name}.csv") for item in ITEMS for name in NAMES[:2])
        store.add_judgments(
            [judgment(ITEMS[0], "ann", [[1], [0]], source="import:ann.csv", ratings={"kind": [3, None]})]
        )
        store.add_judgments([judgment(ODD, NAMES[2], flags=["both_bad"], rationale="half \ud83d")])
        store.withdraw([(ITEMS[1].id, "ann", "import:ann.csv")], "deleted on the server")
        ledger = Ledger(store, "spring")
        ledger.add_tasks([Task("k0", ITEMS[0].id, [1, 0], "gold", KnownAnswer(ranking=[[0], [1]]), "guide", 17)])
        ledger.add_tasks([Task("k1", ITEMS[1].id, [0, 1])])
        found = [("by account 41, which the server does not list", "ann"), ("has no choice 'I am Bob'", NAMES[1])]
        ledger.quarantine(
            Quarantined(n, "t", 17, "k0", name, reason, {"result": ["secret"]})
            for n, (reason, name) in enumerate(found)
        )
    return file


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {file.stem: read_jsonl(file) for file in folder.glob("*.jsonl")}


def test_everything_is_there_and_what_stands_is_told(path: Path, tmp_path: Path) -> None:
    assert export(out=tmp_path / "out", feedback=path, names=True).rows == {
        "comparisons": 5, "judgments": 10, "tasks": 2, "quarantine": 2
    }  # fmt: skip
    found = rows(tmp_path / "out")
    with Store.open(path) as store:
        columns = ("id", "prompt", "responses", "tools", "template_arguments", "language", "schema_version")
        again = [Comparison.model_validate({c: row[c] for c in columns}) for row in found["comparisons"]]
        assert again == store.comparisons()
        assert {row["id"]: row["split"] for row in found["comparisons"]} == store.splits()
        standing = [{k: v for k, v in row.items() if k not in ("stands", "sequence")} for row in found["judgments"]
                    if row["stands"]]  # fmt: skip
        by_key = sorted((Judgment.model_validate(r) for r in standing), key=lambda j: (j.comparison_id, j.annotator))
        assert by_key == store.judgments() and len(by_key) == 8
        about = json.loads((tmp_path / "out" / "export.json").read_text())
        assert about["head"] == store.head() and about["rows"]["judgments"] == 10
    taken_back = [
        row for row in found["judgments"] if row["comparison_id"] == ITEMS[1].id and row["annotator"] == "ann"
    ]
    assert [row["stands"] for row in taken_back] == [False]
    versions = [row for row in found["judgments"] if row["comparison_id"] == ITEMS[0].id and row["annotator"] == "ann"]
    assert [(row["version"], row["stands"]) for row in versions] == [(1, False), (2, True)]
    assert found["tasks"][0]["answer"]["ranking"] == [[0], [1]] and found["tasks"][0]["shown"] == [1, 0]
    assert found["quarantine"][0]["reason"].startswith("by account 41") and found["quarantine"][0]["annotator"] == "ann"


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_no_name_is_in_an_export_and_aliases_stay(path: Path, tmp_path: Path, format: Any) -> None:
    export(out=tmp_path / "one", feedback=path, format=format)
    with Store.open(path, write=True) as store:
        aliases = {name: alias(store.salt(), name) for name in NAMES}
        store.add_judgments([judgment(ITEMS[3], "someone new")])
        salt = store.salt()
    export(out=tmp_path / "two", feedback=path, format=format)
    written = b"".join(file.read_bytes() for folder in ("one", "two") for file in (tmp_path / folder).iterdir())
    for word in (*NAMES[1:], "zo\\u00eb", "someone new", "I am Bob", "secret", salt.hex()):
        assert word.encode() not in written, word
    assert b'"ann"' not in written and b"account 41" not in written and b"ann.csv" not in written
    if format == "jsonl":
        one, two = (rows(tmp_path / folder)["judgments"] for folder in ("one", "two"))
        assert two[: len(one)] == one and {row["annotator"] for row in one} == set(aliases.values())
        assert one[0]["source"] == f"import:{one[0]['annotator']}.csv"
    with Store.open(tmp_path / "other.db", write=True) as other:
        assert alias(other.salt(), "ann") != aliases["ann"]  # a key of each store's own


def test_datasets_reads_both_formats_alike(path: Path, tmp_path: Path) -> None:
    loaded = {}
    for format in ("jsonl", "parquet"):
        export(out=tmp_path / format, feedback=path, format=format)
        kind = "json" if format == "jsonl" else format
        for table in ("judgments", "comparisons", "tasks", "quarantine"):
            files = str(tmp_path / format / f"{table}.{format}")
            if table != "comparisons" or format == "parquet":  # its messages have no common shape, as JSON lines may
                loaded[table, format] = datasets.load_dataset(
                    kind, data_files=files, split="train", cache_dir=str(tmp_path / "cache")
                )
    rows_of = {key: data.to_list() for key, data in loaded.items()}
    by_text = [json.loads(row["ratings"]) for row in rows_of["judgments", "parquet"]]
    assert {"kind": [3, None]} in by_text
    for name in ("stands", "annotator", "version", "ranking", "shown", "flags"):
        values = [[row[name] for row in rows_of["judgments", format]] for format in ("jsonl", "parquet")]
        assert values[0] == values[1], name
    (odd,) = [row for row in rows_of["comparisons", "parquet"] if row["language"] == "he"]
    assert json.loads(odd["prompt"]) == ODD.prompt and json.loads(odd["template_arguments"]) == {"thinking": True}
    assert [row["rationale"] for row in rows_of["judgments", "parquet"] if row["rationale"]] == ["half \ufffd"]


def test_an_empty_store_has_all_tables(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db", write=True):
        pass
    export(out=tmp_path / "out", feedback=tmp_path / "feedback.db", format="parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "judgments.parquet")  # datasets reads no file without rows
    assert len(table) == 0 and table.schema.field("flags").type == pyarrow.list_(pyarrow.string())


def test_what_was_erased_is_in_no_export(path: Path, tmp_path: Path) -> None:
    with Store.open(path, write=True) as store:
        remove(store, ErasureTarget("annotator", "ann"))
        gone = alias(store.salt(), "ann")
    export(out=tmp_path / "out", feedback=path)
    assert gone not in {row["annotator"] for row in rows(tmp_path / "out")["judgments"]}
    assert len(rows(tmp_path / "out")["quarantine"]) == 1


def test_the_verb_says_what_it_wrote_or_why_not(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["annotate", "export", f"feedback={path}"]
    assert align([*words, f"out={tmp_path / 'out'}", "--names"]) == 0
    assert "5 comparisons, 10 judgments, 2 tasks, 2 quarantine; annotators by name" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    for wrong in ([], [f"out={tmp_path / 'file'}"], [f"out={tmp_path / 'x'}", "format=csv"]):
        assert align([*words, *wrong]) == 2, wrong
    edit(path, "UPDATE bodies SET body = '{}' WHERE kind = 'judgment'")
    with pytest.raises(BadInput, match="damaged row"):
        export(out=tmp_path / "again", feedback=path)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("schema", [1, 2, len(MIGRATIONS)])
def test_the_salt_outlives_what_is_written_and_older_stores_gain_one(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "feedback.db"
    connection = sqlite3.connect(path)
    connection.create_function("fresh_salt", 0, lambda: bytes(range(32)))
    stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {schema};"
    connection.executescript(f"BEGIN; {' '.join(MIGRATIONS[:schema])} {stamp} COMMIT;")
    connection.close()
    with Store.open(path) as reader:
        first = reader.salt()
    with Store.open(path, write=True) as store:
        store.add_comparisons([comparison("q", "a", "b")])
        assert store.salt() == first
    with Store.open(path, write=True) as store:
        remove(store, ErasureTarget("comparison", store.comparisons()[0].id))
        assert store.salt() == first and len(first) == 32


def test_a_folder_of_something_else_is_not_written_into(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "comparisons.jsonl").write_text("my own")
    with pytest.raises(BadInput, match="holds files and no export"):
        export(out=folder, feedback=path)
    assert [file.read_text() for file in folder.iterdir()] == ["my own"]
    assert export(out=tmp_path / "out", feedback=path) == export(out=tmp_path / "out", feedback=path)
