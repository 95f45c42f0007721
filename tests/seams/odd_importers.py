"""Importers with one mistake each, as a newcomer might make it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from annotation.importers.columns import Columns
from annotation.importers.importer import Importer, Row

LAYOUTS = (("question",), ("left", "right"), ("q", "options"))


class Bare(Importer):
    """Declares nothing."""


class Flat(Importer):
    """One set of columns, not in a tuple of such sets."""

    layouts = ("question", "answers")  # type: ignore[assignment]


class Rated(Importer):
    """Holds what no importer holds."""

    layouts = LAYOUTS
    holds = "ratings"  # type: ignore[assignment]


class Mapped(Importer):
    """Columns as a dict."""

    layouts = LAYOUTS
    columns = {"prompt": "question"}  # type: ignore[assignment]


class Worded(Importer):
    """Labels as a dict."""

    layouts = LAYOUTS
    labels = {"left": "1"}  # type: ignore[assignment]


class Maker(Importer):
    """A name where a tuple of names belongs."""

    layouts = LAYOUTS
    makes = "label"  # type: ignore[assignment]


class Nothing(Importer):
    """Forgets to return."""

    layouts = LAYOUTS

    def rewrite(self, row: Row) -> Row:
        return None  # type: ignore[return-value]


class Listed(Importer):
    """Returns a list."""

    layouts = LAYOUTS

    def rewrite(self, row: Row) -> Row:
        return [1]  # type: ignore[return-value]


class Numbered(Importer):
    """Returns columns without names."""

    layouts = LAYOUTS

    def rewrite(self, row: Row) -> Row:
        return {1: "a"}  # type: ignore[dict-item]


class Undeclared(Importer):
    """Makes a column that `makes` does not name."""

    layouts = LAYOUTS

    def rewrite(self, row: Row) -> Row:
        return {"split": "test"}


class Yields(Importer):
    """Yields where it should return."""

    layouts = LAYOUTS

    def rewrite(self, row: Row) -> Iterator[Row]:  # type: ignore[override]
        yield {}


class Ends(Importer):
    """Ends the program."""

    layouts = LAYOUTS

    def rewrite(self, row: Row) -> Row:
        sys.exit(3)


class Raises(Importer):
    """Reads a column that is not there."""

    layouts = LAYOUTS

    def rewrite(self, row: Row) -> Row:
        return {"label": row["stars"]}


class Edits(Importer):
    """Changes the row that it gets, deep down too."""

    layouts = LAYOUTS
    columns = Columns(prompt="question", annotator="who")
    makes = ("who",)

    def rewrite(self, row: Row) -> Row:
        who: Any = row["info"].pop("who")
        row["left"], row["label"] = row.pop("right"), "b"
        return {"who": who}


class Ranked(Importer):
    """Ranks as the file has them; the prompt is a column of its own."""

    layouts = LAYOUTS
    holds = "rankings"
    columns = Columns(prompt="q")

    def rewrite(self, row: Row) -> Row:
        return {"responses": tuple(row["options"]), "ranks": tuple(row["places"])}
