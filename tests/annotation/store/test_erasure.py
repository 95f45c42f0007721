"""What was erased is gone from every page, stays out, and everything that was made of it is named."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from campaigns import answer, choice, for_good, tasks, text
from fixtures.campaigns import judged
from fixtures.judging import ITEMS, comparison, edit, judgment, said

from align.cli.main import run as align
from align.core.config import BadInput, StageConfig
from align.core.files import write_jsonl
from align.core.run_record import read_run
from align.core.runs import Run
from align.core.stage import stage
from annotation.agreement.run import AgreementConfig, agreement
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.campaign.text import lines as lines_of
from annotation.importers.run import ImportConfig, import_preferences
from annotation.label_studio.accounts import create_annotator
from annotation.label_studio.server import Server
from annotation.label_studio.studio import Studio
from annotation.pairs.run import PairsConfig, pairs
from annotation.store.erasure import ErasureTarget, erase, remove, rows_of
from annotation.store.exports import export
from annotation.store.ledger import Ledger, exclude, pseudonym
from annotation.store.lineage import verify
from annotation.store.store import Store
from annotation.store.tables import KnownAnswer, Pulled, Quarantined, Task

NAME, SECRET = "zebedee quince", "my own account of the matter, which nobody else shall read"
KEY = "key-of-the-marmots-task"  # long enough never to stand in a salt or a hash by chance
ITEM = comparison("what does the marmot eat in the evening?", "herbs and roots, mostly", "the marmot eats whole cars")
OTHER = [comparison(f"question {n}", f"yes, {n} it is", f"no, not {n} at all") for n in range(30)]


def erasing(**settings: Any) -> Iterator[str]:
    """The lines of an erasure, as they come."""
    for part in erase(**settings):
        yield from lines_of(part)


def on_disk(path: Path) -> bytes:
    """What the store and its side files hold."""
    files = [file for file in sorted(path.parent.iterdir()) if file.name.startswith(path.name)]
    assert files
    return b"".join(file.read_bytes() for file in files)


def full_store(path: Path) -> Path:
    """Judgments of many sizes, so that pages split and rows move, and the person in every table that names anybody."""
    with Store.open(path, write=True) as store:
        store.add_comparisons([ITEM, *OTHER])
        for size in (10, 400, 3000):  # versions: the later ones push the earlier ones about
            store.add_judgments(
                judgment(item, name, source="s", rationale=f"{SECRET if name == NAME else 'mine'} {'x' * (size + n)}")
                for n, item in enumerate([ITEM, *OTHER])
                for name in ("ann", NAME, "zeb")
            )
        store.withdraw([(OTHER[0].id, NAME, "s")], "deleted on the server")
        ledger = Ledger(store, "spring")
        ledger.begin("http://host/", 3, "{}", "hash", recovered=False)
        ledger.guideline("be kind")
        ledger.add_tasks([Task(KEY, ITEM.id, [1, 0], "gold", KnownAnswer(ranking=[[0], [1]]), "guide", 17)])
        ledger.note([Pulled(5, "2026-01-01T00:00:00Z", 17, KEY, NAME, "digest-of-it", "judgment")])
        body = {"result": [SECRET], "completed_by": 7}
        ledger.quarantine([Quarantined(6, "2026-01-02T00:00:00Z", 17, KEY, NAME, f"has no choice '{SECRET}'", body)])
        exclude(store, NAME, f"{NAME} was careless")
    return path


def test_neither_name_nor_words_are_on_disk_afterwards(tmp_path: Path) -> None:
    path = full_store(tmp_path / "feedback.db")
    other = sqlite3.connect(path)  # another program, which leaves what it deletes in the file
    other.execute("PRAGMA secure_delete = OFF")
    other.execute("DELETE FROM quarantine")
    other.commit()
    other.close()
    assert NAME.encode() in on_disk(path) and SECRET.encode() in on_disk(path)
    (tmp_path / "runs").mkdir()
    lines = "\n".join(erasing(annotator=NAME, feedback=path, runs=tmp_path / "runs"))
    assert "94 bodies, 1 pulled, 1 excluded" in lines and "94 erased" in lines
    for word in (NAME, "zebedee", "quince", SECRET, SECRET[10:40], "digest-of-it"):
        assert word.encode() not in on_disk(path), word
    with Store.open(path) as store:
        assert store.verify().ok and {j.annotator for j in store.judgments()} == {"ann", "zeb"}
    lines = "\n".join(erasing(comparison=ITEM.id, feedback=path, runs=tmp_path / "runs"))
    assert "http://host/ project 3 (campaign spring): tasks 17:" in lines
    for word in (ITEM.id, "marmot", "herbs and roots", KEY):
        assert word.encode() not in on_disk(path), word
    with Store.open(path) as store:
        assert store.verify().ok and store.counts().comparisons == 30 and Ledger(store, "spring").tasks() == {}


def test_every_table_that_names_somebody_is_reached(tmp_path: Path) -> None:
    """Also one that a later version adds."""
    path = full_store(tmp_path / "feedback.db")
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE paid (annotator TEXT, hours REAL)")
    connection.execute("CREATE TABLE seen (campaign TEXT, key TEXT)")
    connection.execute("INSERT INTO paid VALUES (?, 2.5)", (NAME,))
    connection.execute("INSERT INTO seen VALUES ('spring', ?), ('spring', 'k1')", (KEY,))
    connection.commit()
    connection.close()
    with Store.open(path, write=True) as store:
        assert rows_of(store, ErasureTarget("annotator", NAME))["paid"] == 1
        assert rows_of(store, ErasureTarget("comparison", ITEM.id)) == {
            "bodies": 10, "pulled": 1, "quarantine": 1, "seen": 1, "tasks": 1
        }  # fmt: skip
        remove(store, ErasureTarget("annotator", NAME))
        remove(store, ErasureTarget("comparison", ITEM.id))
        assert (
            rows_of(store, ErasureTarget("annotator", NAME))
            == rows_of(store, ErasureTarget("comparison", ITEM.id))
            == {}
        )
        assert store.read("SELECT key FROM seen") == [("k1",)]


def test_nothing_brings_it_back(tmp_path: Path) -> None:
    path = full_store(tmp_path / "feedback.db")
    with Store.open(path, write=True) as store:
        assert not store.erased_ids().marks
        remove(store, ErasureTarget("annotator", NAME))
        remove(store, ErasureTarget("comparison", ITEM.id))
        assert store.add_comparisons([ITEM]) == 0
    with Store.open(path, write=True) as store:
        head = store.head()
        assert store.add_comparisons([ITEM]) == 0
        assert store.add_judgments([judgment(ITEM, "ann"), judgment(OTHER[1], NAME)]) == 0
        assert store.passed_over == 3 and store.head() == head
        assert store.add_judgments([judgment(OTHER[1], NAME + "s"), judgment(OTHER[1], "zebedee")]) == 2
        erased_ids = store.erased_ids()
        assert erased_ids.holds("task", KEY) and not erased_ids.holds("task", ITEM.id)
    with Store.open(tmp_path / "other.db", write=True) as other:
        assert other.add_comparisons([ITEM]) == 1  # it is this store's promise, no other's
    edit(path, "UPDATE secret SET salt = zeroblob(32)")
    with pytest.raises(BadInput, match="salt was changed: what was erased could be taken again"):
        verify(feedback=path, runs=tmp_path)


def test_an_import_of_the_same_file_counts_what_stays_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "chosen": f"yes, {n}", "rejected": f"no, {n}"} for n in range(4)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    feedback = tmp_path / "feedback.db"
    again = ImportConfig(run=tmp_path / "again", data=tmp_path / "rows.jsonl", feedback=feedback)
    import_preferences(again.model_copy(update={"run": tmp_path / "first"}))
    with Store.open(feedback) as store:
        gone = store.comparisons()[0].id
    list(erasing(comparison=gone, feedback=feedback, runs=tmp_path))
    record = import_preferences(again)
    assert record.headline["new_judgments"] == 0 and record.dropped == {"erased from the store": 2}
    with Store.open(feedback) as store:
        assert gone not in store.splits() and store.counts().judgments == 3


class Made(StageConfig):
    """A stage that is made from a run, or from one of its files."""

    INPUTS: ClassVar[tuple[str, ...]] = ("source",)

    stage: Literal["made"] = "made"
    source: Path


@stage
def made(config: Made, run: Run) -> dict[str, Any]:
    run.append("rows.jsonl", [{"of": str(config.source)}])
    return {}


def campaign_of_runs(folder: Path) -> Path:
    """A store, and runs before and after the person judged, with what was made of them."""
    feedback, runs = folder / "feedback.db", folder / "runs"
    with Store.open(feedback, write=True) as store:
        store.add_comparisons(OTHER)
        store.add_judgments(said(item, item.responses[0].text, "ann") for item in OTHER)
    pairs(PairsConfig(run=runs / "before", feedback=feedback))
    made(Made(run=runs / "made-before", source=runs / "before"))
    with Store.open(feedback, write=True) as store:
        store.add_judgments(said(item, item.responses[0].text, "quincy") for item in OTHER[:20])
    pairs(PairsConfig(run=runs / "after", feedback=feedback, seed=1))
    agreement(AgreementConfig(run=runs / "agreement", feedback=feedback))
    made(Made(run=runs / "child", source=runs / "after"))
    made(Made(run=runs / "grandchild", source=runs / "child" / "rows.jsonl"))
    (runs / "kept").mkdir()
    (folder / "copy.jsonl").write_bytes((runs / "after" / "train.jsonl").read_bytes())
    made(Made(run=runs / "of-a-copy", source=folder / "copy.jsonl"))
    (runs / "kept" / "old-pairs.jsonl").write_bytes((runs / "before" / "train.jsonl").read_bytes())
    return runs


def test_whatever_used_it_is_named_and_nothing_else(tmp_path: Path) -> None:
    runs = campaign_of_runs(tmp_path)
    export(out=runs / "export", feedback=tmp_path / "feedback.db")
    lines = list(erasing(annotator="quincy", feedback=tmp_path / "feedback.db", runs=runs))
    named = {line.split(" (")[0].strip().removeprefix(f"{runs}/"): line for line in lines if " (" in line}
    assert set(named) == {"after", "agreement", "child", "grandchild", "of-a-copy"}
    assert "read 20 of these entries" in named["after"] and "made from" in named["grandchild"]
    listed = {line.strip().removeprefix(f"{runs}/") for line in lines}
    assert "kept/old-pairs.jsonl" in listed and "made-before/rows.jsonl" not in listed
    assert {"agreement/agreement.json", "export/judgments.jsonl"} <= listed  # by name, and by alias
    again = list(erasing(annotator="quincy", feedback=tmp_path / "feedback.db", runs=runs))
    assert "was erased before" in again[0] and set(lines[2:7]) <= set(again)

    shared = OTHER[3]
    lines = list(erasing(comparison=shared.id, feedback=tmp_path / "feedback.db", runs=runs))
    assert any(line.startswith(f"  {runs}/made-before (made): made from {runs}/before") for line in lines)
    holds = {f"{name}/{file.name}" for name in ("before", "after") for file in (runs / name).glob("*.jsonl")
             if shared.id in file.read_text()}  # fmt: skip
    assert holds and {f"  {runs}/{file}" for file in holds} <= set(lines)


def test_parquet_and_runs_that_cannot_be_read_are_told(tmp_path: Path, store_path: Path) -> None:
    runs = tmp_path / "runs"
    export(out=runs / "export", feedback=store_path, format="parquet", names=True)
    (runs / "odd.parquet").write_bytes(b"no table")
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    told = "\n".join(erasing(annotator="ann", feedback=store_path, runs=runs))
    assert f"  {runs}/export/judgments.parquet" in told and "odd.parquet" not in told
    assert f"runs that cannot be read, and may be made of it:\n  {runs}/broken/run.json" in told


def test_a_text_that_also_stands_elsewhere_is_told(tmp_path: Path) -> None:
    twin = comparison("the very same long question, asked of others?", "one answer of four", "another answer")
    item = comparison("the very same long question, asked of others?", "one answer of four", "a third answer")
    with Store.open(tmp_path / "feedback.db", write=True) as store:
        store.add_comparisons([twin, item])
        store.add_judgments([judgment(twin, "ann", rationale="as bob said"), judgment(twin, "bob")])
    told = "\n".join(erasing(comparison=item.id, feedback=tmp_path / "feedback.db", runs=tmp_path))
    assert f"bodies.body, 1 rows (comparisons {twin.id})" in told
    told = "\n".join(erasing(annotator="bob", feedback=tmp_path / "feedback.db", runs=tmp_path))
    assert f"bodies.body, 1 rows (comparisons {twin.id})" in told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "exactly one of annotator=NAME and comparison=ID"),
        (["annotator=ann", "comparison=x"], "exactly one of"),
        (["annotator=anm"], "knows no annotator 'anm'; did you mean 'ann'?"),
        (["comparison=ffff"], "knows no comparison 'ffff'"),
        (["annotator=ann", "feedback=none.db"], "no such feedback store"),
        (["annotator=ann", "colour=red"], "unknown setting 'colour'"),
    ],
)
def test_what_cannot_be_erased(
    store_path: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words if "feedback=none.db" in words else [*words, f"feedback={store_path}"]
    assert align(["annotate", "erase", *given]) == 2
    assert expected in capsys.readouterr().err
    with Store.open(store_path) as store:
        assert store.counts() == (4, 8, 8, 2, 0)
    assert not Path("none.db").exists()


def test_an_open_reader_does_not_cost_the_account(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = store_path.parent / "runs"
    pairs(PairsConfig(run=runs / "pairs", feedback=store_path))
    with Store.open(store_path):
        monkeypatch.setattr("annotation.store.database.PATIENCE", 0.1)
        told = erasing(annotator="ann", feedback=store_path, runs=runs)
        lines: list[str] = []
        with pytest.raises(BadInput, match="a reader keeps old pages on disk; end it and erase once more"):
            lines.extend(told)
    assert any("runs/pairs (pairs): read 4" in line for line in lines)
    lines = list(erasing(annotator="ann", feedback=store_path, runs=runs))
    assert "was erased before" in lines[0] and any("runs/pairs (pairs): read 4" in line for line in lines)
    assert b'"annotator": "ann"' not in on_disk(store_path)


def test_pulled_again_it_stays_out(server: Server, studio: Studio, campaign: Campaign) -> None:
    """The person's annotations stay on the server; so do a comparison's tasks, until they are deleted there."""
    push(campaign, studio)
    shown = tasks(studio, campaign)
    for number in "012":
        answer(studio, shown[number], [for_good(shown[number]), text("rationale", SECRET)])
    answer(studio, shown["3"], [choice("banana")])
    assert pull(campaign, studio).outcomes == {"judgment": 3, "quarantine": 1}
    person = pseudonym(studio.url, studio.connection.read("api/current-user/whoami")["id"])
    told = "\n".join(erasing(annotator=person, feedback=campaign.feedback, runs=campaign.feedback.parent))
    assert f"{studio.url} project" in told and "DELETE api/annotations/ID/" in told
    assert judged(campaign) == {}
    for full in (False, True):
        found = pull(campaign, studio, full=full)
        assert found.outcomes == {} and found.quarantined == 0
    answer(studio, shown["5"], [for_good(shown["5"])])
    assert pull(campaign, studio).outcomes == {"erased": 1}
    number = tasks(studio, campaign)["0"].annotations[0].id
    other = create_annotator(server.url, server.token, f"p{number}{time.time_ns()}")[
        0
    ]  # as if it were somebody else's word
    account = next(account for account, address in studio.users().items() if address == other)
    studio.connection.send("PATCH", f"api/annotations/{number}/", body={"completed_by": account})
    for full in (False, True):
        found = pull(campaign, studio, full=full)
        assert (found.judgments, found.quarantined) == (0, 0)
    number = answer(studio, shown["1"], [for_good(shown["1"])])  # somebody else's, beside the one that was erased
    studio.connection.send("PATCH", f"api/annotations/{number}/", body={"completed_by": account})
    assert pull(campaign, studio).judgments == 1
    for word in (person, SECRET, "banana"):
        assert word.encode() not in on_disk(campaign.feedback)

    with Store.open(campaign.feedback) as store:
        gone = store.comparisons()[0]
    told = "\n".join(erasing(comparison=gone.id, feedback=campaign.feedback, runs=campaign.feedback.parent))
    assert "tasks " in told and "candidates.jsonl" in told
    again = push(campaign, studio)
    assert (again.tasks, again.new) == (7, 0) and again.dropped == {"comparisons that were erased": 1}
    assert pull(campaign, studio, full=True).quarantined == 0
    assert gone.responses[0].text.encode() not in on_disk(campaign.feedback)


def test_verify_asks_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = campaign_of_runs(tmp_path)
    feedback = tmp_path / "feedback.db"
    list(erasing(annotator="quincy", feedback=feedback, runs=runs))
    found = verify(feedback=feedback, runs=runs)
    assert (found.entries, found.erased, found.erasures, found.runs) == (81, 20, 1, 3)
    feedback.rename(tmp_path / "moved.db")
    assert verify(feedback=tmp_path / "moved.db", runs=runs).runs == 3
    (tmp_path / "moved.db").rename(feedback)

    edit(feedback, "DELETE FROM log WHERE sequence > 70", "DELETE FROM bodies WHERE sequence > 70",
         "UPDATE tip SET length = 70, head = (SELECT entry_hash FROM log WHERE sequence = 70)")  # fmt: skip
    assert align(["annotate", "verify", f"feedback={feedback}", f"runs={runs}"]) == 2
    said = capsys.readouterr().err
    assert f"which {runs}/after and {runs}/agreement recorded, is not in this chain" in said
    assert f"{runs}/before" not in said
    (tmp_path / "none").mkdir()
    assert align(["annotate", "verify", f"feedback={feedback}", f"runs={tmp_path / 'none'}"]) == 2  # bodies are gone
    assert "row 61: its text is gone, and no erasure says so" in capsys.readouterr().err


def test_a_store_that_was_started_anew_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = campaign_of_runs(tmp_path)
    feedback = tmp_path / "feedback.db"
    for file in runs.glob("*/run.json"):
        record = read_run(file.parent).model_copy(update={"created": "2020-01-01T00:00:00+00:00"})
        file.write_text(record.sealed())
    for file in tmp_path.glob("feedback.db*"):
        file.unlink()
    with Store.open(feedback, write=True) as store:
        store.add_comparisons(ITEMS)
    with pytest.raises(BadInput, match="is not in this chain"):
        verify(feedback=feedback, runs=runs)
    with Store.open(feedback, write=True) as store:
        ledger = Ledger(store, "spring")
        ledger.begin("http://host/", 3, "{}", "hash", recovered=True)
        ledger.guideline("be kind")
        store.add_judgments(said(item, item.responses[0].text, "ann") for item in ITEMS)
    pairs(PairsConfig(run=runs / "new", feedback=feedback))
    found = verify(feedback=feedback, runs=runs)
    assert found.runs == 1 and "started anew" in found.notes[0] and f"{runs}/after" in found.notes[0]
    edit(feedback, "UPDATE log SET entry_hash = 'x' || substr(entry_hash, 2) WHERE sequence = 8",
         "UPDATE tip SET head = 'x' || substr(head, 2)")  # fmt: skip
    with pytest.raises(BadInput, match=f"which {runs}/new recorded"):  # what came later is not excused
        verify(feedback=feedback, runs=runs)
