"""What an annotator answered in a labelling project that was made by hand from stock templates.

In: the regions of an annotation (of an export that holds the result, or one that holds only values by control), and
the cards of a ranking. Out: an answer by place on screen. Read are ``Pairwise``, ``Ranker`` (an order, or buckets) and
one ``Choices`` whose labels are known. Nothing is guessed: an order that equals the shown one is what an untouched
ranking submits too, and buckets have an order only where the user gave them one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.core.config import BadInput
from align.core.records import Message
from annotation.aggregation.votes import BOTH_BAD
from annotation.importers.columns import RANKINGS, Labels, Outcome
from annotation.importers.turns import messages_of
from annotation.interface.decode import ScreenJudgment
from annotation.interface.regions import UNPLACED, Region, Undecodable, brief, places_of, regions_of, tie_groups


def stock_regions(result: Any) -> list[Region]:
    """Return the regions of a result of stock templates, their types in lower case.

    Raises:
        Undecodable: it is no list of regions, or is empty.
    """
    regions = regions_of(result)
    if not all(isinstance(r.type, str) and isinstance(r.name, str) and isinstance(r.value, dict) for r in regions):
        raise Undecodable("the result holds something that is no region")
    return [region._replace(type=region.type.lower()) for region in regions]


def regions_of_values(row: Mapping[str, Any], label: str | None, rationale: str | None) -> list[Region]:
    """Return the regions of a row that holds values by control, among the fields of its task (an export as JSON_MIN).

    Pairwise and Ranker are recognised by their form; choices and texts look like any field, so they must be named.
    """
    regions = []
    for name, value in row.items():
        if name in (label, rationale):
            kind, key = ("choices", "choices") if name == label else ("textarea", "text")
            regions.append(Region(kind, name, None, value if isinstance(value, dict) else {key: [value]}))
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            for kind, key in (("pairwise", "selected"), ("ranker", "ranker")):
                regions += [Region(kind, name, None, entry) for entry in value if set(entry) == {key}]
    return regions


def deciding(regions: Sequence[Region], label: str | None) -> Region:
    """Return the one region that compares responses.

    Args:
        label: the control whose choices do; None takes the only one with choices.

    Raises:
        Undecodable: no region does, or more than one.
    """
    chosen = [region for region in regions if region.type == "choices" and label in (None, region.name)]
    compared = [region for region in regions if region.type in ("pairwise", "ranker")]
    answers = chosen + compared if label else compared or chosen
    if not answers:
        raise Undecodable(f"nothing in it compares responses (controls {sorted({region.name for region in regions})})")
    if len(answers) > 1:
        raise Undecodable(f"more than one answer (controls {[region.name for region in answers]})")
    return answers[0]


def pairwise(region: Region, labels: Labels) -> ScreenJudgment:
    """Return what Pairwise or Choices answer on two responses.

    Raises:
        Undecodable: a selection or a label that is not known.
    """
    outcome: Outcome | None
    if region.type == "pairwise":
        outcome = region.value.get("selected")
        if outcome not in ("left", "right"):
            raise Undecodable(f"neither left nor right is selected ({brief(outcome)})")
    else:
        chosen = region.value.get("choices")
        if not isinstance(chosen, list) or len(chosen) != 1:
            raise Undecodable(f"not one choice (control '{region.name}': {brief(chosen)})")
        outcome = labels.meaning(chosen[0])
        if outcome is None:
            raise Undecodable(f"unknown label ({brief(chosen[0])} of control '{region.name}')")
    return ScreenJudgment(RANKINGS[outcome], flags=[BOTH_BAD] if outcome == "both_bad" else [])


def ranked(region: Region, cards: Sequence[str], buckets: Sequence[str], where: str) -> ScreenJudgment:
    """Return what a Ranker answers on its cards, which are named in the order it showed them.

    Raises:
        Undecodable: it leaves cards out, names unknown ones, or is the order that was shown.
        BadInput: it has buckets and their order is not given.
    """
    value, number = region.value.get("ranker"), {card: place for place, card in enumerate(cards)}
    if isinstance(value, dict) and set(value) == {region.name}:
        value = value[region.name]
    if isinstance(value, dict):
        if not buckets:
            named = ", ".join(name for name in value if name != UNPLACED)
            raise BadInput(
                f"{where}: cards are sorted into buckets ({named}), and an export does not tell which is better; "
                "name them all, best first, with buckets=[...]"
            )
        return ScreenJudgment(tie_groups(region.name, places_of(region.name, value, buckets), buckets, number))
    if not isinstance(value, list):
        raise Undecodable(f"no list of cards ({brief(value)})")
    places = {str(place): [str(card)] for place, card in enumerate(value)}
    ranking = tie_groups(region.name, places, [*places], number)
    if ranking == [[place] for place in range(len(cards))]:
        raise Undecodable("the order is the one that was shown (an untouched ranking says the same)")
    return ScreenJudgment(ranking)


def cards_of(value: Any) -> dict[str, list[Message]]:
    """Return the responses that a ranking showed by their cards' names, in the order it showed them.

    Raises:
        Undecodable: it is no list of two or more cards, or a card has no name or no text.
    """
    if not isinstance(value, list) or len(value) < 2:
        raise Undecodable("no list of two or more responses to rank")
    cards: dict[str, list[Message]] = {}
    for card in value:
        if not isinstance(card, dict) or not isinstance(card.get("id"), str | int):
            raise Undecodable(f"a card without an id ({brief(card)})")
        messages = messages_of(card.get("body"), "assistant", "body")
        if not messages:
            raise Undecodable(f"a card without a body ({card['id']!r})")
        if str(card["id"]) in cards:
            raise Undecodable("two cards have the same id")
        cards[str(card["id"])] = messages
    return cards


def text_in(regions: Sequence[Region], name: str | None) -> str | None:
    """Return what was written in a text control, its parts on lines of their own."""
    texts = [region.value.get("text") for region in regions if region.type == "textarea" and region.name == name]
    parts = [part for text in texts for part in (text if isinstance(text, list) else [text]) if isinstance(part, str)]
    return "\n".join(parts).strip() or None
