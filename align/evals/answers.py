"""How a policy answers items: options and texts by their log-likelihood, prompts by what it generates.

Options are one tree (the prompt once, every option with its stop token); a text is cut into disjoint windows of
the model's context; generation goes through :func:`align.generate.local.sample_responses`. What cannot be answered
carries a reason and is never scored as 0. Not here: what an answer is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

from align.core.config import Compute, NotFinite, Template
from align.core.plugins import RewardFunction
from align.core.reasoning import visible_text
from align.core.records import Message
from align.data.tokens import Prompt, response_tokens
from align.evals.items import Item
from align.evals.measurements import Measurement
from align.generate.local import Sample, sample_responses
from align.model.adapters import AdapterModel
from align.model.chat import Chat, Unusable
from align.model.layouts import choose_layout
from align.model.load import context_length, find_policy, find_source, template_of
from align.model.packing import Tree, pack
from align.model.parsing import parse_response
from rewards.model import add_reward, score

WINDOW = 2048  # tokens of text predicted at once by a model that states no context
PIECE = 768  # responses between two moves of the progress bar

Note = Callable[[str], None]
Policy = Literal["greedy", "sample", "prompt-only", "best-of-n"]


class RoleModel(NamedTuple):
    """A model and the role that acts on it; None is the bare base."""

    model: AdapterModel
    role: str | None

    @property
    def context(self) -> int | None:
        return context_length(self.model.base)


class Subject(NamedTuple):
    """The policy that is evaluated and what it is held against, each where it is known."""

    policy: RoleModel
    sft: RoleModel | None = None
    reward: RoleModel | None = None
    gold: RewardFunction | None = None
    gold_name: str = "gold"
    measurements: Sequence[Measurement] = ()
    own_judges: Mapping[str, str] = MappingProxyType({})  # judges that the answers were made to please, and how

    def judge(self, name: str) -> str:
        """A judge as results name it."""
        return f"{name} ({self.own_judges[name]})" if name in self.own_judges else name


class Manner(NamedTuple):
    """How the policy acts. ``samples`` answers an item; best-of-n draws n for each of them."""

    policy: Policy = "greedy"
    samples: int = 1
    n: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 64
    system_prompt: str | None = None
    seed: int = 0

    @property
    def plain(self) -> Manner:
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


# --- who answers ---------------------------------------------------------------------------------------------


def load_subject(path: Path, compute: Compute, template: Template, note: Note) -> RoleModel:
    """Load a policy run (or a model folder); ``note`` is told which layout it was given.

    Raises:
        BadInput: the folder holds no policy.
    """
    source = find_policy(path)
    model = AdapterModel(source.base, compute, template_of(path, template))
    if source.adapter:
        model.add("policy", adapter=source.adapter, trainable=False)
    _settle(model, note)
    return RoleModel(model, "policy" if source.adapter else None)


def load_reference(subject: RoleModel, path: Path, template: Template, note: Note) -> RoleModel:
    """The SFT model as a role beside the subject, or on a base of its own where the subject's differs."""
    source = find_policy(path)
    if not _same_base(subject, source.base):
        return load_subject(path, subject.model.compute, template, note)
    if source.adapter is None:
        return RoleModel(subject.model, None)
    subject.model.add("reference", adapter=source.adapter, trainable=False)
    return RoleModel(subject.model, "reference")


def load_reward(subject: RoleModel, path: Path, day: str | None, note: Note) -> RoleModel:
    """A reward run as a role beside the subject, or on a base of its own where the subject's differs."""
    source = find_source(path)
    model = subject.model
    if not _same_base(subject, source.base):
        model = AdapterModel(source.base, subject.model.compute, template_of(path, Template(day=day)))
    add_reward(model, path)
    if model is not subject.model:
        _settle(model, note)
    return RoleModel(model, "reward")


def _settle(model: AdapterModel, note: Note) -> None:
    verdict = choose_layout(model)
    note(f"layout of {model.base_path.name}: {verdict.layout} ({verdict.reason})")
    for fact in model.facts():
        note(fact)


def _same_base(subject: RoleModel, base: Path) -> bool:
    return base.resolve() == subject.model.base_path.resolve()


# --- log-likelihood ------------------------------------------------------------------------------------------


