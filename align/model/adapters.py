"""One frozen base with an adapter per role: policy, reference, reward, value.

The base is loaded once. ``AdapterModel.use(role)`` switches the active adapter; a backward pass must come before the
next switch (PEFT drops the gradient of an adapter that is switched off, without an error), so the backward pass runs
role by role. Log-probabilities, values and scores are computed at response positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from align.core.config import BadInput, Compute, Template
from align.core.files import write_bytes
from align.core.plugins import calling
from align.losses.kl import exact_token_kl
from align.model.attention import DENSE, Attention, choose_attention
from align.model.chat import Chat
from align.model.heads import ScalarHead, model_head, trunk_of
from align.model.load import batch_limit, device_of, load_base, load_tokenizer, refuse_tokens_beyond, width
from align.model.packing import Layout, PackedBatch, Tree, pack
from align.model.tuners.tuner import Tuner, default_tuner, plain, read_adapter, refuse_other_settings

CHUNK_CELLS = 1 << 24  # positions x vocabulary that the head computes at once, in fp32 numbers (64 MiB)


class AdapterModel:
    """A base with its tokenizer, its chat template and the roles on it."""

    def __init__(self, source: Path, compute: Compute, template: Template | None = None) -> None:
        self.compute = compute
        self.device = device_of(compute)
        self.dtype = getattr(torch, compute.dtype)
        self.base_path = source
        self.tokenizer = load_tokenizer(source)
        self.chat = Chat(self.tokenizer, *(template or Template()))
        self.base, self.unused, self.stored_as = load_base(source, compute)
        refuse_tokens_beyond(source, self.chat, int(self.base.get_input_embeddings().weight.shape[0]))
        self.attention = choose_attention(compute.attention)
        with calling(f"attention {self.attention.kind}: prepare", self.attention):
            self.attention.prepare(self.base)
        self.tuners: dict[str, Tuner] = {}
        self.tuned: dict[type[Tuner], Any] = {}  # the base as each class of tuner has wrapped it
        self.active: str | None = None
        self.trainable: dict[str, bool] = {}
        self.heads: dict[str, ScalarHead] = {}
        self.layout: Layout = "tree"
        self.head_is_plain = True
        self.takes_left_padding: bool | None = None  # not known yet (:mod:`align.generate.local`)
        if compute.gradient_checkpointing:
            self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    # --- roles ---------------------------------------------------------------------------------------------

    def add(self, role: str, *, adapter: Path | None, tuner: Tuner | None = None, trainable: bool) -> None:
        """Add a role: a copy of a saved adapter, or new weights that leave the base unchanged.

        Raises:
            BadInput: the adapter does not fit the base, ``tuner`` has other settings than the adapter, or nothing of
                the role can be trained.
        """
        saved = read_adapter(adapter).tuner if adapter else None
        own = self.tuners[role] = saved or tuner or default_tuner()
        with _calling(own):
            model = self.tuned[type(own)] = own.attach(self.tuned.get(type(own), self.base), role, adapter)
            if adapter and saved and tuner:
                refuse_other_settings(tuner, saved, model, role, adapter)
            if adapter:
                own.load(model, role, adapter, self.base_path)
            if adapter and own.code():
                own.refuse_other_values(model, role, adapter)
        parameters = self._own_tensors(role)
        if trainable and not parameters:
            raise BadInput(f"tuner {own.kind}: parameters() names no tensor of the role {role}, so nothing would train")
        for other in self.trainable.keys() - {role}:
            taken = {tensor.data_ptr() for tensor in self._own_tensors(other).values() if tensor.numel()}
            if shared := [name for name, tensor in parameters.items() if tensor.data_ptr() in taken]:
                raise BadInput(f"tuner {own.kind}: {shared[0]} is one tensor of the roles {other} and {role}; give two")
        self.base.eval()  # PEFT's new modules are in train mode
        self.trainable[role] = trainable
        for parameter in parameters.values():
            parameter.data = parameter.data.to(self.device, torch.float32)

    def check_trains(self, role: str, note: Callable[[str], None]) -> None:
        """Compute the gradient of a short row where the tuner is from elsewhere, and note the tensors that have none.

        Raises:
            BadInput: no tensor of the role has a gradient, so nothing would train.
        """
        tuner = self.tuners[role]
        if not tuner.code():
            return
        (packed,) = pack([Tree([3, 4, 5, 6], [[7, 8, 9, 10]])], 8, "padded")
        with self.use(role), _calling(tuner):
            tensors = tuner.parameters(self.wrapped(role), role)
            trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
            total = self.logprobs(packed.to(self.device)).sum()
            has_gradient = total.requires_grad and trained
            gradients = torch.autograd.grad(total, trained, allow_unused=True) if has_gradient else []
        self.set_active(None)
        used = {id(tensor) for tensor, one in zip(trained, gradients, strict=False) if one is not None}
        unused = [name for name, tensor in tensors.items() if id(tensor) not in used]
        if not used:
            raise BadInput(
                f"tuner {tuner.kind}: no tensor of the role {role} has a gradient: activate() must set requires_grad, "
                "and the forward pass must use the tensors that parameters() names"
            )
        if unused:
            note(f"tuner {tuner.kind}: {len(unused)} of {len(tensors)} tensors have no gradient, first {unused[0]}")

    def add_head(self, role: str, folder: Path | None = None) -> ScalarHead:
        """Add a scalar head to a role: zeros, or the weights in ``folder/head.safetensors``."""
        head = ScalarHead(width(self.base))
        if folder is not None:
            head.load(folder, self.base_path)
        head.requires_grad_(self.trainable[role])
        self.heads[role] = head.to(self.device)
        return head

    @contextmanager
    def use(self, role: str | None) -> Iterator[None]:
        """Activate a role's adapter; None is the bare base.

        Run the backward pass of everything computed inside the block before it ends.
        """
        before = self.active
        self.set_active(role)
        yield
        if role is None and before is not None:
            self.set_active(before)

    def set_active(self, role: str | None) -> None:
        """Switch to a role's adapter until the next switch; only it receives gradients, and only if it is trainable."""
        own = type(self.tuners[role]) if role is not None else None
        for kind, model in self.tuned.items():
            if kind is not own:
                with _calling(tuner := self._tuner(kind)):
                    tuner.activate(model, None)
        if role is not None:
            with _calling(self.tuners[role]):
                self.tuners[role].activate(self.wrapped(role), role, self.trainable[role])
        self.active = role

    def _tuner(self, kind: type[Tuner]) -> Tuner:
        return next(tuner for tuner in self.tuners.values() if type(tuner) is kind)

    def wrapped(self, role: str) -> Any:
        """Return the base as the role's tuner has wrapped it."""
        return self.tuned[type(self.tuners[role])]

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Return the tensors of a role, by names that do not depend on the role: adapter first, then head."""
        named = self._own_tensors(role)
        if role in self.heads:
            named |= {f"head.{name}": parameter for name, parameter in self.heads[role].linear.named_parameters()}
        return named

    def _own_tensors(self, role: str) -> dict[str, nn.Parameter]:
        """Return the tensors of a role's tuner by name; BadInput if it gives something else, or names one as a head."""
        tuner = self.tuners[role]
        with _calling(tuner):
            named = tuner.parameters(self.wrapped(role), role)
        is_named = isinstance(named, dict) and all(isinstance(name, str) for name in named)
        if not (is_named and all(isinstance(tensor, Tensor) for tensor in named.values())):
            raise BadInput(f"tuner {tuner.kind}: parameters() gives a dict of tensors by name; it gave another value")
        if heads := [name for name in named if name.startswith("head.")]:
            raise BadInput(f"tuner {tuner.kind}: {heads[0]} is named as a tensor of the role's head; rename it")
        return named

    def save_role(self, role: str, folder: Path) -> None:
        """Write a role as a flat adapter folder, with ``head.safetensors`` where it has a head."""
        tuner = self.tuners[role]
        with _calling(tuner):
            tuner.save(self.wrapped(role), role, self.base_path, folder)
            if tuner.code():
                tuner.refuse_other_values(self.wrapped(role), role, folder)
        if role in self.heads:
            write_bytes(folder / "head.safetensors", save(plain(self.heads[role].linear.state_dict())))

    def facts(self) -> list[str]:
        """Facts about these weights for the run's notes: unused tensors, limits, and what trains."""
        some = ", ".join(self.unused[:3])
        facts = [f"{len(self.unused)} tensors of {self.base_path} are not used, first {some}"] if self.unused else []
        if limit := batch_limit(self.base.config):
            facts.append(
                f"beyond {limit} tokens the rotary embedding (longrope) of a whole batch changes with its longest row: "
                "rows that are longer are left out"
            )
        if self.stored_as:
            facts.append(
                f"the weights of {self.base_path} are stored quantised ({self.stored_as}) and used as they are"
            )
        for role in (role for role, trainable in self.trainable.items() if trainable):
            with _calling(self.tuners[role]):
                facts.append(self.tuners[role].describe(self.wrapped(role), role))
        return facts

    @property
    def reference(self) -> str | None:
        """The role that serves as the reference; None is the bare base."""
        return "reference" if "reference" in self.trainable else None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put every module in eval mode, for an evaluation during training."""
        training = [module for module in self.base.modules() if module.training]
        self.base.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    # --- forward passes ------------------------------------------------------------------------------------

    def hidden(self, packed: PackedBatch) -> Tensor:
        """Final hidden states ``(R, L, D)`` under the active role."""
        with self._recomputing():
            return forward_hidden(self.base, packed, self.attention)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Gradient checkpointing: transformers' layers recompute in train mode only, and the base is in eval mode.

        So only the layers themselves are set to train mode, and only where gradients are computed; the modules inside
        them stay in eval mode.
        """
        wanted = self.compute.gradient_checkpointing and torch.is_grad_enabled()
        layers = [m for m in self.base.modules() if isinstance(m, GradientCheckpointingLayer)] if wanted else []
        before = [layer.training for layer in layers]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer, mode in zip(layers, before, strict=True):
                layer.training = mode

    def logprobs(self, packed: PackedBatch, temperature: float = 1.0) -> Tensor:
        """Compute the log-probability in nats of each response token ``(N,)``, fp32, under the active role."""
        hidden_ND = self.response_hidden_states(packed)
        whole = len(hidden_ND) <= self.chunk
        parts = [
            self._selected(hidden, target, temperature)
            if whole or not torch.is_grad_enabled()
            else checkpoint(self._selected, hidden, target, temperature, use_reentrant=False)
            for hidden, target in zip(hidden_ND.split(self.chunk), packed.target_N.split(self.chunk), strict=True)
        ]
        return torch.cat(parts)

    def exact_kl(
        self, packed: PackedBatch, policy: str | None, reference: str | None, temperature: float = 1.0
    ) -> Tensor:
        """Compute in chunks KL(policy || reference) over the vocabulary at each response token, ``(N,)`` in nats."""
        with self.use(policy):
            policy_ND = self.response_hidden_states(packed)
        with self.use(reference):
            reference_ND = self.response_hidden_states(packed)
        parts = [
            exact_token_kl(self.head_logits(p) / temperature, self.head_logits(r) / temperature)
            for p, r in zip(policy_ND.split(self.chunk), reference_ND.split(self.chunk), strict=True)
        ]
        return torch.cat(parts)

    def scores(self, role: str, packed: PackedBatch) -> Tensor:
        """Return one number per response ``(B,)``: the role's head read at the response's last token."""
        hidden_RLD = self.hidden(packed)
        return self.heads[role](hidden_RLD[packed.stop_row_B, packed.stop_column_B])

    def values(self, role: str, packed: PackedBatch) -> Tensor:
        """Return one number per response token ``(N,)``: the role's head read where that token is predicted."""
        return self.heads[role](self.response_hidden_states(packed))

    def head_logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the fp32 logits ``(N, V)`` of hidden states by the model's own head, with its scale and cap."""
        if self.head_is_plain:
            return self.base.get_output_embeddings()(hidden_ND).float()
        return model_head(self.base, hidden_ND)

    def response_hidden_states(self, packed: PackedBatch) -> Tensor:
        """Final hidden states ``(N, D)`` where each response token is predicted, under the active role."""
        return self.hidden(packed)[packed.row_N, packed.column_N]

    def _selected(self, hidden_ND: Tensor, target_N: Tensor, temperature: float) -> Tensor:
        logits_NV = self.head_logits(hidden_ND) / temperature
        return logits_NV.gather(1, target_N[:, None])[:, 0] - logits_NV.logsumexp(1)

    @property
    def chunk(self) -> int:
        """How many positions the head computes at once; the logits of a whole batch are never in memory."""
        return max(1, CHUNK_CELLS // int(self.base.get_output_embeddings().weight.shape[0]))


def _calling(tuner: Tuner) -> AbstractContextManager[None]:
    return calling(f"tuner {tuner.kind}", tuner)


def forward_hidden(model: Any, packed: PackedBatch, attention: Attention = DENSE) -> Tensor:
    """Final hidden states ``(R, L, D)`` of a causal model on a packed batch, tree or padded."""
    with calling(f"attention {attention.kind}: mask", attention):
        mask = packed.filled().long() if packed.layout == "padded" else attention.mask(model, packed)
    return trunk_of(model)(
        input_ids=packed.tokens_RL, position_ids=packed.positions_RL, attention_mask=mask, use_cache=False
    ).last_hidden_state
