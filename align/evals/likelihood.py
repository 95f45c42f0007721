"""Compute log-likelihoods under a policy: of an item's options, of plain texts, of answers that it wrote.

Options are one tree (the prompt once, every option with its stop token); a text is cut into disjoint windows of the
model's context. What cannot be scored has a reason and is never scored as 0. Not here: metrics (suites).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from align.core.config import NotFinite
from align.evals.generation import Answered, with_system
from align.evals.items import Item
from align.model.chat import Chat, Unusable
from align.model.packing import Tree, pack
from align.model.roles import RoleModel

WINDOW = 2048  # tokens of text predicted at once by a model that states no context


class OptionScores(NamedTuple):
    """Summed log-likelihood of each option with its stop token, in nats; None with the reason."""

    logprobs: list[float] | None
    reason: str | None = None


class TextScore(NamedTuple):
    """Log-likelihood of a text in nats, its tokens and its bytes; None with the reason."""

    logprob: float | None
    n_tokens: int
    n_bytes: int
    reason: str | None = None


@torch.no_grad()
def tree_logprobs(role_model: RoleModel, trees: Sequence[Tree]) -> list[list[float]]:
    """Sum the log-probabilities of every response of every tree, in their order."""
    model = role_model.model
    sums = [[0.0] * len(tree.responses) for tree in trees]
    with model.use(role_model.role):
        for packed in pack(trees, model.compute.max_tokens, model.layout):
            packed = packed.to(model.device)
            values = packed.sums(model.logprobs(packed))
            if not values.isfinite().all():
                raise NotFinite(f"role {role_model.role}: log-probabilities are not finite; its weights cannot be used")
            for (tree, k), value in zip(packed.response_index, values.tolist(), strict=True):
                sums[tree][k] = value
    return sums


def improbable(role_model: RoleModel, answered: Sequence[Answered]) -> list[list[bool]]:
    """Return which answers the bare base finds no likelier than tokens drawn evenly from its vocabulary.

    Tokens drawn evenly cost ln V nats per token or more, whatever the base is (Gibbs' inequality). What people and
    chat models write costs .1 to .9 ln V, random tokens 1.3 to 3 ln V; words in a random order stay below it where
    the base is strong. A folder of whole weights is answered about its own answers.
    """
    trees = [Tree(one.prompt, [answer.ids for answer in one.answers]) for one in answered if one.answers]
    costs = iter(tree_logprobs(RoleModel(role_model.model, None), trees))
    even = math.log(role_model.model.base.config.get_text_config().vocab_size)
    return [
        [-total >= even * len(answer.ids) for total, answer in zip(next(costs), one.answers, strict=True)]
        if one.answers
        else []
        for one in answered
    ]


def score_options(role_model: RoleModel, items: Sequence[Item], system_prompt: str | None = None) -> list[OptionScores]:
    """Score each item's options as complete answers, each with its stop token."""
    trees: list[Tree | str] = [_option_tree(role_model, item, system_prompt) for item in items]
    usable = [tree for tree in trees if isinstance(tree, Tree)]
    scores = iter(tree_logprobs(role_model, usable))
    return [OptionScores(next(scores)) if isinstance(tree, Tree) else OptionScores(None, tree) for tree in trees]


def _option_tree(role_model: RoleModel, item: Item, system_prompt: str | None) -> Tree | str:
    """Return the item as a tree, or the reason why it cannot be one."""
    chat, messages = role_model.model.chat, with_system(item.prompt or [], system_prompt)
    try:
        prompt = chat.prompt_ids(messages, item.tools)
        options = [
            chat.response_ids(messages, [{"role": "assistant", "content": option}], item.tools)
            for option in item.options or []
        ]
    except Unusable as error:
        return str(error)
    longest = len(prompt) + max(map(len, options))
    if role_model.context is not None and longest > role_model.context:
        return f"{longest} tokens do not fit a context of {role_model.context}"
    return Tree(prompt, options)


def score_texts(role_model: RoleModel, texts: Sequence[str]) -> list[TextScore]:
    """Score plain texts: every token is predicted once, from the tokens before it in its window.

    The first window starts after the begin token (without one: the end token); each further window starts
    after the last token of the one before. A window with that token fills the model's context.
    """
    size = (role_model.context or WINDOW) - 1
    encoded = [_plain_ids(role_model.model.chat, text) for text in texts]
    trees: list[Tree] = []
    owners: list[int] = []
    for owner, ids in enumerate(encoded):
        row = [_first_id(role_model.model.chat), *ids]
        for begin in range(1, len(row), size):
            trees.append(Tree([row[begin - 1]], [row[begin : begin + size]]))
            owners.append(owner)
    totals = [0.0] * len(texts)
    for owner, (value,) in zip(owners, tree_logprobs(role_model, trees), strict=True):
        totals[owner] += value
    return [
        TextScore(total, len(ids), len(text.encode())) if ids else TextScore(None, 0, 0, "the text has no tokens")
        for total, ids, text in zip(totals, encoded, texts, strict=True)
    ]


def _plain_ids(chat: Chat, text: str) -> list[int]:
    return list(chat.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def _first_id(chat: Chat) -> int:
    """Return the token before a text: the tokenizer's begin token, else its end token, else the template's stop."""
    known = (chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id)
    return next((int(token) for token in known if token is not None), chat.stop_id)
