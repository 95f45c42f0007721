"""Samplers from outside the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.generate.local import LocalSampler
from align.generate.sampler import Reply, Request, Sample, Sampler
from align.model.roles import RoleModel


class Echo(Sampler):
    """Answers with the prompt's last message: texts of its own, without token ids."""

    ending: str = "!"

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        for request in requests:
            message = {"role": "assistant", "content": request.messages[-1]["content"] + self.ending}
            yield Reply(request.id, [Sample(message, ended=True)] * request.n)


class Backwards(LocalSampler):
    """Samples the policy with its token ids and log-probabilities, the last request first."""

    def sample(self, requests: Sequence[Request], policy: RoleModel | None) -> Iterator[Reply]:
        for request in reversed(requests):
            yield from super().sample([request], policy)
