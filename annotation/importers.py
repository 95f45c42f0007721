"""Stage ``import``: judgments that exist already, into the same store that people's own judgments go to.

In: a file of preferences (``chosen`` and ``rejected``), of votes cast elsewhere (with a map of its columns), or a
labelling server's own export. Out: comparisons and judgments in ``feedback.db``, ``rows.jsonl`` (which row became
which comparison) and ``dropped.jsonl`` (row and reason). Reading stands in ``preferences.py``, ``crowd.py`` and
``exported.py``. The same file again adds nothing. Not here: an export's pull from a server that runs (``pull.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.core.config import BadInput, StageConfig
from align.core.files import write_jsonl
from align.core.runs import Run, stage
from annotation.feedback.store import Store
from annotation.readers.columns import Columns, Labels
from annotation.readers.crowd import read_votes
from annotation.readers.exported import looks_exported, read_export
from annotation.readers.formats import Format, container_of, read_rows
from annotation.readers.intake import Found, Kept
from annotation.readers.preferences import read_preferences

__all__ = ("ImportConfig", "import_preferences", "read_preferences")


class ImportConfig(StageConfig):
    """``format`` auto goes by the file's ending and by what its first row holds.

    Votes: ``columns`` says what holds what, ``labels`` what a label means; ``items`` is a file whose rows hold prompt
    and responses by the votes' item, ``texts`` one of texts (``id``, ``text``) that the votes name by id. Exports:
    ``columns`` names the fields of a task's data, ``buckets`` the places of a stock ranking, best first, ``server``
    whose accounts they are (another name: other people), ``campaign`` the YAML by which tasks were made that were not
    sent from this store.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("data", "items", "texts", "campaign")

    stage: Literal["import"] = "import"
    data: Path
    feedback: Path = Path("feedback.db")
    format: Format = "auto"
    language: str = "en"
    limit: int | None = Field(None, ge=1, description="read only the first rows")
    columns: Columns = Columns()
    labels: Labels = Labels()
    items: Path | None = None
    texts: Path | None = None
    buckets: tuple[str, ...] = ()
    server: str = "label-studio"
    campaign: Path | None = None


# settings beside the file, the store and the language that a kind of file makes use of
USES: dict[str, tuple[str, ...]] = {
    "votes": ("columns", "labels", "items", "texts"),
    "label-studio": ("columns", "labels", "buckets", "server", "campaign"),
}
SPECIAL = sorted({name for names in USES.values() for name in names})


@stage
def import_preferences(config: ImportConfig, run: Run) -> dict[str, Any]:
    """Import existing judgments into a feedback store.

    Raises:
        BadInput: unreadable file, a row that is not JSON or CSV, a column that is not there, a setting that files of
            this format have no use for, or no usable row at all.
    """
    found = _read(config)
    for entry in found.dropped:
        run.drop(entry["reason"].partition(" (")[0])
    write_jsonl(run.path / "dropped.jsonl", found.dropped)
    write_jsonl(run.path / "rows.jsonl", [_traced(entry) for entry in found.kept])
    if found.scrubbed:
        run.note(f"{found.scrubbed} characters that cannot be stored (NUL, lone surrogates) replaced by U+FFFD")
    for note in found.notes:
        run.note(note)
    if not found.n_rows:
        raise BadInput(f"{config.data}: holds no rows; name a file with preferences")
    if not found.kept:
        why = ", ".join(f"{count} x {reason}" for reason, count in sorted(run.record.dropped.items()))
        raise BadInput(
            f"{config.data}: no row is a usable preference, of {found.n_rows} ({why}); see {run.path / 'dropped.jsonl'}"
        )
    comparisons, judgments = found.comparisons, found.judgments
    with Store.open(config.feedback, write=True) as store, store.transaction():
        store.add_comparisons(comparisons, found.splits)
        added = store.add_judgments(judgments)
        run.drop("erased from the store", store.passed_over)
        run.record.inputs["feedback"] = {"path": str(config.feedback), "sha256": store.head()}
    return {
        "format": found.format,
        "rows": found.n_rows,
        "comparisons": len(comparisons),
        "judgments": len(judgments),
        "annotators": len({judgment.annotator for judgment in judgments}),
        "new_judgments": added,
        "dropped": len(found.dropped),
    }


def _read(config: ImportConfig) -> Found:
    """Read the file in its own format."""
    kind = _kind(config)
    defaults = ImportConfig.model_fields
    for name in SPECIAL:
        if name not in USES.get(kind, ()) and getattr(config, name) != defaults[name].default:
            uses = " or ".join(format for format, names in USES.items() if name in names)
            raise BadInput(f"{config.data}: read as format {kind}, which has no use for '{name}'; set format: {uses}")
    if kind == "votes":
        return read_votes(
            config.data,
            config.columns,
            config.labels,
            items=config.items,
            texts=config.texts,
            language=config.language,
            limit=config.limit,
        )
    if kind == "label-studio":
        return read_export(
            config.data,
            config.columns,
            config.labels,
            buckets=config.buckets,
            server=config.server,
            feedback=config.feedback,
            campaign=config.campaign,
            language=config.language,
            limit=config.limit,
        )
    return read_preferences(config.data, config.format, config.language, config.limit)


def _kind(config: ImportConfig) -> Format:
    """The format as set; else by the first row: an export, preferences, or votes where it holds no preferences."""
    if config.format != "auto":
        return config.format
    first: dict[str, Any] = next((row for _, row in read_rows(config.data, container_of(config.data, "auto"))), {})
    if looks_exported(first):
        return "label-studio"
    holds_votes = {"left", "right", "label"} <= set(first) or config.columns != Columns()
    return "votes" if holds_votes and "chosen" not in first else "trl"


def _traced(entry: Kept) -> dict[str, Any]:
    return {"row": entry.row, "id": entry.name, "comparison_id": entry.comparison.id}
