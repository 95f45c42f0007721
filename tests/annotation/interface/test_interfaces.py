"""Labelling interfaces: what is shown, the configuration, the data of a task, and results read strictly."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError

from align.core.config import BadInput
from align.core.records import Comparison, Message
from annotation.interface import config
from annotation.interface.config import TAGS, Interface, config_hash, controls, labeling_config, task_data, words
from annotation.interface.decode import ScreenJudgment, decode, judgment_of
from annotation.interface.regions import Undecodable
from annotation.interface.render import chat_html, guidelines_html, response_html, scrub, visible

PAIRWISE = Interface(
    ratings=("helpfulness", "correctness"), rationale=True, flags=("unsafe", "off topic"), improve=True
)
RANKING = Interface(kind="ranking", k=4, flags=("unsafe",), rationale=True, improve=True)
THUMBS = Interface(kind="thumbs", improve=True)
LABELS = Interface(kind="labels", labels=("full refusal", "partial", "compliance"), ratings=("tone",))
EVERY_KIND = pytest.mark.parametrize("interface", [PAIRWISE, RANKING, THUMBS, LABELS], ids=lambda i: i.kind)
EN = words("en")
HTML_TAGS = {
    "div", "details", "summary", "pre", "code", "p", "br", "hr", "em", "strong", "h1", "ul", "ol", "li", "blockquote",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</div></details><style>*{display:none}</style><!-- gone -->",
    '<a href="javascript:alert(1)">x</a>',
    "[click](javascript:alert(1)) ![beacon](http://evil.example/p.png) <http://evil.example>",
    '[x]: http://evil.example "a definition"',
    "&lt;b&gt; &#x202e; &#xd800; &nbsp;",
    "{{braces}} {% raw %} ${other} $other $response_b_html",
    "\u202eevil\u202c \u200f\u061c שלום \u2067مرحبا\u2069",
    "lone \ud800 and \udfff surrogates, NUL \0 too",
    "\"quotes' & ampersands; <",
]
MESSAGES: dict[str, Callable[[str], Message]] = {
    "content": lambda text: {"role": "user", "content": text},
    "tool": lambda text: {"role": "tool", "name": text, "content": text},
    "role": lambda text: {"role": text, "content": "x"},
    "reasoning": lambda text: {"role": "assistant", "content": "x", "reasoning_content": text},
    "call": lambda text: {"role": "assistant", "tool_calls": [{"function": {"name": text, "arguments": text}}]},
    "fence": lambda text: {"role": "assistant", "content": f"```{text}\n{text}\n```\n"},
    "table": lambda text: {"role": "assistant", "content": f"|a|b|\n|-|-|\n|{text}|{text}|\n"},
}


class Page(HTMLParser):
    """A page as a browser takes it apart, which also finds tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self.unclosed: list[str] = []
        self.feed(html)
        self.close()
        assert not self.unclosed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.unclosed.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def inert(html: str) -> Page:
    """The page, after a look at all its tags and attributes."""
    page = Page(html)
    assert set(page.tags) <= HTML_TAGS
    assert set(page.attributes) <= {"style", "dir", "start"}
    assert not any(sign in style for style in page.attributes["style"] for sign in '(@\\"')
    assert page.attributes["dir"] <= {"auto", "ltr"}
    assert all(start.isdigit() for start in page.attributes.get("start", ()))
    assert "<!--" not in html and not re.search("[\0\ud800-\udfff]", html)
    return page


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", MESSAGES)
def test_hostile_text_is_shown_as_text(place: str, text: str) -> None:
    message = MESSAGES[place](text)
    pages = [chat_html([message], EN), chat_html([message], EN, concealed=True), response_html([message], EN)]
    for html in pages[: None if place != "role" else 2]:
        assert visible(text) in inert(html).text
        assert html.startswith("<div ")  # not left out as a page that says nothing
    assert ("<pre" in pages[0]) == (place in ("tool", "call", "fence", "table"))
    assert visible(text).replace("\n", " ") in inert(guidelines_html(text)).text.replace("\n", " ")


