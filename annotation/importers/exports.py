"""Exports of a labelling server: tasks with their annotations (JSON and snapshots), or a row per annotation (JSON_MIN).

In: the file. Out: one judgment for each person's last annotation of a task. A task that the bridge made is read
strictly by its own interface, with the sides that the store's ledger noted when it was sent; where the ledger does not
know it, by the campaign's YAML, with the sides in which it shows the texts. Any other task is read as one of the stock
templates. Skipped, empty, superseded and unreadable annotations, drafts and tasks nobody answered are left
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
from annotation.importers.imported import ImportedFile, ImportedRow, UnusableRow, left_out
from annotation.importers.responses import PromptResponses, check, placed, sides_of
from annotation.importers.sent import SentTask, SentTasks
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
from annotation.interface.decode import VALUE_KEYS, ScreenJudgment, decode, judgment_of
from annotation.interface.regions import Undecodable
from annotation.label_studio.rows import KEY
from annotation.store.ledger import pseudonym, source_of

OWN_PAGE = "response_a_html"  # a field that every task of the bridge shows
USUAL_SIDES = {"left": ("answer1", "text1", "pairText1"), "right": ("answer2", "text2", "pairText2")}  # of templates
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

    def judgment(self, answer: ScreenJudgment, comparison: Comparison, shown: list[int], **facts: Any) -> Judgment:
        """Return the judgment that an answer by place on screen gives; ``facts`` are those of ``judgment_of``."""
        return judgment_of(answer, comparison, shown, is_edited=self.is_edited, seconds=self.seconds, **facts)


def looks_exported(row: Mapping[str, Any]) -> bool:
    """Return whether a row, as it is in the file, is a task with annotations, or an annotation of one."""
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
    export = _Export(path, settings, buckets, server, SentTasks(feedback, campaign), annotations)
    kept = []
    for one in annotations:
        name = f"annotation {one.id}"
        try:
            kept.append(ImportedRow(one.row, name, *export.read(one)))
        except (UnusableRow, Undecodable) as reason:
            dropped.append(left_out(one.row, name, reason))
    dropped.sort(key=lambda entry: int(entry["row"]))
    return ImportedFile("label-studio", len(rows), kept, dropped, replaced[0], [], export.sent.splits)


class _Export:
    """What the annotations of one export are read by."""

    def __init__(
        self,
        path: Path,
        settings: FileSettings,
        buckets: Sequence[str],
        server: str,
        sent: SentTasks,
        annotations: Sequence[ExportedAnnotation],
    ) -> None:
        self.path, self.settings, self.buckets, self.server, self.sent = path, settings, buckets, server, sent
        self.latest = {  # the server lets one person answer twice, and the last annotation counts
            (one.project, one.task, one.account): one
            for one in sorted(annotations, key=lambda one: (one.updated_at, str(one.id).zfill(20)))
        }
        self.fields = {field for one in annotations if not one.is_own for field in one.data}  # of tasks made by hand

    def read(self, one: ExportedAnnotation) -> tuple[Comparison, Judgment]:
        """Return the comparison and the judgment of an annotation.

        Raises:
            UnusableRow, Undecodable: it is no judgment; says why.
            BadInput: the data of its task has no field for what it answers.
        """
        if one.account is None:
            raise UnusableRow("nobody is named who gave it")
        if self.latest[one.project, one.task, one.account] is not one:
            raise UnusableRow("superseded by a later answer of the same person")
        if one.is_cancelled:
            raise UnusableRow("skipped")
        return self._of_the_bridge(one) if one.is_own else self._of_a_stock_template(one)

    def _of_the_bridge(self, one: ExportedAnnotation) -> tuple[Comparison, Judgment]:
        key = str(one.data[KEY])
        sent = self.sent.find(key, one.project, one.task, one.data)
        if (one.id, one.created_at) in sent.pulled:
            raise UnusableRow("a pull has read it already")
        try:
            answer = decode(sent.interface, _own_result(one, sent) if one.result is None else one.result)
        except Undecodable as error:
            raise UnusableRow(f"not an answer to its interface ({error})") from None
        if answer.is_skipped:
            raise UnusableRow("skipped")
        return sent.comparison, one.judgment(
            answer,
            sent.comparison,
            sent.shown,
            annotator=pseudonym(sent.url or self.server, one.account),
            guideline=sent.guideline,
            source=source_of(sent.campaign, key),
        )

    def _of_a_stock_template(self, one: ExportedAnnotation) -> tuple[Comparison, Judgment]:
        columns, where = self.settings.columns, f"{self.path}: row {one.row}"
        if one.result is None:
            regions = regions_of_values(one.data, columns.label, columns.rationale)
            if not regions:
                raise UnusableRow("the result is empty, or its choices are not named by columns.label")
        else:
            regions = stock_regions(one.result)
        region = deciding(regions, columns.label)
        if region.type == "ranker":
            cards = cards_of(one.data.get(columns.need("responses", self.fields, where, USUAL_CARDS)))
            answer = ranked(region, [*cards], self.buckets, where)
            prompt = columns.find("prompt", self.fields, where)
            before = messages_of(one.data.get(prompt), "user", prompt) if prompt else []
            sides = PromptResponses(before, [*cards.values()])
        else:
            answer = pairwise(region, self.settings.labels)
            cells = {side: columns.need(side, self.fields, where, usual) for side, usual in USUAL_SIDES.items()}
            if (prompt := columns.find("prompt", self.fields, where)) is not None:
                cells["prompt"] = prompt
            sides = sides_of({name: one.data.get(field) for name, field in cells.items()}, ("left", "right"))
        check(sides, ("left", "right"))
        comparison, shown = placed(sides, self.settings.language)
        answer = answer._replace(rationale=text_in(regions, columns.rationale))
        person, source = pseudonym(self.server, one.account), source_of(self.server, one.task)
        return comparison, one.judgment(answer, comparison, shown, annotator=person, guideline=None, source=source)


def _annotations(number: int, row: Mapping[str, Any], dropped: list[dict[str, Any]]) -> Iterator[ExportedAnnotation]:
    """Yield the annotations of a row; a row or draft without one is added to ``dropped`` with its reason."""
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
    """Return an account: its number, alone or among its fields, else its name."""
    account = value.get("id", value.get("email")) if isinstance(value, dict) else value
    return account if isinstance(account, int | str) and account != "" else None


def _own_result(one: ExportedAnnotation, sent: SentTask) -> list[dict[str, Any]]:
    """Return the result that values by control came from, as far as the export keeps it."""
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
