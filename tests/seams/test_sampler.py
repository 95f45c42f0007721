"""A sampler from outside the package writes for `sample` and the periodic samples; `ppo` and `eval` need token ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fixtures.pairs_run import write_pairs_run
from toy_sampler import Echo

from align.core.config import BadInput, Compute, Watch, build
from align.core.files import write_jsonl
from align.core.hashes import code_hash
from align.core.run_record import RunRecord, read_run
from align.engine.samples import PromptRow, SampleLogger
from align.evals.fingerprint import sampler_identity
from align.evals.run import EvalConfig
from align.generate.local import LocalSampler
from align.generate.run import SampleConfig, sample
from align.generate.sampler import Reply, Request, Sample, Sampler, sample_all
from align.model.adapters import AdapterModel
from align.model.roles import RoleModel
from align.train.ppo import PPOConfig, act, ppo
from align.train.rollouts import TrainingPrompt

ModelFolder = Callable[[str], Path]
ECHO = {"kind": "toy_sampler:Echo", "ending": "?"}


def longer(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward function."""
    return [float(len(completion[-1]["content"])) for completion in completions]


def sampled(folder: Path, **changes: Any) -> RunRecord:
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "hello"}, {"prompt": "yes"}])
    given = {"run": folder / "run", "prompts": folder / "prompts.jsonl", "k": 2, "sampler": ECHO} | changes
    return sample(build(SampleConfig, given, "test"))


def test_sample_writes_what_the_sampler_answers(tmp_path: Path) -> None:
    record = sampled(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()]
    response = {"messages": [{"role": "assistant", "content": "hello?"}], "origin": "toy_sampler:Echo", "ended": True}
    assert rows[0]["responses"] == [response, response]
    assert rows[1]["responses"][0]["messages"][0]["content"] == "yes?"
    assert record.resolved["sampler"] == ECHO and set(record.inputs) == {"prompts", "sampler"}
    assert any("wrote the same 2 times to every prompt" in note for note in record.notes)


def test_another_setting_or_another_code_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled(tmp_path)
    assert sampled(tmp_path).status == "finished"
    with pytest.raises(BadInput, match="key 'sampler.ending' differs"):
        sampled(tmp_path, sampler="toy_sampler:Echo")
    other = tmp_path / "toy_sampler_copy.py"
    shutil.copy(Path(__file__).with_name("toy_sampler.py"), other)
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"sampler": {"kind": "toy_sampler_copy:Echo"}, "run": tmp_path / "copy"}
    sampled(tmp_path, **named)
    other.write_text(other.read_text() + "# edited\n")
    with pytest.raises(BadInput, match="input 'sampler' has other content"):
        sampled(tmp_path, **named)


def test_the_shipped_samplers_are_chosen_by_kind_too(tmp_path: Path, model_folder: ModelFolder) -> None:
    policy = {"policy": model_folder("llama"), "max_new_tokens": 4, "compute": {"device": "cpu"}}
    sampled(tmp_path, **policy, sampler="local", run=tmp_path / "kind")
    sampled(tmp_path, **policy, sampler=None, run=tmp_path / "key")
    written = [(tmp_path / name / "candidates.jsonl").read_text() for name in ("kind", "key")]
    assert written[0] == written[1]
    address = {"kind": "endpoint", "url": "http://127.0.0.1:9/v1/", "model": "m"}
    config = build(SampleConfig, {"run": tmp_path, "prompts": tmp_path, "sampler": address}, "test")
    short = {"run": tmp_path, "prompts": tmp_path, "endpoint": "http://127.0.0.1:9/v1", "model": "m"}
    assert config.chosen_sampler == build(SampleConfig, short, "test").chosen_sampler


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"sampler": "vllm"}, "'vllm' is no kind of sampler; write one of endpoint, local, or module:Class"),
        ({"sampler": {"kind": "toy_sampler:Echo", "endign": "?"}}, "unknown key 'endign'; did you mean 'ending'"),
        ({"sampler": "json:dumps"}, "'json:dumps' is no sampler: a class derived from align.generate.sampler:Sampler"),
        ({"sampler": f"{__name__}:Mute"}, "class Mute does not define sample"),
        ({"sampler": ECHO, "policy": "run"}, "sampler toy_sampler:Echo has a model of its own; leave policy out"),
        ({"sampler": "local"}, "sampler local samples a policy; set policy"),
        ({"sampler": ECHO, "endpoint": "http://127.0.0.1:9/v1", "model": "m"}, "set one of the two"),
        ({"sampler": {"kind": "endpoint", "url": "host:1", "model": "m"}}, "is no address of a server"),
        ({"sampler": ECHO, "chat_template": "plain"}, "chat_template: sampler toy_sampler:Echo has its own"),
    ],
)  # fmt: skip
def test_what_is_no_sampler_here_is_refused_by_the_config(tmp_path: Path, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason.replace("(", r"\(")):
        build(SampleConfig, {"run": tmp_path, "prompts": tmp_path, **given}, "test")


