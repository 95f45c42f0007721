"""Which runs read a feedback store and what was made of them; `annotate verify` compares it with their records.

In: a store and a folder of runs. Out: runs by how they depend on entries of the store's log, and a verdict on the
store. A run that reads a store records the head of its chain, so the entries it saw are those up to that head; a head
that the chain does not know any more shows that rows were rewritten, which no chain can show by itself.

The bridge's own tables (sides of tasks, quarantine) are no part of the chain: here they are only read, and not compared
with what was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from align.core.config import BadInput
from align.core.files import files_under
from align.core.hashes import file_hash
from align.core.run_record import RunRecord, is_ours, read_run
from annotation.store.chain import GENESIS
from annotation.store.ledger import check
from annotation.store.store import Store

WRITERS = ("simulate", "import")  # stages that record the head after they wrote
DATA = (".jsonl", ".parquet")  # files of a run that another may name as its input
NAMED = 100  # damages named in one message


class DependentRun(NamedTuple):
    """A run that depends on something, and how."""

    run: str
    stage: str
    how: str


class VerifiedStore(NamedTuple):
    """A store that is what was written: its log, the runs that agree, and what could not be compared."""

    feedback: Path
    entries: int
    erasures: int
    erased: int
    head: str
    runs: int
    notes: list[str]


def verify(*, feedback: Path = Path("feedback.db"), runs: Path = Path("runs")) -> VerifiedStore:
    """Check a feedback store: the file, the chain, and the heads that runs in a folder recorded of it.

    Args:
        feedback: the feedback store.
        runs: a folder of runs, whose recorded heads are compared with the chain.

    Raises:
        BadInput: something is damaged, missing or rewritten; every damage is named.
    """
    if runs != Path("runs") and not runs.is_dir():
        raise BadInput(f"{runs}: no such folder of runs; name the one whose runs read this store with runs=")
    records, unreadable = read_records(runs)
    with Store.open(feedback) as store:
        entries = places(store)
        own = [record for record in records if _read_path(record) == feedback.resolve()]
        strange = [record for record in records if "feedback" in record.inputs and record not in own]
        own += [record for record in strange if _head(record) in entries]  # the same store, under another path
        fresh, since = _started_anew(store)
        before = [record for record in own if _head(record) not in entries and record.created < since]
        names: dict[str, list[str]] = {}
        for record in own:
            if record not in before:
                names.setdefault(_head(record) or "", []).append(record.path)
        faults = [line for row in store.read("PRAGMA integrity_check") for line in row[0].splitlines() if line != "ok"]
        chain = store.verify({head: " and ".join(paths) for head, paths in names.items()})
        erasures = store.read("SELECT COUNT(*) FROM bodies WHERE kind = 'erasure'")[0][0]
        beside = check(store)
    if problems := [*(f"the file itself: {fault}" for fault in faults), *chain.problems, *beside]:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise BadInput(f"{feedback}: damaged: {'; '.join(problems[:NAMED])}{more}")
    notes = [f"not compared, no readable run: {text}" for text in unreadable]
    if fresh:
        notes.append(
            f"the chain was started anew: campaign {', '.join(fresh)} found tasks that this store had not sent"
            + (f"; earlier runs read a store that is gone: {', '.join(r.path for r in before)}" if before else "")
        )
    if others := sum(_head(record) not in entries for record in strange):
        notes.append(f"not compared: {others} runs of other stores")
    return VerifiedStore(feedback, chain.entries, erasures, chain.erased, chain.head, len(own) - len(before), notes)


def read_records(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """Read the records of all runs under a folder, and list what is wrong with those that cannot be read."""
    records: list[RunRecord] = []
    unreadable: list[str] = []
    for file in [file for file in files_under(folder) if file.name == "run.json"]:
        if not is_ours(file.parent):
            continue
        try:
            records.append(read_run(file.parent))
        except BadInput as error:
            unreadable.append(str(error))
    return records, unreadable


def places(store: Store) -> dict[str, int]:
    """Return how many entries the chain had at each of its heads."""
    return {GENESIS: 0, **dict(store.read("SELECT entry_hash, sequence FROM log"))}


def readers(records: Iterable[RunRecord], at: Mapping[str, int], sequences: Sequence[int]) -> dict[str, DependentRun]:
    """Return the runs, by path, that read the store after one of these entries was written.

    Args:
        at: ``places`` of the store.
    """
    readers_by_path = {}
    for record in records:
        seen = at.get(_head(record) or "", 0) if record.stage not in WRITERS else 0
        if count := sum(sequence <= seen for sequence in sequences):
            readers_by_path[record.path] = DependentRun(record.path, record.stage, f"read {count} of these entries")
    return readers_by_path


def descendants(records: Sequence[RunRecord], origins: Mapping[str, DependentRun]) -> dict[str, DependentRun]:
    """Return runs by path that were made from others, directly or through further runs, by hashes or by path."""
    dependent = dict(origins)
    waiting = [record for record in records if record.path in origins]
    while waiting:
        origin = waiting.pop(0)
        hashes, folder = _hashes(origin), Path(origin.path).resolve()
        for record in records:
            inputs = {value["sha256"] for value in record.inputs.values()} | set(record.lineage.values())
            lies_there = any(Path(value["path"]).resolve().is_relative_to(folder) for value in record.inputs.values())
            if record.path not in dependent and (lies_there or inputs & hashes):
                dependent[record.path] = DependentRun(record.path, record.stage, f"made from {origin.path}")
                waiting.append(record)
    return {path: use for path, use in dependent.items() if path not in origins}


def _hashes(record: RunRecord) -> set[str]:
    """Return the hashes by which another run's record can name this one: its artefact, or one of its files."""
    folder = Path(record.path)
    files = [file for file in files_under(folder) if file.suffix in DATA]
    return {file_hash(file) for file in files} | ({record.artefact} if record.artefact else set())


def _head(record: RunRecord) -> str | None:
    return record.inputs.get("feedback", {}).get("sha256")


def _read_path(record: RunRecord) -> Path | None:
    given = record.inputs.get("feedback", {}).get("path")
    return Path(given).resolve() if given else None


def _started_anew(store: Store) -> tuple[list[str], str]:
    """List campaigns whose project held tasks that the store did not know, and when the last of them began."""
    query = (
        "SELECT name, (SELECT MIN(since) FROM guidelines WHERE campaign = name) FROM campaigns "
        "WHERE recovered ORDER BY name"
    )
    rows = store.read(query)
    return [row[0] for row in rows], max((row[1] or "" for row in rows), default="")
