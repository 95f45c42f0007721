"""Comparisons and judgments to test with."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from annotation.feedback.store import Store
from annotation.types import Comparison, Judgment


def comparison(prompt: str, *texts: str) -> Comparison:
    responses = [{"messages": [{"role": "assistant", "content": text}]} for text in texts]
    return Comparison.model_validate({"prompt": [{"role": "user", "content": prompt}], "responses": responses})


def judgment(item: Comparison, annotator: str, ranking: list[list[int]] | None = None, **more: object) -> Judgment:
    order = ranking or [[0], [1]]
    return Judgment(
        comparison_id=item.id, annotator=annotator, ranking=order, shown=sorted(i for g in order for i in g), **more
    )


def said(item: Comparison, better: str, annotator: str, **more: object) -> Judgment:
    """A judgment by the text of the better of two responses."""
    first = int(item.responses[0].text != better)
    return judgment(item, annotator, [[first], [1 - first]], **more)


ITEMS = [comparison(f"question {n}", f"yes {n}", f"no, not {n}") for n in range(4)]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Rows 1-4 are comparisons, 5-12 are judgments of ann and bob."""
    path = tmp_path / "feedback.db"
    with Store.open(path, write=True) as store:
        store.add_comparisons(ITEMS)
        store.add_judgments(judgment(item, name, source="test") for item in ITEMS for name in ("ann", "bob"))
    return path


def edit(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for trigger in ("log_keeps", "log_stays", "bodies_keep"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