def test_periodic_samples_are_the_samplers_without_what_needs_token_ids(model_folder: ModelFolder) -> None:
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    rows = [PromptRow([{"role": "user", "content": text}]) for text in ("hello", "yes")]
    logger = SampleLogger(
        model, rows, Watch(max_new_tokens=4), 0, sampler=Echo(kind="toy_sampler:Echo"), score=pytest.fail,
        gold=lambda prompts, completions, ended: [float(end) for end in ended],
    )  # fmt: skip
    first, second = logger.rows(None)
    assert (first["response"], second["response"]) == ("hello!", "yes!")
    assert (first["score"], first["kl"], first["ended"], first["utility"]) == (None, None, True, 1.0)


def test_ppo_and_eval_refuse_a_sampler_without_token_ids_by_name(tmp_path: Path) -> None:
    reason = "sampler toy_sampler:Echo gives no token ids and log-probabilities of the policy; use local"
    with pytest.raises(BadInput, match=f"key 'sampler': {reason}"):
        build(PPOConfig, {"run": tmp_path, "policy": tmp_path, "pairs": tmp_path, "sampler": ECHO}, "test")
    with pytest.raises(BadInput, match=f"key 'sampler': {reason}"):
        given = {"run": tmp_path, "subject": tmp_path, "items": tmp_path, "suite": ["safety"], "sampler": ECHO}
        build(EvalConfig, given, "test")


def test_ppo_learns_from_a_sampler_that_gives_token_ids(tmp_path: Path, model_folder: ModelFolder) -> None:
    """The order in which replies come changes nothing."""
    rows = [(f"is the sky blue {i}", "yes thank you", "no maybe") for i in range(4)]
    pairs = write_pairs_run(tmp_path / "pairs", {"train": rows})
    adapters = []
    for name, sampler in (("toy", "toy_sampler:Backwards"), ("local", None)):
        given = {
            "run": tmp_path / name, "policy": model_folder("llama"), "pairs": pairs,
            "functions": [f"{__name__}:longer"],
            "sampler": sampler, "iterations": 2, "batch": 2, "samples": 2, "max_new_tokens": 4, "kl_prompts": 2,
            "watch": {"prompts": 2, "max_new_tokens": 4},
        }  # fmt: skip
        ppo(build(PPOConfig, given, "test"))
        adapters.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
    assert read_run(tmp_path / "toy").resolved["sampler"] == "toy_sampler:Backwards"


class LateLiar(LocalSampler):
    """Right in the first iteration; then each log-probability is one nat too high."""

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        is_first = requests[0].key[2] == 1
        for reply in super().sample(requests, policy):
            samples = [one._replace(logprobs=[value + 1 for value in one.logprobs or []]) for one in reply.samples]
            yield reply if is_first else reply._replace(samples=samples)


