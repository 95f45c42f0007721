"""Stage ``import``: judgments that exist already, into the same store that people's own judgments go to.

In: a file of preferences (``chosen`` and ``rejected``), of votes cast elsewhere (as published schemas have them, or
with a map of its columns), or a labelling server's own export. Out: comparisons and judgments in ``feedback.db``,
``rows.jsonl`` (which row became which comparison) and ``dropped.jsonl`` (row and reason). ``preview`` shows what would
become of a file and writes nothing. Reading stands in ``preferences.py``, ``crowd.py`` and ``exported.py``. The same
file again adds nothing. Not here: an export's pull from a server that runs (``pull.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints

from align.core.config import BadInput, StageConfig
from align.core.files import write_jsonl
from align.core.runs import Run, stage
from annotation.feedback.store import Split, Store
from annotation.readers.columns import Columns, Labels
from annotation.readers.crowd import votes_of
from annotation.readers.exported import looks_exported, read_export
from annotation.readers.formats import Format, container_of, read_rows
from annotation.readers.intake import Found, Given, Kept
from annotation.readers.languages import tag_of
from annotation.readers.preferences import preferences_of, read_preferences
from annotation.readers.preview import lines_on, nothing_usable, said, split_counts
from annotation.readers.table import kind_of, open_table

__all__ = ("ImportConfig", "import_preferences", "read_preferences")


def _tag(language: str) -> str:
    if (tag := tag_of(language)) is None:
        raise ValueError(f"'{language}' names no language; give a tag such as en")
    return tag


class ImportConfig(StageConfig):
    """``format`` auto goes by the file's ending and by its columns.

    ``columns`` says what holds what in JSON lines, CSV and Parquet alike, ``labels`` what a label means. ``annotator``
    is who judged, ``split`` where prompts belong and ``language`` what is spoken, in rows that do not say it. Votes:
    ``items`` is a file whose rows hold prompt and responses by the votes' item, ``texts`` one of texts (``id``,
    ``text``) that the votes name by id. Exports:
    ``columns`` names the fields of a task's data, ``buckets`` the places of a stock ranking, best first, ``server``
    whose accounts they are (another name: other people), ``campaign`` the YAML by which tasks were made that were not
    sent from this store.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("data", "items", "texts", "campaign")

    stage: Literal["import"] = "import"
    data: Path
    feedback: Path = Path("feedback.db")
    format: Format = "auto"
    language: Annotated[str, AfterValidator(_tag)] = "en"
    annotator: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = None
    split: Split | None = None
    limit: int | None = Field(None, ge=1, description="read only the first rows")
    columns: Columns = Columns()
    labels: Labels = Labels()
    items: Path | None = None
    texts: Path | None = None
    buckets: tuple[str, ...] = ()
    server: str = "label-studio"
    campaign: Path | None = None

    def why_nothing(self, inputs: Mapping[str, Mapping[str, str]]) -> str:
        """The store was written to, which is no part of the folder: it has to hold what this import left there."""
        wrote = inputs.get("feedback", {})
        if not self.feedback.is_file() or not _holds(self.feedback, wrote.get("sha256", "")):
            raise BadInput(
                f"{self.run}: this import is finished, but {self.feedback} does not hold it (it went to "
                f"{wrote.get('path', 'another store')}); name a folder of its own with run= to import once more"
            )
        return (
            f"nothing to do: {self.data} was imported into {self.feedback} by that run, which the lines below tell of; "
            "another import needs a folder of its own (run=...)"
        )


# settings beside the file, the store and the language that a kind of file makes use of
USES: dict[str, tuple[str, ...]] = {
    "preferences": ("columns", "labels", "annotator", "split"),
    "votes": ("columns", "labels", "annotator", "split", "items", "texts"),
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
    found = read(config)
    for entry in found.dropped:
        run.drop(entry["reason"].partition(" (")[0])
    write_jsonl(run.path / "dropped.jsonl", found.dropped)
    write_jsonl(run.path / "rows.jsonl", [_traced(entry) for entry in found.kept])
    for note in said(found):
        run.note(note)
    if not found.kept:
        raise BadInput(f"{nothing_usable(config.data, found)}; see {run.path / 'dropped.jsonl'}")
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
        "ties": found.n_ties,
        "annotators": len({judgment.annotator for judgment in judgments}),
        **{f"{split}_comparisons": count for split, count in split_counts(found).items()},
        "new_judgments": added,
        "dropped": len(found.dropped),
    }


def preview(config: ImportConfig) -> tuple[list[str], str | None]:
    """Lines on what would become of the file, and why nothing would; nothing is written.

    Raises:
        BadInput: as ``read``.
    """
    found = read(config)
    return list(lines_on(config.data, found)), None if found.kept else nothing_usable(config.data, found)


def read(config: ImportConfig) -> Found:
    """Read a file in its own format.

    Raises:
        BadInput: it cannot be read, or a setting is of no use for it.
    """
    if config.format == "label-studio" or (config.format == "auto" and _is_exported(config.data)):
        _refuse_useless(config, "label-studio")
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
    given = Given(config.columns, config.labels, config.annotator, config.split, config.language, config.limit)
    table = open_table(config.data, config.format, given)
    kind = "votes" if config.format == "votes" else "preferences" if config.format == "hh" else kind_of(table)
    _refuse_useless(config, kind)
    if kind == "votes":
        return votes_of(table, items=config.items, texts=config.texts)
    return preferences_of(table, config.format)


def _refuse_useless(config: ImportConfig, kind: str) -> None:
    """Refuse a setting that files of a kind make no use of."""
    fields = ImportConfig.model_fields
    for name in SPECIAL:
        if name not in USES[kind] and getattr(config, name) != fields[name].default:
            uses = " or ".join(format for format, names in USES.items() if name in names)
            raise BadInput(f"{config.data}: read as {kind}, which have no use for '{name}'; it belongs to {uses}")


def _holds(feedback: Path, head: str) -> bool:
    """Whether a store's chain has an entry."""
    with Store.open(feedback) as store:
        return bool(store.read("SELECT 1 FROM log WHERE entry_hash = ?", (head,)))


def _is_exported(path: Path) -> bool:
    first: dict[str, Any] = next((row for _, row in read_rows(path, container_of(path, "auto"))), {})
    return looks_exported(first)


def _traced(entry: Kept) -> dict[str, Any]:
    return {"row": entry.row, "id": entry.name, "comparison_id": entry.comparison.id}