def test_scrub_replaces_what_cannot_be_stored_and_nothing_else() -> None:
    assert scrub("a\ud800b\0c\udc00") == "a\ufffdb\ufffdc\ufffd"
    kept = "\u202e {{x}} <b> 🙂 \u200f\n\t"
    assert scrub(kept) == kept


@pytest.mark.parametrize(
    "text",
    [
        "*long* <b>" * 100_000,
        "> " * 60 + "deep",
        "\n".join("  " * depth + f"- item{depth}" for depth in range(60)),
        "|a|b|\n|-|-|\n|1|2|a third cell that the table has no column for|\n",
    ],
    ids=["1 MB", "deep quotation", "deep list", "surplus cell"],
)
def test_nothing_is_left_out_of_what_the_parser_cannot_show(text: str) -> None:
    assert inert(response_html([{"role": "assistant", "content": text}], EN)).text == text


def test_markdown_is_rendered_and_each_block_finds_its_direction() -> None:
    text = "# H\n\n3. i\n4. j\n\n```python\nx = 1\n```\n\n    y\n\n|a|b|\n|:-|-:|\n|c|d|\n\n> *שלום*\nnext\n\nline"
    html = response_html([{"role": "assistant", "content": text}], EN)
    page = inert(html)
    assert {"h1", "ol", "pre", "table", "td", "blockquote", "em", "br"} <= set(page.tags)
    assert page.attributes["start"] == {"3"} and "python" in page.text
    assert "<code>x = 1\n</code>" in html and html.count('<pre dir="ltr"') == 2
    assert re.findall(r'<p dir="auto" style="margin:6px 0">(.+)', html)[-2:] == ["<em>שלום</em><br />", "line</p>"]
    assert html.startswith('<div dir="auto" style="background:#fff;color:#111;')
    assert any(style.startswith("text-align:right;border") for style in page.attributes["style"])


def test_chat_shows_roles_tools_calls_results_and_reasoning() -> None:
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "fen"}}}
    calls = [call, {"function": {"name": "plain", "arguments": '{"as": "sent"}'}}, {"odd": "call"}]
    chat = [
        {"role": "system", "content": "Be short."},
        {"role": "assistant", "reasoning_content": "look first", "tool_calls": calls, "name": "secret-model"},
        {"role": "tool", "name": "look_up", "content": '{"sense": "a *wetland*"}'},
    ]
    html = chat_html(chat, EN, tools=[{"type": "function", "function": {"name": "look_up"}}])
    page = inert(html)
    for phrase in ("System", "Be short.", "Reasoning", "look first", "Tool call: look_up", '"word": "fen"',
                   '{"as": "sent"}', '"odd": "call"', "Tool result: look_up", '{"sense": "a *wetland*"}'):  # fmt: skip
        assert phrase in page.text
    assert page.tags.count("details") == 2 and "min-height" in html  # the tools and the reasoning, folded
    assert "secret-model" not in html
    assert "Tool result" in response_html(chat[1:], EN)  # a response of several messages has bars too


@EVERY_KIND
def test_config_holds_known_tags_the_controls_and_the_fields_of_a_task(interface: Interface) -> None:
    root = ElementTree.fromstring(labeling_config(interface))
    assert {element.tag for element in root.iter()} <= TAGS
    asked = {e.get("name"): e.get("toName") for e in root.iter() if e.get("toName")}
    assert asked == {name: control.to_name for name, control in controls(interface).items()}
    assert set(asked.values()) <= {e.get("name") for e in root.iter() if e.tag in ("HyperText", "List")}
    fields = {value[1:] for e in root.iter() for value in e.attrib.values() if value.startswith("$")}
    assert fields == set(data_of(interface)) - {"pair_id"}
    for name, control in controls(interface).items():
        answers = root.findall(f".//*[@name='{name}']/*")
        assert tuple(e.get("alias") or e.get("name") for e in answers) == control.answers
    keys = {e.get("alias"): e.get("hotkey") for e in root.iter("Choice") if e.get("hotkey") not in (None, "9")}
    assert tuple(keys.items()) == tuple((c, str(n)) for n, c in enumerate(config.verdicts(interface), 1))


