"""How a policy answers items in text: every prompt is answered one or more times, and best-of-n keeps the best.

Generation goes through :func:`align.generate.local.sample_responses`. An item that cannot be answered has a reason and
is never scored as 0. Not here: what an answer is worth (judges, suites).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from tqdm import tqdm

from align.core.reasoning import visible_text
from align.core.records import Message
from align.data.tokens import Prompt, response_tokens
from align.evals.items import Item
from align.evals.targets import RoleModel
from align.generate.local import Sample, sample_responses
from align.model.chat import Chat, Unusable
from align.model.packing import Tree
from align.model.parsing import parse_response
from rewards.model import score

PIECE = 768  # responses between two moves of the progress bar

Policy = Literal["greedy", "sample", "prompt-only", "best-of-n"]


class SamplingConfig(NamedTuple):
    """How the policy acts. ``samples`` answers an item; best-of-n draws n for each of them."""

    policy: Policy = "greedy"
    samples: int = 1
    n: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 64
    system_prompt: str | None = None
    seed: int = 0

    @property
    def plain(self) -> SamplingConfig:
        """The same without best-of-n and system prompt: how the SFT model acts that it is compared with."""
        policy: Policy = "greedy" if self.policy == "greedy" else "sample"
        return self._replace(policy=policy, n=1, system_prompt=None)


class Answer(NamedTuple):
    """A response: token ids with the stop token when it ended, and the message that they are."""

    ids: list[int]
    message: Message
    ended: bool

    @property
    def text(self) -> str:
        """What judges read: the answer after its reasoning."""
        return visible_text([self.message])


class Answered(NamedTuple):
    """An item, the prompt's token ids as the policy saw them, and its answers; ``reason`` says why there are none."""

    item: Item
    prompt: list[int]
    answers: list[Answer]
    reason: str | None = None


def with_system(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """Put a system prompt before a conversation, joined to the one that stands there."""
    if system_prompt is None:
        return list(messages)
    if messages and messages[0]["role"] == "system":
        joined = f"{system_prompt}\n\n{messages[0].get('content') or ''}"
        return [{**messages[0], "content": joined}, *messages[1:]]
    return [{"role": "system", "content": system_prompt}, *messages]


def answer_items(
    role_model: RoleModel, items: Sequence[Item], sampling: SamplingConfig, reward: RoleModel | None
) -> list[Answered]:
    """Answer every item ``sampling.samples`` times; best-of-n keeps the answers that ``reward`` scores highest.

    An answer is seeded by (seed, suite, item id, number): two policies meet the same noise on the same item.
    """
    asked = [_ask(role_model, item, sampling) for item in items]
    order = [i for i, one in enumerate(asked) if one.reason is None]
    order.sort(key=lambda i: (-len(asked[i].prompt), i))
    greedy = sampling.policy == "greedy"
    drawn = sampling.samples * sampling.n if sampling.policy == "best-of-n" else sampling.samples
    step = max(1, PIECE // drawn)
    for begin in tqdm(range(0, len(order), step), desc=items[0].suite, unit="batch", disable=not order):
        piece = order[begin : begin + step]
        found = sample_responses(
            role_model.model,
            role_model.role,
            [asked[i].prompt for i in piece],
            [(sampling.seed, "eval", items[i].suite, items[i].id) for i in piece],
            max_new_tokens=sampling.max_new_tokens,
            temperature=0.0 if greedy else sampling.temperature,
            k=1 if greedy else drawn,
        )
        for i, samples in zip(piece, found, strict=True):
            asked[i] = asked[i]._replace(
                answers=[_answer(role_model.model.chat, asked[i], sample) for sample in samples]
            )
    if sampling.policy != "best-of-n":
        return asked
    assert reward is not None
    return _keep_best(asked, role_model, reward, sampling.n)


def _ask(role_model: RoleModel, item: Item, sampling: SamplingConfig) -> Answered:
    try:
        prompt = role_model.model.chat.prompt_ids(with_system(item.prompt or [], sampling.system_prompt), item.tools)
    except Unusable as error:
        return Answered(item, [], [], str(error))
    context = role_model.context
    if context is not None and len(prompt) + sampling.max_new_tokens > context:
        room = (
            f"a prompt of {len(prompt)} tokens leaves no room for {sampling.max_new_tokens} in a context of {context}"
        )
        return Answered(item, prompt, [], room)
    return Answered(item, prompt, [])


def _answer(chat: Chat, asked: Answered, sample: Sample) -> Answer:
    return Answer(sample.ids, parse_response(chat, asked.prompt, sample.ids, asked.item.tools), sample.ended)


def _keep_best(asked: Sequence[Answered], role_model: RoleModel, reward: RoleModel, n: int) -> list[Answered]:
    """Of each n answers in a row, the one with the highest score (the first of equal ones)."""
    scores = reward_scores(reward, asked, role_model)
    kept = []
    for one, values in zip(asked, scores, strict=True):
        groups = [range(begin, begin + n) for begin in range(0, len(one.answers), n)]
        known = [[k for k in group if values[k] is not None] for group in groups]
        if one.reason is None and not all(known):
            kept.append(one._replace(answers=[], reason="the reward model cannot score its answers"))
            continue
        best = [max(group, key=lambda k: values[k] or 0.0) for group in known]
        kept.append(one._replace(answers=[one.answers[k] for k in best]))
    return kept


def reward_scores(reward: RoleModel, asked: Sequence[Answered], role_model: RoleModel) -> list[list[float | None]]:
    """The reward of every answer to the item's own prompt (without a policy's system prompt).

    None: too long, or its template cannot express it (an answer cut inside its reasoning, under another template).
    """
    trees = [_reward_tree(reward, one, role_model) for one in asked]
    usable = [tree for tree in trees if tree is not None]
    assert reward.role is not None
    scores = iter(score(reward.model, reward.role, usable))
    return [
        [*next(scores)] if tree is not None else [None] * len(one.answers)
        for tree, one in zip(trees, asked, strict=True)
    ]


def _reward_tree(reward: RoleModel, one: Answered, role_model: RoleModel) -> Tree | None:
    """The item with its answers as the reward model reads them: the policy's own tokens where both read alike."""
    if not one.answers:
        return None
    chat, messages = reward.model.chat, one.item.prompt or []
    try:
        ids = chat.prompt_ids(messages, one.item.tools)
        if reward.model is role_model.model or chat.identity == role_model.model.chat.identity:
            responses = [answer.ids for answer in one.answers]
        else:
            prompt = Prompt(messages, ids, one.item.tools)
            found = [response_tokens(chat, prompt, [answer.message], answer.ended, None) for answer in one.answers]
            responses = [tokens.ids for tokens in found]
    except Unusable:
        return None
    if reward.context is not None and len(ids) + max(map(len, responses)) > reward.context:
        return None
    return Tree(ids, responses)
