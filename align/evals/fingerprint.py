"""Record what an answer depends on beside the weights: two evaluations are compared only where these agree.

In: the loaded policy, its items and how it acts. Out: plain values by key, one set per suite, for the run's record.
Seeds are no part of it (another seed is another draw of the same answers), nor are device, layout and batch, which
move a result by rounding alone. No torch: audits compare fingerprints.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align.core.hashes import code_hash
from align.evals.items import Item, items_hash
from align.generate.sampler import Sampler

if TYPE_CHECKING:
    from align.evals.generation import SamplingConfig
    from align.evals.suite import Suite
    from align.model.roles import RoleModel

KEYS: Mapping[str, str] = {
    "template_sha256": "the chat template in effect",
    "template_arguments": "what it is called with, its date among them",
    "tokenizer": "sha256 of the tokenizer",
    "dtype": "precision of the base's weights",
    "quantization": "none, or how the base is quantised",
    "context": "tokens of a row at most",
    "system_prompt": "put before every conversation",
    "suite": "settings of the suite; its class and the sha256 of its code where it comes from elsewhere",
    "items": "sha256 of the items",
    "judges": "who judged, each with the sha256 of its code",
    "policy": "sample, greedy, prompt-only or best-of-n",
    "sampler": "what is drawn from",
    "sampled_by": "the sampler and its settings, where it is not the local one",
    "temperature": "of the draws",
    "samples": "answers per item",
    "best_of": "answers that each of them was chosen from",
    "chosen_by": "sha256 of the reward model that chose",
    "max_new_tokens": "tokens of an answer at most",
    "stop": "ids of the tokens that end an answer",
    "sft": "sha256 of what KL and win rate are measured against",
    "reward": "sha256 of the reward model that scores",
    "measurements": "sha256 of each `evaluate` module",
}
# what a contender with its own way of acting (a system prompt, best-of-n) differs in from a policy that acts by itself
ACTING = frozenset(
    {"policy", "sampler", "sampled_by", "temperature", "samples", "best_of", "chosen_by", "system_prompt"}
)


def fingerprint(
    suite: Suite,
    role_model: RoleModel,
    items: Sequence[Item],
    sampling: SamplingConfig,
    judges: Mapping[str, str],
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """Return the fingerprint of one suite's answers.

    Args:
        items: of one suite.
        judges: names with what identifies their code.
        inputs: sha256 by name of the run's other inputs (reward, sft, measurements).
    """
    model = role_model.model
    values: dict[str, Any] = {
        **model.chat.fingerprint(),
        "tokenizer": model.chat.tokenizer_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": _quantization(model.base.config),
        "context": role_model.context,
        "system_prompt": sampling.system_prompt,
        "items": items_hash(items),
        "judges": dict(judges),
    }
    if identity := suite.identity():
        values["suite"] = identity
    if "gold" in suite.reads and suite.code():  # shipped suites name it among their judges
        values["gold"] = inputs.get("gold")
    if not suite.generates:
        return values
    greedy, chosen = sampling.policy == "greedy", sampling.policy == "best-of-n"
    values |= {
        "policy": sampling.policy,
        "sampler": "the likeliest token" if greedy else "the full distribution, no top-k or top-p",
        "sampled_by": sampler_identity(sampling.sampler),
        "temperature": None if greedy else sampling.temperature,
        "samples": sampling.samples,
        "best_of": sampling.n if chosen else None,
        "chosen_by": inputs.get("reward") if chosen else None,
        "max_new_tokens": sampling.max_new_tokens,
        "stop": model.chat.stop_ids(model.base),
    }
    values |= {name: inputs.get(name) for name in ("sft", "reward") if name in suite.reads}
    if suite.reads & {"measured_higher", "measured_lower"}:
        values["measurements"] = {name: value for name, value in inputs.items() if name.startswith("measured_")}
    return values


def sampler_identity(sampler: Sampler) -> Any:
    """Return a sampler's settings, with the hash of its code where it is not shipped; None for the local one."""
    if sampler.kind == "local":
        return None
    settings = sampler.model_dump(mode="json")
    return {"settings": settings, "sha256": code_hash(*sampler.code())} if sampler.code() else settings


def differences(one: Mapping[str, Any], other: Mapping[str, Any], allowed: Collection[str] = ()) -> list[str]:
    """Return the differences of two fingerprints, each with both values; ``allowed`` keys may differ."""
    lines = []
    for key in dict.fromkeys((*KEYS, *one, *other)):
        here, there = one.get(key), other.get(key)
        if here != there and key not in allowed:
            lines.append(f"'{key}' differs ({_shown(here, there)} and {_shown(there, here)})")
    return lines


def _quantization(config: Any) -> str:
    """Return how a loaded base is quantised, as its own configuration has it."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return "none"
    known = settings if isinstance(settings, dict) else settings.to_dict()
    if known.get("load_in_4bit"):
        return str(known.get("bnb_4bit_quant_type", "4 bits"))
    return "int8" if known.get("load_in_8bit") else str(known.get("quant_method", "unknown"))


def _shown(value: Any, other: Any) -> str:
    """Write a value in an error's line; of two mappings only the entries that differ."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        value = {name: entry for name, entry in value.items() if other.get(name) != entry}
        return ", ".join(f"{name} {_shown(entry, None)}" for name, entry in sorted(value.items())) or "none"
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return f"{value[:12]}…"
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
