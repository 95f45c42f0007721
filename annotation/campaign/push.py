"""`annotate push`: comparisons to a labelling server, as tasks that are there exactly once.

In: a campaign and a client. Out: tasks on the server; in the ledger, which response is on which side of each. Sides
are written down before anything is sent, so a push that is killed at any moment has lost none; what is on the server
already is not sent again. The sides of tasks that the ledger does not know (``feedback.db`` was lost) are recognised by
the texts that they show.

A calibration round goes first, and work only once enough people have passed. Known answers go with new work, never
alone: tasks are served in the order in which they came, so the place of a task sent alone would reveal it. Changed
guidelines are shown by new tasks, and by unanswered ones on request; a task that somebody answered is left as it is,
so that its other judges read the same text. Not here: reading answers back (``pull.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.records import content_hash
from annotation.campaign.calibration import EVERYBODY, CalibrationRound, calibration_results
from annotation.campaign.known import KnownItem, read_items, stored_items
from annotation.campaign.people import people_of
from annotation.campaign.settings import Campaign, Work, shown_order, task_row, tasks_of, work_of
from annotation.interface.config import config_hash, labeling_config, shown_hash
from annotation.interface.render import guidelines_html
from annotation.label_studio.rows import Project, first_ids
from annotation.label_studio.studio import Studio
from annotation.label_studio.validation import check_interface
from annotation.store.ledger import Ledger
from annotation.store.store import Store
from annotation.store.tables import Quarantined, Task


class PushResult(NamedTuple):
    """What a push did: tasks of the campaign, how many are new, recovered or in quarantine, and what was left out.

    ``gold_waiting`` are known answers that wait for new work to be mixed into, ``work_waiting`` is work that waits for
    people to pass the calibration round; ``older_guidelines`` are unanswered tasks that show other guidelines;
    ``copies`` are tasks that somebody made of others on the server, by their ids.
    """

    project: int
    tasks: int
    new: int
    recovered: int
    unknown: int
    guideline_version: int
    dropped: dict[str, int]
    gold_waiting: int = 0
    work_waiting: int = 0
    older_guidelines: int = 0
    refreshed: int = 0
    copies: tuple[tuple[int, int], ...] = ()


def push(campaign: Campaign, studio: Studio, *, refresh: bool = False) -> PushResult:
    """Send the tasks that are not on the server yet.

    Args:
        refresh: show today's guidelines in unanswered tasks, too.

    Raises:
        BadInput: nothing to judge, too much personal data, a project with another interface, too few people who have
            passed the calibration round, or a silent server; what arrived stays, and the same call sends the rest.
    """
    dropped: Counter[str] = Counter()
    with Store.open(campaign.feedback, write=True) as store:
        ledger = Ledger(store, campaign.name)
        items = _items(campaign, ledger)
        work = work_of(campaign, store.comparisons(), lambda reason, count: dropped.update({reason: count}), items)
        erased = store.erased_ids()
        kept = [comparison for comparison in work.comparisons if not erased.holds("comparison", comparison.id)]
        dropped["comparisons that were erased"] += len(work.comparisons) - len(kept)
        project = open_project(campaign, ledger, studio)
        if project.votes != campaign.votes:
            _change_votes(campaign, ledger, studio, project)
        guideline, version = ledger.guideline(work.guidelines)
        store.add_comparisons(kept, work.splits)
        this = _Push(campaign, ledger, studio, project, work._replace(comparisons=kept), guideline)
        wanted = {task.key: task for task in tasks_of(campaign, this.work, guideline)}
        rows = studio.keyed(project.id, wanted) if project.n_tasks else []
        there = first_ids(rows)
        ours = {key: task.task_id for key, task in ledger.tasks().items() if task.shown}  # whose sides are known
        lost = {key: number for key, number in there.items() if ours.get(key) != number}
        recovered = this.recover(wanted, lost)
        ledger.set_task_ids(there)
        ledger.set_answers(task._replace(shown=[]) for task in wanted.values() if task.purpose == "calibration")
        waiting = this.send([task for key, task in wanted.items() if key not in there])
        outdated = this.outdated()
        refreshed = this.refresh(outdated) if refresh else 0
    return PushResult(
        project.id,
        len(wanted),
        this.n_new,
        recovered,
        len(lost) - recovered,
        version,
        {reason: count for reason, count in dropped.items() if count},
        gold_waiting=waiting["gold"],
        work_waiting=waiting["work"],
        older_guidelines=len(outdated) - refreshed,
        refreshed=refreshed,
        copies=tuple(sorted((row.id, number) for row in rows if row.id != (number := there[str(row.key)]))),
    )


class _Push:
    """One push: what is sent, in which order, and what has to wait."""

    def __init__(
        self, campaign: Campaign, ledger: Ledger, studio: Studio, project: Project, work: Work, guideline: str
    ) -> None:
        self.campaign, self.ledger, self.studio = campaign, ledger, studio
        self.project, self.work, self.guideline = project, work, guideline
        self.comparisons = {comparison.id: comparison for comparison in work.comparisons}
        self.n_new = 0

    def send(self, missing: Sequence[Task]) -> Counter[str]:
        """Send the calibration round, then work with its share of known answers; returns how many of either wait.

        Raises:
            BadInput: work is there to be sent, and too few people have passed the round.
        """
        by_purpose: dict[str, list[Task]] = {"calibration": [], "gold": [], "work": []}
        for task in missing:
            by_purpose["work" if task.purpose == "repeat" else task.purpose].append(task)
        first, gold, rest = by_purpose["calibration"], by_purpose["gold"], by_purpose["work"]
        self._import(first)
        if self.campaign.calibration is not None:
            people = people_of(self.studio, self.ledger.pushed_state().url)
            passed = calibration_results(self.campaign, self.ledger, people)
            if first or passed.n_passed < passed.n_needed:
                self._open_calibration()
            if passed.n_passed < passed.n_needed:
                if rest and not first:
                    raise BadInput(_too_few(passed, len(rest)))
                return Counter(gold=len(gold), work=len(rest))
        share = self.campaign.gold_share
        limit = math.ceil(len(rest) * share / (1 - share))  # known answers are at most a share of all, drawn by key
        chosen = sorted(gold, key=lambda task: content_hash(["turn", task.key]))[:limit]
        self._import(sorted([*rest, *chosen], key=lambda task: task.key))
        return Counter(gold=len(gold) - len(chosen))

    def recover(self, wanted: Mapping[str, Task], lost: Mapping[str, int]) -> int:
        """Take tasks back that the ledger does not know; returns how many were.

        Those that match no response go into quarantine.
        """
        shown_guidelines = guidelines_html(self.work.guidelines)
        recovered, unknown = [], []
        for task in self.studio.tasks(self.project.id, lost.values()):
            own = wanted[str(task.key)]
            if task.data.get("guidelines_html") != shown_guidelines:
                own = own._replace(guideline=None)  # of an older text that is not known any more
            order = shown_order(self.campaign, self.comparisons[own.comparison_id], task.data, self.work)
            if order is None:
                reason = "the task shows other texts than the comparison's responses: its sides are not known"
                unknown.append(Quarantined(0, "", task.id, task.key, None, reason, None))
            else:
                recovered.append(own._replace(shown=order, task_id=task.id, pages=shown_hash(task.data)))
        with self.ledger.store.transaction():
            self.ledger.take_back(recovered)
            self.ledger.know_again(task.key for task in recovered)
            self.ledger.quarantine(unknown)
        return len(recovered)

    def outdated(self) -> list[Task]:
        """Return the tasks that nobody answered and that show other guidelines than today's."""
        tasks = self.ledger.tasks().values()
        old = [task for task in tasks if task.task_id is not None and task.guideline != self.guideline]
        unanswered = self.studio.unanswered(self.project.id) if old else set()
        return [task for task in old if task.key in unanswered]

    def refresh(self, outdated: Iterable[Task]) -> int:
        """Show today's guidelines in tasks; returns in how many.

        A request without an answer is not repeated: what the task shows is not known until the next call.
        """
        rows = {}
        for task in outdated:
            if task.comparison_id in self.comparisons and task.task_id is not None:
                data = self._data(task)
                if task.pages in (None, shown_hash(data)):
                    rows[task.key] = (task.task_id, data)
        self.ledger.begin_refresh(rows)
        n_done = 0
        for key, (task_id, data) in rows.items():
            if moment := self.studio.replace_data(task_id, data):
                self.ledger.end_refresh(key, self.guideline, moment)
                n_done += 1
        return n_done

    def _import(self, tasks: Sequence[Task]) -> None:
        """Write tasks down, send them in their order, and note their ids."""
        if not tasks:
            return
        self.ledger.add_tasks(tasks)
        self.ledger.set_guideline([task.key for task in tasks], self.guideline)
        known = self.ledger.tasks()
        data = {task.key: self._data(known[task.key]) for task in tasks}
        check_interface(self.project.config, data.values())
        self.ledger.set_pages({key: shown_hash(shown) for key, shown in data.items()})
        imported = self.studio.import_tasks(self.project.id, [{"data": shown} for shown in data.values()])
        if imported.had_copies or imported.new < len(tasks):  # another bridge sends the same: its sides may have stayed
            self.recover(known, imported.ids)
        self.ledger.set_task_ids(imported.ids)
        if imported.new == len(tasks):
            self.ledger.know_again(imported.ids)  # what stood there and was not known is gone
        self.n_new += imported.new

    def _open_calibration(self) -> None:
        """Open the round for everybody, also for people who join later."""
        for task in self.ledger.tasks().values():
            if task.purpose == "calibration" and task.task_id is not None:
                self.studio.reopen(task.task_id, EVERYBODY)

    def _data(self, task: Task) -> dict[str, Any]:
        return task_row(self.campaign, task, self.comparisons[task.comparison_id], self.work)


