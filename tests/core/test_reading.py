"""Limits of what is read from outside, and secrets that stand in it."""

from __future__ import annotations

import io

import pytest

from align.core.limits import MOST_LEVELS, TooLong, bounded_bytes, bounded_lines, masked, parse_json


def test_data_is_read_down_to_a_depth_that_later_steps_can_bear() -> None:
    assert parse_json("[" * MOST_LEVELS + "]" * MOST_LEVELS)
    for text in ("[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1), '{"a":' * 50_000 + "1" + "}" * 50_000):
        with pytest.raises(ValueError, match="nested deeper than 100 levels"):
            parse_json(text)
    flat = [[]] * 500
    assert parse_json(str(flat)) == flat, "many brackets side by side are not deep"
    assert parse_json('["' + "[" * 500 + '\\"{"]') == ["[" * 500 + '"{'], "brackets inside of a text are not nesting"
    assert parse_json(b"\xff\xfe" + '{"a": 1}'.encode("utf-16-le")) == {"a": 1}


def test_a_file_is_read_up_to_a_row_and_a_size() -> None:
    assert list(bounded_lines(io.BytesIO(b"ab\n\ncd"), 3, 100)) == [b"ab\n", b"\n", b"cd"]
    assert list(bounded_lines(io.StringIO("ab\ncd"), 3, 5)) == ["ab\n", "cd"]
    with pytest.raises(TooLong, match="line 2 is longer than 3 bytes"):
        list(bounded_lines(io.BytesIO(b"ab\nabcd\n"), 3, 100))
    with pytest.raises(TooLong, match="more than 5 bytes .*split it"):
        list(bounded_lines(io.BytesIO(b"ab\n" * 2), 3, 5))
    with open("/dev/zero", "rb") as endless, pytest.raises(TooLong, match="line 1 is longer than 1 MiB"):
        next(bounded_lines(endless, 1 << 20))
    assert bounded_bytes(io.BytesIO(b"12345"), 5) == b"12345"
    with pytest.raises(TooLong, match="more than 4 bytes"):
        bounded_bytes(io.BytesIO(b"12345"), 4)


def test_a_secret_is_taken_out_wherever_it_stands_and_a_placeholder_is_a_word() -> None:
    said = {"key sk-12345": ["it is sk-12345, sk-12345", 5, None], "b": {"c": "sk-1234"}}
    assert masked(said, "sk-12345") == {"key [key]": ["it is [key], [key]", 5, None], "b": {"c": "sk-1234"}}
    assert masked({"Echo": ["SK-12345 or Sk-12345"]}, "sk-12345") == {"Echo": ["[key] or [key]"]}
    assert masked("the list is EMPTY", "EMPTY") == "the list is EMPTY"
    assert masked(said, None) == masked(said, "") == said
