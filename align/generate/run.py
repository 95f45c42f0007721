"""Stage `sample`: k responses a prompt from a policy or an endpoint, for people (or a reward model) to compare.

In: a policy (run or model folder), or a model's name at an OpenAI-compatible endpoint; and prompts (JSON lines, or a
run that left ``prompts.jsonl``). Out: ``candidates.jsonl``, one prompt a line with its responses and where they came
from. A policy's response depends on the seed and its prompt alone, never on its batch; an endpoint is given a seed for
each and may not heed it. What an endpoint answered is kept as it comes: a run that was killed goes on. Not here:
choosing which responses are worth a person's time, and talking to endpoints (``endpoint.py``).
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from align.core.config import BadInput, Compute, TextConfig
from align.core.files import artefact_hash, cut_jsonl, read_jsonl, write_jsonl
from align.core.records import Message, Pair, check_messages, is_empty, prompt_id
from align.core.runs import Run, read_run, stage
from align.core.stats.estimates import clustered_accuracy
from align.data.tokens import record_tokens
from align.generate.completions import Asked, Manner
from align.generate.endpoint import Answered, Endpoint, address, sum_known
from align.generate.local import Sample, sample_responses, sequence_seed
from align.model.adapters import AdapterModel
from align.model.chat import Unusable
from align.model.load import context_length, find_policy, template_of
from align.model.parsing import parse_response
from annotation.importers.intake import Unusable as NotReadable
from annotation.importers.sides import with_system
from annotation.importers.turns import messages_of, refuse_media, template_arguments_of, tools_of

PIECE = 768  # responses between two moves of the progress bar
PART = "checkpoints/answers.jsonl"  # what an endpoint answered so far
READ = {"prompt", "system", "tools", "template_arguments", "chat_template_kwargs", "id", "family", "split", "language"}
READ |= {*Pair.model_fields}  # a pairs run's files are files of prompts too
Responses = list[dict[str, Any]]  # as candidates hold them: messages, origin, ended, and tokens of a policy's own


class SampleConfig(TextConfig):
    """What is sampled, from a policy or an endpoint; ``temperature: 0`` is greedy and has one response a prompt."""

    INPUTS: ClassVar[tuple[str, ...]] = ("policy", "prompts")

    stage: Literal["sample"] = "sample"
    policy: Path | None = None
    endpoint: str | None = Field(default=None, description="address of an API, such as http://127.0.0.1:8000/v1")
    model: str | None = Field(default=None, description="the model's name at the endpoint")
    prompts: Path
    k: int = Field(default=4, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    max_new_tokens: int = Field(default=64, ge=1)
    limit: int | None = Field(default=None, ge=1, description="prompts, in the order of the file")
    split: str | None = Field(default=None, description="only prompts of this split")
    compute: Compute = Compute()

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        return None if url is None else address(url)

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.policy is None) == (self.endpoint is None):
            raise ValueError("set policy (a run or model folder) or endpoint (an address), one of the two")
        if (self.model is None) != (self.endpoint is None):
            raise ValueError("endpoint and model (its name there) go together")
        if self.endpoint and self.chat_template:
            raise ValueError("chat_template: an endpoint has its own; leave it out")
        if self.endpoint and "date" in (self.template_arguments or {}):
            raise ValueError("template_arguments: an endpoint prints its own date; leave date out")
        return self


class Prompt(NamedTuple):
    """A row of the prompts file: what is asked, and what is passed on unread."""

    id: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    family: str
    split: str
    language: str = ""


class Sampled(NamedTuple):
    """Responses by prompt, in the order of the file, and figures of how they came about."""

    rows: list[tuple[Prompt, Responses]]
    figures: dict[str, Any]


@stage
def sample(config: SampleConfig, run: Run) -> dict[str, Any]:
    """Write ``candidates.jsonl``: k sampled responses for every prompt that can be asked."""
    if config.temperature == 0 and config.k > 1:
        raise BadInput(f"temperature: 0 gives the same response {config.k} times; set k: 1 or a temperature above 0")
    prompts = _distinct(run, read_prompts(config.prompts, config.split, run.note), config.limit)
    policy = config.policy
    found = _from_endpoint(config, run, prompts) if policy is None else _from_policy(config, policy, run, prompts)
    rows = [_row(run, prompt, responses) for prompt, responses in found.rows]
    _note_silent(run, rows)
    kept = [row for row in rows if row["responses"]]
    run.drop("prompt with empty responses only", len(rows) - len(kept))
    if not kept:
        why = "is the policy trained?" if policy else "or withheld; does the endpoint filter or break off its answers?"
        raise BadInput(f"{config.prompts}: every response of {len(rows)} prompts is empty; {why}")
    if run.is_main:
        write_jsonl(run.path / "candidates.jsonl", kept)
    return _headline(kept, [responses for _, responses in found.rows]) | found.figures


def read_prompts(path: Path, split: str | None = None, note: Callable[[str], None] = lambda text: None) -> list[Prompt]:
    """Read prompts: rows ``{"prompt": messages | text, "system"?, "tools"?, "template_arguments"?, "split"?, ...}``.

    Args:
        note: told which columns are not read.

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
            messages = messages[:-1] if is_empty(messages[-1:]) else messages  # "Assistant:" asks for an answer
            check_messages(messages, "prompt")
            tools = tools_of(row.get("tools"))
        except (ValueError, NotReadable) as error:
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
    found = [prompt for prompt in prompts if split is None or prompt.split == split]
    if not found:
        known = ", ".join(sorted({prompt.split for prompt in prompts})) or "none"
        raise BadInput(f"{file}: no prompts of split '{split}' (splits there: {known})" if split else f"{file}: empty")
    return found


