"""Tasks of the bridge, by their key: what was compared, and which response was shown where.

In: a store whose ledger noted what was sent, and the YAML of a campaign that was sent from elsewhere. Out: a task's
comparison, its sides and its interface. Sides that no ledger holds are recognised by the shown texts, as by a push
whose ledger was lost; what matches nothing stays unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

from align.core.records import Comparison
from annotation.campaign.settings import Campaign, Work, load_campaign, shown_order, task_key, work_of
from annotation.importers.imported import UnusableRow
from annotation.interface.config import Interface, shown_hash
from annotation.interface.render import guidelines_html
from annotation.store.chain import Split
from annotation.store.ledger import Ledger, campaigns
from annotation.store.store import Store
from annotation.store.tables import Purpose


class SentTask(NamedTuple):
    """A task as it was shown: ``shown`` are canonical response numbers in screen order.

    Of a task that a ledger holds, ``url`` is its server, ``project`` and ``task_id`` its numbers there, ``pages`` the
    hash of what it shows, and ``pulled`` the annotations that a pull has read, by id and time of creation.
    """

    campaign: str
    comparison: Comparison
    shown: list[int]
    interface: Interface
    guideline: str | None
    url: str | None = None
    project: int | None = None
    task_id: int | None = None
    pages: str | None = None
    pulled: frozenset[tuple[int, str]] = frozenset()

    def matches(self, project: int | None, task: str) -> bool:
        """Return whether an export means this task, by what it holds: two campaigns may ask the same."""
        return (
            bool(self.shown) and project in (None, self.project) and (self.task_id is None or str(self.task_id) == task)
        )


class SentTasks:
    """Every task of a store's campaigns, and those of one campaign more; nothing is read before it is asked for.

    ``splits`` are the split hints of the comparisons that the campaign's candidates gave.
    """

    def __init__(self, feedback: Path | None, campaign: Path | None) -> None:
        self.feedback = feedback if feedback is not None and feedback.is_file() else None
        self.path = campaign
        self.splits: dict[str, Split] = {}

    def find(self, key: str, project: int | None, task: str, data: Mapping[str, Any]) -> SentTask:
        """Return the task of a key, in a project of the server (None: unknown), that shows ``data``.

        Raises:
            UnusableRow: nothing is known of it, or two campaigns sent it.
        """
        noted = [n for n in self._noted.get(key, ()) if n.matches(project, task)]
        if len(noted) == 1:
            if noted[0].pages not in (None, shown_hash(data)):
                raise UnusableRow("its task shows something else than what was sent")
            return noted[0]
        if noted:
            raise UnusableRow("two campaigns of this store sent its task (export it as JSON, which tells the project)")
        return self._matched(key, dict(data))

    @cached_property
    def _noted(self) -> dict[str, list[SentTask]]:
        by_key: dict[str, list[SentTask]] = {}
        if self.feedback is None:
            return by_key
        with Store.open(self.feedback) as store:
            comparisons = {comparison.id: comparison for comparison in store.comparisons()}
            for name in campaigns(store):
                ledger = Ledger(store, name)
                state = ledger.state()
                if state is None:
                    continue
                interface = Interface.model_validate_json(state.interface)
                pulled = frozenset(ledger.pulled())
                for key, task in ledger.tasks().items():
                    if (comparison := comparisons.get(task.comparison_id)) is not None:  # it was not erased
                        shown = (name, comparison, task.shown, interface, task.guideline)
                        sent = SentTask(*shown, state.url, state.project, task.task_id, task.pages, pulled)
                        by_key.setdefault(key, []).append(sent)
        return by_key

    @cached_property
    def _campaign(self) -> tuple[Campaign, Work, dict[str, Comparison]]:
        """The campaign of the YAML, and its comparisons by the keys that their tasks have.

        Raises:
            UnusableRow: no YAML was named.
        """
        if self.path is None:
            raise UnusableRow("its task was not sent from this store (name the YAML of its campaign with campaign=...)")
        campaign = load_campaign(self.path)
        stored: list[Comparison] = []
        if self.feedback is not None and not campaign.candidates:
            with Store.open(self.feedback) as store:
                stored = store.comparisons()
        work = work_of(campaign, stored, lambda reason, count: None, {})
        self.splits |= work.splits
        by_key = {task_key(c.id, purpose): c for c in work.comparisons for purpose in get_args(Purpose)}
        return campaign, work, by_key

    def _matched(self, key: str, data: dict[str, Any]) -> SentTask:
        campaign, work, by_key = self._campaign
        if key not in by_key:
            raise UnusableRow(f"its task is none of the campaign's (key {key})")
        comparison = by_key[key]
        shown = shown_order(campaign, comparison, data, work)
        if shown is None:
            raise UnusableRow("its task shows other texts than the comparison's responses, so its sides are not known")
        digest = hashlib.sha256(work.guidelines.encode("utf-8", "surrogatepass")).hexdigest()
        has_shown = data.get("guidelines_html") == guidelines_html(work.guidelines)
        return SentTask(campaign.name, comparison, shown, campaign.interface, digest if has_shown else None)
