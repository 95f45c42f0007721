"""Render Markdown as HTML for judging: what is meant as Markdown is rendered, and no other character is lost.

In: text, which nobody vouches for. Out: HTML of a fixed set of tags, and whether it shows less than the text holds.
CommonMark and tables, but for these rules of our own:

* Whatever could run or load stays text: HTML, entities, links, images, addresses.
* A backslash stays where it is, and what follows it is text: ``\\(x\\)``, ``a \\\\ b``, ``C:\\new\\*``.
* Math (``$x$``, ``$$x$$``, ``\\(x\\)``, ``\\[x\\]``, ``\\begin{..}``) is text as it was written, line by line.
* Stars and underscores inside of a word or a formula (``2*3*4``, ``f(x)*g(y)*h``, ``__init__``) are text.
* A line of ``===`` or ``---`` makes no heading of the line above it.

Where the parser would be slow, or would still leave out or renumber something, the text is shown as it was written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

MARKDOWN_LIMIT = 50_000  # characters; the parser is slow, in places quadratic, beyond
LONGEST_FORMULA = 4_000  # characters
LEFT_AS_TEXT = ["entity", "link", "image", "autolink", "reference", "lheading"]  # and HTML, by an option
SYNTAX = re.compile(r"[\s!-/:-@\[\]-`{-~]+")  # white space and ASCII punctuation but for the backslash
FORMULAS = {r"\(": r"\)", r"\[": r"\]", "$$": "$$", "$": "$"}  # how one begins and ends
IDENTIFIER = re.compile(r"__\w+__(?!\w)")
ENVIRONMENT = re.compile(r"\\begin\{(\w+\*?)\}")
BEFORE_EMPHASIS, AFTER_EMPHASIS = "([{\"'*_~-:", ")]}\"'*_~-:.,;!?"  # beside white space
IN_WORDS = ("Lu", "Ll", "Lt", "Nd", "Sm")  # letters of scripts with spaces between words, digits, signs of mathematics

NOTE = "color:#666;font-size:12px"
CODE = "background:#f5f5f5;padding:6px 8px;margin:4px 0;white-space:pre-wrap;overflow:auto;max-height:480px"
STYLES = {  # lists leave room on both sides: their items find their own direction, with numbers before them
    "p": "margin:6px 0",
    "h1": "font-size:1.3em;margin:8px 0 4px",
    "h2": "font-size:1.15em;margin:8px 0 4px",
    "h3": "font-size:1em;margin:8px 0 4px",
    "ul": "margin:6px 0;padding:0 28px",
    "ol": "margin:6px 0;padding:0 28px",
    "table": "border-collapse:collapse",
    "th": "border:1px solid #bbb;padding:2px 6px",
    "td": "border:1px solid #bbb;padding:2px 6px",
    "blockquote": "border-left:3px solid #bbb;margin:4px 0;padding-left:8px",
}


class Rendered(NamedTuple):
    """HTML; ``hides``: the text holds characters (or white space) that the HTML does not show."""

    html: str
    hides: bool


def markdown(text: str, *, breaks: bool = True) -> Rendered:
    """Render text as HTML; ``breaks``: each line of it is a line on the page, else only paragraphs are."""
    parser = LINES if breaks else JOINED
    tokens = parser.parse(text) if len(text) <= MARKDOWN_LIMIT else []
    if _substance(text) != sum(map(_token_substance, tokens)) or not _numbers_stand(tokens):
        return Rendered(as_written(text), hides=False)
    hides = _plain_text(tokens) != text.strip() or "  " in text.strip()
    for token in tokens:
        _dress(token)
    return Rendered(str(parser.renderer.render(tokens, parser.options, {})), hides)


def as_written(text: str) -> str:
    """Show text in a monospaced block, every character as it is."""
    return f'<pre dir="auto" style="{CODE}"><code>{escape(text)}</code></pre>'


def code(text: str) -> str:
    """Show code in such a block, from left to right."""
    return f'<pre dir="ltr" style="{CODE}"><code>{escape(text)}</code></pre>'


def _substance(text: str) -> int:
    """Count the characters of a text that are not Markdown's own: they must all be on the page."""
    return len(SYNTAX.sub("", text))


def _token_substance(token: Token) -> int:
    """Count them in a block: in its text, beside its fence, and in the number of a list item."""
    leaves = token.children or [token]
    return _substance(token.info) + sum(_substance(leaf.content) for leaf in leaves)


def _numbers_stand(tokens: Iterable[Token]) -> bool:
    """Return whether every ordered list counts by one from the number of its first item, as it will be shown."""
    due: list[int] = []
    for token in tokens:
        if token.type == "ordered_list_open":
            start = token.attrGet("start")
            due.append(1 if start is None else int(start))
        elif token.type == "ordered_list_close":
            due.pop()
        elif token.type == "bullet_list_open":
            due.append(-1)
        elif token.type == "bullet_list_close":
            due.pop()
        elif token.type == "list_item_open" and due[-1] >= 0:
            if int(token.info) != due[-1]:
                return False
            due[-1] += 1
    return True


