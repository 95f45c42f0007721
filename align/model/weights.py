"""Check a model or adapter folder before anything large is allocated.

A folder comes from outside: whatever a library raises while it reads one becomes an error of one line that names the
file, its key and what to do. Names, shapes and types of the tensors come from the safetensors headers and are
matched with the architecture on the meta device, so ``align check`` and a run refuse the same folders, and an
impossible number in a configuration costs neither minutes nor memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.quantizers import AutoHfQuantizer

from align.core.config import BadInput
from align.core.hashes import safetensors_header

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
LAYERS = 2048  # most layers of a configuration; the largest open models have fewer than 200
EXPERTS = 16384
SIZE = 1 << 26  # any other size: rows of an embedding, width, positions
COUNTS = re.compile(
    r"^(num_hidden_layers|num_layers|n_layers?|num_attention_heads|num_key_value_heads|num_heads|n_heads?|n_embd"
    r"|hidden_size|vocab_size)$"
)  # counts that are at least 1; other counts may be 0 (layers that share their keys)
FLOATS = ("F64", "F32", "F16", "BF16")
OTHER_HEADS = re.compile(r"For(SequenceClassification|TokenClassification|QuestionAnswering|MaskedLM|MultipleChoice)$")
HARMLESS = re.compile(r"rotary_emb\.inv_freq$|attn\.(masked_)?bias$|position_ids$|^v_head\.|^value_head\.|^mtp\.")


class Weights(NamedTuple):
    """The architecture of a folder on the meta device, and the names of tensors in its files that it does not use."""

    model: Any
    unused: list[str]


# --- reading files from outside ------------------------------------------------------------------------------


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Raise BadInput with the name of the file where a library fails to read it, except when memory runs out.

    The libraries that read configurations, tokenizers and weights raise whatever their code meets in a bad file
    (KeyError, ZeroDivisionError, a Rust panic, ...), so no list of exceptions would be complete.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # from Rust, not an Exception
        if isinstance(error, BadInput) or is_out_of_memory(error) or not (isinstance(error, Exception) or is_panic):
            raise
        raise BadInput(f"{what} ({one_line(error)}); {remedy}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that this machine (or its GPU) has too little memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def one_line(error: BaseException) -> str:
    """Return the type and the text of an error in one line of at most 240 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        BadInput: it cannot be read, or holds another type.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({one_line(error)}); copy or write it again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: expected a JSON object, found {type(value).__name__}; copy or write it again")
    return value


# --- configurations ------------------------------------------------------------------------------------------


def config_of(path: Path) -> Any:
    """Read the configuration of a model folder, without loading weights.

    Raises:
        BadInput: it is missing, cannot be read, has impossible values, or is not that of a causal language model.
    """
    file = path / "config.json"
    if not file.is_file():
        raise BadInput(f"{path}: no such model folder (config.json is missing); nothing is fetched from a hub")
    refuse_second_adapter(path)
    settings = read_object(file)
    _refuse_absurd(file, settings)
    for name in settings.get("architectures") or []:
        if OTHER_HEADS.search(str(name)):
            raise BadInput(f"{file}: key architectures: {name} is no language model; name the folder of one")
    if "transformers_weights" in settings:
        raise BadInput(
            f"{file}: key transformers_weights: weights are read from model.safetensors alone; remove the key"
        )
    quantized = settings.get("quantization_config")
    if quantized is not None and not (isinstance(quantized, dict) and AutoHfQuantizer.supports_quant_method(quantized)):
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise BadInput(f"{file}: key quantization_config: {str(kind)[:60]!r} is unknown; convert the weights")
    with reading(f"{file}: no readable model configuration", "copy it again from where the model came from"):
        config = AutoConfig.from_pretrained(str(path), **LOCAL)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(
            f"{file}: key model_type: '{config.model_type}' is no causal language model to transformers (a model for "
            "images and text, an encoder, or an encoder and decoder); name the folder of a language model"
        )
    _refuse_strange_stops(path, config)
    return config


