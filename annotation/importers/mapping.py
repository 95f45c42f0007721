"""The error of a file that fits no schema: its columns, what it is nearest to, and a command to start from.

In: a path and rows. Out: one line. The command runs as printed: columns are guessed by their names and by what they
hold, and ``--dry-run`` shows the result before anything is written. ``COLUMN`` and ``LABEL`` mark
what cannot be guessed.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from annotation.importers.columns import Labels, number_of, word_of
from annotation.importers.importer import Row, known_layouts

PROMPTS = ("prompt", "instruction", "question", "query", "input", "context", "post", "text")
LABELS = ("label", "winner", "won", "preference", "preferred", "choice", "better", "best", "vote", "verdict")
BETTER = ("chosen", "preferred", "better", "winner", "accepted")
WORSE = ("reject", "non_preferred", "nonpreferred", "dispreferred", "worse", "loser")
SIDE = re.compile(r"(?:^|[^a-z0-9]|(?<=[a-z]))(a|b|0|1|2|x|y|j|k|left|right|one|two|first|second)$", re.IGNORECASE)
PAIRS = (
    ("a", "b"),
    ("0", "1"),
    ("1", "2"),
    ("x", "y"),
    ("j", "k"),
    ("left", "right"),
    ("one", "two"),
    ("first", "second"),
)
MOST_LABELS = 6  # more different values than that are no labels
MOST_STEPS = 11  # of a scale of numbers
UNKNOWN = "COLUMN"  # what the user has to say
UNKNOWN_LABEL = "LABEL"
NO_JUDGMENT = re.compile(r"(?:^|[^a-z])(?:id|hash|key|uuid)$|(?<=[a-z])(?:Id|ID)$|(?i:status)$")  # of rows, by names
LISTED = 30  # columns that are named


def start_from(path: Path, rows: Sequence[Row]) -> str:
    """Return the error of an unmapped file."""
    known = list(dict.fromkeys(name for row in rows for name in row))
    nearest, layout = max(known_layouts(), key=lambda named: _nearness(named[1], known))
    listed = ", ".join(known[:LISTED]) + (", …" if len(known) > LISTED else "")
    return (
        f"{path}: its columns ({listed}) hold no comparisons that are known; nearest is '{nearest}' "
        f"({', '.join(layout)}); start from: align import {shlex.quote(str(path))} --dry-run "
        + " ".join(shlex.quote(setting) for setting in _settings(known, rows))
    )


def _nearness(layout: Sequence[str], known: Sequence[str]) -> float:
    """Return the mean likeness of each column of a layout to the column that is most like it."""
    return sum(max((_likeness(wanted, name) for name in known), default=0.0) for wanted in layout) / len(layout)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()


def _settings(known: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return settings that map the columns, as well as their names and contents tell."""
    if sides := _by_worth(known):
        left, right = sides
        prompt = _first(PROMPTS, [name for name in known if name not in sides and _is_text(name, rows)])
        settings = [f"columns.prompt={prompt}"] if prompt else []
        return [*settings, f"columns.chosen={left}", f"columns.rejected={right}"]
    texts = [name for name in known if _is_text(name, rows)]
    sides = _sides(texts, rows) or _sides(known, rows)
    left, right = sides or (UNKNOWN, UNKNOWN)
    rest = [name for name in known if name not in (left, right) and not NO_JUDGMENT.search(name)]
    label = _first(LABELS, [name for name in rest if _is_label(name, rows)])
    if label is None and sides is not None:  # then something has to say which is better
        few = [name for name in rest if 1 < len(_values(name, rows)) <= MOST_LABELS and name.lower() not in PROMPTS]
        label = min(few, key=_sizes(few, rows).__getitem__, default=None)
    prompt = _first(PROMPTS, [name for name in rest if name in texts and name != label])
    settings = [f"columns.prompt={prompt}"] if prompt else []
    if label is None and sides is not None:
        return [*settings, f"columns.left={left}", f"columns.right={right}", f"columns.label={UNKNOWN}"]
    if label is None:
        return [*settings, f"columns.chosen={left}", f"columns.rejected={right}"]
    settings += [f"columns.left={left}", f"columns.right={right}", f"columns.label={label}"]
    return [*settings, *_meanings(label, rows)]


def _by_worth(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the two columns that are called better and worse, by the words in their names."""
    worse = [name for name in names if any(word in name.lower() for word in WORSE)]
    better = [name for name in names if name not in worse and any(word in name.lower() for word in BETTER)]
    pairs = [(one, other) for one in better for other in worse]  # chosen_response goes with rejected_response
    return max(pairs, key=lambda pair: _likeness(*pair), default=None)


def _sides(names: Sequence[str], rows: Sequence[Row]) -> tuple[str, str] | None:
    """Return two columns that are called alike but for the side at their end, those that hold most."""
    by_stem: dict[str, dict[str, str]] = {}
    for name in names:
        if match := SIDE.search(name):
            by_stem.setdefault(name[: match.start(1)].lower(), {})[match[1].lower()] = name
    size = _sizes(names, rows)
    pairs = [(s[one], s[other]) for s in by_stem.values() for one, other in PAIRS if one in s and other in s]
    return max(pairs, key=lambda pair: size[pair[0]] + size[pair[1]], default=None)


def _sizes(names: Sequence[str], rows: Sequence[Row]) -> dict[str, int]:
    return {name: sum(len(str(row.get(name, ""))) for row in rows) for name in names}


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the name that is, or holds, the first of the wanted words; else the first name that names no rows."""
    for word in wanted:
        for name in names:
            if word in name.lower():
                return name
    return next((name for name in names if not NO_JUDGMENT.search(name)), None)


def _is_text(name: str, rows: Sequence[Row]) -> bool:
    return any(isinstance(row.get(name), str) and not re.fullmatch(r"[-+.\d]*", row[name]) for row in rows)


def _values(name: str, rows: Sequence[Row]) -> list[str]:
    """Return the different values of a column, most frequent first; empty where it holds no single values."""
    cells = [row[name] for row in rows if name in row and row[name] != ""]
    if any(isinstance(cell, list | dict) for cell in cells):
        return []
    words = [word_of(cell) for cell in cells]
    return sorted(set(words), key=lambda word: (-words.count(word), word))


def _is_label(name: str, rows: Sequence[Row]) -> bool:
    values = _values(name, rows)
    is_named = any(word in name.lower() for word in LABELS)
    is_scale = is_named and all(number_of(value) is not None for value in values)
    return 0 < len(values) <= (MOST_STEPS if is_scale else MOST_LABELS) and (
        is_named or any(Labels().meaning(value) for value in values)
    )


def _meanings(label: str, rows: Sequence[Row]) -> list[str]:
    """Return meanings for unusual labels: of two the lower is left, the higher right; of a scale below and
    above 0, all that is below it left, and how far it goes is the strength. Of more labels none is guessed.
    """
    values = _values(label, rows)
    if any(Labels().meaning(value) for value in values):
        return []
    scale = {value: number for value in values if (number := number_of(value)) is not None}
    if len(scale) == len(values) and min(scale.values(), default=0) < 0 < max(scale.values(), default=0):
        below, above = ([value for value in sorted(scale) if sign * scale[value] > 0] for sign in (-1, 1))
        tie = ["labels.tie=0"] if "0" in scale else []
        return [
            f"labels.left=[{','.join(below)}]",
            f"labels.right=[{','.join(above)}]",
            *tie,
            f"columns.strength={label}",
        ]
    left, right = sorted(values) if len(values) == 2 else (UNKNOWN_LABEL, UNKNOWN_LABEL)
    return [f"labels.left={left}", f"labels.right={right}"]
