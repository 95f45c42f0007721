"""Which judgments count: none of excluded people, no answer to a known question, and one answer per person.

In: a store's judgments, its exclusions, and what it knows of its tasks. Out: the judgments that pairs, thumbs and
labels are made of, and how many were left out, by reason. A task is known by the source of a judgment; of judgments
that came otherwise (imported, simulated) one counts per person, comparison and file.

When a person meets a comparison again (a repeated task, or another campaign), the first task's answer counts. The
store keeps no time of an answer, so "first" is by purpose: work before its repetition, then by the name of the source.
The second answer still measures how far people agree with themselves (``agreement/measures.py``). Not here: whom to
exclude.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from align.core.records import Judgment
from annotation.aggregation.votes import DOWN, UP
from annotation.store.ledger import excluded, labels, purposes, source_of
from annotation.store.store import Store

EXCLUDED, KNOWN, AGAIN = "annotator excluded", "known answer", "asked again"  # reasons; each counts judgments
LABELLING_SERVER = "label-studio:"  # begins the source of a judgment on a task, before its campaign and key
OPEN_QUESTIONS = ("work", "repeat")  # purposes of tasks whose answer nobody knew beforehand


class Questions(NamedTuple):
    """Purposes of tasks by the source of their judgments, plain work left out; labels that campaigns offer, by name."""

    purposes: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]

    def offered(self, judgment: Judgment) -> tuple[str, ...]:
        """Return the labels a judgment was chosen from; empty where it is not known."""
        campaign = judgment.source.removeprefix(LABELLING_SERVER).rpartition(":")[0]
        return self.labels.get(campaign, ()) if judgment.source.startswith(LABELLING_SERVER) else ()


class CountingJudgments(NamedTuple):
    """What counts, in the order it came, what was left out by reason, and how many judgments of whom were excluded."""

    judgments: list[Judgment]
    left_out: Counter[str]
    excluded: Counter[str]


def questions_of(store: Store) -> Questions:
    """Return what a store knows of the questions behind its judgments."""
    tasks = purposes(store)
    known = {(campaign, item): purpose for campaign, _, item, purpose in tasks if purpose not in OPEN_QUESTIONS}
    return Questions(  # to ask a known answer again is still to ask for a known answer
        {source_of(campaign, key): known.get((campaign, item), purpose) for campaign, key, item, purpose in tasks},
        labels(store),
    )


def exclusions_hash(store: Store) -> str:
    """Hash what decides which judgments count and is no entry of the chain: exclusions, and purposes of tasks."""
    sources = store.sources()
    purposes = {source: purpose for source, purpose in questions_of(store).purposes.items() if source in sources}
    return hashlib.sha256(json.dumps([excluded(store), purposes], sort_keys=True).encode()).hexdigest()


def counting_judgments(
    judgments: Iterable[Judgment], questions: Questions, without: Iterable[str]
) -> CountingJudgments:
    """Choose the judgments that count; ``without`` are the people that do not."""
    gone, left_out, by_person = set(without), Counter[str](), Counter[str]()
    kept = []
    for judgment in judgments:
        if judgment.annotator in gone:
            by_person[judgment.annotator] += 1
        elif questions.purposes.get(judgment.source, "work") not in OPEN_QUESTIONS:
            left_out[KNOWN] += 1
        else:
            kept.append(judgment)
    left_out[EXCLUDED] = by_person.total()
    once = _first_answers(kept, questions)
    left_out[AGAIN] = len(kept) - len(once)
    return CountingJudgments(once, left_out, by_person)


def _first_answers(judgments: list[Judgment], questions: Questions) -> list[Judgment]:
    """Return one judgment per person, comparison and question of those that a labelling server gave; all others."""
    first: dict[tuple[str, ...], tuple[bool, str]] = {}
    keys = [_question(judgment, questions) for judgment in judgments]
    ranks = [(questions.purposes.get(judgment.source) == "repeat", judgment.source) for judgment in judgments]
    for key, rank in zip(keys, ranks, strict=True):
        first[key] = min(first.get(key, rank), rank)
    return [j for j, key, rank in zip(judgments, keys, ranks, strict=True) if first[key] == rank]


def _question(judgment: Judgment, questions: Questions) -> tuple[str, ...]:
    """Return the question of a judgment, with its annotator: an order, a thumb and each set of labels differ."""
    if not judgment.source.startswith(LABELLING_SERVER):
        return (judgment.comparison_id, judgment.annotator, judgment.source.partition("#")[0])  # by file
    if judgment.label in (UP, DOWN, None):
        return (judgment.comparison_id, judgment.annotator, "", "" if judgment.label is None else "thumb")
    return (judgment.comparison_id, judgment.annotator, "", "label", *questions.offered(judgment))
