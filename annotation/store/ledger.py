"""Keep what was sent to a labelling server and what came back: sides, tasks, sync state, quarantine, guidelines.

It lives in ``feedback.db`` beside the chain of judgments and is written in the same transactions. The order in which
responses were shown is recorded here and nowhere on the server. Not here: judgments (``store.py``), and the server
(``studio.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import Json

from align.core.config import BadInput
from annotation.store.store import Store
from annotation.store.tables import (
    CampaignState,
    GuidelineVersion,
    KnownAnswer,
    Moment,
    OfferedLabels,
    Pulled,
    Purpose,
    Quarantined,
    Refresh,
    RowT,
    Task,
    insert,
    select,
    stored,
)

OWN = "WHERE campaign = ?"


class Ledger:
    """The labelling side of an open store; one campaign at a time."""

    def __init__(self, store: Store, campaign: str) -> None:
        self.store, self.campaign = store, campaign

    # --- the campaign --------------------------------------------------------------------------------------

    def state(self) -> CampaignState | None:
        """Return the campaign's server and project, or None before its first push."""
        rows = select(self.store, CampaignState, "campaigns", "WHERE name = ?", [self.campaign])
        return next(iter(rows), None)

    def pushed_state(self) -> CampaignState:
        """Return the server and project of a campaign that was pushed.

        Raises:
            BadInput: it was not.
        """
        if state := self.state():
            return state
        raise BadInput(f"{self.store.path}: campaign '{self.campaign}' was never pushed from here; push it first")

    def begin(self, url: str, project: int, interface: str, config_hash: str, *, recovered: bool) -> None:
        """Note where the campaign lives; ``recovered`` when the project held tasks that this store did not send."""
        state = CampaignState(self.campaign, url, project, interface, config_hash, None, recovered)
        insert(self.store, "campaigns", [state])

    def advance(self, watermark: str | None) -> None:
        """Remember up to which change the server was read, and that it was read now."""
        statement = "UPDATE campaigns SET watermark = ?, pulled_at = ? WHERE name = ?"
        self.store.write(statement, [(watermark, _now(), self.campaign)])

    # --- tasks ---------------------------------------------------------------------------------------------

    def tasks(self) -> dict[str, Task]:
        """Return every task of the campaign by key, sent or about to be."""
        return {task.key: task for task in self._rows(Task, "tasks", f"{OWN} ORDER BY key")}

    def add_tasks(self, tasks: Iterable[Task]) -> None:
        """Write tasks down before they are sent: a sender that is killed in between has lost no side.

        A task that is known already keeps its sides, if they were drawn, and its guideline.
        """
        new = list(tasks)
        with self.store.transaction():
            insert(self.store, "tasks", new, keep=True, campaign=self.campaign)
            self._set_tasks(("shown", "guideline", "task_id"), new, "AND shown = '[]'")

    def set_answers(self, tasks: Iterable[Task]) -> None:
        """Keep the right answers of comparisons; a task that is in the queue already takes over their purpose."""
        new = list(tasks)
        with self.store.transaction():
            self.add_tasks(new)
            self._set_tasks(("purpose", "answer"), new)

    def take_back(self, tasks: Iterable[Task]) -> None:
        """Write down what tasks on the server show, in place of what was known of them."""
        new = list(tasks)
        with self.store.transaction():
            self.add_tasks(new)
            self._set_tasks(("shown", "guideline", "task_id", "pages"), new)

    def know_again(self, keys: Iterable[str]) -> None:
        """Release tasks from quarantine whose sides are known again."""
        rows = [(self.campaign, key) for key in keys]
        self.store.write(f"DELETE FROM quarantine {OWN} AND key = ? AND annotation_id = 0", rows)

    def set_pages(self, pages: Mapping[str, str]) -> None:
        """Write down what tasks show, by key."""
        self._set_by_key("pages", pages)

    def set_guideline(self, keys: Iterable[str], guideline: str) -> None:
        """Write down which guidelines these tasks show."""
        self._set_by_key("guideline", dict.fromkeys(keys, guideline))

    def set_task_ids(self, ids: Mapping[str, int | None]) -> None:
        """Write down which task on the server has which key (None: it is gone)."""
        self._set_by_key("task_id", ids)

    def reopened(self) -> dict[str, int]:
        """Return how many people in all judge a task, by key, where that is more than the campaign's votes."""
        return dict(self._rows(tuple[str, int], "reopened", columns=("key", "people")))

    def set_reopened(self, people: Mapping[str, int]) -> None:
        """Remember how many people in all judge each of these tasks."""
        rows = [(self.campaign, *row) for row in people.items()]
        self.store.write("INSERT OR REPLACE INTO reopened VALUES (?, ?, ?)", rows)

    # --- what came back ------------------------------------------------------------------------------------

    def pulled(self) -> dict[tuple[int, str], Pulled]:
        """Return every annotation that was read and is still on the server, by (id, creation time)."""
        return {(row.annotation_id, row.created_at): row for row in self._rows(Pulled, "pulled")}

    def note(self, rows: Iterable[Pulled]) -> None:
        """Remember annotations that were read, in place of what was known of them."""
        insert(self.store, "pulled", rows, campaign=self.campaign)

    def forget(self, keys: Iterable[tuple[int, str]]) -> None:
        """Forget annotations that are gone from the server, also in quarantine."""
        gone = list(keys)
        rows = [(self.campaign, *key) for key in gone]
        self.store.write(f"DELETE FROM pulled {OWN} AND annotation_id = ? AND created_at = ?", rows)
        self.release(gone)

    def stamps(self) -> dict[int, str]:
        """Return when tasks that hold an answer changed last, by id, by the server's clock, as they were last read."""
        return dict(self._rows(tuple[int, Moment], "stamps", columns=("task_id", "updated_at")))

    def stamp(self, task: int, moment: str | None) -> None:
        """Remember when a task that was read changed last (None: it holds no answer any more)."""
        if moment is None:
            self.store.write(f"DELETE FROM stamps {OWN} AND task_id = ?", [(self.campaign, task)])
        else:
            self.store.write("INSERT OR REPLACE INTO stamps VALUES (?, ?, ?)", [(self.campaign, task, moment)])

    def quarantine(self, rows: Iterable[Quarantined]) -> None:
        """Put annotations into quarantine, with the reason why they are no judgments."""
        insert(self.store, "quarantine", rows, campaign=self.campaign)

    def release(self, keys: Iterable[tuple[int, str]]) -> None:
        """Release annotations from quarantine that can be read now."""
        rows = [(self.campaign, *key) for key in keys]
        self.store.write(f"DELETE FROM quarantine {OWN} AND annotation_id = ? AND created_at = ?", rows)

    def quarantined(self) -> list[Quarantined]:
        """Return everything in quarantine, in the order of annotation ids."""
        return self._rows(Quarantined, "quarantine", f"{OWN} ORDER BY annotation_id, created_at")

    # --- guidelines ----------------------------------------------------------------------------------------

    def guideline(self, text: str) -> tuple[str, int]:
        """Return hash and version number (from 1) of a guideline text; a new text starts a new version."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        insert(self.store, "guidelines", [GuidelineVersion(self.campaign, digest, _now())], keep=True, text=text)
        known = [version.sha256 for version in self.guidelines()]
        return digest, known.index(digest) + 1

    def guidelines(self) -> list[GuidelineVersion]:
        """List the versions of the guidelines, from the first."""
        return self._rows(GuidelineVersion, "guidelines", f"{OWN} ORDER BY version")

    def begin_refresh(self, keys: Iterable[str]) -> None:
        """Note that tasks are about to show other guidelines.

        What one shows whose change was begun before and not ended is not known.
        """
        rows = [(self.campaign, key) for key in keys]
        with self.store.transaction():
            self.store.write(f"UPDATE refreshed SET older = NULL {OWN} AND key = ? AND moment IS NULL", rows)
            self.store.write(
                f"INSERT INTO refreshed SELECT campaign, key, guideline, NULL FROM tasks {OWN} AND key = ? "
                "AND NOT EXISTS (SELECT 1 FROM refreshed AS r "
                "WHERE r.campaign = tasks.campaign AND r.key = tasks.key AND r.moment IS NULL)",
                rows,
            )

    def end_refresh(self, key: str, guideline: str, moment: str) -> None:
        """Note which guidelines a task shows now, and from which moment of the server's clock on."""
        with self.store.transaction():
            self.set_guideline([key], guideline)
            statement = f"UPDATE refreshed SET moment = ? {OWN} AND key = ? AND moment IS NULL"
            self.store.write(statement, [(moment, self.campaign, key)])

    def refreshes(self) -> dict[str, list[Refresh]]:
        """Return when tasks came to show other guidelines, by key, oldest first, an unfinished change last."""
        by_key: dict[str, list[Refresh]] = {}
        for row in self._rows(Refresh, "refreshed", f"{OWN} ORDER BY key, moment IS NULL, moment"):
            by_key.setdefault(row.key, []).append(row)
        return by_key

    def _rows(self, kind: type[RowT], table: str, condition: str = OWN, columns: Sequence[str] = ()) -> list[RowT]:
        return select(self.store, kind, table, condition, [self.campaign], columns)

    def _set_tasks(self, columns: tuple[str, ...], tasks: Iterable[Task], condition: str = "") -> None:
        rows = [(*(stored(getattr(task, name)) for name in columns), self.campaign, task.key) for task in tasks]
        changes = ", ".join(f"{name} = ?" for name in columns)
        self.store.write(f"UPDATE tasks SET {changes} {OWN} AND key = ? {condition}", rows)

    def _set_by_key(self, column: str, values: Mapping[str, Any]) -> None:
        rows = [(value, self.campaign, key) for key, value in values.items()]
        self.store.write(f"UPDATE tasks SET {column} = ? {OWN} AND key = ?", rows)