def test_log_probabilities_from_elsewhere_are_compared_in_every_iteration(
    tmp_path: Path, model_folder: ModelFolder
) -> None:
    rows = [(f"is the sky blue {i}", "yes thank you", "no maybe") for i in range(4)]
    given = {
        "run": tmp_path / "ppo", "policy": model_folder("llama"),
        "pairs": write_pairs_run(tmp_path / "pairs", {"train": rows}), "functions": [f"{__name__}:longer"],
        "sampler": f"{__name__}:LateLiar", "iterations": 2, "batch": 2, "samples": 2, "max_new_tokens": 4,
        "kl_prompts": 2, "watch": {"prompts": 0},
    }  # fmt: skip
    with pytest.raises(BadInput, match=r"ppo: sampler and scorer differ by 1\.00e\+00 nats per token"):
        ppo(build(PPOConfig, given, "test"))


def test_a_number_of_rounds_that_no_machine_ends_is_refused(tmp_path: Path) -> None:
    given = {"run": tmp_path, "policy": tmp_path, "pairs": tmp_path}
    for key in ("epochs", "samples", "iterations"):
        with pytest.raises(BadInput, match=f"key '{key}': must be less than or equal to 10+"):
            build(PPOConfig, {**given, key: 10**14}, "test")


def test_prompts_of_one_id_keep_their_own_responses(tmp_path: Path, model_folder: ModelFolder) -> None:
    """Other template arguments make another prompt of the same id."""
    model = AdapterModel(model_folder("llama"), Compute(device="cpu"))
    model.add("policy", adapter=None, trainable=True)
    config = PPOConfig(run=tmp_path, policy=tmp_path, pairs=tmp_path, samples=2, max_new_tokens=4)
    prompts = [TrainingPrompt("p", [{"role": "user", "content": "hello"}], ids) for ids in ([5, 6, 7], [8, 9])]
    together, apart = act(config, model, 1, prompts), [act(config, model, 1, [prompt])[0] for prompt in prompts]
    assert [[sample.ids for sample in own] for own in together] == [[sample.ids for sample in own] for own in apart]
    assert together[0] != together[1]


class Mute(Sampler):
    """Defines nothing."""


MESSAGE = {"role": "assistant", "content": "hi"}
RIGHT = Reply("a", [Sample(MESSAGE, True, [4, 1], [-1.0, -1.0])] * 2)
ASKED = [Request("a", ("key",), [{"role": "user", "content": "hello"}], n=2), Request("b", ("key",), [], n=1)]


def with_message(**changes: Any) -> Reply:
    return RIGHT._replace(samples=[Sample({**MESSAGE, **changes}, True, [4], [-1.0])] * 2)


def with_sample(**changes: Any) -> Reply:
    return RIGHT._replace(samples=[RIGHT.samples[0]._replace(**changes)] * 2)