@torch.no_grad()
def tree_logprobs(speaker: RoleModel, trees: Sequence[Tree]) -> list[list[float]]:
    """Summed log-probability of every response of every tree, in their order."""
    model = speaker.model
    found = [[0.0] * len(tree.responses) for tree in trees]
    with model.use(speaker.role):
        for packed in pack(trees, model.compute.max_tokens, model.layout):
            packed = packed.to(model.device)
            values = packed.sums(model.logprobs(packed))
            if not values.isfinite().all():
                raise NotFinite(f"role {speaker.role}: log-probabilities are not finite; its weights cannot be used")
            for (tree, k), value in zip(packed.response_index, values.tolist(), strict=True):
                found[tree][k] = value
    return found


def improbable(speaker: RoleModel, asked: Sequence[Answered]) -> list[list[bool]]:
    """Which answers the bare base finds no likelier than tokens drawn evenly from its vocabulary.

    Tokens drawn evenly cost ln V nats per token or more, whatever the base is (Gibbs' inequality). What people and
    chat models write costs .1 to .9 ln V, random tokens 1.3 to 3 ln V; words in a random order stay below it where
    the base is strong. A folder of whole weights is asked about its own answers.
    """
    trees = [Tree(one.prompt, [answer.ids for answer in one.answers]) for one in asked if one.answers]
    costs = iter(tree_logprobs(RoleModel(speaker.model, None), trees))
    even = math.log(speaker.model.base.config.get_text_config().vocab_size)
    return [
        [-total >= even * len(answer.ids) for total, answer in zip(next(costs), one.answers, strict=True)]
        if one.answers
        else []
        for one in asked
    ]


def score_options(speaker: RoleModel, items: Sequence[Item], system_prompt: str | None = None) -> list[OptionScores]:
    """Score each item's options as complete answers, each with its stop token."""
    trees: list[Tree | str] = [_option_tree(speaker, item, system_prompt) for item in items]
    usable = [tree for tree in trees if isinstance(tree, Tree)]
    scores = iter(tree_logprobs(speaker, usable))
    return [OptionScores(next(scores)) if isinstance(tree, Tree) else OptionScores(None, tree) for tree in trees]


def _option_tree(speaker: RoleModel, item: Item, system_prompt: str | None) -> Tree | str:
    """The item as a tree, or why it cannot be one."""
    chat, messages = speaker.model.chat, with_system(item.prompt or [], system_prompt)
    try:
        prompt = chat.prompt_ids(messages, item.tools)
        options = [
            chat.response_ids(messages, [{"role": "assistant", "content": option}], item.tools)
            for option in item.options or []
        ]
    except Unusable as error:
        return str(error)
    longest = len(prompt) + max(map(len, options))
    if speaker.context is not None and longest > speaker.context:
        return f"{longest} tokens do not fit a context of {speaker.context}"
    return Tree(prompt, options)


def score_texts(speaker: RoleModel, texts: Sequence[str]) -> list[TextScore]:
    """Log-likelihood of plain texts: every token is predicted once, from the tokens before it in its window.

    The first window starts after the begin token (without one: the end token); each further window starts
    after the last token of the one before. A window with that token fills the model's context.
    """
    size = (speaker.context or WINDOW) - 1
    encoded = [_plain_ids(speaker.model.chat, text) for text in texts]
    trees: list[Tree] = []
    owners: list[int] = []
    for owner, ids in enumerate(encoded):
        row = [_first_id(speaker.model.chat), *ids]
        for begin in range(1, len(row), size):
            trees.append(Tree([row[begin - 1]], [row[begin : begin + size]]))
            owners.append(owner)
    totals = [0.0] * len(texts)
    for owner, (value,) in zip(owners, tree_logprobs(speaker, trees), strict=True):
        totals[owner] += value
    return [
        TextScore(total, len(ids), len(text.encode())) if ids else TextScore(None, 0, 0, "the text has no tokens")
        for total, ids, text in zip(totals, encoded, texts, strict=True)
    ]


