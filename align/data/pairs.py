"""Read files of pairs as prompt trees: all pairs of one prompt share one tree and one forward pass.

Ouyang et al. 2022 (arXiv 2203.02155, section 3.5) train on all comparisons of a prompt as one batch element.
A response that was sampled by this model keeps its token ids (``tokens.py``). Rows that cannot be used are dropped,
counted by reason and listed; nothing is truncated.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, field_validator
from torch import Tensor

from align.core.config import BadInput
from align.core.files import read_rows, write_jsonl
from align.core.records import Message, Pair, Response, Tokens, content_hash, is_empty
from align.core.runs import Run
from align.data.tokens import RenderedPrompt, ResponseTokens, TokenSource, note_sources, response_tokens
from align.model.chat import Chat, Unusable
from align.model.packing import PackedBatch, Tree


class PromptPairs(NamedTuple):
    """A prompt with its distinct responses as a tree, and its pairs as response numbers."""

    prompt_id: str
    tree: Tree
    chosen: list[int]
    rejected: list[int]
    rows: list[Pair]


class PairIndex(NamedTuple):
    """The pairs of a packed batch as response numbers ``(P,)``, with weights ``(P,)`` and response lengths ``(B,)``."""

    chosen_P: Tensor
    rejected_P: Tensor
    weight_P: Tensor
    n_tokens_B: Tensor


class CandidateRow(BaseModel):
    """The fields of a row of ``candidates.jsonl`` that are read."""

    prompt_id: str
    prompt: list[Message]
    responses: list[Response]
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] | None = None

    @field_validator("responses", mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Keep the known fields of each response; further fields belong to other programs and are not read."""
        if not isinstance(given, list) or not all(isinstance(response, dict) for response in given):
            raise ValueError("responses are a list of objects with messages")
        return [{name: response[name] for name in Response.model_fields if name in response} for response in given]


def read_pairs(path: Path) -> list[Pair]:
    """Read a file of a pairs run.

    Raises:
        BadInput: a row is not a pair (the first is named), or a file is given where the run is expected.
    """
    if (file := path.parent).is_file():
        raise BadInput(f"{file}: is no pairs run; 'align import {file}' and 'align annotate pairs' make one of it")
    return read_rows(path, Pair, "a preference pair")


def load_pairs(run: Run, folder: Path, split: str, chat: Chat, context: int | None, min_rows: int) -> list[PromptPairs]:
    """Tokenise a split of a pairs run into prompt trees, in the order of the file.

    Raises:
        BadInput: fewer than ``min_rows`` pairs can be used.
    """
    pairs = read_pairs(folder / f"{split}.jsonl")
    grouped: dict[tuple[str, str], list[Pair]] = {}  # other template arguments make another prompt
    for pair in pairs:
        grouped.setdefault((pair.prompt_id, content_hash(pair.template_arguments)), []).append(pair)
    dropped: list[dict[str, str]] = []
    used: Counter[tuple[TokenSource, bool]] = Counter()
    prompts = [prompt for rows in grouped.values() if (prompt := _tree(rows, chat, context, dropped, used))]
    note_sources(run, split, used)
    for row in dropped:
        run.drop(f"{split}: {row['reason']}")
    if dropped and run.is_main:
        write_jsonl(run.path / f"dropped-{split}.jsonl", dropped)
    usable = sum(len(prompt.rows) for prompt in prompts)
    if usable < min_rows:
        raise BadInput(
            f"{folder / split}.jsonl: {usable} of {len(pairs)} pairs can be used, min_rows asks for {min_rows}; "
            f"dropped: {_reasons(dropped) or 'none'}"
        )
    return prompts


def index_pairs(packed: PackedBatch, prompts: Sequence[PromptPairs]) -> PairIndex:
    """Return the pairs of the prompts in a packed batch, as indices of its responses."""
    number = {member: b for b, member in enumerate(packed.response_index)}
    chosen, rejected, weights = [], [], []
    for tree in sorted({tree for tree, _ in packed.response_index}):
        prompt = prompts[tree]
        chosen += [number[tree, k] for k in prompt.chosen]
        rejected += [number[tree, k] for k in prompt.rejected]
        weights += [pair.weight for pair in prompt.rows]
    device = packed.tokens_RL.device
    return PairIndex(
        torch.tensor(chosen, device=device),
        torch.tensor(rejected, device=device),
        torch.tensor(weights, device=device),
        packed.sums(torch.ones_like(packed.target_N, dtype=torch.float32)),
    )


