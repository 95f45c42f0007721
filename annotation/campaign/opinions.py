"""What people answered, question by question, whatever a task asks: a pair, a ranking, a thumb or a label.

In: judgments. Out: opinions, and what can be said of them alike: which tasks are contested, how far people agree, how
many questions have a winner. Pure functions. A question is which of two responses is better, or what a single response
is called; a ranking of k responses answers k(k-1)/2 of them. Unlike ``votes.py``, which pairs are made of, a label is
an answer here, too.

A question is undecided while no answer has more than half of the votes; a tie is an answer of its own, so one tie
against one preference is undecided, and "both are bad" is a tie. On request it is undecided, too, while its most
probable answer is less probable than a bound. A task is contested when half of its questions or more are undecided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from align.core.records import Judgment
from align.core.stats.agreement import alpha, bootstrap, share
from annotation.aggregation.models import one_coin
from annotation.aggregation.votes import TIE, votes
from annotation.agreement.run import against_others

Question = tuple[str, int, int]  # source, first and second response (0, 0 for a single one)


class Opinion(NamedTuple):
    """One person's answer to a question: an outcome of two responses (``votes.py``), or the label of a single one."""

    source: str
    comparison_id: str
    first: int
    second: int
    annotator: str
    answer: int | str


def opinions(judgments: Iterable[Judgment]) -> list[Opinion]:
    """What judgments answer, question by question."""
    listed = list(judgments)
    found = [
        Opinion(vote.source, vote.comparison_id, vote.first, vote.second, vote.annotator, vote.outcome)
        for vote in votes(listed)
    ]
    single = [j for j in listed if len(j.shown) == 1 and j.label is not None]
    return found + [Opinion(j.source, j.comparison_id, 0, 0, j.annotator, str(j.label)) for j in single]


def contested(given: Sequence[Opinion], posterior: float | None = None) -> set[str]:
    """The sources (tasks) of which half of the questions or more are undecided.

    Args:
        posterior: also undecided is a question whose most probable answer is less probable than this.
    """
    answers: dict[Question, Counter[int | str]] = {}
    for opinion in given:
        answers.setdefault(_question(opinion), Counter())[opinion.answer] += 1
    sure = {} if posterior is None else certainty(given)
    undecided: dict[str, list[bool]] = {}
    for question, counts in answers.items():
        disagree = len(counts) > 1 and 2 * max(counts.values()) <= counts.total()
        doubted = posterior is not None and sure[question] < posterior
        undecided.setdefault(question[0], []).append(disagree or doubted)
    return {source for source, marks in undecided.items() if 2 * sum(marks) >= len(marks)}


def certainty(given: Iterable[Opinion]) -> dict[Question, float]:
    """The probability of each question's most probable answer, by one-coin Dawid-Skene over all of them."""
    ordered = sorted(given, key=lambda o: (_question(o), o.annotator, str(o.answer)))
    if not ordered:
        return {}
    items: dict[Question, int] = {}
    item_V = np.array([items.setdefault(_question(opinion), len(items)) for opinion in ordered])
    _, annotator_V = np.unique([opinion.annotator for opinion in ordered], return_inverse=True)
    _, label_V = np.unique([str(opinion.answer) for opinion in ordered], return_inverse=True)
    posterior_IL = one_coin(item_V, annotator_V, label_V).posterior_IL
    return dict(zip(items, posterior_IL.max(1).tolist(), strict=True))


class Agreement(NamedTuple):
    """Krippendorff's alpha (nominal), and how often an answer is that of most others: of all, and by annotator."""

    alpha: dict[str, Any]
    overall: dict[str, Any]
    by_person: dict[str, dict[str, Any]]


def agreement(given: Sequence[Opinion]) -> Agreement:
    """How far people agree on the same questions, whichever task asked them; each value with interval and counts."""
    units: dict[Question, int] = {}
    unit_V = np.array([units.setdefault((o.comparison_id, o.first, o.second), len(units)) for o in given], dtype=int)
    _, answer_V = np.unique([str(opinion.answer) for opinion in given], return_inverse=True)
    _, person_V = np.unique([opinion.annotator for opinion in given], return_inverse=True)
    counts_UC = np.zeros((len(units), int(answer_V.max(initial=-1)) + 1))
    np.add.at(counts_UC, (unit_V, answer_V), 1)
    several_U = counts_UC.sum(1) >= 2
    n = int(several_U.sum())
    value = float(alpha(counts_UC)[0]) if n else np.nan
    _, owner_U = np.unique([comparison_id for comparison_id, _, _ in units], return_inverse=True)
    exists = bool(np.isfinite(value))
    found = {
        "value": value if exists else None,
        "interval": bootstrap(alpha, counts_UC[several_U], owner_U[several_U], 0) if exists else None,
        "n": n,
        "n_scored": n if exists else 0,
        "n_failed": 0 if exists else n,
    }
    if not given:
        return Agreement(found, share(0, 0, 0), {})
    agrees_V, decided_V = against_others(counts_UC, unit_V, answer_V)
    hits_V = agrees_V & decided_V
    people = {}
    for number, name in enumerate(sorted({opinion.annotator for opinion in given})):
        own_V = person_V == number
        people[name] = share(int(hits_V[own_V].sum()), int(decided_V[own_V].sum()), int(own_V.sum()))
    return Agreement(found, share(int(hits_V.sum()), int(decided_V.sum()), len(given)), people)


def winners(given: Iterable[Opinion]) -> int:
    """Questions with one leading answer that is no tie: usable pairs, or labelled responses."""
    counts: dict[Question, Counter[int | str]] = {}
    for opinion in given:
        counts.setdefault((opinion.comparison_id, opinion.first, opinion.second), Counter())[opinion.answer] += 1
    found = 0
    for answers in counts.values():
        (leader, most), *others = answers.most_common(2)
        found += leader != TIE and (not others or others[0][1] < most)
    return found


def _question(opinion: Opinion) -> Question:
    return opinion.source, opinion.first, opinion.second