def _plain_ids(chat: Chat, text: str) -> list[int]:
    return list(chat.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def _first_id(chat: Chat) -> int:
    """The token before a text: the tokenizer's begin token, else its end token, else the template's stop."""
    known = (chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id)
    return next((int(token) for token in known if token is not None), chat.stop_id)


# --- generation ----------------------------------------------------------------------------------------------


def with_system(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """Put a system prompt before a conversation, joined to the one that stands there."""
    if system_prompt is None:
        return list(messages)
    if messages and messages[0]["role"] == "system":
        joined = f"{system_prompt}\n\n{messages[0].get('content') or ''}"
        return [{**messages[0], "content": joined}, *messages[1:]]
    return [{"role": "system", "content": system_prompt}, *messages]


def answer_items(speaker: RoleModel, items: Sequence[Item], manner: Manner, reward: RoleModel | None) -> list[Answered]:
    """Let the policy answer every item, ``manner.samples`` times; best-of-n keeps the answer ``reward`` scores highest.

    An answer is seeded by (seed, suite, item id, number): two policies meet the same noise on the same item.
    """
    asked = [_ask(speaker, item, manner) for item in items]
    order = [i for i, one in enumerate(asked) if one.reason is None]
    order.sort(key=lambda i: (-len(asked[i].prompt), i))
    greedy = manner.policy == "greedy"
    drawn = manner.samples * manner.n if manner.policy == "best-of-n" else manner.samples
    step = max(1, PIECE // drawn)
    for begin in tqdm(range(0, len(order), step), desc=items[0].suite, unit="batch", disable=not order):
        piece = order[begin : begin + step]
        found = sample_responses(
            speaker.model,
            speaker.role,
            [asked[i].prompt for i in piece],
            [(manner.seed, "eval", items[i].suite, items[i].id) for i in piece],
            max_new_tokens=manner.max_new_tokens,
            temperature=0.0 if greedy else manner.temperature,
            k=1 if greedy else drawn,
        )
        for i, samples in zip(piece, found, strict=True):
            asked[i] = asked[i]._replace(answers=[_answer(speaker.model.chat, asked[i], sample) for sample in samples])
    if manner.policy != "best-of-n":
        return asked
    assert reward is not None
    return _keep_best(asked, speaker, reward, manner.n)


def _ask(speaker: RoleModel, item: Item, manner: Manner) -> Answered:
    try:
        prompt = speaker.model.chat.prompt_ids(with_system(item.prompt or [], manner.system_prompt), item.tools)
    except Unusable as error:
        return Answered(item, [], [], str(error))
    context = speaker.context
    if context is not None and len(prompt) + manner.max_new_tokens > context:
        room = f"a prompt of {len(prompt)} tokens leaves no room for {manner.max_new_tokens} in a context of {context}"
        return Answered(item, prompt, [], room)
    return Answered(item, prompt, [])


def _answer(chat: Chat, asked: Answered, sample: Sample) -> Answer:
    return Answer(sample.ids, parse_response(chat, asked.prompt, sample.ids, asked.item.tools), sample.ended)


def _keep_best(asked: Sequence[Answered], speaker: RoleModel, reward: RoleModel, n: int) -> list[Answered]:
    """Of each n answers in a row, the one with the highest score (the first of equal ones)."""
    scores = reward_scores(reward, asked, speaker)
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


def reward_scores(reward: RoleModel, asked: Sequence[Answered], speaker: RoleModel) -> list[list[float | None]]:
    """The reward of every answer to the item's own prompt (without a policy's system prompt).

    None: too long, or its template cannot express it (an answer cut inside its reasoning, under another template).
    """
    trees = [_reward_tree(reward, one, speaker) for one in asked]
    usable = [tree for tree in trees if tree is not None]
    assert reward.role is not None
    scores = iter(score(reward.model, reward.role, usable))
    return [
        [*next(scores)] if tree is not None else [None] * len(one.answers)
        for tree, one in zip(trees, asked, strict=True)
    ]


def _reward_tree(reward: RoleModel, one: Answered, speaker: RoleModel) -> Tree | None:
    """The item with its answers as the reward model reads them: the policy's own tokens where both read alike."""
    if not one.answers:
        return None
    chat, messages = reward.model.chat, one.item.prompt or []
    try:
        ids = chat.prompt_ids(messages, one.item.tools)
        if reward.model is speaker.model or chat.identity == speaker.model.chat.identity:
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
