"""The extension point for importers: a published schema is one class, known by its columns or named in ``format``.

In: the columns of a file. Out: the importer whose layout it has. A new one is one file, and one line in ``IMPORTERS``;
one from elsewhere is named ``format: module:Class``. Layouts that hold no comparisons are known too, so that such a
file is refused with what it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, InstanceOf, TypeAdapter, ValidationError, model_validator

from align.core.plugins import Part, Seam, load
from annotation.importers.columns import Columns, Labels

Row = dict[str, Any]
Layout = tuple[str, ...]  # columns by which a schema is recognised
RANKED = ("prompt", "responses", "ranks")  # what an importer makes of a row that ranks several responses
Layouts = Annotated[tuple[Annotated[Layout, Field(min_length=1)], ...], Field(min_length=1)]
DECLARATIONS: Mapping[str, tuple[TypeAdapter[Any], str]] = {  # of a class: type and example
    "layouts": (TypeAdapter(Layouts), '(("question", "answers"),), one tuple per set of columns'),
    "holds": (TypeAdapter(Literal["preferences", "votes", "rankings"]), '"preferences", "votes" or "rankings"'),
    "columns": (TypeAdapter(InstanceOf[Columns]), 'Columns(left="answer_a", right="answer_b", label="winner")'),
    "labels": (TypeAdapter(InstanceOf[Labels]), 'Labels(left="1", right="2")'),
    "makes": (TypeAdapter(tuple[str, ...]), '("label",), the names of columns'),
}


class Importer(Part):
    """A published schema: what its columns hold, and how a row is rewritten before it is read.

    ``layouts`` are sets of columns; a file that has all columns of one is of this schema. A row ``holds`` a better and
    a worse response (``preferences``), two responses and a label (``votes``), or several (``rankings``), and
    ``columns`` and ``labels`` say where and how. ``knows_sides``: left and right are where they were on a screen.
    ``is_scored``: strengths are differences of scores.

    Fields of a derived class are settings: ``format: {kind: module:Class, …}``.
    """

    layouts: ClassVar[tuple[tuple[str, ...], ...]]
    holds: ClassVar[Literal["preferences", "votes", "rankings"]] = "votes"
    columns: ClassVar[Columns] = Columns()
    labels: ClassVar[Labels] = Labels()
    makes: ClassVar[tuple[str, ...]] = ()
    knows_sides: ClassVar[bool] = False
    is_scored: ClassVar[bool] = False

    @model_validator(mode="after")
    def _is_declared(self) -> Self:
        """Check the class attributes, which need no annotation."""
        for name, (adapter, example) in DECLARATIONS.items():
            value = getattr(self, name, None)
            try:
                adapter.validate_python(value, strict=True)
            except ValidationError:
                raise ValueError(f"class {type(self).__name__}: {name} is {str(value)[:60]}; write {example}") from None
        return self

    def rewrite(self, row: Row) -> Row:
        """Return the columns that a row ``makes``, or other values of its columns; ``row`` is a copy.

        A ranking makes ``prompt``, ``responses`` and ``ranks``: a number for each, the least for the best, equal ones
        for ties.

        Raises:
            UnusableRow: the row holds no judgment; says why.
        """
        return {}

    def layout_in(self, known: Collection[str]) -> Layout | None:
        """Return the first layout all of whose columns are there."""
        return next((layout for layout in self.layouts if {*layout} <= {*known}), None)


class OtherData(NamedTuple):
    """A published layout that holds no comparisons: what it is instead, and what to do with it."""

    name: str
    layout: Layout
    advice: str


_PUBLISHED = "annotation.importers.published"
IMPORTERS = Seam(
    "importer",
    {  # a file is read by the first whose layout it has
        "arena conversations": f"{_PUBLISHED}:ArenaConversations",
        "arena table": f"{_PUBLISHED}:ArenaTable",
        "arena table with winner": f"{_PUBLISHED}:ArenaTableWithWinner",
        "HelpSteer2 preferences": f"{_PUBLISHED}:HelpSteer2",
        "HelpSteer3 preferences": f"{_PUBLISHED}:HelpSteer3",
        "SHP": f"{_PUBLISHED}:SHP",
        "PKU-SafeRLHF": f"{_PUBLISHED}:SafeRLHF",
        "AlpacaEval annotations": f"{_PUBLISHED}:AlpacaEval",
        "LLMBar": f"{_PUBLISHED}:LLMBar",
        "WebGPT comparisons": f"{_PUBLISHED}:WebGPT",
        "TL;DR comparisons": f"{_PUBLISHED}:SummaryComparisons",
        "Prometheus preferences": f"{_PUBLISHED}:Prometheus",
        "OpenAI preferences": f"{_PUBLISHED}:OpenAIPreferences",
        "chosen and rejected with scores": f"{_PUBLISHED}:ScoredChosenRejected",
        "chosen and rejected": f"{_PUBLISHED}:ChosenRejected",
        "votes": f"{_PUBLISHED}:LabelledSides",
    },
)
OTHERS = (
    OtherData(
        "rankings",
        ("prompt", "answers"),
        "it ranks several answers per row (answers with ranks); write each two of them as chosen and rejected",
    ),
    OtherData(
        "rated completions",
        ("instruction", "completions"),
        "it rates several completions per row; write two of each as chosen and rejected",
    ),
    OtherData(
        "message trees",
        ("message_id", "parent_id", "text", "role"),
        "each row is one message of a tree; join siblings by parent_id, and write two of each, by rank, as chosen and "
        "rejected",
    ),
    OtherData(
        "rated responses",
        ("prompt", "response", "helpfulness"),
        "each row is one rated response; join two of each prompt and write them as chosen and rejected",
    ),
    OtherData(
        "graded responses",
        ("orig_instruction", "orig_response", "orig_score"),
        "each row is one graded response; join two of each instruction and write them as chosen and rejected",
    ),
    OtherData(
        "thumbs",
        ("prompt", "completion", "label"),
        "each row is one completion with a thumb; join a good and a bad one of each prompt and write them as chosen "
        "and rejected",
    ),
    OtherData(
        "demonstrations",
        ("prompt", "completion"),
        "each row is one answer and no comparison; 'align sft' reads demonstrations",
    ),
    OtherData(
        "demonstrations",
        ("messages",),
        "each row is one dialogue and no comparison; 'align sft' reads demonstrations: write its last answer as "
        "completion and what comes before it as prompt",
    ),
)


def shipped() -> Iterator[Importer]:
    """Return the shipped importers, in their order."""
    return (load(name)(kind=kind) for kind, name in IMPORTERS.shipped.items())


def known_layouts() -> list[tuple[str, Layout]]:
    """Return every layout that is known, by the name of its schema."""
    importers = [(importer.kind, layout) for importer in shipped() for layout in importer.layouts]
    return importers + [(other.name, other.layout) for other in OTHERS]
