"""``agreement.html``: what agreement.json says, with plots, on one page that needs no network and no script.

In: the report as written to agreement.json. Out: HTML whose every text is escaped, with control and direction
characters written out. What was not measured says so. Not here: any number that is not in the report.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

MOST_BARS, MOST_ROWS = 40, 500  # annotators on a plot, and in the table; the rest stands in agreement.json
WIDTH, LEFT, RIGHT, ROW, TOP = 560, 150, 60, 22, 34
COEFFICIENTS = {
    "alpha": "Krippendorff's alpha, nominal",
    "alpha_ordinal": "Krippendorff's alpha, ordinal (first < tie < second)",
    "alpha_strength": "Krippendorff's alpha, ordinal over strengths (-3 to 3)",
    "pairwise_agreement": "two votes say the same",
    "pairwise_agreement_without_ties": "two votes say the same, ties left out",
    "chance_corrected_agreement": "two votes say the same, corrected for chance",
    "agreement_with_others": "a vote says what most others say",
    "weighted_kappa": "weighted kappa, a vote against the rest",
    "weighted_kappa_strength": "weighted kappa over strengths",
    "position": "the response shown first was chosen",
    "length": "the longer response was chosen",
    "ties": "ties",
    "self_consistency": "the same answer on a repeated task",
    "gold": "the right answer on a gold task",
}
STYLE = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #fff; --ink: #1d1f22; --soft: #5d636b; --line: #dedcd5;
  --bar: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --ink: #e9e7e2; --soft: #a4a9b1;
  --line: #363a40; --bar: #56b4e9; } }
body { margin: 0 auto; max-width: 1180px; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; } .soft { color: var(--soft); font-size: .8125rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .55rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; overflow-wrap: anywhere; } td .soft { display: block; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: .75rem;
  align-items: start; }
svg { background: var(--card); border: 1px solid var(--line); border-radius: 6px; width: 100%; height: auto; }
svg text { font: 11px system-ui, "Liberation Sans", sans-serif; fill: var(--soft); }
svg .t { font-weight: 600; font-size: 13px; fill: var(--ink); } svg .g { stroke: var(--line); }
svg .m { stroke: var(--soft); stroke-dasharray: 4 3; } svg .w { stroke: var(--ink); stroke-width: 1.4; }
svg .d { fill: var(--bar); }
"""
PAGE = Markup(
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    "<title>Agreement of annotators</title>\n<style>{}</style>\n</head>\n<body>\n{}\n</body>\n</html>\n"
)


class Dot(NamedTuple):
    """A measured value by name, with its interval if there is one."""

    name: str
    value: float
    interval: Sequence[float] | None


def page(report: Mapping[str, Any]) -> str:
    """The page of one agreement report."""
    people = sorted(report["annotators"].items(), key=lambda item: (_sortable(item[1]), item[0]))
    head = Markup(
        "<h1>Agreement of annotators</h1>\n<p>{} votes by {} annotators on {} comparisons; {} pairs of responses have "
        "two votes or more.</p>"
    ).format(report["votes"], len(people), report["comparisons"], report["compared_twice"])
    groups = {"all": report}
    groups |= {f"language {name}": found for name, found in report["by_language"].items()}
    groups |= {f"guideline {name[:12]}": found for name, found in report["by_guideline"].items()}
    plots = [
        dot_plot("Krippendorff's alpha, nominal", _dots(groups.items(), "alpha"), 0.0),
        dot_plot("Agreement with most others", _dots(people, "agreement_with_others"), None),
        dot_plot("Share of choices for the response shown first", _dots(people, "position"), 0.5),
    ]
    parts = [
        head,
        Markup('<div class="plots">{}</div>').format(Markup("").join(plots)),
        Markup("<h2>Measures</h2>{}").format(_measures(groups)),
        Markup("<h2>Annotators</h2>{}").format(_annotators(people)),
        Markup("<h2>Every two annotators</h2>{}").format(_couples(report["couples"], len(people))),
        Markup("<h2>What published campaigns reached</h2>{}").format(_published(report)),
    ]
    return str(PAGE.format(Markup(STYLE), Markup("\n").join(parts)))