def source_of(campaign: str, key: str) -> str:
    """Return the source of judgments on a task, as the store records it."""
    return f"label-studio:{campaign}:{key}"


def pseudonym(url: str, account: int | str | None) -> str:
    """Return the name of an account in the store, never its address."""
    return f"person-{hashlib.sha256(f'{url}#{account}'.encode()).hexdigest()[:8]}"


def campaigns(store: Store) -> list[str]:
    """Return the names of all campaigns that were pushed from a store."""
    return [row[0] for row in store.read("SELECT name FROM campaigns ORDER BY name")]


def labels(store: Store) -> dict[str, tuple[str, ...]]:
    """Return the labels that each campaign of the store offers, where it asks for one."""
    rows = select(store, tuple[str, Json[OfferedLabels]], "campaigns", columns=("name", "interface"))
    return {name: tuple(interface.get("labels") or ()) for name, interface in rows}


def tasks_by_campaign(store: Store) -> dict[str, list[Task]]:
    """Return every task of a store, by campaign and key."""
    names = [row[0] for row in store.read("SELECT DISTINCT campaign FROM tasks ORDER BY campaign")]
    return {name: list(Ledger(store, name).tasks().values()) for name in names}


def purposes(store: Store) -> list[tuple[str, str, str, Purpose]]:
    """List campaign, key, comparison id and purpose of every task of the store that is more than work."""
    columns = ("campaign", "key", "comparison_id", "purpose")
    return select(store, tuple[str, str, str, Purpose], "tasks", "WHERE purpose != 'work'", columns=columns)


