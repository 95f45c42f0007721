"""`evaluate` modules from local folders: real ones, loaded by the real library, on real answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align.core.config import BadInput, Compute
from align.core.files import write_jsonl
from align.evals.measurements import load_measurement, measure
from align.evals.run import EvalConfig, evaluate

MODULE = """
import datasets
import evaluate


class Letters(evaluate.Measurement):
    def _info(self):
        features = datasets.Features({features})
        return evaluate.MeasurementInfo(
            module_type="measurement", description="counts", citation="", inputs_description="", features=features
        )

    def _compute(self, {columns}):
        return {result}
"""


def module(folder: Path, result: str, columns: tuple[str, ...] = ("data",)) -> Path:
    """A module folder as `evaluate` wants it: a script of the folder's own name."""
    folder.mkdir()
    features = dict.fromkeys(columns, "datasets.Value('string')")
    text = MODULE.format(
        features="{" + ", ".join(f"'{name}': {kind}" for name, kind in features.items()) + "}",
        columns=", ".join(columns),
        result=result,
    )
    (folder / f"{folder.name}.py").write_text(text)
    return folder


COUNT = "{'length': [len(text) for text in data], 'mean': sum(map(len, data)) / len(data)}"


def test_a_list_with_one_number_a_text_is_a_metric(tmp_path: Path) -> None:
    found = measure(load_measurement(module(tmp_path / "letters", COUNT), "higher"), ["abc", "", "ab"])
    assert found == {"measured_higher/letters/length": [3.0, 0.0, 2.0]}


def test_what_is_not_finite_is_no_score(tmp_path: Path) -> None:
    odd = module(tmp_path / "odd", "{'x': [1.0, float('nan'), None]}")
    assert measure(load_measurement(odd, "lower"), ["a", "b", "c"]) == {"measured_lower/odd/x": [1.0, None, None]}


def test_a_module_that_cannot_serve_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder or file"):
        load_measurement(tmp_path / "missing", "lower")
    two = module(tmp_path / "two", "{}", ("predictions", "references"))
    with pytest.raises(BadInput, match="takes predictions, references; only texts"):
        load_measurement(two, "lower")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.py").write_text("raise RuntimeError('no')\n")
    with pytest.raises(BadInput, match="broken: cannot be loaded"):
        load_measurement(tmp_path / "broken", "lower")
    corpus = load_measurement(module(tmp_path / "corpus", "{'mean': 2.0}"), "lower")
    with pytest.raises(BadInput, match="gave mean, none of it one number per text"):
        measure(corpus, ["a", "b"])
    failing = load_measurement(module(tmp_path / "failing", "1 / 0"), "lower")
    with pytest.raises(BadInput, match="measurement failing: failed"):
        measure(failing, ["a"])


def test_a_measurement_stands_among_the_metrics_of_an_evaluation(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("hello", "what colour is the sky")]
    rows = [
        {"id": f"i{n}", "suite": "preference", "kind": "generate", "prompt": prompt} for n, prompt in enumerate(prompts)
    ]
    write_jsonl(tmp_path / "preference.jsonl", rows)
    record = evaluate(
        EvalConfig(
            run=tmp_path / "eval", subject=model_folder("llama"), suite=["preference"], samples=3, policy="sample",
            items=tmp_path / "preference.jsonl", max_new_tokens=6, compute=Compute(device="cpu"),
            measured_lower=[module(tmp_path / "letters", COUNT)],
        )
    )  # fmt: skip
    results = [json.loads(line) for line in (tmp_path / "eval" / "items.jsonl").read_text().splitlines()]
    own = [result for result in results if result["metric"] == "measured_lower/letters/length"]
    assert len(own) == 6 and all(result["score"] == len(result["text"]) for result in own)
    found = record.headline["metrics"]["measured_lower/letters/length"]
    assert found["n"] == 6 and found["judges"] == ["evaluate: letters"]
    assert "measured_lower[0]" in record.inputs


def test_measurements_want_the_suite_they_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measured_higher: suite safety reads no measurements"):
        EvalConfig(run=tmp_path, subject=tmp_path, suite=["safety"], items=tmp_path, measured_higher=[tmp_path])
