"""Work with a Label Studio project: send tasks exactly once, and read annotations whole.

In: a server's address, a token, rows of task data that hold a ``pair_id``. Out: task ids by ``pair_id``, tasks with
their annotations, or one line that says what is wrong. A write that got no answer is never repeated blindly: the
server does not recognise a repeated request, so its tasks are read back and only the missing ones are sent.
Not here: what tasks mean (``interface/``), what was sent and read before (``ledger.py``), and starting a server
(``server.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from align.core.config import BadInput
from align.core.http import Unanswered
from annotation.label_studio.connection import NEW_TOKEN, Connection, Missing, address
from annotation.label_studio.rows import (
    KEY,
    ChangeReply,
    CountedTask,
    Imported,
    ImportReply,
    OverlapReply,
    Project,
    RowT,
    StudioTask,
    TaskChange,
    TaskPage,
    by_key,
    condition,
    first_ids,
    moment,
    parts,
)
from annotation.label_studio.validation import check_interface

LIST_LIMIT = 200  # keys in one filter: they travel in the address, which may not be longer
SCAN_PAGE, READ_PAGE = 1000, 500
PATIENCE = 60.0
TOKEN = re.compile(r"[A-Za-z0-9_.=+/-]+")
ANSWERED = condition("tasks:annotations_ids", "empty", "String", False)  # the server's counters can be wrong


class Studio:
    """A client of one server; every call returns what it promises or raises BadInput with one line."""

    def __init__(self, url: str, token: str, patience: float = PATIENCE) -> None:
        """Make a client; nothing is sent yet.

        ``patience`` is how many seconds a silent server is waited for (at most 3 before its first answer).

        Raises:
            BadInput: no address, no token, or a token that has expired.
        """
        self.url = address(url)
        key = token.strip()
        if not TOKEN.fullmatch(key):
            raise BadInput(f"LABEL_STUDIO_API_KEY: is empty or holds what no token holds; {NEW_TOKEN}")
        self.connection = Connection(self.url, key, patience)

    # --- projects and people --------------------------------------------------------------------------------

    def whoami(self) -> str:
        """Return the address of the account that the token belongs to."""
        return str(self.connection.query(lambda sdk: sdk.users.whoami().email, str))

    def users(self) -> dict[int, str]:
        """Return the addresses of all accounts by id."""
        return dict(
            self.connection.query(
                lambda sdk: [[user.id, user.email] for user in sdk.users.list()], list[tuple[int, str]]
            )
        )

    def project(self, project: int) -> Project:
        """Return a project by id.

        Raises:
            BadInput: there is none.
        """

        def read(sdk: Any) -> list[Any]:
            row = sdk.projects.get(project)
            return [row.id, row.title, row.label_config, row.task_number, row.maximum_annotations]

        try:
            return Project(*self.connection.query(read, tuple[int, str, str, int, int]))
        except Missing:
            raise self._no_project(project) from None

    def ensure_project(self, title: str, config: str, settings: Mapping[str, Any] | None = None) -> Project:
        """Return the project of that title, which is made where there is none; an existing one is left as it is.

        ``settings`` are the server's own names, such as ``maximum_annotations``.

        Raises:
            BadInput: several have that title, or Label Studio does not accept the configuration.
        """
        check_interface(config)
        if not 3 <= len(title) <= 50:
            raise BadInput(f"'{title}': the title of a project has 3 to 50 characters")
        ids = self._titled(title)
        if len(ids) > 1:
            raise BadInput(f"{self.url}: {len(ids)} projects are called '{title}' ({ids}); rename all but one")
        if ids:
            return self.project(ids[0])
        given = {"title": title, "label_config": config, **(settings or {})}
        self.connection.write(
            lambda: self.connection.call(lambda sdk: sdk.projects.create(**given).id), lambda: bool(self._titled(title))
        )
        first, *copies = self._titled(title)
        for copy in copies:  # of a request that was carried out twice: made a moment ago, still empty
            self._rename(copy, f"empty copy {copy}, not used")
        return self.project(first)._replace(created=True)

    def set_votes(self, project: int, votes: int) -> None:
        """Set how many people judge each task of a project; tasks that were re-opened for more lose that."""
        self._update(project, maximum_annotations=votes)

    # --- tasks ----------------------------------------------------------------------------------------------

    def count(self, project: int, *, answered: bool = False) -> int:
        """Count the tasks of a project, or those that hold an answer or a skip."""
        query = {"filters": {"conjunction": "and", "items": [ANSWERED] if answered else []}}
        return self._page(project, TaskChange, {"page_size": 1, "include": "id", "query": json.dumps(query)})["total"]

    def keys(self, project: int, wanted: Iterable[str] | None = None) -> dict[str, int]:
        """Return task ids by key, of all or the wanted tasks; of copies, the one that ``import_tasks`` keeps."""
        return first_ids(self.keyed(project, wanted))

    def keyed(self, project: int, wanted: Iterable[str] | None = None) -> list[CountedTask]:
        """List all tasks that have a key, or the wanted ones, copies included."""
        include = {"fields": "task_only", "include": "id,data,total_annotations,cancelled_annotations"}
        chosen = None if wanted is None else list(wanted)  # some by filters, many by reading all
        filters: list[list[dict[str, Any]]] = [[]]
        if chosen is not None and (len(chosen) <= LIST_LIMIT or len(chosen) * 4 < self.count(project)):
            filters = [[condition(f"tasks:data.{KEY}", "in_list", "List", part)] for part in parts(chosen, LIST_LIMIT)]
        rows = [row for one in filters for row in self._scan(project, CountedTask, one, SCAN_PAGE, include)]
        keys = None if chosen is None else set(chosen)
        return [row for row in rows if row.key is not None and (keys is None or row.key in keys)]

    def import_tasks(self, project: int, rows: Sequence[Mapping[str, Any]], batch: int = 1000) -> Imported:
        """Send the rows (``{"data": {"pair_id": ...}}``) that are not there yet, each exactly once.

        Copies that a lost or repeated request left behind are removed again, unless somebody answered them.

        Raises:
            BadInput: rows without a key or with the same, no such project, or a server that stays silent; what
                arrived stays, and the same call again sends the rest only.
        """
        wanted = by_key(rows)
        before = self.count(project)
        present = self.keyed(project, wanted) if before else []
        ids = first_ids(present)
        missing = [key for key in wanted if key not in ids]
        for start in range(0, len(missing), batch):
            ids |= self._send_rows(project, {key: wanted[key] for key in missing[start : start + batch]})
        had_copies = len(present) + len(missing) > len(ids) or self.count(project) != before + len(missing)
        if had_copies:
            ids = self._remove_copies(project, wanted)
        return Imported({key: ids[key] for key in wanted if key in ids}, len(missing), had_copies)

    def answered(self, project: int, since: datetime | None = None) -> dict[int, str]:
        """Return when tasks that hold an answer or a skip changed last, by id; since a moment, or all of them.

        A task counts as changed when an annotation was made, edited, skipped or deleted. The server's clock decides,
        so ``since`` should be some minutes before the newest change known.
        """
        changed = [condition("tasks:updated_at", "greater_or_equal", "Datetime", moment(since))] if since else []
        include = {"fields": "task_only", "include": "id,updated_at"}
        rows = self._scan(project, TaskChange, [ANSWERED, *changed], SCAN_PAGE, include)
        return {row.id: row.updated_at for row in rows}

    def all_tasks(self, project: int) -> Iterator[StudioTask]:
        """Yield all tasks with their annotations, in the order of ids."""
        yield from self._scan(project, StudioTask, [], READ_PAGE, {"fields": "all"})

    def tasks(self, project: int, ids: Iterable[int]) -> Iterator[StudioTask]:
        """Yield tasks by id with their annotations; those that are gone are left out."""
        for part in parts(sorted(ids), LIST_LIMIT):
            listed = [condition("tasks:id", "in_list", "List", part)]
            yield from self._scan(project, StudioTask, listed, LIST_LIMIT, {"fields": "all"})

    def reopen(self, task: int, overlap: int) -> None:
        """Hand a task to more people, up to ``overlap`` in all; doing so twice changes nothing more.

        Raises:
            BadInput: the task is gone.
        """
        path = f"api/tasks/{task}/"
        body = {"overlap": overlap, "is_labeled": False}  # the overlap alone does not bring it back into the queue
        self._change(  # sent again it would undo a last answer
            task, body, lambda: bool(self.connection.read(path, form=OverlapReply)["overlap"] >= overlap)
        )

    def unanswered(self, project: int) -> set[str]:
        """Return the keys of the tasks that nobody answered or skipped."""
        return {row.key for row in self.keyed(project) if row.key is not None and not row.n_answers}

    def replace_data(self, task: int, data: Mapping[str, Any]) -> str | None:
        """Give a task other data; returns when that was, by the server's clock, or None without an answer.

        It is not sent again: then nobody could tell when people began to see it.

        Raises:
            BadInput: the task is gone.
        """
        return self._change(task, {"data": dict(data)}, lambda: True)

    def _change(self, task: int, body: Mapping[str, Any], is_done: Callable[[], bool]) -> str | None:
        reply: dict[str, Any] = {}
        path = f"api/tasks/{task}/"
        try:
            self.connection.write(
                lambda: reply.update(self.connection.send("PATCH", path, body=body, form=ChangeReply)), is_done
            )
        except Missing:
            raise BadInput(f"{self.url}: task {task} is gone; push again to have it made anew") from None
        return reply.get("updated_at")

    # --- how tasks arrive once --------------------------------------------------------------------------------

    def _send_rows(self, project: int, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """Send rows until all are there; after a request without an answer, send what is missing by then."""
        ids: dict[str, int] = {}
        path = f"api/projects/{project}/import"

        def send() -> None:
            pending = [key for key in rows if key not in ids]
            sent = [rows[key] for key in pending]
            numbers = self.connection.send("POST", path, {"return_task_ids": "true"}, sent, form=ImportReply)[
                "task_ids"
            ]
            if len(numbers) != len(pending):
                raise Unanswered(f"{len(pending)} tasks sent, {len(numbers)} ids came back")
            ids.update(zip(pending, numbers, strict=True))

        def are_there() -> bool:
            ids.update(self.keys(project, rows))
            return len(ids) == len(rows)

        try:
            self.connection.write(send, are_there)
        except Missing:
            raise self._no_project(project) from None
        return ids

    def _remove_copies(self, project: int, wanted: Mapping[str, Any]) -> dict[str, int]:
        """Delete all but one task of each key (never one that was answered); returns the ids that stay."""
        kept: dict[str, int] = {}

        def extra() -> list[int]:
            rows = self.keyed(project, wanted)
            kept.update(first_ids(rows))
            return [row.id for row in rows if row.id != kept[str(row.key)] and not row.n_answers]

        def delete() -> None:
            # by project, not by id alone: the server gives the ids of deleted tasks to new ones
            chosen = {"selectedItems": {"all": False, "included": extra()}}
            if chosen["selectedItems"]["included"]:
                self.connection.send("POST", "api/dm/actions/", {"id": "delete_tasks", "project": project}, chosen)

        self.connection.write(delete, lambda: not extra())
        return kept

    def _scan(
        self,
        project: int,
        kind: type[RowT],
        filters: list[dict[str, Any]],
        page_size: int,
        params: Mapping[str, Any],
    ) -> Iterator[RowT]:
        """Yield tasks in the order of ids, page by page from the last id on, so that none is skipped meanwhile."""
        last = 0
        while True:
            after = [condition("tasks:id", "greater", "Number", last)]
            query = {"filters": {"conjunction": "and", "items": after + filters}, "ordering": ["tasks:id"]}
            page = self._page(project, kind, {**params, "page_size": page_size, "query": json.dumps(query)})
            rows, total = page["tasks"], page["total"]
            if (total and not rows) or (rows and not last < rows[0].id <= rows[-1].id):
                raise BadInput(f"{self.url}: says {total} more tasks and lists {len(rows)}; run the same command again")
            yield from rows
            if len(rows) >= total:
                return
            last = rows[-1].id

    def _page(self, project: int, kind: type[RowT], params: Mapping[str, Any]) -> TaskPage[RowT]:
        query = {"project": project, "fields": "task_only", **params}
        try:
            return self.connection.read("api/tasks/", query, form=TaskPage[kind])  # type: ignore[valid-type]  # of its rows
        except Missing:
            raise self._no_project(project) from None

    def _rename(self, project: int, title: str) -> None:
        """Give a project another title; it is never deleted.

        While Label Studio deletes a project it does not count answers to any other, and after two deletions at once
        it counts none until it is started again (``temporary_disconnect_all_signals`` of its 1.23.2).
        """
        with suppress(Missing):  # somebody deleted it
            self._update(project, title=title)

    def _update(self, project: int, **fields: Any) -> None:
        def are_set(sdk: Any) -> bool:
            row = sdk.projects.get(project)
            return all(getattr(row, name) == value for name, value in fields.items())

        self.connection.write(
            lambda: self.connection.call(lambda sdk: sdk.projects.update(project, **fields).id),
            lambda: bool(self.connection.query(are_set)),
        )

    def _titled(self, title: str) -> list[int]:
        ids: list[int] = []
        page = seen = 0
        while True:
            page += 1
            count, listed = self.connection.query(partial(_titles, page), tuple[int, list[tuple[int, str]]])
            ids += [number for number, other in listed if other == title]
            seen += len(listed)
            if seen >= count or not listed:
                return sorted(ids)

    def _no_project(self, project: int) -> BadInput:
        return BadInput(
            f"{self.url}: has no project {project}: it was deleted, or the address is another server's; nothing was "
            "changed: check LABEL_STUDIO_URL, or start a new campaign"
        )


def _titles(page: int, sdk: Any) -> list[Any]:
    """Return how many projects there are, and ids and titles on one page of their list."""
    pager = sdk.projects.list(page=page, page_size=100, include="id,title")
    return [pager.response.count, [[project.id, project.title] for project in pager.items]]