def skeleton(config: Any) -> Any:
    """Return the architecture of a configuration, without weights (on the meta device)."""
    where = f"{getattr(config, 'name_or_path', '') or 'config.json'}: no architecture can be made of its configuration"
    with reading(where, "copy it again from where the model came from"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _refuse_strange_stops(path: Path, config: Any) -> None:
    """Refuse unusable stop tokens in a generation configuration, which transformers would ignore without an error."""
    file = path / "generation_config.json"
    own = read_object(file).get("eos_token_id") if file.is_file() else None
    rows = getattr(config.get_text_config(), "vocab_size", None)
    for stop in own if isinstance(own, list) else [own]:
        is_token = isinstance(stop, int) and not isinstance(stop, bool) and 0 <= stop < (rows or stop + 1)
        if stop is not None and not is_token:
            raise BadInput(f"{file}: key eos_token_id: {stop!r} is no token of this model; write the ids of its ends")


def _refuse_absurd(file: Path, settings: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse sizes that no model has, before a list or a layer is made for each."""
    for key, value in settings.items():
        if isinstance(value, dict):
            _refuse_absurd(file, value, f"{prefix}{key}.")
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        limit = LAYERS if re.search(r"layers?$|blocks$|^depth$", key) else EXPERTS if "expert" in key else SIZE
        if value > limit or (value < 1 and COUNTS.search(key)):
            wanted = f"at most {limit:,}" if value > limit else "at least 1"
            raise BadInput(f"{file}: key {prefix}{key}: {value} is no size of a model ({wanted}); copy the file again")


def refuse_second_adapter(path: Path) -> None:
    """Refuse an adapter inside a model folder, which transformers would apply without notice."""
    if (path / "adapter_config.json").is_file() and (path / "config.json").is_file():
        raise BadInput(
            f"{path}: holds a model (config.json) and an adapter (adapter_config.json); move the adapter to a folder "
            "of its own and name the one that is meant"
        )


# --- tensors -------------------------------------------------------------------------------------------------


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file by name."""
    if not file.is_file():
        raise BadInput(f"{file}: missing; copy or train it again")
    safetensors_header(file)
    with reading(f"{file}: not a whole safetensors file", "copy or train it again"):
        return load_file(str(file))


def refuse_not_finite(file: Path, tensors: Iterable[tuple[str, Tensor]], remedy: str = "train it again") -> None:
    """Refuse tensors, given by name, if one holds NaN or an infinity."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            wide = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()  # 8 bits: no order
            if not all(math.isfinite(float(end)) for end in wide.aminmax()):
                raise BadInput(f"{file}: {name} holds a number that is not finite; {remedy}")


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files that a model folder is loaded from.

    Raises:
        BadInput: there are none, a shard is missing or in another folder, or there are two sets of them.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if not index.is_file():
        if not single.is_file():
            raise BadInput(f"{path}: no model.safetensors there; copy it, or convert the weights to safetensors")
        return [single]
    if single.is_file():
        raise BadInput(f"{path}: holds model.safetensors and an index of shards; remove the one that is not meant")
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise BadInput(f"{index}: key weight_map: expected tensor names and the files they are in; copy it again")
    files = []
    for name in sorted({str(place) for place in places.values()}):
        if Path(name).name != name or name.startswith(".") or not name.endswith(".safetensors"):
            raise BadInput(f"{index}: key weight_map: '{name}' is no safetensors file of this folder; put it there")
        if not (path / name).is_file():
            raise BadInput(f"{path / name}: missing, though the index names it; copy it again")
        files.append(path / name)
    return files


def check_weights(path: Path, config: Any) -> Weights:
    """Compare names, shapes and types in the files of a folder with its architecture, without reading a tensor.

    Raises:
        BadInput: a tensor is missing, misshaped, of another type or unknown; the first ones are named.
    """
    entries: dict[str, tuple[Path, str]] = {}
    for file in weight_files(path):
        entries |= {name: (file, str(entry["dtype"])) for name, entry in safetensors_header(file).items()}
    if getattr(config, "quantization_config", None) is not None:
        return Weights(skeleton(config), [])  # quantised tensors have other shapes than the architecture
    with reading(f"{path}: the model cannot be loaded", "copy or convert it again"):
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path), config=config, dtype=torch.float32, use_safetensors=True, device_map={"": "meta"},
            output_loading_info=True, ignore_mismatched_sizes=True, **LOCAL,
        )  # fmt: skip
    unused = refuse_missing(path, info)
    for name, (file, dtype) in entries.items():
        if dtype not in FLOATS and name not in unused and not HARMLESS.search(name):
            raise BadInput(f"{file}: tensor {name} is of type {dtype}, expected one of {', '.join(FLOATS)}; convert it")
    for one, other in model.all_tied_weights_keys.items():
        if one in entries and other in entries and not _are_equal(entries[one][0], one, entries[other][0], other):
            raise BadInput(
                f"{path / 'config.json'}: key tie_word_embeddings: true, but {one} and {other} differ in the files; "
                "set it to false, or remove the tensor that is not meant"
            )
    return Weights(model, unused)


def refuse_missing(path: Path, info: Mapping[str, Any]) -> list[str]:
    """Refuse tensors that transformers would initialise at random or ignore; return the names that may be ignored.

    Args:
        info: what ``from_pretrained(output_loading_info=True)`` reports; tied heads are not among the missing.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        twin = next((name for name in unexpected if name.endswith(missing[0])), None)
        hint = f"; they are there as {_few(unexpected)}" if unexpected else ""
        remedy = f"save it without '{twin.removesuffix(missing[0])}' before its names" if twin else "copy it again"
        raise BadInput(f"{path}: the model's weights lack {_few(missing)}{hint}; {remedy}")
    if mismatched := sorted(info["mismatched_keys"]):
        name, held, expected = mismatched[0]
        raise BadInput(
            f"{path}: {len(mismatched)} tensors have another shape than config.json says, first {name}: "
            f"{list(held)} instead of {list(expected)}; config.json and weights are of two models"
        )
    strange = [name for name in unexpected if not HARMLESS.search(name)]
    if strange:
        raise BadInput(
            f"{path}: the weights hold {_few(strange)}, which the architecture of config.json has no place for; "
            "config.json and weights are of two models, or an adapter was saved with them"
        )
    if problems := info.get("error_msgs"):
        raise BadInput(
            f"{path}: the model cannot be loaded ({' '.join(str(problems[0]).split())[:200]}); copy it again"
        )
    return unexpected


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _are_equal(file: Path, name: str, other_file: Path, other: str) -> bool:
    with safe_open(str(file), "pt") as one, safe_open(str(other_file), "pt") as two:
        return bool(torch.equal(one.get_tensor(name), two.get_tensor(other)))
