"""DPO from Python, on the embedded world: demonstrations, an SFT policy, candidates, votes, pairs, DPO.

    python examples/dpo_from_python.py [FOLDER]

Every step is one config and one function, and returns the record of its run. A step that is finished is not run again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import align
from align.pocket.utility import utility  # the truth of the embedded world

BASE = Path(align.__path__[0]) / "pocket" / "base"


def main(folder: Path) -> align.RunRecord:
    world = align.PocketConfig(run=folder / "world", demonstrations=300, prompts=120, held_out_prompts=40)
    align.write_pocket_world(world)

    sft = align.SFTConfig(run=folder / "sft", model=BASE, data=world.run, epochs=2, optim={"lr": 1.5e-3})
    align.sft(sft)

    candidates = align.SampleConfig(run=folder / "sample", policy=sft.run, prompts=world.run, k=3, max_new_tokens=48)
    align.sample_candidates(candidates)

    people = [{"name": "ada", "reliability": 0.9}, {"name": "ben", "reliability": 0.85}]
    votes = align.SimulateConfig(
        run=folder / "votes", candidates=candidates.run, feedback=folder / "feedback.db", annotators=people,
        votes_per_comparison=2
    )  # fmt: skip
    align.simulate_judgments(votes, utility=utility)

    pairs = align.PairsConfig(run=folder / "pairs", feedback=votes.feedback)
    align.make_pairs(pairs)

    return align.dpo(
        align.DPOConfig(
            run=folder / "dpo",
            pairs=pairs.run,
            policy=sft.run,
            loss={"kind": "sigmoid", "beta": 0.3},
            optim={"lr": 6e-4},
        )
    )


if __name__ == "__main__":
    record = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/dpo"))
    print(f"{record.path}: {record.status}; accuracy at the last step {record.headline['accuracy']:.2f}")