def guidelines(store: Store) -> list[GuidelineVersion]:
    """List the versions of the guidelines, from the first."""
    return select(store, GuidelineVersion, "guidelines", "ORDER BY version")


def check(store: Store) -> list[str]:
    """Read every table that the chain does not cover; the problems, table by table, empty when there are none."""
    reads: list[Callable[[], object]] = [lambda: labels(store), lambda: excluded(store), lambda: guidelines(store)]
    for (campaign,) in store.read("SELECT name FROM campaigns UNION SELECT campaign FROM tasks ORDER BY 1"):
        ledger = Ledger(store, campaign)
        reads += [ledger.state, ledger.tasks, ledger.pulled, ledger.quarantined, ledger.stamps, ledger.reopened]
        reads.append(ledger.refreshes)
    problems = []
    for read in reads:
        try:
            read()
        except BadInput as error:
            problems.append(str(error).removeprefix(f"{store.path}: damaged: "))
    return problems


def sources(store: Store, purpose: Purpose) -> set[str]:
    """Return the sources of judgments on tasks of a purpose, in every campaign of the store."""
    rows = store.read("SELECT campaign, key FROM tasks WHERE purpose = ?", (purpose,))
    return {source_of(campaign, key) for campaign, key in rows}


def gold_rankings(store: Store) -> dict[str, list[list[int]]]:
    """Return the right ranking of each comparison that is a gold task of some campaign, by comparison id."""
    condition, columns = "WHERE purpose = 'gold' ORDER BY campaign, key", ("comparison_id", "answer")
    rows = select(store, tuple[str, Json[KnownAnswer | None] | None], "tasks", condition, columns=columns)
    return {comparison: answer.ranking for comparison, answer in rows if answer and answer.ranking is not None}


def exclude(store: Store, annotator: str, reason: str) -> None:
    """Leave an annotator's judgments out of pairs from now on, in every campaign; recorded with the reason."""
    if not reason.strip():
        raise BadInput(f"excluding {annotator} needs a reason; it is kept beside the exclusion")
    store.write("INSERT OR REPLACE INTO excluded VALUES (?, ?, ?)", [(annotator, reason, _now())])


def include(store: Store, annotator: str) -> None:
    """Take an exclusion back."""
    store.write("DELETE FROM excluded WHERE annotator = ?", [(annotator,)])


def excluded(store: Store) -> dict[str, str]:
    """Return the annotators who were excluded, with the reason."""
    columns = ("annotator", "reason")
    return dict(select(store, tuple[str, str], "excluded", "ORDER BY annotator", columns=columns))


def was_pulled(store: Store, annotator: str) -> bool:
    """Return whether an annotation of this person was ever read."""
    return bool(store.read("SELECT 1 FROM pulled WHERE annotator = ? LIMIT 1", (annotator,)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
