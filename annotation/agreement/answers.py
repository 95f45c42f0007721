"""Find contested questions, how far people agree, and which questions have a winner, for every kind of task.

In: votes, labels of single responses included. Pure functions. A question is which of two responses is better, or what
a single response is called, in one task; a ranking of k responses answers k(k-1)/2 of them.

A question is undecided while no answer has more than half of the votes; a tie is an answer of its own, so one tie
against one preference is undecided, and "both are bad" is a tie. On request it is undecided, too, while its most
probable answer is less probable than a bound. A task is contested when half of its questions or more are undecided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from align.core.stats.agreement import alpha, bootstrap
from align.core.stats.estimates import Estimate, proportion
from annotation.aggregation.estimators import one_coin
from annotation.aggregation.votes import TIE, Unit, Vote
from annotation.agreement.columns import numbered, owners, tabulate
from annotation.agreement.measures import against_others

Question = tuple[str, int, int]  # source, first and second response


def contested(votes: Sequence[Vote], posterior: float | None = None) -> set[str]:
    """Return the sources (tasks) of which half of the questions or more are undecided.

    Args:
        posterior: also undecided is a question whose most probable answer is less probable than this.
    """
    answers: dict[Question, Counter[int | str]] = {}
    for vote in votes:
        answers.setdefault(_question(vote), Counter())[vote.answer] += 1
    sure = {} if posterior is None else certainty(votes)
    undecided: dict[str, list[bool]] = {}
    for question, counts in answers.items():
        disagree = len(counts) > 1 and 2 * max(counts.values()) <= counts.total()
        doubted = posterior is not None and sure[question] < posterior
        undecided.setdefault(question[0], []).append(disagree or doubted)
    return {source for source, marks in undecided.items() if 2 * sum(marks) >= len(marks)}


def certainty(votes: Iterable[Vote]) -> dict[Question, float]:
    """Return the probability of each question's most probable answer, by one-coin Dawid-Skene over all of them."""
    ordered = sorted(votes, key=lambda vote: (_question(vote), vote.annotator, str(vote.answer)))
    if not ordered:
        return {}
    questions = [_question(vote) for vote in ordered]
    _, annotator_V = np.unique([vote.annotator for vote in ordered], return_inverse=True)
    _, label_V = np.unique([str(vote.answer) for vote in ordered], return_inverse=True)
    posterior_IL = one_coin(numbered(questions), annotator_V, label_V).posterior_IL
    return dict(zip(dict.fromkeys(questions), posterior_IL.max(1).tolist(), strict=True))


class Agreement(NamedTuple):
    """Krippendorff's alpha (nominal), and how often an answer is that of most others: of all, and by annotator."""

    alpha: Estimate
    overall: Estimate
    by_person: dict[str, Estimate]


def agreement(votes: Sequence[Vote]) -> Agreement:
    """Measure how far people agree on the same questions, whichever task they were in."""
    unit_V = numbered([vote.unit for vote in votes])
    _, answer_V = np.unique([str(vote.answer) for vote in votes], return_inverse=True)
    _, person_V = np.unique([vote.annotator for vote in votes], return_inverse=True)
    counts_UC = tabulate(unit_V, answer_V, int(answer_V.max(initial=-1)) + 1)
    several_U = counts_UC.sum(1) >= 2
    owner_U = owners(unit_V, np.unique([vote.comparison_id for vote in votes], return_inverse=True)[1])
    n = {"alpha": int(several_U.sum())}
    nominal = bootstrap({"alpha": alpha}, counts_UC[several_U], owner_U[several_U], n, seed=0)["alpha"]
    if not votes:
        return Agreement(nominal, proportion(0, 0, 0), {})
    agrees_V, decided_V, _ = against_others(counts_UC, unit_V, answer_V)
    hits_V = agrees_V & decided_V
    people = {}
    for number, name in enumerate(sorted({vote.annotator for vote in votes})):
        own_V = person_V == number
        people[name] = proportion(int(hits_V[own_V].sum()), int(decided_V[own_V].sum()), int(own_V.sum()))
    return Agreement(nominal, proportion(int(hits_V.sum()), int(decided_V.sum()), len(votes)), people)


def winners(votes: Iterable[Vote]) -> int:
    """Count the questions with one leading answer that is no tie: usable pairs, or labelled responses."""
    counts: dict[Unit, Counter[int | str]] = {}
    for vote in votes:
        counts.setdefault(vote.unit, Counter())[vote.answer] += 1
    leading = [answers.most_common(2) for answers in counts.values()]
    return sum(first[0] != TIE and all(count < first[1] for _, count in others) for first, *others in leading)


def _question(vote: Vote) -> Question:
    return vote.source, vote.first, vote.second
