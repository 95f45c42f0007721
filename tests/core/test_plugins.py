"""Parts by their kind: shipped, or a class of one's own, each validated by its own schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align.core.plugins import Part, Seam, choose


class Colour(Part):
    """A part of a seam that exists for this test."""


class Grey(Colour):
    """A shipped one."""

    share: float = 0.5


SEAM = Seam("colour", {"grey": f"{__name__}:Grey"})


def test_a_shipped_part_is_chosen_by_name_or_with_settings() -> None:
    assert choose(SEAM, Colour, "grey") == Grey(kind="grey")
    assert choose(SEAM, Colour, {"kind": "grey", "share": 0.25}).model_dump() == {"kind": "grey", "share": 0.25}
    chosen = Grey(kind="grey", share=1.0)
    assert choose(SEAM, Colour, chosen) is chosen


def test_a_class_of_ones_own_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_colours.py").write_text(
        f"from {__name__} import Colour\n\n\nclass Red(Colour):\n    depth: int = 3\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    assert choose(SEAM, Colour, {"kind": "my_colours:Red", "depth": 4}).model_dump()["depth"] == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gray", "'gray' is no kind of colour; did you mean 'grey'?"),
        ("blue", "'blue' is no kind of colour; write one of grey, or module:Class of your own"),
        ({"share": 1}, "names no kind of colour; write kind: one of grey"),
        (7, "7 is no kind of colour; write one of grey"),
        ({"kind": 3}, "3 is no kind of colour; write one of grey"),
        ("great", "'great' is no kind of colour; write one of grey"),
        ({"kind": "grey", "shade": 1}, "colour grey: unknown key 'shade'; did you mean 'share'?"),
        ({"kind": "grey", "share": True}, "colour grey: key 'share': expected a number, not true or false"),
        ("pathlib:Path", "'pathlib:Path' is no colour"),
        ("nowhere_at_all:Red", "'nowhere_at_all:Red': cannot be imported (ModuleNotFoundError"),
        ("pathlib:Red", "has no 'Red'; mend the name"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        choose(SEAM, Colour, given)


def test_a_setting_without_a_type_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_bare_colours.py").write_text(
        f"from {__name__} import Colour\n\n\nclass Red(Colour):\n    depth = 3\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"`depth = 3`.* at my_bare_colours.py:4\); write a setting with its type"):
        choose(SEAM, Colour, "my_bare_colours:Red")
