"""`annotate gold add` and `gold report`: known answers mixed in blind, and who misses too many of them.

In: a file of comparisons with their answers; later, judgments. Out: answers in ``feedback.db``, which the next push
sends among new work (``push.py``); per annotator the share that was right, with the exact interval of Clopper and
Pearson. On the server a gold task is a task like any other: its key is made as if it were work, and all tasks of a
push are sent in the order of their keys.

The interval decides, not the share: somebody is named when even its upper limit lies below the bar, for gold answers
or for attention checks (counted apart, so that one cannot hide the other). An annotator who is exactly at the bar is
named wrongly at most once in forty times by each of the two, however few answers there are; one or two wrong answers
never suffice. Who is named is excluded by a person, never by this.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from align.core.config import BadInput
from align.core.stats.estimates import Estimate, proportion
from annotation.campaign.known import marks_of, read_items
from annotation.campaign.settings import Campaign, check_languages, task_key
from annotation.store.ledger import Ledger, excluded
from annotation.store.store import Store
from annotation.store.tables import Task


class GoldAdded(NamedTuple):
    """What `gold add` did: answers that are new, that were corrected, and that were known; and where they are.

    ``in_queue`` are comparisons that were sent already, as work: they became gold there.
    """

    new: int
    corrected: int
    unchanged: int
    in_queue: int
    waiting: int


class Accuracy(NamedTuple):
    """One annotator's answers of one kind, ``gold`` or ``attention``: a share with its exact interval and count."""

    annotator: str
    kind: str
    share: Estimate
    is_under: bool

    @property
    def right(self) -> str:
        """Return the counts, such as ``11 of 12``."""
        return f"{round((self.share.value or 0) * self.share.n)} of {self.share.n}"


class GoldReport(NamedTuple):
    """Accuracies by annotator and kind, and who is under the bar and not excluded yet."""

    feedback: Path
    bar: float
    n_items: int
    accuracies: list[Accuracy]
    under: list[str]


def add(campaign: Campaign, *, file: Path) -> GoldAdded:
    """Keep known answers in the store; the next push sends those that are not on the server yet.

    Args:
        file: JSON lines of a comparison each, with the answer that is right about it.

    Raises:
        BadInput: a row of the file cannot be used (named by number), its language is none of the campaign's, or the
            comparison belongs to the calibration round.
    """
    items = read_items(file, campaign.interface, "gold")
    check_languages(campaign, [item.comparison for item in items.values()], str(file))
    with Store.open(campaign.feedback, write=True) as store, store.transaction():
        ledger = Ledger(store, campaign.name)
        before = ledger.tasks()
        tasks = [Task(task_key(key, "gold"), key, [], "gold", item.answer) for key, item in items.items()]
        known = {task.key: before[task.key] for task in tasks if task.key in before}
        for task in known.values():
            if task.purpose == "calibration":
                raise BadInput(
                    f"{file}: comparison {task.comparison_id} belongs to the calibration round; leave it out"
                )
        answers = {key: task.answer for key, task in known.items() if task.purpose == "gold"}
        store.add_comparisons(item.comparison for item in items.values())
        ledger.set_answers(tasks)
    unchanged = sum(task.key in answers and answers[task.key] == task.answer for task in tasks)
    n_sent = sum(task.task_id is not None for task in known.values())
    return GoldAdded(len(tasks) - len(answers), len(answers) - unchanged, unchanged, n_sent, len(tasks) - n_sent)


def report(campaign: Campaign) -> GoldReport:
    """Report each annotator's accuracy on the known answers, as of the last pull.

    Raises:
        BadInput: no answer is known.
    """
    with Store.open(campaign.feedback) as store:
        ledger = Ledger(store, campaign.name)
        n_items = sum(task.purpose == "gold" for task in ledger.tasks().values())
        marks, gone = marks_of(ledger, "gold"), excluded(store)
    if not n_items:
        raise BadInput(f"{campaign.feedback}: no answer is known; add some with: align annotate gold add file=F")
    accuracies = []
    for (annotator, kind), rights in sorted(marks.items()):
        share = proportion(sum(rights), len(rights), len(rights), is_exact=True)
        is_under = share.high is not None and share.high < campaign.gold_bar
        accuracies.append(Accuracy(annotator, kind, share, is_under))
    under = sorted({a.annotator for a in accuracies if a.is_under} - set(gone))
    return GoldReport(campaign.feedback, campaign.gold_bar, n_items, accuracies, under)
