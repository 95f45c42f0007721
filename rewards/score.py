"""Stage `score`: compute a score and an embedding of every candidate response by a reward model.

In: a run of `sample` (or a candidates file) and a reward run. Out: ``scores.parquet`` (prompt_id, response,
origin, n_tokens, ended, as_sampled, score; one row per response) and ``embeddings.safetensors`` (``embeddings``,
``[n, D]`` fp32, same order): the final hidden state at the last token (the stop token, if it ended) under the reward
adapter; the score is a linear function of it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow
import pyarrow.parquet
import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from align.core.config import BadInput
from align.core.files import write_bytes
from align.core.runs import Run
from align.core.stage import stage
from align.data.pairs import candidate_trees
from align.model.adapters import AdapterModel
from align.model.load import context_length, width
from align.model.open import ModelConfig, Role, open_models
from align.model.packing import Tree, pack
from rewards.model import RewardRun


class ScoreConfig(ModelConfig):
    """Settings of the stage: which candidates are scored, and by which reward model."""

    INPUTS: ClassVar[tuple[str, ...]] = ("candidates", "reward")

    stage: Literal["score"] = "score"
    candidates: Path = Field(description="candidates.jsonl, or a run that wrote it")
    reward: Path = Field(description="a reward run")


class Scored(NamedTuple):
    """Scores ``(B,)`` and final hidden states ``(B, D)`` of all responses, tree by tree."""

    scores_B: Tensor
    embeddings_BD: Tensor


@stage
def score(config: ScoreConfig, run: Run) -> dict[str, Any]:
    """Score every response of every candidate row that fits the model's context."""
    model = open_models(run, config, config.reward, {"reward": Role(weights=RewardRun(path=config.reward))})
    rows, trees = candidate_trees(run, config.candidates, model.chat, context_length(model.base))
    if not trees:
        raise BadInput(f"{config.candidates}: no response can be scored ({run.record.dropped or 'no rows'})")
    scored = embed(model, "reward", trees)
    table = [row | {"score": float(value)} for row, value in zip(rows, scored.scores_B, strict=True)]
    if run.is_main:
        write_bytes(run.path / "scores.parquet", _parquet(table))
        write_bytes(run.path / "embeddings.safetensors", save({"embeddings": scored.embeddings_BD.contiguous()}))
    spread = scored.scores_B.double()
    return {
        "prompts": len(trees),
        "responses": len(rows),
        "as_sampled": sum(row["as_sampled"] for row in rows),
        "score": {
            "mean": float(spread.mean()),
            "sd": float(spread.std()) if len(rows) > 1 else None,
            "min": float(spread.min()),
            "max": float(spread.max()),
            "n": len(rows),
        },
        "width": int(scored.embeddings_BD.shape[1]),
    }


@torch.no_grad()
def embed(model: AdapterModel, role: str, trees: Sequence[Tree]) -> Scored:
    """Return the final hidden state at each response's last token under ``role``, and the score of the role's head."""
    first = [0]
    for tree in trees:
        first.append(first[-1] + len(tree.responses))
    scores_B = torch.empty(first[-1])
    embeddings_BD = torch.empty(first[-1], width(model.base))
    with model.use(role):
        for packed in pack(trees, model.compute.max_tokens, model.layout):
            packed = packed.to(model.device)
            hidden_BD = model.hidden(packed)[packed.stop_row_B, packed.stop_column_B]
            place_B = torch.tensor([first[tree] + k for tree, k in packed.response_index])
            embeddings_BD[place_B] = hidden_BD.float().cpu()
            scores_B[place_B] = model.heads[role](hidden_BD).cpu()
    return Scored(scores_B, embeddings_BD)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
