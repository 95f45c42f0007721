"""Exports of a labelling server: tasks with their annotations (JSON and snapshots), or a row per annotation (JSON_MIN).

In: the file. Out: one judgment for each person's last annotation of a task. A task that the bridge made is read
strictly by its own interface, and its sides are those that the ledger of the store noted when it was sent; where the
ledger does not know it, by the campaign's YAML, with the sides that the shown texts tell. Any other task is read as one
of the stock templates. Skipped, empty, superseded and unreadable annotations, drafts and tasks nobody answered are left
out, with their reasons, and so is what a pull has read already. JSON_MIN holds neither skips nor drafts, nor whether
somebody else edited an annotation. Accounts are pseudonyms, as in a pull; addresses that an export holds are not kept.
Not here: asking a server (``campaign/pull.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.records import Comparison, Judgment
from annotation.importers.columns import FileSettings, number_of
from annotation.importers.formats import cleaned, container_of
from annotation.importers.imported import ImportedFile, ImportedRow, Unusable, left_out
from annotation.importers.responses import PromptResponses, check, placed, sides_of
from annotation.importers.sent import Sent, SentTasks
from annotation.importers.stock import (
    cards_of,
    deciding,
    pairwise,
    ranked,
    regions_of_values,
    stock_regions,
    text_in,
)
from annotation.importers.turns import messages_of
from annotation.interface.config import controls
from annotation.interface.decode import VALUE_KEYS, decode, judgment_of
from annotation.interface.regions import Undecodable
from annotation.label_studio.rows import KEY
from annotation.store.ledger import pseudonym, source_of

OWN_PAGE = "response_a_html"  # a field that every task of the bridge shows
USUAL_LEFT = ("answer1", "text1", "pairText1")  # fields of the server's own templates
USUAL_RIGHT = ("answer2", "text2", "pairText2")
USUAL_CARDS = ("items", "answers")
ROW_FIELDS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")


class ExportedAnnotation(NamedTuple):
    """One annotation, and its task. ``result`` is None where the export holds values by control."""

    row: int
    task: str
    project: int | None
    data: Mapping[str, Any]
    id: int | str
    account: int | str | None
    created_at: str
    updated_at: str
    is_cancelled: bool
    is_edited: bool
    seconds: float | None
    result: Any

    @property
    def is_own(self) -> bool:
        """Whether the bridge made its task."""
        return isinstance(self.data.get(KEY), str) and OWN_PAGE in self.data


def looks_exported(row: Mapping[str, Any]) -> bool:
    """Whether a row, as it is in the file, is a task with annotations, or an annotation of one."""
    is_task = "data" in row and isinstance(row.get("annotations"), list)
    return is_task or {"annotation_id", "annotator", "lead_time"} <= set(row)


def read_export(
    path: Path,
    settings: FileSettings,
    *,
    buckets: Sequence[str] = (),
    server: str = "label-studio",
    feedback: Path | None = None,
    campaign: Path | None = None,
) -> ImportedFile:
    """Read an export.

    Args:
        settings: the fields of a task's data, the meanings of labels, the language, and the limit.
        buckets: the places of a stock ranking, best first.
        server: whose accounts these are; those of another name are other people.
        feedback: the store whose ledger knows what was sent.
        campaign: the YAML that made tasks which the ledger does not know.

    Raises:
        BadInput: the file cannot be read, is no export, or a field is not there.
    """
    replaced = [0]
    rows = list(cleaned(path, container_of(path, "label-studio"), replaced, settings.limit))
    if rows and not any("annotations" in row or "id" in row for _, row in rows):
        raise BadInput(f"{path}: row {rows[0][0]} is no task of an export (neither 'annotations' nor 'annotation_id')")
    dropped: list[dict[str, Any]] = []
    annotations = [annotation for number, row in rows for annotation in _annotations(number, row, dropped)]
    latest = {  # the server lets one person answer twice, and the last annotation counts
        (one.project, one.task, one.account): one
        for one in sorted(annotations, key=lambda one: (one.updated_at, str(one.id).zfill(20)))
    }
    fields = {field for one in annotations if not one.is_own for field in one.data}
    sent, kept = SentTasks(feedback, campaign), []
    for one in annotations:
        name = f"annotation {one.id}"
        try:
            if one.account is None:
                raise Unusable("nobody is named who gave it")
            if latest[one.project, one.task, one.account] is not one:
                raise Unusable("superseded by a later answer of the same person")
            if one.is_cancelled:
                raise Unusable("skipped")
            task = _Stock(path, one, settings, buckets, server, fields)
            comparison, judgment = _own(one, sent, server) if one.is_own else task.read()
            kept.append(ImportedRow(one.row, name, comparison, judgment))
        except (Unusable, Undecodable) as reason:
            dropped.append(left_out(one.row, name, reason))
    dropped.sort(key=lambda entry: int(entry["row"]))
    return ImportedFile("label-studio", len(rows), kept, dropped, replaced[0], [], sent.splits)


def _own(one: ExportedAnnotation, tasks: SentTasks, server: str) -> tuple[Comparison, Judgment]:
    """An annotation of a task that the bridge made.

    Raises:
        Unusable: it is no judgment; says why.
    """
    key = str(one.data[KEY])
    sent = tasks.find(key, one.project, one.task, one.data)
    if (one.id, one.created_at) in sent.pulled:
        raise Unusable("a pull has read it already")
    try:
        answer = decode(sent.interface, _own_result(one, sent) if one.result is None else one.result)
    except Undecodable as error:
        raise Unusable(f"not an answer to its interface ({error})") from None
    if answer.is_skipped:
        raise Unusable("skipped")
    judgment = judgment_of(
        answer,
        sent.comparison,
        sent.shown,
        annotator=pseudonym(sent.url or server, one.account),
        is_edited=one.is_edited,
        seconds=one.seconds,
        guideline=sent.guideline,
        source=source_of(sent.campaign, key),
    )
    return sent.comparison, judgment


class _Stock(NamedTuple):
    """An annotation of a task that was made by hand; ``fields`` are those of all such tasks."""

    path: Path
    one: ExportedAnnotation
    settings: FileSettings
    buckets: Sequence[str]
    server: str
    fields: set[str]

    def read(self) -> tuple[Comparison, Judgment]:
        """Its comparison and judgment.

        Raises:
            Unusable, Undecodable: it is no judgment; says why.
            BadInput: the data of its task has no field for what it answers.
        """
        one, columns = self.one, self.settings.columns
        if one.result is None:
            regions = regions_of_values(one.data, columns.label, columns.rationale)
            if not regions:
                raise Unusable("the result is empty, or its choices are not named by columns.label")
        else:
            regions = stock_regions(one.result)
        region = deciding(regions, columns.label)
        if region.type == "ranker":
            cards = cards_of(one.data.get(self._field("responses", USUAL_CARDS)))
            answer = ranked(region, [*cards], self.buckets, self._where)
            prompt = columns.find("prompt", self.fields, self._where)
            before = messages_of(one.data.get(prompt), "user", prompt) if prompt else []
            sides = PromptResponses(before, [*cards.values()])
        else:
            answer, sides = pairwise(region, self.settings.labels), self._two()
        check(sides, ("left", "right"))
        comparison, shown = placed(sides, self.settings.language)
        judgment = judgment_of(
            answer._replace(rationale=text_in(regions, columns.rationale)),
            comparison,
            shown,
            annotator=pseudonym(self.server, one.account),
            is_edited=one.is_edited,
            seconds=one.seconds,
            guideline=None,
            source=source_of(self.server, one.task),
        )
        return comparison, judgment

    @property
    def _where(self) -> str:
        return f"{self.path}: row {self.one.row}"

    def _field(self, name: str, usual: tuple[str, ...]) -> str:
        return self.settings.columns.need(name, self.fields, self._where, usual)

    def _two(self) -> PromptResponses:
        left, right = self._field("left", USUAL_LEFT), self._field("right", USUAL_RIGHT)
        prompt = self.settings.columns.find("prompt", self.fields, self._where)
        cells = {"left": left, "right": right, "prompt": prompt}
        return sides_of({name: self.one.data.get(field) for name, field in cells.items() if field}, ("left", "right"))


def _annotations(number: int, row: Mapping[str, Any], dropped: list[dict[str, Any]]) -> Iterator[ExportedAnnotation]:
    """The annotations of a row; what is none goes to ``dropped``."""
    task = str(row.get("id", f"row {number}"))
    if "annotations" not in row:
        if row.get("annotation_id") is None:
            dropped.append(left_out(number, f"task {task}", "nobody answered it"))
            return
        fields = {key: value for key, value in row.items() if key not in ROW_FIELDS}
        facts = {**row, "id": row["annotation_id"], "completed_by": row.get("annotator"), "result": None}
        yield _annotation(number, task, None, fields, facts)
        return
    annotations, data, drafts = row["annotations"], row.get("data"), row.get("drafts")
    if not isinstance(annotations, list) or not isinstance(data, dict):
        dropped.append(left_out(number, f"task {task}", "no task with data and a list of annotations"))
        return
    for draft in drafts if isinstance(drafts, list) else []:
        name = draft.get("id") if isinstance(draft, dict) else draft
        dropped.append(left_out(number, f"draft {name}", "a draft that was not submitted"))
    if not annotations:
        dropped.append(left_out(number, f"task {task}", "nobody answered it"))
    project = row.get("project")
    for annotation in annotations:
        if not isinstance(annotation, dict) or "result" not in annotation:
            dropped.append(left_out(number, f"task {task}", "an annotation that was exported without its result"))
            continue
        yield _annotation(number, task, project if isinstance(project, int) else None, data, annotation)


def _annotation(
    number: int, task: str, project: int | None, data: Mapping[str, Any], facts: Mapping[str, Any]
) -> ExportedAnnotation:
    account, editor = _account(facts.get("completed_by")), _account(facts.get("updated_by"))
    seconds = number_of(facts.get("lead_time"))
    return ExportedAnnotation(
        row=number,
        task=task,
        project=project,
        data=data,
        id=facts["id"] if isinstance(facts.get("id"), int) else str(facts.get("id", "?")),
        account=account,
        created_at=str(facts.get("created_at") or ""),
        updated_at=str(facts.get("updated_at") or ""),
        is_cancelled=bool(facts.get("was_cancelled")),
        is_edited=editor is not None and editor != account,
        seconds=seconds if seconds is not None and seconds >= 0 else None,
        result=facts["result"],
    )


def _account(value: Any) -> int | str | None:
    """An account: its number, alone or among its fields, else its name."""
    account = value.get("id", value.get("email")) if isinstance(value, dict) else value
    return account if isinstance(account, int | str) and account != "" else None


def _own_result(one: ExportedAnnotation, sent: Sent) -> list[dict[str, Any]]:
    """The result that values by control came from, as far as the export keeps it."""
    regions = []
    for name, control in controls(sent.interface).items():
        if name not in one.data:
            continue
        value, key = one.data[name], VALUE_KEYS[control.type]
        listed = value if isinstance(value, list) else [value]
        regions += [
            {
                "from_name": name,
                "to_name": control.to_name,
                "type": control.type,
                "value": entry if isinstance(entry, dict) else {key: [entry]},
            }
            for entry in listed
        ]
    return regions
