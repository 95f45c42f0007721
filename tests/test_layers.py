"""Imports go down only, and what promises to be light is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [  # from the top; a module imports its own floor (where it is a package) and floors below
    ["align.cli"],
    ["align.usage"],
    ["align.quickstart", "align.check", "align.ls", "align.init", "align.annotate"],
    ["align.preflight"],
    ["align.exchanges"],
    ["align.recipe"],
    ["align.verbs"],
    ["align.audit"],
    ["align.evals"],
    ["align.sample", "align.score", "align.sft", "align.dpo", "align.ppo"],
    ["align.experience", "align.sft_trainer"],
    ["align.watch", "align.guards"],
    ["align.rollout", "align.endpoint"],
    ["align.completions"],
    ["rewards"],
    ["annotation"],
    ["align.pocket"],
    ["align.core"],
]
PACKAGES = {"align.audit", "align.evals", "rewards", "annotation", "align.pocket", "align.core"}
LIGHT = ("annotation", "align.audit", "align.pocket", "align.core.config", "align.core.files", "align.core.runs")
AUDIT_MAY = (
    *("align.audit", "align.core", "annotation.types"),
    *(f"align.evals.{name}" for name in ("bounds", "fingerprint", "items", "power", "stats", "training_reward")),
)


def modules() -> dict[str, Path]:
    paths = [path for package in ("align", "annotation", "rewards") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


MODULES = {name: path for name, path in modules().items() if not name.endswith("__init__")}


def place(module: str) -> tuple[int, str]:
    for floor, names in enumerate(FLOORS):
        for name in names:
            if module == name or module.startswith(name + "."):
                return floor, name
    raise AssertionError(f"{module} stands in no room of the house plan")


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {child for child in children if child in MODULES} or {node.module}
    return {name for name in found if name.partition(".")[0] in ("align", "annotation", "rewards")}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    floor, room = place(module)
    for other in imports(MODULES[module]):
        other_floor, other_room = place(other)
        inside = room == other_room and room in PACKAGES
        assert other_floor > floor or inside, f"{module} imports {other}, which is not below it"
        if room == "align.audit":
            assert other.startswith(AUDIT_MAY), f"the audit reads records: {other} is not for it"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith(LIGHT)))
def test_light_modules_leave_torch_alone(name: str) -> None:
    code = f"import sys, {name}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_package_files_are_empty() -> None:
    inits = [path for path in modules().values() if path.name == "__init__.py"]
    assert inits and all(not path.read_text().strip() for path in inits)


def test_every_equation_has_one_home() -> None:
    """No function of core/objectives.py is defined a second time."""

    def defined(path: Path) -> set[str]:
        tree = ast.parse(path.read_text())
        return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    equations = defined(MODULES["align.core.objectives"])
    assert "dpo_loss" in equations
    for name, path in MODULES.items():
        if name != "align.core.objectives":
            assert not equations & defined(path), f"{name} defines {equations & defined(path)} again"
