"""Sample responses from a policy on this machine, through transformers' ``generate``.

Each sequence has a random generator seeded from its own key, which gives Gumbel noise on the full distribution
(Maddison et al. 2014, "A* sampling"), so a sample does not depend on the other sequences of its batch.
There is no top-k and no top-p: log-probabilities are those of the distribution that is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from align.core.config import BadInput, NotFinite
from align.core.seeds import sequence_seed
from align.generate.sampler import Reply, Request, Sample, Sampler
from align.model.adapters import AdapterModel
from align.model.chat import Unusable
from align.model.parsing import parse_response
from align.model.roles import RoleModel

PIECE = 768  # responses that are sampled before their replies are yielded
SEGMENT = 16  # tokens; after each segment, rows that have ended are removed from the batch
PADDED, ROUNDED = (
    1e-4,
    0.2,
)  # nats, mean over the vocabulary: allowed effect of left padding, in fp32 and in lower precision
SMALLEST = 2.0**-25  # smaller than any positive exponential draw in fp32: a draw of zero must not give infinite noise


class TokenSample(NamedTuple):
    """A response as token ids (with its stop token when it ended) and the sampler's own log-probabilities.

    ``logprobs`` is empty when the response was not drawn (temperature 0).
    """

    ids: list[int]
    ended: bool
    logprobs: list[float]


class LocalSampler(Sampler):
    """Samples the policy on this machine."""

    GIVES_TOKENS: ClassVar[bool] = True

    kind: str = "local"

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        """Answer the requests that the template can render and that leave room for a response, longest prompt first."""
        if policy is None:
            raise BadInput("sampler local: no policy to sample from; set policy to a run or a model folder")
        prompts: list[tuple[Request, Sequence[int]]] = []
        for request in requests:
            try:
                ids = request.rendered(policy.model.chat)
            except Unusable as error:
                yield Reply(request.id, [], refused=f"prompt: {error}")
                continue
            if policy.context is not None and len(ids) + request.max_new_tokens > policy.context:
                room = f"{request.max_new_tokens} new tokens in a context of {policy.context}"
                yield Reply(request.id, [], refused=f"prompt leaves no room for {room}", prompt_ids=ids)
                continue
            prompts.append((request, ids))
        for part in _parts(prompts):
            first, _ = part[0]
            answers = sample_responses(
                policy.model,
                policy.role,
                [ids for _, ids in part],
                [request.key for request, _ in part],
                max_new_tokens=first.max_new_tokens,
                temperature=first.temperature,
                k=first.n,
            )
            for (request, ids), responses in zip(part, answers, strict=True):
                yield Reply(
                    request.id,
                    [
                        Sample(
                            parse_response(policy.model.chat, ids, response.ids, request.tools),
                            response.ended,
                            response.ids,
                            response.logprobs,
                        )
                        for response in responses
                    ],
                    prompt_ids=ids,
                )


def _parts(prompts: Sequence[tuple[Request, Sequence[int]]]) -> Iterator[list[tuple[Request, Sequence[int]]]]:
    """Yield groups of prompts with the same settings and similar lengths, which are sampled together."""

    def settings(request: Request) -> tuple[int, float, int]:
        return request.n, request.temperature, request.max_new_tokens

    for wanted in dict.fromkeys(settings(request) for request, _ in prompts):
        alike = [prompt for prompt in prompts if settings(prompt[0]) == wanted]
        alike.sort(key=lambda prompt: -len(prompt[1]))
        step = max(1, PIECE // wanted[0])
        for begin in range(0, len(alike), step):
            yield alike[begin : begin + step]


class _Gumbel(LogitsProcessor):
    """Adds one row of Gumbel noise per sequence, each from the sequence's own generator."""

    def __init__(self, generators: Sequence[torch.Generator], temperature: float) -> None:
        self.generators, self.temperature = generators, temperature
        self.logprobs_TB: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waiting = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(waiting, self.generators, strict=True):
            row.exponential_(generator=generator)
        scores = scores.float() / self.temperature
        noisy = scores - waiting.clamp_min(SMALLEST).log()  # minus the log of an exponential variable is Gumbel noise
        chosen = noisy.argmax(-1, keepdim=True)
        self.logprobs_TB.append(scores.gather(1, chosen)[:, 0] - scores.logsumexp(1))
        return noisy


