"""Measure what a policy wrote by local modules of Hugging Face `evaluate`.

A module takes texts (``data`` or ``predictions``) and gives, under one or more names, a list with one number per text
(toxicity and perplexity are of this kind). Its code is run as the folder has it, like a reward function's;
nothing is looked up on a hub. Not here: metrics of a whole corpus, or against references.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from align.core.config import BadInput
from align.core.plugins import calling


class Measurement(NamedTuple):
    """A loaded module by the name of its folder or file, and which way is better."""

    name: str
    module: Any
    better: Literal["higher", "lower"]


def load_measurement(path: Path, better: Literal["higher", "lower"]) -> Measurement:
    """Load an `evaluate` module from a local folder or Python file.

    Raises:
        BadInput: it is not there, cannot be loaded, or wants more than texts.
    """
    if not path.exists():
        raise BadInput(f"measurements: {path}: no such folder or file; name a local evaluate module")
    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
    import evaluate  # five seconds: only where it is asked for

    with calling(f"measurements: {path}: cannot be loaded", evaluate.load):  # it runs the module's own code
        module = evaluate.load(str(path))
    if _texts_key(module) is None:
        raise BadInput(f"measurements: {path}: takes {', '.join(_columns(module))}; only texts can be given here")
    return Measurement(path.stem, module, better)


def measure(measurement: Measurement, texts: Sequence[str]) -> dict[str, list[float | None]]:
    """Return numbers by metric (``measured_lower/folder/name``), one per text; None where one is not finite.

    Raises:
        BadInput: the module fails, or gives no list with one number per text.
    """
    if not texts:
        return {}
    key = _texts_key(measurement.module)
    with calling(f"measurement {measurement.name}: failed", measurement.module):
        given = measurement.module.compute(**{str(key): list(texts)}) or {}
    by_metric = {}
    for name, values in given.items():
        values = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(values, list) and len(values) == len(texts):
            by_metric[f"measured_{measurement.better}/{measurement.name}/{name}"] = [_finite(value) for value in values]
    if not by_metric:
        raise BadInput(
            f"measurement {measurement.name}: gave {', '.join(given) or 'nothing'}, none of it one number per text"
        )
    return by_metric


def _columns(module: Any) -> list[str]:
    features = module.features[0] if isinstance(module.features, list) else module.features
    return list(features)


def _texts_key(module: Any) -> str | None:
    """Return the one column that a module reads texts from, or None."""
    columns = _columns(module)
    return columns[0] if columns in (["data"], ["predictions"]) else None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
