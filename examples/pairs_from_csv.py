"""Your own comparisons as CSV, with columns of your own, to training pairs.

    python examples/pairs_from_csv.py [FOLDER]

The map of columns says what is what. Judgments land in the feedback store, so agreement, aggregation and splits by
prompt are those of every other judgment; the manifest counts what was left out.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import align

HEAD = ("question", "answer_1", "answer_2", "better", "who")
ROWS = [
    (f"how do i {task}?", f"{steps}, one after another.", "i don't know.", better, who)
    for task, steps in (
        ("boil an egg", "boil water and wait six minutes"), ("tie a knot", "cross the ends and pull"),
        ("water a plant", "pour slowly and let it drain"), ("fold a map", "follow the old creases"),
        ("sharpen a pencil", "turn it in the sharpener"), ("wash a window", "wipe from the top to the bottom"),
    )
    for who, better in (("ann", "first"), ("bob", "first"), ("cem", "same"))
]  # fmt: skip


def main(folder: Path) -> align.RunRecord:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "comparisons.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEAD, *ROWS])
    imported = align.ImportConfig(
        run=folder / "import", data=folder / "comparisons.csv", feedback=folder / "feedback.db",
        columns={"prompt": "question", "left": "answer_1", "right": "answer_2", "label": "better", "annotator": "who"},
        labels={"left": ["first"], "right": ["second"], "tie": ["same"]},
    )  # fmt: skip
    align.import_preferences(imported)
    return align.make_pairs(
        align.PairsConfig(run=folder / "pairs", feedback=imported.feedback, min_votes=2, validation=0.2, test=0.2)
    )


if __name__ == "__main__":
    record = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/pairs"))
    print(json.dumps(json.loads((Path(record.path) / "manifest.json").read_text())["pairs"]))