def _plain_text(tokens: Sequence[Token]) -> str | None:
    """Return the text of a page that holds nothing but paragraphs; None of any other."""
    if any(token.type not in ("paragraph_open", "inline", "paragraph_close") for token in tokens):
        return None
    leaves = [token.children or [] for token in tokens if token.type == "inline"]
    if any(leaf.type not in ("text", "softbreak") for children in leaves for leaf in children):
        return None
    return "\n\n".join("".join(leaf.content or "\n" for leaf in children) for children in leaves)


def _dress(token: Token) -> None:
    """Give each block its own direction of writing, and tables and quotations their lines."""
    if token.nesting == 1:
        token.attrSet("dir", "auto")
        if token.tag in STYLES:
            token.attrSet("style", ";".join(filter(None, [str(token.attrGet("style") or ""), STYLES[token.tag]])))


def _formula(state: StateInline, silent: bool) -> bool:
    """Keep a formula within a line as it was written."""
    start = state.pos
    mark = next((mark for mark in FORMULAS if state.src.startswith(mark, start)), None)
    if mark is None:
        return False
    inside = start + len(mark)
    end = state.src.find(FORMULAS[mark], inside, min(inside + LONGEST_FORMULA, state.posMax))
    if end <= inside:
        return False
    after = end + len(FORMULAS[mark])
    if mark == "$":  # pandoc's rule, which tells a formula from two prices
        follows = state.src[after : after + 1]
        if state.src[inside].isspace() or state.src[end - 1].isspace() or follows.isdigit():
            return False
    if not silent:
        state.pending += state.src[start:after]
    state.pos = after
    return True


def _backslash(state: StateInline, silent: bool) -> bool:
    """Keep a backslash, and the sign after it as text."""
    if state.src[state.pos] != "\\":
        return False
    follows = state.src[state.pos + 1 : min(state.pos + 2, state.posMax)]
    width = 1 + bool(follows and follows != "\n")
    if not silent:
        state.pending += state.src[state.pos : state.pos + width]
    state.pos += width
    return True


def _emphasis(state: StateInline, silent: bool) -> bool:
    """Take stars and underscores for emphasis only where what is beside them allows it."""
    marker = state.src[state.pos]
    if silent or marker not in "_*":
        return False
    if name := IDENTIFIER.match(state.src, state.pos):
        state.pending += name[0]
        state.pos = name.end()
        return True
    run = state.scanDelims(state.pos, marker == "*")
    before, after = state.src[max(0, state.pos - 1) : state.pos], state.src[state.pos + run.length :][:1]
    may_open = run.can_open and _may_border(before, BEFORE_EMPHASIS)
    may_close = run.can_close and _may_border(after, AFTER_EMPHASIS)
    for _ in range(run.length):
        state.push("text", "", 0).content = marker
        place = len(state.tokens) - 1
        state.delimiters.append(Delimiter(ord(marker), run.length, place, end=-1, open=may_open, close=may_close))
    state.pos += run.length
    return True


def _may_border(sign: str, allowed: str) -> bool:
    """Return whether emphasis may begin after, or end before, a sign; '' is the end of the text."""
    if sign.isascii():
        return not sign or sign.isspace() or sign in allowed
    return unicodedata.category(sign) not in IN_WORDS


def _formula_block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Keep lines as written from one that begins with ``\\[``, ``$$`` or ``\\begin{..}`` to the end of that formula."""
    if state.is_code_block(first):
        return False
    text = state.src[state.bMarks[first] + state.tShift[first] : state.eMarks[first]]
    mark = next((mark for mark in (r"\[", "$$") if text.startswith(mark)), None)
    environment = ENVIRONMENT.match(text)
    if mark is None and environment is None:
        return False
    end = FORMULAS[mark] if mark else rf"\end{{{environment[1]}}}" if environment else ""
    line, rest = first, text[len(mark or "") :]
    while not rest.rstrip().endswith(end):
        line += 1
        if line >= last or line - first > LONGEST_FORMULA or (state.sCount[line] < state.blkIndent and rest):
            return False
        rest = state.src[state.bMarks[line] : state.eMarks[line]]
        if end in rest and not rest.rstrip().endswith(end):
            return False
    if not silent:
        token = state.push("formula_block", "", 0)
        token.content = state.getLines(first, line + 1, state.blkIndent, False)
        token.map = [first, line + 1]
        state.line = line + 1
    return True


def _shown_formula(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    return f'<div dir="ltr" style="white-space:pre-wrap;{STYLES["p"]}">{escape(tokens[index].content)}</div>\n'


def _code_block(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """Render a code block under the words beside its first fence; a language is shown, it sets no class."""
    title = tokens[index].info.strip()
    return (f'<div style="{NOTE}">{escape(title)}</div>' if title else "") + code(tokens[index].content) + "\n"


def _parser(breaks: bool) -> MarkdownIt:
    options = {"html": False, "linkify": False, "breaks": breaks}
    parser = MarkdownIt("commonmark", options).enable("table").disable(LEFT_AS_TEXT)
    parser.inline.ruler.at("escape", _backslash)
    parser.inline.ruler.before("escape", "formula", _formula)
    parser.inline.ruler.at("emphasis", _emphasis)
    inside = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", "formula_block", _formula_block, {"alt": inside})
    parser.add_render_rule("formula_block", _shown_formula)
    parser.add_render_rule("fence", _code_block)
    parser.add_render_rule("code_block", _code_block)
    return parser


LINES, JOINED = _parser(breaks=True), _parser(breaks=False)
