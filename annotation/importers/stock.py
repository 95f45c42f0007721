"""What an annotator said in a labelling project that was made by hand from stock templates.

In: the regions of an annotation (of an export that holds the result, or one that holds only values by control), and
the cards of a ranking. Out: a ranking by place on screen. Read are ``Pairwise``, ``Ranker`` (an order, or buckets) and
one ``Choices`` whose labels are known. Nothing is guessed: an order that equals the one shown is what an untouched
ranking submits too, and buckets have an order only where the user gave them one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.records import Message
from annotation.aggregation.votes import BOTH_BAD
from annotation.importers.columns import Labels, Outcome
from annotation.importers.imported import Unusable
from annotation.importers.turns import messages_of

UNPLACED = "_"  # where the cards of a ranking in buckets begin
RANKINGS: Mapping[Outcome, list[list[int]]] = {
    "left": [[0], [1]],
    "right": [[1], [0]],
    "tie": [[0, 1]],
    "both_bad": [[0, 1]],
}


class Region(NamedTuple):
    """A control that was used, and its value; ``type`` in the server's own words."""

    type: str
    name: str
    value: Mapping[str, Any]


class Said(NamedTuple):
    """A ranking by place (0 is left or top), tie groups best first, and flags."""

    ranking: list[list[int]]
    flags: list[str]


class Card(NamedTuple):
    """A card of a ranking: what results call it, and its response."""

    id: str
    messages: list[Message]


def regions_of(result: Any) -> list[Region]:
    """The regions of a result list.

    Raises:
        Unusable: it is none, or is empty.
    """
    if not isinstance(result, list):
        raise Unusable(f"the result is no list ({type(result).__name__})")
    if not result:
        raise Unusable("the result is empty")
    found = []
    for region in result:
        named = isinstance(region, dict) and isinstance(region.get("from_name"), str)
        if not named or not isinstance(region.get("type"), str) or not isinstance(region.get("value"), dict):
            raise Unusable("the result holds something that is no region")
        found.append(Region(region["type"].lower(), region["from_name"], region["value"]))
    return found


def regions_of_values(row: Mapping[str, Any], label: str | None, rationale: str | None) -> list[Region]:
    """The regions of a row that holds values by control, among the fields of its task (an export as JSON_MIN).

    Pairwise and Ranker are told by their form; choices and texts look like any field and are read where they are named.
    """
    found = []
    for name, value in row.items():
        if name in (label, rationale):
            kind, key = ("choices", "choices") if name == label else ("textarea", "text")
            found.append(Region(kind, name, value if isinstance(value, dict) else {key: [value]}))
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            for kind, key in (("pairwise", "selected"), ("ranker", "ranker")):
                found += [Region(kind, name, entry) for entry in value if set(entry) == {key}]
    return found


def decided(regions: Sequence[Region], label: str | None) -> Region:
    """The one region that compares responses.

    Args:
        label: the control whose choices do; None takes the only one with choices.

    Raises:
        Unusable: there is none, or more than one.
    """
    named = [region for region in regions if region.type == "choices" and region.name == label]
    ranked = [region for region in regions if region.type in ("pairwise", "ranker")]
    found = named + ranked or ([] if label else [region for region in regions if region.type == "choices"])
    if not found:
        raise Unusable(f"nothing in it compares responses (controls {sorted({region.name for region in regions})})")
    if len(found) > 1:
        raise Unusable(f"more than one answer (controls {[region.name for region in found]})")
    return found[0]


def pairwise(region: Region, labels: Labels) -> Said:
    """What Pairwise or Choices say about two responses.

    Raises:
        Unusable: a selection or a label that is not known.
    """
    outcome: Outcome | None
    if region.type == "pairwise":
        selected = region.value.get("selected")
        outcome = "left" if selected == "left" else "right" if selected == "right" else None
        if outcome is None:
            raise Unusable(f"neither left nor right is selected ({_brief(selected)})")
    else:
        chosen = region.value.get("choices")
        if not isinstance(chosen, list) or len(chosen) != 1:
            raise Unusable(f"not one choice (control '{region.name}': {_brief(chosen)})")
        outcome = labels.meaning(chosen[0])
        if outcome is None:
            raise Unusable(f"unknown label ({_brief(chosen[0])} of control '{region.name}')")
    return Said(RANKINGS[outcome], [BOTH_BAD] if outcome == "both_bad" else [])


