"""Published schemas by their columns: what each comes in as, or why it is refused. Rows are made up."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from align.cli.main import run
from align.core.config import BadInput
from align.core.files import read_jsonl, write_jsonl
from annotation.aggregation.votes import UNKNOWN_SIDES
from annotation.importers.columns import Columns, Labels
from annotation.importers.imported import ImportedFile
from annotation.importers.run import ImportConfig, read

FORMS = ("jsonl", "csv", "parquet")


def turns(*texts: str) -> list[dict[str, str]]:
    """A dialogue, beginning with the user."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def written(folder: Path, rows: list[dict[str, Any]], form: str = "jsonl") -> Path:
    path = folder / f"a.{form}"
    if form == "jsonl":
        write_jsonl(path, rows)
    elif form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            for row in rows:
                cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
                writer.writerow(cells)
    return path


def brought(folder: Path, rows: list[dict[str, Any]], form: str = "jsonl", **settings: Any) -> ImportedFile:
    return read(ImportConfig(run=folder / "run", data=written(folder, rows, form), **settings))


def orders_of(loaded: ImportedFile) -> list[tuple[list[str], list[list[str]]]]:
    """Prompt and texts by rank of each judgment."""
    return [
        (
            [message["content"] for message in entry.comparison.prompt],
            [sorted(entry.comparison.responses[i].text for i in group) for group in entry.judgment.ranking],
        )
        for entry in loaded.kept
    ]