def test_words_come_from_the_language_file_and_survive_xml(monkeypatch: pytest.MonkeyPatch) -> None:
    german = ElementTree.fromstring(labeling_config(LABELS.model_copy(update={"language": "de"})))
    shown = {e.get("alias"): e.get("value") for e in german.iter("Choice")}
    assert shown["full refusal"] == "volle Ablehnung" and shown["too_disturbing"] == "Zu verstörend: überspringen"
    hard = '<Choice value="x"/> & "same" \u200f{{y}}'
    monkeypatch.setattr(config, "words", lambda language: EN.model_copy(update={"tie": hard}))
    choices = ElementTree.fromstring(labeling_config(PAIRWISE)).findall(".//Choice")
    assert [e.get("value") for e in choices if e.get("alias") == "0"] == [hard] and len(choices) == 11


def test_broken_language_files_are_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no words for language 'xx'; there are de, en"):
        words("xx")
    whole = (config.WORDS_FOLDER / "en.yaml").read_text()
    monkeypatch.setattr(config, "WORDS_FOLDER", tmp_path)
    (tmp_path / "en.yaml").write_text(whole.replace("tie:", "ties:"))
    with pytest.raises(BadInput, match="'tie' is missing.*unknown key 'ties'"):
        words("en")
    for wrong in ("Pick $one", "' '"):
        (tmp_path / "en.yaml").write_text(whole.replace("Pick one answer", wrong))
        with pytest.raises(BadInput, match="must not be empty or hold"):
            words("en")


@pytest.mark.parametrize("wrong", [
    {"kind": "ranking"}, {"kind": "ranking", "k": 7}, {"kind": "pairwise", "k": 3}, {"kind": "labels"},
    {"kind": "labels", "labels": ["one"]}, {"kind": "thumbs", "labels": ["a", "b"]}, {"flags": ["both_bad"]},
    {"flags": ["sides unknown"]}, {"flags": ["a", "a"]}, {"flags": ["$x"]}, {"flags": [" a"]}, {"flags": [""]},
    {"flags": ["a\0"]}, {"ratings": ["Not a name"]}, {"language": "../en"}, {"rationales": True},
], ids=str)  # fmt: skip
def test_interfaces_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Interface.model_validate(wrong)


def test_config_hash_knows_content_from_layout() -> None:
    xml = labeling_config(PAIRWISE)
    assert config_hash(xml) == config_hash(re.sub(r">\s+<", "><", xml) + "<!-- note -->")
    assert config_hash(xml) != config_hash(xml.replace('alias="3"', 'alias="2"'))
    with pytest.raises(BadInput, match="not XML"):
        config_hash("<View>")


def item(n: int = 2, text: str = "answer", prompt: list[Message] | None = None) -> Comparison:
    answers = [[{"role": "assistant", "content": f"{text} {index}"}] for index in range(n)]
    responses = [{"messages": messages, "origin": f"secret-{index}"} for index, messages in enumerate(answers)]
    asked = prompt or [{"role": "user", "content": "which?"}]
    return Comparison.model_validate({"prompt": asked, "responses": responses})


def data_of(interface: Interface, comparison: Comparison | None = None, concealed: bool = False) -> dict[str, Any]:
    """A task's data, with the responses in reverse order on screen."""
    shown = list(reversed(range(interface.n_responses)))
    return task_data(interface, comparison or item(len(shown)), shown, "# Guide", concealed, key="k1")


@EVERY_KIND
def test_a_task_tells_nothing_of_where_a_response_came_from(interface: Interface) -> None:
    comparison = item(interface.n_responses)
    data = data_of(interface, comparison)
    assert "secret" not in repr(data) and comparison.id not in repr(data) and data["pair_id"] == "k1"
    shown = [Page(data[f"response_{letter}_html"]).text.strip() for letter in "abcdef"[: interface.n_responses]]
    assert shown == [response.text for response in reversed(comparison.responses)]
    cards = [{"id": f"r{n}", "title": f"Response {'ABCD'[n]}", "body": text} for n, text in enumerate(shown)]
    assert data.get("cards", cards) == cards


