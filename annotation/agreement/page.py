"""``agreement.html``: the measures of agreement.json, with plots, on one page that needs no network and no script.

In: the report as written to agreement.json. Out: HTML. What was not measured is marked so. Not here: any number that is
not in the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from align.report.page import template, visible
from align.report.plots import Bar, dot_chart

MOST_DOTS, MOST_ROWS = 40, 500  # annotators on a plot, and in the table; the others are in agreement.json
MEASURES = {
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


def page(report: Mapping[str, Any]) -> str:
    """Return the page of one agreement report."""
    people = sorted(
        report["annotators"].items(), key=lambda item: (_least_first(item[1]["agreement_with_others"]), item[0])
    )
    groups = {"all": report}
    groups |= {f"language {name}": group for name, group in report["by_language"].items()}
    groups |= {f"guideline {name[:12]}": group for name, group in report["by_guideline"].items()}
    couples = sorted(report["couples"], key=_least_first)
    return template(Path(__file__).parent / "agreement.html").render(
        title="Agreement of annotators",
        report=report,
        groups=groups,
        people=people,
        couples=couples,
        apart=len(people) * (len(people) - 1) // 2 - len(couples),
        measures=MEASURES,
        most=MOST_ROWS,
        charts=[
            _dots("Krippendorff's alpha, nominal", groups.items(), "alpha", 0.0),
            _dots("Agreement with most others", people, "agreement_with_others"),
            _dots("Share of choices for the response shown first", people, "position", 0.5),
        ],
    )


def _dots(
    title: str, groups: Iterable[tuple[str, Mapping[str, Any]]], measure: str, mark: float | None = None
) -> Markup:
    measured = [(visible(name), group[measure]) for name, group in groups if group[measure]["value"] is not None]
    dots = []
    for name, entry in measured[:MOST_DOTS]:
        shown = name if len(name) <= 22 else name[:21] + "…"
        dots.append(Bar(shown, entry["value"], entry["low"], entry["high"], colour=2))
    more = len(measured) - len(dots)
    return dot_chart(title, dots, mark, f"{more} more in agreement.json" if more else "")


def _least_first(entry: Mapping[str, Any]) -> float:
    """Return a key that puts who agrees least first, and of whom it is not known last."""
    return 2.0 if entry["value"] is None else float(entry["value"])
