"""A sampler from outside the package writes for `sample` and the periodic samples; `ppo` and `eval` need token ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
from align.train.ppo import PPOConfig, ppo

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
    ("given", "told"),
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
def test_what_is_no_sampler_here_is_refused_by_the_config(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told.replace("(", r"\(")):
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
    told = "sampler toy_sampler:Echo gives no token ids and log-probabilities of the policy; use local"
    with pytest.raises(BadInput, match=f"key 'sampler': {told}"):
        build(PPOConfig, {"run": tmp_path, "policy": tmp_path, "pairs": tmp_path, "sampler": ECHO}, "test")
    with pytest.raises(BadInput, match=f"key 'sampler': {told}"):
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


class Mute(Sampler):
    """Defines nothing."""


class Wrong(Echo):
    """Leaves samples, ids or whole replies out."""

    GIVES_TOKENS = True

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        for reply in super().sample(requests, policy):
            if self.ending != "none":
                yield reply._replace(samples=reply.samples[: -1 if self.ending == "fewer" else None])


@pytest.mark.parametrize(
    ("ending", "told"),
    [("none", "gave no reply to a request for 2"), ("fewer", "gave 1 samples"), ("!", "without ids")],
)
def test_a_sampler_that_breaks_its_word_is_stopped_by_name(ending: str, told: str) -> None:
    requests = [Request("a", ("key",), [{"role": "user", "content": "hello"}], n=2)]
    with pytest.raises(BadInput, match=f"sampler outside:Wrong: .*{told}"):
        sample_all(Wrong(kind="outside:Wrong", ending=ending), requests, None)
    echo = Echo(kind="outside:Echo")
    assert sample_all(echo, requests, None)[0].samples[0] == Sample({"role": "assistant", "content": "hello!"}, True)


class Silent(Sampler):
    """Declares log-probabilities, and gives too few of them."""

    GIVES_TOKENS = True

    n_logprobs: int = 0

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        for request in requests:
            drawn = Sample({"role": "assistant", "content": "hi"}, True, [4, 1], [-1.0] * self.n_logprobs)
            yield Reply(request.id, [drawn] * request.n)


def test_a_drawn_sample_has_a_log_probability_per_token_id() -> None:
    """Without them nothing compares the sampler with the scorer, and PPO would learn off its policy."""
    request = Request("a", (0,), [{"role": "user", "content": "hello"}])
    assert sample_all(Silent(kind="outside:Silent", n_logprobs=2), [request], None)
    for n_logprobs in (0, 1, 3):
        with pytest.raises(BadInput, match=f"gave 2 ids with {n_logprobs} logprobs to request a"):
            sample_all(Silent(kind="outside:Silent", n_logprobs=n_logprobs), [request], None)
    greedy = request._replace(temperature=0.0)
    assert sample_all(Silent(kind="outside:Silent"), [greedy], None), "a sample that is not drawn has none"


def test_the_code_of_a_sampler_is_part_of_what_an_answer_depends_on() -> None:
    """Two evaluations whose sampler was rewritten in between are not alike."""
    assert sampler_identity(LocalSampler()) is None
    silent = Silent(kind=f"{__name__}:Silent")
    assert sampler_identity(silent) == {"settings": silent.model_dump(mode="json"), "sha256": code_hash(Silent)}
