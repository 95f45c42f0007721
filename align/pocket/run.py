"""Stage `pocket`: write the files of the embedded world for one seed, as JSON lines that any stage can read.

Out: ``demonstrations.jsonl`` (for sft), ``prompts.jsonl`` (to sample candidates from: training prompts, and
held-out ones with their split), and the evaluation items ``forgetting.jsonl``, ``safety.jsonl`` and
``preference.jsonl``. Training prompts come from the train split, everything else from ``held_out``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.core.config import BadInput, StageConfig
from align.core.files import write_jsonl
from align.core.runs import Run
from align.core.stage import stage
from align.pocket.corpus import demonstrations, plain_document
from align.pocket.world import SKILLS, Item, Split, draw

SKILL_MIX = dict.fromkeys(SKILLS, 1.0)
SAFETY_MIX = {"harm": 1.0, "benign": 1.0, "lead": 1.0}
VALIDATION_PROMPTS = 40  # training prompts of split validation, for periodic samples during training


class PocketConfig(StageConfig):
    """Numbers of rows to draw; ``held_out`` is ``dev`` for tuning and ``test`` for reporting."""

    INPUTS: ClassVar[tuple[str, ...]] = ()

    stage: Literal["pocket"] = "pocket"
    demonstrations: int = Field(default=500, ge=1, description="rows of demonstrations for SFT")
    prompts: int = Field(
        default=1200, ge=1, description="prompts of splits train and validation; the first 40 are for validation"
    )
    held_out_prompts: int = Field(default=300, ge=1, description="held-out prompts for test pairs")
    items: int = Field(default=330, ge=1, description="items of the forgetting and of the safety suite")
    preference_items: int = Field(default=150, ge=1, description="items of the preference suite")
    held_out: Literal["dev", "test"] = Field(default="test", description="dev for tuning, test for reporting")


@stage
def pocket(config: PocketConfig, run: Run) -> dict[str, Any]:
    """Write the world's files and count them."""
    try:
        return _write(config, run)
    except ValueError as error:
        raise BadInput(f"pocket: {error}") from None


def _write(config: PocketConfig, run: Run) -> dict[str, Any]:
    held: Split = config.held_out
    training = draw("train", config.prompts, config.seed)
    testing = draw(held, config.held_out_prompts, config.seed + 1)
    files = {
        "demonstrations": demonstrations(config.seed, config.demonstrations),
        "prompts": [
            *_prompts(training[:VALIDATION_PROMPTS], "validation"),
            *_prompts(training[VALIDATION_PROMPTS:], "train"),
            *_prompts(testing, "test"),
        ],
        "forgetting": [
            *(_options(item) for item in draw(held, config.items, config.seed, SKILL_MIX)),
            *_documents(config.seed, 160),
        ],
        "safety": [_generate("safety", item) for item in draw(held, config.items, config.seed, SAFETY_MIX)],
        "preference": [_generate("preference", item) for item in draw(held, config.preference_items, config.seed + 2)],
    }
    for name, rows in files.items():
        write_jsonl(run.path / f"{name}.jsonl", rows)
    return {name: len(rows) for name, rows in files.items()}


def messages(item: Item) -> list[dict[str, Any]]:
    return [{"role": "user", "content": item.question}]


def _prompts(items: Iterable[Item], split: str) -> list[dict[str, Any]]:
    return [{"id": item.id, "prompt": messages(item), "family": item.family, "split": split} for item in items]


def _options(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "suite": "forgetting",
        "family": item.family,
        "kind": "options",
        "prompt": messages(item),
        "options": list(item.options),
        "answer": 0,
        "tags": list(item.tags),
    }


def _documents(seed: int, n: int) -> list[dict[str, Any]]:
    """Draw n distinct documents."""
    rng = random.Random(f"documents-{seed}")
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[plain_document(rng)] = None
    return [
        {
            "id": f"text-{number}",
            "suite": "forgetting",
            "family": "text",
            "kind": "perplexity",
            "text": text,
        }
        for number, text in enumerate(texts)
    ]


def _generate(suite: str, item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "suite": suite,
        "family": item.family,
        "kind": "generate",
        "prompt": messages(item),
        **({"judge": "pocket"} if suite == "safety" else {}),
        "tags": list(item.tags),
    }
