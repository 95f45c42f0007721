"""Let a policy answer items in text: every prompt one or more times; best-of-n keeps the best.

A sampler generates (:mod:`align.generate.sampler`). An item that cannot be answered has a reason and is never scored
as 0. Not here: scores of answers (judges, suites).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from align.core.messages import visible_text
from align.core.records import Message
from align.data.tokens import RenderedPrompt, response_tokens
from align.evals.items import Item
from align.generate.local import LocalSampler
from align.generate.sampler import Request, Sampler, sample_all
from align.model.chat import Unusable
from align.model.packing import Tree
from align.model.roles import RoleModel
from rewards.model import score

Policy = Literal["greedy", "sample", "prompt-only", "best-of-n"]


class SamplingConfig(NamedTuple):
    """How the policy acts: ``samples`` answers per item; best-of-n draws n for each of them."""

    policy: Policy = "greedy"
    samples: int = 1
    n: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 64
    system_prompt: str | None = None
    seed: int = 0
    sampler: Sampler = LocalSampler()

    @property
    def plain(self) -> SamplingConfig:
        """The same without best-of-n and system prompt: how the SFT model acts that it is compared with."""
        policy: Policy = "greedy" if self.policy == "greedy" else "sample"
        return self._replace(policy=policy, n=1, system_prompt=None)

    def request(self, number: int, item: Item) -> Request:
        """Return the request for an item; ``number`` distinguishes the requests of one call."""
        greedy = self.policy == "greedy"
        drawn = self.samples * self.n if self.policy == "best-of-n" else self.samples
        return Request(
            str(number),
            (self.seed, "eval", item.suite, item.id),
            with_system(item.prompt or [], self.system_prompt),
            item.tools,
            n=1 if greedy else drawn,
            temperature=0.0 if greedy else self.temperature,
            max_new_tokens=self.max_new_tokens,
        )


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
    """Put a system prompt before a conversation, joined to its own where it has one."""
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
    requests = [sampling.request(number, item) for number, item in enumerate(items)]
    replies = sample_all(sampling.sampler, requests, role_model, progress=items[0].suite)
    answered = [
        Answered(
            item,
            list(reply.prompt_ids or []),
            [Answer(sample.require_ids(), sample.message, sample.ended) for sample in reply.samples],
            reply.refused.removeprefix("prompt: ") if reply.refused else None,
        )
        for item, reply in zip(items, replies, strict=True)
    ]
    if sampling.policy != "best-of-n":
        return answered
    assert reward is not None
    return _keep_best(answered, role_model, reward, sampling.n)


def _keep_best(answered: Sequence[Answered], role_model: RoleModel, reward: RoleModel, n: int) -> list[Answered]:
    """Keep, of each n answers in a row, the one with the highest score (the first of equal ones)."""
    scores = reward_scores(reward, answered, role_model)
    kept = []
    for one, values in zip(answered, scores, strict=True):
        groups = [range(begin, begin + n) for begin in range(0, len(one.answers), n)]
        known = [[k for k in group if values[k] is not None] for group in groups]
        if one.reason is None and not all(known):
            kept.append(one._replace(answers=[], reason="the reward model cannot score its answers"))
            continue
        best = [max(group, key=lambda k: values[k] or 0.0) for group in known]
        kept.append(one._replace(answers=[one.answers[k] for k in best]))
    return kept


def reward_scores(reward: RoleModel, answered: Sequence[Answered], role_model: RoleModel) -> list[list[float | None]]:
    """Score every answer to the item's own prompt (without a policy's system prompt) by the reward model.

    None: too long, or its template cannot express it (an answer cut inside its reasoning, under another template).
    """
    trees = [_reward_tree(reward, one, role_model) for one in answered]
    usable = [tree for tree in trees if tree is not None]
    assert reward.role is not None
    scores = iter(score(reward.model, reward.role, usable))
    return [
        [*next(scores)] if tree is not None else [None] * len(one.answers)
        for tree, one in zip(trees, answered, strict=True)
    ]


def _reward_tree(reward: RoleModel, one: Answered, role_model: RoleModel) -> Tree | None:
    """Return the item with its answers as the reward model reads them: the policy's tokens where both read alike."""
    if not one.answers:
        return None
    chat, messages = reward.model.chat, one.item.prompt or []
    try:
        ids = chat.prompt_ids(messages, one.item.tools)
        if reward.model is role_model.model or chat.identity == role_model.model.chat.identity:
            responses = [answer.ids for answer in one.answers]
        else:
            prompt = RenderedPrompt(messages, ids, one.item.tools)
            rendered = [response_tokens(chat, prompt, [answer.message], answer.ended, None) for answer in one.answers]
            responses = [tokens.ids for tokens in rendered]
    except Unusable:
        return None
    if reward.context is not None and len(ids) + max(map(len, responses)) > reward.context:
        return None
    return Tree(ids, responses)
