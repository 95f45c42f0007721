"""Which split a comparison belongs to: prompts are split, not pairs, and prompts that are nearly alike go together.

In: comparisons and the split hints of the store. Out: a split for each. Prompts that differ in case, spaces or
punctuation only count as one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from align.core.messages import normalised
from align.core.records import Comparison, Message
from annotation.store.chain import STRICTNESS, Split

SYSTEM_ROLES = ("system", "developer")
SPLITS: tuple[Split, ...] = get_args(Split)


class Placement(NamedTuple):
    """The split of each comparison id; ``leaking`` are ids whose hint put a held-out prompt into training.

    ``across`` counts what is asked in training and in a held-out split, under different system prompts.
    """

    split: dict[str, Split]
    leaking: set[str]
    near_duplicates: int
    across: int


def place(
    comparisons: Sequence[Comparison],
    hints: Mapping[str, Split | None],
    validation: float,
    test: float,
    seed: int,
) -> Placement:
    """Give every comparison a split, the same for all prompts that are alike after ``normalised``.

    The strictest hint among them wins (test over validation over train); a comparison whose own hint is laxer leaks.
    Without hints the split is drawn from sha256(seed, normalised prompt), so new prompts never move old ones.
    """
    alike: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        alike.setdefault(normalised(comparison.prompt), []).append(comparison)
    split: dict[str, Split] = {}
    leaking: set[str] = set()
    for text, group in alike.items():
        hinted = [hint for comparison in group if (hint := hints.get(comparison.id))]
        chosen = max(hinted, key=STRICTNESS.__getitem__) if hinted else _draw(text, validation, test, seed)
        for comparison in group:
            split[comparison.id] = chosen
            if (hint := hints.get(comparison.id)) and hint != chosen:
                leaking.add(comparison.id)
    near = sum(len({comparison.prompt_id for comparison in group}) - 1 for group in alike.values())
    return Placement(split, leaking, near, _across(comparisons, split))


def _across(comparisons: Sequence[Comparison], split: Mapping[str, Split]) -> int:
    places: dict[str, set[Split]] = {}
    for comparison in comparisons:
        if turns := [message for message in comparison.prompt if message["role"] not in SYSTEM_ROLES]:
            places.setdefault(normalised(turns), set()).add(split[comparison.id])
    return sum("train" in splits and len(splits) > 1 for splits in places.values())


def is_for_judge(prompt: Sequence[Message], share: float, seed: int) -> bool:
    """Return whether a training prompt is among the ``share`` whose judgments only a judge of policies learns from.

    Prompts that are alike after ``normalised`` go together, and new prompts never move old ones.
    """
    digest = hashlib.sha256(f"{seed}\0judge\0{normalised(prompt)}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def _draw(text: str, validation: float, test: float, seed: int) -> Split:
    digest = hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"
