"""Read the first conversations that a stage would render, by the stage's own readers; nothing is written.

In: a stage's config. Out: exchanges (a prompt, and the answers that are rendered after it), in the order of the file.
What is made by an earlier step does not exist yet and gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from align.core.config import BadInput, StageConfig
from align.core.files import read_jsonl
from align.core.records import Message, Tokens
from align.core.run_record import is_run

FIRST = 32  # rows that are looked at


class RecordedResponse(NamedTuple):
    """A response with what is recorded of it."""

    messages: list[Message]
    ended: bool | None = None
    tokens: Tokens | None = None


class Exchange(NamedTuple):
    """A prompt as a row has it, and the answers to it."""

    prompt: list[Message]
    answers: list[RecordedResponse]
    tools: list[dict[str, Any]] | None = None
    arguments: Mapping[str, Any] | None = None


class FirstRows(NamedTuple):
    """The first rows of a stage's data; ``is_all`` where there are no others."""

    path: Path
    exchanges: list[Exchange]
    is_all: bool
    min_rows: int = 1


def first_rows(stage: StageConfig) -> FirstRows | None:
    """Return the first exchanges that a stage renders; None where it renders none or an earlier step makes its data.

    Raises:
        BadInput: the data cannot be read, as the stage would say.
    """
    if stage.stage not in READERS:
        return None
    field, read = READERS[stage.stage]
    path = getattr(stage, field)
    path = path[0] if isinstance(path, list) else path
    if path is None or not path.exists():
        return None
    rows = list(islice(read(stage, path), FIRST + 1))
    skipped = getattr(stage, "held_out", 0) if stage.stage == "sft" else 0
    return FirstRows(path, rows[:FIRST], len(rows) <= FIRST, getattr(stage, "min_rows", 1) + skipped)


def _imported(stage: Any, path: Path) -> Iterator[Exchange]:
    from annotation.importers.run import read

    imported = read(stage.model_copy(update={"limit": min(stage.limit or FIRST + 1, FIRST + 1)}))
    for comparison in imported.comparisons:
        answers = [RecordedResponse(r.messages, r.ended, r.tokens) for r in comparison.responses]
        yield Exchange(comparison.prompt, answers, comparison.tools, comparison.template_arguments)


def _demonstrations(stage: Any, path: Path) -> Iterator[Exchange]:
    from annotation.importers.demonstrations import read_demonstrations

    if is_run(path) and (path / "train.jsonl").is_file():
        yield from _pairs(stage, path)
        return
    file = path / "demonstrations.jsonl" if is_run(path) else path
    for row in read_demonstrations(file, FIRST + 1).rows:
        yield Exchange(
            row["prompt"], [RecordedResponse(row["completion"])], row.get("tools"), row.get("template_arguments")
        )


def _pairs(stage: Any, path: Path) -> Iterator[Exchange]:
    from align.data.pairs import read_pairs

    for pair in read_pairs(path / "train.jsonl"):
        answers = [RecordedResponse(pair.chosen, pair.chosen_ended, pair.chosen_tokens)]
        if stage.stage != "sft":
            answers.append(RecordedResponse(pair.rejected, pair.rejected_ended, pair.rejected_tokens))
        yield Exchange(pair.prompt, answers, pair.tools, pair.template_arguments)


def _prompts(stage: Any, path: Path) -> Iterator[Exchange]:
    from align.generate.prompts import read_prompts

    for prompt in read_prompts(path, stage.split):
        yield Exchange(prompt.messages, [], prompt.tools, prompt.arguments)


def _items(stage: Any, path: Path) -> Iterator[Exchange]:
    from align.evals.generation import with_system
    from align.evals.item_files import load_items

    for item in load_items(stage.items, stage.suite):
        if item.prompt is not None:
            options = [RecordedResponse([{"role": "assistant", "content": option}]) for option in item.options or ()]
            yield Exchange(with_system(item.prompt, stage.system_prompt), options, item.tools)


def _candidates(stage: Any, path: Path) -> Iterator[Exchange]:
    from align.core.records import Response

    file = path / "candidates.jsonl" if path.is_dir() else path
    for number, row in enumerate(read_jsonl(file), 1):
        try:
            responses = [Response.of(response) for response in row["responses"]]
            answers = [RecordedResponse(r.messages, r.ended, r.tokens) for r in responses]
            yield Exchange(row["prompt"], answers, row.get("tools"), row.get("template_arguments"))
        except (KeyError, TypeError, ValidationError) as error:
            raise BadInput(f"{file}: row {number}: no candidates row ({str(error).splitlines()[0]})") from None


READERS: Mapping[str, tuple[str, Callable[[Any, Path], Iterator[Exchange]]]] = {
    "import": ("data", _imported),
    "sft": ("data", _demonstrations),
    "reward": ("pairs", _pairs),
    "dpo": ("pairs", _pairs),
    "ppo": ("pairs", _pairs),
    "sample": ("prompts", _prompts),
    "eval": ("items", _items),
    "score": ("candidates", _candidates),
}
