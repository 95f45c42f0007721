"""Files of demonstrations, row by row: a prompt and the completion that is to be learnt.

In: rows with ``prompt`` and ``completion`` (text, a message or messages; ``system``, ``tools`` and
``template_arguments`` beside them), in any container that preferences come in. Out: usable rows, and the others with
their reasons. The checks are those of preferences. Not here: what a chat template makes of a row.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from annotation.importers.collector import HELD_OUT, split_of
from annotation.importers.columns import name_in, word_of
from annotation.importers.formats import cleaned, container_of
from annotation.importers.imported import UnusableRow, left_out
from annotation.importers.responses import PromptResponses, check, prompt_of, refuse_empty, with_system
from annotation.importers.turns import decoded, marks_in, messages_of, refuse_media, template_arguments_of, tools_of

READ = {"prompt", "completion", "system", "tools", "template_arguments", "chat_template_kwargs", "id"}
READ |= {"comparison_id", "prompt_id"}  # of our own demonstrations
READ |= {"label", "split"}  # a row of a bad completion, or held out, is left out
BAD = ("false", "0", "bad", "no", "negative", "down", "thumbs_down", "rejected")  # labels of a bad completion
GOOD = ("true", "1", "good", "yes", "positive", "up", "thumbs_up", "chosen")
TEXT_CONTAINERS = ("csv", "tsv", "parquet")  # columns that hold lists come as JSON text there


class Demonstrations(NamedTuple):
    """Rows {row, prompt, completion, tools, template_arguments} as messages, and rows left out with their reasons.

    ``unread`` counts rows by the columns of theirs that are not read, ``marked`` by the marks of turns or of a chat
    template that their text holds.
    """

    rows: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    unread: Counter[str]
    marked: Counter[str]


def read_demonstrations(path: Path, limit: int | None = None) -> Demonstrations:
    """Read a file of demonstrations; ``limit`` reads the first rows alone.

    Raises:
        BadInput: the file cannot be read, or a row lacks its prompt or its completion.
    """
    container = container_of(path, "trl")
    rows: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    unread: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    for number, row in cleaned(path, container, [0], limit):
        if container in TEXT_CONTAINERS:
            row |= {name: decoded(row[name], "role") for name in ("prompt", "completion") if name in row}
        if missing := [key for key in ("prompt", "completion") if key not in row]:
            raise BadInput(f"{path}:{number}: no '{missing[0]}'; a demonstration is {{prompt, completion}}")
        unread.update(set(row) - READ)
        try:
            unread.update(_unknown(row))
            rows.append({"row": number, **_read(row)})
        except UnusableRow as reason:
            dropped.append(left_out(number, row.get("id"), reason))
            continue
        if mark := marks_in([*rows[-1]["prompt"], *rows[-1]["completion"]]):
            marked[mark] += 1
    return Demonstrations(rows, dropped, unread, marked)


def _read(row: dict[str, Any]) -> dict[str, Any]:
    refuse_media(row)
    if word_of(row.get("label", "")) in BAD:
        raise UnusableRow("its label says that the completion is bad")
    if split_of(name_in(row, "split") or "") in HELD_OUT:
        raise UnusableRow(f"held out by its split ('{row['split']}')")
    prompt = with_system(prompt_of(row["prompt"]), row.get("system"))
    completion = messages_of(row["completion"], "assistant", "completion")
    if any(message["role"] not in ("assistant", "tool") for message in completion):
        raise UnusableRow("a completion holds turns that are neither the assistant's nor a tool's")
    check(PromptResponses(prompt, [completion]))
    refuse_empty(completion)
    read = {"prompt": prompt, "completion": completion, "tools": tools_of(row.get("tools"))}
    return read | {"template_arguments": template_arguments_of(row)}


def _unknown(row: dict[str, Any]) -> set[str]:
    """Return which of label and split hold a value that is not known."""
    label, split = word_of(row.get("label", "")), name_in(row, "split") or ""
    strange = {"label"} if label and label not in (*BAD, *GOOD) else set()
    return strange | ({"split"} if split and split_of(split) is None else set())
