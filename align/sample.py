"""Stage `sample`: k responses a prompt from a policy, for people (or a reward model) to compare.

In: a policy (run or model folder) and prompts (JSON lines, or a run that left ``prompts.jsonl``). Out:
``candidates.jsonl``, one prompt a line with its responses and where they came from. A response depends on the
seed and its prompt alone, never on its batch. Not here: choosing which responses are worth a person's time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field
from tqdm import tqdm

from align.core.config import BadInput, Compute, StageConfig
from align.core.files import artefact_hash, read_jsonl, write_jsonl
from align.core.load import context_length, find_source, template_of
from align.core.models import Stack
from align.core.runs import Run, read_run, stage
from align.core.text import Unusable
from align.rollout import Sample, respond
from annotation.types import Message, check_messages, prompt_id
from rewards.metrics import clustered_accuracy

PIECE = 768  # responses between two moves of the progress bar


class SampleConfig(StageConfig):
    """What is sampled; ``temperature: 0`` is greedy and has one response a prompt."""

    INPUTS: ClassVar[tuple[str, ...]] = ("policy", "prompts")

    stage: Literal["sample"] = "sample"
    policy: Path
    prompts: Path
    k: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    max_new_tokens: int = Field(default=64, ge=1)
    limit: int | None = Field(default=None, ge=1, description="prompts, in the order of the file")
    split: str | None = Field(default=None, description="only prompts of this split")
    chat_template: str | None = None
    compute: Compute = Compute()


class Prompt(NamedTuple):
    """A row of the prompts file: what is asked, and what is passed on unread."""

    id: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    family: str
    split: str


@stage
def sample(config: SampleConfig, run: Run) -> dict[str, Any]:
    """Write ``candidates.jsonl``: k sampled responses for every prompt that fits the model's context."""
    if config.temperature == 0 and config.k > 1:
        raise BadInput(f"temperature: 0 gives the same response {config.k} times; set k: 1 or a temperature above 0")
    source = find_source(config.policy)
    stack = Stack(source.base, config.compute, template_of(config.policy, config.chat_template))
    if source.adapter:
        stack.add("policy", adapter=source.adapter, trainable=False)
    run.record.lineage |= {"base": artefact_hash(source.base)}
    prompts = _distinct(run, read_prompts(config.prompts, config.split), config.limit)
    usable = _tokenise(run, stack, prompts, config.max_new_tokens)
    if not usable:
        raise BadInput(f"{config.prompts}: none of {len(prompts)} prompts can be used ({run.record.dropped})")
    started = time.monotonic()
    answers = _answer(config, stack, "policy" if source.adapter else None, usable)
    seconds = time.monotonic() - started
    rows = [
        _row(run, stack, prompt, found, _origin(config.policy))
        for (prompt, _), found in zip(usable, answers, strict=True)
    ]
    kept = [row for row in rows if row["responses"]]
    run.drop("prompt with empty responses only", len(rows) - len(kept))
    if not kept:
        raise BadInput(f"{config.prompts}: every response of {len(rows)} prompts is empty; is the policy trained?")
    if run.is_main:
        write_jsonl(run.path / "candidates.jsonl", kept)
    return _headline(kept, answers, seconds)


def read_prompts(path: Path, split: str | None = None) -> list[Prompt]:
    """Read prompts: rows ``{"prompt": messages | text, "id"?, "family"?, "split"?, "tools"?}``.

    Raises:
        BadInput: the file is missing or empty of this split, or a row holds no usable prompt (named by line).
    """
    file = path / "prompts.jsonl" if path.is_dir() else path
    prompts = []
    for number, row in enumerate(read_jsonl(file), 1):
        asked = row.get("prompt")
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise BadInput(f"{file}: row {number}: 'prompt' must be text or a list of messages")
        try:
            check_messages(messages, "prompt")
        except ValueError as error:
            raise BadInput(f"{file}: row {number}: {error}") from None
        tools = row.get("tools")
        prompts.append(
            Prompt(
                prompt_id(messages, tools),
                messages,
                tools,
                row.get("template_arguments") or {},
                str(row.get("family") or ""),
                str(row.get("split") or ""),
            )
        )
    found = [prompt for prompt in prompts if split is None or prompt.split == split]
    if not found:
        known = ", ".join(sorted({prompt.split for prompt in prompts})) or "none"
        raise BadInput(f"{file}: no prompts of split '{split}' (splits there: {known})" if split else f"{file}: empty")
    return found


