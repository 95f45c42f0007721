"""Count the comparisons that seem to hold personal data before people see them; nothing is changed.

Patterns see form only: an address, a telephone or card number, an account number with a valid checksum. They miss
names and places and flag some that are made up, so a count is a reason to read the texts, not a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from align.core.records import Comparison


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _luhn(text: str) -> bool:
    """Check the check digit of payment cards (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in _digits(text)][::-1]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[1::2]]
    return 13 <= len(digits) <= 19 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    """Check the check digits of an international bank account number (ISO 13616): 1 modulo 97."""
    compact = re.sub(r"\s", "", text).upper()
    moved = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def _telephone(text: str) -> bool:
    return 9 <= len(_digits(text)) <= 15


def _address(text: str) -> bool:
    return all(int(part) < 256 for part in text.split("."))


PATTERNS: Mapping[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "e-mail address": (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"), lambda text: True),
    "telephone number": (re.compile(r"(?<![\w.])(?:\+|00)\d[\d ()/.-]{7,18}\d(?!\w)"), _telephone),
    "card number": (re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)"), _luhn),
    "bank account": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}\b"), _iban),
    "IP address": (re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"), _address),
}


def find(text: str) -> set[str]:
    """Return the kinds of personal data that a text seems to hold."""
    return {
        kind
        for kind, (pattern, holds) in PATTERNS.items()
        if any(holds(match.group()) for match in pattern.finditer(text))
    }


def count(comparisons: Iterable[Comparison]) -> dict[str, int]:
    """Count the comparisons that seem to hold each kind of personal data; ``any`` counts each of them once."""
    counts = dict.fromkeys([*PATTERNS, "any"], 0)
    for comparison in comparisons:
        messages = [*comparison.prompt, *(message for r in comparison.responses for message in r.messages)]
        shown = (message.get(name) for message in messages for name in ("content", "reasoning_content"))
        kinds = find("\n".join(str(text) for text in shown if text))
        for kind in [*kinds, *(["any"] if kinds else [])]:
            counts[kind] += 1
    return counts
