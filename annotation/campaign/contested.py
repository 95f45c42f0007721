"""`annotate open-contested`: tasks whose answers disagree go to one more person, once for each disagreement.

In: judgments, as of a pull made first. Out: tasks that the server hands out again; ``agreement/answers.py``
defines which those are. Only tasks without a known answer are considered, and only those that wait for nobody: one
that was re-opened stays as it is until the next person has answered, however often this is run and whichever ledger it
is run with. Tasks that were answered by as many people as they ask, of whose votes too few count (somebody was
excluded, an answer is in quarantine), go the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from align.core.config import BadInput
from align.core.records import Judgment
from annotation.aggregation.counting import counting_judgments, questions_of
from annotation.aggregation.votes import answers_of
from annotation.agreement.answers import contested
from annotation.campaign.parse import ANSWERED
from annotation.campaign.pull import pull
from annotation.campaign.settings import Campaign
from annotation.label_studio.rows import StudioTask
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger, excluded, source_of
from annotation.store.store import Store
from annotation.store.tables import Pulled


class Reopened(NamedTuple):
    """What `open-contested` did: contested tasks (``short``: for want of votes that count), and what became of each.

    ``waiting`` are open already, ``at_maximum`` were judged by as many people as may be, ``changed`` were answered
    or deleted since the pull, and ``over_limit`` are left for another time.
    """

    contested: int
    reopened: int
    waiting: int
    at_maximum: int
    changed: int
    over_limit: int
    maximum: int
    short: int


def open_contested(
    campaign: Campaign,
    studio: Studio,
    *,
    votes: int = 1,
    limit: int | None = None,
    maximum: int | None = None,
    posterior: float | None = None,
) -> Reopened:
    """Pull, and have contested tasks judged by more people.

    Args:
        votes: how many more people judge each task.
        limit: the most tasks to re-open now.
        maximum: the most people per task; twice the campaign's votes and one where it is not given, and never more
            than the annotators whom the campaign names.
        posterior: also re-open tasks whose leading answer has less than this probability.

    Raises:
        BadInput: settings that cannot be, nothing was pushed yet, or a silent server; what was re-opened stays so,
            and the same call re-opens the rest.
    """
    _check(votes, limit, maximum, posterior)
    pull(campaign, studio)
    with Store.open(campaign.feedback, write=True) as store:
        ledger = Ledger(store, campaign.name)
        state = ledger.pushed_state()
        project = studio.project(state.project)
        most = maximum or 2 * project.votes + 1
        most = min(most, len(campaign.annotators)) if campaign.annotators else most
        counting = counting_judgments(own_judgments(ledger), questions_of(store), excluded(store)).judgments
        disputed = contested_tasks(ledger, contested(answers_of(counting), posterior))
        asked = people_asked(_work_tasks(ledger), project.votes, ledger.reopened())
        states = task_states(campaign.name, asked, project.votes, ledger.pulled().values(), counting, disputed)
        short = [key for key, state in states.items() if state == "short"]
        keys = [*disputed, *short]
        current = _on_server(ledger, studio, project.id, keys)
        waiting = {key: task for key, task in current.items() if task.is_open}
        ready = {key: task for key, task in current.items() if not task.is_open}
        allowed = [key for key, task in ready.items() if _people(task) < most]
        known = ledger.reopened()
        noted = {key: _people(task) + 1 for key, task in waiting.items() if known.get(key, 0) <= _people(task)}
        ledger.set_reopened(noted)  # by an earlier call that was cut short, or in a store that is lost
        chosen = allowed[:limit]
        for key in chosen:
            people = min(_people(ready[key]) + votes, most)
            studio.reopen(ready[key].id, people)
            ledger.set_reopened({key: people})
        n_over, n_changed = len(allowed) - len(chosen), len(keys) - len(current)
        at_maximum = len(ready) - len(allowed)
        return Reopened(len(keys), len(chosen), len(waiting), at_maximum, n_changed, n_over, most, len(short))


def own_judgments(ledger: Ledger) -> list[Judgment]:
    """Return the judgments on a campaign's tasks that are in force, as of the last pull."""
    own = {source_of(ledger.campaign, key) for key in ledger.tasks()}
    return [judgment for judgment in ledger.store.judgments() if judgment.source in own]


def contested_tasks(ledger: Ledger, sources: Collection[str]) -> list[str]:
    """Return the keys of the sources that are work on the server: no known answers, no repetitions."""
    return [key for key in _work_tasks(ledger) if source_of(ledger.campaign, key) in sources]


def _work_tasks(ledger: Ledger) -> list[str]:
    return [key for key, task in ledger.tasks().items() if task.purpose == "work" and task.task_id is not None]


def people_asked(tasks: Iterable[str], votes: int, reopened: Mapping[str, int]) -> dict[str, int]:
    """Return how many people judge each task: the campaign's votes, or more where it was re-opened."""
    return {key: max(votes, reopened.get(key, 0)) for key in tasks}


def task_states(
    campaign: str,
    asked: Mapping[str, int],
    votes: int,
    answers: Iterable[Pulled],
    counting: Iterable[Judgment],
    disputed: Collection[str],
) -> dict[str, Literal["open", "contested", "short", "done"]]:
    """Return the state of each task by key.

    A task is open while fewer people answered it than were asked; then it is contested, short where fewer votes count
    than the campaign wants (in quarantine, declined, of an excluded annotator), or done.

    Args:
        asked: how many people judge each task.
        disputed: the keys of contested tasks.
    """
    people = Counter(key for key, _ in {(row.key, row.annotator) for row in answers if row.outcome in ANSWERED})
    counted = Counter(source for source, _ in {(j.source, j.annotator) for j in counting})
    states: dict[str, Literal["open", "contested", "short", "done"]] = {}
    for key, wanted in asked.items():
        if people[key] < wanted:
            states[key] = "open"
        elif key in disputed:
            states[key] = "contested"
        else:
            states[key] = "short" if counted[source_of(campaign, key)] < votes else "done"
    return states


def _on_server(ledger: Ledger, studio: Studio, project: int, keys: Sequence[str]) -> dict[str, StudioTask]:
    """Return the tasks, by key, whose answers on the server are those that were read."""
    known, read = ledger.tasks(), _read_answers(ledger)
    numbers = {number: key for key in keys if (number := known[key].task_id) is not None}
    unchanged = {
        numbers[task.id]: task
        for task in studio.tasks(project, numbers)
        if task.key == numbers[task.id] and {(a.id, a.created_at) for a in task.annotations} == read.get(task.id)
    }
    return {key: unchanged[key] for key in keys if key in unchanged}


def _read_answers(ledger: Ledger) -> Mapping[int, set[tuple[int, str]]]:
    read: dict[int, set[tuple[int, str]]] = {}
    for answer, row in ledger.pulled().items():
        read.setdefault(row.task_id, set()).add(answer)
    return read


def _people(task: StudioTask) -> int:
    """Count the answers that the server counts towards a task's people: all but skips."""
    return sum(not annotation.was_cancelled for annotation in task.annotations)


def _check(votes: int, limit: int | None, maximum: int | None, posterior: float | None) -> None:
    for name, value in (("votes", votes), ("limit", limit), ("maximum", maximum)):
        if value is not None and value < 1:
            raise BadInput(f"open-contested: {name}={value} must be 1 or more")
    if posterior is not None and not 0 < posterior <= 1:
        raise BadInput(f"open-contested: posterior={posterior:g} is a probability, above 0 and at most 1")
