"""Check what a run needs before its first step, without weights: model folder, adapter, tokenizer, template.

The same functions as in a run do the refusing, on the meta device, so that ``align check`` fails where a run would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from align.cli.first_rows import Exchange, FirstRows, RecordedResponse
from align.core.config import BadInput, Compute, Template
from align.core.plugins import calling
from align.data.tokens import RenderedPrompt, response_tokens
from align.model.chat import Chat, Unusable
from align.model.layouts import layout_of, small_copy
from align.model.load import context_length, load_tokenizer, refuse_tokens_beyond, stored_quantization
from align.model.sources import Source
from align.model.tuners.tuner import (
    Tuner,
    default_tuner,
    read_adapter,
    refuse_changed_head,
    refuse_other_settings,
)
from align.model.weights import check_weights, config_of, reading, skeleton

QUESTION = {"role": "user", "content": "Hello?"}
REPLY = {"role": "assistant", "content": "Good day."}
SYSTEM = {"role": "system", "content": "Be kind."}


def check_source(source: Source, trained: Iterable[tuple[str, Tuner | None]], compute: Compute) -> int:
    """Match weights, adapters and quantisation of a policy with its architecture; print what is trained and the layout.

    Args:
        trained: the stages that train an adapter on it, and which one.

    Returns:
        How many rows the model's embedding has.

    Raises:
        BadInput: as the run would.
    """
    config = config_of(source.base)
    stored_quantization(source.base, config, compute)
    model = check_weights(source.base, config).model
    sentences: set[str] = set()
    parent = read_adapter(source.adapter).tuner if source.adapter else None
    if source.adapter and parent:
        inherited = parent.attach(skeleton(config), "policy", source.adapter)
        parent.fitting_tensors(inherited, "policy", source.adapter, source.base)
        sentences.add(parent.describe(inherited, "policy") + ", as its parent does")
    for stage, configured in trained:
        tuner = parent or configured or default_tuner()
        with calling(f"tuner {tuner.kind}", tuner):
            tuned = inherited if parent else tuner.attach(skeleton(config), "policy")
            if not parent:
                sentences.add(tuner.describe(tuned, "policy"))
            elif configured and source.adapter:
                refuse_other_settings(configured, parent, tuned, "policy", source.adapter)
        if stage == "sft":
            refuse_changed_head(tuner, tuned, "policy")
    for line in sorted(sentences):
        print(f"adapter: {line}")
    with reading(f"{source.base}: no model can be made of its configuration", "copy it again"):
        verdict = layout_of(small_copy(model, torch.device("cpu")), compute)
    print(f"layout: {verdict.layout} ({verdict.reason})")
    return int(model.get_input_embeddings().weight.shape[0])


def check_text(base: Path, template: Template, rows: int | None, data: Sequence[FirstRows]) -> None:
    """Render a whole exchange and the first rows of the data as the run would.

    Raises:
        BadInput: the template cannot be used, or so few of the rows that the run would end there; the remedy is named.
    """
    tokenizer = load_tokenizer(base)
    chat = Chat(tokenizer, *template)
    if rows is not None:
        refuse_tokens_beyond(base, chat, rows)
    context = context_length_of(base)
    _show(chat, data)
    for part in data:
        problems = [problem for exchange in part.exchanges if (problem := _problem(chat, exchange, context))]
        n, usable = len(part.exchanges), len(part.exchanges) - len(problems)
        most = Counter(problems).most_common(1)[0][0] if problems else ""
        kind = "rows" if part.is_all else "first rows"
        if usable == 0 or (part.is_all and usable < part.min_rows):
            why = f"{most}; {_remedy(tokenizer, template, part, context)}" if problems else "add rows or lower min_rows"
            raise BadInput(
                f"{part.path}: {usable} of {n} {kind} can be used under chat_template {chat.name}"
                + (f", {part.min_rows} are asked for" if usable else "")
                + f": {why}"
            )
        print(f"data: {usable} of {n} {kind} of {part.path} can be used" + (f" ({most})" if problems else ""))


def context_length_of(base: Path) -> int | None:
    """Return the context length of a model folder, from its configuration."""
    return context_length(skeleton(config_of(base)))


def _show(chat: Chat, data: Sequence[FirstRows]) -> None:
    """Print a whole exchange; where there are no data, refuse a template that cannot render it."""
    turns = [message for part in data for exchange in part.exchanges for message in exchange.prompt]
    has_system = any(message["role"] == "system" for message in turns)
    prompt = [SYSTEM, QUESTION] if has_system else [QUESTION]
    stop = chat.tokenizer.convert_ids_to_tokens(chat.stop_id)
    problem = _problem(chat, Exchange(prompt, [RecordedResponse([REPLY])]), None)
    if problem and not data:
        raise BadInput(f"chat_template {chat.name}: {problem}; {_try(chat.tokenizer)}")
    if problem:
        print(f"template: {chat.name}; an exchange cannot be rendered: {problem}")
        return
    opening, whole = chat.render(prompt, ask=True), chat.render([*prompt, REPLY])
    print(
        f"template: {chat.name}; a prompt reads {opening!r}, with its answer it reads {whole!r}, "
        f"an answer ends with {stop!r}"
    )


def _problem(chat: Chat, exchange: Exchange, context: int | None) -> str | None:
    """Return the reason why a run drops an exchange, or None."""
    extra = (exchange.tools, exchange.arguments)
    try:
        prompt = RenderedPrompt(exchange.prompt, chat.prompt_ids(exchange.prompt, *extra), *extra)
        for answer in exchange.answers:
            response_tokens(chat, prompt, answer.messages, answer.ended, answer.tokens, context)
    except Unusable as error:
        return " ".join(str(error).split())[:300]
    return None


def _remedy(tokenizer: Any, template: Template, rows: FirstRows, context: int | None) -> str:
    """Name the built-in templates that can render what this one cannot."""
    working = []
    for name in _built_in(tokenizer):
        if name != template.name:
            chat = Chat(tokenizer, name, {}, template.day)
            if not any(_problem(chat, exchange, context) for exchange in rows.exchanges):
                working.append(name)
    if working:
        return (
            f"set chat_template: {' or '.join(working)} (either renders all of them)"
            if working[1:]
            else (f"set chat_template: {working[0]} (it renders all of them)")
        )
    return "mend the rows, or name a Jinja file as chat_template"


def _try(tokenizer: Any) -> str:
    return f"set chat_template: {' or '.join(_built_in(tokenizer))}"


def _built_in(tokenizer: Any) -> list[str]:
    """Return the built-in templates, ChatML first where its tokens are the tokenizer's own."""
    return ["chatml", "plain"] if "<|im_end|>" in tokenizer.get_vocab() else ["plain", "chatml"]
