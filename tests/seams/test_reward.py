"""A reward from outside the package trains a policy, beside reward runs and functions; all are added up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import add_stirred
from fixtures.pairs_run import write_pairs_run
from fixtures.small_trees import packed_of

from align.core.config import BadInput, Compute, build
from align.core.files import write_json
from align.core.hashes import artefact_hash
from align.core.runs import Run, RunRecord, read_run
from align.evals.training_reward import trained_on
from align.generate.sampler import Sample
from align.model.adapters import AdapterModel
from align.model.open import open_models
from align.model.packing import PackedBatch, Tree
from align.train.ppo import PPOConfig, act, ppo
from align.train.rollouts import ScoredSamples, TrainingPrompt, load_prompts, score_rollouts, score_samples
from rewards.model import score, score_by_roles, sum_of_roles
from rewards.reward import Reward, RoleReward, TextReward

ModelFolder = Callable[[str], Path]
BREVITY = {"kind": "toy_reward:Brevity", "per_letter": 0.5}


def letters(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward function."""
    return [float(len(completion[-1]["content"])) for completion in completions]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(f"is the sky blue {i}", "yes thank you", "no maybe") for i in range(4)]
    return write_pairs_run(tmp_path_factory.mktemp("pairs") / "pairs", {"train": rows})


def reward_run(folder: Path, base: Path, seed: int) -> Path:
    """A finished reward run with a random adapter and head."""
    model = AdapterModel(base, Compute(device="cpu"))
    add_stirred(model, "reward", head=True, seed=seed)
    model.save_role("reward", folder / "adapter")
    record = {"id": "reward-x", "stage": "reward", "status": "finished", "path": str(folder), "seed": 0}
    write_json(folder / "run.json", record | {"given": {}, "resolved": {}, "artefact": artefact_hash(folder)})
    return folder


def config_of(folder: Path, policy: Path, pairs: Path, **rewards: Any) -> PPOConfig:
    given = {
        "run": folder, "policy": policy, "pairs": pairs, "iterations": 1, "batch": 2, "samples": 2, "max_new_tokens": 4,
        "kl_prompts": 2, "watch": {"prompts": 1, "max_new_tokens": 4},
    }  # fmt: skip
    return build(PPOConfig, given | rewards, "test")


def open_run(config: PPOConfig) -> tuple[AdapterModel, list[TrainingPrompt]]:
    """The models of a run and its prompts."""
    record = RunRecord(id="x", stage="ppo", status="running", path=str(config.run), seed=0, given={}, resolved={})
    run = Run(record)
    model = open_models(run, config, config.policy, config.roles)
    return model, load_prompts(run, model, config.pairs, config.max_new_tokens)


def score_texts(config: PPOConfig, prompts: Sequence[TrainingPrompt], samples: Any) -> ScoredSamples:
    return score_samples(
        prompts,
        samples,
        config.all_rewards.texts,
        has_roles=bool(config.all_rewards.roles),
        missing_eos_penalty=1.0,
        gold=None,
    )


def test_a_reward_from_elsewhere_trains_a_policy_and_is_remembered(
    pairs: Path, model_folder: ModelFolder, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path / "ppo", model_folder("llama"), pairs, rewards=[BREVITY], functions=[f"{__name__}:letters"]
    )
    message = {"role": "assistant", "content": "yes!"}
    ended, cut = Sample(message, True, [30, 31], [-1.0, -1.0]), Sample(message, False, [30, 32], [-1.0, -1.0])
    _, prompts = open_run(config)
    assert score_texts(config, prompts[:1], [[ended, cut]]).scores == [[4 - 0.5 * 4, 4 - 1.0]], (
        "a cut response loses the penalty, and the toy has no opinion on it"
    )
    record = ppo(config)
    assert record.resolved["rewards"] == [BREVITY]
    assert {"functions", "rewards[0]"} <= record.inputs.keys()
    assert trained_on(record) == {"toy_reward:Brevity", f"{__name__}:letters"}
    assert ppo(config) == record
    with pytest.raises(BadInput, match="key 'rewards' differs"):
        ppo(
            config_of(
                tmp_path / "ppo", config.policy, pairs, rewards=["toy_reward:Brevity"], functions=config.functions
            )
        )


