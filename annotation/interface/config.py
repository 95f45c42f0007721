"""Write what an annotator sees: the interface as configuration, and a comparison as the data of one task.

In: an ``Interface`` and comparisons. Out: the labelling configuration (XML), its hash, and per task a dictionary of
text that is safe to show. Both name responses by their place on screen (``a``, ``b``, ... or ``r0``, ``r1``, ...);
only the caller knows which response of the comparison is at which place. No task holds where a response came from.
Answers are read in ``decode.py``, by the same ``controls``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args
from xml.etree import ElementTree

from pydantic import Field, StringConstraints, field_validator, model_validator

from align.core.config import BadInput, Frozen, build, read_yaml
from align.core.records import Comparison, Response, content_hash
from annotation.aggregation.votes import BOTH_BAD, DOWN, UNKNOWN_SIDES, UP
from annotation.interface.render import (
    RENDERING,
    InterfaceWords,
    chat_html,
    guidelines_html,
    prompt_html,
    response_html,
    scrub,
    visible,
)

Kind = Literal["pairwise", "ranking", "thumbs", "labels"]
Tag = Literal[
    "View", "Style", "Header", "HyperText", "Choices", "Choice", "Rating", "TextArea", "List", "Ranker", "Bucket"
]
TAGS = frozenset(get_args(Tag))
WORDS_FOLDER = Path(__file__).parent / "words"
LETTERS = "abcdef"
TOO_DISTURBING = "too_disturbing"
RESERVED = {BOTH_BAD, TOO_DISTURBING, UNKNOWN_SIDES, UP, DOWN}
MAX_RATING = 5
EXCERPT = 160  # characters of a response on its card in a ranking
N_HOTKEYS = 8  # verdicts have the keys 1 to 8, the skip has 9
STRENGTHS = {
    "-3": "left_much_better",
    "-2": "left_better",
    "-1": "left_slightly_better",
    "0": "tie",
    "1": "right_slightly_better",
    "2": "right_better",
    "3": "right_much_better",
}
STYLE_FILE = Path(__file__).parent / "style.css"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,30}$")]


class Interface(Frozen):
    """What is asked of annotators."""

    kind: Kind = Field(default="pairwise", description="two responses, k to rank, one with a thumb, or one to label")
    ratings: tuple[Name, ...] = Field(default=(), description="names by which each response is rated from 1 to 5")
    rationale: bool = Field(default=False, description="ask for the reason")
    flags: tuple[str, ...] = Field(default=(), max_length=20, description="checkboxes for the whole task")
    improve: bool = Field(default=False, description="ask for an improved response")
    labels: tuple[str, ...] = Field(default=(), max_length=20, description="the answers of kind: labels")
    k: int | None = Field(default=None, ge=3, le=6, description="responses of kind: ranking")
    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")] = Field(
        default="en", description="language of the interface's own words: a file in annotation/interface/words"
    )

    @field_validator("ratings", "flags", "labels")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name in RESERVED or "$" in name or not name.isprintable() or name != name.strip() or not name:
                raise ValueError(f"{name!r} cannot be a name: reserved, empty, or holds '$' or unprintable characters")
        if len(set(names)) < len(names):
            raise ValueError("a name is listed twice; keep one")
        return names

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.kind == "ranking") != (self.k is not None):
            raise ValueError("k (3 to 6) belongs to kind: ranking, and to no other")
        if (self.kind == "labels") != bool(self.labels) or len(self.labels) == 1:
            raise ValueError("labels (at least two) belong to kind: labels, and to no other")
        return self

    @property
    def n_responses(self) -> int:
        """Return how many responses a task shows."""
        return self.k or (2 if self.kind == "pairwise" else 1)


class Control(NamedTuple):
    """A control as results name it: its type, the object it belongs to, and its valid answers, where listed."""

    type: Literal["choices", "rating", "textarea", "ranker"]
    to_name: str
    answers: tuple[str, ...] = ()
    is_multiple: bool = False


def controls(interface: Interface) -> dict[str, Control]:
    """Return every control of an interface by name."""
    by_name = {
        rating_control(name, place): Control("rating", f"response_{LETTERS[place]}")
        for place in range(interface.n_responses)
        for name in interface.ratings
    }
    if interface.kind == "ranking":
        by_name["ranking"] = Control(
            "ranker", "cards", tuple(f"place_{n}" for n in range(1, interface.n_responses + 1))
        )
        by_name["skip"] = Control("choices", "response_a", (TOO_DISTURBING,))
    else:
        by_name["verdict"] = Control("choices", "response_a", (*verdicts(interface), TOO_DISTURBING))
    if interface.flags:
        by_name["flags"] = Control("choices", "response_a", interface.flags, is_multiple=True)
    if interface.rationale:
        by_name["rationale"] = Control("textarea", "response_a")
    if interface.improve:
        by_name["improved"] = Control("textarea", "response_a")
    return by_name


def rating_control(name: str, place: int) -> str:
    """Return the name of the control that rates the response at a place on screen."""
    return f"rating_{name}_{LETTERS[place]}"


def verdicts(interface: Interface) -> tuple[str, ...]:
    """Return the answers to the question that must be answered; none for a ranking, whose answer is the order."""
    if interface.kind == "pairwise":
        return (*STRENGTHS, BOTH_BAD)
    return (UP, DOWN) if interface.kind == "thumbs" else interface.labels


def words(language: str) -> InterfaceWords:
    """Return the interface's words in a language.

    Raises:
        BadInput: there is no file of that language, or it lacks a word or holds an unknown one.
    """
    path = WORDS_FOLDER / f"{language}.yaml"
    known = sorted(file.stem for file in WORDS_FOLDER.glob("*.yaml"))
    if language not in known:
        raise BadInput(f"no words for language '{language}'; there are {', '.join(known)}; add {path}")
    return _read_words(path)


@cache  # every task asks for them
def _read_words(path: Path) -> InterfaceWords:
    return build(InterfaceWords, read_yaml(path), str(path))


def labeling_config(interface: Interface) -> str:
    """Return the labelling configuration: XML of no tags but ``TAGS``, with every word escaped.

    It names the version by which texts are rendered, so that its hash covers everything that people see.
    """
    wording = words(interface.language)
    root = ElementTree.Element("View", className="pf")
    _add(root, "Style").text = _style(interface)
    context = _add(root, "View", className="pf-context")
    for name in ("guidelines", "history", "prompt"):
        box = _add(context, "View", className=f"pf-box pf-{'guide' if name == 'guidelines' else name}")
        _add(box, "Header", value=getattr(wording, name), size="6")
        _hypertext(box, name)
    main = _add(root, "View", className="pf-main")
    grid = _add(main, "View", className="pf-grid")
    for place in range(interface.n_responses):
        _add_response(grid, interface, place, wording)
    if interface.flags:
        row = _add(main, "View", className="pf-row")
        _add(row, "Header", value=wording.flags, size="6")
        _add_choices(row, interface, "flags", wording)
    improve = wording.improve if interface.n_responses > 1 else wording.improve_single
    notes = {"rationale": wording.rationale, "improved": improve}
    if chosen := [name for name in notes if name in controls(interface)]:
        row = _add(main, "View", className="pf-notes")
        for name in chosen:
            _add_note(row, name, notes[name])
    verdict = _add(main, "View", className=f"pf-verdict{' pf-scale' if interface.kind == 'pairwise' else ''}")
    _add(verdict, "Header", value=getattr(wording, f"ask_{interface.kind}"), size="4")
    if interface.kind == "ranking":
        _add_ranking(verdict, interface, wording)
    else:
        _add(verdict, "Header", value=wording.keys, size="5")
        _add_choices(verdict, interface, "verdict", wording)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def config_hash(xml: str) -> str:
    """Return the first 16 hex digits of sha256 over a configuration, without spacing, comments and attribute order.

    Raises:
        BadInput: it is not XML.
    """
    try:
        canonical = ElementTree.canonicalize(xml, strip_text=True)
    except ElementTree.ParseError as error:
        raise BadInput(f"the labelling configuration is not XML ({error})") from None
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def task_data(
    interface: Interface,
    comparison: Comparison,
    shown: Sequence[int],
    guidelines: str,
    concealed: bool,
    *,
    key: str,
) -> dict[str, Any]:
    """Return the data of one task: ``pair_id`` (the caller's ``key``), a page per box, and the cards of a ranking.

    Args:
        shown: canonical response numbers in the order on screen.
        guidelines: Markdown.
        concealed: prompt, history and responses start folded behind the warning; guidelines do not.

    Raises:
        ValueError: the comparison has another number of responses than the interface shows, or ``shown`` is no order.
    """
    n_given, n_shown = len(comparison.responses), interface.n_responses
    if n_given != n_shown or sorted(shown) != list(range(n_shown)):
        raise ValueError(
            f"comparison {comparison.id}: {interface.kind} shows {n_shown} responses, got {n_given} in order {shown}"
        )
    wording = words(interface.language)
    responses = [comparison.responses[index] for index in shown]
    history, prompt = comparison.prompt[:-1], comparison.prompt[-1]
    data: dict[str, Any] = {
        "pair_id": scrub(key),
        "guidelines_html": guidelines_html(guidelines),
        "history_html": chat_html(history, wording, tools=comparison.tools, concealed=concealed),
        "prompt_html": prompt_html(prompt, wording, concealed=concealed),
    }
    for letter, response in zip(LETTERS, responses, strict=False):
        data[f"response_{letter}_html"] = response_html(response.messages, wording, concealed=concealed)
    if interface.kind == "ranking":
        data["cards"] = [_card(place, response, wording, concealed) for place, response in enumerate(responses)]
    return data


def shown_hash(data: Mapping[str, Any]) -> str:
    """Return the hash of what a task's data shows, without its guidelines and the fields that an export adds."""
    pages = {name for name in data if name.endswith("_html") and name != "guidelines_html"}
    return content_hash({name: data[name] for name in (*pages, "cards") if name in data})


def order_on_screen(
    interface: Interface, comparison: Comparison, data: Mapping[str, Any], concealed: bool
) -> list[int] | None:
    """Return the canonical numbers of the responses in the order in which data shows them; None where it is unclear."""
    wording = words(interface.language)
    pages = [response_html(response.messages, wording, concealed=concealed) for response in comparison.responses]
    order = []
    for letter in LETTERS[: len(pages)]:
        fitting = [index for index, page in enumerate(pages) if page == data.get(f"response_{letter}_html")]
        if len(fitting) != 1:
            return None
        order += fitting
    return order if len(set(order)) == len(pages) else None


def _card(place: int, response: Response, wording: InterfaceWords, concealed: bool) -> dict[str, str]:
    """Return a card to drag: the letter of its box and the first words of the response, which the server escapes."""
    text = " ".join(response.text[: 4 * EXCERPT].split())
    excerpt = text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
    body = wording.warning if concealed else excerpt
    return {"id": f"r{place}", "title": _title(place, wording), "body": visible(body)}


def _title(place: int, wording: InterfaceWords) -> str:
    return f"{wording.response} {LETTERS[place].upper()}"


def _style(interface: Interface) -> str:
    """Return the layout: a single response has all the page, a few are side by side, four are two rows of two."""
    columns = {1: 1, 2: 2, 4: 2}.get(interface.n_responses, 3)
    height = 36 if interface.n_responses <= 2 else 26  # of a row at least, in hundredths of the window
    layout = STYLE_FILE.read_text("utf-8").replace("COLUMNS", str(columns)).replace("ROWvh", f"{height}vh")
    return f"/* Texts are rendered by version {RENDERING}. */\n{layout}"


def _add(parent: ElementTree.Element, tag: Tag, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, attributes)


def _hypertext(parent: ElementTree.Element, name: str) -> None:
    _add(parent, "HyperText", name=name, value=f"${name}_html", valueType="text")


def _add_response(grid: ElementTree.Element, interface: Interface, place: int, wording: InterfaceWords) -> None:
    """Add a response in its scrolling box, and its ratings below."""
    column = _add(grid, "View", className="pf-response")
    box = _add(column, "View", className="pf-box")
    letter = LETTERS[place]
    title = _title(place, wording) if interface.n_responses > 1 else wording.response
    _add(box, "Header", value=title, size="5")
    _hypertext(box, f"response_{letter}")
    for name in interface.ratings:
        row = _add(column, "View", className="pf-row")
        _add(row, "Header", value=wording.name(name), size="6")
        control = rating_control(name, place)
        _add(row, "Rating", name=control, toName=f"response_{letter}", maxRating=str(MAX_RATING))


def _add_note(row: ElementTree.Element, name: str, title: str) -> None:
    """Add a text to write, sent as it is: without a button of its own, that people would forget to press."""
    note = _add(row, "View", className="pf-note")
    _add(note, "Header", value=title, size="5")
    attributes = {"rows": "4", "maxSubmissions": "1", "editable": "true", "showSubmitButton": "false"}
    _add(note, "TextArea", name=name, toName="response_a", **attributes)


def _add_choices(parent: ElementTree.Element, interface: Interface, name: str, wording: InterfaceWords) -> None:
    """Add a set of choices; the alias is what is sent back, the value is what is shown."""
    control = controls(interface)[name]
    attributes = {"name": name, "toName": control.to_name, "showInline": "true"}
    attributes["choice"] = "multiple" if control.is_multiple else "single-radio"
    if name == "verdict":
        attributes |= {"required": "true", "requiredMessage": wording.required}
    choices = _add(parent, "Choices", **attributes)
    for number, answer in enumerate(control.answers, 1):
        choice = _add(choices, "Choice", value=_choice_label(answer, wording), alias=answer)
        if answer == TOO_DISTURBING:
            choice.set("hotkey", str(N_HOTKEYS + 1))
        elif name == "verdict" and number <= N_HOTKEYS:
            choice.set("hotkey", str(number))


def _choice_label(answer: str, wording: InterfaceWords) -> str:
    own = {**STRENGTHS, **{name: name for name in (BOTH_BAD, TOO_DISTURBING, UP, DOWN)}}
    return str(getattr(wording, own[answer])) if answer in own else wording.name(answer)


def _add_ranking(parent: ElementTree.Element, interface: Interface, wording: InterfaceWords) -> None:
    """Add cards and places; a place may hold several, and cards begin in none, so that no order is a default."""
    _add(parent, "List", name="cards", value="$cards", title=wording.unranked)
    ranker = _add(parent, "Ranker", name="ranking", toName="cards", collapsible="false")
    for place, title in zip(controls(interface)["ranking"].answers, wording.places, strict=False):
        _add(ranker, "Bucket", name=place, title=title)
    _add_choices(parent, interface, "skip", wording)
