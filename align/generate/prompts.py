"""Read the prompts of a file or of a run, and name the columns that are not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.files import read_jsonl
from align.core.records import Message, Pair, check_messages, is_empty, prompt_id
from annotation.importers.imported import UnusableRow
from annotation.importers.responses import with_system
from annotation.importers.turns import messages_of, refuse_media, template_arguments_of, tools_of

READ = {"prompt", "system", "tools", "template_arguments", "chat_template_kwargs", "id", "family", "split", "language"}
READ |= {*Pair.model_fields}  # files of a pairs run can be read as prompts


class Prompt(NamedTuple):
    """A row of the prompts file: the conversation to answer, and the fields that are copied to candidates."""

    id: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    family: str
    split: str
    language: str = ""


def read_prompts(path: Path, split: str | None = None, note: Callable[[str], None] = lambda text: None) -> list[Prompt]:
    """Read prompts: rows ``{"prompt": messages | text, "system"?, "tools"?, "template_arguments"?, "split"?, ...}``.

    Args:
        note: called with a sentence that names the columns that are not read.

    Raises:
        BadInput: the file is missing or empty of this split, or a row holds no usable prompt (named by line).
    """
    file = path / "prompts.jsonl" if path.is_dir() else path
    prompts = []
    unread: Counter[str] = Counter()
    for number, row in enumerate(read_jsonl(file), 1):
        try:
            if "prompt" not in row:
                raise ValueError(f"no 'prompt' (it holds {', '.join(map(repr, row)) or 'nothing'})")
            refuse_media(row)
            messages = with_system(messages_of(row.get("prompt"), "user", "prompt"), row.get("system"))
            messages = (
                messages[:-1] if is_empty(messages[-1:]) else messages
            )  # an empty last turn ("Assistant:") is a generation prompt
            check_messages(messages, "prompt")
            tools = tools_of(row.get("tools"))
        except (ValueError, UnusableRow) as error:
            raise BadInput(f"{file}: row {number}: {error}; mend or remove it") from None
        unread.update(set(row) - READ)
        prompts.append(
            Prompt(
                prompt_id(messages, tools),
                messages,
                tools,
                template_arguments_of(row) or {},
                str(row.get("family") or ""),
                str(row.get("split") or ""),
                str(row.get("language") or ""),
            )
        )
    if unread:
        columns = ", ".join(f"'{column}' ({count})" for column, count in sorted(unread.items()))
        note(f"{file}: columns that are not read, with how many rows have them: {columns}")
    chosen = [prompt for prompt in prompts if split is None or prompt.split == split]
    if not chosen:
        known = ", ".join(sorted({prompt.split for prompt in prompts})) or "none"
        raise BadInput(f"{file}: no prompts of split '{split}' (splits there: {known})" if split else f"{file}: empty")
    return chosen
