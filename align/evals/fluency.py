"""Recognise empty answers and garbage by rules that need no model and no language.

In: an answer's text after its reasoning, and the prompt. Out: yes or no. Garbage is nothing written,
nothing but the prompt's own words, a loop, or characters that no text has. Not here: well-formed text without meaning,
such as tokens drawn at random (``likelihood.improbable`` scores those by the base model).
"""

from __future__ import annotations

import re
import unicodedata
import zlib

QUOTES = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u02b9\u00b4\u0060\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\uff02", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
    }
)
LOOP_WORDS = 8  # a text of fewer words may well say one of them often
LONG_WORDS = 100  # words that are counted: in a longer text even people use most of their words again
LOOP_BYTES = 64  # the same for a text without spaces
ECHO_WORDS = 5  # an answer this long that says only what the prompt says is no answer
UNREADABLE = 0.02  # share of characters that no text has


def normalise(text: str) -> str:
    """Return text as rules read it: NFKC, ASCII quotes and hyphens, lower case, single spaces, nothing invisible."""
    plain = unicodedata.normalize("NFKC", text.translate(QUOTES)).translate(QUOTES)
    seen = "".join(
        " " if c.isspace() else c for c in plain if c.isspace() or unicodedata.category(c) not in ("Cf", "Cc")
    )
    return " ".join(seen.casefold().split())


def is_empty(text: str) -> bool:
    """Return whether a text has no letter and no digit."""
    return not re.search(r"[^\W_]", text)


def is_garbage(text: str, prompt: str = "") -> bool:
    """Return whether a text is nothing that a person would call an answer to ``prompt``."""
    return is_empty(text) or is_loop(text) or is_unreadable(text) or is_echo(text, prompt)


def is_loop(text: str) -> bool:
    """Return whether words, or stretches of text, keep repeating: the text compresses to a quarter or less.

    Of 1,350 completions of three chat models (XSTest) none is one; the longest loops of small models compress to a
    twentieth. Text of people and models that mean something compresses to a third at most.
    """
    words = re.findall(r"\w+", normalise(text))[:LONG_WORDS]
    if len(words) >= LOOP_WORDS and len(set(words)) * 4 <= len(words):
        return True
    data = text.encode("utf-8", "replace")
    return len(data) >= LOOP_BYTES and len(zlib.compress(data, 9)) * 4 <= len(data)


def is_unreadable(text: str) -> bool:
    """Return whether many characters stand for undecodable bytes, are unassigned or private, or control something."""
    strange = [c for c in text if c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs")]
    return sum(c not in "\t\n\r" for c in strange) > UNREADABLE * len(text)


def is_echo(text: str, prompt: str) -> bool:
    """Return whether a text is the prompt, or a part of it, once or several times, and nothing else."""
    answer, question = normalise(text), normalise(prompt)
    if len(answer.split()) < ECHO_WORDS or not question:
        return False
    return answer in question or is_empty(answer.replace(question, " "))