def test_the_prompt_to_answer_stands_apart_from_its_history() -> None:
    data = data_of(PAIRWISE, item(prompt=[{"role": "system", "content": "rules"}, {"role": "user", "content": "now"}]))
    assert "rules" in data["history_html"] and "now" not in data["history_html"]
    assert "now" in data["prompt_html"] and "rules" not in data["prompt_html"]
    assert EN.no_history in data_of(PAIRWISE)["history_html"]
    assert EN.user not in Page(data_of(PAIRWISE)["prompt_html"]).text  # its box says so
    asked_by_tool = data_of(PAIRWISE, item(prompt=[{"role": "tool", "name": "search", "content": "found"}]))
    assert "Tool result: search" in asked_by_tool["prompt_html"]


@EVERY_KIND
def test_the_layout_fits_the_configuration_and_passes_the_servers_sanitizer(interface: Interface) -> None:
    root = ElementTree.fromstring(labeling_config(interface))
    style = root.findtext("Style")
    assert style and not set(style) & set('<>&"') and "COLUMNS" not in style and "ROWvh" not in style
    named = {name for e in root.iter("View") for name in (e.get("className") or "").split()}
    assert named <= set(re.findall(r"[.](pf[a-z-]*)", style))
    nothing = {"guidelines_html", "history_html"}  # where there is none of either, its box is left out
    data = task_data(interface, item(interface.n_responses), list(range(interface.n_responses)), " \n", True, key="k")
    assert {name for name in data if str(data[name]).startswith("<p")} == nothing
    assert "srcdoc^='\\3c p'" in style  # 3c is the bracket
    assert not any(str(page).startswith("<p") for name, page in data_of(interface).items() if name != "history_html")


def test_concealed_items_start_folded_behind_the_warning() -> None:
    chat = [{"role": "user", "content": "before"}, {"role": "user", "content": "now"}]
    data = data_of(RANKING, item(4, text="awful", prompt=chat), concealed=True)
    for name in set(data) - {"pair_id", "cards", "guidelines_html"}:
        assert re.match(r"<div [^>]*><details><summary [^>]*>Warning", data[name]), name
        assert data[name].endswith("</details></div>")
    assert "awful" not in repr(data["cards"]) and "<details" not in data["guidelines_html"]


@pytest.mark.parametrize(("n", "shown"), [(2, [0]), (2, [0, 0]), (2, [1, 2]), (3, [0, 1, 2]), (3, [0, 1])])
def test_a_task_shows_every_response_once(n: int, shown: list[int]) -> None:
    with pytest.raises(ValueError, match=f"pairwise shows 2 responses, got {n}"):
        task_data(PAIRWISE, item(n), shown, "", False, key="k")


def region(interface: Interface, name: str, given: Any, **other: Any) -> dict[str, Any]:
    """A control's part of a result, as the labelling page sends it."""
    control = controls(interface)[name]
    value = {"text" if control.type == "textarea" else control.type: given}
    sent = {"value": value, "id": "wMyais-MoG", "from_name": name, "to_name": control.to_name, "origin": "manual"}
    return {**sent, "type": control.type, **other}


def said(choice: Any, *more: tuple[str, Any]) -> list[dict[str, Any]]:
    return [region(PAIRWISE, name, value) for name, value in (("verdict", choice), *more)]


def ranked(*places: str, **other: Any) -> list[dict[str, Any]]:
    """A ranking of cards: "02" in a place are the cards r0 and r2."""
    buckets = {f"place_{n}": [f"r{card}" for card in cards] for n, cards in enumerate(places, 1)}
    return [region(RANKING, "ranking", {"_": [], **buckets, **other})]


