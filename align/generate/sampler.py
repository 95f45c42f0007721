"""The extension point for samplers: requests in, sampled responses out, from a local policy or from a server.

A sampler is a class derived from :class:`Sampler`, chosen by ``kind``: a shipped name, or ``module:Class``. It answers
requests in any order. The local model gives token ids and log-probabilities, an endpoint gives texts. Nothing here
loads a model or sends a request to a server (``local.py``, ``endpoint.py``).
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
)
from tqdm import tqdm

from align.core.config import BadInput
from align.core.messages import NoMessage, read_message, scrubbed
from align.core.plugins import Part, Seam, calling, choose
from align.core.problems import problem_text
from align.core.records import Message
from align.core.seeds import sequence_seed
from align.model.chat import Chat, Unusable
from align.model.parsing import parse_response

if TYPE_CHECKING:
    from align.model.roles import RoleModel

SAMPLERS = Seam(
    "sampler",
    {"local": "align.generate.local:LocalSampler", "endpoint": "align.generate.endpoint:EndpointSampler"},
)


NonEmptyText = Annotated[str, Field(min_length=1)]


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

    def rendered(self, chat: Chat) -> Sequence[int]:
        """Return the token ids of the prompt; raises Unusable where the chat template cannot render it."""
        known = self.prompt_ids
        return chat.prompt_ids(self.messages, self.tools, self.arguments) if known is None else known


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
        """Return the token ids; ValueError if the sampler gave none."""
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
    refused: NonEmptyText | None = None
    prompt_ids: Sequence[NonNegativeInt] | None = None
    withheld: NonNegativeInt = 0
    masked: NonNegativeInt = 0
    served_by: Sequence[str] = ()
    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    remarks: Sequence[str] = ()


REPLY = TypeAdapter(Reply, config=ConfigDict(strict=True))  # types as they are declared, and nothing converted


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
    """Return the replies to requests, in the order of the requests; raises as :func:`replies_to`.

    Args:
        progress: label of the progress bar; None: no bar.
    """
    answered = replies_to(sampler, requests, policy)
    bar = tqdm(answered, desc=progress, unit="prompt", total=len(requests), disable=progress is None or not requests)
    replies = {reply.id: reply for reply in bar}
    return [replies[request.id] for request in requests]


def replies_to(sampler: Sampler, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
    """Yield the reply to each request in the order of arrival, checked against its request.

    The sampler gets copies of the requests, so that its edits do not reach the run.

    Raises:
        BadInput: names the sampler that raises, leaves a request out, or gives a reply that cannot be one to a request.
    """
    waiting = {request.id: request for request in requests}
    for reply in _called(sampler, requests, policy):
        if not isinstance(reply, Reply):
            raise _broken(sampler, f"gave a value of type {type(reply).__name__} where a Reply is expected")
        request = waiting.pop(reply.id, None) if isinstance(reply.id, str) else None
        if request is None:
            raise _broken(sampler, f"gave a reply to {reply.id!r}, which no request has as its id, or a second one")
        if problem := _problem(sampler, request, reply, policy):
            raise _broken(sampler, f"request {request.id}: {problem}")
        yield reply
    if waiting:
        raise _broken(sampler, f"gave no reply to {len(waiting)} of {len(requests)} requests, first {[*waiting][0]}")


def _broken(sampler: Sampler, problem: str) -> BadInput:
    return BadInput(f"sampler {sampler.kind}: {problem}; mend the sampler")


def _called(sampler: Sampler, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Any]:
    copies = [
        request._replace(
            messages=copy.deepcopy(request.messages),
            tools=copy.deepcopy(request.tools),
            arguments=copy.deepcopy(dict(request.arguments)),
        )
        for request in requests
    ]
    end = object()
    with calling(f"sampler {sampler.kind}", sampler):
        replies = iter(sampler.sample(copies, policy))
    while True:
        with calling(f"sampler {sampler.kind}", sampler):
            reply = next(replies, end)
        if reply is end:
            return
        yield reply


def _problem(sampler: Sampler, request: Request, reply: Reply, policy: RoleModel | None) -> str | None:
    """Return the reason why a reply cannot be one to its request, or None."""
    if not isinstance(reply.samples, list | tuple):
        return f"its samples are of type {type(reply.samples).__name__}; they are a list"
    if problem := next(filter(None, (_sample_problem(sampler, request, sample) for sample in reply.samples)), None):
        return problem
    try:
        REPLY.validate_python(reply._asdict())
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} of a reply: {problem_text(first)}"
    wanted = request.n if reply.refused is None else 0
    if len(reply.samples) + (0 if sampler.GIVES_TOKENS else reply.withheld) != wanted:
        return f"gave {len(reply.samples)} samples, where {wanted} are expected"
    if reply.withheld > request.n:
        return f"withheld is {reply.withheld} of {request.n} responses"
    is_from_elsewhere = sampler.GIVES_TOKENS and sampler.code()
    return _token_problem(request, reply, policy) if is_from_elsewhere and policy and reply.samples else None


def _sample_problem(sampler: Sampler, request: Request, sample: Any) -> str | None:
    if not isinstance(sample, Sample):
        return f"gave a value of type {type(sample).__name__} where a Sample is expected"
    message, ids, logprobs = sample.message, sample.ids, sample.logprobs
    if not isinstance(message, dict) or message.get("role") != "assistant" or not isinstance(sample.ended, bool):
        return "a sample is a message of the role assistant, and True or False for ended"
    calls = message.get("tool_calls", [])
    if not isinstance(message.get("content"), str) or not isinstance(calls, list):
        return "content of a message is text, and tool_calls are a list"
    try:
        read_message({key: value for key, value in message.items() if key != "tool_calls"}, "a sample")
    except NoMessage as error:
        return str(error)
    if sampler.code() and not sampler.GIVES_TOKENS and scrubbed(message, n := [0]) and n[0]:
        return f"a message holds {n[0]} characters that cannot be stored (NUL, lone surrogates)"
    if sampler.GIVES_TOKENS and (ids is None or logprobs is None):
        return "gave a sample without ids or logprobs, and declares GIVES_TOKENS"
    if ids is not None and not (ids and all(type(token) is int and token >= 0 for token in ids)):
        return "ids of a sample are token ids, at least one"
    if ids is not None and len(ids) > request.max_new_tokens:
        return f"gave {len(ids)} ids, where max_new_tokens is {request.max_new_tokens}"
    if ids is not None and logprobs is not None and (logprobs or request.temperature > 0):
        if len(logprobs) != len(ids):
            return f"gave {len(ids)} ids with {len(logprobs)} logprobs; a drawn sample has one per token id"
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in logprobs):
            return "logprobs of a sample are finite numbers"
    return None


def _token_problem(request: Request, reply: Reply, policy: RoleModel) -> str | None:
    """Return the reason why token ids from elsewhere are not those of the prompt and of the messages, or None."""
    chat = policy.model.chat
    try:
        prompt = request.rendered(chat)
    except Unusable as error:
        return f"gave samples for a prompt that the chat template cannot render ({error})"
    if list(reply.prompt_ids or []) != list(prompt):
        return "prompt_ids are not the token ids of its prompt under the run's chat template"
    stops = chat.stop_ids(policy.model.base)
    for sample in reply.samples:
        ids = sample.require_ids()
        chat.refuse_beyond(ids)
        if sample.ended != (ids[-1] in stops):
            return "a sample ends with a stop token exactly where ended is True"
        if parse_response(chat, prompt, ids, request.tools) != sample.message:
            return f"the ids of a sample do not spell its message {str(sample.message['content'])[:40]!r}"
    return None
