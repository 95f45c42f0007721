"""Stage ``import``: judgments that exist already, into the same store that people's own judgments go to.

In: a file of preferences (``chosen`` and ``rejected``), of votes cast elsewhere (as published schemas have them, or
with a map of its columns), or a labelling server's own export. Out: comparisons and judgments in ``feedback.db``,
``rows.jsonl`` (which row became which comparison) and ``dropped.jsonl`` (row and reason). ``preview`` shows what would
become of a file and writes nothing. The same file again adds nothing, and a row that names nobody and is in another
imported file too counts once: two copies of it are not two people who agree. Not here: a pull from a server that runs
(``campaign/pull.py``).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, SerializeAsAny, StringConstraints, field_validator

from align.core.config import BadInput, StageConfig
from align.core.files import write_jsonl
from align.core.plugins import choose
from align.core.runs import Run
from align.core.stage import stage
from annotation.importers.collector import NOBODY
from annotation.importers.columns import READ, Columns, FileKind, FileSettings, Labels
from annotation.importers.exports import looks_exported, read_export
from annotation.importers.formats import Container, Format, container_of, read_rows
from annotation.importers.imported import ImportedFile, left_out
from annotation.importers.importer import IMPORTERS, Importer
from annotation.importers.languages import tag_of
from annotation.importers.preferences import read_preferences, read_rankings
from annotation.importers.preview import lines_on
from annotation.importers.table import kind_of, open_table
from annotation.importers.votes import read_votes
from annotation.store.chain import Split
from annotation.store.store import Store


def _hint(name: str) -> str:
    """Return what to write instead of an unknown format: one with a similar name, or the list of all."""
    known = {one.casefold(): one for one in (*get_args(Format), *IMPORTERS.shipped)}
    if name in get_args(Container):
        return f"a file is read as {name} by its ending; leave format out"
    near = difflib.get_close_matches(name.casefold(), known, n=1)
    nearest = f"did you mean '{known[near[0]]}'? " if near else ""
    return (
        f"{nearest}write {', '.join(get_args(Format))}, an importer ({', '.join(IMPORTERS.shipped)}), "
        "or module:Class of your own"
    )


def _tag(language: str) -> str:
    if (tag := tag_of(language)) is None:
        raise ValueError(f"'{language}' names no language; give a tag such as en")
    return tag


class ImportConfig(StageConfig):
    """What to import, and how it is read.

    ``columns`` maps columns of JSON lines, CSV and Parquet alike, and of exports the fields of a task's data;
    ``labels`` gives labels a meaning.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("data", "items", "texts", "campaign")

    stage: Literal["import"] = "import"
    data: Path = Field(description="the file to import")
    feedback: Path = Field(default=Path("feedback.db"), description="the store of judgments")
    format: Format | SerializeAsAny[Importer] = Field(
        default="auto",
        description="auto goes by a file's ending and columns; or a format by name, or an importer with its settings",
    )
    language: Annotated[str, AfterValidator(_tag)] = Field(
        default="en", description="language tag of rows that name none"
    )
    annotator: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = Field(
        default=None, description="who judged, where no column says so"
    )
    split: Split | None = Field(default=None, description="split of rows that name none")
    limit: int | None = Field(None, ge=1, description="read only the first rows")
    columns: Columns = Columns()
    labels: Labels = Labels()
    items: Path | None = Field(
        default=None, description="file whose rows hold the prompt and the responses of the items that votes name"
    )
    texts: Path | None = Field(default=None, description="file of the texts (id, text) that votes name by their ids")
    buckets: tuple[str, ...] = Field(default=(), description="places of a stock ranking in an export, best first")
    server: str = Field(
        default="label-studio", description="server whose accounts an export names; another server's are other people"
    )
    campaign: Path | None = Field(
        default=None, description="YAML of the campaign that made an export's tasks, where this store did not send them"
    )

    @field_validator("format", mode="before")
    @classmethod
    def _chosen(cls, format: Any) -> Any:
        named = format["kind"] if isinstance(format, Mapping) and {*format} == {"kind"} else format
        if named in get_args(Format):
            return named
        if isinstance(named, str) and ":" not in named and named not in IMPORTERS.shipped:
            raise ValueError(f"'{named}' is no format; {_hint(named)}")
        return choose(IMPORTERS, Importer, format)

    def why_nothing(self, inputs: Mapping[str, Mapping[str, str]]) -> str:
        """Return the message; the store, which is no part of the folder, has to hold what this import wrote there."""
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


USES: Mapping[FileKind, tuple[str, ...]] = {  # settings that each kind has beside the file, the store and the language
    "preferences": ("annotator", "split"),
    "votes": ("labels", "annotator", "split", "items", "texts"),
    "rankings": ("annotator", "split"),
    "label-studio": ("labels", "buckets", "server", "campaign"),
}


