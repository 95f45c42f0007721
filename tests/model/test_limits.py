"""Files that never end, or spell endlessly much: one line and exit code 2, before memory or the stack runs out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from align.cli import main
from align.core.config import BadInput, parse_yaml, read_yaml
from align.core.files import read_jsonl
from annotation.importers.formats import Container, read_rows

DEEP = b"[" * 2000 + b"]" * 2000
LONG = b'{"a": "' + b"x" * 5000 + b'"}\n'
ROW = b'{"a": 1}\n'


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can exceed."""
    monkeypatch.setattr("align.core.limits.bounded_lines.__defaults__", (4096, 16384))
    monkeypatch.setattr("align.core.limits.bounded_bytes.__defaults__", (16384,))
    monkeypatch.setattr("annotation.importers.formats.MOST_ROW", 4096)
    monkeypatch.setattr("annotation.importers.formats.MOST_ROWS", 16384)


def _parquet(folder: Path, **columns: list[object]) -> Path:
    parquet.write_table(pyarrow.table(columns), folder / "rows.parquet")
    return folder / "rows.parquet"


def _damaged(folder: Path) -> Path:
    path = _parquet(folder, a=["x" * 9000])
    content = bytearray(path.read_bytes())
    content[20:60] = b"\xff" * 40
    path.write_bytes(content)
    return path


def _dated(folder: Path) -> Path:
    beyond = pyarrow.array([2**62], pyarrow.timestamp("us"))
    return _parquet(folder, a=beyond)


FILES: dict[str, tuple[str | Callable[[Path], Path], bytes, str]] = {
    "deep row": ("rows.jsonl", b'{"a": ' + DEEP + b"}", "rows.jsonl:1: not JSON .nested deeper than 100 levels"),
    "deep list": ("rows.json", b'[{"a": ' + DEEP + b"}]", "not JSON that can be read .nested deeper than 100 levels"),
    "deep object": ("rows.json", b'{"a":\n' + DEEP + b"}", "not JSON|nested deeper"),
    "long row": ("rows.jsonl", ROW + LONG, "line 2 is longer than 4 KiB"),
    "long line": ("rows.csv", b"a,b\n" + b"x" * 5000, "line 2 is longer than 4 KiB"),
    "long header": ("rows.csv", b"x" * 5000, "line 1 is longer than 4 KiB"),
    "long field": ("rows.csv", b'a,b\n1,"' + b"x\n" * 4000, "field larger than field limit"),
    "many rows": ("rows.jsonl", ROW * 5000, "more than 16 KiB .unpacked.*split it"),
    "many lines": ("rows.csv", b"a,b\n" + b"c,d\n" * 9000, "more than 16 KiB"),
    "long json": ("rows.json", b"[" + b" " * 20000 + b"]", "more than 16 KiB"),
    "bomb": ("rows.jsonl.gz", gzip.compress(b" " * 10**8), "line 1 is longer than 4 KiB"),
    "bomb of rows": ("rows.jsonl.gz", gzip.compress(ROW * 10**6), "more than 16 KiB"),
    "bomb of json": ("rows.json.gz", gzip.compress(b" " * 10**8), "more than 16 KiB"),
    "bomb of csv": ("rows.csv.gz", gzip.compress(b"a,b\n" + b"c,d\n" * 10**6), "more than 16 KiB"),
    "cut gzip": ("rows.jsonl.gz", gzip.compress(ROW * 100)[:-12], "cannot be read .Compressed file ended"),
    "no gzip": ("rows.jsonl.gz", b"plain text", "rows.jsonl.gz:1: not JSON .*; mend or remove it"),
    "broken gzip": ("rows.csv.gz", gzip.compress(b"a,b\n" * 90)[:12] + b"\xff" * 40, "cannot be read|not UTF-8"),
    "no parquet": ("rows.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "cannot be read|not a readable"),
    "damaged parquet": (_damaged, b"", "rows.parquet: "),
    "dated parquet": (_dated, b"", "not a readable Parquet file"),
    "large parquet": (lambda folder: _parquet(folder, a=["x" * 90] * 900), b"", "more than 16 KiB .unpacked"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], small_limits: None
) -> None:
    made, content, problem = FILES[name]
    path = made(tmp_path) if callable(made) else tmp_path / made
    if not callable(made):
        path.write_bytes(content)
    containers: tuple[Container, ...] = ("jsonl", "json", "csv", "parquet")
    container = next(one for one in containers if f".{one}" in path.suffixes)
    with pytest.raises(BadInput, match=problem) as error:
        list(read_rows(path, container))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    words = ["import", str(path), f"feedback={tmp_path / 'f.db'}", f"run={tmp_path / 'runs' / 'a'}"]
    assert main.run(words) == 2
    printed = capfd.readouterr().err.splitlines()
    assert sum(line.startswith("align: ") for line in printed) == 1 and not any("Traceback" in line for line in printed)


def test_json_lines_are_held_to_the_same_limits(tmp_path: Path, small_limits: None) -> None:
    for content, problem in (
        (b'{"a": ' + DEEP + b"}", "nested deeper"),
        (LONG, "longer than"),
        (ROW * 9000, "split it"),
    ):
        (tmp_path / "rows.jsonl").write_bytes(content)
        with pytest.raises(BadInput, match=f"rows.jsonl.*{problem}"):
            read_jsonl(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes('{"a": "x\u2028y"}\r\n\n{"a": "z"}'.encode())
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": "x\u2028y"}, {"a": "z"}]


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])
CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 200))])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "f.yaml:6: expands to more than 100,000 values; write fewer references"),
        (CHAIN, "f.yaml:100: expands to more than 100 levels"),
        ("a: &a {b: *a}", "f.yaml:1: a value refers to itself"),
        ("a: " + "[" * 150 + "]" * 150, "expands to more than 100 levels"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 100 levels"),
        ("a: " + "9" * 5000, "holds a value that cannot be read"),
    ],
)
def test_a_yaml_that_spells_endlessly_much_is_refused(text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=problem) as error:
        parse_yaml(text, "f.yaml")
    assert "\n" not in str(error.value)


def test_aliases_that_repeat_a_little_are_read(tmp_path: Path) -> None:
    assert parse_yaml("a: &a {lr: 1}\nb: *a\nc: [*a, *a]", "f") == {
        "a": {"lr": 1}, "b": {"lr": 1}, "c": [{"lr": 1}, {"lr": 1}]
    }  # fmt: skip
    (tmp_path / "f.yaml").write_bytes(b"a: " + b"x" * (1 << 20))
    with pytest.raises(BadInput, match="more than 1 MiB"):
        read_yaml(tmp_path / "f.yaml")
    with pytest.raises(BadInput, match="more than 1 MiB"):
        read_yaml(Path("/dev/zero"))


def test_a_run_record_that_is_nested_deeply_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"stage": 1})[:-1] + ', "a": ' + DEEP.decode() + "}")
    assert main.run(["annotate", "agreement", f"run={tmp_path}", "feedback=nowhere.db"]) == 2
    assert main.run(["ls", f"runs={tmp_path.parent}"]) == 2
