"""An importer from outside the package: rows of one question with several answers, each rated by stars."""

from __future__ import annotations

from annotation.importers.imported import UnusableRow
from annotation.importers.importer import Importer, Row


class Stars(Importer):
    """Answers in the order of their stars; those with fewer than ``least`` are left out."""

    layouts = (("question", "answers", "stars"),)
    holds = "rankings"

    least: int = 0

    def rewrite(self, row: Row) -> Row:
        if len(row["answers"]) != len(row["stars"]):
            raise UnusableRow("not one number of stars per answer")
        rated = [pair for pair in zip(row["answers"], row["stars"], strict=True) if pair[1] >= self.least]
        return {
            "prompt": row["question"],
            "responses": [answer for answer, _ in rated],
            "ranks": [-stars for _, stars in rated],
        }