def _change_votes(campaign: Campaign, ledger: Ledger, studio: Studio, project: Project) -> None:
    """Ask for as many people as the campaign says now, and for those more that disputed tasks were opened for."""
    studio.set_votes(project.id, campaign.votes)
    tasks, more = ledger.tasks(), ledger.reopened()
    ids = {number: more[key] for key in more if key in tasks and (number := tasks[key].task_id) is not None}
    for task in studio.tasks(project.id, ids):
        if ids[task.id] > max(campaign.votes, len({a.completed_by for a in task.annotations if not a.was_cancelled})):
            studio.reopen(task.id, ids[task.id])


def open_project(campaign: Campaign, ledger: Ledger, studio: Studio) -> Project:
    """Open the campaign's project, made at the first push; its interface must be the campaign's own.

    Raises:
        BadInput: the interface was edited on the server, or differs from the one the campaign began with.
    """
    xml = labeling_config(campaign.interface)
    digest = config_hash(xml)
    state = ledger.state()
    if state is not None:
        if state.config_hash != digest:
            raise BadInput(
                f"campaign '{campaign.name}': its interface (words, or how texts are shown) changed since it began; "
                "answers to both cannot be distinguished, so give the new one another name"
            )
        project = studio.project(state.project)
    else:
        settings = {
            "maximum_annotations": campaign.votes,
            "sampling": "Sequential sampling",
            "show_skip_button": True,
            "enable_empty_annotation": False,
        }
        project = studio.ensure_project(campaign.name, xml, settings)
    if project.title != campaign.name:
        raise BadInput(
            f"{studio.url}: project {project.id} is called '{project.title}' and not '{campaign.name}' (renamed by "
            "hand, or another server); nothing was changed: give it its name back, or check LABEL_STUDIO_URL"
        )
    if config_hash(project.config) != digest:
        raise BadInput(
            f"{studio.url}: the labelling interface of project {project.id} is not the campaign's (edited by hand, or "
            "another project of that name); nothing was changed: put it back, or start a campaign of another name"
        )
    if state is None:
        ledger.begin(
            studio.url, project.id, campaign.interface.model_dump_json(), digest, recovered=project.n_tasks > 0
        )
    return project


def _items(campaign: Campaign, ledger: Ledger) -> dict[str, KnownItem]:
    """Return everything whose answer is known: gold that the store keeps, and the calibration round's file.

    Raises:
        BadInput: a comparison is in both.
    """
    kept = stored_items(ledger, "gold")
    gold = {comparison.id: KnownItem(comparison, "gold", task.answer) for task, comparison in kept if task.answer}
    if campaign.calibration is None:
        return gold
    file = campaign.calibration.file
    first = read_items(file, campaign.interface, "calibration")
    if both := sorted(gold.keys() & first.keys()):
        raise BadInput(
            f"{file}: {len(both)} comparisons are known answers of the work already ({both[0]}); take others"
        )
    return gold | first


def _too_few(passed: CalibrationRound, n_work: int) -> str:
    people = ", ".join(f"{person.address} {person.summary}" for person in passed.people.values()) or "nobody answered"
    return (
        f"{n_work} tasks wait: {passed.n_passed} of {passed.n_needed} people have passed the calibration round "
        f"({people}); pull what they answered, and push again when they are done; who will not pass comes off "
        "annotators, or set calibration.people"
    )
