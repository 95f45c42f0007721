"""Every script of examples/ runs as its docstring says, on the embedded world, from nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.paths import ROOT

from align.core.run_record import finished_run

LAST = {  # the run that each script ends with, and the beginning of the last line that it prints
    "dpo_from_python": ("dpo", "{folder}/dpo: finished; accuracy at the last step 0."),
    "custom_reward_with_ppo": ("ppo", "{folder}/ppo: finished; KL to the reference "),
    "custom_suite_with_gate": ("audit", "PASS: all 1 gates hold, each by its bound."),
    "pairs_from_csv": ("pairs", '{"train": 4, "validation": 1, "test": 1}'),
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(LAST)


@pytest.mark.parametrize("name", sorted(LAST))
def test_an_example_runs_as_it_says(name: str, tmp_path: Path) -> None:
    stage, line = LAST[name]
    script = ROOT / "examples" / f"{name}.py"
    assert f"python examples/{name}.py [FOLDER]" in script.read_text()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(line.replace("{folder}", str(tmp_path)))
    assert finished_run(tmp_path / stage).stage == stage
