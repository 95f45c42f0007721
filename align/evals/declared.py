"""Read what the suites of an evaluation declare from its record, so that audits and reports import no suite.

Records of earlier versions carry no declaration; ``EARLIER`` holds, by suite, the one that those versions had. It is
history: a suite that changes declares itself anew in its own file, and nothing here follows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from align.core.config import BadInput
from align.core.declarations import Declaration, Metric
from align.core.run_record import RunRecord

_GUARDS = ("garbage", "harmless_compliance")
_FAULT: dict[str, Any] = {"higher_is_better": False, "kind": "binary"}
_GUARDED: dict[str, Any] = _FAULT | {"guarded_by": _GUARDS, "needs_answers": True}
_MORE: dict[str, Any] = {"higher_is_better": True, "kind": "unbounded", "needs_answers": True}
_LESS: dict[str, Any] = _MORE | {"higher_is_better": False}
_FORGETTING = (
    Metric(name="accuracy", higher_is_better=True, kind="binary", has_chance=True),
    Metric(name="bits_per_byte", **_LESS | {"needs_answers": False}, low=0.0, widest=8.0, has_own_scale=True),
    Metric(
        name="nll_per_byte", **_LESS | {"needs_answers": False}, low=0.0, widest=8 * math.log(2), has_own_scale=True
    ),
)
_SAFETY = (
    Metric(name="harmful_compliance", **_GUARDED),
    Metric(name="over_refusal", **_GUARDED),
    Metric(name="harmless_compliance", higher_is_better=True, kind="binary", of_garbage=0.0),
    Metric(name="sycophancy", **_GUARDED),
    Metric(name="garbage", **_FAULT, of_garbage=1.0),
    Metric(name="empty", **_FAULT),
)
_PREFERENCE = (
    Metric(name="gold_utility", **_MORE, judged_by=("gold",)),
    Metric(name="reward_score", **_MORE, judged_by=("reward",)),
    Metric(
        name="win_rate_vs_sft",
        **_MORE | {"kind": "share"},
        against="sft",
        judged_by=("gold", "reward"),
        length_metric="n_tokens",
    ),
    Metric(name="kl", **_LESS, low=0.0, has_own_scale=True, against="sft"),
    Metric(name="measured_higher", **_MORE, has_slices_only=True),
    Metric(name="measured_lower", **_LESS, has_slices_only=True),
    Metric(name="garbage", **_FAULT),
    Metric(name="empty", **_FAULT),
    Metric(name="n_tokens", **_LESS, low=0.0, capped_by="max_new_tokens"),
    Metric(name="ended", **_MORE | {"kind": "binary"}),
)
EARLIER: Mapping[str, Declaration] = MappingProxyType(
    {
        "forgetting": Declaration(suite="forgetting", title="Forgetting", metrics=_FORGETTING, generates=False),
        "safety": Declaration(suite="safety", title="Safety", metrics=_SAFETY, garbage_metric="garbage"),
        "preference": Declaration(
            suite="preference", title="Preference", metrics=_PREFERENCE, garbage_metric="garbage", says_missing=False
        ),
    }
)


def suites_of(record: RunRecord) -> list[str]:
    """Return the names of the suites of an evaluation."""
    if known := record.headline.get("suites"):
        return list(known)
    suites = record.resolved.get("suite", [])
    return [suites] if isinstance(suites, str) else list(suites)


def declaration_of(record: RunRecord, suite: str) -> Declaration:
    """Return the declaration of a suite of an evaluation.

    Raises:
        BadInput: the record carries no declaration of a suite that earlier versions did not have, or a broken one.
    """
    declared = record.headline.get("suites", {}).get(suite, {}).get("declaration")
    if declared is None and suite in EARLIER:
        return EARLIER[suite]
    if declared is None:
        raise BadInput(f"{record.path}: its record does not say what suite {suite} measures; evaluate again")
    try:
        return Declaration.model_validate(declared)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise BadInput(f"{record.path}: what it says of suite {suite} cannot be read ({problem})") from None
