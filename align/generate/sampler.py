"""The sampler seam: requests in, sampled responses out, from a local policy or from a server.

A sampler is a class derived from :class:`Sampler`, chosen by ``kind``: a shipped name, or ``module:Class``. It answers
requests in any order. The local model gives token ids and log-probabilities, an endpoint gives texts. Nothing here
loads a model or sends a request to a server (``local.py``, ``endpoint.py``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, BeforeValidator, SerializeAsAny
from tqdm import tqdm

from align.core.config import BadInput
from align.core.plugins import Part, Seam, choose
from align.core.records import Message
from align.core.seeds import sequence_seed

if TYPE_CHECKING:
    from align.model.roles import RoleModel

SAMPLERS = Seam(
    "sampler",
    {"local": "align.generate.local:LocalSampler", "endpoint": "align.generate.endpoint:EndpointSampler"},
)


class Request(NamedTuple):
    """A request for ``n`` responses to a prompt.

    ``id`` is unique among the requests of one call. ``key`` with a response's number seeds that response.
    ``prompt_ids`` are the token ids of the prompt if they are known already. ``temperature = 0`` is greedy.
    """

    id: str
    key: tuple[object, ...]
    messages: Sequence[Message]
    tools: list[dict[str, Any]] | None = None
    arguments: Mapping[str, Any] = MappingProxyType({})
    prompt_ids: Sequence[int] | None = None
    n: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 64

    @property
    def seeds(self) -> list[int]:
        """One seed per response."""
        return [sequence_seed(*self.key, number) for number in range(self.n)]


class Sample(NamedTuple):
    """A response as a message, and whether it ended by itself or was cut.

    ``ids`` (with the stop token when it ended) and ``logprobs`` (nats per token) are None where the sampler cannot give
    them; ``logprobs`` is empty where the response was not drawn (temperature 0).
    """

    message: Message
    ended: bool
    ids: list[int] | None = None
    logprobs: list[float] | None = None

    def require_ids(self) -> list[int]:
        """The token ids; ValueError if the sampler gave none."""
        if self.ids is None:
            raise ValueError("a sample without token ids")
        return self.ids


class Reply(NamedTuple):
    """The reply to a request: its samples, or the reason why the prompt is refused.

    ``prompt_ids`` are the token ids of the prompt. ``withheld`` counts responses that a server withheld or did not
    finish, ``masked`` the answers in which the API key was masked. ``served_by`` has the names of the models by which
    a server answered. Token counts are the server's, None if it does not count. ``remarks`` are added to the notes.
    """

    id: str
    samples: Sequence[Sample]
    refused: str | None = None
    prompt_ids: Sequence[int] | None = None
    withheld: int = 0
    masked: int = 0
    served_by: Sequence[str] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    remarks: Sequence[str] = ()


class Sampler(Part):
    """Base of all samplers; its fields are its settings.

    ``GIVES_TOKENS``: it samples the given policy, and gives token ids and log-probabilities. Any other sampler has a
    model of its own.
    """

    GIVES_TOKENS: ClassVar[bool] = False

    @property
    def origin(self) -> str:
        """The origin of responses in candidates, for a sampler with a model of its own."""
        return self.kind

    @abstractmethod
    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        """Yield one reply per request, in any order.

        Args:
            policy: the weights to sample from; None where the sampler has a model of its own.
        """


def _gives_tokens(sampler: Sampler) -> Sampler:
    if not sampler.GIVES_TOKENS:
        raise ValueError(f"sampler {sampler.kind} gives no token ids and log-probabilities of the policy; use local")
    return sampler


ChosenSampler = Annotated[SerializeAsAny[Sampler], BeforeValidator(lambda given: choose(SAMPLERS, Sampler, given))]
TokenSampler = Annotated[ChosenSampler, AfterValidator(_gives_tokens)]


def sample_all(
    sampler: Sampler, requests: Sequence[Request], policy: RoleModel | None, progress: str | None = None
) -> list[Reply]:
    """The replies to requests, in the order of the requests.

    Args:
        progress: label of the progress bar; None: no bar.

    Raises:
        BadInput: a request has no reply or the wrong number of samples, or required token ids are missing.
    """
    answered = sampler.sample(requests, policy)
    bar = tqdm(answered, desc=progress, unit="prompt", total=len(requests), disable=progress is None or not requests)
    replies = {reply.id: reply for reply in bar}
    for request in requests:
        reply = replies.get(request.id)
        if reply is None or (reply.refused is None and len(reply.samples) != request.n):
            given = "no reply" if reply is None else f"{len(reply.samples)} samples"
            raise BadInput(f"sampler {sampler.kind}: gave {given} to a request for {request.n}; mend the sampler")
        if sampler.GIVES_TOKENS and any(sample.ids is None or sample.logprobs is None for sample in reply.samples):
            raise BadInput(f"sampler {sampler.kind}: gave a sample without ids or logprobs, and declares GIVES_TOKENS")
        if sampler.GIVES_TOKENS and request.temperature > 0:
            lengths = [(len(sample.ids or []), len(sample.logprobs or [])) for sample in reply.samples]
            if uneven := next((pair for pair in lengths if pair[0] != pair[1] or not pair[0]), None):
                raise BadInput(
                    f"sampler {sampler.kind}: gave {uneven[0]} ids with {uneven[1]} logprobs to request {request.id}; "
                    "a drawn sample has one log-probability per token id, and at least one id"
                )
    return [replies[request.id] for request in requests]
