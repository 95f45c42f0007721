"""One frozen base and the adapters that play roles on it: policy, reference, reward, value.

The base is loaded once. ``AdapterModel.use(role)`` switches the active adapter; a backward pass must come before the
next switch (PEFT drops the gradient of an adapter that is switched off, without an error), so losses are
back-propagated role by role. Log-probabilities, values and scores are read at response positions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from align.core.config import BadInput, Compute, Lora, Template
from align.core.files import write_bytes, write_json
from align.losses.kl import exact_token_kl
from align.model.chat import Chat
from align.model.load import batch_limit, device_of, load_base, load_tokenizer, refuse_tokens_beyond, width
from align.model.packing import Layout, PackedBatch
from align.model.tuners.lora import (
    attach,
    coverage,
    fresh_config,
    load_role,
    refuse_not_finite,
    role_tensors,
    saved_config,
    saved_tensors,
)
from align.model.weights import load_tensors

CHUNK_CELLS = 1 << 24  # positions x vocabulary held at once by the head, in fp32 cells (64 MiB)


class ScalarHead(nn.Module):
    """Hidden state to one number, in fp32: ``weight . h + bias``; starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` to ``(...)``."""
        return self.linear(hidden.float())[..., 0]


class AdapterModel:
    """The base, its tokenizer and template, and the roles on it."""

    def __init__(self, source: Path, compute: Compute, template: Template | None = None) -> None:
        self.compute = compute
        self.device = device_of(compute)
        self.dtype = getattr(torch, compute.dtype)
        self.base_path = source
        self.tokenizer = load_tokenizer(source)
        self.chat = Chat(self.tokenizer, *(template or Template()))
        self.base, self.unused, self.stored_as = load_base(source, compute)
        refuse_tokens_beyond(source, self.chat, int(self.base.get_input_embeddings().weight.shape[0]))
        self.peft: PeftModel | None = None
        self.trainable: dict[str, bool] = {}
        self.heads: dict[str, ScalarHead] = {}
        self.layout: Layout = "tree"
        self.head_is_plain = True
        self.takes_left_padding: bool | None = None  # not looked at yet (:mod:`align.generate.local`)
        if compute.gradient_checkpointing:
            self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    # --- roles ---------------------------------------------------------------------------------------------

    def add(self, role: str, *, adapter: Path | None, lora: Lora | None = None, trainable: bool) -> None:
        """Add a role: a copy of a saved adapter, or a fresh LoRA adapter (which starts as the base itself).

        Raises:
            BadInput: the adapter does not fit the base, or ``lora`` asks for another shape than the adapter has.
        """
        config = saved_config(adapter) if adapter else fresh_config(lora or Lora())
        if adapter and lora is not None and (lora.r, lora.alpha) != (config.r, config.lora_alpha):
            raise BadInput(
                f"lora: r={lora.r}, alpha={lora.alpha}, but training goes on from {adapter} with r={config.r}, "
                f"alpha={config.lora_alpha}; leave lora out or give its values"
            )
        where = str(adapter / "adapter_config.json") if adapter else "lora"
        self.peft = attach(self.base if self.peft is None else self.peft, role, config, where)
        if adapter:
            load_role(self.peft, role, adapter, self.base_path)
        self.base.eval()  # PEFT's new modules arrive in train mode
        self.trainable[role] = trainable
        for parameter in role_tensors(self.peft, role).values():
            parameter.data = parameter.data.to(self.device, torch.float32)

    def add_head(self, role: str, folder: Path | None = None) -> ScalarHead:
        """Give a role a scalar head, zero or as saved in ``folder/head.safetensors``."""
        head = ScalarHead(width(self.base))
        if folder is not None:
            file = folder / "head.safetensors"
            if not file.is_file():
                raise BadInput(f"{file}: missing; a reward model is an adapter and its head")
            tensors, wanted = load_tensors(file), head.linear.state_dict()
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            if shapes != {name: list(tensor.shape) for name, tensor in wanted.items()}:
                raise BadInput(
                    f"{file}: holds {shapes or 'nothing'}, but a head on {self.base_path} is a weight of "
                    f"{list(wanted['weight'].shape)} and a bias of [1]; name its own base, or train it again"
                )
            refuse_not_finite(file, tensors.items())
            head.linear.load_state_dict(tensors)
        head.requires_grad_(self.trainable[role])
        self.heads[role] = head.to(self.device)
        return head

    @contextmanager
    def use(self, role: str | None) -> Iterator[None]:
        """Make a role's adapter the active one; None is the bare base.

        Run the backward pass of what was computed inside before the block ends.
        """
        if role is None:
            if self.peft is None:
                yield
                return
            with self.peft.disable_adapter():
                yield
            return
        self.set_active(role)
        yield

    def set_active(self, role: str) -> None:
        """Switch to a role's adapter for good; only it can receive gradients, and only if it is trainable."""
        assert self.peft is not None
        self.peft.base_model.set_adapter(role, inference_mode=not self.trainable[role])
        self.peft.active_adapter = role

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The tensors a role owns, by a name that does not depend on the role: adapter first, then head."""
        assert self.peft is not None
        named = role_tensors(self.peft, role)
        if role in self.heads:
            named |= {f"head.{name}": parameter for name, parameter in self.heads[role].linear.named_parameters()}
        return named

    def save_role(self, role: str, folder: Path) -> None:
        """Write a role as a flat PEFT adapter folder, with ``head.safetensors`` where it has a head."""
        assert self.peft is not None
        write_bytes(folder / "adapter_model.safetensors", save(_plain(saved_tensors(self.peft, role))))
        settings = self.peft.peft_config[role].to_dict()
        settings |= {"base_model_name_or_path": str(self.base_path), "inference_mode": True}
        write_json(folder / "adapter_config.json", _jsonable(settings))
        if role in self.heads:
            write_bytes(folder / "head.safetensors", save(_plain(self.heads[role].linear.state_dict())))

    def add_policy_and_reference(self, adapter: Path | None, lora: Lora | None) -> None:
        """The policy as a trainable copy of a parent's adapter, the reference as that adapter frozen.

        Without a parent adapter the policy is a fresh one, and the reference is the base itself.
        """
        self.add("policy", adapter=adapter, lora=lora, trainable=True)
        if adapter:
            self.add("reference", adapter=adapter, trainable=False)

    def facts(self) -> list[str]:
        """What a reader should know of these weights: tensors without a use, what trains and what cannot."""
        some = ", ".join(self.unused[:3])
        told = [f"{len(self.unused)} tensors of {self.base_path} are not used, first {some}"] if self.unused else []
        if limit := batch_limit(self.base.config):
            told.append(
                f"beyond {limit} tokens the rotary embedding (longrope) of a whole batch changes with its longest row: "
                "rows that are longer are left out"
            )
        if self.stored_as:
            told.append(f"the weights of {self.base_path} are stored quantised ({self.stored_as}) and used as they are")
        trained = [role for role, trainable in self.trainable.items() if trainable]
        return told + [coverage(self.peft, role) for role in trained if self.peft is not None]

    @property
    def reference(self) -> str | None:
        """The role that plays reference: None is the bare base."""
        return "reference" if "reference" in self.trainable else None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Everything in eval mode, for a look in the middle of somebody else's training loop."""
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
            return forward_hidden(self.base, packed)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Gradient checkpointing: transformers' layers recompute in train mode only, and the base is in eval mode.

        So the layers alone say that they train, and only where a gradient is wanted; what is inside them does not.
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
        """Log-probability of each response token ``(N,)``, fp32, under the active role."""
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
        """Full-vocabulary KL(policy || reference) at each response token ``(N,)``, head computed in chunks."""
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
        """One number a response ``(B,)``: the role's head read at the response's last token."""
        hidden_RLD = self.hidden(packed)
        return self.heads[role](hidden_RLD[packed.stop_row_B, packed.stop_column_B])

    def values(self, role: str, packed: PackedBatch) -> Tensor:
        """One number a response token ``(N,)``: the role's head read where that token is predicted."""
        return self.heads[role](self.response_hidden_states(packed))

    def head_logits(self, hidden_ND: Tensor) -> Tensor:
        """Hidden states to fp32 logits ``(N, V)`` through the model's own head, with its scale and cap."""
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
        """How many positions the head computes at once: logits of a whole batch never exist."""
        return max(1, CHUNK_CELLS // int(self.base.get_output_embeddings().weight.shape[0]))


def trunk_of(model: Any) -> Any:
    """A causal model without its head; some name another prefix for it than the one it stands under (Llama 4)."""
    return getattr(model, model.base_model_prefix, None) or model.model


def forward_hidden(model: Any, packed: PackedBatch) -> Tensor:
    """Final hidden states ``(R, L, D)`` of a causal model on a packed batch, tree or padded."""
    return trunk_of(model)(
        input_ids=packed.tokens_RL,
        position_ids=packed.positions_RL,
        attention_mask=attention_mask(model, packed),
        use_cache=False,
    ).last_hidden_state


def attention_mask(model: Any, packed: PackedBatch) -> Any:
    """What the model is told about who may look at whom: a 2-D mask when padded, else 4-D, per layer type."""
    if packed.layout == "padded":
        return packed.filled().long()
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    layer_types = set(getattr(config, "layer_types", None) or ())
    if layer_types and not layer_types & {"sliding_attention", "chunked_attention"}:
        window = None  # stated, and used by no layer
    full = _as_attention(model, packed.attention())
    if window is None or not layer_types:
        return full if window is None else _as_attention(model, packed.attention(window))
    return {"full_attention": full, "sliding_attention": _as_attention(model, packed.attention(window))}


def _as_attention(model: Any, allowed: Tensor) -> Tensor:
    """SDPA takes booleans; eager attention *adds* its mask and needs 0 and the lowest number."""
    if model.config._attn_implementation != "eager":
        return allowed
    dtype = next(model.parameters()).dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def model_head(model: Any, hidden_ND: Tensor) -> Tensor:
    """Logits of given hidden states by the model's own forward, its trunk standing aside for one call."""
    handle = trunk_of(model).register_forward_hook(lambda module, args, output: _replaced(output, hidden_ND[None]))
    try:
        one = torch.zeros(1, 1, dtype=torch.long, device=hidden_ND.device)
        return model(input_ids=one, use_cache=False).logits[0].float()
    finally:
        handle.remove()


def _replaced(output: Any, hidden: Tensor) -> Any:
    output.last_hidden_state = hidden
    return output


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(getattr(value, "value", value))
