"""Run one short stage from finished runs: python two_processes.py STAGE RUNS TARGET (see test_resume.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from align.core.config import Optim, Watch

# plain SGD-like steps: Adam's first step is the sign of the gradient, which hides and magnifies differences
OPTIM = Optim(lr=0.3, eps=1.0, schedule="constant", warmup=0)


def main() -> None:
    stage, runs, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    common: dict[str, Any] = {"run": target, "pairs": runs / "pairs", "policy": runs / "sft"}
    if stage == "reward":
        from rewards.train import RewardConfig, reward

        reward(RewardConfig(**common, batch=64, epochs=1, optim=OPTIM))
    elif stage == "dpo":
        from align.dpo import DPOConfig, dpo

        dpo(DPOConfig(**common, batch=64, epochs=1, optim=OPTIM, watch=Watch(prompts=0)))
    else:
        from align.ppo import PPOConfig, ppo

        ppo(
            PPOConfig(
                **common, reward=runs / "reward", iterations=1, batch=9, samples=2, minibatches=2, max_new_tokens=24,
                kl_prompts=4, optim=OPTIM, value_optim=OPTIM, watch=Watch(prompts=0),
            )
        )  # fmt: skip


main()
