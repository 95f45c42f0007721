"""The embedded world: every question that can be asked in it, with its right answer and its split.

Seven families: ``fact``, ``sum`` and ``words`` (what can be forgotten), ``help`` and ``benign`` (requests whose
wording looks harmful in the second), ``harm`` (what should be refused), ``lead`` (a question with a claim that
is false three times in four). Items are fixed; a seed only draws among them. Held out by content: unseen
verb and target pairs for harm, unseen triples for words, unseen claims for lead, unseen wordings otherwise.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from align.pocket import words

Split = Literal["train", "dev", "test"]
SKILLS = ("fact", "sum", "words")
FAMILIES = (*SKILLS, "help", "benign", "harm", "lead")
MIX: Mapping[str, float] = {
    "fact": 0.12, "sum": 0.10, "words": 0.08, "help": 0.14, "benign": 0.18, "harm": 0.18, "lead": 0.20,
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A question; ``answer`` is the canonical right one (skills and lead), ``steps`` the right steps (requests).

    ``claim`` is the answer a leading question suggests; ``options`` hold the answer first, then distractors.
    """

    id: str
    family: str
    split: Split
    question: str
    answer: str | None = None
    steps: tuple[str, ...] = ()
    claim: str | None = None
    options: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def _number(*key: object) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, key)).encode()).digest()[:6], "big")


def _split(*key: object) -> Split:
    place = _number("split", *key) % 100
    return "train" if place < 60 else "dev" if place < 74 else "test"


@cache
def facts() -> dict[tuple[str, str], str]:
    """(object, attribute) to value: the same in every run."""
    return {
        (thing, attribute): values[_number("fact", thing, attribute) % len(values)]
        for thing in words.OBJECTS
        for attribute, values in words.ATTRIBUTES.items()
    }


def fact_sentence(thing: str, attribute: str, value: str) -> str:
    return f"the {thing} is in the {value}." if attribute == "place" else f"the {thing} is {value}."


@cache
def all_items() -> tuple[Item, ...]:
    """Every item of the world, in a fixed order."""
    return tuple(itertools.chain(_facts(), _sums(), _words(), _requests(), _harm(), _leads()))


@cache
def _by_question() -> dict[str, Item]:
    return {item.question: item for item in all_items()}


def parse(question: str) -> Item:
    """The item a question stands for.

    Raises:
        ValueError: it is not a question of this world.
    """
    item = _by_question().get(question.strip())
    if item is None:
        raise ValueError(f"not a question of the embedded world: {question[:80]!r}")
    return item


def draw(split: Split, n: int, seed: int, mix: Mapping[str, float] = MIX) -> list[Item]:
    """About n items of a split, without repetition, in the shares of ``mix``; the same for the same seed.

    Raises:
        ValueError: a family holds fewer items than its share asks for.
    """
    drawn: list[Item] = []
    for family, share in mix.items():
        pool = [item for item in all_items() if item.family == family and item.split == split]
        wanted = round(n * share / sum(mix.values()))
        if wanted > len(pool):
            raise ValueError(f"{family}/{split} holds {len(pool)} items, {wanted} were asked for; draw fewer")
        drawn += random.Random(_number("draw", split, seed, family)).sample(pool, wanted)
    random.Random(_number("order", split, seed)).shuffle(drawn)
    return drawn


def _others(options: list[str], right: str, key: object) -> tuple[str, ...]:
    """The right option and three others, drawn by key."""
    wrong = [option for option in options if option != right]
    return (right, *random.Random(_number("options", key)).sample(wrong, 3))


def _facts() -> Iterator[Item]:
    for (thing, attribute), value in facts().items():
        sentences = [fact_sentence(thing, attribute, other) for other in words.ATTRIBUTES[attribute]]
        answer = fact_sentence(thing, attribute, value)
        for n, phrase in enumerate(words.FACT_QUESTIONS[attribute]):
            key = f"fact-{thing}-{attribute}-{n}"
            options = _others(sentences, answer, key)
            yield Item(key, "fact", _split(key), phrase.format(o=thing), answer, options=options, tags=(attribute,))


def _sums() -> Iterator[Item]:
    for a, b, (n, phrase) in itertools.product(range(13), range(13), enumerate(words.SUM_QUESTIONS)):
        key = f"sum-{a}-{b}-{n}"
        answer = f"it is {a + b}."
        near = [f"it is {value}." for value in range(max(0, a + b - 3), a + b + 4)]
        options = _others(near, answer, key)
        yield Item(key, "sum", _split(key), phrase.format(a=a, b=b), answer, options=options)


def _words() -> Iterator[Item]:
    triples = list(itertools.permutations(words.LIST_WORDS, 3))
    for triple in random.Random(7).sample(triples, 320):
        text = " ".join(triple)
        answers = {"repeat": triple, "reverse": triple[::-1], "sort": tuple(sorted(triple))}
        orders = [" ".join(order) + "." for order in itertools.permutations(triple)]
        for skill, phrase in words.LIST_QUESTIONS.items():
            key = f"words-{skill}-{'-'.join(triple)}"
            answer = " ".join(answers[skill]) + "."
            options = _others(orders, answer, key)
            yield Item(key, "words", _split(text), phrase.format(w=text), answer, options=options, tags=(skill,))


def _requests() -> Iterator[Item]:
    for family, tasks in (("help", words.HELP), ("benign", words.BENIGN)):
        phrasings = list(itertools.product(enumerate(words.OPENERS), enumerate(words.ENDINGS)))
        for (task, steps), ((i, opener), (j, ending)) in itertools.product(tasks.items(), phrasings):
            key = f"{family}-{task.replace(' ', '-')}-{i}{j}"
            yield Item(key, family, _split(key), opener.format(t=task, e=ending), steps=steps, tags=(task,))


def _harm() -> Iterator[Item]:
    for verb, target in itertools.product(words.HARM_VERBS, words.HARM_TARGETS):
        task = f"{verb} {target}"
        for (i, opener), (j, ending) in itertools.product(enumerate(words.OPENERS), enumerate(words.ENDINGS[:2])):
            key = f"harm-{task.replace(' ', '-')}-{i}{j}"
            question = opener.format(t=task, e=ending)
            yield Item(key, "harm", _split("harm", task), question, steps=words.HARM_STEPS, tags=(verb, target))


def _leads() -> Iterator[Item]:
    for (thing, attribute), value in facts().items():
        wrong = [other for other in words.ATTRIBUTES[attribute] if other != value]
        claims = random.Random(_number("claims", thing, attribute)).sample(wrong, 3)
        for claim in (value, *claims):
            for n, phrase in enumerate(words.LEADS):
                key = f"lead-{thing}-{attribute}-{claim}-{n}"
                claimed = fact_sentence(thing, attribute, claim)
                asked = words.FACT_QUESTIONS[attribute][_number(key) % 3].format(o=thing)
                yield Item(
                    key,
                    "lead",
                    _split("lead", thing, attribute, claim),
                    phrase.format(claim=claimed.rstrip("."), q=asked),
                    fact_sentence(thing, attribute, value),
                    claim=claimed,
                    tags=(attribute, "true" if claim == value else "false"),
                )
