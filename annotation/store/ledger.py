"""What was sent to a labelling server and what came back: sides, tasks, sync state, quarantine, guidelines.

It lives in ``feedback.db`` beside the chain of judgments and is written in the same transactions. The order in which
responses were shown stands here and nowhere on the server. Not here: what judgments say (``store.py``), and the
server (``studio.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from align.core.config import BadInput
from annotation.store.store import Store
from annotation.store.tables import (
    COUNT,
    OFFER,
    PULLED,
    PURPOSE,
    QUARANTINED,
    STAMP,
    STATE,
    TASK,
    WORDS,
    Answer,
    CampaignState,
    Pulled,
    Purpose,
    Quarantined,
    Task,
    checked,
)


class Ledger:
    """The labelling side of an open store; one campaign at a time."""

    def __init__(self, store: Store, campaign: str) -> None:
        self.store, self.campaign = store, campaign

    # --- the campaign --------------------------------------------------------------------------------------

    def state(self) -> CampaignState | None:
        """Where this campaign lives, or None before its first push."""
        query = (
            "SELECT name, url, project, interface, config_hash, watermark, recovered, pulled_at FROM campaigns "
            "WHERE name = ?"
        )
        rows = self.store.read(query, (self.campaign,))
        return next(iter(checked(self.store, "campaigns", STATE, rows)), None)

    def begin(self, url: str, project: int, interface: str, config_hash: str, *, recovered: bool) -> None:
        """Note where the campaign lives; ``recovered`` when tasks stood there that this store did not send."""
        with self.store.transaction():
            self.store.write(
                "INSERT INTO campaigns VALUES (?, ?, ?, ?, ?, NULL, ?, NULL)",
                [(self.campaign, url, project, interface, config_hash, int(recovered))],
            )

    def advance(self, watermark: str | None) -> None:
        """Remember up to which change the server was read, and that it was read now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        statement = "UPDATE campaigns SET watermark = ?, pulled_at = ? WHERE name = ?"
        self.store.write(statement, [(watermark, now, self.campaign)])

    # --- tasks ---------------------------------------------------------------------------------------------

    def tasks(self) -> dict[str, Task]:
        """Every task of the campaign by key, sent or about to be."""
        query = (
            "SELECT key, comparison_id, shown, purpose, answer, guideline, task_id, pages FROM tasks "
            "WHERE campaign = ? ORDER BY key"
        )
        rows = self.store.read(query, (self.campaign,))
        return {task.key: task for task in checked(self.store, "tasks", TASK, rows, decode=(2, 4))}

    def add_tasks(self, tasks: Iterable[Task]) -> None:
        """Write tasks down before they are sent: a sender that is killed in between has lost no side.

        A task that stands there keeps its sides, if they were drawn, and its guideline.
        """
        new = list(tasks)
        rows = [
            (
                self.campaign,
                task.key,
                task.comparison_id,
                json.dumps(task.shown),
                task.purpose,
                _written(task.answer),
                task.guideline,
                task.task_id,
                task.pages,
            )
            for task in new
        ]
        drawn = [(json.dumps(task.shown), task.guideline, task.task_id, self.campaign, task.key) for task in new]
        with self.store.transaction():
            self.store.write("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self.store.write(
                "UPDATE tasks SET shown = ?, guideline = ?, task_id = ? "
                "WHERE campaign = ? AND key = ? AND shown = '[]'",
                drawn,
            )

    def set_answers(self, tasks: Iterable[Task]) -> None:
        """Keep what is right about comparisons; one that stands in the queue already becomes what the task says."""
        new = list(tasks)
        with self.store.transaction():
            self.add_tasks(new)
            self.store.write(
                "UPDATE tasks SET purpose = ?, answer = ? WHERE campaign = ? AND key = ?",
                [(task.purpose, _written(task.answer), self.campaign, task.key) for task in new],
            )

    def take_back(self, tasks: Iterable[Task]) -> None:
        """Put down what tasks on the server were found to show, in place of what was thought."""
        new = list(tasks)
        rows = [(json.dumps(t.shown), t.guideline, t.task_id, t.pages, self.campaign, t.key) for t in new]
        with self.store.transaction():
            self.add_tasks(new)
            self.store.write(
                "UPDATE tasks SET shown = ?, guideline = ?, task_id = ?, pages = ? WHERE campaign = ? AND key = ?", rows
            )

    def know_again(self, keys: Iterable[str]) -> None:
        """Tasks whose sides were not known, and are."""
        rows = [(self.campaign, key) for key in keys]
        self.store.write("DELETE FROM quarantine WHERE campaign = ? AND key = ? AND annotation_id = 0", rows)

    def set_pages(self, pages: Mapping[str, str]) -> None:
        """What tasks show, by key."""
        rows = [(digest, self.campaign, key) for key, digest in pages.items()]
        self.store.write("UPDATE tasks SET pages = ? WHERE campaign = ? AND key = ?", rows)

    def set_guideline(self, keys: Iterable[str], guideline: str) -> None:
        """Which guidelines these tasks show."""
        rows = [(guideline, self.campaign, key) for key in keys]
        self.store.write("UPDATE tasks SET guideline = ? WHERE campaign = ? AND key = ?", rows)

    def set_task_ids(self, ids: Mapping[str, int | None]) -> None:
        """Which task on the server carries which key (None: it is gone)."""
        rows = [(number, self.campaign, key) for key, number in ids.items()]
        with self.store.transaction():
            self.store.write("UPDATE tasks SET task_id = ? WHERE campaign = ? AND key = ?", rows)

    def reopened(self) -> dict[str, int]:
        """How many people in all were asked to judge a task, by key, where that is more than the campaign's votes."""
        rows = self.store.read("SELECT key, people FROM reopened WHERE campaign = ?", (self.campaign,))
        return dict(checked(self.store, "reopened", COUNT, rows))

    def set_reopened(self, people: Mapping[str, int]) -> None:
        """Remember how many people in all are asked to judge each of these tasks."""
        rows = [(self.campaign, key, count) for key, count in people.items()]
        self.store.write("INSERT OR REPLACE INTO reopened VALUES (?, ?, ?)", rows)

    # --- what came back ------------------------------------------------------------------------------------

    def pulled(self) -> dict[tuple[int, str], Pulled]:
        """Every annotation read so far that still stands, by (id, creation time)."""
        query = (
            "SELECT annotation_id, created_at, task_id, key, annotator, digest, outcome, seconds FROM pulled "
            "WHERE campaign = ?"
        )
        rows = checked(self.store, "pulled", PULLED, self.store.read(query, (self.campaign,)))
        return {(row.annotation_id, row.created_at): row for row in rows}

    def note(self, rows: Iterable[Pulled]) -> None:
        """Remember annotations that were read, in place of what was known of them."""
        self.store.write(
            "INSERT OR REPLACE INTO pulled VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [(self.campaign, *row) for row in rows]
        )

    def forget(self, keys: Iterable[tuple[int, str]]) -> None:
        """Annotations that are gone from the server, with what was in quarantine of them."""
        found = [(self.campaign, *key) for key in keys]
        for table in ("pulled", "quarantine"):
            self.store.write(f"DELETE FROM {table} WHERE campaign = ? AND annotation_id = ? AND created_at = ?", found)

    def stamps(self) -> dict[int, str]:
        """Tasks that held an answer when they were last read, by id, with the server's time of their last change."""
        rows = self.store.read("SELECT task_id, updated_at FROM stamps WHERE campaign = ?", (self.campaign,))
        return dict(checked(self.store, "stamps", STAMP, rows))

    def stamp(self, stamps: Mapping[int, str | None]) -> None:
        """Remember when tasks that were read changed last (None: nobody's answer stands there any more)."""
        kept = [(self.campaign, task, moment) for task, moment in stamps.items() if moment is not None]
        gone = [(self.campaign, task) for task, moment in stamps.items() if moment is None]
        self.store.write("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?)", kept)
        self.store.write("DELETE FROM stamps WHERE campaign = ? AND task_id = ?", gone)

    def quarantine(self, rows: Iterable[Quarantined]) -> None:
        """Set annotations aside with the reason why they are no judgments."""
        self.store.write(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(self.campaign, *row[:6], json.dumps(row.body) if row.body is not None else None) for row in rows],
        )

    def release(self, keys: Iterable[tuple[int, str]]) -> None:
        """Annotations that can be read now leave quarantine."""
        self.store.write(
            "DELETE FROM quarantine WHERE campaign = ? AND annotation_id = ? AND created_at = ?",
            [(self.campaign, *key) for key in keys],
        )

    def quarantined(self) -> list[Quarantined]:
        """Everything that stands in quarantine, in the order of annotation ids."""
        query = (
            "SELECT annotation_id, created_at, task_id, key, annotator, reason, body FROM quarantine "
            "WHERE campaign = ? ORDER BY annotation_id, created_at"
        )
        return checked(self.store, "quarantine", QUARANTINED, self.store.read(query, (self.campaign,)), decode=(6,))

    # --- guidelines ----------------------------------------------------------------------------------------

    def guideline(self, text: str) -> tuple[str, int]:
        """Hash and version number (from 1) of a guideline text; a text that is new starts a new version."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self.store.transaction():
            self.store.write(
                "INSERT OR IGNORE INTO guidelines (campaign, sha256, text, since) VALUES (?, ?, ?, ?)",
                [(self.campaign, digest, text, now)],
            )
        known = [
            row[0]
            for row in self.store.read(
                "SELECT sha256 FROM guidelines WHERE campaign = ? ORDER BY version", (self.campaign,)
            )
        ]
        return digest, known.index(digest) + 1


def source_of(campaign: str, key: str) -> str:
    """What judgments on a task are known by in the store."""
    return f"label-studio:{campaign}:{key}"


def pseudonym(url: str, account: int | str | None) -> str:
    """What an account is called in the store: never its address."""
    return f"person-{hashlib.sha256(f'{url}#{account}'.encode()).hexdigest()[:8]}"


def labels(store: Store) -> dict[str, tuple[str, ...]]:
    """The labels that each campaign of the store offers, where it asks for one."""
    found = checked(store, "campaigns", OFFER, store.read("SELECT name, interface FROM campaigns"), decode=(1,))
    return {name: tuple(interface.get("labels") or ()) for name, interface in found}


def purposes(store: Store) -> list[tuple[str, str, str, Purpose]]:
    """Campaign, key, comparison and purpose of every task of the store that is more than work."""
    rows = store.read("SELECT campaign, key, comparison_id, purpose FROM tasks WHERE purpose != 'work'")
    return checked(store, "tasks", PURPOSE, rows)


def check(store: Store) -> list[str]:
    """What no chain covers, read whole: what is wrong with it, table by table; empty when all of it can be read."""
    reads: list[Callable[[], object]] = [lambda: labels(store), lambda: excluded(store)]
    for (campaign,) in store.read("SELECT name FROM campaigns UNION SELECT campaign FROM tasks ORDER BY 1"):
        ledger = Ledger(store, campaign)
        reads += [ledger.state, ledger.tasks, ledger.pulled, ledger.quarantined, ledger.stamps, ledger.reopened]
    problems = []
    for read in reads:
        try:
            read()
        except BadInput as error:
            problems.append(str(error).removeprefix(f"{store.path}: damaged: "))
    return problems


def sources(store: Store, purpose: Purpose) -> set[str]:
    """The sources of judgments on tasks of a purpose, in every campaign of the store."""
    rows = store.read("SELECT campaign, key FROM tasks WHERE purpose = ?", (purpose,))
    return {source_of(campaign, key) for campaign, key in rows}


def exclude(store: Store, annotator: str, reason: str) -> None:
    """Leave an annotator's judgments out of pairs from now on, in every campaign; recorded with the reason."""
    if not reason.strip():
        raise BadInput(f"excluding {annotator} needs a reason; it is kept beside the exclusion")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    store.write("INSERT OR REPLACE INTO excluded VALUES (?, ?, ?)", [(annotator, reason, now)])


def include(store: Store, annotator: str) -> None:
    """Take an exclusion back."""
    store.write("DELETE FROM excluded WHERE annotator = ?", [(annotator,)])


def excluded(store: Store) -> dict[str, str]:
    """Annotators that were excluded, with the reason."""
    rows = store.read("SELECT annotator, reason FROM excluded ORDER BY annotator")
    return dict(checked(store, "excluded", WORDS, rows))


def _written(answer: Answer | None) -> str | None:
    return None if answer is None else json.dumps(answer._asdict())


def gold_rankings(store: Store) -> dict[str, list[list[int]]]:
    """The right ranking of every comparison that is a gold task of some campaign of a store, by comparison id."""
    campaigns = store.read("SELECT DISTINCT campaign FROM tasks WHERE purpose = 'gold' ORDER BY campaign")
    found = {}
    for (campaign,) in campaigns:
        for task in Ledger(store, campaign).tasks().values():
            if task.purpose == "gold" and task.answer is not None and task.answer.ranking is not None:
                found[task.comparison_id] = task.answer.ranking
    return found
