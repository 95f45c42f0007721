"""Conversations to token ids and back.

A prompt is rendered by the chat template with its generation prompt; a response is what the template puts
after it, up to and including one stop token. Prompt and response ids are made once and joined, never made
from their joined text, so a prompt is a prefix of its rows by construction. Text in which a user spells a
special token is text: it is split, never looked up.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError

from align.core.config import BadInput
from align.core.templates import rendered

PLAIN = (
    "{{ bos }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + (message['content'] or '') }}"
    "{% if loop.last %}{{ eos_token }}{% endif %}"
    "{% else %}{{ '\n\nHuman: ' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# strftime_now as the run's own day answers it; transformers' own reads the clock, and takes no function in its place
CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set printed = namespace(text=format) -%}"
    "{%- for code, value in frozen_clock.items() -%}"
    "{%- set printed.text = printed.text | replace(code, value) -%}{%- endfor -%}"
    "{{- printed.text -}}{%- endmacro %}\n"
)
CODES = "aAbBcCdDeFgGhHIjmMpPrRSTuUVwWxXyY"
OWN_VARIABLES = {"messages", "bos", "frozen_clock"}
Messages = Sequence[Mapping[str, Any]]


class Unusable(ValueError):
    """A row that this template or tokenizer cannot express; callers drop it and count the reason."""


class Chat:
    """A tokenizer with the template it is used with.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        template: None for the tokenizer's own, ``plain``, ``chatml``, or a path to a Jinja file.
        arguments: what the template is called with; ``date`` is the day that it prints. A row's own override them.
        day: the ISO day that the template prints where ``arguments`` name none; without it, today.

    Raises:
        BadInput: no template is given and the tokenizer has none, it does not read one of the arguments, or there is
            no token to stop with.
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
        self.name = template or "tokenizer"
        self.template = self._find(template)
        self.arguments = self._settle(arguments or {}, day or datetime.now(UTC).date().isoformat())
        self.stop_id = self._stop()

    def fingerprint(self) -> dict[str, Any]:
        """What a rendering depends on beside its row: the template's sha256, and the arguments it is called with."""
        return {
            "template_sha256": hashlib.sha256(self.template.encode("utf-8", "surrogatepass")).hexdigest(),
            "template_arguments": dict(self.arguments),
        }

    def _settle(self, arguments: Mapping[str, Any], day: str) -> dict[str, Any]:
        """The arguments of a whole run; the day is among them where the template prints one."""
        if wrong := sorted(set(arguments) & self._reserved):
            raise BadInput(f"template_arguments.{wrong[0]}: is not free to set; remove it")
        if unread := sorted(set(arguments) - self._variables - {"date"}):
            raise BadInput(f"template_arguments.{unread[0]}: chat template {self.name} does not read it; remove it")
        settled = {"date": day, **arguments}
        return settled if {"strftime_now", "date"} & self._variables else _without(settled, "date")

    @cached_property
    def _variables(self) -> set[str]:
        """Every name in the template's code."""
        try:
            return {value for _, kind, value in Environment().lex(self.template) if kind == "name"}
        except TemplateError as error:
            raise BadInput(f"chat_template {self.name}: is no Jinja template ({error})") from error

    @cached_property
    def _reserved(self) -> set[str]:
        """Names of arguments that are not the template's to be called with."""
        return {*inspect.signature(self.tokenizer.apply_chat_template).parameters} | OWN_VARIABLES

    def _find(self, template: str | None) -> str:
        if template is None:
            if not self.tokenizer.chat_template:
                raise BadInput("this model has no chat template; set chat_template: plain, chatml or a Jinja file")
            own = self.tokenizer.chat_template
            if isinstance(own, dict) and "default" not in own:
                raise BadInput(
                    f"this model has chat templates {', '.join(sorted(own))} and no default; set chat_template"
                )
            return own if isinstance(own, str) else own["default"]
        if template == "plain":
            return PLAIN
        if template == "chatml":
            return CHATML
        path = Path(template)
        if not path.is_file():
            raise BadInput(f"chat_template: '{template}' is neither plain, chatml nor a readable file")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"chat_template: {path}: cannot be read as UTF-8 text ({error})") from error

    def render(
        self, messages: Messages, tools: Any = None, arguments: Mapping[str, Any] | None = None, ask: bool = False
    ) -> str:
        """The conversation as text; ``ask`` adds the generation prompt.

        Raises:
            Unusable: the template refuses the messages, or the arguments cannot be used.
            BadInput: it does not come to an end, or writes more than a conversation can be.
        """
        if wrong := sorted(set(arguments or {}) & self._reserved):
            raise Unusable(f"its template argument '{wrong[0]}' is not free to set")
        called = {**self.arguments, **(arguments or {})}
        clock = _frozen_clock(str(called["date"])) if "strftime_now" in self._variables else None
        if "date" not in self._variables:
            called = _without(called, "date")

        def render() -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=CLOCK + self.template if clock else self.template,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=ask,
                    bos=self._bos,
                    frozen_clock=clock,
                    **called,
                )
            )

        try:
            return rendered(self.name, render)
        except BadInput:
            raise
        except Exception as error:  # Jinja templates raise what they like: the row is what cannot be used
            raise Unusable(f"the chat template refuses it ({type(error).__name__}: {error})") from error

    def prompt_ids(
        self, messages: Messages, tools: Any = None, arguments: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of the prompt with its generation prompt.

        Raises:
            Unusable: the template refuses the messages, or hides a text that spells a special token.
        """
        text = self.render(messages, tools, arguments, ask=True)
        self._refuse_hidden_specials([*messages, tools, arguments])
        if not self._spells_special(messages):
            return self._encode(text)
        marked, contents = _mark(messages)
        return self._encode_marked(self.render(marked, tools, arguments, ask=True), contents, text)

    def response_ids(
        self, prompt: Messages, response: Messages, tools: Any = None, arguments: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a response given its prompt: what the template writes for it, and one stop token.

        Raises:
            Unusable: the template changes the prompt when the response is there, or refuses the messages.
        """
        self._refuse_hidden_specials([*prompt, *response, tools, arguments])
        asked = self.render(prompt, tools, arguments, ask=True)
        whole = self.render([*prompt, *response], tools, arguments)
        if not whole.startswith(asked):
            raise Unusable("the chat template writes the prompt differently when an answer follows it")
        text = self._without_stop(whole[len(asked) :])
        if self._spells_special(response):
            marked, contents = _mark(response)
            answer = self.render([*prompt, *marked], tools, arguments)[len(asked) :]
            return [*self._encode_marked(self._without_stop(answer), contents, text), self.stop_id]
        if self._spells_special(prompt):
            return [*self._encode(text), self.stop_id]
        prompt_ids, joined = self._encode(asked), self._encode(asked + text)
        if joined[: len(prompt_ids)] == prompt_ids:
            return [*joined[len(prompt_ids) :], self.stop_id]
        return [*self._encode(text), self.stop_id]

    def text(self, ids: Sequence[int]) -> str:
        """A response's ids as text, without special tokens and without the space a template put before it."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return text.removeprefix(" ") if self.template == PLAIN else text

    def stop_ids(self, model: Any = None) -> list[int]:
        """What ends a response while generating: the template's stop token and the model's own ends."""
        ends = {self.stop_id, self.tokenizer.eos_token_id}
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends |= set(configured) if isinstance(configured, list) else {configured}
        return sorted(end for end in ends if end is not None)

    @cached_property
    def identity(self) -> str:
        """16 hex digits of the sha256 of tokenizer and template: token ids mean the same under the same one only."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        backend |= {"padding": None, "truncation": None}  # settings of a call, not of the tokenizer
        parts = [backend, self.template, self._bos, self.tokenizer.eos_token, self.stop_id]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def special_ids(self) -> dict[int, str]:
        """The special tokens' text by id."""
        return {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @property
    def special_strings(self) -> list[str]:
        return list(self.special_ids.values())

    @cached_property
    def _bos(self) -> str:
        """The begin token where this tokenizer puts one by itself, else nothing."""
        bos = self.tokenizer.bos_token
        if bos is None:
            return ""
        return bos if self.tokenizer("a").input_ids[:1] == [self.tokenizer.bos_token_id] else ""

    def _stop(self) -> int:
        marker = "\ue000stop\ue001"
        exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
        try:
            tail = self.render(exchange).rpartition(marker)[2]
        except Unusable as error:
            raise BadInput(f"chat_template {self.name}: {error}") from None
        ids = self._encode(tail.strip()) if tail.strip() else []
        specials = set(self.tokenizer.added_tokens_decoder)
        if ids and ids[0] in specials:
            return ids[0]
        if self.tokenizer.eos_token_id is None:
            raise BadInput(f"chat_template {self.name}: it ends an answer with no token and the tokenizer has no EOS")
        return int(self.tokenizer.eos_token_id)

    def _without_stop(self, text: str) -> str:
        """Cut the template's stop token and whatever it writes after it."""
        head, found, _ = text.rpartition(self.tokenizer.convert_ids_to_tokens(self.stop_id))
        return head if found else text

    def _spells_special(self, messages: Messages) -> bool:
        text = "\0".join(str(message.get("content") or "") for message in messages)
        return any(special in text for special in self.special_strings)

    def _refuse_hidden_specials(self, values: Sequence[Any]) -> None:
        """Outside ``content`` (reasoning, tool calls, tools) a text that spells a special token cannot be marked."""
        hidden = [{k: v for k, v in value.items() if k != "content"} if isinstance(value, Mapping) else value
                  for value in values]  # fmt: skip
        texts = "\0".join(_strings(hidden))
        if found := next((special for special in self.special_strings if special in texts), None):
            raise Unusable(f"it spells the special token {found} in its reasoning, tool calls, tools or arguments")

    def _encode(self, text: str) -> list[int]:
        try:
            ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        except TypeError as error:  # a lone surrogate is no text to the tokenizer
            raise Unusable(f"the tokenizer cannot read it ({error})") from error
        if self.rows is not None and (highest := max(ids, default=0)) >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise BadInput(
                f"chat_template {self.name}: {token!r} has the id {highest}, beyond the model's embedding of "
                f"{self.rows} rows; put the model's own tokenizer there, or resize the embedding"
            )
        return ids

    def _encode_marked(self, rendered: str, contents: list[str], expected: str) -> list[int]:
        """Encode a rendering whose contents were replaced by marks: template parsed, contents as plain text."""
        ids: list[int] = []
        rebuilt = ""
        for index, content in enumerate(contents):
            before, found, rendered = rendered.partition(_marker(index))
            if not found:
                raise Unusable("it spells a special token and the chat template does not show it as it is")
            ids += self._encode(before)
            ids += self.tokenizer(content, add_special_tokens=False, split_special_tokens=True).input_ids
            rebuilt += before + content
        if rebuilt + rendered != expected:
            raise Unusable("it spells a special token and the chat template rewrites it")
        return ids + self._encode(rendered)


def _frozen_clock(day: str) -> dict[str, str]:
    """What each code of strftime gives at the start of an ISO day.

    Raises:
        Unusable: it is no day.
    """
    try:
        moment = datetime.fromisoformat(day)
    except ValueError:
        raise Unusable(f"its template argument 'date' is no day like 2026-11-28: '{day}'") from None
    codes = [*(f"%-{code}" for code in CODES), *(f"%{code}" for code in CODES)]
    return {code: moment.strftime(code) for code in codes} | {"%%": "%"}


def _without(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != name}


def _strings(value: Any) -> list[str]:
    """Every text in a nested value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []


def _marker(index: int) -> str:
    return f"\ue000{index}\ue001"


def _mark(messages: Messages) -> tuple[list[dict[str, Any]], list[str]]:
    marked = [{**message, "content": _marker(index)} for index, message in enumerate(messages)]
    return marked, [str(message.get("content") or "") for message in messages]


def untrained_tokens(chat: Chat, embedding_VD: Any) -> list[str]:
    """Special tokens of the template whose embedding was never trained (zero, or far below the usual norm).

    ``embedding_VD`` is the input embedding matrix. Training moves them, but a frozen base cannot: name them first.
    """
    rendered = chat.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}], ask=True)
    used = {chat.stop_id, *(i for i in chat._encode(rendered) if i in chat.tokenizer.added_tokens_decoder)}
    norm_V = embedding_VD.detach().float().norm(dim=1)
    usual = float(norm_V.median())
    return [str(chat.tokenizer.convert_ids_to_tokens(i)) for i in sorted(used) if float(norm_V[i]) < 0.2 * usual]
