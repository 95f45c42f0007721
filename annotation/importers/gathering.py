"""Judgments of a file as they are gathered: who gave them, whether they repeat, their split, language and strength.

In: one judged row after another. Out: what the file comes to (``Found``). Rows of named people are their votes: the
same comparison by several people is one comparison, and somebody's second answer is kept apart by its source. Rows
without a name are taken as published: one that repeats another gives nothing, two that contradict each other both go,
and rows that have ids of their own stay apart although their texts are the same.
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
from annotation.importers.columns import number_of
from annotation.importers.intake import Found, Given, Kept, Unusable, cell_of, left_out, name_in
from annotation.importers.languages import tag_of
from annotation.importers.sides import Placed, Sides, placed
from annotation.importers.turns import marks_in
from annotation.store.store import STRICTNESS, Split

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


class Judged(NamedTuple):
    """A row that was understood, before it is known whether another one says the same.

    ``ranking`` holds tie groups of places in ``sides``; ``size`` is how much better the first is, on the file's scale.
    ``name`` is what the file calls the row in accounts of what was dropped, ``own_id`` what tells it from other rows.
    """

    sides: Sides
    ranking: Sequence[Sequence[int]]
    annotator: str | None = None
    name: str | None = None
    own_id: str | None = None
    item: str | None = None
    size: float | None = None
    split: str | None = None
    language: str | None = None
    flags: Sequence[str] = ()
    rationale: str | None = None
    seconds: float | None = None
    tools: list[dict[str, Any]] | None = None
    template_arguments: Any = None


class Gathering:
    """One file: what was found so far.

    Args:
        base: how the sources of its judgments begin.
        is_scored: sizes are differences of scores, so even whole ones below 4 are no strengths.
    """

    def __init__(self, path: Path, given: Given, base: str, *, is_scored: bool = False) -> None:
        self.path, self.given, self.base, self.is_scored = path, given, base, is_scored
        self.nobody = f"{NOBODY}{hashed_name(path)}"
        self.kept: list[Kept | None] = []  # None: contradicted by a later row
        self.dropped: list[dict[str, Any]] = []
        self.sizes: dict[int, float] = {}  # by place in ``kept``
        self.hints: dict[str, set[Split]] = {}  # by prompt, normalised
        self.counted: Counter[str] = Counter()  # things worth saying, by how often
        self.examples: dict[str, Counter[str]] = {UNKNOWN_LANGUAGE: Counter(), MARKED: Counter()}
        self.used_given: set[str] = set()  # what of a user's words held for a row
        self._rows: dict[bytes, int] = {}  # digest of a row to its number
        self._nameless: dict[str, dict[str | None, int]] = {}  # by comparison: places in ``kept`` by the row's own id
        self._times: Counter[tuple[str, str, str]] = Counter()
        self._placed: dict[str, Placed | str] = {}

    def drop(self, number: int, name: Any, reason: object) -> None:
        self.dropped.append(left_out(number, name, reason))

    def refuse_copies(self, number: int, row: Mapping[str, Any]) -> None:
        """Raises Unusable where another row is the same to the letter."""
        digest = hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest()
        first = self._rows.setdefault(digest, number)
        if first != number:
            raise Unusable(f"duplicate (of row {first})")

    def name(self, row: Mapping[str, Any], column: str | None) -> str | None:
        """Who judged a row; several people are told, since their vote is one.

        Raises:
            Unusable: a cell holds something that is no name.
        """
        cell = cell_of(row, column)
        self.counted[SEVERAL] += isinstance(cell, list) and len(cell) > 1
        return name_in(row, column)

    def number(
        self, row: Mapping[str, Any], column: str | None, is_allowed: Callable[[float], bool] = math.isfinite
    ) -> float | None:
        """A cell that should hold a number; one that does not is counted."""
        if column is None or column not in row:
            return None
        found = number_of(row[column])
        if found is None or not is_allowed(found):
            self.counted[f"cells of column '{column}' are no numbers that it may hold; left out, the votes count"] += 1
            return None
        return found

    def add(self, number: int, judged: Judged) -> None:
        """Enter a judgment.

        Raises:
            Unusable: it repeats or contradicts another, its split is not known, or its texts make no comparison.
        """
        split = self._split(judged.split)
        comparison, shown = self._place(judged)
        if split:
            self.hints.setdefault(normalised(comparison.prompt), set()).add(split)
        ranking = [sorted(shown[place] for place in group) for group in judged.ranking]
        person = judged.annotator or self.given.annotator
        source = f"{self.base}#{judged.item}" if judged.item is not None else self.base
        if judged.annotator is None:
            self.used_given.add("annotator")
        if person is None:
            comparison = self._apart(comparison, ranking, judged, number)
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
            rationale=judged.rationale,
            seconds=judged.seconds,
            source=source,
        )
        self.kept.append(Kept(number, judged.name, comparison, judgment))
        self._remark(judged.sides)

    def found(self, format: str, n_rows: int, scrubbed: int, notes: Sequence[str] = ()) -> Found:
        """All of it, with strengths and splits as the file as a whole gives them."""
        strengths, said = self._strengths()
        kept = [
            entry._replace(judgment=entry.judgment.model_copy(update=strengths.get(place, {})))
            for place, entry in enumerate(self.kept)
            if entry is not None
        ]
        splits, moved = self._splits([entry.comparison for entry in kept])
        counted = [f"{count} {thing}" for thing, count in sorted(self.counted.items()) if count]
        for thing, seen in self.examples.items():
            named = ", ".join(f"'{example}' ({count})" for example, count in seen.most_common(EXAMPLES))
            counted += [thing.format(count=seen.total(), named=named, language=self.given.language)] if seen else []
        moved += [*self._unsplit(bool(splits)), *self._unused()]
        dropped = sorted(self.dropped, key=lambda entry: int(entry["row"]))
        return Found(format, n_rows, kept, dropped, scrubbed, [*notes, *counted, *said, *moved], splits)

    def _remark(self, sides: Sides) -> None:
        """Count what was read as it stands and may be meant otherwise."""
        self.counted[CUT] += sides.is_cut
        if mark := marks_in([message for messages in (sides.prompt, *sides.responses) for message in messages]):
            self.examples[MARKED][mark] += 1
        whole = [str(message.get("content") or "") for turns in (sides.prompt, *sides.responses) for message in turns]
        self.counted[NO_TEXT] += any(text.strip().casefold() in STANDS_FOR_NONE for text in whole)
        self.counted[CUT_OFF] += any(len(text) == EXCEL for text in whole)
        asked, *more = sides.prompt
        texts = [str(response[0].get("content") or "") for response in sides.responses]
        if not more and len(text := str(asked.get("content") or "")) > LONG and all(t.startswith(text) for t in texts):
            self.counted["rows repeat the whole prompt at the beginning of every response: kept"] += 1

    def _place(self, judged: Judged) -> Placed:
        """The comparison of a row, made once for all rows of the same content; its language is that of the first."""
        language = self._language(judged.language)
        content = [judged.sides.prompt, judged.sides.responses, judged.tools, judged.template_arguments]
        key = json.dumps(content, default=str)
        if key not in self._placed:
            try:
                self._placed[key] = placed(judged.sides, language, judged.tools, judged.template_arguments)
            except Unusable as reason:
                self._placed[key] = str(reason)
        made = self._placed[key]
        if isinstance(made, str):
            raise Unusable(made)
        return made

    def _apart(self, comparison: Comparison, ranking: list[list[int]], judged: Judged, number: int) -> Comparison:
        """The comparison of a row that names nobody, its own where another row of the same texts has another id.

        Raises:
            Unusable: the row repeats or contradicts another one.
        """
        seen = self._nameless.setdefault(comparison.id, {})
        own = judged.own_id if judged.own_id is not None or None in seen else next(iter(seen), None)
        if own not in seen:
            if seen:
                comparison = Comparison.model_validate({**comparison.model_dump(exclude={"id"}), "item": own})
            seen[own] = len(self.kept)
            return comparison
        before = self.kept[seen[own]]
        if before is None:
            raise Unusable("contradicts another row")
        if before.judgment.ranking == ranking:
            raise Unusable(f"duplicate (of row {before.row})")
        self.kept[seen[own]] = None
        self.drop(before.row, before.name, f"contradicts another row (row {number})")
        raise Unusable(f"contradicts another row (row {before.row})")

    def _language(self, value: str | None) -> str:
        if value is None:
            self.used_given.add("language")
            return self.given.language
        if (tag := tag_of(value)) is None:
            self.examples[UNKNOWN_LANGUAGE][value[:20]] += 1
            self.used_given.add("language")
        return tag or self.given.language

    def _split(self, value: str | None) -> Split | None:
        name = value or ""
        if name and (split := split_of(name)) is not None:
            return split
        self.used_given.add("split")
        if not name:
            return self.given.split
        if self.given.split is None:
            raise Unusable(
                f"unknown split ('{name[:40].casefold()}'; split=train, validation or test says where such rows go)"
            )
        return self.given.split

    def _strengths(self) -> tuple[dict[int, dict[str, Any]], list[str]]:
        """Strengths where the file's go from 0 to 3 in whole steps, else margins, as they stand."""
        sizes = {place: size for place, size in self.sizes.items() if self.kept[place] is not None}
        if not self.is_scored and all(size in range(STRONGEST + 1) for size in sizes.values()):
            return {place: {"strength": int(size)} for place, size in sizes.items()}, []
        reach = f"{min(sizes.values()):g} to {max(sizes.values()):g}" if sizes else ""
        said = [f"strengths go from {reach}: kept as margins on that scale"] if sizes else []
        return {place: {"margin": size} for place, size in sizes.items()}, said

    def _splits(self, comparisons: Sequence[Comparison]) -> tuple[dict[str, Split], list[str]]:
        """The split of each comparison: of all that rows give its prompt, the one that is held out most."""
        if not self.hints:
            return {}, []
        strictest = {prompt: max(hints, key=STRICTNESS.__getitem__) for prompt, hints in self.hints.items()}
        several = sum(len(hints) > 1 for hints in self.hints.values())
        said = [f"{several} prompts stand in several splits: all rows of each go to the one that is held out most"]
        prompts = {comparison.id: normalised(comparison.prompt) for comparison in comparisons}
        splits = {key: strictest[prompt] for key, prompt in prompts.items() if prompt in strictest}
        return splits, said if several else []

    def _unused(self) -> list[str]:
        """What to say of a user's words that no row had a use for."""
        given = {"annotator": self.given.annotator, "split": self.given.split, "language": self.given.language}
        usual = {None, Given().language}
        return [
            f"{name}={value} holds for no row: each says its own"
            for name, value in given.items()
            if value not in usual and name not in self.used_given and any(self.kept)
        ]

    def _unsplit(self, has_splits: bool) -> list[str]:
        """What to say of a file that is called by a split and does not tell one."""
        name = self.path.name.casefold()
        held_out = next((split for split in HELD_OUT if name.startswith(SPLIT_NAMES[split])), None)
        if has_splits or held_out is None:
            return []
        return [
            f"its name says {held_out}, no row does: prompts will be split anew; split={held_out} holds all of them out"
        ]


def split_of(name: str) -> Split | None:
    """The split that a published name of one means, None where it is not known."""
    named = name.casefold()
    return next((split for split, begins in SPLIT_NAMES.items() if named.startswith(begins)), None)


def hashed_name(path: Path) -> str:
    """A file's name with the beginning of its hash: names of published files are often alike."""
    return f"{path.name}#{file_hash(path)[:8]}" if path.is_file() else path.name
