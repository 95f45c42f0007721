"""What the store knows of a labelling server, withdrawn judgments, and stores written before there was a ledger."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from fixtures.judging import comparison

from align.cli.main import run
from align.core.config import BadInput
from align.core.records import Judgment
from annotation.store.database import APPLICATION_ID, MIGRATIONS
from annotation.store.erasure import ErasureTarget, remove
from annotation.store.ledger import Ledger, exclude, excluded, include
from annotation.store.lineage import verify
from annotation.store.store import Store
from annotation.store.tables import KnownAnswer, Pulled, Quarantined, Task

ITEM = comparison("which?", "this", "that")


def judged(ranking: list[list[int]], **more: object) -> Judgment:
    values = {"comparison_id": ITEM.id, "annotator": "ann", "source": "s", "ranking": ranking, "shown": [0, 1]}
    return Judgment.model_validate({**values, **more})


def test_a_withdrawn_judgment_stands_no_longer_but_stays_in_the_log(tmp_path: Path) -> None:
    with Store.open(tmp_path / "f.db", write=True) as store:
        store.add_comparisons([ITEM])
        store.add_judgments([judged([[0], [1]])])
        assert store.withdraw([(ITEM.id, "ann", "s"), (ITEM.id, "bob", "s")], "deleted on the server") == 1
        assert store.judgments() == [] and store.counts().judgments == 0 and store.counts().versions == 1
        assert store.withdraw([(ITEM.id, "ann", "s")], "again") == 0
        assert store.add_judgments([judged([[0], [1]])]) == 1  # the same word again is news once it was taken back
        assert [j.version for j in store.judgments()] == [2]
        assert store.add_judgments([judged([[0], [1]])]) == 0
        assert store.verify().ok
        assert remove(store, ErasureTarget("annotator", "ann")) == 3 and store.verify().ok


def test_what_a_person_wrote_is_part_of_the_judgment(tmp_path: Path) -> None:
    told = judged(
        [[0], [1]], rationale="shorter", improved="this, please", improved_from=0, ratings={"kind": [4, None]}
    )
    with Store.open(tmp_path / "f.db", write=True) as store:
        store.add_comparisons([ITEM])
        store.add_judgments([judged([[0], [1]]), told])
        (latest,) = store.judgments()
        assert latest == told.model_copy(update={"version": 2})
    with pytest.raises(ValueError, match="one value for each of 2"):
        judged([[0], [1]], ratings={"kind": [4]})
    with pytest.raises(ValueError, match="one response is the best"):
        judged([[0], [1]], improved="better")
    with pytest.raises(ValueError, match="set both or neither"):
        judged([[0], [1]], improved_from=0)
    assert judged([[0, 1]], improved="better").improved_from is None
    with pytest.raises(ValueError, match="none of the responses"):
        judged([[0], [1]], improved="better", improved_from=2)


def test_tasks_sides_and_what_came_back_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    task = Task("k1", ITEM.id, [1, 0], "gold", KnownAnswer([[1], [0]], family="help"), "guide")
    with Store.open(path, write=True) as store:
        ledger = Ledger(store, "spring")
        assert ledger.state() is None
        ledger.begin("http://host", 3, "{}", "hash", recovered=True)
        ledger.add_tasks([task])
        ledger.add_tasks([task._replace(shown=[0, 1])])  # sides are drawn once
        ledger.set_task_ids({"k1": 17})
        ledger.note([Pulled(5, "2026-01-01T00:00:00Z", 17, "k1", "ann", "d", "judgment")])
        ledger.quarantine([Quarantined(6, "2026-01-02T00:00:00Z", 17, "k1", "bob", "bogus choice", {"result": []})])
        ledger.advance("2026-01-01T00:00:00.000000Z")
    with Store.open(path) as store:
        ledger = Ledger(store, "spring")
        state = ledger.state()
        assert state and (state.project, state.watermark, state.recovered) == (3, "2026-01-01T00:00:00.000000Z", True)
        assert ledger.tasks() == {"k1": task._replace(task_id=17)}
        assert ledger.pulled()[5, "2026-01-01T00:00:00Z"].outcome == "judgment"
        assert [(q.annotation_id, q.reason, q.body) for q in ledger.quarantined()] == [
            (6, "bogus choice", {"result": []})
        ]
        assert Ledger(store, "autumn").tasks() == {} and Ledger(store, "autumn").state() is None
    with Store.open(path, write=True) as store:
        ledger = Ledger(store, "spring")
        ledger.forget([(5, "2026-01-01T00:00:00Z"), (6, "2026-01-02T00:00:00Z")])
        assert ledger.pulled() == {} and ledger.quarantined() == []


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with Store.open(tmp_path / "f.db", write=True) as store:
        store.add_comparisons([ITEM])
        ledger = Ledger(store, "spring")
        with pytest.raises(RuntimeError), store.transaction():
            store.add_judgments([judged([[0], [1]])])
            ledger.note([Pulled(5, "2026-01-01T00:00:00Z", 17, "k1", "ann", "d", "judgment")])
            raise RuntimeError
        assert store.judgments() == [] and ledger.pulled() == {}


def test_a_new_guideline_is_a_new_version_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    with Store.open(tmp_path / "f.db", write=True) as store:
        ledger = Ledger(store, "spring")
        first, second = ledger.guideline("be kind"), ledger.guideline("be kind and brief")
        assert (first[1], second[1]) == (1, 2) and first[0] != second[0]
        assert ledger.guideline("be kind") == first
        assert Ledger(store, "autumn").guideline("be kind") == (first[0], 1)


def test_an_exclusion_wants_a_reason(tmp_path: Path) -> None:
    with Store.open(tmp_path / "f.db", write=True) as store:
        with pytest.raises(BadInput, match="needs a reason"):
            exclude(store, "bob", " ")
        exclude(store, "bob", "gold accuracy 0.4")
        assert excluded(store) == {"bob": "gold accuracy 0.4"}
        include(store, "bob")
        assert excluded(store) == {}


def test_a_store_of_the_first_schema_gains_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;"
    connection.executescript(f"BEGIN; {MIGRATIONS[0]} {stamp} COMMIT;")
    connection.close()
    with Store.open(path) as store:
        assert excluded(store) == {} and store.judgments() == []
    with Store.open(path, write=True) as store:
        store.add_comparisons([ITEM])
        Ledger(store, "spring").add_tasks([Task("k", ITEM.id, [0, 1])])
        assert store.verify().ok and list(Ledger(store, "spring").tasks()) == ["k"]


@pytest.mark.parametrize(
    ("table", "damage"),
    [
        ("tasks", "shown = '[0'"),
        ("tasks", "purpose = 'play'"),
        ("tasks", """answer = '{"ranking": "x"}'"""),
        ("campaigns", "interface = '[]'"),
        ("campaigns", "project = 'three'"),
        ("quarantine", "body = '{'"),
        ("pulled", "task_id = 'x'"),
        ("pulled", "created_at = 'yesterday'"),
        ("campaigns", "watermark = 'soon'"),
        ("stamps", "task_id = 'zz'"),
        ("excluded", "reason = x'ff'"),
        ("reopened", "people = 'many'"),
    ],
)
def test_damage_beside_the_chain_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, damage: str
) -> None:
    path = tmp_path / "f.db"
    with Store.open(path, write=True) as store:
        store.add_comparisons([ITEM])
        ledger = Ledger(store, "spring")
        ledger.begin("http://host", 3, '{"labels": ["yes", "no"]}', "hash", recovered=False)
        ledger.add_tasks([Task("k1", ITEM.id, [1, 0], "gold", KnownAnswer([[1], [0]]))])
        ledger.note([Pulled(5, "2026-01-01T00:00:00Z", 17, "k1", "ann", "d", "judgment")])
        ledger.quarantine([Quarantined(6, "2026-01-02T00:00:00Z", 17, "k1", "bob", "bogus choice", {"result": []})])
        store.add_judgments([judged([[0], [1]]), judged([[1], [0]], annotator="bob")])
        ledger.stamp(17, "2026-01-01T00:00:00Z")
        ledger.set_reopened({"k1": 3})
        exclude(store, "bob", "careless")
    assert verify(feedback=path, runs=tmp_path).entries == 3
    with Store.open(path, write=True) as store:
        store.write(f"UPDATE {table} SET {damage}", [()])
    with pytest.raises(BadInput, match=f"damaged: table {table}, row .*restore a backup") as error:
        verify(feedback=path, runs=tmp_path)
    assert "\n" not in str(error.value)
    for verb, place in (("pairs", "run"), ("agreement", "run"), ("export", "out")):
        assert run(["annotate", verb, f"feedback={path}", f"{place}={tmp_path / verb}"]) in (0, 2)
    assert "internal" not in capsys.readouterr().err
