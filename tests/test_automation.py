"""What runs the tests elsewhere, checked as far as it can be without running it: workflow, hooks and Makefile."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from fixtures.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_workflow_calls_make_test_on_every_supported_python() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    workflow = yaml.safe_load(text)
    assert "not been run here" in text.splitlines()[0]
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"] and job["runs-on"] == "ubuntu-latest"
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs == ["make test PYTHON=python"] and set(workflow[True]) == {"push", "pull_request"}
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    least = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert least and least[1] == job["strategy"]["matrix"]["python"][0]


def test_the_hooks_are_local_and_run_what_lint_runs() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    assert repository["repo"] == "local" and entries == ["ruff check", "ruff format", "mypy"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
    assert lint and all(f"$(BIN)/{entry}" in lint[1] for entry in entries)


@pytest.mark.parametrize("target", ["test", "test-matrix", "lint", "evidence"])
@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_knows_its_targets(target: str) -> None:
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_both_halves_of_the_tests_are_run_by_continuous_integration() -> None:
    marks = re.findall(r"pytest .*-m (.*)", MAKEFILE)
    assert [shlex.split(mark) for mark in marks] == [["not matrix"], ["matrix"]]
    assert {"make test", "make test-matrix"} <= set((ROOT / ".ci" / "run").read_text().splitlines())


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_script_of_the_benchmarks_can_be_imported(script: str) -> None:
    """They are run by hand and by `make evidence`; a name that was renamed elsewhere shows here."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / "benchmarks" / script)
    assert spec is not None and spec.loader is not None
    if script == "mutation.py":
        pytest.importorskip("cosmic_ray")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
