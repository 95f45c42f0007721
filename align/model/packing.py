"""Pack prompt trees into batches.

In: trees of token ids (a prompt and its K responses). Out: packed batches of ``R x L`` cells with
``R * L <= max_tokens``, positions, and index tensors: where each response token is predicted, and where each response
ends. The prompt of a tree is computed once; a response attends to the prompt and to itself only, and its positions
start at ``len(prompt)``.

No mask is derived from token ids, so the padding id may equal EOS. Tokens of a response that the policy did not write
(a tool's output) are read and never predicted: they are not counted in N.
Axes: R rows, L row length, N predicted response tokens of the batch, B its responses, T tokens of the longest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["tree", "padded"]


class Tree(NamedTuple):
    """A prompt and its responses, as token ids; rewards are read at the last token of a response.

    ``own`` is True for each response token that the policy wrote; None: it wrote all of them.
    """

    prompt: list[int]
    responses: list[list[int]]
    own: list[list[bool]] | None = None

    def steps(self, k: int) -> list[int]:
        """Positions in response k of the tokens that the policy wrote."""
        every = range(len(self.responses[k]))
        return list(every) if self.own is None else [step for step in every if self.own[k][step]]


class PackedBatch(NamedTuple):
    """The tensors of one forward pass; ``response_index[b] = (tree, k)``: response b is response k of that tree."""

    layout: Layout
    tokens_RL: Tensor
    positions_RL: Tensor
    enter_RL: Tensor
    leave_RL: Tensor
    row_N: Tensor
    column_N: Tensor
    target_N: Tensor
    response_N: Tensor
    step_N: Tensor
    stop_row_B: Tensor
    stop_column_B: Tensor
    response_index: list[tuple[int, int]]

    @property
    def n_responses(self) -> int:
        return len(self.response_index)

    def filled(self) -> Tensor:
        """Return ``(R, L)`` bool: True on real tokens, False on padding."""
        return self.enter_RL >= 0

    def by_response(self, values_N: Tensor) -> Tensor:
        """Spread per-token values over ``(B, T)``; every other cell holds 0 (see :meth:`mask`)."""
        values_BT = values_N.new_zeros(self.n_responses, self._longest())
        return values_BT.index_put((self.response_N, self.step_N), values_N)

    def mask(self) -> Tensor:
        """Return ``(B, T)`` bool: True where :meth:`by_response` holds a token."""
        mask_BT = torch.zeros(self.n_responses, self._longest(), dtype=torch.bool, device=self.step_N.device)
        mask_BT[self.response_N, self.step_N] = True
        return mask_BT

    def sums(self, values_N: Tensor) -> Tensor:
        """Sum per-token values over each response, ``(B,)``."""
        return values_N.new_zeros(self.n_responses).index_add(0, self.response_N, values_N)

    def _longest(self) -> int:
        return int(self.step_N.max()) + 1

    def to(self, device: torch.device) -> PackedBatch:
        moved: dict[str, Any] = {name: v.to(device) for name, v in self._asdict().items() if isinstance(v, Tensor)}
        return self._replace(**moved)


def row_lengths(tree: Tree, layout: Layout) -> list[int]:
    """Lengths of the rows of a tree: one row as a tree, one row per response when padded."""
    if layout == "tree":
        return [len(tree.prompt) + sum(map(len, tree.responses))]
    return [len(tree.prompt) + len(response) for response in tree.responses]


def pack(trees: Sequence[Tree], max_tokens: int, layout: Layout = "tree") -> list[PackedBatch]:
    """Sort trees by length and cut them into packed batches of at most ``max_tokens`` cells.

    A tree is never divided: its responses share a packed batch, so a loss on its pairs needs one batch only. A tree
    larger than ``max_tokens`` gets a packed batch of its own.

    Raises:
        ValueError: a tree has an empty prompt, no response, or a response of which the policy wrote nothing.
    """
    for index, tree in enumerate(trees):
        if not tree.prompt or not tree.responses or not all(tree.responses):
            raise ValueError(f"tree {index}: prompt, responses and every response must hold at least one token")
        if not all(tree.steps(k) for k in range(len(tree.responses))):
            raise ValueError(f"tree {index}: of every response the policy must have written at least one token")
    lengths = [max(row_lengths(tree, layout)) for tree in trees]
    n_rows = [len(row_lengths(tree, layout)) for tree in trees]
    order = sorted(range(len(trees)), key=lambda index: (-lengths[index], index))
    packed_batches: list[PackedBatch] = []
    group: list[int] = []
    for index in order:
        rows = sum(n_rows[member] for member in group) + n_rows[index]
        if group and rows * lengths[group[0]] > max_tokens:
            packed_batches.append(_lay_out(trees, group, layout))
            group = []
        group.append(index)
    if group:
        packed_batches.append(_lay_out(trees, group, layout))
    return packed_batches


def _lay_out(trees: Sequence[Tree], group: Sequence[int], layout: Layout) -> PackedBatch:
    """Lay the trees of ``group`` out row by row."""
    rows: list[tuple[int, Tree, list[int]]] = []
    for index in group:
        ks = list(range(len(trees[index].responses)))
        rows += [(index, trees[index], ks)] if layout == "tree" else [(index, trees[index], [k]) for k in ks]
    length = max(len(tree.prompt) + sum(len(tree.responses[k]) for k in ks) for _, tree, ks in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    enter = torch.full((len(rows), length), -1, dtype=torch.long)
    leave = torch.zeros(len(rows), length, dtype=torch.long)
    row_N: list[int] = []
    column_N: list[int] = []
    target_N: list[int] = []
    response_N: list[int] = []
    step_N: list[int] = []
    stops: list[tuple[int, int]] = []
    response_index: list[tuple[int, int]] = []
    for row, (index, tree, ks) in enumerate(rows):
        n_prompt = len(tree.prompt)
        tokens[row, :n_prompt] = torch.tensor(tree.prompt)
        positions[row, :n_prompt] = torch.arange(n_prompt)
        enter[row, :n_prompt], leave[row, :n_prompt] = 0, len(ks) + 1
        at = n_prompt
        for node, k in enumerate(ks, 1):
            response = tree.responses[k]
            end = at + len(response)
            tokens[row, at:end] = torch.tensor(response)
            positions[row, at:end] = torch.arange(n_prompt, n_prompt + len(response))
            enter[row, at:end], leave[row, at:end] = node, node + 1
            steps = tree.steps(k)
            row_N += [row] * len(steps)
            column_N += [at + step - 1 if step else n_prompt - 1 for step in steps]
            target_N += [response[step] for step in steps]
            response_N += [len(response_index)] * len(steps)
            step_N += steps
            stops.append((row, end - 1))
            response_index.append((index, k))
            at = end
    stop_row_B, stop_column_B = torch.tensor(stops).unbind(1)
    return PackedBatch(
        layout=layout,
        tokens_RL=tokens,
        positions_RL=positions,
        enter_RL=enter,
        leave_RL=leave,
        row_N=torch.tensor(row_N),
        column_N=torch.tensor(column_N),
        target_N=torch.tensor(target_N),
        response_N=torch.tensor(response_N),
        step_N=torch.tensor(step_N),
        stop_row_B=stop_row_B,
        stop_column_B=stop_column_B,
        response_index=response_index,
    )
