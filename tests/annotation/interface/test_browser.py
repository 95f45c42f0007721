"""Judgments that two people make in a real browser, on the real server: what they saw and marked is what is pulled.

One works by keys at 1280 x 800 in dark mode, the other by mouse at 1920 x 1080 in light mode. Sides are compared by
the texts that stood on screen, read from the page.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest
from fixtures.browser import Person
from fixtures.browser_campaign import (
    Asked,
    People,
    best,
    first_line,
    judged,
    new_campaign,
    question,
    task_ids,
)
from PIL import Image

from align.core.config import BadInput
from align.core.records import Comparison, Judgment
from annotation.campaign.people import annotators
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.interface.config import Interface, words
from annotation.interface.decode import EDITED
from annotation.label_studio.server import Server
from annotation.label_studio.studio import Studio

EN = words("en")
LONG = "\n\n".join(f"{n}. The harbour wall was built of blocks that were cut on the spot. " * 5 for n in range(1, 40))
CODE = "In short:\n\n```python\nfrom collections import Counter\n```\n\n| way | lines |\n|-|-:|\n| this | 1 |"
HISTORY = [
    {"role": "system", "content": "You are a terse tutor."},
    {"role": "user", "content": "I have a list of words."},
    {"role": "assistant", "tool_calls": [{"function": {"name": "look_up", "arguments": {"word": "list"}}}]},
    {"role": "tool", "name": "look_up", "content": '{"sense": "an ordered collection"}'},
    {"role": "assistant", "content": "What about it?"},
]


PAIRS = [
    Asked("the wall", ["A good long answer.\n\n" + LONG, "A bad answer."]),
    Asked("words", ["A good answer with code.\n\n" + CODE, "A bad answer <b>without</b>."], HISTORY),
    Asked("מילים", ["תשובה טובה.\n\n1. אחת\n2. שתיים", "A bad answer in English."]),
    Asked("knives", ["A good but gruesome answer.", "A bad and gruesome answer."], family="harm"),
    Asked("sums", ["A good sum.", "A bad sum."]),
    Asked("poems", ["A good poem.", "A bad poem."]),
]


class Word(NamedTuple):
    """What a person says on a pair: for the good response from 3 to 1, a tie (0), or one of the other answers."""

    lean: int | None = None
    other: str | None = None  # both_bad, too_disturbing or skip
    rationale: str | None = None
    improved: str | None = None
    rating: int | None = None  # of the good response


SAID: dict[str, tuple[Word, Word]] = {  # by keys, by mouse
    "the wall": (Word(3), Word(1)),
    "words": (Word(0), Word(other="both_bad")),
    "מילים": (Word(other="both_bad"), Word(2, rationale="It has 2 lines:\nשלום <b>&amp; more", rating=4)),
    "knives": (Word(other="too_disturbing"), Word(2)),
    "sums": (Word(other="skip"), Word(0)),
    "poems": (Word(1, improved="A good poem,\nbut longer."), Word(other="skip")),
}
BY_WORDS = {
    -3: EN.left_much_better, -2: EN.left_better, -1: EN.left_slightly_better, 0: EN.tie,
    1: EN.right_slightly_better, 2: EN.right_better, 3: EN.right_much_better,
}  # fmt: skip


def say(person: Person, word: Word, *, by_key: bool) -> dict[str, str]:
    """Mark and send a word; what stood on screen, by letter, when it was sent."""
    seen = person.responses()
    good = next(letter for letter, text in seen.items() if first_line(text).startswith(("A good", "תשובה")))
    if word.lean is not None:
        lean = -word.lean if good == "a" else word.lean
        person.press(str(lean + 4)) if by_key else person.click(BY_WORDS[lean])
    elif word.other != "skip":
        key, name = {"both_bad": ("8", EN.both_bad), "too_disturbing": ("9", EN.too_disturbing)}[str(word.other)]
        person.press(key) if by_key else person.click(name)
    if word.rating:
        person.rate(good, "helpful", word.rating)
    for name, text in (("rationale", word.rationale), ("improved", word.improved)):
        if text:
            person.write(name, text)
    if word.other == "skip":
        person.skip()
    else:
        person.submit(by_key=by_key and not word.improved)  # the key belongs to the field while somebody writes
    return seen


def test_what_two_people_mark_in_a_browser_is_what_is_pulled(studio: Studio, people: People, tmp_path: Path) -> None:
    interface = Interface(rationale=True, improve=True, ratings=("helpful",), flags=("off topic",))
    (tmp_path / "guidelines.md").write_text("# How to judge\n\nLength is no merit.\n")
    campaign = new_campaign(
        tmp_path, PAIRS, interface, votes=2, concealed=["harm"], guidelines=tmp_path / "guidelines.md"
    )
    project = push(campaign, studio).project
    seen: dict[tuple[str, str], dict[str, str]] = {}
    for number, person in enumerate(people):
        person.begin(project)
        for _ in PAIRS:
            if EN.warning in person.text("prompt"):
                person.see("concealed")
                assert set(person.responses().values()) == {EN.warning}
                for box in ("prompt", "a", "b"):
                    person.unfold(box)
            name = question(person)
            person.see(f"pair-{name}")
            seen[name, person.email] = say(person, SAID[name][number], by_key=number == 0)
        assert not person.has_task
    assert len(seen) == 2 * len(PAIRS)
    assert pull(campaign, studio).outcomes == {"judgment": 9, "skipped": 2, "too disturbing": 1}
    found = judged(campaign, studio)
    for name, both in SAID.items():
        for word, person in zip(both, people, strict=True):
            check(word, found.pop((name, person.email), None), seen[name, person.email])
    assert not found


def check(word: Word, made: tuple[Judgment, Comparison] | None, seen: dict[str, str]) -> None:
    """A judgment says what its word said, of the texts that were seen."""
    if word.other in ("skip", "too_disturbing"):
        assert made is None
        return
    assert made is not None
    judgment, comparison = made
    shown = [first_line(comparison.responses[index].text) for index in judgment.shown]
    assert shown == [first_line(text) for text in seen.values()]
    good = next(line for line in shown if line.startswith(("A good", "תשובה")))
    assert best(judgment, comparison) == (good if word.lean else None)
    assert judgment.strength == (word.lean or 0)
    assert judgment.flags == (["both_bad"] if word.other else [])
    assert (judgment.rationale, judgment.improved) == (word.rationale, word.improved)
    if word.improved:
        assert first_line(comparison.responses[judgment.improved_from or 0].text) == good
    rated = {"helpful": [word.rating if first_line(r.text) == good else None for r in comparison.responses]}
    assert judgment.ratings == (rated if word.rating else {})
    assert judgment.seconds and judgment.guideline


def test_edits_drafts_and_a_deletion_after_the_pull(studio: Studio, people: People, tmp_path: Path) -> None:
    asked = [Asked(name, [f"A good {name}.", f"A bad {name}."]) for name in ("edit", "foreign", "deletion", "draft")]
    campaign = new_campaign(tmp_path, asked, Interface())
    project = push(campaign, studio).project
    keys, mouse = people
    keys.begin(project)
    while keys.has_task:
        say(keys, Word(2), by_key=True)
    assert pull(campaign, studio).outcomes == {"judgment": 4}
    before, ids = judged(campaign, studio), task_ids(campaign, studio)
    assert {judgment.version for judgment, _ in before.values()} == {1}

    def turn(person: Person) -> None:
        person.press("7" if first_line(person.text("a")).startswith("A good") else "1")

    keys.open(project, ids["edit"])
    turn(keys)
    keys.see("edit")
    keys.update()
    mouse.open_answer_of(project, ids["foreign"], keys.email)
    turn(mouse)
    mouse.see("foreign-edit")
    mouse.update()
    keys.open(project, ids["draft"])
    with keys.page.expect_response(lambda reply: "drafts" in reply.url and reply.request.method != "GET"):
        turn(keys)
    keys.open(project, ids["deletion"])
    keys.delete()
    keys.see("deleted")

    again = pull(campaign, studio)
    assert (again.outcomes, again.taken_back, again.judgments) == ({"judgment": 2}, 1, 3)
    after = judged(campaign, studio)
    assert {name for name, email in after if email == keys.email} == {"edit", "foreign", "draft"}
    assert after["draft", keys.email] == before["draft", keys.email]
    for name, flags in (("edit", []), ("foreign", [EDITED])):
        judgment, comparison = after[name, keys.email]
        assert (best(judgment, comparison), judgment.strength, judgment.version) == (f"A bad {name}.", 3, 2)
        assert judgment.flags == flags


def test_a_ranking_by_dragging(studio: Studio, people: People, tmp_path: Path) -> None:
    responses = [f"Answer {name}." for name in ("north", "east", "south", "west")]
    campaign = new_campaign(tmp_path, [Asked("ranks", responses)], Interface(kind="ranking", k=4), votes=2)
    project = push(campaign, studio).project
    keys, mouse = people
    keys.begin(project)
    letters = {text: letter for letter, text in keys.responses().items()}
    for name, place in (("south", 1), ("north", 2), ("west", 2), ("east", 4)):
        keys.place(letters[f"Answer {name}."], place)
    keys.see("ranked")
    keys.submit(by_key=True)
    mouse.begin(project)
    mouse.see("ranking")
    mouse.click(EN.too_disturbing)
    mouse.submit(by_key=False)
    assert pull(campaign, studio).outcomes == {"judgment": 1, "too disturbing": 1}
    [(judgment, comparison)] = judged(campaign, studio).values()
    ranked = [{comparison.responses[index].text for index in group} for group in judgment.ranking]
    assert ranked == [{"Answer south."}, {"Answer north.", "Answer west."}, {"Answer east."}]


SINGLE = [
    (Interface(kind="thumbs", improve=True), ("1", "up"), (EN.down, "down")),
    (Interface(kind="labels", labels=("full refusal", "partial", "compliance")), ("3", "compliance"),
     ("full refusal", "full refusal")),
]  # fmt: skip


@pytest.mark.parametrize(("interface", "key", "click"), SINGLE, ids=lambda value: getattr(value, "kind", ""))
def test_a_single_response_gets_its_label(
    studio: Studio,
    people: People,
    tmp_path: Path,
    interface: Interface,
    key: tuple[str, str],
    click: tuple[str, str],
) -> None:
    campaign = new_campaign(tmp_path, [Asked("one", ["Only answer.\n\n" + CODE])], interface, votes=2)
    project = push(campaign, studio).project
    keys, mouse = people
    for person in people:
        person.begin(project)
        person.see(interface.kind)
    keys.press(key[0])
    keys.submit(by_key=True)
    mouse.click(click[0])
    mouse.submit(by_key=False)
    assert pull(campaign, studio).outcomes == {"judgment": 2}
    labels = {email: judgment.label for (_, email), (judgment, _) in judged(campaign, studio).items()}
    assert labels == {keys.email: key[1], mouse.email: click[1]}


IN_SIGHT = """(selector) => [...document.querySelectorAll(selector)].map(e => {
  const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;
  return r.width > 0 && e.contains(document.elementFromPoint(x, y)); })"""


def test_the_worst_task_can_be_read_and_answered_without_scrolling(
    studio: Studio, people: People, tmp_path: Path
) -> None:
    """Everything is too long, and everything is asked."""
    (tmp_path / "guidelines.md").write_text("# How to judge\n\n" + LONG)
    history = [{"role": "system", "content": LONG}, *HISTORY]
    interface = Interface(ratings=("helpful", "correct"), flags=("unsafe",), rationale=True, improve=True)
    campaign = new_campaign(
        tmp_path,
        [Asked(LONG[:3000], ["Good.\n\n" + LONG, "Bad.\n\n" + LONG], history)],
        interface,
        votes=2,
        guidelines=tmp_path / "guidelines.md",
    )
    project = push(campaign, studio).project
    for person in people:
        person.begin(project)
        person.see("worst")
        choices = person.page.evaluate(IN_SIGHT, ".pf-verdict label")
        assert len(choices) == 9 and all(choices)
        boxes = person.page.evaluate(IN_SIGHT, ".pf-box h4, .pf-box h5")
        assert len(boxes) == 5 and all(boxes)
        for name in ("guide", "history", "prompt", "a", "b"):
            frame = person.box(name).locator("iframe").element_handle().content_frame()
            assert frame is not None
            height, visible, width, wide = frame.evaluate(
                "(e => [e.scrollHeight, e.clientHeight, e.clientWidth, e.scrollWidth])(document.scrollingElement)"
            )
            assert height > visible > 40 and wide <= width, name
        area = person.box("b").bounding_box()
        assert area is not None and area["height"] > 200
        text = {"x": area["x"] + 20, "y": area["y"] + 40, "width": area["width"] - 60, "height": 120}
        picture = Image.open(BytesIO(person.page.screenshot(clip=text)))
        shades = sorted(picture.convert("L").tobytes())
        page, ink = shades[len(shades) // 2], shades[-1] if person is people.keys else shades[0]
        assert page < 60 if person is people.keys else page > 240
        assert abs(page - ink) > 140


def test_accounts_are_not_made_by_halves(server: Server, tmp_path: Path) -> None:
    before = len(list(server.folder.iterdir()))
    for names, told in (
        ((), "nobody is named"),
        (("red", "red"), "named twice"),
        (("red", "Anna.Meier"), "does not identify the person"),
        (("red", "admin"), "does not identify the person"),
    ):
        with pytest.raises(BadInput, match=told):
            list(annotators(server.folder, names=names))
    with pytest.raises(BadInput, match="align annotate up"):
        list(annotators(tmp_path, names=("red",)))
    assert not any(email.startswith("red@") for email in Studio(server.url, server.token).users().values())
    assert len(list(server.folder.iterdir())) == before