@torch.no_grad()
def sample_responses(
    model: AdapterModel,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[object]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    k: int = 1,
) -> list[list[TokenSample]]:
    """Sample k responses for each prompt; ``temperature = 0`` is greedy.

    Args:
        role: the adapter that is sampled; None is the bare base.
        prompts: token ids, each with its generation prompt.
        keys: one key per prompt; with the sample's number it seeds the sequence.
        max_new_tokens: tokens after which an unfinished response is cut (``ended`` is then False).
    """
    rows = [(index, number) for index in range(len(prompts)) for number in range(k)]
    rows.sort(key=lambda row: (-len(prompts[row[0]]), row))
    by_row: dict[tuple[int, int], TokenSample] = {}
    with model.use(role):
        while rows:
            longest = len(prompts[rows[0][0]]) + max_new_tokens
            size = max(1, model.compute.max_tokens // longest)
            part = rows[:size]
            if len(prompts[part[-1][0]]) + max_new_tokens < longest and not _takes_left_padding(model):
                part = [row for row in part if len(prompts[row[0]]) + max_new_tokens == longest]
            rows = rows[len(part) :]
            seeds = [sequence_seed(*keys[index], number) for index, number in part]
            samples = _write(model, [prompts[index] for index, _ in part], seeds, max_new_tokens, temperature)
            by_row |= dict(zip(part, samples, strict=True))
    return [[by_row[index, number] for number in range(k)] for index in range(len(prompts))]


def _write(
    model: AdapterModel, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int, temperature: float
) -> list[TokenSample]:
    """Generate one batch segment by segment; after each, only the rows that have not ended continue."""
    generators = [torch.Generator(device=model.device).manual_seed(seed) for seed in seeds]
    samples = [TokenSample([], False, []) for _ in prompts]
    unfinished = list(range(len(prompts)))
    written = 0
    while unfinished and written < max_new_tokens:
        room = min(SEGMENT, max_new_tokens - written)
        noise = _Gumbel([generators[row] for row in unfinished], temperature) if temperature > 0 else None
        parts = _segment(model, [[*prompts[row], *samples[row].ids] for row in unfinished], noise, room)
        if not all(math.isfinite(value) for part in parts for value in part.logprobs):
            raise NotFinite("sampling: log-probabilities are not finite; the policy's weights or dtype cannot be used")
        for row, part in zip(unfinished, parts, strict=True):
            before = samples[row]
            samples[row] = TokenSample(before.ids + part.ids, part.ended, before.logprobs + part.logprobs)
        unfinished = [row for row in unfinished if not samples[row].ended]
        written += room
    return samples


def _takes_left_padding(model: AdapterModel) -> bool:
    """Return whether ``generate`` gives the same tokens after a left-padded row as after the row alone; measured once.

    Recurrent models may read masked tokens, and models with learnt positions may count them; for these, a batch has
    rows of the same length only. A wrong "no" costs time, not correctness.
    """
    if model.takes_left_padding is None:
        generator = torch.Generator().manual_seed(1)
        size = model.base.get_input_embeddings().weight.shape[0]
        ids = torch.randint(3, size, (24,), generator=generator).tolist()
        alone, padded = (_greedy_logprobs(model, ids[:12], ids[12 : 12 + n]) for n in (0, 12))
        is_exact = model.dtype == torch.float32 and model.compute.quantization == "none"
        model.takes_left_padding = bool((alone - padded).abs().mean() <= (PADDED if is_exact else ROUNDED))
    return model.takes_left_padding


def _greedy_logprobs(model: AdapterModel, row: list[int], padding: list[int]) -> Tensor:
    """Compute log-probabilities ``(steps, V)`` in ``generate`` after a row that has masked tokens before it."""
    output = model.base.generate(
        input_ids=torch.tensor([padding + row], device=model.device),
        attention_mask=torch.tensor([[0] * len(padding) + [1] * len(row)], device=model.device),
        generation_config=GenerationConfig(max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=0),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(output.logits).float().log_softmax(-1)


def _segment(
    model: AdapterModel, rows: Sequence[Sequence[int]], noise: _Gumbel | None, max_new_tokens: int
) -> list[TokenSample]:
    """Return the tokens that ``generate`` adds to left-padded rows; the attention mask covers the padding."""
    longest = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        ids_BT[number, longest - len(row) :] = torch.tensor(row)
        mask_BT[number, longest - len(row) :] = 1
    stops = model.chat.stop_ids(model.base)
    output = model.base.generate(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=stops[0],
            bos_token_id=model.tokenizer.bos_token_id,
            use_cache=True,
        ),
        logits_processor=LogitsProcessorList([noise] if noise else []),
    )
    logprobs = torch.stack(noise.logprobs_TB, 1).tolist() if noise else [[]] * len(rows)
    added = output[:, longest:].tolist()
    return [_until_stop(row, values, set(stops)) for row, values in zip(added, logprobs, strict=True)]


def _until_stop(ids: list[int], logprobs: list[float], stops: set[int]) -> TokenSample:
    """Cut after the first stop token; what follows it is padding, whatever its ids."""
    for position, token in enumerate(ids):
        if token in stops:
            return TokenSample(ids[: position + 1], True, logprobs[: position + 1])
    return TokenSample(ids, False, logprobs)
