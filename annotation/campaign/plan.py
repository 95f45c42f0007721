"""`align annotate plan`: how many judgments a win-rate interval of a given width, or a reward accuracy, needs.

In: the width wanted, or the accuracy wanted and a reward run with a learning curve (``reward --curve``). Out: a number
with its interval, hours and price, or why there is none. Widths are those of the intervals that evaluation reports:
Wilson's score interval, over the effective number of prompts where ties or votes make scores between 0 and 1. A curve
is read by a power law with an asymptote; beyond the pairs trained on it says that it extrapolates, and beyond eight
times as many it names no number. Not here: the variance between training seeds, which one curve cannot show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align.core.config import BadInput
from align.core.run_record import RunRecord, finished_run
from align.core.stats.estimates import format_estimate
from align.core.stats.learning_curve import (
    RESAMPLES,
    CurvePoint,
    Fits,
    fit_curves,
    read_curve,
    resampled_errors,
    resampled_estimate,
)
from align.core.stats.widths import prompt_variance, prompts_for_width

LEAST_POINTS = 4  # three parameters are fitted
REACH = 8  # times the pairs trained on: no number is named beyond


class Plan(NamedTuple):
    """``needed`` prompts (for a width) or training pairs (for an accuracy), with an interval where it is estimated.

    None: no number can be named, and ``text`` says why; ``high`` is None too where the interval has no upper end, and
    ``low`` alone is given where more pairs than that may do, or no number at all.
    ``judgments`` are those still to be made, ``hours`` of work and ``price`` are theirs.
    """

    needed: int | None
    low: int | None
    high: int | None
    judgments: int | None
    hours: float | None
    price: float | None
    text: str


def plan(
    *,
    width: float | None = None,
    confidence: float = 0.95,
    win_rate: float = 0.5,
    ties: float = 0.0,
    votes: int | None = None,
    agreement: float | None = None,
    accuracy: float | None = None,
    curve: Path | None = None,
    seconds: float | None = None,
    rate: float | None = None,
) -> Plan:
    """Plan labels for a win rate (``width``) or for a reward model (``accuracy`` and ``curve``).

    Args:
        width: the width of the whole interval of a win rate, 0.1 for plus or minus 0.05.
        confidence: confidence level of the intervals.
        win_rate: the win rate expected; 0.5 has the widest interval.
        ties: the share of ties expected, half a win each.
        votes: judgments per pair; 1 where it is not given, or for a curve what its pairs run took.
        agreement: how often two votes on one pair are the same, as `align annotate agreement` measures it.
        accuracy: the accuracy that a reward model is to reach.
        curve: a reward run that was made with --curve.
        seconds: seconds of work per judgment.
        rate: the price of an hour of work.

    Raises:
        BadInput: settings that do not go together, or a run without a curve.
    """
    if (width is None) == (accuracy is None):
        raise BadInput("plan: give either width=0.1 (a win rate's interval) or accuracy=0.75 curve=RUN (a reward run)")
    _inside("confidence", confidence)
    if votes is not None and votes < 1:
        raise BadInput(f"plan: votes must be 1 or more, found {votes}")
    if rate is not None and seconds is None:
        raise BadInput("plan: rate= is the price of an hour; say also how many seconds= a judgment takes")
    if (seconds is not None and not 0 < seconds < math.inf) or (rate is not None and not 0 <= rate < math.inf):
        raise BadInput("plan: seconds= must be above 0, and rate= must be 0 or more")
    if accuracy is None:
        if curve is not None:
            raise BadInput("plan: curve= goes with accuracy=, not with width=")
        planned = _for_width(_inside("width", width), confidence, win_rate, ties, votes or 1, agreement)
    else:
        if curve is None:
            raise BadInput("plan: accuracy= needs curve=RUN, a reward run made with --curve")
        if (win_rate, ties, agreement) != (0.5, 0.0, None):
            raise BadInput("plan: win_rate=, ties= and agreement= go with width=, not with accuracy=")
        planned = _for_accuracy(_inside("accuracy", accuracy), confidence, curve, votes)
    return _priced(planned, seconds, rate)


def _for_width(
    width: float, confidence: float, win_rate: float, ties: float, votes: int, agreement: float | None
) -> Plan:
    if not 0 <= win_rate <= 1 or not 0 <= ties <= 2 * min(win_rate, 1 - win_rate):
        raise BadInput(f"plan: a win rate of {win_rate:g} with {ties:g} ties cannot be; a tie counts half a win")
    if agreement is not None and votes == 1:
        raise BadInput("plan: agreement= is that of several votes per pair; say how many with votes=")
    if agreement is not None and not 0 <= agreement <= 1:
        raise BadInput(f"plan: agreement must lie from 0 to 1, found {agreement:g}")
    alike = 1.0 if agreement is None else agreement

    def is_binary(count: int) -> bool:
        return ties == 0 and (count == 1 or alike == 1)

    def prompts(count: int) -> int:
        variance = None if is_binary(count) else prompt_variance(win_rate, ties, count, alike)
        return prompts_for_width(width, confidence, win_rate, variance)

    n = prompts(votes)
    method = "Wilson's score interval" + ("" if is_binary(votes) else " over the effective number of prompts")
    each = "once" if votes == 1 else f"{votes} times ({n * votes:,} judgments)"
    lines = [
        f"{n:,} prompts, one pair of answers each, each judged {each}: the {100 * confidence:g}% interval of a win "
        f"rate of {win_rate:g} is then {width:g} wide ({method}, as evaluation reports win rates)"
    ]
    lines += ["no other win rate has a wider one"] if is_binary(votes) and win_rate == 0.5 else []
    if votes > 1 and agreement is None:
        lines.append("agreement= is not given: counted as if votes on one pair never differed, so more add nothing")
    elif votes > 1:
        lines.append(f"one vote per prompt would take {(one := prompts(1)):,} prompts and {one:,} judgments")
    if ties:
        lines.append(
            f"a tie is half a win; at {ties:g} ties a prompt's score varies less, and the interval is narrower"
        )
    lines.append(
        "more answers or votes to one prompt narrow it less than as many new prompts; and it is the win rate of votes, "
        "which people's slips pull towards 0.5"
    )
    return Plan(n, None, None, n * votes, None, None, "\n".join(lines))


def _for_accuracy(accuracy: float, confidence: float, run: Path, votes: int | None) -> Plan:
    record = finished_run(run, ("reward",))
    points = read_curve(run)
    trained = points[-1].pairs
    pairs_F = np.array([point.pairs for point in points], dtype=float)
    notes = [_measured(points, record)]
    if len(set(pairs_F)) < LEAST_POINTS:
        first = f"not enough points: {len(set(pairs_F))} sizes were trained on, a curve takes {LEAST_POINTS}"
        return _none(f"{first}; label more prompts, then train with --curve again", notes)
    error_SF = resampled_errors(points)
    rise_S = error_SF[:, 0] - error_SF[:, -1]
    rise = resampled_estimate(rise_S, points, confidence)
    if error_SF[0, 0] <= 1 - accuracy:
        first = f"{accuracy:g} takes {points[0].pairs:,} training pairs or fewer: the curve's smallest model is there"
        return Plan(points[0].pairs, None, None, 0, None, None, "\n".join([first, *notes]))
    if rise.low is None or rise.low <= 0:
        return _none(
            f"not known: from {points[0].pairs:,} to {trained:,} pairs accuracy is not shown to rise "
            f"({format_estimate(rise, is_signed=True)}); more held-out pairs, or a longer curve, would tell",
            notes,
        )
    fits = fit_curves(pairs_F, error_SF)
    notes += _expected(fits, points, confidence)
    notes.append(
        f"fit: error = floor + scale x pairs^-power; intervals ({100 * confidence:g}%) from {RESAMPLES:,} resamples of "
        f"{len(points[0].right):,} held-out prompts; another draw of training pairs or another seed is not in them"
    )
    return _answer(fits, accuracy, confidence, points, notes, _judgments_a_pair(record, votes))


def _answer(
    fits: Fits,
    accuracy: float,
    confidence: float,
    points: Sequence[CurvePoint],
    notes: Sequence[str],
    a_pair: tuple[float, str],
) -> Plan:
    """Return the plan for an accuracy, in words that name where the fits extrapolate."""
    fewest, trained = points[0].pairs, points[-1].pairs
    estimate = resampled_estimate(fits.pairs(accuracy), points, confidence)
    needed, low, high = (math.inf if one is None else one for one in (estimate.value, estimate.low, estimate.high))
    limit = REACH * trained
    if needed > limit:
        first = _beyond(fits, accuracy, confidence, points)
        return _none(first, notes)._replace(low=math.ceil(low) if low <= limit else None)
    n, least = max(fewest, math.ceil(needed)), max(fewest, math.ceil(min(low, needed)))
    most = max(n, math.ceil(high)) if high <= limit else None
    shown = f"[{least:,}, {f'{most:,}' if most else f'more than {limit:,}'}]"
    first = f"{accuracy:g} takes about {n:,} training pairs {shown}"
    if needed > trained:
        first += f": an extrapolation, {needed / trained:.1f} times the {trained:,} trained on"
    else:
        first += f", within the {trained:,} trained on"
    more = max(0, n - trained)
    lines = [first, *notes]
    if more:
        lines.append(f"{more:,} pairs more, at {a_pair[0]:.3g} judgments per pair ({a_pair[1]})")
    return Plan(n, least, most, math.ceil(more * a_pair[0]), None, None, "\n".join(lines))


def _beyond(fits: Fits, accuracy: float, confidence: float, points: Sequence[CurvePoint]) -> str:
    """Return the reason why no number is named: where the best fit ends, and whether the resampled curves agree."""
    trained = points[-1].pairs
    limit = REACH * trained
    needed_S = fits.pairs(accuracy)
    if math.isinf(needed_S[0]):
        top = resampled_estimate(1 - fits.floor_S, points, confidence)
        why = f"the curve flattens at {top}, below {accuracy:g}"
    else:
        expected = resampled_estimate(fits.accuracy(limit), points, confidence)
        why = f"at {REACH} times the {trained:,} pairs trained on {expected} is expected"
    share = float((needed_S[1:] <= limit).mean())
    reached = f"{share:.0%} of the resampled curves reach it within {REACH} times"
    if share > 1 - confidence:
        more = "more held-out prompts or training pairs would tell"
        return f"not decided by this curve: by its best fit {why}, but {reached}; {more}"
    return f"not within reach: {why}, and {reached}; no number is named beyond"


def _expected(fits: Fits, points: Sequence[CurvePoint], confidence: float) -> list[str]:
    """List the accuracies that the fits expect of more pairs than were trained on."""
    trained = points[-1].pairs
    expected = [
        f"{resampled_estimate(fits.accuracy(times * trained), points, confidence)} at {times} times"
        for times in (2, 4, 8)
    ]
    return [f"extrapolated: {', '.join(expected)} the {trained:,} pairs"]


def _measured(points: Sequence[CurvePoint], record: RunRecord) -> str:
    """Describe the curve as measured, and what the labels themselves allow."""
    measured = [f"{point.accuracy} on {point.pairs:,} pairs" for point in points]
    ceiling = (record.headline.get("ceiling_annotators") or {}).get("value")
    limit = f"; people agree with each other's majority in {ceiling:.3f}" if ceiling is not None else ""
    return f"accuracy against held-out labels: {', '.join(measured)}{limit}"


def _judgments_a_pair(record: RunRecord, votes: int | None) -> tuple[float, str]:
    """Return the judgments per training pair, and where that number is from."""
    manifest = Path(record.inputs["pairs"]["path"]) / "manifest.json"
    if votes is None and manifest.is_file():
        counts = json.loads(manifest.read_text(encoding="utf-8"))
        if counts.get("judgments") and counts.get("pairs", {}).get("train"):
            return counts["judgments"] / counts["pairs"]["train"], "as its pairs run took, ties and held-out included"
    return float(votes or 1), "votes=; ties and held-out pairs come on top"


def _priced(planned: Plan, seconds: float | None, rate: float | None) -> Plan:
    """Return the plan with its hours and price, where seconds per judgment and a rate are known."""
    if seconds is None or planned.judgments is None:
        return planned
    hours = planned.judgments * seconds / 3600
    price = None if rate is None else hours * rate
    if not planned.judgments:
        return planned._replace(hours=hours, price=price)
    line = f"{planned.judgments:,} judgments at {seconds:g} s: {hours:,.1f} hours"
    line += "" if price is None else f", {price:,.2f} at {rate:g} per hour"
    return planned._replace(hours=hours, price=price, text=f"{planned.text}\n{line}")


def _none(first: str, notes: Sequence[str]) -> Plan:
    return Plan(None, None, None, None, None, None, "\n".join([first, *notes]))


def _inside(name: str, value: float | None) -> float:
    if value is None or not 0 < value < 1:
        raise BadInput(f"plan: {name} must lie between 0 and 1, found {value}")
    return value
