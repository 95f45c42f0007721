"""Comparisons whose answer is known: read from a file, kept apart from judgments, and compared with them.

In: JSON lines of a prompt with responses (as in ``candidates.jsonl``, or a ``Comparison``) and what is right about
them: ``ranking`` (tie groups of the row's own response numbers, best first), ``best`` (one number; the others are not
compared with each other) or ``label`` (of a single response); ``kind: attention`` marks an answer that is beyond doubt
for everybody who reads. Out: items, whose answers go to ``feedback.db`` and never to a server. Not here: what is made
of a person's right and wrong answers (``gold.py``, ``calibration.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from align.core.config import BadInput
from align.core.files import read_jsonl
from align.core.records import Comparison, Judgment, Response
from annotation.aggregation.votes import votes_of
from annotation.agreement.columns import is_right as orders_alike
from annotation.interface.config import Interface, verdicts
from annotation.store.ledger import Ledger, source_of
from annotation.store.tables import KnownAnswer, Purpose, Task

ANSWERS = ("ranking", "best", "label")
KINDS = ("gold", "attention")


class KnownItem(NamedTuple):
    """A comparison with its known answer, and the purpose of its task."""

    comparison: Comparison
    purpose: Purpose
    answer: KnownAnswer


def read_items(path: Path, interface: Interface, purpose: Purpose) -> dict[str, KnownItem]:
    """Read the items of a file, by comparison id.

    Raises:
        BadInput: no rows, or a row is no comparison of this interface with one known answer (named by number).
    """
    items: dict[str, KnownItem] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"{path}: row {number}"
        comparison, order = _comparison(row, interface, where)
        if comparison.id in items:
            raise BadInput(f"{where}: the same comparison occurs twice; keep one")
        kind = row.get("kind", "gold")
        if kind not in KINDS:
            raise BadInput(f"{where}: kind '{kind}' is none of {', '.join(KINDS)}")
        answer = _answer(row, order, interface, where)
        family = str(row.get("family") or "")
        items[comparison.id] = KnownItem(
            comparison, purpose, answer._replace(is_attention=kind == "attention", family=family)
        )
    if not items:
        raise BadInput(f"{path}: holds no rows; write one comparison with its answer a line")
    return items


def stored_items(ledger: Ledger, purpose: Purpose) -> list[tuple[Task, Comparison]]:
    """Return a campaign's tasks of a purpose, sent or not, with their comparisons, by key; erased ones are left out."""
    tasks = [task for task in ledger.tasks().values() if task.purpose == purpose]
    pairs = [(task, ledger.store.comparison(task.comparison_id)) for task in tasks]
    return [(task, comparison) for task, comparison in pairs if comparison is not None]


def marks_of(ledger: Ledger, purpose: Purpose) -> dict[tuple[str, str], list[bool]]:
    """Return whether each judgment in force on known answers of a purpose is right, by annotator and kind of answer."""
    marks: dict[tuple[str, str], list[bool]] = {}
    for task in ledger.tasks().values():
        if task.purpose == purpose and task.answer is not None:
            kind = "attention" if task.answer.is_attention else "gold"
            for judgment in ledger.store.judgments_of(task.comparison_id, source_of(ledger.campaign, task.key)):
                marks.setdefault((judgment.annotator, kind), []).append(is_right(task.answer, judgment))
    return marks


def is_right(answer: KnownAnswer, judgment: Judgment) -> bool:
    """Return whether a judgment agrees with the known answer: its label, or its order of every two responses."""
    if answer.ranking is None:
        return judgment.label == answer.label
    hits = [orders_alike(vote, answer.ranking) for vote in votes_of([judgment])]
    return all(hit for hit in hits if hit is not None)


def _comparison(row: Mapping[str, Any], interface: Interface, where: str) -> tuple[Comparison, list[int]]:
    """Return the comparison, and the canonical number of each response of the row."""
    try:
        given = [Response.of(response) for response in row["responses"]]
        shared = {key: row[key] for key in ("id", "tools", "template_arguments", "language") if row.get(key)}
        comparison = Comparison.model_validate({"prompt": row["prompt"], "responses": given, **shared})
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{where}: expected 'prompt' and 'responses' with 'messages' ({error!r})") from None
    except ValidationError as error:
        raise BadInput(f"{where}: {error.errors()[0]['msg']}") from None
    if len(given) != interface.n_responses:
        raise BadInput(f"{where}: {len(given)} responses, kind: {interface.kind} shows {interface.n_responses}")
    canonical = [response.messages for response in comparison.responses]
    order = [canonical.index(response.messages) for response in given]
    if len(set(order)) < len(order):
        raise BadInput(f"{where}: two responses are the same, so none of them can be right")
    return comparison, order


def _answer(row: Mapping[str, Any], order: list[int], interface: Interface, where: str) -> KnownAnswer:
    """Return the answer by canonical response numbers."""
    named = [name for name in ANSWERS if row.get(name) is not None]
    wanted = ("label",) if interface.n_responses == 1 else ("ranking", "best")
    if len(named) != 1 or named[0] not in wanted:
        raise BadInput(f"{where}: expected one of {' and '.join(wanted)}, got {', '.join(named) or 'none'}")
    value = row[named[0]]
    if named == ["label"]:
        if value not in verdicts(interface):
            raise BadInput(f"{where}: label '{value}' is none of {', '.join(verdicts(interface))}")
        return KnownAnswer(label=value)
    groups = [[value]] if named == ["best"] else value
    try:
        ranking = [sorted(order[_number(index)] for index in group) for group in groups]
        ranked = sorted(index for group in ranking for index in group)
        if named == ["ranking"] and (ranked != list(range(len(order))) or not all(ranking)):
            raise ValueError
    except (TypeError, ValueError, IndexError):
        last = len(order) - 1
        raise BadInput(f"{where}: {named[0]} {value!r} must hold response numbers, 0 to {last}, once each") from None
    return KnownAnswer(ranking=ranking)


def _number(index: Any) -> int:
    if type(index) is not int or index < 0:
        raise ValueError
    return index