def ranked(region: Region, cards: Sequence[Card], buckets: Sequence[str], where: str) -> Said:
    """What a Ranker says about its cards.

    Raises:
        Unusable: it leaves cards out, names unknown ones, or is the order that was shown.
        BadInput: it has buckets and their order is not given.
    """
    value = region.value.get("ranker")
    if isinstance(value, dict) and set(value) == {region.name}:
        value = value[region.name]
    if isinstance(value, dict):
        return Said(_by_bucket(value, cards, buckets, where), [])
    order = _places(value, cards)
    if order == list(range(len(cards))):
        raise Unusable("the order is the one that was shown (an untouched ranking says the same)")
    return Said([[place] for place in order], [])


def cards_of(value: Any) -> list[Card]:
    """The cards that a ranking showed, in the order it showed them.

    Raises:
        Unusable: they are none, or one has no name or no text.
    """
    if not isinstance(value, list) or len(value) < 2:
        raise Unusable("no list of two or more responses to rank")
    found = []
    for card in value:
        if not isinstance(card, dict) or not isinstance(card.get("id"), str | int):
            raise Unusable(f"a card without an id ({_brief(card)})")
        messages = messages_of(card.get("body"), "assistant", "body")
        if not messages:
            raise Unusable(f"a card without a body ({card['id']!r})")
        found.append(Card(str(card["id"]), messages))
    if len({card.id for card in found}) < len(found):
        raise Unusable("two cards have the same id")
    return found


def text_in(regions: Sequence[Region], name: str | None) -> str | None:
    """What was written in a text control, its parts on lines of their own."""
    texts = [region.value.get("text") for region in regions if region.type == "textarea" and region.name == name]
    parts = [part for text in texts for part in (text if isinstance(text, list) else [text]) if isinstance(part, str)]
    return "\n".join(parts).strip() or None


def _by_bucket(value: Mapping[str, Any], cards: Sequence[Card], buckets: Sequence[str], where: str) -> list[list[int]]:
    """Buckets as tie groups, best first; empty ones are left out."""
    if not buckets:
        named = ", ".join(name for name in value if name != UNPLACED)
        raise BadInput(
            f"{where}: cards are sorted into buckets ({named}), and an export does not tell which is better; "
            "name them all, best first, with buckets=[...]"
        )
    if value.get(UNPLACED):
        raise Unusable(f"cards in no bucket ({_brief(value[UNPLACED])})")
    if strange := sorted(set(value) - {*buckets, UNPLACED}):
        raise Unusable(f"unknown bucket ({_brief(strange[0])})")
    placed = [card for name in buckets for card in _cards(value.get(name, []))]
    _places(placed, cards)
    groups = [sorted(_places(_cards(value.get(name, [])), cards, some=True)) for name in buckets]
    return [group for group in groups if group]


def _cards(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Unusable(f"no list of cards ({_brief(value)})")
    return value


def _places(value: Any, cards: Sequence[Card], some: bool = False) -> list[int]:
    """Cards by name to their places, each once, and (unless ``some``) all of them."""
    place = {card.id: number for number, card in enumerate(cards)}
    names = [str(name) for name in _cards(value)]
    if strange := [name for name in names if name not in place]:
        raise Unusable(f"unknown card ({strange[0]!r})")
    if len(set(names)) < len(names):
        raise Unusable(f"a card stands twice ({_brief(names)})")
    if not some and len(names) < len(place):
        raise Unusable(f"cards are missing ({_brief(sorted(set(place) - set(names)))})")
    return [place[name] for name in names]


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:60] + "…"