def test_the_short_keys_and_the_list_train_the_same_policy(
    pairs: Path, model_folder: ModelFolder, tmp_path: Path
) -> None:
    base = model_folder("llama")
    run = reward_run(tmp_path / "reward", base, seed=3)
    short = {"reward": run, "functions": [f"{__name__}:letters"]}
    listed = {"rewards": [{"kind": "run", "path": run}, {"kind": "function", "name": f"{__name__}:letters"}]}
    found = {}
    for name, given in (("short", short), ("listed", listed)):
        record = ppo(config_of(tmp_path / name, base, pairs, **given))
        files = ("adapter/adapter_model.safetensors", "value/head.safetensors", "samples.jsonl", "metrics.jsonl")
        found[name] = [(tmp_path / name / file).read_bytes() for file in files]
        reward_hash = read_run(run).artefact
        assert trained_on(record) >= {reward_hash, f"{__name__}:letters"}
    assert found["short"][:3] == found["listed"][:3]
    scores = [[json.loads(line)["score"] for line in metrics.splitlines()] for *_, metrics in found.values()]
    assert scores[0] == scores[1]
    assert {"rewards[0].path", "rewards[1]"} <= record.inputs.keys() and record.parents["rewards[0].path"][
        "stage"
    ] == "reward"


def test_scores_of_several_reward_runs_are_added_up(pairs: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    base = model_folder("llama")
    runs = [reward_run(tmp_path / f"reward-{seed}", base, seed) for seed in (3, 4)]
    config = config_of(tmp_path / "ppo", base, pairs, rewards=[{"kind": "run", "path": run} for run in runs])
    model, prompts = open_run(config)
    prompts = prompts[:2]
    samples = act(config, model, 1, prompts)
    trees = [Tree(p.ids, [s.require_ids() for s in found]) for p, found in zip(prompts, samples, strict=True)]
    first, second = (score(model, role, trees) for role in ("reward", "reward-2"))
    expected = torch.tensor(first) + torch.tensor(second)
    assert float((torch.tensor(first) - torch.tensor(second)).abs().min()) > 1e-3
    torch.testing.assert_close(torch.tensor(score_by_roles(model, config.all_rewards.roles, trees)), expected)
    scored = score_texts(config, prompts, samples)
    (rollout,) = score_rollouts(model, scored, config.all_rewards.roles, 1.0)
    scores = torch.zeros(2, 2)
    for value, (tree, k) in zip(rollout.scores_B, rollout.packed.response_index, strict=True):
        scores[tree, k] = value
    torch.testing.assert_close(scores, expected + torch.tensor(scored.scores))


class Silent(TextReward):
    """Defines nothing."""


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("ensemble", "'ensemble' is no kind of reward; write one of function, run, or module:Class of your own"),
        ({"kind": "function"}, "reward function: key 'name' is missing"),
        ({"kind": "function", "name": "json:nothing"}, "has no 'nothing'"),
        ({"kind": "toy_reward:Brevity", "per_word": 1}, "unknown key 'per_word'; did you mean 'per_letter'"),
        (f"{__name__}:Silent", "class Silent does not define score"),
        ("json:dumps", "'json:dumps' is no reward: a class derived from rewards.reward:Reward is one"),
        (3, "key 'rewards.0': 3 is no kind of reward; write one of function, run, or module:Class"),
        ({"kind": "toy_reward:Brevity", "per_letter": float("inf")}, "key 'per_letter': must be a finite"),
        (
            {"kind": "function", "name": "toy_reward:Brevity"},
            r"'toy_reward:Brevity': is a class; .* choose the class as rewards: \{kind: toy_reward:Brevity\}",
        ),
    ],
)
def test_what_is_no_reward_is_refused_by_the_config(tmp_path: Path, given: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        config_of(tmp_path, tmp_path, tmp_path, rewards=[given])


def test_a_reward_run_that_is_not_there_is_named(pairs: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    missing = {"kind": "run", "path": tmp_path / "nowhere"}
    with pytest.raises(BadInput, match="nowhere: no such file or folder"):
        ppo(config_of(tmp_path / "ppo", model_folder("llama"), pairs, rewards=[missing]))


class Neither(Reward):
    """Derives from Reward alone, so nothing reads it."""


class OneForAll(RoleReward):
    """Gives one number, whatever the number of responses."""

    def add_to(self, model: AdapterModel, role: str, *, trainable: bool = False) -> None:
        add_stirred(model, role, head=True, seed=1)

    def score_packed(self, model: AdapterModel, role: str, packed: PackedBatch) -> torch.Tensor:
        return torch.ones(1)


class Typed(OneForAll):
    """Gives its numbers in some type, on some device."""

    dtype: str = "float32"
    device: str = "cpu"

    def score_packed(self, model: AdapterModel, role: str, packed: PackedBatch) -> torch.Tensor:
        numbers = torch.arange(packed.n_responses, device=self.device)
        return numbers.to(getattr(torch, self.dtype))


class Ones(OneForAll):
    """Gives each response a 1."""

    def score_packed(self, model: AdapterModel, role: str, packed: PackedBatch) -> torch.Tensor:
        return torch.ones(packed.n_responses)


class Raises(OneForAll):
    """Raises where it is asked for scores."""

    def score_packed(self, model: AdapterModel, role: str, packed: PackedBatch) -> torch.Tensor:
        raise KeyError("head")


class AddsNothing(OneForAll):
    """Adds no role."""

    def add_to(self, model: AdapterModel, role: str, *, trainable: bool = False) -> None:
        pass


class Letters(TextReward):
    """Gives each letter a number, and not each completion."""

    def score(
        self, prompts: Sequence[list[Any]], completions: Sequence[list[Any]], **columns: Any
    ) -> list[float | None]:
        return [1.0 for completion in completions for _ in completion[-1]["content"]]


class Nameless(Letters):
    """Its names are no texts."""

    def names(self) -> Any:
        return "nameless"


def test_a_reward_that_fails_is_named(pairs: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    base, trees = model_folder("llama"), [Tree([4, 5], [[6, 1], [7, 1]])]

    def config(reward: str) -> PPOConfig:
        return config_of(tmp_path / "ppo", base, pairs, rewards=f"{__name__}:{reward}")

    raises = config("Raises")
    model, _ = open_run(raises)
    with pytest.raises(BadInput, match="reward test_reward:Raises: score_packed: KeyError: 'head' at test_reward"):
        score_by_roles(model, raises.all_rewards.roles, trees)
    with pytest.raises(BadInput, match="reward test_reward:AddsNothing: add_to added no role 'reward'"):
        open_run(config("AddsNothing"))
    letters = config("Letters")
    _, prompts = open_run(letters)
    sample = Sample({"role": "assistant", "content": "yes!"}, True, [30, 31], [-1.0, -1.0])
    with pytest.raises(BadInput, match="test_reward:Letters: gave 4 values for 1 completions"):
        score_texts(letters, prompts[:1], [[sample]])
    with pytest.raises(BadInput, match="reward test_reward:Nameless: names gave 'nameless'"):
        config("Nameless")


def test_one_reward_needs_no_list(tmp_path: Path) -> None:
    one = config_of(tmp_path, tmp_path, tmp_path, rewards=BREVITY)
    assert one == config_of(tmp_path, tmp_path, tmp_path, rewards=[BREVITY])
    assert config_of(tmp_path, tmp_path, tmp_path, rewards=None).rewards is None


def test_a_reward_that_nothing_would_read_is_refused(pairs: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="derives from Reward alone; derive from TextReward or from RoleReward"):
        config_of(tmp_path / "ppo", model_folder("llama"), pairs, rewards=[f"{__name__}:Neither"])


def test_a_role_gives_one_number_per_response(pairs: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    """One number would be taken for every response."""
    config = config_of(tmp_path / "ppo", model_folder("llama"), pairs, rewards=[f"{__name__}:OneForAll"])
    model, _ = open_run(config)
    with pytest.raises(BadInput, match=r"score_packed gave numbers of shape \[1\] for 2 responses"):
        score_by_roles(model, config.all_rewards.roles, [Tree([4, 5], [[6, 1], [7, 1]])])


def test_numbers_of_another_type_are_converted_or_refused(
    pairs: Path, model_folder: ModelFolder, tmp_path: Path
) -> None:
    trees = [Tree([4, 5], [[6, 1], [7, 1]])]

    def scores(**settings: str) -> list[list[float]]:
        typed = {"kind": f"{__name__}:Typed", **settings}
        config = config_of(tmp_path / "ppo", model_folder("llama"), pairs, rewards=[typed, f"{__name__}:Ones"])
        model, _ = open_run(config)
        assert sum_of_roles(model, config.all_rewards.roles, packed_of(trees)).dtype == torch.float32
        return score_by_roles(model, config.all_rewards.roles, trees)

    for dtype in ("float32", "float64", "float16", "int64", "bool"):
        assert scores(dtype=dtype) == [[1.0, 2.0]]
    for settings, given in (({"dtype": "complex64"}, "complex64 numbers on cpu"), ({"device": "meta"}, "on meta")):
        with pytest.raises(BadInput, match=f"reward test_reward:Typed: score_packed gave .*{given}; it gives float32"):
            scores(**settings)
