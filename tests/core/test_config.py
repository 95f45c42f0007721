"""Configs that cannot lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from align.core.config import BadInput, Compute, Frozen, Optim, StageConfig, build, override, parse_yaml, read_yaml


class Section(Frozen):
    optim: Optim = Optim()
    compute: Compute = Compute()
    steps: list[Optim] = []
    beta: float = Field(default=0.1, gt=0)
    names: list[str] = Field(default=["a"], min_length=1)
    files: Path | list[Path] = Path("x")


# --- one YAML ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"betta": 1}, "f.yaml: unknown key 'betta'; did you mean 'beta'?"),
        ({"optim": {"learning_rate": 1, "lr": 1}}, "unknown key 'optim.learning_rate'; valid keys: betas, eps, lr"),
        ({"optim": {"weight_decy": 1}}, "unknown key 'optim.weight_decy'; did you mean 'weight_decay'?"),
        ({"compute": {"dtyp": "float32"}}, "unknown key 'compute.dtyp'; did you mean 'dtype'?"),
        ({"steps": [{"schedul": "linear"}]}, "unknown key 'steps.0.schedul'; did you mean 'schedule'?"),
        ({"beta": -1}, "f.yaml: key 'beta': must be greater than 0 (given: -1)"),
        ({"compute": {"dtype": "float16"}}, "key 'compute.dtype': must be 'float32' or 'bfloat16'"),
        ({"beta": "x"}, "key 'beta': expected a number (given: 'x')"),
        ({"beta": float("inf")}, "key 'beta': must be a finite number (given: inf)"),
        ({"optim": {"eps": float("nan")}}, "key 'optim.eps': must be a finite number (given: nan)"),
        ({"optim": 3}, "key 'optim': expected a section of 'key: value' lines (given: 3)"),
        ({"optim": {"betas": [0.9, 1]}}, "f.yaml: key 'optim.betas.1': must be less than 1"),
        ({"optim": {"betas": [-0.1, 0.9]}}, "f.yaml: key 'optim.betas.0': must be greater than or equal to 0"),
        ({"optim": {"lr": 1e300}}, "f.yaml: key 'optim.lr': must be less than or equal to 1000"),
        ({"optim": {"betas": [0.9]}}, "f.yaml: key 'optim.betas.1' is missing; add it"),
        ({"compute": {"max_tokens": 1.5}}, "key 'compute.max_tokens': expected a whole number (given: 1.5)"),
        ({"names": "x"}, "f.yaml: key 'names': expected a list; write names: [x], on a command line names=[x]"),
        ({"names": []}, "f.yaml: key 'names': holds too few values; give at least 1"),
        ({"files": 3}, "f.yaml: key 'files': expected text, and YAML reads this as another type; quote it"),
        ({"files": ["a", {}]}, "f.yaml: key 'files.1': expected a path"),
        ({"optim": {"lr": "fast"}}, "key 'optim.lr'"),
    ],
)
def test_a_wrong_key_or_value_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        build(Section, data, "f.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).count("f.yaml") == 1, "one fault is reported once"


@pytest.mark.parametrize(
    ("schema", "data", "message"),
    [
        (Section, {"beta": True}, "key 'beta': expected a number, not true or false (given: True)"),
        (Section, {"compute": {"max_tokens": True}}, "key 'compute.max_tokens': expected a number"),
        (Section, {"optim": {"betas": [0.9, True]}}, "key 'optim.betas': expected a number"),
        (StageConfig, {"stage": "x", "run": "~/runs/x"}, "key 'run': a path is read literally, ~ and $"),
        (StageConfig, {"stage": "x", "run": "$HOME/x"}, "key 'run': a path is read literally"),
        (StageConfig, {"stage": "x", "run": "runs/${name}"}, "key 'run': a path is read literally"),
        (StageConfig, {"stage": "x", "run": r"C:\runs\x"}, "key 'run': a path of Windows; write it with /"),
        (StageConfig, {"stage": "x", "run": 7}, "key 'run': expected text, and YAML reads this as another type"),
        (StageConfig, {"stage": False, "run": "x"}, "key 'stage': expected text, and YAML reads"),
    ],
)
def test_a_value_that_would_be_read_as_another_is_refused(schema: Any, data: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        build(schema, data, "f.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_truth_values_stay_truth_values_and_odd_folders_are_folders() -> None:
    section = build(Section, {"compute": {"gradient_checkpointing": True}}, "f")
    assert section.compute.gradient_checkpointing is True
    assert build(StageConfig, {"stage": "x", "run": "a~1/b$"}, "f").run == Path("a~1/b$")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="f.yaml: key 'run' is missing; add it"):
        build(StageConfig, {"stage": "x"}, "f.yaml")


@pytest.mark.parametrize(("text", "line"), [("a: 1\nb: 2\na: 3\n", 3), ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4)])
def test_a_repeated_key_is_refused_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=rf"twice\.yaml:{line}: key '[ab]' is given twice"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["3e-6", "3E-6", "+3e-6", "3.0e-6", ".3e-5", "0.000003"])
def test_scientific_notation_is_a_number(text: str) -> None:
    value = parse_yaml(f"lr: {text}", "f")["lr"]
    assert isinstance(value, float) and value == pytest.approx(3e-6)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("010", "8 in YAML; write it without the leading zero"),
        ("-007", "-7 in YAML; write it without the leading zero"),
        ("1:30", "90 in YAML; write it as a plain number"),
        ("1:30.5", "90.5 in YAML; write it as a plain number"),
        ("+1_0:30", "630 in YAML; write it as a plain number"),
    ],
)
def test_a_number_that_can_be_read_in_two_ways_is_refused(text: str, meaning: str) -> None:
    with pytest.raises(BadInput, match=rf"f:2: .* means {meaning}, or quote it"):
        parse_yaml(f"a: 1\nlimit: {text}", "f")
    assert parse_yaml(f"limit: '{text}'", "f") == {"limit": text}


def test_numbers_of_one_reading_are_numbers() -> None:
    values = parse_yaml("[0, -0, 10, 0x10, 1_000, 0.5, 00.5, .inf, 2026-01-02]", "f")
    assert values[:-1] == [0, 0, 10, 16, 1000, 0.5, 0.5, float("inf")]


def test_merge_keys_are_refused_with_what_to_do() -> None:
    with pytest.raises(BadInput, match=r"f:2: merge keys \('<<'\) are not read; write the keys out"):
        parse_yaml("a: &a {k: 1}\nb: {<<: *a}\n", "f")


@pytest.mark.parametrize("text", ["3e-6x", "e5", "'3e-6'", "v3e6"])
def test_what_only_looks_like_a_number_is_text(text: str) -> None:
    assert isinstance(parse_yaml(f"name: {text}", "f")["name"], str)


def test_overrides_are_dotted_typed_and_leave_the_original_alone() -> None:
    data: dict[str, Any] = {"optim": {"lr": 1.0}, "beta": 0.5}
    changed = override(data, ["optim.lr=1e-6", "compute.max_tokens=64", "optim.betas=[0.8, 0.9]"])
    assert data == {"optim": {"lr": 1.0}, "beta": 0.5}
    section = build(Section, changed, "f")
    assert (section.optim.lr, section.optim.betas, section.compute.max_tokens, section.beta) == (
        1e-6,
        (0.8, 0.9),
        64,
        0.5,
    )


@pytest.mark.parametrize(("assignment", "message"), [
    ("beta", "written key=value"), ("=3", "written key=value"), ("beta.x=1", "'beta' holds a value, not a section"),
    ("optim.lr=[1", "not valid YAML"), ("limit=", "override 'limit': holds no value; .* limit=null"),
    ("s.yaml", "named with --config s.yaml"),
])  # fmt: skip
def test_a_wrong_override_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        override({"beta": 1}, [assignment])


@pytest.mark.parametrize("words", [["k=2", "k=3"], ["optim.lr=1", "optim={eps: 1}"], ["a.b=1", "c=1", "a.b=1"]])
def test_an_override_that_undoes_another_is_refused(words: list[str]) -> None:
    with pytest.raises(BadInput, match="was given before it; keep one"):
        override({}, words)
    assert override({}, ["optim={eps: 1}", "optim.lr=2", "optimum=3"]) == {"optim": {"eps": 1, "lr": 2}, "optimum": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such config file"),
        (b"- 1\n", "expected 'key: value' lines, found list"),
        (b"", "expected 'key: value' lines, found NoneType"),
        (b"a: [1\n", "bad.yaml:2: not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match="bad.yaml") as error:
        read_yaml(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Section().__setattr__("beta", 3)


@pytest.mark.parametrize(
    "text",
    ["? [a, b]\n: 1\n", "run: 2024-13-45\n", "a: \x07\n", f"a: {'9' * 5000}\n"],
    ids=["key", "date", "bell", "digits"],
)
def test_a_value_that_yaml_cannot_make_is_named(text: str) -> None:
    with pytest.raises(BadInput, match=r"^f\.yaml") as error:
        parse_yaml(text, "f.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_is_a_31_bit_number(seed: int, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="key 'seed'"):
        build(StageConfig, {"stage": "x", "run": tmp_path, "seed": seed}, "f.yaml")
