"""Render pages that need no network and no script: one shell with one style, and text made visible.

In: a template that fills the block ``content`` of ``page.html``. Out: the template, which escapes every expression
and writes control, direction and other unseen characters out.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from align.core.stats.estimates import Estimate, format_number
from align.report import tables

JOINERS = "\u200c\u200d"  # needed to write Persian, Hindi and emoji
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters that nobody would see


def template(path: Path) -> Template:
    """Load a page's template, which extends ``page.html``."""
    environment = Environment(
        loader=FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"number": format_number, "estimate": tables.estimate, "arrow": tables.arrow}
    environment.filters["read_estimate"] = Estimate.model_validate
    environment.filters |= {"name": lambda path: Path(str(path)).name, "short": lambda text: str(text or "–")[:12]}
    return environment.get_template(path.name)


def visible(text: str) -> str:
    """Write out control, direction and other unseen characters of a text, as in ``⟨U+202E⟩``."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if _is_unseen(c) else c for c in text)


def _is_unseen(character: str) -> bool:
    return character not in "\n\t" + JOINERS and unicodedata.category(character) in UNSEEN


def _shown(value: Any) -> Any:
    """Write the value of an expression of a page, before it is escaped; markup of this package is shown as it is."""
    if value is None:
        return "–"
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