def dot_plot(title: str, dots: Sequence[Dot], mark: float | None) -> Markup:
    """Dots with interval whiskers, one a row; ``mark`` is a value to be compared with. Empty without dots."""
    if not dots:
        return Markup()
    shown = dots[:MOST_BARS]
    known = [v for dot in shown for v in (dot.value, *(dot.interval or ()))] + ([] if mark is None else [mark])
    low, high = min(known) - 0.02, max(known) + 0.02
    height = TOP + ROW * len(shown) + 26

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    more = f"{len(dots) - len(shown)} more in agreement.json" if len(dots) > len(shown) else ""
    parts = [_text(8, 18, title, "t"), _text(WIDTH - 8, 18, more, "l", "end")]
    for value in (low, (low + high) / 2, high):
        parts += [_line("g", x(value), TOP, x(value), height - 24), _text(x(value), height - 8, _number(value), "l")]
    if mark is not None:
        parts.append(_line("m", x(mark), TOP, x(mark), height - 24))
    for row, dot in enumerate(shown):
        y = TOP + ROW * (row + 0.5)
        parts.append(_text(LEFT - 8, y + 4, dot.name if len(dot.name) <= 22 else dot.name[:21] + "…", "l", "end"))
        if dot.interval:
            parts.append(_line("w", x(dot.interval[0]), y, x(dot.interval[1]), y))
        parts.append(Markup('<circle class="d" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(x(dot.value), y))
        parts.append(_text(WIDTH - RIGHT + 8, y + 4, _number(dot.value), "l"))
    drawing = Markup('<svg role="img" viewBox="0 0 {} {}"><title>{}</title>{}</svg>')
    return drawing.format(WIDTH, height, _visible(title), Markup("").join(parts))


def _dots(groups: Iterable[tuple[str, Mapping[str, Any]]], measure: str) -> list[Dot]:
    found = [(name, group[measure]) for name, group in groups]
    return [Dot(name, entry["value"], entry["interval"]) for name, entry in found if entry["value"] is not None]


def _measures(groups: Mapping[str, Mapping[str, Any]]) -> Markup:
    rows = [[title, *(_cell(group[key]) for group in groups.values())] for key, title in COEFFICIENTS.items()]
    note = Markup(
        '<p class="soft">95 % intervals; n counts what was scored. Agreement is higher where answers are few.</p>'
    )
    return _table(["", *groups], rows) + note


def _annotators(people: Sequence[tuple[str, Mapping[str, Any]]]) -> Markup:
    shares = ("agreement_with_others", "weighted_kappa", "position", "length", "ties", "self_consistency", "gold")
    titles = ["annotator", "votes", "agreement", "weighted kappa", "left", "longer", "ties", "same again", "gold"]
    rows = [
        [
            name,
            str(found["votes"]),
            *(_cell(found[key]) for key in shares),
            _number(found.get("reliability")),
            _number(found["median_seconds"]),
            _speed(found["speed"]),
        ]
        for name, found in people[:MOST_ROWS]
    ]
    table = _table([*titles, "reliability", "seconds", "seconds / others'"], rows)
    left = len(people) - MOST_ROWS
    return table + (Markup("<p>{} more in agreement.json</p>").format(left) if left > 0 else Markup())


def _couples(found: Sequence[Mapping[str, Any]], n_people: int) -> Markup:
    """Kappa of every two annotators who judged something together, the least in agreement first."""
    ordered = sorted(found, key=lambda couple: 2.0 if couple["value"] is None else couple["value"])
    rows = [[*couple["annotators"], _cell(couple), str(couple["comparisons"])] for couple in ordered[:MOST_ROWS]]
    apart = n_people * (n_people - 1) // 2 - len(found)
    notes = ["Over first, second and tie; 1 is the same answer always, 0 what chance would give."]
    notes += [f"{apart} couples judged nothing together."] if apart else []
    notes += [f"{len(found) - MOST_ROWS} more in agreement.json."] if len(found) > MOST_ROWS else []
    table = _table(["annotator", "and", "Cohen's kappa", "comparisons"], rows) if rows else Markup()
    return table + Markup('<p class="soft">{}</p>').format(" ".join(notes))


def _published(report: Mapping[str, Any]) -> Markup:
    rows = []
    for row in report["published"]:
        ours = _cell(report[row["measure"]])
        rows.append(
            [row["campaign"], row["between"], COEFFICIENTS[row["measure"]], row["reached"], ours, row["source"]]
        )
    return _table(["campaign", "between", "measure", "reached", "here", "source"], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    head = Markup("").join(Markup("<th>{}</th>").format(_visible(title)) for title in titles)
    body = [
        Markup("<tr><th>{}</th>{}</tr>\n").format(
            _visible(first), Markup("").join(Markup("<td>{}</td>").format(_visible(cell)) for cell in rest)
        )
        for first, *rest in rows
    ]
    table = Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table></div>')
    return table.format(head, Markup("").join(body))


def _cell(entry: Mapping[str, Any]) -> Markup:
    """A value over its interval and count."""
    if entry["value"] is None:
        return Markup('<span class="soft">not measured</span>')
    low_high = " to ".join(_number(bound) for bound in entry["interval"]) if entry["interval"] else "no interval"
    cell = Markup('{}<span class="soft">{}</span><span class="soft">n {}</span>')
    return cell.format(_number(entry["value"]), low_high, entry["n_scored"])


def _speed(found: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (_number(found["ratio"]), found["outlier"])))


def _sortable(found: Mapping[str, Any]) -> float:
    """Those who agree least come first, those of whom it is not known last."""
    value = found["agreement_with_others"]["value"]
    return 2.0 if value is None else float(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _visible(text: str) -> str:
    """Text whose control, direction and other unseen characters are written out; markup of ours stays as it is."""
    if isinstance(text, Markup):
        return text
    unseen = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in unseen else c for c in text)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Markup:
    shape = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return shape.format(kind, x, y, anchor, _visible(text))