def _distinct(run: Run, prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    distinct = list({prompt.id: prompt for prompt in reversed(prompts)}.values())[::-1]
    run.drop("repeated prompt", len(prompts) - len(distinct))
    return distinct[:limit]


def _tokenise(run: Run, stack: Stack, prompts: Sequence[Prompt], max_new_tokens: int) -> list[tuple[Prompt, list[int]]]:
    """Token ids of the prompts that the template takes and that leave room for an answer, longest first."""
    context = context_length(stack.base)
    usable = []
    for prompt in prompts:
        try:
            ids = stack.chat.prompt_ids(prompt.messages, prompt.tools, prompt.arguments)
        except Unusable as error:
            run.drop(f"prompt: {error}")
            continue
        if context is not None and len(ids) + max_new_tokens > context:
            run.drop(f"prompt leaves no room for {max_new_tokens} new tokens in a context of {context}")
            continue
        usable.append((prompt, ids))
    return usable


def _answer(
    config: SampleConfig, stack: Stack, role: str | None, usable: Sequence[tuple[Prompt, list[int]]]
) -> list[list[Sample]]:
    """k samples a prompt, in the order given; prompts of like length share a batch."""
    order = sorted(range(len(usable)), key=lambda i: (-len(usable[i][1]), i))
    found: dict[int, list[Sample]] = {}
    step = max(1, PIECE // config.k)
    for begin in tqdm(range(0, len(order), step), desc="sample", unit="batch"):
        piece = order[begin : begin + step]
        samples = respond(
            stack,
            role,
            [usable[i][1] for i in piece],
            [(config.seed, "sample", usable[i][0].id) for i in piece],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            k=config.k,
        )
        found |= dict(zip(piece, samples, strict=True))
    return [found[i] for i in range(len(usable))]


def _origin(policy: Path) -> str:
    """The name a response is remembered by: its policy's run, or the model folder."""
    if (policy / "run.json").is_file():
        return Path(read_run(policy).path).name
    return policy.resolve().name


def _row(run: Run, stack: Stack, prompt: Prompt, samples: Sequence[Sample], origin: str) -> dict[str, Any]:
    responses = []
    for answer in samples:
        text = stack.chat.text(answer.ids)
        if not text.strip():
            run.drop("empty response")  # nothing that a person could compare
            continue
        messages = [{"role": "assistant", "content": text}]
        responses.append({"messages": messages, "origin": origin, "ended": answer.ended})
    row = {"prompt_id": prompt.id, "prompt": prompt.messages, "responses": responses}
    row |= {"family": prompt.family, "split": prompt.split}
    shared = {"tools": prompt.tools, "template_arguments": prompt.arguments}
    return row | {key: value for key, value in shared.items() if value}


def _headline(rows: Sequence[dict[str, Any]], answers: Sequence[Sequence[Sample]], seconds: float) -> dict[str, Any]:
    """Counts, and shares with intervals clustered by prompt, over everything that was sampled."""
    lengths = [len(answer.ids) for found in answers for answer in found]
    clusters = [str(i) for i, found in enumerate(answers) for _ in found]
    return {
        "prompts": len(rows),
        "responses": sum(len(row["responses"]) for row in rows),
        "ended": clustered_accuracy([float(answer.ended) for found in answers for answer in found], clusters),
        "distinct": clustered_accuracy([new for found in answers for new in _new(found)], clusters),
        "tokens": {"mean": statistics.fmean(lengths), "median": statistics.median(lengths), "n": len(lengths)},
        "seconds_per_response": round(seconds / len(lengths), 4),
    }


def _new(samples: Sequence[Sample]) -> list[float]:
    """1 for each response that no earlier one of the prompt equals, else 0."""
    return [float(all(answer.ids != before.ids for before in samples[:i])) for i, answer in enumerate(samples)]
