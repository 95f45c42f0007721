"""Imports go down only, and what promises to be light is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.paths import ROOT

LAYERS = (  # from the top: a file imports files of its own layer and of the layers below it
    "align.cli",
    "align.audit",
    "align.train",
    "align.evals",
    "rewards",
    "align.engine",
    "align.generate",
    "align.data",
    "align.model",
    "align.losses",
    "annotation.simulate",
    "annotation.pairs",
    "annotation.importers",
    "annotation.campaign",
    "annotation.label_studio",
    "annotation.interface",
    "annotation.agreement",
    "annotation.aggregation",
    "annotation.store",
    "align.report",
    "align.pocket",
    "align.core",
)
PACKAGES = ("align", "annotation", "rewards")
LIGHT = ("annotation", "align.audit", "align.report", "align.pocket", "align.core")  # no torch, no transformers


def modules() -> dict[str, Path]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


MODULES = {name: path for name, path in modules().items() if not name.endswith("__init__")}
FOLDERS = {name.rpartition(".")[0] for name in MODULES}


def layer_of(module: str) -> str:
    """The layer that a module belongs to; ``align`` itself, whose public names reach every layer, belongs to none."""
    for layer in LAYERS:
        if module == layer or module.startswith(layer + "."):
            return layer
    raise AssertionError(f"{module} belongs to no layer; add its package to LAYERS")


def imports(module: str, text: str) -> set[str]:
    """Modules of this project that a module imports, at its top or inside a function, by whole or relative names."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*package, *([node.module] if node.module else [])])
            children = {f"{origin}.{alias.name}" for alias in node.names}
            names |= {child for child in children if child in MODULES or child in FOLDERS} or {origin}
            names -= {"align"} if children == {"align.__version__"} else set()
    return {name for name in names if name.partition(".")[0] in PACKAGES}


def named_as_text(text: str) -> set[str]:
    """Modules that code names in a text, as ``module``, ``module:name`` or ``module.{...}``, outside of a ``Seam``.

    A ``Seam`` names the shipped parts of an extension point, which are loaded when a user chooses one.
    """
    names, tree = set(), ast.parse(text)
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Seam"]
    of_tables = {id(node) for table in tables for node in ast.walk(table)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in of_tables:
            name = re.fullmatch(rf"((?:{'|'.join(PACKAGES)})\.[\w.]*\w)\.?(:\w+)?", node.value)
            names |= {name[1]} & (MODULES.keys() | FOLDERS) if name else set()
            names |= {"align"} if re.fullmatch(r"align:\w+", node.value) else set()
    return names


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    own, text = LAYERS.index(layer_of(module)), MODULES[module].read_text()
    for other in imports(module, text) | named_as_text(text):
        assert LAYERS.index(layer_of(other)) >= own, f"{module} imports {other}, which is in a layer above it"


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("import align.cli.main", "align.cli.main"),
        ("def f():\n    from align.cli import main", "align.cli.main"),
        ("from .plugins import load", "align.core.plugins"),
        ("from . import plugins", "align.core.plugins"),
        ("from .stats import bounds", "align.core.stats.bounds"),
        ("from ..cli.main import run", "align.cli.main"),
        ("from ..cli import main", "align.cli.main"),
        ("from .. import cli", "align.cli"),
        ("from align import cli", "align.cli"),
        ("from align import dpo", "align"),
        ("import align", "align"),
    ],
)
def test_the_walk_sees_every_way_to_import(line: str, imported: str) -> None:
    assert imports("align.core.runs", line) == {imported}


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("importlib.import_module('align.cli.main')", {"align.cli.main"}),
        ("load('align.cli.main:run')", {"align.cli.main"}),
        ("import_module(f'align.cli.{name}')", {"align.cli"}),
        ("load('align:dpo')", {"align"}),
        ("TABLE = {'a': 'rewards.model:RewardRun'}", {"rewards.model"}),
        ("SEAM = Seam('suite', {'a': 'rewards.model:RewardRun'})", set()),
        ("raise BadInput('write module:name, for example align.cli.main:run')", set()),
    ],
)
def test_the_walk_sees_modules_that_are_named_as_text(line: str, named: set[str]) -> None:
    assert named_as_text(line) == named


def test_files_import_in_no_circle() -> None:
    """Taking away, again and again, every file that imports nothing that is left has to end with none."""
    left = {module: imports(module, path.read_text()) & set(MODULES) for module, path in MODULES.items()}
    while free := [module for module, others in left.items() if not others & set(left)]:
        for module in free:
            del left[module]
    assert not left, f"these files import each other in a circle: {sorted(left)}"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith(LIGHT)))
def test_light_modules_leave_torch_alone(name: str) -> None:
    code = f"import sys, {name}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_package_files_are_empty_but_align_s_list_of_public_names() -> None:
    inits = [path for path in modules().values() if path.name == "__init__.py" and path.parent != ROOT / "align"]
    assert inits and all(not path.read_text().strip() for path in inits)


def test_every_equation_has_one_home() -> None:
    """No function of align/losses is defined a second time."""

    def defined(path: Path) -> set[str]:
        tree = ast.parse(path.read_text())
        return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    losses = {name for name in MODULES if name.startswith("align.losses.")}
    equations = set().union(*(defined(MODULES[name]) for name in losses))
    assert "dpo_loss" in equations
    for name, path in MODULES.items():
        if name not in losses:
            assert not equations & defined(path), f"{name} defines {equations & defined(path)} again"


def test_every_test_file_has_a_name_of_its_own() -> None:
    """They are imported by name, so that two of one name cannot be collected together."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names), {name for name in names if names.count(name) > 1}
