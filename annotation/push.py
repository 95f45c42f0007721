"""`annotate push`: comparisons to a labelling server, as tasks that are there exactly once.

In: a campaign and a client. Out: tasks on the server; in the ledger, which response stands on which side of each.
Sides are written down before anything is sent, so a push that is killed at any moment has lost none; what is on the
server already is not sent again. Where tasks stand there that the ledger does not know (``feedback.db`` was lost),
their sides are told by the texts they show. Not here: reading back what people said (``pull.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from align.core.config import BadInput
from annotation.campaign import Campaign, Work, interface_of, shown_order, task_row, tasks_of, work_of
from annotation.interfaces.config import config_hash
from annotation.label_studio.rows import Project
from annotation.label_studio.studio import Studio
from annotation.ledger import Ledger, Quarantined, Task
from annotation.store import Store


class Pushed(NamedTuple):
    """What a push did: tasks of the campaign, how many are new, recovered or set aside, and what was left out."""

    project: int
    tasks: int
    new: int
    recovered: int
    unknown: int
    guideline_version: int
    dropped: dict[str, int]


def push(campaign: Campaign, studio: Studio) -> Pushed:
    """Send what is not there yet.

    Raises:
        BadInput: nothing to judge, too much personal data, a project with another interface, or a silent server;
            what arrived stays, and the same call sends the rest.
    """
    dropped: Counter[str] = Counter()
    with Store.open(campaign.feedback, write=True) as store:
        work = work_of(campaign, store.comparisons(), lambda reason, count: dropped.update({reason: count}))
        ledger = Ledger(store, campaign.name)
        project = open_project(campaign, ledger, studio)
        guideline, version = ledger.guideline(work.guidelines)
        store.add_comparisons(work.comparisons, work.splits)
        wanted = {task.key: task for task in tasks_of(campaign, work, guideline)}
        there = studio.keys(project.id, wanted) if project.n_tasks else {}
        before = ledger.tasks()
        lost = {key: number for key, number in there.items() if key not in before}
        recovered = _recover(campaign, ledger, studio, project, work, wanted, lost)
        ledger.add_tasks(task for key, task in wanted.items() if key not in there)
        known, comparisons = ledger.tasks(), {comparison.id: comparison for comparison in work.comparisons}
        missing = [known[key] for key in wanted if key not in there]
        rows = [{"data": task_row(campaign, task, comparisons[task.comparison_id], work)} for task in missing]
        imported = studio.import_tasks(project.id, rows)
        ledger.set_task_ids(there | imported.ids)
    counted = {reason: count for reason, count in dropped.items() if count}
    return Pushed(project.id, len(wanted), imported.new, recovered, len(lost) - recovered, version, counted)


def open_project(campaign: Campaign, ledger: Ledger, studio: Studio) -> Project:
    """The campaign's project, made at the first push; its interface must be the campaign's own.

    Raises:
        BadInput: the interface was edited on the server, or differs from the one the campaign began with.
    """
    xml, digest = interface_of(campaign)
    state = ledger.state()
    if state is not None:
        if state.config_hash != digest:
            raise BadInput(
                f"campaign '{campaign.name}': its interface (or the words of its language) changed since it began; "
                "answers to both cannot be told apart, so give the new one another name"
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


def _recover(
    campaign: Campaign,
    ledger: Ledger,
    studio: Studio,
    project: Project,
    work: Work,
    wanted: Mapping[str, Task],
    lost: Mapping[str, int],
) -> int:
    """Take tasks back that the ledger does not know; how many were. Those that match no response are set aside."""
    comparisons = {comparison.id: comparison for comparison in work.comparisons}
    found, strange = [], []
    for task in studio.tasks(project.id, lost.values()):
        own = wanted[str(task.key)]
        order = shown_order(campaign, comparisons[own.comparison_id], task.data, work)
        if order is None:
            reason = "the task shows other texts than the comparison's responses: its sides are not known"
            strange.append(Quarantined(0, "", task.id, task.key, None, reason, None))
        else:
            found.append(own._replace(shown=order, task_id=task.id))
    with ledger.store.transaction():
        ledger.add_tasks(found)
        ledger.quarantine(strange)
    return len(found)
