"""What looks like personal data is counted, by form and checksum."""

from __future__ import annotations

import pytest

from align.core.records import Comparison
from annotation.campaign.privacy import count, find


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to a.b+c@mail.example.org today", "e-mail address"),
        ("call +49 30 1234-5678 after six", "telephone number"),
        ("0044 20 7946 0958", "telephone number"),
        ("pay with 4111 1111 1111 1111 please", "card number"),
        ("IBAN GB82 WEST 1234 5698 7654 32.", "bank account"),
        ("the host 192.168.0.254 answers", "IP address"),
    ],
)
def test_a_form_is_found(text: str, kind: str) -> None:
    assert find(text) == {kind}


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3 of 2026-11-21",
        "4111 1111 1111 1112",  # the check digit is wrong
        "GB82 WEST 1234 5698 7654 33",
        "300.1.2.3",
        "12 apples @ 3 each, 1,234,567 in all",
        "sort 5 4 3 2 1",
    ],
)
def test_what_only_looks_alike_is_left_alone(text: str) -> None:
    assert find(text) == set()


def test_comparisons_are_counted_once_and_by_kind() -> None:
    def comparison(prompt: str, *answers: str) -> Comparison:
        responses = [{"messages": [{"role": "assistant", "content": answer}]} for answer in answers]
        return Comparison.model_validate({"prompt": [{"role": "user", "content": prompt}], "responses": responses})

    found = count(
        [
            comparison("who?", "me@example.org or 192.168.0.1", "nobody"),
            comparison("write to you@example.org", "yes", "no"),
            comparison("hello", "hi", "good day"),
        ]
    )
    assert (found["any"], found["e-mail address"], found["IP address"], found["card number"]) == (2, 2, 1, 0)


def test_a_very_long_word_is_read_in_one_go() -> None:
    """The time would be quadratic in its length: for this one, minutes."""
    assert find("a" * 500_000) == set() and find("a" * 500_000 + " ann@host.example") == {"e-mail address"}
