"""The regions of a result, and cards in places: parsed alike for tasks of the bridge and for tasks made by hand.

In: the ``result`` list of an annotation, of which the server checks nothing. Out: regions, and tie groups of cards.
An interface (``decode.py``) or a stock template (``importers/stock.py``) defines what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

UNPLACED = "_"  # where the cards of a ranking begin


class Undecodable(Exception):
    """A result is no answer to its interface; the message is the reason."""


class Region(NamedTuple):
    """A control that was used, and its value, as the server lists them."""

    type: Any
    name: Any
    to_name: Any
    value: Any


def regions_of(result: Any) -> list[Region]:
    """Return the regions of a result list.

    Raises:
        Undecodable: it is none, or is empty.
    """
    if not isinstance(result, list):
        raise Undecodable(f"the result is {brief(result)}, not a list")
    if not result:
        raise Undecodable("the result is empty")
    for region in result:
        if not isinstance(region, dict):
            raise Undecodable(f"the result holds {brief(region)}, not an object")
    return [Region(*(region.get(key) for key in ("type", "from_name", "to_name", "value"))) for region in result]


def places_of(name: str, value: Any, known: Sequence[str]) -> dict[str, list[str]]:
    """Return the cards in each place of a ranking, those in none included.

    Raises:
        Undecodable: it is none, or holds a place that is not known.
    """
    if not isinstance(value, dict):
        raise Undecodable(f"control '{name}' has {brief(value)}, expected places with cards")
    if strange := [place for place in value if place not in (*known, UNPLACED)]:
        raise Undecodable(f"unknown place ({brief(strange[0])} of control '{name}')")
    return {place: strings(name, cards) for place, cards in value.items()}


def tie_groups(
    name: str, places: Mapping[str, list[str]], order: Sequence[str], cards: Mapping[str, int]
) -> list[list[int]]:
    """Return the cards of a ranking as tie groups of their numbers, best first, without empty places.

    Args:
        order: the places, best first.
        cards: the number of each card.

    Raises:
        Undecodable: a card is in no place, in two, or unknown.
    """
    if places.get(UNPLACED):
        raise Undecodable(f"cards in no place ({brief(sorted(places[UNPLACED]))} of control '{name}')")
    placed = [card for listed in places.values() for card in listed]
    for card in placed:
        if card not in cards:
            raise Undecodable(f"unknown card ({brief(card)} of control '{name}')")
        if placed.count(card) > 1:
            raise Undecodable(f"a card is placed twice ({brief(card)} of control '{name}')")
    if missing := sorted(set(cards) - set(placed)):
        raise Undecodable(f"cards are missing ({brief(missing)} of control '{name}')")
    return [sorted(cards[card] for card in places[place]) for place in order if places.get(place)]


def strings(name: str, value: Any) -> list[str]:
    """Return a value that is a list of texts.

    Raises:
        Undecodable: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Undecodable(f"control '{name}' has {brief(value)}, expected a list of texts")
    return value


def brief(value: Any) -> str:
    """Write a value for a reason: printable, and cut."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:60] + "…"
