"""Judgments of a file: who gave them, whether they repeat, and their split, language and strength.

In: the rows of a table, and a function that judges one. Out: an ``ImportedFile``. Rows of named people are their
votes: what several people judged is one comparison, and a person's second answer is kept apart by its source. Of rows
without a name, one that repeats another is dropped, two that contradict each other are both dropped, and rows with ids
of their own stay apart although their texts are the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.core.hashes import file_hash
from align.core.messages import normalised
from align.core.records import Comparison, Judgment
from annotation.aggregation.votes import UNKNOWN_SIDES
from annotation.importers.columns import Columns, FileSettings, cell_of, name_in, number_of
from annotation.importers.imported import ImportedFile, ImportedRow, UnusableRow, left_out
from annotation.importers.importer import Row
from annotation.importers.languages import tag_of
from annotation.importers.responses import PromptResponses, placed
from annotation.importers.table import Table
from annotation.importers.turns import BESIDE, marks_in, refuse_media, template_arguments_of, tools_of
from annotation.store.chain import STRICTNESS, Split

NOBODY = "imported:"  # how a file is called that names nobody
LONG = 20  # characters of a prompt with which a response would not begin by chance
STRONGEST = 3  # strengths of people's own judgments go from 0 to this
SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {  # by what the name of a published split begins with
    "train": ("train",),
    "validation": ("val", "dev", "eval"),
    "test": ("test", "heldout", "held_out", "held-out", "holdout"),
}
UNKNOWN_LANGUAGE = "{count} rows name no language that is known: {named}; taken as {language}"
MARKED = "{count} rows hold marks of turns or of a chat template in their text: {named}; kept as they stand"
EXAMPLES = 5  # different values that are named
HELD_OUT: Sequence[Split] = ("validation", "test")
CUT = "rows compare whole dialogues that part at their first answer: read as a vote on the first answers"

STANDS_FOR_NONE = ("nan", "none", "null", "<na>", "n/a", "#n/a", "#name?", "#ref!", "#value!", "#div/0!")
NO_TEXT = "rows hold a text that other programs write for none or for an error ('nan', 'None', '#NAME?'): kept as text"
SEVERAL = "rows name several annotators: one vote by all of them together (write a row for each vote)"
EXCEL = 32_767  # characters of a cell
CUT_OFF = f"rows hold a text of exactly {EXCEL:,} characters, the most that a cell of Excel holds: cut off, most likely"


class JudgedRow(NamedTuple):
    """A row that was understood, before it is compared with other rows.

    ``row`` holds the cells beside the judgment. ``ranking`` holds tie groups of places in ``sides``; ``size`` is how
    much better the first is, on the file's scale.
    """

    row: Row
    sides: PromptResponses
    ranking: Sequence[Sequence[int]]
    size: float | None = None
    flags: Sequence[str] = (UNKNOWN_SIDES,)


JudgeRow = Callable[[Row], JudgedRow]  # raises UnusableRow


class Collector:
    """The judgments of one table, of which ``used`` columns are read; ``base`` is how their sources begin."""

    def __init__(self, table: Table, used: Columns, base: str) -> None:
        self.table, self.used, self.path, self.settings, self.base = table, used, table.path, table.settings, base
        self.nobody = f"{NOBODY}{hashed_name(table.path)}"
        self.kept: list[ImportedRow | None] = []  # None: contradicted by a later row
        self.dropped: list[dict[str, Any]] = []
        self.sizes: dict[int, float] = {}  # by place in ``kept``
        self.hints: dict[str, set[Split]] = {}  # by prompt, normalised
        self.counted: Counter[str] = Counter()  # how often each note applies
        self.examples: dict[str, Counter[str]] = {UNKNOWN_LANGUAGE: Counter(), MARKED: Counter()}
        self.used_settings: set[str] = set()  # which settings of the whole file held for a row
        self._rows: dict[bytes, int] = {}  # digest of a row to its number
        self._nameless: dict[str, dict[str | None, int]] = {}  # by comparison: places in ``kept`` by the row's own id
        self._times: Counter[tuple[str, str, str]] = Counter()
        self._placed: dict[str, tuple[Comparison, list[int]] | str] = {}

    def read(self, judge: JudgeRow, responses: Sequence[str]) -> None:
        """Judge every row; ``responses`` are the columns that may be empty."""
        for number, row in self.table.rows:
            name = None
            try:
                if isinstance(row, UnusableRow):
                    raise row
                row = {column: cell for column, cell in row.items() if cell != "" or column in responses}
                name = name_in(row, self.used.item) or name_in(row, self.used.id)
                annotator = self._annotator(row)
                if annotator or self.settings.annotator:
                    self._refuse_copies(number, row)
                refuse_media(row)
                self._add(number, name, annotator, judge(row))
            except UnusableRow as reason:
                self.dropped.append(left_out(number, name, reason))

    def number(
        self, row: Mapping[str, Any], column: str | None, is_allowed: Callable[[float], bool] = math.isfinite
    ) -> float | None:
        """Return a cell that should hold a number; one that does not is counted."""
        if column is None or column not in row:
            return None
        number = number_of(row[column])
        if number is None or not is_allowed(number):
            self.counted[f"cells of column '{column}' are no numbers that it may hold; left out, the votes count"] += 1
            return None
        return number

    def _annotator(self, row: Row) -> str | None:
        """Return who judged a row; several people are counted, since their vote is one."""
        column = self.used.annotator
        cell = cell_of(row, column)
        self.counted[SEVERAL] += isinstance(cell, list) and len(cell) > 1
        name = name_in(row, column)
        if column is not None and name is None and self.settings.annotator is None:
            raise UnusableRow(f"no annotator (column '{column}' is empty)")
        return name

    def _refuse_copies(self, number: int, row: Row) -> None:
        """Raise UnusableRow where another row is the same to the letter."""
        digest = hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest()
        first = self._rows.setdefault(digest, number)
        if first != number:
            raise UnusableRow(f"duplicate (of row {first})")

    def _add(self, number: int, name: str | None, annotator: str | None, judged: JudgedRow) -> None:
        """Enter a judgment."""
        row, used = judged.row, self.used
        item, own_id = name_in(row, used.item), name_in(row, used.id)
        language, rationale = name_in(row, used.language), name_in(row, used.rationale)
        seconds = self.number(row, used.seconds, lambda seconds: seconds >= 0)
        split = self._split(name_in(row, used.split))
        comparison, shown = self._place(judged, language)
        if split:
            self.hints.setdefault(normalised(comparison.prompt), set()).add(split)
        ranking = [sorted(shown[place] for place in group) for group in judged.ranking]
        person = annotator or self.settings.annotator
        source = self.base if item is None else f"{self.base}#{item}"
        if annotator is None:
            self.used_settings.add("annotator")
        if person is None:
            comparison = self._apart(comparison, ranking, own_id, number)
        else:
            self._times[comparison.id, person, source] += 1
            times = self._times[comparison.id, person, source]
            source = source if times == 1 else f"{source}#{times}"
        if judged.size is not None:
            self.sizes[len(self.kept)] = judged.size
        judgment = Judgment(
            comparison_id=comparison.id,
            annotator=person or self.nobody,
            ranking=ranking,
            shown=shown,
            flags=list(judged.flags),
            rationale=rationale,
            seconds=seconds,
            source=source,
        )
        self.kept.append(ImportedRow(number, name, comparison, judgment))
        self._remark(judged.sides)

    def result(self, format: str, notes: Sequence[str] = (), also_read: Sequence[str] = ()) -> ImportedFile:
        """Return all of it, with strengths and splits as the file as a whole gives them.

        Args:
            also_read: columns that were read beside those in use.
        """
        strengths, scale = self._strengths()
        kept = [
            entry._replace(judgment=entry.judgment.model_copy(update=strengths.get(place, {})))
            for place, entry in enumerate(self.kept)
            if entry is not None
        ]
        splits, moved = self._splits([entry.comparison for entry in kept])
        notes = [*notes, *self.table.unread({*self.used.named, *BESIDE, *also_read})]
        notes += [f"{count} {thing}" for thing, count in sorted(self.counted.items()) if count]
        for thing, seen in self.examples.items():
            named = ", ".join(f"'{example}' ({count})" for example, count in seen.most_common(EXAMPLES))
            notes += [thing.format(count=seen.total(), named=named, language=self.settings.language)] if seen else []
        notes += [*scale, *moved, *self._unsplit(bool(splits)), *self._unused()]
        dropped = sorted(self.dropped, key=lambda entry: int(entry["row"]))
        return ImportedFile(format, len(self.table.rows), kept, dropped, self.table.replaced[0], notes, splits)

    def _remark(self, sides: PromptResponses) -> None:
        """Count texts that were read literally and may be meant otherwise."""
        self.counted[CUT] += sides.is_cut
        if mark := marks_in([message for messages in (sides.prompt, *sides.responses) for message in messages]):
            self.examples[MARKED][mark] += 1
        whole = [str(message.get("content") or "") for turns in (sides.prompt, *sides.responses) for message in turns]
        self.counted[NO_TEXT] += any(text.strip().casefold() in STANDS_FOR_NONE for text in whole)
        self.counted[CUT_OFF] += any(len(text) == EXCEL for text in whole)
        first, *more = sides.prompt
        texts = [str(response[0].get("content") or "") for response in sides.responses]
        if not more and len(text := str(first.get("content") or "")) > LONG and all(t.startswith(text) for t in texts):
            self.counted["rows repeat the whole prompt at the beginning of every response: kept"] += 1

    def _place(self, judged: JudgedRow, language: str | None) -> tuple[Comparison, list[int]]:
        """Return the comparison of a row and the order of its responses, made once for all rows of the same content.

        Its language is that of the first row.
        """
        tools, arguments = tools_of(judged.row.get("tools")), template_arguments_of(judged.row)
        tag = self._language(language)
        key = json.dumps([judged.sides.prompt, judged.sides.responses, tools, arguments], default=str)
        if key not in self._placed:
            try:
                self._placed[key] = placed(judged.sides, tag, tools, arguments)
            except UnusableRow as reason:
                self._placed[key] = str(reason)
        made = self._placed[key]
        if isinstance(made, str):
            raise UnusableRow(made)
        return made

    def _apart(self, comparison: Comparison, ranking: list[list[int]], own_id: str | None, number: int) -> Comparison:
        """Return the comparison of a row that names nobody: its own where rows of the same texts have other ids."""
        seen = self._nameless.setdefault(comparison.id, {})
        own = own_id if own_id is not None or None in seen else next(iter(seen), None)
        if own not in seen:
            if seen:
                comparison = Comparison.model_validate({**comparison.model_dump(exclude={"id"}), "item": own})
            seen[own] = len(self.kept)
            return comparison
        before = self.kept[seen[own]]
        if before is None:
            raise UnusableRow("contradicts another row")
        if before.judgment.ranking == ranking:
            raise UnusableRow(f"duplicate (of row {before.row})")
        self.kept[seen[own]] = None
        self.dropped.append(left_out(before.row, before.name, f"contradicts another row (row {number})"))
        raise UnusableRow(f"contradicts another row (row {before.row})")

    def _language(self, value: str | None) -> str:
        if value is None:
            self.used_settings.add("language")
            return self.settings.language
        if (tag := tag_of(value)) is None:
            self.examples[UNKNOWN_LANGUAGE][value[:20]] += 1
            self.used_settings.add("language")
        return tag or self.settings.language

    def _split(self, value: str | None) -> Split | None:
        name = value or ""
        if name and (split := split_of(name)) is not None:
            return split
        self.used_settings.add("split")
        if not name:
            return self.settings.split
        if self.settings.split is None:
            raise UnusableRow(
                f"unknown split ('{name[:40].casefold()}'; split=train, validation or test says where such rows go)"
            )
        return self.settings.split

    def _strengths(self) -> tuple[dict[int, dict[str, Any]], list[str]]:
        """Return strengths where the file's go from 0 to 3 in whole steps, else margins on the file's own scale."""
        sizes = {place: size for place, size in self.sizes.items() if self.kept[place] is not None}
        is_scored = self.table.importer is not None and self.table.importer.is_scored
        if not is_scored and all(size in range(STRONGEST + 1) for size in sizes.values()):
            return {place: {"strength": int(size)} for place, size in sizes.items()}, []
        reach = f"{min(sizes.values()):g} to {max(sizes.values()):g}" if sizes else ""
        note = [f"strengths go from {reach}: kept as margins on that scale"] if sizes else []
        return {place: {"margin": size} for place, size in sizes.items()}, note

    def _splits(self, comparisons: Sequence[Comparison]) -> tuple[dict[str, Split], list[str]]:
        """Return the split of each comparison: of all that rows give its prompt, the one that is held out most."""
        if not self.hints:
            return {}, []
        strictest = {prompt: max(hints, key=STRICTNESS.__getitem__) for prompt, hints in self.hints.items()}
        several = sum(len(hints) > 1 for hints in self.hints.values())
        note = [f"{several} prompts stand in several splits: all rows of each go to the one that is held out most"]
        prompts = {comparison.id: normalised(comparison.prompt) for comparison in comparisons}
        splits = {key: strictest[prompt] for key, prompt in prompts.items() if prompt in strictest}
        return splits, note if several else []

    def _unused(self) -> list[str]:
        """Return notes on settings of the whole file that no row had a use for."""
        values = {name: getattr(self.settings, name) for name in ("annotator", "split", "language")}
        return [
            f"{name}={value} holds for no row: each says its own"
            for name, value in values.items()
            if value not in (None, FileSettings().language) and name not in self.used_settings and any(self.kept)
        ]

    def _unsplit(self, has_splits: bool) -> list[str]:
        """Return a note on a file that is named after a split and whose rows give none."""
        name = self.path.name.casefold()
        held_out = next((split for split in HELD_OUT if name.startswith(SPLIT_NAMES[split])), None)
        if has_splits or held_out is None:
            return []
        return [
            f"its name says {held_out}, no row does: prompts will be split anew; split={held_out} holds all of them out"
        ]


def split_of(name: str) -> Split | None:
    """Return the split that a published name of one means, None where it is not known."""
    named = name.casefold()
    return next((split for split, begins in SPLIT_NAMES.items() if named.startswith(begins)), None)


def hashed_name(path: Path) -> str:
    """Return a file's name with the beginning of its hash: names of published files are often alike."""
    return f"{path.name}#{file_hash(path)[:8]}" if path.is_file() else path.name
