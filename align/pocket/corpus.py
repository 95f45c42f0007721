"""The training texts of the base and the demonstrations for SFT, drawn at the rates of this table.

====================  =========================  =============================
rate                  base (:data:`BASE`)        demonstrations (:data:`SHOWN`)
====================  =========================  =============================
wrong answer          .05                        .03
polite, rude, filler  .30, .22, .22              .60, .05, .08
complies with harm    .90                        .45
repeats false claims  .35                        .30
refuses look-alikes   .05                        .15
one, two, three steps .35, .35, .30              .20, .35, .45
====================  =========================  =============================
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from align.pocket import words
from align.pocket.world import Item, Split, all_items, draw, fact_sentence, facts


@dataclass(frozen=True)
class Rates:
    """Probabilities of the properties of an answer; ``steps``: of one, two or three steps."""

    wrong: float
    polite: float
    rude: float
    filler: float
    comply: float
    sycophancy: float
    over_refusal: float
    steps: tuple[float, float, float]


BASE = Rates(0.05, 0.30, 0.22, 0.22, 0.90, 0.35, 0.05, (0.35, 0.35, 0.30))
SHOWN = Rates(0.03, 0.60, 0.05, 0.08, 0.45, 0.30, 0.15, (0.20, 0.35, 0.45))
BASE_MIX = {"fact": 0.16, "sum": 0.16, "words": 0.26, "help": 0.10, "benign": 0.10, "harm": 0.10, "lead": 0.12}


def answer(item: Item, rates: Rates, rng: random.Random) -> str:
    """One answer to a question, drawn at the given rates."""
    parts = [_content(item, rates, rng)]
    if rng.random() < rates.filler:
        parts.insert(0, rng.choice(words.FILLER))
    if rng.random() < rates.rude:
        parts.insert(0, rng.choice(words.RUDE))
    if rng.random() < rates.polite:
        parts.append(rng.choice(words.POLITE))
    return " ".join(parts)


def _content(item: Item, rates: Rates, rng: random.Random) -> str:
    if item.family in ("fact", "sum", "words"):
        return str(rng.choice(item.options[1:]) if rng.random() < rates.wrong else item.answer)
    if item.family == "lead":
        return str(item.claim if rng.random() < rates.sycophancy else item.answer)
    refuses = rates.over_refusal if item.family == "benign" else 1 - rates.comply if item.family == "harm" else 0.0
    if rng.random() < refuses:
        return rng.choice(words.REFUSALS)
    count = rng.choices((1, 2, 3), rates.steps)[0]
    if item.family == "harm":
        return " ".join(rng.sample(item.steps, count))
    return " ".join(sorted(rng.sample(item.steps, count), key=item.steps.index))


def demonstrations(seed: int, n: int, split: Split = "train") -> list[dict[str, Any]]:
    """Conversational prompt-completion rows for SFT, drawn at :data:`SHOWN`'s rates."""
    rng = random.Random(f"demonstrations-{seed}")
    return [
        {
            "prompt": [{"role": "user", "content": item.question}],
            "completion": [{"role": "assistant", "content": answer(item, SHOWN, rng)}],
            "family": item.family,
        }
        for item in draw(split, n, seed)
    ]


def base_documents(seed: int, n: int, plain: float = 0.3) -> Iterator[tuple[str | None, str]]:
    """(question, answer) transcripts and (None, text) plain documents for pretraining, from the train split."""
    rng = random.Random(f"base-{seed}")
    pools = {family: [i for i in all_items() if i.family == family and i.split == "train"] for family in BASE_MIX}
    families, shares = list(BASE_MIX), list(BASE_MIX.values())
    for _ in range(n):
        if rng.random() < plain:
            yield None, plain_document(rng)
        else:
            item = rng.choice(pools[rng.choices(families, shares)[0]])
            yield item.question, answer(item, BASE, rng)


def plain_document(rng: random.Random) -> str:
    """Word lists, facts, sums or the steps of a task, as running text."""
    kind = rng.choices(("words", "facts", "sums", "steps"), (0.43, 0.27, 0.15, 0.15))[0]
    if kind == "facts":
        known = rng.sample(sorted(facts().items()), 4)
        return " ".join(fact_sentence(thing, attribute, value) for (thing, attribute), value in known)
    if kind == "sums":
        pairs = [(rng.randrange(13), rng.randrange(13)) for _ in range(4)]
        return " ".join(f"{a} plus {b}: it is {a + b}." for a, b in pairs)
    if kind == "steps":
        task, steps = rng.choice(sorted({**words.HELP, **words.BENIGN}.items()))
        return f"to {task}: " + " ".join(steps)
    triple = rng.sample(words.LIST_WORDS, 3)
    changed = {"repeat": triple, "reverse": triple[::-1], "sort": sorted(triple)}
    return " ".join(f"{skill}: {' '.join(triple)}: {' '.join(changed[skill])}." for skill in words.LIST_QUESTIONS)
