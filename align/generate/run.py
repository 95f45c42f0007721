"""Stage `sample`: sample k responses per prompt from a policy or an endpoint, for people or a reward model to compare.

In: a policy (run or model folder), or a model's name at an OpenAI-compatible endpoint, or another sampler; and prompts
(JSON lines, or a run with ``prompts.jsonl``). Out: ``candidates.jsonl``, one prompt per line with its responses and
their origin. A response of a policy depends only on the seed and its prompt, never on its batch; an endpoint gets a
seed for each response and may ignore it. Replies are saved in the order of arrival, so that a killed run resumes.
Not here: selecting responses for annotation, and the samplers themselves.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from align.core.config import BadInput
from align.core.files import cut_jsonl, read_jsonl, write_jsonl
from align.core.plugins import calling
from align.core.records import Message
from align.core.run_record import read_run
from align.core.runs import Run
from align.core.stage import stage
from align.core.stats.estimates import mean_interval
from align.data.tokens import record_tokens
from align.generate.endpoint import EndpointSampler, address, sum_known
from align.generate.local import LocalSampler
from align.generate.prompts import Prompt, read_prompts
from align.generate.sampler import ChosenSampler, Reply, Request, Sample, Sampler, replies_to
from align.model.open import ModelConfig, Role, open_models
from align.model.roles import RoleModel

REPLIES = "checkpoints/replies.jsonl"  # the replies so far
Responses = list[dict[str, Any]]  # as in candidates: messages, origin, ended, and tokens of a policy


class SampleConfig(ModelConfig):
    """Settings of sampling from a policy or an endpoint; ``temperature: 0`` is greedy, with one response per prompt."""

    INPUTS: ClassVar[tuple[str, ...]] = ("policy", "prompts")

    stage: Literal["sample"] = "sample"
    policy: Path | None = Field(default=None, description="a run or a model folder; left out with an endpoint")
    endpoint: str | None = Field(default=None, description="address of an API, such as http://127.0.0.1:8000/v1")
    model: str | None = Field(default=None, description="the model's name at the endpoint")
    sampler: ChosenSampler | None = Field(default=None, description="kind: local, endpoint, or module:Class")
    prompts: Path = Field(description="a file of prompts, or a run that holds one")
    k: int = Field(default=4, ge=1, description="responses per prompt")
    temperature: float = Field(default=1.0, ge=0, description="divides the logits before sampling")
    max_new_tokens: int = Field(default=64, ge=1, description="most tokens of a response")
    limit: int | None = Field(default=None, ge=1, description="prompts, in the order of the file")
    split: str | None = Field(default=None, description="only prompts of this split")

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        return None if url is None else address(url)

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.model is None) != (self.endpoint is None):
            raise ValueError("endpoint and model (its name there) go together")
        if self.sampler is not None and self.endpoint is not None:
            raise ValueError("sampler and endpoint: set one of the two")
        if self.sampler is None and (self.policy is None) == (self.endpoint is None):
            raise ValueError("set policy (a run or model folder) or endpoint (an address), one of the two")
        sampler = self.chosen_sampler
        if sampler.GIVES_TOKENS and self.policy is None:
            raise ValueError(f"sampler {sampler.kind} samples a policy; set policy (a run or model folder)")
        if not sampler.GIVES_TOKENS:
            if self.policy is not None:
                raise ValueError(f"sampler {sampler.kind} has a model of its own; leave policy out")
            if self.chat_template:
                raise ValueError(f"chat_template: sampler {sampler.kind} has its own; leave it out")
            if "date" in (self.template_arguments or {}):
                raise ValueError(f"template_arguments: sampler {sampler.kind} prints its own date; leave date out")
        return self

    @property
    def chosen_sampler(self) -> Sampler:
        """The sampler; ``policy`` alone chooses the local one, ``endpoint`` with ``model`` the endpoint."""
        if self.sampler is not None:
            return self.sampler
        return EndpointSampler(url=self.endpoint, model=str(self.model)) if self.endpoint else LocalSampler()


class ResponseSource(NamedTuple):
    """The source of responses: the sampler, the policy that it samples (or None), and the name in candidates."""

    sampler: Sampler
    policy: RoleModel | None
    origin: str


@stage
def sample(config: SampleConfig, run: Run) -> dict[str, Any]:
    """Write ``candidates.jsonl``: k sampled responses for each prompt that can be answered."""
    if config.temperature == 0 and config.k > 1:
        raise BadInput(f"temperature: 0 gives the same response {config.k} times; set k: 1 or a temperature above 0")
    prompts = _distinct(run, read_prompts(config.prompts, config.split, run.note), config.limit)
    source = _open(config, run)
    started = time.monotonic()
    replies = _replies(config, run, source, prompts)
    seconds = time.monotonic() - started
    answers = [(prompts[number], _responses(source, prompts[number], replies[number])) for number in sorted(replies)]
    rows = [_row(run, prompt, responses) for prompt, responses in answers]
    _note_silent(run, rows)
    kept = [row for row in rows if row["responses"]]
    run.drop("prompt with empty responses only", len(rows) - len(kept))
    if not kept:
        why = "is the policy trained, or does the endpoint filter or break off its answers?"
        raise BadInput(f"{config.prompts}: every response of {len(rows)} prompts is empty or withheld; {why}")
    if run.is_main:
        write_jsonl(run.path / "candidates.jsonl", kept)
    return _headline(kept, [responses for _, responses in answers]) | _usage(run, source, replies.values(), seconds)


def _distinct(run: Run, prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    distinct = list({prompt.id: prompt for prompt in reversed(prompts)}.values())[::-1]
    run.drop("repeated prompt", len(prompts) - len(distinct))
    return distinct[:limit]


def _open(config: SampleConfig, run: Run) -> ResponseSource:
    """Open the sampler, and load the policy if it samples one."""
    sampler = config.chosen_sampler
    if config.policy is None:
        with calling(f"sampler {sampler.kind}: origin", sampler):
            return ResponseSource(sampler, None, sampler.origin)
    model = open_models(run, config, config.policy, {"policy": Role()}, packs=False)
    is_a_run = (config.policy / "run.json").is_file()
    origin = Path(read_run(config.policy).path).name if is_a_run else config.policy.resolve().name
    return ResponseSource(sampler, RoleModel(model, "policy" if "policy" in model.trainable else None), origin)


def _replies(config: SampleConfig, run: Run, source: ResponseSource, prompts: Sequence[Prompt]) -> dict[int, Reply]:
    """Replies by prompt number, including those of an interrupted run; refused prompts are counted by reason."""
    replies = _replies_before(run, len(prompts))
    if replies:
        run.note(f"{len(replies)} of {len(prompts)} prompts were answered before; going on")
    waiting = {prompt.id: number for number, prompt in enumerate(prompts) if number not in replies}
    requests = [_request(config, prompts[number]) for number in waiting.values()]
    answered = replies_to(source.sampler, requests, source.policy)
    for reply in tqdm(answered, desc="sample", unit="prompt", total=len(requests)):
        if reply.refused is not None:  # sent again by the next run of the same command
            run.drop(reply.refused)
            continue
        number = waiting[reply.id]
        replies[number] = reply
        run.append(REPLIES, [_as_json(number, reply)])
    if not replies:
        raise BadInput(f"{config.prompts}: refused all of {len(prompts)} prompts ({run.record.dropped})")
    if config.k > 1 and all(sum(_new([s.message for s in reply.samples])) <= 1 for reply in replies.values()):
        run.note(f"{source.origin} wrote the same {config.k} times to every prompt: does it sample, at temperature?")
    return replies


def _request(config: SampleConfig, prompt: Prompt) -> Request:
    of_run = {} if config.policy else config.template_arguments or {}  # a policy's template has them already
    return Request(
        prompt.id,
        (config.seed, "sample", prompt.id),
        prompt.messages,
        prompt.tools,
        {**of_run, **prompt.arguments},
        n=config.k,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
    )


def _as_json(number: int, reply: Reply) -> dict[str, Any]:
    samples = [sample._replace(logprobs=None)._asdict() for sample in reply.samples]
    return {"step": number, **reply._asdict(), "samples": samples}


def _replies_before(run: Run, n_prompts: int) -> dict[int, Reply]:
    """Return the replies of an interrupted run of the same config, by prompt number; unreadable ones are noted."""
    file = run.path / REPLIES
    if run.is_main:
        file.parent.mkdir(exist_ok=True)
    unreadable = cut_jsonl(file, n_prompts - 1).unreadable
    rows = read_jsonl(file) if file.exists() else []
    whole = [row for row in rows if row.keys() == {"step", *Reply._fields}]
    if lost := len(unreadable) + len(rows) - len(whole):
        which = f" ({', '.join(unreadable)})" if unreadable else ""
        run.note(f"{REPLIES}: {lost} answers could not be read and are asked for again{which}")
    return {
        row.pop("step"): Reply(**row | {"samples": [Sample(**sample) for sample in row["samples"]]}) for row in whole
    }


def _responses(source: ResponseSource, prompt: Prompt, reply: Reply) -> Responses:
    """Return the samples in the format of candidates: messages for people, and token ids for scoring."""
    responses = []
    for sample in reply.samples:
        response = {"messages": [sample.message], "origin": source.origin, "ended": sample.ended}
        if source.policy is not None and sample.ids is not None and reply.prompt_ids is not None:
            tokens = record_tokens(source.policy.model.chat, reply.prompt_ids, sample.ids, [sample.message])
            response["tokens"] = tokens.model_dump()
        responses.append(response)
    return responses


def _usage(run: Run, source: ResponseSource, replies: Iterable[Reply], seconds: float) -> dict[str, Any]:
    """Return the numbers of tokens, as sampled here or counted by the server, and note the sampler's remarks."""
    replies = list(replies)
    for remark in dict.fromkeys(remark for reply in replies for remark in reply.remarks):
        run.note(remark)
    if n_masked := sum(reply.masked for reply in replies):
        run.note(f"{source.origin}: {n_masked} answers repeated the key of the API; [key] stands there instead")
    run.drop("response withheld by the endpoint", sum(reply.withheld for reply in replies))
    lengths = [len(sample.ids) for reply in replies for sample in reply.samples if sample.ids is not None]
    if lengths:
        tokens = {"mean": statistics.fmean(lengths), "median": statistics.median(lengths), "n": len(lengths)}
        return {"tokens": tokens, "seconds_per_response": round(seconds / len(lengths), 4)}
    usage = {
        "served_by": sorted({name for reply in replies for name in reply.served_by}),
        "prompt_tokens": sum_known(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum_known(reply.completion_tokens for reply in replies),
    }
    if None in usage.values():
        run.note(f"{source.origin} did not count the tokens of every answer: their number is not known")
    return usage


def _row(run: Run, prompt: Prompt, responses: Responses) -> dict[str, Any]:
    kept = [response for response in responses if _has_output(response["messages"][0])]
    run.drop("empty response", len(responses) - len(kept))  # no content to compare
    row = {"prompt_id": prompt.id, "prompt": prompt.messages, "responses": kept}
    row |= {"family": prompt.family, "split": prompt.split}
    shared = {"tools": prompt.tools, "template_arguments": prompt.arguments, "language": prompt.language}
    return row | {key: value for key, value in shared.items() if value}


def _note_silent(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Note how many responses have reasoning but no answer."""
    responses = [response for row in rows for response in row["responses"]]
    silent = [r for r in responses if not (r["messages"][0]["content"].strip() or r["messages"][0].get("tool_calls"))]
    cut = sum(not response["ended"] for response in silent)
    if silent:
        run.note(
            f"{len(silent)} of {len(responses)} responses hold reasoning and no answer ({cut} were cut inside it): "
            "raise max_new_tokens"
        )


def _has_output(message: Message) -> bool:
    """Return whether a response has text, tool calls or reasoning."""
    return bool(message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content"))


def _headline(rows: Sequence[Mapping[str, Any]], answers: Sequence[Responses]) -> dict[str, Any]:
    """Count prompts and responses; shares of all sampled responses have intervals clustered by prompt."""
    clusters = [str(i) for i, responses in enumerate(answers) for _ in responses]
    ended = [float(response["ended"]) for responses in answers for response in responses]
    distinct = [new for responses in answers for new in _new([response["messages"][0] for response in responses])]
    return {
        "prompts": len(rows),
        "responses": sum(len(row["responses"]) for row in rows),
        "ended": mean_interval(ended, "binary", clusters).model_dump(),
        "distinct": mean_interval(distinct, "binary", clusters).model_dump(),
    }


def _new(messages: Sequence[Message]) -> list[float]:
    """Give 1 to each message that differs from all earlier messages of the prompt, else 0."""
    return [float(message not in messages[:i]) for i, message in enumerate(messages)]
