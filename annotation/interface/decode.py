"""Decode the result of an annotation into one person's judgment, by place on screen.

In: the ``result`` list of an annotation, of which the server checks nothing. Out: a ``ScreenJudgment`` about responses
by their place on screen (0 is the left or first one), and from it the judgment about canonical responses; the caller
knows which response was shown where. Nothing is guessed or mended: what this interface cannot have produced is refused
with a plain reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from align.core.records import Comparison, Judgment
from annotation.aggregation.votes import BOTH_BAD
from annotation.interface.config import (
    MAX_RATING,
    TOO_DISTURBING,
    Control,
    Interface,
    controls,
    rating_control,
)
from annotation.interface.regions import Region, Undecodable, brief, places_of, regions_of, strings, tie_groups
from annotation.interface.render import scrub

EDITED = "edited by somebody else"  # flag of a judgment that another account changed afterwards
VALUE_KEYS = {"choices": "choices", "rating": "rating", "textarea": "text", "ranker": "ranker"}


class ScreenJudgment(NamedTuple):
    """One person's judgment, by place on screen.

    ``ranking`` holds tie groups, best first; it is empty exactly when the item was skipped as too disturbing.
    ``strength`` is 0 (tie) to 3, of two responses only. ``ratings`` hold one value per place (None: not rated).
    ``improved`` replaces the response at place ``improved_from``, or of all (None) after a tie.
    """

    ranking: list[list[int]]
    strength: int | None = None
    flags: list[str] = []
    ratings: dict[str, list[int | None]] = {}
    rationale: str | None = None
    improved: str | None = None
    improved_from: int | None = None
    label: str | None = None

    @property
    def is_skipped(self) -> bool:
        return TOO_DISTURBING in self.flags


def decode(interface: Interface, result: Any) -> ScreenJudgment:
    """Decode a result list.

    An item skipped as too disturbing keeps its rationale; whatever else was filled in is no judgment and left out.

    Raises:
        Undecodable: the result is empty, or something in it is not an answer to this interface; says what.
    """
    values = _values(controls(interface), result)
    rationale = values.get("rationale")
    if "skip" in values or values.get("verdict") == [TOO_DISTURBING]:
        return ScreenJudgment([], flags=[TOO_DISTURBING], rationale=rationale)
    judged = _ranked(interface, values) if interface.kind == "ranking" else _chosen(interface, values)
    improved, best = values.get("improved"), judged.ranking[0]
    return judged._replace(
        flags=[*judged.flags, *values.get("flags", [])],
        ratings=_ratings(interface, values),
        rationale=rationale,
        improved=improved,
        improved_from=best[0] if improved is not None and len(best) == 1 else None,
    )


def judgment_of(
    judged: ScreenJudgment,
    comparison: Comparison,
    shown: list[int],
    *,
    annotator: str,
    is_edited: bool,
    seconds: float | None,
    guideline: str | None,
    source: str,
) -> Judgment:
    """Return a judgment by place on screen as one by canonical response.

    Args:
        shown: canonical response numbers in screen order.
        is_edited: another account changed the answer.

    Raises:
        ValueError: it is no valid judgment (pydantic names the field).
    """
    improved, place = judged.improved, judged.improved_from
    improved_from = None if place is None else shown[place]
    bettered = comparison.responses if improved_from is None else [comparison.responses[improved_from]]
    if improved is not None and improved.strip() in {response.text.strip() for response in bettered}:
        improved, improved_from = None, None  # sent back as it was
    places = [shown.index(index) for index in range(len(shown))]
    return Judgment(
        comparison_id=comparison.id,
        annotator=annotator,
        ranking=[sorted(shown[place] for place in group) for group in judged.ranking],
        shown=shown,
        strength=judged.strength,
        flags=[*judged.flags, *([EDITED] if is_edited else [])],
        label=judged.label,
        ratings={name: [values[place] for place in places] for name, values in judged.ratings.items()},
        rationale=judged.rationale,
        improved=improved,
        improved_from=improved_from,
        seconds=seconds,
        guideline=guideline,
        source=source,
    )


def _values(known: dict[str, Control], result: Any) -> dict[str, Any]:
    """Return the value of each control that was used, checked by its type."""
    values: dict[str, Any] = {}
    for region in regions_of(result):
        if region.type == "pairwise":
            raise Undecodable("a stock Pairwise result: this interface asks with choices")
        if not isinstance(region.name, str) or region.name not in known:
            raise Undecodable(f"unknown control {brief(region.name)}")
        if region.name in values:
            raise Undecodable(f"control '{region.name}' was answered twice")
        values[region.name] = _value(region, known[region.name])
    return values


def _value(region: Region, control: Control) -> Any:
    """Return the value of a region: chosen answers, a rating, a text (None when blank) or places of cards."""
    name, value, key = region.name, region.value, VALUE_KEYS[control.type]
    if region.type != control.type:
        raise Undecodable(f"control '{name}' has type {brief(region.type)}, expected '{control.type}'")
    if region.to_name != control.to_name:
        raise Undecodable(f"control '{name}' belongs to {brief(region.to_name)}, expected '{control.to_name}'")
    if not isinstance(value, dict) or set(value) != {key}:
        raise Undecodable(f"control '{name}' has value {brief(value)}, expected only '{key}'")
    if control.type == "ranker":
        return places_of(name, value[key], control.answers)
    readers = {"choices": _choices, "rating": _rating, "textarea": _text}
    return readers[control.type](name, control, value[key])


def _choices(name: str, control: Control, value: Any) -> list[str]:
    chosen = strings(name, value)
    for choice in chosen:
        if choice not in control.answers:
            raise Undecodable(f"control '{name}' has no choice {brief(choice)}")
    if not chosen or len(set(chosen)) < len(chosen) or (len(chosen) > 1 and not control.is_multiple):
        expected = "one or more different choices" if control.is_multiple else "one choice"
        raise Undecodable(f"control '{name}' has {len(chosen)} choices {brief(value)}, expected {expected}")
    return chosen


def _rating(name: str, control: Control, value: Any) -> int:
    if type(value) is not int:
        raise Undecodable(f"control '{name}' has rating {brief(value)}, expected a whole number")
    if not 1 <= value <= MAX_RATING:
        raise Undecodable(f"control '{name}' has rating {brief(value)}, expected 1 to {MAX_RATING}")
    return value


def _text(name: str, control: Control, value: Any) -> str | None:
    texts = strings(name, value)
    if len(texts) != 1:
        raise Undecodable(f"control '{name}' has {len(texts)} texts, expected one")
    return scrub(texts[0]) if texts[0].strip() else None


def _chosen(interface: Interface, values: dict[str, Any]) -> ScreenJudgment:
    """Return the answer on two responses, or the label of a single one."""
    if "verdict" not in values:
        raise Undecodable("control 'verdict' was not answered")
    choice = values["verdict"][0]
    if interface.kind != "pairwise":
        return ScreenJudgment([[0]], label=choice)
    if choice == BOTH_BAD:
        return ScreenJudgment([[0, 1]], strength=0, flags=[BOTH_BAD])
    lean = int(choice)  # below 0 for the left response
    return ScreenJudgment([[0, 1]] if lean == 0 else [[0], [1]] if lean < 0 else [[1], [0]], strength=abs(lean))


def _ranked(interface: Interface, values: dict[str, Any]) -> ScreenJudgment:
    if "ranking" not in values:
        raise Undecodable("control 'ranking' was not answered")
    cards = {f"r{place}": place for place in range(interface.n_responses)}
    return ScreenJudgment(tie_groups("ranking", values["ranking"], controls(interface)["ranking"].answers, cards))


def _ratings(interface: Interface, values: dict[str, Any]) -> dict[str, list[int | None]]:
    """Return one value per place, by name; a name that nobody rated by is left out."""
    places = range(interface.n_responses)
    by_name = {name: [values.get(rating_control(name, place)) for place in places] for name in interface.ratings}
    return {name: ratings for name, ratings in by_name.items() if any(rating is not None for rating in ratings)}
