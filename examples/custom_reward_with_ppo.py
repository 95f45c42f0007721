"""A reward of your own, and PPO that learns it: short answers that end politely.

    python examples/custom_reward_with_ppo.py [FOLDER]

The reward is a class with settings; `ppo` chooses it by `kind: module:Class`. This file is that module, so it has to be
where Python finds it: in the folder of the script, or the current one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import align
from align.core.records import Message
from align.pocket.utility import utility  # the truth of the embedded world
from rewards.reward import TextReward

BASE = Path(align.__path__[0]) / "pocket" / "base"


class Brief(TextReward):
    """One for an answer of at most ``words`` words, less ``price`` for each word more; None where it was cut."""

    words: int = 8
    price: float = 0.2

    def score(
        self, prompts: Sequence[list[Message]], completions: Sequence[list[Message]], **columns: Any
    ) -> list[float | None]:
        extra = [max(0, len(str(answer[-1]["content"]).split()) - self.words) for answer in completions]
        ended = columns["ended"]
        return [1 - self.price * more if end else None for more, end in zip(extra, ended, strict=True)]


def main(folder: Path, iterations: int = 8) -> align.RunRecord:
    world = align.PocketConfig(run=folder / "world", demonstrations=300, prompts=120, held_out_prompts=40)
    align.write_pocket_world(world)
    sft = align.SFTConfig(run=folder / "sft", model=BASE, data=world.run, epochs=2, optim={"lr": 1.5e-3})
    align.sft(sft)
    pairs = align.PairsConfig(run=folder / "pairs", feedback=_judged(folder, sft.run, world.run))
    align.make_pairs(pairs)  # PPO takes its training prompts from them
    return align.ppo(
        align.PPOConfig(
            run=folder / "ppo", policy=sft.run, pairs=pairs.run, iterations=iterations, batch=16, samples=2,
            rewards=[{"kind": "custom_reward_with_ppo:Brief", "words": 6}], kl=0.02, max_new_tokens=32,
            optim={"lr": 1e-3, "eps": 1e-5}, value_optim={"lr": 1e-3, "eps": 1e-5}, watch={"prompts": 4, "every": 4},
        )
    )  # fmt: skip


def _judged(folder: Path, policy: Path, prompts: Path) -> Path:
    """Candidates of a policy, judged by one simulated person."""
    candidates = align.SampleConfig(run=folder / "sample", policy=policy, prompts=prompts, k=2, max_new_tokens=48)
    align.sample_candidates(candidates)
    votes = align.SimulateConfig(
        run=folder / "votes", candidates=candidates.run, feedback=folder / "feedback.db", votes_per_comparison=1,
        annotators=[{"name": "ada", "reliability": 0.9}]
    )  # fmt: skip
    align.simulate_judgments(votes, utility=utility)
    return votes.feedback


if __name__ == "__main__":
    record = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/ppo"))
    print(f"{record.path}: {record.status}; KL to the reference {record.headline['kl']['exact']:.3f} nats per response")
