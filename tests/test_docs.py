"""The pages of docs/ and the README hold what the schemas and docstrings hold, and name files that are there."""

from __future__ import annotations

import ast
import importlib
import re
from types import ModuleType

import pytest
from fixtures.paths import ROOT, script
from test_layers import LAYERS, MODULES

from align.cli.annotate import VERBS as BRIDGE
from align.cli.help import parameters_of, settings_of, settings_of_stage, text_of
from align.cli.recipe import RecipeConfig, Step
from align.cli.stages import STAGES
from align.core.config import parse_yaml
from align.core.plugins import load
from annotation.campaign.settings import Campaign


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    return script("write_docs")


def test_pages_are_as_the_code_says(writer: ModuleType) -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in writer.pages().items() if path.read_text() != text]
    assert not stale, f"run make docs: {stale} are not as the code says"


def test_every_verb_and_every_key_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    for name, verb in STAGES.items():
        section = re.split(r"^## ", page.split(f" {name}\n")[1], maxsplit=1, flags=re.M)[0]
        assert f"| `run` | `Path` | `runs/{name}` |" in section and (verb.gold is None or "| `gold` |" in section)
        for setting in settings_of(getattr(importlib.import_module(verb.module), verb.config)):
            assert f"| `{setting.name}` |" in section
    assert all(f"## align annotate {name}\n" in page for name in BRIDGE)


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_key_says_what_it_means(name: str) -> None:
    schema = getattr(importlib.import_module(STAGES[name].module), STAGES[name].config)
    silent = [setting.name for setting in settings_of(schema) if not setting.description]
    assert not silent, f"these keys of {name} have no description"


def test_defaults_are_written_as_a_yaml_takes_them() -> None:
    shown = {(name, setting.name): setting.default for name in STAGES for setting in settings_of_stage(name)}
    assert shown["eval", "judge"] == "refusal-prefix"
    losses = [{"kind": "sigmoid", "weight": 1.0, "beta": 0.1}, {"kind": "sft", "weight": 0.2}]
    assert parse_yaml(str(shown["dpo", "loss"]), "page") == losses
    assert parse_yaml(str(shown["import", "labels.tie"]), "page") == ["tie", "equal", "draw", "same"]
    assert shown["sft", "optim.betas"] == "[0.9, 0.999]" and shown["sft", "compute.attention"] == "null"
    assert not [key for key, default in shown.items() if default and re.search(r"^[(]|None|True|False", default)]


def test_every_key_of_a_recipe_says_what_it_means_and_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "cli.md").read_text().split("## A recipe's YAML")[1].split("\n## ")[0]
    for setting in (*settings_of(RecipeConfig), *settings_of(Step)):
        assert setting.description and f"| `{setting.name}` |" in page, setting.name


@pytest.mark.parametrize("name", sorted(BRIDGE))
def test_every_setting_of_a_labelling_verb_says_what_it_means(name: str) -> None:
    function = getattr(importlib.import_module(BRIDGE[name].module), BRIDGE[name].function)
    silent = [setting.name for setting in parameters_of(function) if not setting.description]
    assert not silent, f"these settings of annotate {name} have no line in the docstring's Args"
    assert "Args:" not in text_of(function)


def test_every_key_of_a_campaign_says_what_it_means_and_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "cli.md").read_text().split("## A campaign's YAML")[1].split("\n## ")[0]
    for setting in settings_of(Campaign):
        assert setting.description and f"| `{setting.name}` |" in page, setting.name


def test_every_shipped_part_is_in_the_reference_with_its_settings(writer: ModuleType) -> None:
    page = (ROOT / "docs" / "cli.md").read_text().split("\n## Parts chosen by kind\n")[1].split("\n## ")[0]
    sections = dict(section.split("\n", maxsplit=1) for section in page.split("\n### ")[1:])
    tables = [path.read_text().count(" = Seam(") for path in MODULES.values()]
    assert len(sections) == len(writer.PARTS) == sum(tables), "every table of shipped parts is shown"
    for title, _, seam in writer.PARTS:
        kinds = re.split(r"^\| (?=`)", sections[title], flags=re.M)[1:]
        assert [kind.split("`")[1] for kind in kinds] == list(seam.shipped)
        for kind, (name, path) in zip(kinds, seam.shipped.items(), strict=True):
            settings = [setting for setting in settings_of(load(path)) if setting.name != "kind"]
            assert re.findall(r"^\| \| `(\w+)`", kind, flags=re.M) == [setting.name for setting in settings]
            assert all(setting.description for setting in settings), f"{title}: a setting of {name} is not described"


@pytest.mark.parametrize(
    "schema", ["align.audit.gates:Gate", "align.core.declarations:Metric", "align.evals.items:Item"]
)
def test_what_users_write_outside_of_a_config_is_described(schema: str) -> None:
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("cli.md", "extending.md"))
    for setting in settings_of(load(schema)):
        assert setting.description and f"| `{setting.name}` | " in pages


def test_every_axis_letter_of_the_code_is_in_the_architecture() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().split("\n## Axis letters\n")[1].split("\n## ")[0]
    known = set(re.findall(r"(?<=[|] )[A-Z](?= [|])", table))
    trees = [ast.parse(path.read_text()) for path in MODULES.values()]
    names = [node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = {letter for name in names for letter in "".join(re.findall(r"^[a-z]\w*_([A-Z]+)$", name))}
    assert "T" in used and used <= known, sorted(used - known)


def test_the_architecture_has_the_layers_that_imports_are_held_to(writer: ModuleType) -> None:
    assert tuple(layer for layer, _ in writer.LAYERS) == LAYERS
    page = (ROOT / "docs" / "architecture.md").read_text()
    places = [page.index(f"### {layer.replace('.', '/')}: ") for layer in LAYERS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*"))]
)
def test_files_that_a_page_names_are_there(page: str) -> None:
    """Every `path/with.ending` in backticks, and every link to a file."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    named = set(
        re.findall(r"`((?:align|annotation|rewards|tests|docs|scripts|configs|benchmarks|examples)/[\w/.-]+)`", text)
    )
    linked = {(ROOT / page).parent / link for link in re.findall(r"\]\((?!http)([^)#]+)", text)}
    missing = [str(path) for path in {*(ROOT / name for name in named), *linked} if not path.exists()]
    assert not missing


def test_every_toy_part_of_the_tests_is_shown() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    toys = sorted((ROOT / "tests" / "seams").glob("toy_*.py"))
    assert toys and all(f"<!-- tests/seams/{path.name}: written by" in page for path in toys)