class Scripted(Sampler):
    """Gives the replies that a test wrote down."""

    GIVES_TOKENS = True
    SCRIPT: ClassVar[Any] = None

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        if isinstance(self.SCRIPT, Exception):
            raise self.SCRIPT
        return iter(self.SCRIPT) if isinstance(self.SCRIPT, list) else self.SCRIPT


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (None, r"TypeError: 'NoneType' object is not iterable"),
        (KeyError("lost"), r"KeyError: 'lost' at test_sampler.py:\d+; mend it"),
        ([RIGHT], "gave no reply to 1 of 2 requests, first b"),
        ([RIGHT, RIGHT], "gave a reply to 'a', which no request has as its id, or a second one"),
        ([RIGHT._replace(id="c")], "gave a reply to 'c', which no request has"),
        ([RIGHT._replace(id=["a"])], r"gave a reply to \['a'\], which no request has"),
        ([None], "gave a value of type NoneType where a Reply is expected"),
        ([RIGHT._replace(samples=None)], "request a: its samples are of type NoneType"),
        ([RIGHT._replace(samples=RIGHT.samples[:1])], "request a: gave 1 samples, where 2 are expected"),
        ([RIGHT._replace(samples=RIGHT.samples * 2)], "gave 4 samples, where 2 are expected"),
        ([RIGHT._replace(samples=RIGHT.samples[:1], withheld=1)], "gave 1 samples, where 2 are expected"),
        ([RIGHT._replace(refused="too long")], "gave 2 samples, where 0 are expected"),
        ([RIGHT._replace(samples=["hi", "ho"])], "gave a value of type str where a Sample is expected"),
        ([with_message(role="user")], "a sample is a message of the role assistant"),
        ([with_sample(message="hi")], "a sample is a message of the role assistant"),
        ([with_sample(ended=None)], "True or False for ended"),
        ([with_message(content=["hi"])], "content of a message is text"),
        ([with_message(content=None)], "content of a message is text"),
        ([with_message(text="hi")], "a message of the assistant holds 'text'"),
        ([with_sample(ids=None)], "without ids or logprobs, and declares GIVES_TOKENS"),
        ([with_sample(ids=[])], "token ids, at least one"),
        ([with_sample(ids=[4, -1])], "token ids, at least one"),
        ([with_sample(logprobs=[])], "gave 2 ids with 0 logprobs; a drawn sample has one per token id"),
        ([with_sample(logprobs=[-1.0] * 3)], "gave 2 ids with 3 logprobs"),
        ([with_sample(logprobs=[-1.0, float("nan")])], "logprobs of a sample are finite numbers"),
        ([with_sample(ids=[4] * 65, logprobs=[-1.0] * 65)], "gave 65 ids, where max_new_tokens is 64"),
        ([with_sample(ids=(4, 1))], "samples.0.ids of a reply: expected a list"),
        ([RIGHT._replace(prompt_ids=object())], "prompt_ids of a reply: "),
        ([RIGHT._replace(prompt_ids=[-1])], "prompt_ids.0 of a reply: must be greater than or equal to 0"),
        ([RIGHT._replace(withheld=-2)], "withheld of a reply: must be greater than or equal to 0"),
        ([RIGHT._replace(withheld=1.0)], "withheld of a reply: expected a whole number"),
        ([RIGHT._replace(withheld=3)], "withheld is 3 of 2 responses"),
        ([RIGHT._replace(masked="1")], "masked of a reply: expected a whole number"),
        ([RIGHT._replace(masked=True)], "masked of a reply: expected a whole number"),
        ([RIGHT._replace(prompt_tokens="7")], "prompt_tokens of a reply: expected a whole number"),
        ([RIGHT._replace(completion_tokens=1.5)], "completion_tokens of a reply: expected a whole number"),
        ([RIGHT._replace(served_by=None)], "served_by of a reply: "),
        ([RIGHT._replace(served_by="gpt")], "served_by of a reply: "),
        ([RIGHT._replace(served_by=[1, "a"])], "served_by.0 of a reply: expected text"),
        ([RIGHT._replace(remarks=[{}])], "remarks.0 of a reply: expected text"),
        ([RIGHT._replace(remarks=[5])], "remarks.0 of a reply: expected text"),
        ([RIGHT._replace(samples=[], refused=5)], "refused of a reply: expected text"),
        ([RIGHT._replace(samples=[], refused="")], "refused of a reply: .* at least 1"),
        ([RIGHT._replace(samples=[], refused={"a": 1})], "refused of a reply: expected text"),
    ],
)
def test_a_sampler_that_breaks_its_word_is_stopped_by_name(
    monkeypatch: pytest.MonkeyPatch, script: Any, problem: str
) -> None:
    monkeypatch.setattr(Scripted, "SCRIPT", script)
    with pytest.raises(BadInput, match=f"^sampler outside:Scripted: .*{problem}"):
        sample_all(Scripted(kind="outside:Scripted"), ASKED, None)


