"""What an import would make of a file: rows as understood, splits, ties, people, and what is dropped.

In: an ``ImportedFile``. Out: lines. Not here: reading, and storing (``run.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from align.core.records import Message
from annotation.aggregation.votes import UNKNOWN_SIDES
from annotation.importers.imported import ImportedFile, ImportedRow

SHOWN_ROWS = 3
EXAMPLES = 3  # rows that are named for each reason
WIDTH = 100  # characters of a text


def lines_on(path: Path, imported: ImportedFile) -> Iterator[str]:
    """Yield the lines that describe a file."""
    comparisons = imported.comparisons
    people = Counter(judgment.annotator for judgment in imported.judgments)
    yield (
        f"{path}: read as {imported.format}: {imported.n_rows} rows, {len(comparisons)} comparisons, "
        f"{len(imported.kept)} judgments, {len(imported.dropped)} dropped"
    )
    for entry in imported.kept[:SHOWN_ROWS]:
        yield from _row(entry, imported)
    splits = ", ".join(f"{count} {split}" for split, count in imported.split_counts.items())
    yield f"split: {splits or 'none given; the stage pairs draws one for each prompt'}"
    yield f"ties: {imported.n_ties} of {len(imported.kept)}"
    most = ", ".join(f"{name} ({count})" for name, count in people.most_common(EXAMPLES))
    yield f"annotators: {len(people)}" + (f" (most: {most})" if people else "")
    languages = Counter(comparison.language for comparison in comparisons)
    yield f"languages: {', '.join(f'{count} {tag}' for tag, count in languages.most_common())}"
    for reason, count in sorted(imported.reasons.items()):
        alike = [entry for entry in imported.dropped if entry["reason"].partition(" (")[0] == reason]
        rows = ", ".join(str(entry["row"]) for entry in alike[:EXAMPLES]) + (", …" if count > EXAMPLES else "")
        yield f"dropped: {count} x {alike[0]['reason']} (rows {rows})"
    yield from (f"note: {note}" for note in imported.remarks)
    yield "nothing was written" + ("; without --dry-run the same command imports it" if imported.kept else "")


def _row(entry: ImportedRow, imported: ImportedFile) -> Iterator[str]:
    comparison, judgment = entry.comparison, entry.judgment
    yield f"row {entry.row}" + (f" ({entry.name})" if entry.name is not None else "") + ":"
    yield from (f"  {message['role']}: {_brief(message)}" for message in comparison.prompt)
    place = {index: rank for rank, group in enumerate(judgment.ranking) for index in group}
    is_tie = len(judgment.ranking) == 1
    sides = [f", shown {side}" for side in ("left", "right")] if len(place) == 2 else []
    if UNKNOWN_SIDES in judgment.flags or not sides:
        sides = [""] * len(place)
    for index, side in zip(judgment.shown, sides, strict=True):
        verdict = "tied" if is_tie else "better" if place[index] == 0 else "worse"
        text = " / ".join(map(_brief, comparison.responses[index].messages))
        yield f"  -> {verdict}{side}: {text}"
    facts = [
        f"by {judgment.annotator}",
        f"split {imported.splits.get(comparison.id, 'not given')}",
        comparison.language,
    ]
    size = judgment.strength if judgment.margin is None else judgment.margin
    yield "  " + ", ".join([*facts, *([] if size is None else [f"strength {size:g}"])])


def _brief(message: Message) -> str:
    text = " ".join(str(message.get("content") or "").split())
    if not text:
        text = "(calls a tool)" if message.get("tool_calls") else "(no text)"
    return text if len(text) <= WIDTH else text[:WIDTH] + "…"
