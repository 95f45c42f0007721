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
from annotation.aggregation.votes import votes_of
from annotation.agreement.measures import measure
from annotation.importers.formats import Format, read_hh
from annotation.importers.imported import ImportedFile
from annotation.importers.run import ImportConfig, import_preferences, read
from annotation.store.store import Store

USER = {"role": "user", "content": "What is a fen?"}
SYSTEM = {"role": "system", "content": "Be short."}
GOOD = {"role": "assistant", "content": "A wetland."}
BAD = {"role": "assistant", "content": "A coin."}
CALL = {
    "role": "assistant",
    "reasoning_content": "I should look it up.",
    "tool_calls": [{"type": "function", "function": {"name": "look_up", "arguments": {"word": "fen"}}}],
}
OUTPUT = {"role": "tool", "content": "a wet place"}
FIRST = {"role": "user", "content": "Hi"}
LONG = [SYSTEM, FIRST, {"role": "assistant", "content": "Hello."}, USER]
HH_TEXT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What is a fen?\n\nAssistant:"
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def preferences_in(path: Path, format: str = "auto", **settings: Any) -> ImportedFile:
    return read(ImportConfig(run=path.parent / "run", data=path, format=format, **settings))


def only(path: Path, format: Format = "trl") -> Any:
    """The one comparison and the preferred response of a file."""
    loaded = preferences_in(path, format)
    assert len(loaded.comparisons) == 1, loaded.dropped
    ranking = loaded.judgments[0].ranking
    return loaded.comparisons[0], loaded.comparisons[0].responses[ranking[0][0]].messages


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
    loaded, preferred = only(tmp_path / "b.parquet", "parquet")
    assert preferred == [{**GOOD, "name": "helper"}]
    assert loaded.prompt == [USER]


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
    loaded = preferences_in(write(tmp_path / "a.jsonl", [row]), "trl")
    assert loaded.scrubbed == 2
    assert loaded.comparisons[0].prompt[0]["content"] == "nul \ufffd here"
    loaded.comparisons[0].model_dump_json().encode("utf-8")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", '{"prompt": "a"}\nnot json\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", "[1, 2]", "a.jsonl:1: expected a JSON object"),
        ("a.txt", "x", "set format"),
        ("a.csv", "prompt,chosen,rejected\na,b,c,d\n", "row 1 has more fields"),
        ("a.parquet", "not parquet", "not a readable Parquet file"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", '{"prompt": "a", "chosen": "b", "rejected": null}\n', "no row is a usable preference"),
        ("a.csv", "prompt,chosen,chosen \na,b,c\n", "column 'chosen' stands twice"),
        ("a.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}', "1: .*'chosen' is given twice"),
        ("a.json", '[{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}]', "'chosen' is given twice"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    config = ImportConfig(run=tmp_path / "runs" / "import", data=tmp_path / name, feedback=tmp_path / "f.db")
    with pytest.raises(BadInput, match=reason):
        import_preferences(config)
    assert not (tmp_path / "f.db").exists(), "nothing may be half-written"


@pytest.mark.parametrize(
    ("row", "prompt", "preferred"),
    [
        ({"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [GOOD]),
        ({"prompt": [USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, [SYSTEM, USER], [GOOD]),
        ({"prompt": [SYSTEM], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [SYSTEM, USER], [GOOD]),
        (
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD], "system": "Be short."},
            [SYSTEM, USER, GOOD, USER],
            [GOOD],
        ),
        ({"prompt": [USER], "chosen": [{**CALL, "content": None}], "rejected": [BAD]}, [USER], [CALL]),
        ({"prompt": " What is\na fen? ", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [GOOD]),
        ({"prompt": [FIRST], "chosen": LONG + [GOOD], "rejected": LONG + [BAD]}, LONG, [GOOD]),
        ({"prompt": "Hi", "chosen": LONG[1:] + [GOOD], "rejected": LONG[1:] + [BAD]}, LONG[1:], [GOOD]),
        ({"prompt": USER["content"], "chosen": LONG + [GOOD], "rejected": LONG + [BAD]}, LONG, [GOOD]),
        ({"prompt": LONG[1:3], "chosen": LONG + [GOOD], "rejected": LONG + [BAD]}, LONG, [GOOD]),
        ({"prompt": LONG[2:], "chosen": LONG + [GOOD], "rejected": LONG + [BAD]}, LONG, [GOOD]),
        (
            {"prompt": USER["content"], "chosen": [*LONG, CALL, OUTPUT, GOOD], "rejected": [*LONG, CALL, OUTPUT, BAD]},
            [*LONG, CALL, OUTPUT],
            [GOOD],
        ),
        ({"prompt": LONG, "chosen": LONG[1:] + [GOOD], "rejected": LONG[1:] + [BAD]}, LONG, [GOOD]),
        (
            {"prompt": [USER], "chosen": [USER, CALL, OUTPUT, GOOD], "rejected": [USER, CALL, OUTPUT, BAD]},
            [USER],
            [CALL, OUTPUT, GOOD],
        ),
        (
            {"prompt": "", "chosen": [USER, GOOD], "rejected": [{**USER, "content": "What is a fen? "}, BAD]},
            [USER],
            [GOOD],
        ),
        ({"prompt": HH_TEXT, "chosen": " A wetland.", "rejected": " A coin."}, LONG[1:], [GOOD]),
        ({"prompt": HH_TEXT, "chosen": HH_TEXT + " A wetland.", "rejected": HH_TEXT + " A coin."}, LONG[1:], [GOOD]),
        ({"prompt": "Hi", "chosen": HH_TEXT + " A wetland.", "rejected": HH_TEXT + " A coin."}, LONG[1:], [GOOD]),
        (
            {"prompt": "Human: the word?", "chosen": "A wetland.", "rejected": "A coin."},
            [{"role": "user", "content": "Human: the word?"}],
            [GOOD],
        ),
        (
            {"question": USER["content"], "system": SYSTEM["content"], "chosen": "A wetland.", "rejected": "A coin."},
            [SYSTEM, USER],
            [GOOD],
        ),
        (
            {
                "prompt": [{"from": "human", "value": USER["content"]}],
                "chosen": [{"from": "gpt", "value": "A wetland."}],
                "rejected": [{"from": "gpt", "value": "A coin."}],
            },
            [USER],
            [GOOD],
        ),
        ({"prompt": [USER["content"]], "chosen": ["A wetland."], "rejected": ["A coin."]}, [USER], [GOOD]),
        (
            {"instruction": "What is", "input": "a fen?", "chosen": "A wetland.", "rejected": "A coin."},
            [{"role": "user", "content": "What is\n\na fen?"}],
            [GOOD],
        ),
    ],
)
def test_prompts_are_found_wherever_they_stand(
    tmp_path: Path, row: dict[str, Any], prompt: list[dict[str, Any]], preferred: list[dict[str, Any]]
) -> None:
    comparison, better = only(write(tmp_path / "a.jsonl", [row]))
    assert (comparison.prompt, better) == (prompt, preferred)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "same", "rejected": "same"}, "chosen equals rejected"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "a response is empty"),
        ({"chosen": "no prompt", "rejected": "none"}, "no prompt"),
        ({"prompt": "a", "rejected": "b"}, "no chosen response"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "chosen and rejected have different prompts"),
        ({"prompt": "a", "chosen": [GOOD, USER], "rejected": [BAD]}, "the last turn is not the assistant's"),
        ({"prompt": [USER, {"role": "user", "content": ""}], "chosen": "a", "rejected": "b"}, "an empty turn in"),
        ({"prompt": 7, "chosen": "a", "rejected": "b"}, "prompt is neither text nor messages"),
        ({"prompt": "a", "chosen": "a", "rejected": "b", "template_arguments": "x"}, "malformed"),
        (
            {"prompt": "A tree?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "its prompt is not that of its messages (prompt: 'A tree?'; messages: 'What is a fen?')",
        ),
        (
            {
                "prompt": [SYSTEM, USER],
                "chosen": [{**SYSTEM, "content": "Be long."}, USER, GOOD],
                "rejected": [{**SYSTEM, "content": "Be long."}, USER, BAD],
            },
            "two system prompts (prompt: 'Be short.'; messages: 'Be long.')",
        ),
        (
            {"system": "Be long.", "prompt": [SYSTEM, USER], "chosen": "a", "rejected": "b"},
            "two system prompts (column: 'Be long.'; messages: 'Be short.')",
        ),
        (
            {"prompt": HH_TEXT + " Sure,", "chosen": " a", "rejected": " b"},
            "its prompt ends within an answer ('Sure,')",
        ),
        (
            {"prompt": HH_TEXT, "chosen": " a\n\nHuman: b\n\nAssistant: c", "rejected": " d"},
            "chosen and rejected have different prompts",
        ),
        ({"prompt": "a", "chosen": ["one"], "rejected": ["two", "three"]}, "rejected is a list of 2 texts"),
        (
            {"prompt": ["a", "b"], "chosen": ["one", "two"], "rejected": ["three"]},
            "its lists of turns cannot be paired (prompt: 2, chosen: 2, rejected: 1)",
        ),
        (
            {"prompt": "a", "chosen": "x", "rejected": "y", "split": "fold 3"},
            "unknown split ('fold 3'; split=train, validation or test says where such rows go)",
        ),
        (
            {"prompt": [{"role": "user", "text": "a"}], "chosen": "x", "rejected": "y"},
            "prompt: a message of the user holds 'text', which is no field of a message; is it the content?",
        ),
    ],
)
def test_unusable_rows_say_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    usable = {"prompt": "another", "chosen": "one", "rejected": "two"}
    loaded = preferences_in(write(tmp_path / "a.jsonl", [{**row, "id": "r1"}, usable]), "trl")
    assert [entry.row for entry in loaded.kept] == [2]
    (dropped,) = loaded.dropped
    assert (dropped["row"], dropped["id"]) == (1, "r1") and dropped["reason"].startswith(reason)


def test_repeated_rows_count_once_and_contradicting_rows_not_at_all(tmp_path: Path) -> None:
    def row(prompt: str, better: str, worse: str) -> dict[str, Any]:
        return {"prompt": prompt, "chosen": better, "rejected": worse}

    rows = [row("a", "x", "y"), row("a", "x", "y"), row("b", "x", "y"), row("b", "y", "x"), row("b", "x", "y")]
    loaded = preferences_in(write(tmp_path / "a.jsonl", rows), "trl")
    assert [entry.row for entry in loaded.kept] == [1]
    reason = {entry["row"]: entry["reason"] for entry in loaded.dropped}
    assert reason[2] == "duplicate (of row 1)" and set(reason) == {2, 3, 4, 5}
    assert all(reason[number].startswith("contradicts another row") for number in (3, 4, 5))


def test_import_again_adds_nothing_and_limit_reads_the_first_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {n}", "chosen": "a", "rejected": "b", "id": n} for n in range(5)]
    data, feedback = write(tmp_path / "a.jsonl", rows), tmp_path / "f.db"
    first = import_preferences(ImportConfig(run=tmp_path / "runs" / "one", data=data, feedback=feedback, limit=3))
    again = import_preferences(ImportConfig(run=tmp_path / "runs" / "two", data=data, feedback=feedback))
    assert (first.headline["new_judgments"], again.headline["new_judgments"]) == (3, 2)
    with Store.open(feedback) as store:
        assert again.inputs["feedback"]["sha256"] == store.head() and store.verify().ok
        ids = {comparison.id for comparison in store.comparisons()}
        report = measure(votes_of(store.judgments()), {})
    traced = read_jsonl(tmp_path / "runs" / "two" / "rows.jsonl")
    assert {row["comparison_id"] for row in traced} == ids and [row["id"] for row in traced] == list("01234")
    assert report["position"]["value"] is None, "the order in a file is not an order on a screen"


def test_text_that_looks_like_json_or_like_a_line_end_stays_text(tmp_path: Path) -> None:
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow(['{"role": "user"}', '[1, "two\nlines"]', "[not json"])
    comparison, better = only(tmp_path / "a.csv", "csv")
    assert comparison.prompt == [{"role": "user", "content": '{"role": "user"}'}]
    assert better == [{"role": "assistant", "content": '[1, "two\nlines"]'}]
    row = {"prompt": "a\u2028b", "chosen": "c\x85d", "rejected": "e"}
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n\n", encoding="utf-8")
    assert only(tmp_path / "a.jsonl")[0].prompt[0]["content"] == "a\u2028b"
    (tmp_path / "b.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_jsonl(tmp_path / "b.jsonl") == [row]


def test_one_json_list_and_tabs_are_read_too(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"prompt\tchosen\trejected\nq\ta\tb\n"))
    assert only(tmp_path / "a.json") == only(tmp_path / "a.tsv.gz", "auto") == only(write(tmp_path / "a.jsonl", rows))


def test_hh_turns_inside_a_line_are_text() -> None:
    turns = read_hh("\n\nHuman: He said Human: hi.\nAssistant: no turn\n\nAssistant:  Two\n\nparagraphs. ")
    assert turns == [
        {"role": "user", "content": "He said Human: hi.\nAssistant: no turn"},
        {"role": "assistant", "content": "Two\n\nparagraphs."},
    ]
    assert read_hh("Hello\n\nHuman: hi") is None


def test_parquet_fields_that_only_other_rows_have_are_left_out(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g", "arguments": {"y": "2"}}}]
    rows = [
        {"prompt": [USER], "chosen": [{"role": "assistant", "tool_calls": [call]}], "rejected": [BAD], "tools": TOOLS}
        for call in calls
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    loaded = preferences_in(tmp_path / "a.parquet")
    expected = preferences_in(write(tmp_path / "a.jsonl", rows))
    assert loaded.format == "parquet" and loaded.comparisons == expected.comparisons
    assert len(loaded.comparisons) == 2


def test_files_of_one_name_are_different_people(tmp_path: Path) -> None:
    """Hub data sets are mostly called train.jsonl: the second must not overrule the first."""
    for name, better, worse in (("a", GOOD, BAD), ("b", BAD, GOOD)):
        (tmp_path / name).mkdir()
        data = write(tmp_path / name / "train.jsonl", [{"prompt": [USER], "chosen": [better], "rejected": [worse]}])
        import_preferences(ImportConfig(run=tmp_path / f"run-{name}", data=data, feedback=tmp_path / "f.db"))
    with Store.open(tmp_path / "f.db") as store:
        loaded = store.judgments()
    assert len(loaded) == 2 and loaded[0].ranking != loaded[1].ranking and loaded[0].annotator != loaded[1].annotator
