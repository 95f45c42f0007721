"""The one way a policy acts: token ids of prompts in, sampled responses out.

Each sequence owns a random generator seeded from its own key, used as Gumbel noise on the full distribution
(Maddison et al. 2014, "A* sampling"), so a sample depends on neither its batch nor on the one beside it.
No top-k and no top-p: what is sampled is what log-probabilities are computed of. Another sampler (vLLM)
would stand behind :func:`respond`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from align.core.models import Stack

SMALLEST = 2.0**-25  # below the least exponential that fp32 draws, so that its zeros do not become infinite noise


class Sample(NamedTuple):
    """A response as token ids (with its stop token when it ended) and the sampler's own log-probabilities.

    ``logprobs`` is empty when the response was not drawn (temperature 0).
    """

    ids: list[int]
    ended: bool
    logprobs: list[float]


class _Gumbel(LogitsProcessor):
    """Adds one row of Gumbel noise per sequence, each from the sequence's own generator."""

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
        self.logprobs_TB: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waiting = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(waiting, self.generators, strict=True):
            row.exponential_(generator=generator)
        scores = scores.float() / self.temperature
        noisy = scores - waiting.clamp_min(SMALLEST).log()  # minus the log of an exponential is Gumbel
        chosen = noisy.argmax(-1, keepdim=True)
        self.logprobs_TB.append(scores.gather(1, chosen)[:, 0] - scores.logsumexp(1))
        return noisy


def sequence_seed(*key: object) -> int:
    """A 63-bit seed from a key such as (seed, stage, iteration, prompt id, k): the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@torch.no_grad()
def respond(
    stack: Stack,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[object]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    k: int = 1,
) -> list[list[Sample]]:
    """Sample k responses for each prompt; ``temperature = 0`` is greedy.

    Args:
        role: the adapter that acts; None is the bare base.
        prompts: token ids, each with its generation prompt.
        keys: one key a prompt; with the sample's number it seeds the sequence.
        max_new_tokens: tokens after which an unfinished response is cut (``ended`` is then False).
    """
    rows = [(index, number) for index in range(len(prompts)) for number in range(k)]
    rows.sort(key=lambda row: (-len(prompts[row[0]]), row))
    found: dict[tuple[int, int], Sample] = {}
    was_training = stack.base.training
    stack.base.eval()
    try:
        with stack.use(role):
            while rows:
                longest = len(prompts[rows[0][0]]) + max_new_tokens
                size = max(1, stack.compute.max_tokens // longest)
                part, rows = rows[:size], rows[size:]
                seeds = [sequence_seed(*keys[index], number) for index, number in part]
                samples = _generate(stack, [prompts[index] for index, _ in part], seeds, max_new_tokens, temperature)
                found |= dict(zip(part, samples, strict=True))
    finally:
        stack.base.train(was_training)
    return [[found[index, number] for number in range(k)] for index in range(len(prompts))]


def _generate(
    stack: Stack, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int, temperature: float
) -> list[Sample]:
    """One left-padded batch through ``generate``; the pad id is covered by the attention mask."""
    longest = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    stops = stack.chat.stop_ids(stack.base)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=stops[0],
        bos_token_id=stack.tokenizer.bos_token_id,
        use_cache=True,
    )
    noise = _Gumbel(seeds, temperature, stack.device) if temperature > 0 else None
    output = stack.base.generate(
        input_ids=ids_BT.to(stack.device),
        attention_mask=mask_BT.to(stack.device),
        generation_config=settings,
        logits_processor=LogitsProcessorList([noise] if noise else []),
    )
    logprobs = torch.stack(noise.logprobs_TB, 1).tolist() if noise else [[]] * len(prompts)
    rows = output[:, longest:].tolist()
    return [_until_stop(row, found, set(stops)) for row, found in zip(rows, logprobs, strict=True)]


def _until_stop(ids: list[int], logprobs: list[float], stops: set[int]) -> Sample:
    """Cut after the first stop token: positions, not ids, decide what is padding."""
    for position, token in enumerate(ids):
        if token in stops:
            return Sample(ids[: position + 1], True, logprobs[: position + 1])
    return Sample(ids, False, logprobs)