VERDICTS: list[tuple[Interface, list[dict[str, Any]], dict[str, Any]]] = [
    (PAIRWISE, said(["-3"]), {"ranking": [[0], [1]], "strength": 3}),
    (PAIRWISE, said(["1"]), {"ranking": [[1], [0]], "strength": 1}),
    (PAIRWISE, said(["0"]), {"ranking": [[0, 1]], "strength": 0}),
    (PAIRWISE, said(["both_bad"], ("flags", ["unsafe"])),
     {"ranking": [[0, 1]], "strength": 0, "flags": ["both_bad", "unsafe"]}),
    (PAIRWISE, said(["0"], ("improved", ["x"])), {"ranking": [[0, 1]], "strength": 0, "improved": "x"}),
    (PAIRWISE, said(["both_bad"], ("improved", ["x"])),
     {"ranking": [[0, 1]], "strength": 0, "flags": ["both_bad"], "improved": "x"}),
    (RANKING, ranked("01", "23") + [region(RANKING, "improved", ["x"])],
     {"ranking": [[0, 1], [2, 3]], "improved": "x"}),
    (RANKING, ranked("0", "123") + [region(RANKING, "improved", ["x"])],
     {"ranking": [[0], [1, 2, 3]], "improved": "x", "improved_from": 0}),
    (PAIRWISE, said(["2"], ("rationale", ["B is\nterse \ud800"]), ("improved", ["better"]),
                    ("rating_helpfulness_a", 1), ("rating_helpfulness_b", 5)),
     {"ranking": [[1], [0]], "strength": 2, "rationale": "B is\nterse \ufffd", "improved": "better",
      "improved_from": 1, "ratings": {"helpfulness": [1, 5]}}),
    (PAIRWISE, said(["2"], ("rating_correctness_a", 4), ("improved", [" \n"])),
     {"ranking": [[1], [0]], "strength": 2, "ratings": {"correctness": [4, None]}}),
    (PAIRWISE, said(["too_disturbing"], ("rationale", ["gore"]), ("rating_correctness_a", 4)),
     {"ranking": [], "flags": ["too_disturbing"], "rationale": "gore"}),
    (RANKING, ranked("2", "", "31", "0"), {"ranking": [[2], [1, 3], [0]]}),
    (RANKING, ranked(_=["r0", "r1", "r2", "r3"]) + [region(RANKING, "skip", ["too_disturbing"])],
     {"ranking": [], "flags": ["too_disturbing"]}),
    (THUMBS, [region(THUMBS, "verdict", ["down"]), region(THUMBS, "improved", ["x"])],
     {"ranking": [[0]], "label": "down", "improved": "x", "improved_from": 0}),
    (LABELS, [region(LABELS, "verdict", ["full refusal"])], {"ranking": [[0]], "label": "full refusal"}),
]  # fmt: skip


