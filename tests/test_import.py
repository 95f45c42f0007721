"""Existing preference data into the store: every format, what is kept, and what is dropped with its reason."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from align.core.config import BadInput
from align.core.files import read_jsonl
from annotation.formats import Format
from annotation.importers import ImportConfig, import_preferences, read_preferences
from annotation.store import Store

USER = {"role": "user", "content": "What is a fen?"}
SYSTEM = {"role": "system", "content": "Be short."}
GOOD = {"role": "assistant", "content": "A wetland."}
BAD = {"role": "assistant", "content": "A coin."}
CALL = {
    "role": "assistant",
    "reasoning_content": "I should look it up.",
    "tool_calls": [{"type": "function", "function": {"name": "look_up", "arguments": {"word": "fen"}}}],
}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(path: Path, format: Format = "trl") -> Any:
    """The one comparison and the preferred response of a file."""
    found = read_preferences(path, format)
    assert len(found.comparisons) == 1, found.dropped
    ranking = found.judgments[0].ranking
    return found.comparisons[0], found.comparisons[0].responses[ranking[0][0]].messages


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": USER["content"], "chosen": GOOD["content"], "rejected": BAD["content"]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["conversational", "plain", "implicit prompt"],
)
def test_trl_shapes_mean_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    comparison, preferred = only(write(tmp_path / "a.jsonl", [row]))
    assert comparison.prompt == [USER]
    assert preferred == [GOOD]


def test_system_tools_calls_and_reasoning_are_kept(tmp_path: Path) -> None:
    row = {
        "system": SYSTEM["content"], "prompt": [USER], "chosen": [CALL], "rejected": [BAD], "tools": TOOLS,
        "chat_template_kwargs": {"enable_thinking": True}, "strength": 2,
    }  # fmt: skip
    comparison, preferred = only(write(tmp_path / "a.jsonl", [row]))
    assert comparison.prompt == [SYSTEM, USER]
    assert preferred == [CALL]
    assert comparison.tools == TOOLS
    assert comparison.template_arguments == {"enable_thinking": True}


def test_csv_and_parquet_hold_the_same_as_json_lines(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    row = {"prompt": [USER], "chosen": [CALL], "rejected": [BAD], "tools": TOOLS}
    expected, _ = only(write(tmp_path / "a.jsonl", [row]))
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow({key: json.dumps(value) for key, value in row.items()})
    assert only(tmp_path / "a.csv", "csv")[0] == expected
    # a Parquet struct column gives every message every field; the empty ones must not survive
    both = {"prompt": [[USER]], "chosen": [[{**GOOD, "name": "helper"}]], "rejected": [[BAD]]}
    pyarrow.parquet.write_table(pyarrow.table(both), tmp_path / "b.parquet")
    found, preferred = only(tmp_path / "b.parquet", "parquet")
    assert preferred == [{**GOOD, "name": "helper"}]
    assert found.prompt == [USER]


def test_hh_text_and_what_cannot_be_used(tmp_path: Path) -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?"
    rows = [
        {"chosen": prompt + "\n\nAssistant: Because.", "rejected": prompt + "\n\nAssistant: No."},
        {"chosen": prompt + "\n\nAssistant: Same.", "rejected": prompt + "\n\nAssistant: Same."},
        {"chosen": prompt + "\n\nAssistant:", "rejected": prompt + "\n\nAssistant: No."},
        {"chosen": "\n\nHuman: A\n\nAssistant: x", "rejected": "\n\nHuman: B\n\nAssistant: y"},
        {"chosen": prompt, "rejected": prompt},
        {"chosen": "plain text", "rejected": "other text"},
    ]
    path = tmp_path / "hh.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    config = ImportConfig(run=tmp_path / "runs" / "import", data=path, feedback=tmp_path / "f.db")
    record = import_preferences(config)
    assert record.headline["format"] == "hh"
    assert record.headline["comparisons"] == 1
    assert record.dropped == {
        "chosen equals rejected": 1,
        "a response is empty": 1,
        "chosen and rejected have different prompts": 1,
        "the last turn is not the assistant's": 1,
        "it does not start with a Human or Assistant turn": 1,
    }
    assert [row["row"] for row in read_jsonl(config.run / "dropped.jsonl")] == [2, 3, 4, 5, 6]
    with Store.open(config.feedback) as store:
        (comparison,) = store.comparisons()
        (judgment,) = store.judgments()
    assert [message["role"] for message in comparison.prompt] == ["user", "assistant", "user"]
    better = comparison.responses[judgment.ranking[0][0]]
    assert better.messages == [{"role": "assistant", "content": "Because."}]


def test_broken_text_is_replaced_and_counted(tmp_path: Path) -> None:
    row = {"prompt": "nul \x00 here", "chosen": "lone \ud800", "rejected": "fine"}
    found = read_preferences(write(tmp_path / "a.jsonl", [row]), "trl")
    assert found.scrubbed == 2
    assert found.comparisons[0].prompt[0]["content"] == "nul \ufffd here"
    found.comparisons[0].model_dump_json().encode("utf-8")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"prompt": "a"}\nnot json\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", "[1, 2]", "a.jsonl:1: expected a JSON object"),
        ("a.txt", "x", "set format"),
        ("a.csv", "prompt,chosen,rejected\na,b,c,d\n", "row 1 has more fields"),
        ("a.parquet", "not parquet", "not a readable Parquet file"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", '{"prompt": "a", "chosen": "b"}\n', "no row is a usable preference"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    config = ImportConfig(run=tmp_path / "runs" / "import", data=tmp_path / name, feedback=tmp_path / "f.db")
    with pytest.raises(BadInput, match=told):
        import_preferences(config)
    assert not (tmp_path / "f.db").exists(), "nothing may be half-written"
