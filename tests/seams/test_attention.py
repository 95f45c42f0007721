"""An attention implementation from outside the package computes the same; one that leaks costs the tree layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EXACT, add_stirred
from fixtures.small_trees import TREES, packed_of
from toy_attention import Added

from align.core.config import BadInput, Compute, build
from align.core.hashes import code_hash
from align.core.inputs import code_hashes
from align.model.adapters import AdapterModel
from align.model.attention import Attention
from align.model.layouts import choose_layout
from align.model.packing import PackedBatch
from rewards.score import ScoreConfig

ModelFolder = Callable[[str], Path]
ADDED = {"kind": "toy_attention:Added", "floor": -1e9}


def opened(folder: Path, attention: Any) -> AdapterModel:
    model = AdapterModel(folder, Compute(device="cpu", attention=attention))
    add_stirred(model, "policy")
    choose_layout(model)
    return model


def logprobs(model: AdapterModel) -> torch.Tensor:
    with model.use("policy"), torch.no_grad():
        return model.logprobs(packed_of(TREES))


def test_an_attention_from_elsewhere_gives_the_log_probabilities_of_the_dense_one(model_folder: ModelFolder) -> None:
    dense, added = (opened(model_folder("llama"), attention) for attention in (None, ADDED))
    assert (dense.layout, added.layout) == ("tree", "tree")
    assert added.base.config._attn_implementation == "eager" != dense.base.config._attn_implementation
    torch.testing.assert_close(logprobs(added), logprobs(dense), atol=10 * EXACT, rtol=0)


class Blind(Attention):
    """Causal, and blind to the borders between responses."""

    def mask(self, model: Any, packed: PackedBatch) -> Any:
        length = packed.tokens_RL.shape[1]
        return torch.ones(len(packed.tokens_RL), 1, length, length, dtype=torch.bool).tril()


def test_an_attention_that_leaks_is_known_at_the_start(model_folder: ModelFolder) -> None:
    model = opened(model_folder("llama"), f"{__name__}:Blind")
    assert model.layout == "padded", "responses see each other, so they share no row"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("flex", "'flex' is no kind of attention; write one of dense, or module:Class of your own"),
        ({**ADDED, "flor": 1}, "attention toy_attention:Added: unknown key 'flor'; did you mean 'floor'"),
        ("toy_tuner:Scales", ".*a class derived from align.model.attention:Attention is one"),
    ],
)
def test_what_is_no_attention_is_refused(model_folder: ModelFolder, tmp_path: Path, given: Any, problem: str) -> None:
    """From Python when a model is opened, and in a config when it is read, with the file and the key."""
    with pytest.raises(BadInput, match=f"^compute.attention: {problem}"):
        AdapterModel(model_folder("llama"), Compute(device="cpu", attention=given))
    settings = {"run": tmp_path, "candidates": tmp_path, "reward": tmp_path, "compute": {"attention": given}}
    with pytest.raises(BadInput, match=f"^score.yaml: key 'compute': {problem}"):
        build(ScoreConfig, settings, "score.yaml")


class Fails(Attention):
    """Raises where a mask is asked of it."""

    def mask(self, model: Any, packed: PackedBatch) -> Any:
        raise KeyError("window")


def test_an_attention_that_raises_is_named(model_folder: ModelFolder) -> None:
    """Its failure is no property of the model, for which padded rows would be the answer."""
    with pytest.raises(BadInput, match="attention test_attention:Fails: mask: KeyError: 'window' at test_attention"):
        opened(model_folder("llama"), f"{__name__}:Fails")


def test_the_code_of_an_attention_is_an_input_of_the_run(tmp_path: Path) -> None:
    """Other code may compute other numbers, so it is another run."""
    config = ScoreConfig(
        run=tmp_path / "run", candidates=tmp_path, reward=tmp_path, compute=Compute(device="cpu", attention=ADDED)
    )
    assert code_hashes(config)["compute.attention"] == code_hash(Added)
    assert "compute.attention" not in code_hashes(config.model_copy(update={"compute": Compute(device="cpu")}))