@pytest.mark.parametrize(("interface", "result", "expected"), VERDICTS, ids=range(len(VERDICTS)))
def test_results_are_read(interface: Interface, result: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    verdict = decode(interface, result)
    assert verdict == ScreenJudgment(**expected)
    assert verdict.is_skipped == (not verdict.ranking)


BOGUS = {"from_name": "banana", "to_name": "response_a", "type": "choices", "value": {"choices": ["1"]}}
STOCK = {"from_name": "comparison", "to_name": "comparison", "type": "pairwise", "value": {"selected": "left"}}
BROKEN: list[tuple[Interface, Any, str]] = [
    (PAIRWISE, [], "the result is empty"), (PAIRWISE, {}, "not a list"), (PAIRWISE, ["1"], "not an object"),
    (PAIRWISE, [{"x": 1}], "unknown control None"), (PAIRWISE, [BOGUS], "unknown control 'banana'"),
    (PAIRWISE, [{**BOGUS, "from_name": ["verdict"]}], "unknown control"), (PAIRWISE, [STOCK], "stock Pairwise"),
    (PAIRWISE, said(["1"]) * 2, "twice"), (PAIRWISE, said(["1"], ("flags", ["a"])), "'flags' has no choice 'a'"),
    (PAIRWISE, [region(PAIRWISE, "verdict", ["1"], type="rating")], "type 'rating', expected 'choices'"),
    (PAIRWISE, [region(PAIRWISE, "verdict", ["1"], to_name="response_b")], "belongs to 'response_b'"),
    (PAIRWISE, [region(PAIRWISE, "verdict", ["1"], value={"choices": ["1"], "text": []})], "expected only 'choices'"),
    (PAIRWISE, [region(PAIRWISE, "verdict", ["1"], value=None)], "has value None"),
    (PAIRWISE, said(["4"]), "no choice '4'"), (PAIRWISE, said(["1", "2"]), "expected one choice"),
    (PAIRWISE, said([]), "0 choices"), (PAIRWISE, said("1"), "list of texts"), (PAIRWISE, said([1]), "list of texts"),
    (PAIRWISE, said(["1"], ("flags", ["unsafe", "unsafe"])), "different choices"),
    (PAIRWISE, said(["1"], ("rationale", ["x"]))[1:], "'verdict' was not answered"),
    (PAIRWISE, said(["1"], ("rationale", ["a", "b"])), "2 texts"),
    (PAIRWISE, said(["1"], ("rationale", "a")), "list of texts"),
    *[(PAIRWISE, said(["1"], ("rating_helpfulness_a", n)), "expected 1 to 5") for n in (0, 6)],
    *[(PAIRWISE, said(["1"], ("rating_helpfulness_a", n)), "whole number") for n in (True, 2.0, "3", None)],
    (THUMBS, [region(PAIRWISE, "rating_helpfulness_a", 3)], "unknown control 'rating_helpfulness_a'"),
    (RANKING, ranked(_=["r0", "r1", "r2", "r3"]), "cards in no place"), (RANKING, ranked("012"), "missing .*'r3'"),
    (RANKING, ranked("0123", _=["r0"]), "cards in no place"), (RANKING, ranked("0123", "0"), "twice .'r0'"),
    (RANKING, ranked("0124"), "unknown card .'r4'"), (RANKING, ranked("0123", best=[]), "unknown place .'best'"),
    (RANKING, ranked("0123", place_2=None), "list of texts"), (RANKING, ranked("012", place_2=[3]), "list of texts"),
    (RANKING, [region(RANKING, "ranking", ["r0"])], "expected places"),
    (RANKING, [region(RANKING, "rationale", ["x"])], "'ranking' was not answered"),
]  # fmt: skip


@pytest.mark.parametrize(("interface", "result", "reason"), BROKEN, ids=[row[2] for row in BROKEN])
def test_broken_results_are_refused_with_their_reason(interface: Interface, result: Any, reason: str) -> None:
    with pytest.raises(Undecodable, match=reason):
        decode(interface, result)


@pytest.mark.parametrize("given", ["one", " two\n"])
def test_a_text_that_repeats_an_answer_after_a_tie_improves_nothing(given: str) -> None:
    responses = [{"messages": [{"role": "assistant", "content": text}]} for text in ("one", "two")]
    item = Comparison.model_validate({"prompt": [{"role": "user", "content": "q"}], "responses": responses})
    about = {"annotator": "ann", "is_edited": False, "seconds": None, "guideline": None, "source": "s"}
    for text, kept in ((given, None), ("three", "three")):
        verdict = decode(PAIRWISE, said(["both_bad"], ("improved", [text])))
        found = judgment_of(verdict, item, [1, 0], **about)
        assert (found.ranking, found.flags, found.improved, found.improved_from) == ([[0, 1]], ["both_bad"], kept, None)


# --- what is Markdown and what is not ------------------------------------------------------------------------

LITERAL = [
    "2*3*4 = 24 and a*b*c", "f(2)*g(3)*4", "(a)*(b)*(c)", "x**2 + y**2 = z**2", r"\(e^{i\pi}\) and \(a_1 * b_1\)",
    r"\(x_{i}^{*} + y_{j}^{*}\)", r"a \\ b \\ c", r"C:\new\*", r"\\server\share\_a_", r"\*not bold\*, \_not italic\_",
    "$x_1*y*z$ and $$a*b*c$$", "__init__ calls __main__", "*args, **kwargs", "/*comment*/ code", "snake_case_name",
    "line\\\nnext", r"\$5 \# \[x\] \{y\}", "слово*ещё*слово", "2×*3*×4",
]  # fmt: skip
MEANT = {
    "**bold**, *it* and ***both***": ["strong", "em", "em", "strong"],
    "**Note:** do *this*, (**that**).": ["strong", "em", "strong"],
    "这是**重要**的": ["strong"],
    "_yes_ and __very much so__": ["em", "strong"],
    "it costs $5 and *really* $6": ["em"],
    "- a\n- b": ["ul", "li", "li"],
    "2. a\n3. b": ["ol", "li", "li"],
}
BLOCKS = [
    "\\[\nx_1 \\\\\n= y *z*\n- 2\n\\]",
    "so:\n$$\na\n= b\n$$\nhence",
    "\\begin{align}\na &= b \\\\\n\n- c_1 *d*\n\\end{align}",
]


def shown(text: str) -> Page:
    return inert(response_html([{"role": "assistant", "content": text}], EN))


@pytest.mark.parametrize("text", LITERAL)
def test_what_is_no_markdown_is_not_eaten(text: str) -> None:
    page = shown(text)
    assert page.text.strip() == text and not {"em", "strong", "details"} & set(page.tags)


@pytest.mark.parametrize("text", MEANT)
def test_what_is_markdown_is_shown_as_it_and_can_be_read_as_it_was_written(text: str) -> None:
    page = shown(text)
    assert [tag for tag in page.tags if tag in ("em", "strong", "ul", "ol", "li")] == MEANT[text]
    assert page.text.startswith(f"{EN.as_written}{text}"), "folded, and before the rendered text"
    assert page.tags[:4] == ["div", "details", "summary", "pre"]


@pytest.mark.parametrize("text", BLOCKS)
def test_a_formula_of_several_lines_stays_as_it_was_written(text: str) -> None:
    page = shown(text)
    formula = re.search(r"(\\\[|\$\$|\\begin).*(\\\]|\$\$|\\end\{align\})", text, re.DOTALL)
    assert formula and formula[0] in page.text.partition(text)[2], "beside what is folded"
    assert not {"em", "strong", "ul", "h1", "hr"} & set(page.tags)


@pytest.mark.parametrize("text", ["3. a\n5. b", "1. a\n1. b", "|a|b|\n|-|-|\n|x \\| y|z|"])
def test_what_would_be_counted_anew_or_lose_a_sign_is_shown_as_it_was_written(text: str) -> None:
    page = shown(text)
    assert page.text == text and page.tags == ["div", "pre", "code"]


def test_a_line_under_a_line_makes_no_heading() -> None:
    assert shown("Title\n===\nmore").text.strip().splitlines() == ["Title", "===", "more"]


@pytest.mark.parametrize(
    "sign", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u200b\ufeff\x1b\U000e0041"
)
def test_what_nobody_would_see_is_written_out(sign: str) -> None:
    name = f"⟨U+{ord(sign):04X}⟩"
    for text in (f"ab{sign}cd", f"`ab{sign}cd`", f"*x* ab{sign}cd"):
        page = shown(text)
        assert f"ab{name}cd" in page.text and sign not in page.text
    assert sign not in inert(guidelines_html(f"ab{sign}cd")).text
    responses = [{"messages": [{"role": "assistant", "content": f"{n}{sign}"}]} for n in range(4)]
    item = Comparison.model_validate({"prompt": [{"role": "user", "content": sign}], "responses": responses})
    assert sign not in str(task_data(RANKING, item, [0, 1, 2, 3], "", False, key="k"))


def test_joiners_of_scripts_and_emoji_stay() -> None:
    text = "می\u200cخواهم 👩\u200d🚀 क्\u200dष"
    assert shown(text).text.strip() == text


def test_guidelines_are_paragraphs_and_messages_are_lines() -> None:
    text = "Prefer the answer that\nhelps more.\n\nAnother paragraph."
    assert inert(guidelines_html(text)).tags == ["div", "p", "p"]
    assert shown(text).tags == ["div", "p", "br", "p"]


@EVERY_KIND
def test_the_page_says_what_a_second_press_of_a_key_does(interface: Interface) -> None:
    xml = labeling_config(interface)
    assert (EN.keys in xml) == (interface.kind != "ranking") and "takes the choice back" in EN.keys


def test_another_rendering_is_another_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_hash(labeling_config(PAIRWISE))
    monkeypatch.setattr(config, "RENDERING", config.RENDERING + 1)
    assert config_hash(labeling_config(PAIRWISE)) != before