def test_a_reply_that_keeps_to_its_request_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that is not drawn has no log-probabilities; an endpoint may withhold samples."""
    monkeypatch.setattr(Scripted, "SCRIPT", [with_sample(logprobs=[])])
    sampler, greedy = Scripted(kind="outside:Scripted"), ASKED[0]._replace(temperature=0.0)
    assert sample_all(sampler, [greedy], None) == [with_sample(logprobs=[])]
    monkeypatch.setattr(Scripted, "GIVES_TOKENS", False)
    monkeypatch.setattr(Scripted, "SCRIPT", [Reply("a", [Sample(MESSAGE, True)], withheld=1)])
    assert sample_all(sampler, ASKED[:1], None)[0].withheld == 1


@pytest.mark.parametrize("text", ["a\x00b", "a\ud800b"])
def test_a_text_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="request a: a message holds 1 characters that cannot be stored"):
        sample_all(Echo(kind="toy_sampler:Echo", ending=text), ASKED[:1], None)


class Edits(Echo):
    """Edits the messages of its requests."""

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        for request in requests:
            request.messages[-1]["content"] += " and more"
        yield from super().sample(requests, policy)


class Forgets(Echo):
    """Leaves the last request out."""

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        yield from super().sample(requests[:-1], policy)


def test_sample_holds_a_sampler_to_its_requests(tmp_path: Path) -> None:
    """Its edits reach no candidates, and a prompt that it forgets stops the run, which keeps the other replies."""
    sampled(tmp_path, sampler=f"{__name__}:Edits")
    rows = [json.loads(line) for line in (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()]
    assert [row["prompt"][-1]["content"] for row in rows] == ["hello", "yes"]
    forgetful = {"sampler": f"{__name__}:Forgets", "run": tmp_path / "forgets"}
    with pytest.raises(BadInput, match="Forgets: gave no reply to 1 of 2 requests"):
        sampled(tmp_path, **forgetful)
    assert len((tmp_path / "forgets" / "checkpoints" / "replies.jsonl").read_text().splitlines()) == 1


class Misreads(LocalSampler):
    """Samples the policy, and gives one part of a reply wrong."""

    part: str = "none"

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        for reply in super().sample(requests, policy):
            (sample,) = reply.samples
            wrong = {
                "message": sample._replace(message={**sample.message, "content": sample.message["content"] + "!"}),
                "ended": sample._replace(ended=not sample.ended),
                "ids": sample._replace(ids=[1 << 20], logprobs=[-1.0]),
            }
            prompt_ids = [5] if self.part == "prompt" else reply.prompt_ids
            yield reply._replace(samples=[wrong.get(self.part, sample)], prompt_ids=prompt_ids)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("message", "the ids of a sample do not spell its message"),
        ("ended", "a sample ends with a stop token exactly where ended is True"),
        ("ids", "a row holds the id 1048576, beyond the model's embedding"),
        ("prompt", "prompt_ids are not the token ids of its prompt"),
    ],
)
def test_token_ids_from_elsewhere_are_those_of_the_prompt_and_the_message(
    model_folder: ModelFolder, part: str, problem: str
) -> None:
    policy = RoleModel(AdapterModel(model_folder("llama"), Compute(device="cpu")), None)
    request = Request("a", (0,), [{"role": "user", "content": "hello"}], max_new_tokens=4)
    assert sample_all(Misreads(kind="outside:Misreads"), [request], policy)
    with pytest.raises(BadInput, match=problem):
        sample_all(Misreads(kind="outside:Misreads", part=part), [request], policy)


def test_the_code_of_a_sampler_is_part_of_what_an_answer_depends_on() -> None:
    """Two evaluations whose sampler was rewritten in between are not alike."""
    assert sampler_identity(LocalSampler()) is None
    misreads = Misreads(kind=f"{__name__}:Misreads")
    assert sampler_identity(misreads) == {"settings": misreads.model_dump(mode="json"), "sha256": code_hash(Misreads)}
