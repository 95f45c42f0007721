"""Draw plots as inline SVG: lines and bars with intervals, drawn with the page's own colours.

In: numbers and names. Out: markup whose every text is escaped. Colours are classes ``c0`` to ``c7`` that the page
defines for light and dark; a dash pattern doubles them for those who do not see the difference. Not here: scripts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 30, 40
DASHES = ("", "", "6 3", "2 3", "8 3 2 3", "12 4", "1 4", "4 2")


class Series(NamedTuple):
    """A line through points in the order given; ``colour`` is a number from 0 to 7."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int


class Bar(NamedTuple):
    """A mean with its interval; None for what was not measured."""

    name: str
    mean: float | None
    low: float | None
    high: float | None
    colour: int


class Axis(NamedTuple):
    """A linear map from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], x_range: tuple[float, float] | None = None
) -> Markup:
    """Draw lines with a dot on their last point and a legend; empty markup where there is nothing to draw."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup()
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    x_axis = Axis(*_range(*(x_range or (min(xs), max(xs)))), LEFT, WIDTH - RIGHT)
    y_axis = Axis(*_padded(min(ys), max(ys)), HEIGHT - BOTTOM, TOP + 20)
    parts = [_grid(x_axis, y_axis), _labels(title, x_label, y_label, drawn)]
    parts += [_line(one, x_axis, y_axis) for one in drawn]
    return _svg(f"{title}: {y_label} by {x_label}", WIDTH, HEIGHT, parts)


def bar_chart(title: str, bars: Sequence[Bar], note: str = "") -> Markup:
    """Draw horizontal bars from zero with interval whiskers; a row without a value says "not measured"."""
    known = [value for bar in bars for value in (bar.mean, bar.low, bar.high) if value is not None]
    if not known:
        return Markup()
    left, row = 104, 24
    height = TOP + row * len(bars) + 30
    low, high = _range(min(0.0, *known), max(0.0, *known))
    axis = Axis(low, high, left, WIDTH - 62)
    parts = [_text(8, 18, title, "t"), _text(WIDTH - RIGHT, 18, note, "l", "end")]
    for tick in ticks(low, high, 5):
        x = axis.at(tick)
        parts.append(_rule(x, TOP, x, height - 26))
        parts.append(_text(x, height - 10, label(tick), "l", "middle"))
    for index, bar in enumerate(bars):
        parts += _bar(bar, axis, TOP + row * index + row / 2 + 2, left)
    return _svg(title, WIDTH, height, parts)


def dot_chart(title: str, bars: Sequence[Bar], mark: float | None = None, note: str = "") -> Markup:
    """Draw dots with interval whiskers, one per row; ``mark`` is a value to compare with. Empty without dots."""
    known = [value for bar in bars for value in (bar.mean, bar.low, bar.high) if value is not None]
    if not known:
        return Markup()
    measured = known if mark is None else [*known, mark]
    left, row = 150, 22
    height = TOP + row * len(bars) + 26
    axis = Axis(*_padded(min(measured), max(measured)), left, WIDTH - 60)
    parts = [_text(8, 18, title, "t"), _text(WIDTH - RIGHT, 18, note, "l", "end")]
    for tick in ticks(axis.low, axis.high, 4):
        x = axis.at(tick)
        parts += [_rule(x, TOP, x, height - 24), _text(x, height - 8, label(tick), "l", "middle")]
    if mark is not None:
        parts.append(_rule(axis.at(mark), TOP, axis.at(mark), height - 24, "w"))
    for index, bar in enumerate(bars):
        y = TOP + row * (index + 0.5)
        parts.append(_text(left - 8, y + 4, bar.name, "l", "end"))
        if bar.mean is None:
            continue
        if bar.low is not None and bar.high is not None:
            parts.append(_rule(axis.at(bar.low), y, axis.at(bar.high), y, "w"))
        dot = Markup('<circle class="d c{}" cx="{:.1f}" cy="{:.1f}" r="4"/>')
        parts += [dot.format(bar.colour, axis.at(bar.mean), y), _text(WIDTH - 52, y + 4, f"{bar.mean:.3g}", "l")]
    return _svg(title, WIDTH, height, parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers between two bounds."""
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def label(value: float) -> str:
    return f"{value:.6g}" if abs(value) > 1e-12 else "0"


def _svg(name: str, width: float, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg role="img" viewBox="0 0 {} {}"><title>{}</title>{}</svg>').format(
        width, height, name, Markup("").join(parts)
    )


def _grid(x_axis: Axis, y_axis: Axis) -> Markup:
    parts = []
    for tick in ticks(x_axis.low, x_axis.high):
        x = x_axis.at(tick)
        parts.append(_rule(x, y_axis.start, x, y_axis.start + 4))
        parts.append(_text(x, y_axis.start + 16, label(tick), "l", "middle"))
    for tick in ticks(y_axis.low, y_axis.high, 4):
        y = y_axis.at(tick)
        parts.append(_rule(x_axis.start, y, x_axis.end, y))
        parts.append(_text(x_axis.start - 6, y + 4, label(tick), "l", "end"))
    return Markup("").join(parts)


def _labels(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> Markup:
    parts = [_text(8, 18, title, "t"), _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "l", "middle")]
    parts.append(_text(8, 36, y_label, "l"))
    x = WIDTH - RIGHT
    for one in reversed(series):
        x -= 7 * len(one.name) + 34
        parts.append(
            Markup('<line class="s c{}" stroke-dasharray="{}" x1="{:.0f}" x2="{:.0f}" y1="32" y2="32"/>').format(
                one.colour, DASHES[one.colour], x + 8, x + 28
            )
        )
        parts.append(_text(x + 32, 36, one.name, "l"))
    return Markup("").join(parts)


def _line(one: Series, x_axis: Axis, y_axis: Axis) -> Markup:
    at = [(x_axis.at(x), y_axis.at(y)) for x, y in one.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    dots = Markup("").join(
        Markup('<circle class="d c{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(
            one.colour, x, y, 5 if index == len(at) - 1 else 2
        )
        for index, (x, y) in enumerate(at)
    )
    line = Markup('<polyline class="s c{}" stroke-dasharray="{}" points="{}"/>')
    return line.format(one.colour, DASHES[one.colour], path) + dots


def _bar(bar: Bar, axis: Axis, y: float, left: float) -> list[Markup]:
    parts = [_text(left - 8, y + 4, bar.name, "l", "end")]
    if bar.mean is None:
        return [*parts, _text(left + 6, y + 4, "not measured", "l")]
    start, end = sorted((axis.at(0.0), axis.at(bar.mean)))
    shape = Markup('<rect class="b c{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="14" rx="2"/>')
    parts.append(shape.format(bar.colour, start, y - 7, max(end - start, 1.0)))
    right = end
    if bar.low is not None and bar.high is not None:
        low, high = axis.at(bar.low), axis.at(bar.high)
        right = max(end, high)
        whisker = "M{0:.1f},{2:.1f}H{1:.1f}M{0:.1f},{3:.1f}V{4:.1f}M{1:.1f},{3:.1f}V{4:.1f}"
        parts.append(Markup('<path class="w" d="{}"/>').format(whisker.format(low, high, y, y - 4, y + 4)))
    parts.append(_text(right + 5, y + 4, f"{bar.mean:.3g}", "l"))
    return parts


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str = "g") -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Markup:
    shape = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return shape.format(kind, x, y, anchor, escape(text))


def _range(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)


def _padded(low: float, high: float) -> tuple[float, float]:
    low, high = _range(low, high)
    return low - (high - low) * 0.06, high + (high - low) * 0.06