X_WINS, Y_WINS, TIED = [["x"], ["y"]], [["y"], ["x"]], [["x", "y"]]
SCHEMAS: dict[str, tuple[list[dict[str, Any]], list[tuple[list[str], list[list[str]]]], dict[str, list[Any]]]] = {
    "UltraFeedback": (
        [{"prompt": "q", "prompt_id": "1", "messages": turns("q", "x"), "chosen": turns("q", "x"),
          "rejected": turns("q", "y"), "score_chosen": 8.5, "score_rejected": 6.0}],
        [(["q"], X_WINS)],
        {"margin": [2.5], "strength": [None]},
    ),
    "dpo-mix": (
        [{"dataset": "d", "chosen": turns("p", "o", "q", "x"), "rejected": turns("p", "o", "q", "y"),
          "chosen_rating": 5.0, "rejected_rating": 3.0}],
        [(["p", "o", "q"], X_WINS)],
        {"margin": [2.0]},
    ),
    "capybara": (
        [{"prompt": "p", "chosen": turns("p", "o", "q", "x"), "rejected": turns("p", "o", "q", "y"),
          "rating_chosen": 5, "rating_rejected": 4}],
        [(["p", "o", "q"], X_WINS)],
        {"margin": [1.0], "strength": [None]},
    ),
    "ShareGPT": (
        [{"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "x"},
          "rejected": {"from": "gpt", "value": "y"}}],
        [(["q"], X_WINS)],
        {},
    ),
    "Skywork": (
        [{"chosen": turns("q", "x"), "rejected": turns("q", "y"), "source": "s"}], [(["q"], X_WINS)], {}
    ),
    "Orca pairs": (
        [{"system": "Be kind.", "question": "q", "chosen": "x", "rejected": "y"}], [(["Be kind.", "q"], X_WINS)], {}
    ),
    "RewardBench": (
        [{"id": 7, "subset": "s", "prompt": "q", "chosen": "x", "chosen_model": "m", "rejected": "y"}],
        [(["q"], X_WINS)],
        {"name": ["7"]},
    ),
    "arena conversations": (
        [{"question_id": "a1", "model_a": "m", "model_b": "n", "winner": winner, "judge": f"u{winner}", "turn": 1,
          "conversation_a": turns(f"q{winner}", "x"), "conversation_b": turns(f"q{winner}", "y"), "language": "German"}
         for winner in ("model_a", "model_b", "tie", "tie (bothbad)")],
        [(["qmodel_a"], X_WINS), (["qmodel_b"], Y_WINS), (["qtie"], TIED), (["qtie (bothbad)"], TIED)],
        {"annotator": ["umodel_a", "umodel_b", "utie", "utie (bothbad)"], "language": ["de"] * 4,
         "flags": [[], [], [], ["both_bad"]]},
    ),
    "arena table": (
        [{"id": n, "model_a": "m", "model_b": "n", "prompt": '["q"]', "response_a": '["x"]', "response_b": '["y"]',
          "winner_model_a": a, "winner_model_b": b, "winner_tie": t}
         for n, (a, b, t) in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)])],
        [(["q"], X_WINS), (["q"], Y_WINS), (["q"], TIED)],
        {"name": ["0", "1", "2"]},
    ),
    "arena table with winner": (
        [{"id": w, "prompt": f"q{w}", "response_a": "x", "response_b": "y", "winner": w, "model_a": "m", "model_b": "n"}
         for w in ("model_a", "n", "tie", "both_bad")],
        [(["qmodel_a"], X_WINS), (["qn"], Y_WINS), (["qtie"], TIED), (["qboth_bad"], TIED)],
        {"flags": [[], [], [], ["both_bad"]]},
    ),
    "HelpSteer2": (
        [{"split": "val", "prompt": f"q{n}", "response_1": "x", "response_2": "y", "preference_strength": n,
          "preference_statement": "s"} for n in (-3, 1, 0)],
        [(["q-3"], X_WINS), (["q1"], Y_WINS), (["q0"], TIED)],
        {"strength": [3, 1, 0], "split": ["validation"] * 3, "flags": [[UNKNOWN_SIDES]] * 3},
    ),
    "HelpSteer3": (
        [{"domain": "code", "language": "python", "context": turns("p", "o", "q"), "response1": "x", "response2": "y",
          "overall_preference": 2, "individual_preference": [{"score": 2}]}],
        [(["p", "o", "q"], Y_WINS)],
        {"strength": [2], "language": ["en"]},
    ),
    "SHP": (
        [{"post_id": "1", "history": f"q{n}", "human_ref_A": "x", "human_ref_B": "y", "labels": n, "score_A": 3,
          "score_B": 1} for n in (1, 0)],
        [(["q1"], X_WINS), (["q0"], Y_WINS)],
        {},
    ),
    "PKU-SafeRLHF": (
        [{"prompt": f"q{n}", "response_0": "x", "response_1": "y", "is_response_0_safe": True,
          "better_response_id": n, "safer_response_id": 0} for n in (0, 1)],
        [(["q0"], X_WINS), (["q1"], Y_WINS)],
        {},
    ),
    "AlpacaEval": (
        [{"instruction": f"q{p}", "output_1": "x", "output_2": "y", "annotator": "m", "preference": p,
          "generator_1": "a"} for p in (1, 2.0, 1.02, 1.7, 1.5, 0)],
        [(["q1"], X_WINS), (["q2.0"], Y_WINS), (["q1.02"], X_WINS), (["q1.7"], Y_WINS), (["q1.5"], TIED),
         (["q0"], TIED)],
        {"annotator": ["m"] * 6},
    ),
    "LLMBar": (
        [{"input": f"q{n}", "output_1": "x", "output_2": "y", "label": n} for n in (1, 2)],
        [(["q1"], X_WINS), (["q2"], Y_WINS)],
        {},
    ),
    "WebGPT": (
        [{"question": {"full_text": f"q{n}", "id": "1"}, "answer_0": "x", "answer_1": "y", "score_0": n,
          "score_1": -n} for n in (0.5, -1.0, 0.0)],
        [(["q0.5"], X_WINS), (["q-1.0"], Y_WINS), (["q0.0"], TIED)],
        {"margin": [1.0, 2.0, 0.0]},
    ),
    "TL;DR": (
        [{"info": {"id": "1", "post": "Long.", "title": "T", "subreddit": "s"}, "choice": n, "worker": f"w{n}",
          "summaries": [{"text": "x", "policy": "p"}, {"text": "y", "policy": "q"}], "split": "valid1"}
         for n in (0, 1)],
        [(["SUBREDDIT: r/s\nTITLE: T\nPOST: Long.\nTL;DR:"], X_WINS),
         (["SUBREDDIT: r/s\nTITLE: T\nPOST: Long.\nTL;DR:"], Y_WINS)],
        {"annotator": ["w0", "w1"], "split": ["validation"] * 2},
    ),
    "Prometheus": (
        [{"orig_instruction": "q", "orig_response_A": "x", "orig_response_B": "y", "orig_preference": "B",
          "instruction": "###", "input": "### all of it", "output": "B"}],
        [(["q"], Y_WINS)],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", *(pytest.param(form, marks=pytest.mark.matrix) for form in FORMS[1:])])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_published_schema_comes_in_right_in_every_form(tmp_path: Path, name: str, form: str) -> None:
    rows, expected, facts = SCHEMAS[name]
    loaded = brought(tmp_path, rows, form)
    assert not loaded.dropped and orders_of(loaded) == expected
    error = {
        "annotator": [judgment.annotator for judgment in loaded.judgments],
        "flags": [judgment.flags for judgment in loaded.judgments],
        "language": [entry.comparison.language for entry in loaded.kept],
        "margin": [judgment.margin for judgment in loaded.judgments],
        "name": [entry.name for entry in loaded.kept],
        "split": [loaded.splits.get(entry.comparison.id) for entry in loaded.kept],
        "strength": [judgment.strength for judgment in loaded.judgments],
    }
    assert {key: error[key] for key in facts} == facts


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"prompt": "q", "answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 2}]}, "ranks several answers"),
        ({"instruction": "q", "completions": [{"response": "x", "overall_score": 8}]}, "rates several completions"),
        ({"message_id": "1", "parent_id": "0", "text": "x", "role": "assistant", "rank": 0}, "one message of a tree"),
        ({"prompt": "q", "response": "x", "helpfulness": 4, "correctness": 4}, "one rated response"),
        ({"orig_instruction": "q", "orig_response": "x", "orig_score": "4"}, "one graded response"),
        ({"prompt": "q", "completion": "x", "label": True}, "one completion with a thumb"),
        ({"prompt": "q", "completion": "x"}, "'align sft' reads demonstrations"),
        ({"messages": turns("q", "x")}, "'align sft' reads demonstrations"),
    ],
)
def test_what_holds_no_comparisons_is_refused_with_what_it_is(tmp_path: Path, row: dict[str, Any], error: str) -> None:
    with pytest.raises(BadInput, match=error):
        brought(tmp_path, [row])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"response_a": "x", "response_b": "y", "prompt": "q", "winner_model_a": 0, "winner_model_b": 0,
          "winner_tie": "?"}, "not one winner"),
        ({"info": "none", "summaries": [], "choice": 0}, "no post with two summaries"),
        ({"question": {"full_text": "q"}, "answer_0": "x", "answer_1": "y", "score_0": "?", "score_1": 1}, "no score"),
        ({"instruction": "q", "output_1": "x", "output_2": "y", "preference": 7}, "no label"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_keep_to_its_schema_says_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    loaded = brought(tmp_path, [row])
    assert [entry["reason"].partition(" (")[0] for entry in loaded.dropped] == [reason]


def test_several_turns_are_told_apart(tmp_path: Path) -> None:
    """Of dialogues that part at their first answer, a vote can only be read as one on that answer."""
    votes = {"model_a": "m", "winner": "model_a", "judge": "u", "conversation_b": turns("q", "y", "r", "z")}
    rows = [
        {**votes, "conversation_a": turns("q", "x", "r", "w")},
        {**votes, "conversation_a": turns("q", "x", "r", "w"), "turn": 2},
        {**votes, "conversation_a": turns("q", "y", "r", "w"), "turn": 2},
    ]
    loaded = brought(tmp_path, rows)
    assert orders_of(loaded) == [(["q"], X_WINS), (["q", "y", "r"], [["w"], ["z"]])]
    assert [entry["reason"] for entry in loaded.dropped] == ["its vote is on turn 2, before which the dialogues part"]
    assert any("1 rows compare whole dialogues that part at their first answer" in note for note in loaded.notes)


def test_turns_as_text_that_cannot_be_paired_are_no_prompt(tmp_path: Path) -> None:
    hot = {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
    rows = [
        {"prompt": '["p", "q"]', "response_a": '["x"]', "response_b": '["y", "z"]', **hot},
        {"prompt": '["p", "q"]', "response_a": '["o", "x"]', "response_b": '["o", null]', **hot},
        {"prompt": '["p"]', "response_a": '["\\ud83d"]', "response_b": '["y"]', **hot},
        {"prompt": "p", "response_a": '["a", "list"]', "response_b": "y", **hot, "winner_model_a": "1.0"},
        {"prompt": "p", "response_a": "x", "response_b": "y", **hot, "winner_tie": 1},
    ]
    loaded = brought(tmp_path, rows)
    assert orders_of(loaded) == [
        (["p", "o", "q"], [["x"], [""]]),
        (["p"], [["\ufffd"], ["y"]]),
        (["p"], [['["a", "list"]'], ["y"]]),
    ]
    assert [entry["reason"] for entry in loaded.dropped] == [
        "its lists of turns cannot be paired (prompt: 2, left: 1, right: 2)",
        "not one winner (winner_model_a: 1, winner_model_b: 0, winner_tie: 1)",
    ]
    assert loaded.scrubbed == 1


def test_a_mapped_label_beside_which_another_column_tells_ties_is_refused(tmp_path: Path) -> None:
    texts = {"prompt": "p", "response_a": "x", "response_b": "y", "who": "ann"}
    rows = [{**texts, "winner_model_a": a, "winner_model_b": b, "winner_tie": t}
            for a, b, t in ((1, 0, 0), (0, 0, 1), (0, 1, 0))]  # fmt: skip
    given: dict[str, Any] = {
        "columns": Columns(left="response_a", right="response_b", label="winner_model_a", annotator="who"),
        "labels": Labels(left=("1",), right=("0",)),
    }
    error = "column 'winner_tie' calls 1 rows ties, and columns.label=winner_model_a would make wins of them; make one"
    with pytest.raises(BadInput, match=error):
        brought(tmp_path, rows, **given)
    assert len(brought(tmp_path, [rows[0], rows[2]], **given).judgments) == 2, "where nothing is a tie, nothing is lost"


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_mapped_in_every_form(tmp_path: Path, form: str) -> None:
    """One map for all, with a split, an id, a language and somebody's name."""
    facts = {"who": "ann", "part": "test", "key": "k1", "speech": "French"}
    names = {"annotator": "who", "split": "part", "id": "key", "language": "speech", "prompt": "ask"}
    better = brought(
        tmp_path, [{"ask": "q", "good": "x", "bad": "y", **facts}], form,
        columns=Columns(**names, chosen="good", rejected="bad"),
    )  # fmt: skip
    voted = brought(
        tmp_path, [{"ask": "q", "one": "y", "two": "x", "best": 2.0, **facts}], form,
        columns=Columns(**names, left="one", right="two", label="best"), labels=Labels(left=("1",), right=("2",)),
    )  # fmt: skip
    for loaded in (better, voted):
        (kept,) = loaded.kept
        assert orders_of(loaded) == [(["q"], X_WINS)] and not loaded.notes
        assert (kept.judgment.annotator, kept.name, kept.comparison.language) == ("ann", "k1", "fr")
        assert loaded.splits == {kept.comparison.id: "test"}
    named = brought(tmp_path, [{"prompt": "q", "chosen": "x", "rejected": "y"}], form, annotator="bob")
    assert [judgment.annotator for judgment in named.judgments] == ["bob"]


def test_a_map_of_the_sides_sets_a_schema_aside(tmp_path: Path) -> None:
    """Turned round by the user, response 0 stands right: the schema's own meaning of a 0 would be the other one."""
    row = {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 0}
    columns = Columns(left="response_1", right="response_0", label="better_response_id")
    assert orders_of(brought(tmp_path, [row], columns=columns)) == [(["q"], X_WINS)]


def test_columns_lead_into_objects_and_lists(tmp_path: Path) -> None:
    row = {"meta": {"ask": "q"}, "outs": [{"text": "x"}, {"text": "y"}], "pick": 0}
    columns = Columns(prompt="meta.ask", left="outs.0.text", right="outs.1.text", label="pick")
    for form in FORMS:
        loaded = brought(tmp_path, [row], form, columns=columns, labels=Labels(left=("0",), right=("1",)))
        assert orders_of(loaded) == [(["q"], X_WINS)]
    with pytest.raises(BadInput, match="has no column 'outs.2.text'"):
        brought(tmp_path, [row], columns=columns.model_copy(update={"left": "outs.2.text"}))


@pytest.mark.parametrize(
    ("labels", "kept"),
    [([1, 2, 1.0, "2"], 4), ([0, 1], 0), (["output_2", "OUTPUT_1"], 2), ([1, 2, "?"], 0), ([1, 2, "tie"], 3)],
)
def test_a_label_may_be_what_tells_the_columns_apart(tmp_path: Path, labels: list[Any], kept: int) -> None:
    """Beside a 0, a 1 is the second of two and not ``output_1``: then nothing is read."""
    columns = Columns(prompt="q", left="output_1", right="output_2", label="l")
    rows = [{"q": f"q{n}", "output_1": "x", "output_2": "y", "l": label} for n, label in enumerate(labels)]
    loaded = brought(tmp_path, rows, columns=columns)
    assert len(loaded.kept) == kept
    for entry in loaded.kept:
        wins = str(labels[entry.row - 1])
        expected = TIED if wins == "tie" else X_WINS if wins in ("1", "1.0", "OUTPUT_1") else Y_WINS
        assert orders_of(loaded._replace(kept=[entry]))[0][1] == expected


def test_votes_that_name_nobody_repeat_contradict_or_have_ids_of_their_own(tmp_path: Path) -> None:
    row = {"prompt": "q", "left": "x", "right": "y", "label": "left"}
    loaded = brought(tmp_path, [row, row, {**row, "prompt": "r"}, {**row, "prompt": "r", "label": "right"}])
    assert orders_of(loaded) == [(["q"], X_WINS)] and [entry["row"] for entry in loaded.dropped] == [2, 3, 4]
    own = brought(tmp_path, [{**row, "id": n, "label": label} for n, label in enumerate(("left", "left", "right"))])
    assert len(own.comparisons) == 3 and not own.dropped


@pytest.mark.parametrize(
    ("rows", "nearest"),
    [
        ([{"query": f"q{n}", "answer_a": "x", "answer_b": "y", "preferred": "ab"[n % 2]} for n in range(4)], None),
        ([{"ask": f"q{n}", "first": "x" * 9, "second": "y" * 9, "vote": n % 2} for n in range(4)], None),
        ([{"Prompt": f"q{n}", "Chosen": "x", "Rejected": "y"} for n in range(3)], "chosen and rejected"),
        (
            [{"instruction": f"q{n}", "response1": "x", "response2": "y", "annotator1": n % 3} for n in range(1, 3)],
            None,
        ),
        (
            [
                {
                    "prompt": f"q{n}",
                    "model_a": "m",
                    "model_b": "n",
                    "answer_a": "x" * 9,
                    "answer_b": "y" * 9,
                    "won": "mn"[n],
                }
                for n in range(2)
            ],
            None,
        ),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_an_unmapped_file_is_answered_with_a_command_that_runs(
    tmp_path: Path, rows: list[dict[str, Any]], nearest: str | None, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, rows, form)
    assert run(["import", str(path), f"run={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in rows[0]) and error.count("\n") == 1
    assert nearest is None or f"nearest is '{nearest}'" in error
    command = shlex.split(error[error.index("align import") :])
    assert command[:2] == ["align", "import"] and "--dry-run" in command
    assert run(command[1:]) == 0
    shown = capsys.readouterr().out
    assert f"{len(rows)} judgments, 0 dropped" in shown and "better" in shown
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "run", ".lock"}, (
        "as the import that failed left it"
    )


def test_a_dry_run_shows_what_would_become_of_a_file_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"annotator": "ann", "prompt": "Name a fruit.", "left": "Apple.", "right": "Chair.", "label": "a"}
    rows = [
        {**row, "split": "test", "strength": 2},
        {**row, "annotator": "bob", "label": "tie"},
        {**row, "annotator": "cem", "label": "?"},
        {**row, "annotator": "dee", "label": "right", "left": "", "note": 1},
        {**row, "annotator": "eve", "prompt": "Name a bird."},
    ]
    write_jsonl(Path("v.jsonl"), rows)
    assert run(["import", "v.jsonl", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for line in (
        "v.jsonl: read as votes: 5 rows, 3 comparisons, 4 judgments, 1 dropped",
        "row 1:\n  user: Name a fruit.\n  -> better, shown left: Apple.\n  -> worse, shown right: Chair.\n"
        "  by ann, split test, en, strength 2\n",
        "  -> worse, shown left: (no text)\n",
        "split: 2 test\n",
        "ties: 1 of 4\n",
        "annotators: 4 (most: ann (1), bob (1), dee (1))\n",
        "dropped: 1 x unknown label ('?' in column 'label') (rows 3)\n",
        "note: columns not read: note\n",
    ):
        assert line in out
    assert "row 4:" in out and "row 5:" not in out, "three rows are shown"
    assert [path.name for path in tmp_path.iterdir()] == ["v.jsonl"]
    write_jsonl(Path("v.jsonl"), rows[2:3])
    assert run(["import", "v.jsonl", "--dry-run"]) == 2
    assert "no row is a usable preference, of 1 (1 x unknown label)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["v.jsonl"]


def test_a_second_import_says_why_it_did_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), [{"prompt": "q", "chosen": "x", "rejected": "y"}])
    assert run(["import", "a.jsonl"]) == 0
    capsys.readouterr()
    assert run(["import", "a.jsonl"]) == 0
    error = capsys.readouterr().err
    assert "runs/import is finished; nothing to do: a.jsonl was imported into feedback.db by that run" in error
    assert "run=..." in error
    assert run(["import", "a.jsonl", "feedback=other.db"]) == 2
    assert "other.db does not hold it (it went to feedback.db); name a folder of its own" in capsys.readouterr().err
    assert run(["import", "a.jsonl", "feedback=other.db", "run=runs/other"]) == 0
    Path("feedback.db").unlink()
    assert run(["import", "a.jsonl"]) == 2
    write_jsonl(Path("b.jsonl"), [{"prompt": "q", "chosen": "z", "rejected": "y"}])
    assert run(["import", "b.jsonl"]) == 2
    assert "input 'data' has other content" in capsys.readouterr().err
    assert [row["row"] for row in read_jsonl(Path("runs/import/rows.jsonl"))] == [1]
