"""Convert conversations to token ids and back.

A prompt is rendered by the chat template with its generation prompt; a response is the text that the template writes
after it, up to and including one stop token. Prompt and response are encoded separately and their ids joined, so a
prompt is always a prefix of its rows. A special token that a user spells in a text is encoded as ordinary text. A row
is unusable if the template would leave a part of it out, except reasoning of earlier turns, which templates leave out
at inference too: this is only remarked on.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

from align.core.config import BadInput
from align.core.messages import REASONING, NoMessage, read_message
from align.model.chat_template import PLAIN, Arguments, ChatTemplate, Messages, Unusable
from align.model.omissions import THOUGHT, omissions
from align.model.turns import CannotTell, own_turns

MARK = re.compile("\ue000(\\d+)\ue001")  # in place of a content that spells a special token
PROBE = "zq0probe0qz"
SPACE = "\u2581"  # how SentencePiece writes a space


class Continuation(NamedTuple):
    """A response as token ids, with its stop token last; ``own`` is True for each token that the policy writes."""

    ids: list[int]
    own: list[bool]


class _Calls(NamedTuple):
    """How a template writes tool calls: the token that ends such a turn, and whether it takes arguments as text."""

    stop_id: int
    as_text: bool


class Chat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        template: None for the tokenizer's own, ``plain``, ``chatml``, or a path to a Jinja file.
        arguments: arguments of the template; ``date`` is the day that it prints. Arguments of a row override them.
        day: the ISO day that the template prints where ``arguments`` has no ``date``; default: today.

    Raises:
        BadInput: no template is given and the tokenizer has none, the template does not read one of the arguments, or
            there is no stop token.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        day: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.rows: int | None = None  # of the model's embedding, where one is known
        self._template = ChatTemplate(tokenizer, template, arguments, day)
        self.name, self.template, self.arguments = self._template.name, self._template.text, self._template.arguments
        self.stop_id = self._stop()
        self.remark: Callable[[str], None] = lambda reason: None  # called with each thing that is left out on purpose
        self._remarked: set[tuple[str, int]] = set()

    def fingerprint(self) -> dict[str, Any]:
        """Return what a rendering depends on besides its row: the template's sha256 and its arguments."""
        return self._template.fingerprint()

    def render(self, messages: Messages, tools: Any = None, arguments: Arguments = None, ask: bool = False) -> str:
        """Render the conversation as text; ``ask`` adds the generation prompt.

        Raises:
            Unusable: the template refuses the messages, or they or the arguments cannot be used.
        """
        return self._template.apply([self._written(message) for message in _read(messages)], tools, arguments, ask)

    def prompt_ids(self, messages: Messages, tools: Any = None, arguments: Arguments = None) -> list[int]:
        """Return the token ids of the prompt with its generation prompt.

        Raises:
            Unusable: the messages end with the assistant's turn, the template refuses them or leaves something out, or
                a text outside their content spells a special token.
        """
        messages = _read(messages)
        if messages and messages[-1]["role"] == "assistant":
            raise Unusable("the prompt ends with a turn of the assistant, and an answer never continues one")
        render = partial(self.render, tools=tools, arguments=arguments, ask=True)
        text = render(messages)
        self._refuse_hidden_specials([*messages, tools, arguments])
        if tools and text == self.render(messages, None, arguments, ask=True):
            raise Unusable("the chat template does not write tools")
        for name in sorted(set(arguments or {}) - self._template.variables - {"date"}):
            self._remark(f"template argument '{name}', which the chat template does not read, has no effect", text)
        for omission in omissions(render, messages, range(len(messages)), text):
            if not omission.is_reasoning or not self._knows_reasoning:
                raise Unusable(str(omission))
            self._remark("reasoning of earlier turns is left out by the chat template, as it is in use", text)
        marked, contents = self._mark(messages)
        ids = self._encode_marked(render(marked), contents, text) if contents else self._encode(text)
        self._refuse_unknown(messages, ids)
        return ids

    def response_ids(
        self, prompt: Messages, response: Messages, tools: Any = None, arguments: Arguments = None
    ) -> list[int]:
        """Return the token ids of :meth:`response`."""
        return self.response(prompt, response, tools, arguments).ids

    def response(
        self, prompt: Messages, response: Messages, tools: Any = None, arguments: Arguments = None
    ) -> Continuation:
        """Return the token ids of a response after its prompt: what the template writes for it, and one stop token.

        Raises:
            Unusable: the template renders the prompt differently before a response, refuses the messages, leaves
                something out of the response, or does not show which of its turns are the assistant's own.
        """
        prompt, response = _read(prompt), _read(response)
        self._refuse_hidden_specials([*prompt, *response, tools, arguments])
        render = partial(self.render, tools=tools, arguments=arguments)
        prompt_text, whole = render(prompt, ask=True), render([*prompt, *response])
        if not whole.startswith(prompt_text):
            raise Unusable("the chat template writes the prompt differently when an answer follows it")
        if self._knows_reasoning and any(_never_closes(message) for message in response):
            raise Unusable("it opens reasoning and never closes it, which the chat template takes for content")
        places = range(len(prompt), len(prompt) + len(response))
        for omission in omissions(render, [*prompt, *response], places, whole):
            raise Unusable(str(omission))
        stop = self._calls.stop_id if response[-1].get("tool_calls") and self._calls else self.stop_id
        marked, contents = self._mark(response)
        shown = self._without_stop(render([*prompt, *marked]) if contents else whole, stop)
        start = len(prompt_text)
        try:
            is_one_turn = len(response) == 1
            spans = [(start, None)] if is_one_turn else own_turns(render, prompt, marked, shown, self._ends)
        except CannotTell as reason:
            raise Unusable(str(reason)) from None
        segments = [(shown[slice(*span)], is_own) for span, is_own in _with_gaps(spans)]
        if contents:
            self._check_marks(shown[start:], contents, self._without_stop(whole, stop)[start:])
            encoded = [(self._encode_pieces(text, contents), is_own) for text, is_own in segments]
        elif self._spells_special(prompt):
            encoded = [(self._encode(text), is_own) for text, is_own in segments]
        else:
            encoded = self._encode_after(prompt_text, segments)
        ids = [i for part, _ in encoded for i in part]
        self._refuse_unknown(response, ids)
        return Continuation([*ids, stop], [*(own for part, own in encoded for _ in part), True])

    def text(self, ids: Sequence[int]) -> str:
        """Decode the ids of a response, without special tokens and the space that the template writes before it."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return text.removeprefix(" ") if self.template == PLAIN else text

    def stop_ids(self, model: Any = None) -> list[int]:
        """Return the tokens that end a response: the template's stop tokens and the model's own end tokens."""
        ends = {self.stop_id, self.tokenizer.eos_token_id, self._calls.stop_id if self._calls else None}
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends |= set(configured) if isinstance(configured, list) else {configured}
        return sorted(end for end in ends if end is not None)

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 of the tokenizer's behaviour, without padding and truncation, which depend on the caller."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    @cached_property
    def identity(self) -> str:
        """16 hex digits of the sha256 of tokenizer and template: token ids are valid under the same identity only."""
        parts = [self.tokenizer_hash, self.template, self._template.bos, self.tokenizer.eos_token, self.stop_id]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @cached_property
    def special_ids(self) -> dict[int, str]:
        """The text of each special token, by id."""
        return {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @property
    def special_strings(self) -> list[str]:
        return list(self.special_ids.values())

    def _stop(self) -> int:
        marker = "\ue000stop\ue001"
        exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
        try:
            _, shown, tail = self.render(exchange).rpartition(marker)
            self._refuse_header_without_prompt(exchange[:1], self.render(exchange), marker)
        except Unusable as error:
            raise BadInput(f"chat_template {self.name}: {error}; mend it, or name another in chat_template") from None
        if not shown:
            raise BadInput(f"chat_template {self.name}: it does not show what the assistant says; name another one")
        ids = self._encode(tail.strip()) if tail.strip() else []
        specials = set(self.tokenizer.added_tokens_decoder)
        if ids and ids[0] in specials:
            return ids[0]
        if self.tokenizer.eos_token_id is None:
            raise BadInput(f"chat_template {self.name}: it ends an answer with no token and the tokenizer has no EOS")
        return int(self.tokenizer.eos_token_id)

    def _refuse_header_without_prompt(self, prompt: Messages, exchange: str, answer: str) -> None:
        """Refuse a template that writes a header before an answer, but not as its generation prompt.

        A policy would have to generate the header, and its answers would begin with it.

        Raises:
            BadInput: names the header.
        """
        prompt_text = self.render(prompt, ask=True)
        header = exchange[len(prompt_text) : exchange.find(answer)].strip()
        if header and exchange.startswith(prompt_text) and prompt_text == self.render(prompt):
            raise BadInput(
                f"chat_template {self.name}: it writes {header!r} before an answer and nothing where it asks for one; "
                "make it write that where add_generation_prompt is true, or name another template"
            )

    @cached_property
    def _calls(self) -> _Calls | None:
        """How the template writes tool calls; None if it does not write them."""
        for as_text in (False, True):
            arguments: Any = {"probe": PROBE}
            function = {"name": "probe", "arguments": json.dumps(arguments) if as_text else arguments}
            call = {"id": "call00000", "type": "function", "function": function}
            turn = {"role": "assistant", "content": "", "tool_calls": [call]}
            exchange: list[dict[str, Any]] = [{"role": "user", "content": "a"}, turn]
            try:
                _, shown, tail = self._template.apply(exchange).rpartition(PROBE)
            except Unusable:
                continue
            if shown:
                return _Calls(self._call_stop(tail), as_text)
        return None

    def _call_stop(self, tail: str) -> int:
        """Return the token that ends a turn of tool calls: the usual stop token, or the turn's last special token."""
        specials = [i for i in self._encode(tail) if i in self.tokenizer.added_tokens_decoder]
        return self.stop_id if self.stop_id in specials or not specials else specials[-1]

    @property
    def _ends(self) -> list[str]:
        """The texts of the tokens that end a turn, sorted by id."""
        ends = {self.stop_id, self._calls.stop_id if self._calls else self.stop_id}
        return [str(self.tokenizer.convert_ids_to_tokens(end)) for end in sorted(ends)]

    @cached_property
    def _knows_reasoning(self) -> bool:
        """Whether the template writes reasoning anywhere, or takes it out of contents."""
        answer = {"role": "assistant", "content": "a", "reasoning_content": PROBE}
        try:
            return THOUGHT in self.template or PROBE in self.render([{"role": "user", "content": "a"}, answer])
        except Unusable:
            return False

    def _written(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message in this template's form: reasoning under every name, arguments as text or object."""
        written = dict(message)
        if "reasoning_content" in message:
            written |= dict.fromkeys(REASONING, message["reasoning_content"])
        if message.get("tool_calls"):
            written.setdefault("content", "")  # some templates join it to the calls, and transformers drops None
            if self._calls and self._calls.as_text:
                written["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
        return written

    def _remark(self, reason: str, text: str) -> None:
        """Remark on each text once, however often it is rendered."""
        if (key := (reason, hash(text))) not in self._remarked:
            self._remarked.add(key)
            self.remark(reason)

    def _without_stop(self, text: str, stop: int) -> str:
        """Cut off the template's stop token and everything after it."""
        head, separator, _ = text.rpartition(self.tokenizer.convert_ids_to_tokens(stop))
        return head if separator else text

    def _spells_special(self, messages: Messages) -> bool:
        text = "\0".join(str(message.get("content") or "") for message in messages)
        return any(special in text for special in self.special_strings)

    def _mark(self, messages: Messages) -> tuple[list[Mapping[str, Any]], list[str]]:
        """Return the messages with a mark in place of each content that spells a special token, and these contents."""
        contents: list[str] = []
        marked: list[Mapping[str, Any]] = []
        for message in messages:
            if self._spells_special([message]):
                marked.append({**message, "content": f"\ue000{len(contents)}\ue001"})
                contents.append(str(message["content"]))
            else:
                marked.append(message)
        return marked, contents

    def _refuse_hidden_specials(self, values: Sequence[Any]) -> None:
        """Refuse special tokens spelled outside ``content`` (reasoning, tool calls, tools), which cannot be marked."""
        hidden = [{k: v for k, v in value.items() if k != "content"} if isinstance(value, Mapping) else value
                  for value in values]  # fmt: skip
        texts = "\0".join(_strings(hidden))
        if spelled := next((special for special in self.special_strings if special in texts), None):
            raise Unusable(f"it spells the special token {spelled} in its reasoning, tool calls, tools or arguments")

    def _refuse_unknown(self, messages: Messages, ids: Sequence[int]) -> None:
        """Refuse messages that the tokenizer, if it has no byte fallback, encodes with its unknown token.

        Changes by its normaliser (case, Unicode form, spaces) are only remarked on; the model may be trained with them.
        """
        if (normalizer := self.tokenizer.backend_tokenizer.normalizer) is not None:
            for text in (str(message.get("content") or "") for message in messages):
                read = normalizer.normalize_str(text).replace(SPACE, " ")
                if _composed(read) != _composed(text):
                    reason = "the tokenizer's normaliser reads a text in other characters than it is written in"
                    self._remark(reason, text)
        unknown = self.tokenizer.unk_token_id
        if unknown not in ids or unknown in self.stop_ids():
            return
        for message in messages:
            content = str(message.get("content") or "")
            if unknown in self.tokenizer(content, add_special_tokens=False, split_special_tokens=True).input_ids:
                raise Unusable(f"the tokenizer has no token for a character of it, only {self.tokenizer.unk_token}")

    def _encode(self, text: str) -> list[int]:
        try:
            ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        except TypeError as error:  # the tokenizer takes no lone surrogates
            raise Unusable(f"the tokenizer cannot read it ({error})") from error
        self.refuse_beyond(ids)
        return ids

    def _encode_after(self, before: str, segments: Sequence[tuple[str, bool]]) -> list[tuple[list[int], bool]]:
        """Encode each segment after the text before it, or alone where that would change the ids before it."""
        encoded = []
        before_ids = self._encode(before)
        for text, is_own in segments:
            joined = self._encode(before + text)
            is_prefix = joined[: len(before_ids)] == before_ids
            ids = joined[len(before_ids) :] if is_prefix else self._encode(text)
            encoded.append((ids, is_own))
            before, before_ids = before + text, before_ids + ids
        return encoded

    def refuse_beyond(self, ids: Sequence[int]) -> None:
        """Refuse token ids that have no row in the model's embedding.

        Raises:
            BadInput: names the first of them.
        """
        strange = next((i for i in ids if i < 0 or (self.rows is not None and i >= self.rows)), None)
        if strange is not None:
            token = self.tokenizer.convert_ids_to_tokens(strange) if 0 <= strange < len(self.tokenizer) else None
            who = f"chat_template {self.name}: {token!r} has" if token else "a row holds"
            raise BadInput(
                f"{who} the id {strange}, beyond the model's embedding of {self.rows} rows; put the model's own "
                "tokenizer there, or resize the embedding"
            )

    def _encode_marked(self, rendered: str, contents: Sequence[str], expected: str) -> list[int]:
        """Encode a rendering with marks: the template's text with special tokens, the marked contents as plain text."""
        self._check_marks(rendered, contents, expected)
        return self._encode_pieces(rendered, contents)

    def _encode_pieces(self, rendered: str, contents: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for number, piece in enumerate(MARK.split(rendered)):
            if number % 2:
                content = contents[int(piece)]
                ids += self.tokenizer(content, add_special_tokens=False, split_special_tokens=True).input_ids
            else:
                ids += self._encode(piece)
        return ids

    @staticmethod
    def _check_marks(rendered: str, contents: Sequence[str], expected: str) -> None:
        """Check that each mark is in the rendering once, in order, and that the contents give ``expected``."""
        if [int(number) for number in MARK.findall(rendered)] != list(range(len(contents))):
            raise Unusable("it spells a special token and the chat template does not show it as it is")
        if MARK.sub(lambda mark: contents[int(mark[1])], rendered) != expected:
            raise Unusable("it spells a special token and the chat template rewrites it")


def _read(messages: Messages) -> list[dict[str, Any]]:
    """Return the messages in the common form, whatever version or program wrote them."""
    try:
        return [read_message(message, "messages") for message in messages]
    except NoMessage as reason:
        raise Unusable(str(reason)) from None


def _never_closes(message: Mapping[str, Any]) -> bool:
    content = str(message.get("content") or "")
    return content.lstrip().startswith("<think>") and THOUGHT not in content


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _with_gaps(spans: Sequence[tuple[int, int | None]]) -> list[tuple[tuple[int, int | None], bool]]:
    """Return the spans as the policy's own, and the gaps between them as not its own."""
    parts: list[tuple[tuple[int, int | None], bool]] = [(spans[0], True)]
    for before, span in zip(spans, spans[1:], strict=False):
        parts += [((before[1] or 0, span[0]), False), (span, True)]
    return parts


def _composed(text: str) -> str:
    """Strip white space and compose each letter with its marks (NFC), which does not change the meaning."""
    return unicodedata.normalize("NFC", text).strip()


def _strings(value: Any) -> list[str]:
    """Every text in a nested value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []


def untrained_tokens(chat: Chat, embedding_VD: Any) -> list[str]:
    """Special tokens of the template whose embedding was never trained (zero, or far below the usual norm).

    ``embedding_VD`` is the input embedding matrix. A frozen base never trains them, so the caller should name them.
    """
    rendered = chat.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}], ask=True)
    used = {chat.stop_id, *(i for i in chat._encode(rendered) if i in chat.tokenizer.added_tokens_decoder)}
    norm_V = embedding_VD.detach().float().norm(dim=1)
    usual = float(norm_V.median())
    return [str(chat.tokenizer.convert_ids_to_tokens(i)) for i in sorted(used) if float(norm_V[i]) < 0.2 * usual]