def _distinct(run: Run, prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    distinct = list({prompt.id: prompt for prompt in reversed(prompts)}.values())[::-1]
    run.drop("repeated prompt", len(prompts) - len(distinct))
    return distinct[:limit]


def _from_policy(config: SampleConfig, policy: Path, run: Run, prompts: Sequence[Prompt]) -> Sampled:
    """Sample from a policy on this machine."""
    source = find_policy(policy)
    model = AdapterModel(source.base, config.compute, template_of(policy, config.template(run.record.created)))
    run.renders_with(model.chat)
    if source.adapter:
        model.add("policy", adapter=source.adapter, trainable=False)
    run.record.lineage |= {"base": artefact_hash(source.base)}
    usable = _tokenise(run, model, prompts, config.max_new_tokens)
    if not usable:
        raise BadInput(f"{config.prompts}: none of {len(prompts)} prompts can be used ({run.record.dropped})")
    started = time.monotonic()
    answers = _answer(config, model, "policy" if source.adapter else None, usable)
    seconds = time.monotonic() - started
    origin = _origin(policy)
    rows = [
        (prompt, [_response(model, prompt, ids, sample, origin) for sample in samples])
        for (prompt, ids), samples in zip(usable, answers, strict=True)
    ]
    lengths = [len(answer.ids) for found in answers for answer in found]
    tokens = {"mean": statistics.fmean(lengths), "median": statistics.median(lengths), "n": len(lengths)}
    return Sampled(rows, {"tokens": tokens, "seconds_per_response": round(seconds / len(lengths), 4)})


def _tokenise(
    run: Run, model: AdapterModel, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[tuple[Prompt, list[int]]]:
    """Token ids of the prompts that the template takes and that leave room for an answer, longest first."""
    context = context_length(model.base)
    usable = []
    for prompt in prompts:
        try:
            ids = model.chat.prompt_ids(prompt.messages, prompt.tools, prompt.arguments)
        except Unusable as error:
            run.drop(f"prompt: {error}")
            continue
        if context is not None and len(ids) + max_new_tokens > context:
            run.drop(f"prompt leaves no room for {max_new_tokens} new tokens in a context of {context}")
            continue
        usable.append((prompt, ids))
    return usable


def _answer(
    config: SampleConfig, model: AdapterModel, role: str | None, usable: Sequence[tuple[Prompt, list[int]]]
) -> list[list[Sample]]:
    """k samples a prompt, in the order given; prompts of like length share a batch."""
    order = sorted(range(len(usable)), key=lambda i: (-len(usable[i][1]), i))
    found: dict[int, list[Sample]] = {}
    step = max(1, PIECE // config.k)
    for begin in tqdm(range(0, len(order), step), desc="sample", unit="batch"):
        piece = order[begin : begin + step]
        samples = sample_responses(
            model,
            role,
            [usable[i][1] for i in piece],
            [(config.seed, "sample", usable[i][0].id) for i in piece],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            k=config.k,
        )
        found |= dict(zip(piece, samples, strict=True))
    return [found[i] for i in range(len(usable))]


def _response(
    model: AdapterModel, prompt: Prompt, prompt_ids: Sequence[int], sample: Sample, origin: str
) -> dict[str, Any]:
    """A sample as candidates hold it: what people read, and the ids that are scored."""
    messages = [parse_response(model.chat, prompt_ids, sample.ids, prompt.tools)]
    tokens = record_tokens(model.chat, prompt_ids, sample.ids, messages)
    return {"messages": messages, "origin": origin, "ended": sample.ended, "tokens": tokens.model_dump()}


def _from_endpoint(config: SampleConfig, run: Run, prompts: Sequence[Prompt]) -> Sampled:
    """Ask an endpoint for what was not answered before; refused prompts are counted by reason."""
    manner = Manner(str(config.model), config.temperature, config.max_new_tokens)
    endpoint = Endpoint(str(config.endpoint), manner)
    done = _answered_before(run, len(prompts))
    if done:
        run.note(f"{len(done)} of {len(prompts)} prompts were answered before; going on")
    waiting = {prompt.id: number for number, prompt in enumerate(prompts) if number not in done}
    asked = [_asked(config, prompts[number]) for number in waiting.values()]
    for answered in tqdm(endpoint.ask_all(asked), desc="sample", unit="prompt", total=len(asked)):
        if answered.refused is not None:  # asked again by the next run of the same command
            run.drop(f"prompt refused by the endpoint: {answered.refused}")
            continue
        number = waiting[answered.id]
        done[number] = answered
        run.append(PART, [{"step": number, **answered._asdict()}])
    if not done:
        raise BadInput(f"{config.endpoint}: refused all of {len(prompts)} prompts ({run.record.dropped})")
    if "seed" in endpoint.given_up:
        run.note(f"{config.endpoint} takes no seeds: what it wrote cannot be drawn again")
    if config.k > 1 and all(sum(_new(answered.responses)) <= 1 for answered in done.values()):
        run.note(f"{config.endpoint} wrote the same {config.k} times to every prompt: does it sample, at temperature?")
    run.drop("response withheld by the endpoint", sum(answered.withheld for answered in done.values()))
    if n_masked := sum(answered.masked for answered in done.values()):
        run.note(f"{config.endpoint}: {n_masked} answers repeated the key of the API; [key] stands there instead")
    figures = {
        "served_by": sorted({name for answered in done.values() for name in answered.served_by}),
        "prompt_tokens": sum_known(answered.prompt_tokens for answered in done.values()),
        "completion_tokens": sum_known(answered.completion_tokens for answered in done.values()),
    }
    if None in figures.values():
        run.note(f"{config.endpoint} did not count the tokens of every answer: their number is not known")
    return Sampled([(prompts[number], done[number].responses) for number in sorted(done)], figures)


def _answered_before(run: Run, n_prompts: int) -> dict[int, Answered]:
    """What an interrupted run of the same config left, by number of the prompt; answers that are lost are named."""
    part = run.path / PART
    part.parent.mkdir(exist_ok=True)
    unreadable = cut_jsonl(part, n_prompts - 1).unreadable
    rows = read_jsonl(part) if part.exists() else []
    whole = [row for row in rows if row.keys() == {"step", *Answered._fields}]
    if lost := len(unreadable) + len(rows) - len(whole):
        which = f" ({', '.join(unreadable)})" if unreadable else ""
        run.note(f"{PART}: {lost} answers could not be read and are asked for again{which}")
    return {row.pop("step"): Answered(**row) for row in whole}


def _asked(config: SampleConfig, prompt: Prompt) -> Asked:
    seeds = [sequence_seed(config.seed, "sample", prompt.id, number) % 2**31 for number in range(config.k)]
    arguments = {**(config.template_arguments or {}), **prompt.arguments}
    return Asked(prompt.id, prompt.messages, prompt.tools, arguments, seeds)


def _origin(policy: Path) -> str:
    """The name a response is remembered by: its policy's run, or the model folder."""
    if (policy / "run.json").is_file():
        return Path(read_run(policy).path).name
    return policy.resolve().name


def _row(run: Run, prompt: Prompt, responses: Responses) -> dict[str, Any]:
    said = [response for response in responses if _says_something(response["messages"][0])]
    run.drop("empty response", len(responses) - len(said))  # nothing that a person could compare
    row = {"prompt_id": prompt.id, "prompt": prompt.messages, "responses": said}
    row |= {"family": prompt.family, "split": prompt.split}
    shared = {"tools": prompt.tools, "template_arguments": prompt.arguments, "language": prompt.language}
    return row | {key: value for key, value in shared.items() if value}


def _note_silent(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Say how many responses have reasoning and no answer."""
    responses = [response for row in rows for response in row["responses"]]
    silent = [r for r in responses if not (r["messages"][0]["content"].strip() or r["messages"][0].get("tool_calls"))]
    cut = sum(not response["ended"] for response in silent)
    if silent:
        run.note(
            f"{len(silent)} of {len(responses)} responses hold reasoning and no answer ({cut} were cut inside it): "
            "raise max_new_tokens"
        )


def _says_something(message: Message) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content"))


def _headline(rows: Sequence[dict[str, Any]], answers: Sequence[Responses]) -> dict[str, Any]:
    """Counts, and shares with intervals clustered by prompt, over everything that was sampled."""
    clusters = [str(i) for i, found in enumerate(answers) for _ in found]
    ended = [float(answer["ended"]) for found in answers for answer in found]
    return {
        "prompts": len(rows),
        "responses": sum(len(row["responses"]) for row in rows),
        "ended": clustered_accuracy(ended, clusters),
        "distinct": clustered_accuracy([new for found in answers for new in _new(found)], clusters),
    }


def _new(responses: Responses) -> list[float]:
    """1 for each response that no earlier one of the prompt equals, else 0."""
    said = [response["messages"] for response in responses]
    return [float(messages not in said[:i]) for i, messages in enumerate(said)]
