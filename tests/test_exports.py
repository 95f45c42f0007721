"""What `import align` gives: these names with these signatures, lazily, for scripts and notebooks that others wrote."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest
from fixtures.paths import ROOT

import align

SIGNATURES = {  # stages take a config; the functions below them take values
    "compare_arms": "(config)",
    "dpo": "(config, *, gold)",
    "evaluate": "(config)",
    "finished_run": "(path, stages)",
    "import_preferences": "(config)",
    "make_pairs": "(config)",
    "mean_interval": "(values, kind, clusters)",
    "measure_agreement": "(config)",
    "paired_difference": "(new, old, kind, clusters)",
    "ppo": "(config, *, gold)",
    "read_run": "(path)",
    "run_audit": "(config)",
    "sample_candidates": "(config)",
    "score_candidates": "(config)",
    "sft": "(config, *, gold)",
    "simulate_judgments": "(config, *, utility)",
    "train_reward": "(config, *, gold)",
    "write_pocket_world": "(config)",
    "write_report": "(config)",
}
TYPES = {
    "BadInput", "Comparison", "Estimate", "ItemResult", "Judgment", "Pair", "RunRecord", "Store",
    "AgreementConfig", "AuditConfig", "CompareConfig", "DPOConfig", "EvalConfig", "ImportConfig", "PPOConfig",
    "PairsConfig", "PocketConfig", "ReportConfig", "RewardConfig", "SFTConfig", "SampleConfig", "ScoreConfig",
    "SimulateConfig",
}  # fmt: skip


def signature(function: Any) -> str:
    """Names of parameters, without those that the stage decorator fills in."""
    shown, is_keyword = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "run" and hasattr(function, "__wrapped__"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            shown, is_keyword = [*shown, "*"], True
        shown.append(name)
    return f"({', '.join(shown)})"


def test_the_list_of_public_names_is_this_one() -> None:
    assert set(align.PUBLIC) == {*SIGNATURES, *TYPES}
    assert {name for name in dir(align) if not name.startswith("_")} >= set(align.PUBLIC)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_public_functions_keep_their_signatures(name: str) -> None:
    assert signature(getattr(align, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(TYPES))
def test_public_types_are_classes_of_that_name(name: str) -> None:
    found = getattr(align, name)
    assert inspect.isclass(found) and found.__name__ == name


def test_no_public_name_hides_a_package() -> None:
    packages = {path.parent.name for path in (ROOT / "align").glob("*/__init__.py")}
    assert len(packages) > 9 and not packages & set(align.PUBLIC)


def test_type_checkers_see_the_names_that_python_gives() -> None:
    tree = ast.parse((ROOT / "align" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == align.PUBLIC


def test_import_align_is_light_and_an_unknown_name_is_an_attribute_error() -> None:
    code = "import sys, align; print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'Dpo'"):
        importlib.import_module("align").Dpo  # noqa: B018 (the access is what is tested)


def test_the_version_is_said_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "align.cli", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == f"align {align.__version__}\n"
    assert "version =" not in (ROOT / "pyproject.toml").read_text().split("[tool")[0]


def test_packages_say_that_they_are_typed() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in ("align", "annotation", "rewards"))
