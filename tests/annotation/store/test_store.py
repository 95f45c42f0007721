"""The feedback store: its log, its damage, its writers."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from fixtures.judging import ITEMS, comparison, edit, judgment

from align.core.config import BadInput
from align.core.records import Comparison
from annotation.store.chain import GENESIS
from annotation.store.exports import export
from annotation.store.store import Store


def test_store_returns_what_was_put_in_whatever_the_order(store_path: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.db", write=True) as other, Store.open(store_path) as store:
        other.add_comparisons(reversed(ITEMS), {ITEMS[1].id: "test"})
        other.add_judgments(reversed([judgment(i, n, source="test") for i in ITEMS for n in ("ann", "bob")]))
        assert other.comparisons() == store.comparisons() == sorted(ITEMS, key=lambda item: item.id)
        assert other.judgments() == store.judgments()
        assert other.splits()[ITEMS[1].id] == "test" and set(store.splits().values()) == {None}
        assert store.counts() == (4, 8, 8, 2, 0)


def test_same_judgment_again_is_nothing_and_a_changed_one_is_a_new_version(store_path: Path) -> None:
    with Store.open(store_path, write=True) as store:
        head = store.head()
        assert store.add_comparisons(ITEMS) == 0
        assert store.add_judgments(store.judgments()) == 0
        assert store.head() == head
        assert store.add_judgments([judgment(ITEMS[0], "ann", [[1], [0]], source="test")]) == 1
        latest = {(j.comparison_id, j.annotator): j for j in store.judgments()}[ITEMS[0].id, "ann"]
        assert (latest.version, latest.ranking) == (2, [[1], [0]])
        assert store.counts()[1:3] == (8, 9)
        assert store.verify().ok and store.head() != head


def test_split_hint_only_gets_stricter(store_path: Path) -> None:
    key = ITEMS[0].id
    with Store.open(store_path, write=True) as store:
        for hint, expected in (("train", "train"), ("test", "test"), ("train", "test")):
            store.add_comparisons([ITEMS[0]], {key: hint})
            assert store.splits()[key] == expected


def test_refused_judgments_leave_nothing_behind(store_path: Path) -> None:
    stranger = comparison("unknown", "a", "b")
    with Store.open(store_path, write=True) as store:
        head = store.head()
        with pytest.raises(BadInput, match=stranger.id):
            store.add_judgments([judgment(ITEMS[0], "cat"), judgment(stranger, "cat")])
        with pytest.raises(BadInput, match="ranks 3 responses"):
            store.add_judgments([judgment(ITEMS[0], "cat", [[0], [1], [2]])])
        assert store.head() == head and store.counts().judgments == 8 and store.verify().ok


DAMAGE = {
    "hash of a body": (["UPDATE log SET salted_hash = 'x' || substr(salted_hash, 2) WHERE sequence = 6"], "row 6:"),
    "entry hash": (["UPDATE log SET entry_hash = 'x' || substr(entry_hash, 2) WHERE sequence = 6"], "row 6:"),
    "text": (["UPDATE bodies SET body = replace(body, '[[0], [1]]', '[[1], [0]]') WHERE sequence = 6"], "row 6:"),
    "salt": (["UPDATE bodies SET salt = zeroblob(16) WHERE sequence = 6"], "row 6:"),
    "kind": (["UPDATE bodies SET kind = 'comparison' WHERE sequence = 6"], "row 6:"),
    "comparison id": (["UPDATE bodies SET comparison_id = 'x' WHERE sequence = 6"], "row 6:"),
    "annotator": (["UPDATE bodies SET annotator = 'eve' WHERE sequence = 6"], "row 6:"),
    "source": (["UPDATE bodies SET source = 'x' WHERE sequence = 6"], "row 6:"),
    "deleted text": (["DELETE FROM bodies WHERE sequence = 6"], "row 6:"),
    "deleted row": (["DELETE FROM log WHERE sequence = 6", "DELETE FROM bodies WHERE sequence = 6"], "row 6:"),
    "deleted tail": (["DELETE FROM log WHERE sequence > 10", "DELETE FROM bodies WHERE sequence > 10"], "row 10,"),
    "added text": (["INSERT INTO bodies SELECT 99, kind, 'c', 'a', 's', body, salt FROM bodies LIMIT 1"], "row 99:"),
    "reordered": (
        [
            f"UPDATE {table} SET sequence = {new} WHERE sequence = {old}"
            for table in ("log", "bodies")
            for old, new in ((6, -1), (7, 6), (-1, 7))
        ],
        "row 6:",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_the_damaged_row(store_path: Path, kind: str) -> None:
    statements, expected = DAMAGE[kind]
    with Store.open(store_path) as store:
        assert store.verify().ok
    edit(store_path, *statements)
    with Store.open(store_path) as store:
        found = store.verify()
    assert not found.ok
    assert expected in found.problems[0], found.problems


def test_log_refuses_edits_from_outside(store_path: Path) -> None:
    connection = sqlite3.connect(store_path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM log WHERE sequence = 6")
    connection.close()


def test_rewritten_history_is_told_by_a_recorded_head(store_path: Path, tmp_path: Path) -> None:
    with Store.open(store_path, write=True) as store:
        recorded = store.head()
        store.add_judgments([judgment(ITEMS[0], "cat")])
        assert store.verify({recorded: "runs/pairs", GENESIS: "runs/first"}).ok
    with Store.open(tmp_path / "forged.db", write=True) as forged:
        forged.add_comparisons(ITEMS)
        assert forged.verify().ok
        assert "which runs/pairs recorded" in forged.verify({recorded: "runs/pairs"}).problems[0]


def test_second_writer_is_told_who_writes_and_readers_are_not_bothered(store_path: Path) -> None:
    with Store.open(store_path, write=True) as store:
        with pytest.raises(BadInput, match=f"process {os.getpid()} is writing"):
            Store.open(store_path, write=True)
        with Store.open(store_path) as reader:
            store.add_judgments([judgment(ITEMS[0], "cat")])
            assert reader.counts().judgments == 8
            with pytest.raises(BadInput, match="opened for reading"):
                reader.add_judgments([judgment(ITEMS[0], "cat")])
    with Store.open(store_path, write=True) as store:
        assert store.counts().judgments == 9


def test_what_is_no_store_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such feedback store"):
        Store.open(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("hello, this is text and no database at all" * 40)
    with pytest.raises(BadInput, match="cannot be opened"):
        Store.open(tmp_path / "text.db", write=True)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    for write in (False, True):
        with pytest.raises(BadInput, match="not a feedback store"):
            Store.open(tmp_path / "other.db", write=write)


def test_newer_schema_is_refused(store_path: Path) -> None:
    connection = sqlite3.connect(store_path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(BadInput, match="newer version"):
        Store.open(store_path)


def test_a_new_column_finds_old_rows_and_odd_text_comes_back(tmp_path: Path) -> None:
    """Lone surrogates are text to json alone, NaN to both: neither stops the quick way of reading."""
    odd = comparison("\ud800 and \x00", "yes \udfff", "no")
    item = Comparison.model_validate({**odd.model_dump(exclude={"id"}), "template_arguments": {"x": float("inf")}})
    words = judgment(item, "ann", rationale="half a \ud83d pair", seconds=1.5)
    with Store.open(tmp_path / "feedback.db", write=True) as store:
        store.add_comparisons([item], {item.id: "test"})
        store.add_judgments([words])
        assert store.comparisons() == [item] and store.judgments() == [words]
        assert store.splits() == {item.id: "test"} and store.verify().ok
        assert store.add_judgments([words]) == 0


def test_a_page_of_one_judgment_reads_no_more_than_its_own_rows(store_path: Path) -> None:
    with Store.open(store_path, write=True) as store:
        asked: list[str] = []
        store.connection.set_trace_callback(asked.append)
        store.add_judgments([judgment(ITEMS[0], "cat")])
        store.withdraw([(ITEMS[0].id, "cat", "unknown")], "taken back")
    whole = [
        query for query in asked if "FROM bodies" in query and "WHERE kind" in query and "comparison_id =" not in query
    ]
    assert all("'erasure'" in query for query in whole), whole


def modes(folder: Path) -> dict[str, int]:
    """The permissions of a folder and of every file in it."""
    return {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}


def test_people_s_words_are_their_keeper_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "made"
        with Store.open(folder / "feedback.db", write=True) as store:
            store.add_comparisons(ITEMS)
            names = ("feedback.db", "feedback.db.writer", "feedback.db-wal", "feedback.db-shm")
            assert modes(folder) == {"made": 0o700} | dict.fromkeys(names, 0o600)
            export(out=tmp_path / "out", feedback=folder / "feedback.db")
        assert modes(tmp_path)["out"] == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize(("given", "kept"), [(0o644, 0o600), (0o640, 0o640), (0o444, 0o400), (0o666, 0o600)])
def test_a_store_that_everybody_may_read_is_taken_from_them(store_path: Path, given: int, kept: int) -> None:
    store_path.chmod(given)
    Store.open(store_path).close()
    assert store_path.stat().st_mode & 0o777 == given, "who only reads changes nothing"
    Store.open(store_path, write=True).close()
    assert store_path.stat().st_mode & 0o777 == kept


def test_a_file_that_is_no_store_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("my own notes")
    (tmp_path / "notes.db").chmod(0o644)
    with pytest.raises(BadInput, match="not a database"):
        Store.open(tmp_path / "notes.db", write=True)
    assert (tmp_path / "notes.db").stat().st_mode & 0o777 == 0o644
