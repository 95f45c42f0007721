"""What a stage prints when it has finished."""

from __future__ import annotations

import pytest
from fixtures.audit_world import World, measured

from align.cli.headline import headline_lines
from align.cli.main import run


def estimate(value: float | None, low: float | None, high: float | None, n: int, **more: float) -> dict[str, object]:
    n_scored = n if value is not None else 0
    return {"value": value, "low": low, "high": high, "n": n, "n_scored": n_scored, "n_failed": n - n_scored} | more


def test_estimates_are_lines_and_what_only_programs_read_is_left_out() -> None:
    headline = {
        "metrics": {
            "accuracy/fact": estimate(0.87, 0.79, 0.92, 100, chance=0.25), "sycophancy": estimate(None, None, None, 6),
        },
        "items_sha256": "a" * 64,
        "suites": {"safety": {"fingerprint": {"dtype": "float32"}}},
        "policy": "sample",
        "judges": ["count", "pocket"],
        "caveats": [],
        "kl": {"k1": 0.959868, "n": 256},
        "annotator_ceiling": estimate(None, None, None, 0),
    }  # fmt: skip
    assert list(headline_lines(headline)) == [
        "metrics:",
        "  accuracy/fact: 0.870 [0.790, 0.920] n=100 (chance 0.25)",
        "  sycophancy: none of 6 scored",
        "policy: sample",
        "judges: count, pocket",
        "kl: k1 0.9599, n 256",
        "annotator_ceiling: not measured",
    ]


def test_an_audit_says_its_verdict_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    config = world(measured(112, 10, 1.5))
    words = [f"{key}={getattr(config, key)}" for key in ("run", "base", "candidate", "sft")]
    for _ in ("audited", "finished already"):
        assert run(["audit", "--gates", str(config.gates), *words]) == 0
        printed = capsys.readouterr()
        assert (printed.out + printed.err).upper().count("PASS: ALL") == 1 and "verdict" not in printed.out
        assert "gates: pass 5, fail 0, insufficient 0" in printed.out
