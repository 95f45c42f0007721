"""Exports of a labelling server: tasks with their annotations (JSON and snapshots), or a row an answer (JSON_MIN).

In: the file. Out: one judgment for each person's last answer to a task. A task that the bridge made is read strictly
by its own interface, and its sides are those that the ledger of the store noted when it was sent; where the ledger
does not know it, by the campaign's YAML, with the sides that the shown texts tell. Any other task is read as one of
the stock templates. Skipped, empty, superseded and unreadable answers, drafts and tasks nobody answered are left out,
with their reasons, and so is what a pull has read already. JSON_MIN tells neither skips nor drafts, nor whether
somebody else edited an answer. Accounts are pseudonyms, as in a pull; addresses that an export holds are not kept. Not
here: asking a server (``pull.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.records import Comparison, Judgment
from annotation.importers.columns import Columns, Labels, number_of
from annotation.importers.formats import cleaned, container_of
from annotation.importers.imported import ImportedFile, ImportedRow, Unusable, left_out
from annotation.importers.responses import PromptResponses, check, placed, sides_of
from annotation.importers.sent import Sent, SentTasks
from annotation.importers.stock import cards_of, decided, pairwise, ranked, regions_of, regions_of_values, text_in
from annotation.importers.turns import messages_of
from annotation.interface.config import controls
from annotation.interface.decode import EDITED, VALUE_KEYS, Undecodable, decode, judgment_of
from annotation.label_studio.rows import KEY
from annotation.store.ledger import pseudonym, source_of

OWN_PAGE = "response_a_html"  # a field that every task of the bridge shows
USUAL_LEFT = ("answer1", "text1", "pairText1")  # fields of the server's own templates
USUAL_RIGHT = ("answer2", "text2", "pairText2")
USUAL_CARDS = ("items", "answers")
ROW_FIELDS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")


class Answer(NamedTuple):
    """One annotation, and the task it answers. ``result`` is None where the export holds values by control."""

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
        return isinstance(self.data.get(KEY), str) and OWN_PAGE in self.data


def looks_exported(row: Mapping[str, Any]) -> bool:
    """Whether a row, as it stands in the file, is a task with annotations, or an answer to one."""
    is_task = "data" in row and isinstance(row.get("annotations"), list)
    return is_task or {"annotation_id", "annotator", "lead_time"} <= set(row)


def read_export(
    path: Path,
    columns: Columns,
    labels: Labels,
    *,
    buckets: Sequence[str] = (),
    server: str = "label-studio",
    feedback: Path | None = None,
    campaign: Path | None = None,
    language: str = "en",
    limit: int | None = None,
) -> ImportedFile:
    """Read an export; ``limit`` reads only the first rows.

    Args:
        buckets: the places of a stock ranking, best first.
        server: whose accounts these are; those of another name are other people.
        feedback: the store whose ledger knows what was sent.
        campaign: the YAML that made tasks which the ledger does not know.

    Raises:
        BadInput: the file cannot be read, is no export, or a field is not there.
    """
    replaced = [0]
    rows = list(cleaned(path, container_of(path, "label-studio"), replaced, limit))
    if rows and not any("annotations" in row or "id" in row for _, row in rows):
        raise BadInput(f"{path}: row {rows[0][0]} is no task of an export (neither 'annotations' nor 'annotation_id')")
    dropped: list[dict[str, Any]] = []
    answers = [answer for number, row in rows for answer in _answers(number, row, dropped)]
    sent = SentTasks(feedback, campaign)
    reader = _Reader(path, columns, labels, buckets, server, language, sent)
    kept = []
    reader.look_at(answers)
    for answer in answers:
        try:
            kept.append(reader.read(answer))
        except Unusable as reason:
            dropped.append(left_out(answer.row, f"annotation {answer.id}", reason))
    dropped.sort(key=lambda entry: int(entry["row"]))
    return ImportedFile("label-studio", len(rows), kept, dropped, replaced[0], [], sent.splits)


class _Reader:
    """One export: its fields, and which answers count."""

    def __init__(
        self,
        path: Path,
        columns: Columns,
        labels: Labels,
        buckets: Sequence[str],
        server: str,
        language: str,
        sent: SentTasks,
    ) -> None:
        self.path, self.columns, self.labels = path, columns, labels
        self.buckets, self.server, self.language, self.sent = buckets, server, language, sent
        self.latest: dict[tuple[int | None, str, int | str | None], Answer] = {}
        self.fields: set[str] = set()

    def look_at(self, answers: Iterable[Answer]) -> None:
        """See everything once: the server lets one person answer twice, and the last answer counts."""
        for answer in sorted(answers, key=lambda a: (a.updated_at, str(a.id).zfill(20))):
            self.latest[answer.project, answer.task, answer.account] = answer
            if not answer.is_own:
                self.fields |= set(answer.data)

    def read(self, answer: Answer) -> ImportedRow:
        """An answer as a judgment.

        Raises:
            Unusable: it is none; says why.
            BadInput: the data of its task has no field for what it answers.
        """
        if answer.account is None:
            raise Unusable("nobody is named who gave it")
        if self.latest[answer.project, answer.task, answer.account] is not answer:
            raise Unusable("superseded by a later answer of the same person")
        if answer.is_cancelled:
            raise Unusable("skipped")
        comparison, judgment = self._own(answer) if answer.is_own else self._stock(answer)
        return ImportedRow(answer.row, f"annotation {answer.id}", comparison, judgment)

    def _own(self, answer: Answer) -> tuple[Comparison, Judgment]:
        """An answer to a task that the bridge made."""
        sent = self.sent.find(str(answer.data[KEY]), answer.project, answer.task, answer.data)
        if (answer.id, answer.created_at) in sent.pulled:
            raise Unusable("a pull has read it already")
        result = _own_result(answer, sent) if answer.result is None else answer.result
        try:
            verdict = decode(sent.interface, result)
        except Undecodable as error:
            raise Unusable(f"not an answer to its interface ({error})") from None
        if verdict.is_skipped:
            raise Unusable("skipped")
        judgment = judgment_of(
            verdict,
            sent.comparison,
            sent.shown,
            annotator=pseudonym(sent.url or self.server, answer.account),
            is_edited=answer.is_edited,
            seconds=answer.seconds,
            guideline=sent.guideline,
            source=source_of(sent.campaign, str(answer.data[KEY])),
        )
        return sent.comparison, judgment

    def _stock(self, answer: Answer) -> tuple[Comparison, Judgment]:
        """An answer to a task that was made by hand."""
        columns = self.columns
        if answer.result is None:
            regions = regions_of_values(answer.data, columns.label, columns.rationale)
            if not regions:
                raise Unusable("the result is empty, or its choices are not named by columns.label")
        else:
            regions = regions_of(answer.result)
        region = decided(regions, columns.label)
        where = f"{self.path}: row {answer.row}"
        if region.type == "ranker":
            cards = cards_of(answer.data.get(columns.need("responses", self.fields, where, USUAL_CARDS)))
            said = ranked(region, cards, self.buckets, where)
            sides = PromptResponses(self._prompt(answer, where), [card.messages for card in cards])
        else:
            said = pairwise(region, self.labels)
            sides = self._two(answer, where)
        check(sides, ("left", "right"))
        comparison, shown = placed(sides, self.language)
        judgment = Judgment(
            comparison_id=comparison.id,
            annotator=pseudonym(self.server, answer.account),
            ranking=[sorted(shown[place] for place in group) for group in said.ranking],
            shown=shown,
            flags=[*said.flags, *([EDITED] if answer.is_edited else [])],
            rationale=text_in(regions, columns.rationale),
            seconds=answer.seconds,
            source=source_of(self.server, answer.task),
        )
        return comparison, judgment

    def _two(self, answer: Answer, where: str) -> PromptResponses:
        left = self.columns.need("left", self.fields, where, USUAL_LEFT)
        right = self.columns.need("right", self.fields, where, USUAL_RIGHT)
        prompt = self.columns.find("prompt", self.fields, where)
        row = {"left": answer.data.get(left), "right": answer.data.get(right)}
        return sides_of({**row, "prompt": answer.data.get(prompt) if prompt else None}, ("left", "right"))

    def _prompt(self, answer: Answer, where: str) -> list[dict[str, Any]]:
        prompt = self.columns.find("prompt", self.fields, where)
        return messages_of(answer.data.get(prompt), "user", prompt) if prompt else []


def _answers(number: int, row: Mapping[str, Any], dropped: list[dict[str, Any]]) -> Iterator[Answer]:
    """The annotations of a row; what is none goes to ``dropped``."""
    task = str(row.get("id", f"row {number}"))
    if "annotations" not in row:
        if row.get("annotation_id") is None:
            dropped.append(left_out(number, f"task {task}", "nobody answered it"))
            return
        fields = {key: value for key, value in row.items() if key not in ROW_FIELDS}
        facts = {**row, "id": row["annotation_id"], "completed_by": row.get("annotator"), "result": None}
        yield _answer(number, task, None, fields, facts)
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
        yield _answer(number, task, project if isinstance(project, int) else None, data, annotation)


def _answer(number: int, task: str, project: int | None, data: Mapping[str, Any], facts: Mapping[str, Any]) -> Answer:
    account, editor = _account(facts.get("completed_by")), _account(facts.get("updated_by"))
    seconds = number_of(facts.get("lead_time"))
    return Answer(
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
    """Who an account is: its number, which stands there alone or within its fields, else what names it."""
    found = value.get("id", value.get("email")) if isinstance(value, dict) else value
    return found if isinstance(found, int | str) and found != "" else None


def _own_result(answer: Answer, sent: Sent) -> list[dict[str, Any]]:
    """The result that values by control came from, as far as the export keeps it."""
    regions = []
    for name, control in controls(sent.interface).items():
        if name not in answer.data:
            continue
        value, key = answer.data[name], VALUE_KEYS[control.type]
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