@stage
def import_preferences(config: ImportConfig, run: Run) -> dict[str, Any]:
    """Import existing judgments into a feedback store.

    Raises:
        BadInput: unreadable file, a row that is not JSON or CSV, a column that is not there, a setting that files of
            this format have no use for, or no usable row at all.
    """
    whole = read(config)
    fresh = _new_to(whole, config.feedback)
    for reason, count in fresh.reasons.items():
        run.drop(reason, count)
    write_jsonl(run.path / "dropped.jsonl", fresh.dropped)
    traced = ({"row": one.row, "id": one.name, "comparison_id": one.comparison.id} for one in fresh.kept)
    write_jsonl(run.path / "rows.jsonl", traced)
    for note in fresh.remarks:
        run.note(note)
    if not whole.kept:
        raise BadInput(f"{_nothing_usable(config.data, whole)}; see {run.path / 'dropped.jsonl'}")
    judgments = fresh.judgments
    with Store.open(config.feedback, write=True) as store, store.transaction():
        store.add_comparisons(whole.comparisons, whole.splits)  # a split holds for rows that the store has already, too
        added = store.add_judgments(judgments)
        run.drop("erased from the store", store.passed_over)
        run.record.inputs["feedback"] = {"path": str(config.feedback), "sha256": store.head()}
    return {
        "format": fresh.format,
        "rows": fresh.n_rows,
        "comparisons": len(whole.comparisons),
        "judgments": len(judgments),
        "ties": fresh.n_ties,
        "annotators": len({judgment.annotator for judgment in judgments}),
        **{f"{split}_comparisons": count for split, count in whole.split_counts.items()},
        "new_judgments": added,
        "dropped": len(fresh.dropped),
    }


def preview(config: ImportConfig) -> tuple[list[str], str | None]:
    """Return what an import would make of the file, in lines, and the error if nothing; nothing is written.

    Raises:
        BadInput: as ``read``.
    """
    whole = read(config)
    lines = lines_on(config.data, _new_to(whole, config.feedback))
    return list(lines), None if whole.kept else _nothing_usable(config.data, whole)


def read(config: ImportConfig) -> ImportedFile:
    """Read a file in its own format.

    Raises:
        BadInput: it cannot be read, or a setting is of no use for it.
    """
    settings = FileSettings(
        config.columns, config.labels, config.annotator, config.split, config.language, config.limit
    )
    first = read_rows(config.data, container_of(config.data, "auto")) if config.format == "auto" else iter(())
    if config.format == "label-studio" or looks_exported(next((row for _, row in first), {})):
        _refuse_useless(config, "label-studio")
        return read_export(
            config.data,
            settings,
            buckets=config.buckets,
            server=config.server,
            feedback=config.feedback,
            campaign=config.campaign,
        )
    table = open_table(config.data, config.format, settings)
    has_texts_elsewhere = table.importer is None and (config.items or config.texts) is not None
    if config.format == "votes" or has_texts_elsewhere:
        kind: FileKind = "votes"
    else:
        kind = "preferences" if config.format == "hh" else kind_of(table)
    _refuse_useless(config, kind)
    if kind == "votes":
        return read_votes(table, items=config.items, texts=config.texts)
    if kind == "rankings":
        return read_rankings(table)
    return read_preferences(table, is_hh={"hh": True, "trl": False}.get(str(config.format)))


def _nothing_usable(path: Path, imported: ImportedFile) -> str:
    """Return the error of a file without a usable row."""
    if not imported.n_rows:
        return f"{path}: holds no rows; name a file with preferences"
    why = ", ".join(f"{count} x {reason}" for reason, count in sorted(imported.reasons.items()))
    return f"{path}: no row is a usable preference, of {imported.n_rows} ({why})"


def _new_to(imported: ImportedFile, feedback: Path) -> ImportedFile:
    """Return a file without the rows that the store holds already from another file that names nobody either."""
    if not feedback.is_file():
        return imported
    files: dict[str, set[str]] = {}  # that name nobody, by judgment, and by comparison
    with Store.open(feedback) as store:
        for judgment in store.judgments():
            if judgment.annotator.startswith(NOBODY):
                for key in (f"{judgment.comparison_id} {judgment.ranking}", judgment.comparison_id):
                    files.setdefault(key, set()).add(judgment.annotator)
    kept, dropped, contradicting = [], list(imported.dropped), 0
    for entry in imported.kept:
        judgment = entry.judgment
        before = files.get(f"{judgment.comparison_id} {judgment.ranking}", set())
        is_nameless = judgment.annotator.startswith(NOBODY)
        if is_nameless and before and judgment.annotator not in before:
            dropped.append(left_out(entry.row, entry.name, f"stands in the store already (from {min(before)})"))
            continue
        kept.append(entry)
        contradicting += is_nameless and not before and judgment.comparison_id in files
    note = f"{contradicting} rows contradict a row of another imported file in {feedback}: both stand, as two votes"
    dropped.sort(key=lambda entry: int(entry["row"]))
    return imported._replace(kept=kept, dropped=dropped, notes=[*imported.notes, *([note] if contradicting else [])])


def _refuse_useless(config: ImportConfig, kind: FileKind) -> None:
    """Refuse a setting that files of a kind make no use of."""
    uses = {one: {*settings, *(f"columns.{name}" for name in READ[one])} for one, settings in USES.items()}
    special = sorted({name for settings in USES.values() for name in settings})
    given = [name for name in special if getattr(config, name) != ImportConfig.model_fields[name].default]
    given += [f"columns.{name}" for name in config.columns.model_dump(exclude_none=True)]
    for name in given:
        if name not in uses[kind]:
            others = " or ".join(one for one in uses if name in uses[one])
            raise BadInput(
                f"{config.data}: read as {kind}, which have no use for '{name}'; leave it out (it belongs to {others})"
            )


def _holds(feedback: Path, head: str) -> bool:
    with Store.open(feedback) as store:
        return store.holds_entry(head)