def total_weight(prompts: Sequence[PromptPairs]) -> float:
    """Return the denominator of a step: the sum of the weights of its pairs."""
    return float(sum(pair.weight for prompt in prompts for pair in prompt.rows))


def prompts_hash(prompts: Sequence[PromptPairs]) -> str:
    """Hash of the ids of the prompts that a policy was trained on, independent of their order."""
    return hashlib.sha256("\n".join(sorted(prompt.prompt_id for prompt in prompts)).encode()).hexdigest()


def candidate_trees(run: Run, path: Path, chat: Chat, context: int | None) -> tuple[list[dict[str, Any]], list[Tree]]:
    """Return one record per response and one tree per row of candidates (a file, or a run of `sample`).

    A response that was cut has no stop token: it is scored at its last token.

    Raises:
        BadInput: a row is not a candidates row (named by number).
    """
    file = path / "candidates.jsonl" if path.is_dir() else path
    rows: list[dict[str, Any]] = []
    trees: list[Tree] = []
    used: Counter[tuple[TokenSource, bool]] = Counter()
    for row in read_rows(file, CandidateRow, "a row of candidates"):
        extra = (row.tools, row.template_arguments)
        try:
            prompt = RenderedPrompt(row.prompt, chat.prompt_ids(row.prompt, *extra), *extra)
        except Unusable as error:
            run.drop(f"response: {error}", len(row.responses))
            continue
        responses: list[ResponseTokens] = []
        for index, response in enumerate(row.responses):
            try:
                tokens = response_tokens(chat, prompt, response.messages, response.ended, response.tokens, context)
            except Unusable as error:
                run.drop(f"response: {error}")
                continue
            responses.append(tokens)
            used[tokens.source, response.ended is False] += 1
            rows.append(
                {
                    "prompt_id": row.prompt_id,
                    "response": index,
                    "origin": response.origin,
                    "n_tokens": len(tokens.ids),
                    "ended": response.ended,
                    "as_sampled": tokens.source == "as sampled",
                }
            )
        if responses:
            trees.append(tree_of(prompt, responses))
    note_sources(run, "candidates", used)
    return rows, trees


def tree_of(prompt: RenderedPrompt, responses: Sequence[ResponseTokens]) -> Tree:
    """Return a prompt and its responses as a tree, in which only tokens that the policy wrote are predicted."""
    own = [response.own for response in responses]
    return Tree(prompt.ids, [response.ids for response in responses], None if all(map(all, own)) else own)


def _tree(
    rows: list[Pair],
    chat: Chat,
    context: int | None,
    dropped: list[dict[str, str]],
    used: Counter[tuple[TokenSource, bool]],
) -> PromptPairs | None:
    first = rows[0]
    extra = (first.tools, first.template_arguments)
    try:
        prompt = RenderedPrompt(first.prompt, chat.prompt_ids(first.prompt, *extra), *extra)
    except Unusable as error:
        dropped += [{"comparison_id": row.comparison_id, "reason": f"prompt: {error}"} for row in rows]
        return None
    numbers: dict[str, int] = {}
    responses: list[ResponseTokens] = []

    def number(messages: list[Message], ended: bool | None, recorded: Tokens | None) -> int:
        key = content_hash([messages, ended is False, recorded and recorded.ids])
        if key not in numbers:
            tokens = response_tokens(chat, prompt, messages, ended, recorded, context)
            used[tokens.source, ended is False] += 1
            numbers[key] = len(responses)
            responses.append(tokens)
        return numbers[key]

    kept: list[Pair] = []
    chosen: list[int] = []
    rejected: list[int] = []
    for row in rows:
        try:
            if is_empty(row.chosen) or is_empty(row.rejected):
                raise Unusable(f"{'chosen' if is_empty(row.chosen) else 'rejected'} is an empty response")
            better = number(row.chosen, row.chosen_ended, row.chosen_tokens)
            worse = number(row.rejected, row.rejected_ended, row.rejected_tokens)
            if responses[better].ids == responses[worse].ids:
                raise Unusable("chosen and rejected are the same tokens")
        except Unusable as error:
            dropped.append({"comparison_id": row.comparison_id, "reason": str(error)})
            continue
        kept.append(row)
        chosen.append(better)
        rejected.append(worse)
    if not kept:
        return None
    place = {old: new for new, old in enumerate(sorted({*chosen, *rejected}))}
    tree = tree_of(prompt, [responses[k] for k in place])
    return PromptPairs(first.prompt_id, tree, [place[k] for k in chosen], [place[k] for k in rejected], kept)


def _reasons(dropped: list[dict[str, str]]) -> str:
    counts = Counter(row["reason"] for row in dropped)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
