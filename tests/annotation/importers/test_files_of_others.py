"""Files as other people's programs leave them: read right, or refused with a reason, and never something else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.core.config import BadInput
from align.core.files import write_jsonl
from annotation.agreement.run import AgreementConfig, agreement
from annotation.importers.collector import SEVERAL
from annotation.importers.demonstrations import read_demonstrations
from annotation.importers.imported import ImportedFile
from annotation.importers.run import ImportConfig, import_preferences, read
from annotation.pairs.run import PairsConfig, pairs
from annotation.store.erasure import erase
from annotation.store.store import Store

PAIR = {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Chair."}


def brought(path: Path, **settings: Any) -> ImportedFile:
    return read(ImportConfig(run=path.parent / "run", data=path, **settings))


def rows_of(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> ImportedFile:
    write_jsonl(tmp_path / "a.jsonl", rows)
    return brought(tmp_path / "a.jsonl", **settings)


def prompts(loaded: ImportedFile) -> list[list[tuple[str, str]]]:
    return [[(turn["role"], turn["content"]) for turn in entry.comparison.prompt] for entry in loaded.kept]


def test_a_column_without_a_name_is_no_system_prompt_and_no_input(tmp_path: Path) -> None:
    """pandas writes the index of a table so."""
    (tmp_path / "a.csv").write_text(",prompt,chosen,rejected\n7,Name a fruit.,Apple.,Chair.\n")
    for settings in ({}, {"columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}):
        loaded = brought(tmp_path / "a.csv", **settings)
        assert prompts(loaded) == [[("user", "Name a fruit.")]]
        assert "columns not read: (without a name)" in loaded.notes


def test_a_column_mapped_to_one_thing_is_no_other_by_its_name(tmp_path: Path) -> None:
    row = {"prompt": "p", "system": "Apple.", "other": "Chair.", "label": "left"}
    loaded = rows_of(tmp_path, row, columns={"left": "system", "right": "other", "label": "label"})
    assert prompts(loaded) == [[("user", "p")]] and {r.text for r in loaded.comparisons[0].responses} == {
        "Apple.",
        "Chair.",
    }


def test_who_maps_the_better_response_has_to_map_the_worse_too(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no column 'rejected'; say which holds it with columns.rejected="):
        rows_of(tmp_path, {"prompt": "p", "c": "Apple.", "r": "Chair."}, columns={"chosen": "c"})


def test_a_system_prompt_is_found_by_its_usual_name(tmp_path: Path) -> None:
    loaded = rows_of(tmp_path, {"system_prompt": "Be brief.", **PAIR})
    assert prompts(loaded) == [[("system", "Be brief."), ("user", "Name a fruit.")]]


def test_turns_as_help_steer_marks_them_are_turns(tmp_path: Path) -> None:
    prompt = "Name a fruit.\n<extra_id_1>Assistant\nApple.\n<extra_id_1>User\nAnd a bird?"
    row = {"response_1": "Owl.", "response_2": "Desk.", "preference_strength": -2}
    expected = [("user", "Name a fruit."), ("assistant", "Apple."), ("user", "And a bird?")]
    for text in (prompt, f"{prompt}\n<extra_id_1>Assistant\n"):
        assert prompts(rows_of(tmp_path, {"prompt": text, **row})) == [expected]


def test_messages_as_python_prints_them_are_refused(tmp_path: Path) -> None:
    """pandas' CSV of a column of lists; its arrays have no commas, so nothing could read them right."""
    cells = {key: f"[{{'content': '{value}', 'role': 'user'}}]" for key, value in PAIR.items()}
    loaded = rows_of(tmp_path, cells, PAIR, {"id": 3, **PAIR, "chosen": "['a', 'b']"})
    assert len(loaded.kept) == 2 and "as Python prints them" in loaded.dropped[0]["reason"]


def test_turns_as_python_prints_them_are_refused(tmp_path: Path) -> None:
    cells = {key: f"['{value}', 'and more']" for key, value in PAIR.items()}
    loaded = rows_of(tmp_path, cells, {**PAIR, "chosen": "['Apple.']"})
    assert "its turns are lists as Python prints them" in loaded.dropped[0]["reason"] and len(loaded.kept) == 1


def test_a_system_prompt_beside_a_developers_is_not_lost(tmp_path: Path) -> None:
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Name a fruit."}]
    loaded = rows_of(tmp_path, *({**PAIR, "prompt": turns, "system": text} for text in ("Be brief.", "Be long.")))
    assert [entry.row for entry in loaded.kept] == [1] and loaded.dropped[0]["reason"].startswith("two system prompts")


def test_a_file_of_items_says_that_rows_are_votes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "items.jsonl", [{"id": 1.0, "prompt": "p", "left": "Apple.", "right": "Chair."}])
    loaded = rows_of(tmp_path, {"item": 1, "label": "right", "annotator": "ann"}, items=tmp_path / "items.jsonl")
    (entry,) = loaded.kept
    assert entry.comparison.responses[entry.judgment.ranking[0][0]].text == "Chair."


@pytest.mark.parametrize("text", ["</s>", "<|eot_id|>", "### Response:\n", "Assistant:", "<end_of_turn>"])
def test_marks_of_templates_are_told(tmp_path: Path, text: str) -> None:
    loaded = rows_of(tmp_path, {**PAIR, "prompt": f"Name a fruit.\n{text}"})
    assert loaded.kept and any("hold marks" in note and text.strip() in note for note in loaded.notes)


def test_a_line_for_excel_and_a_wrong_ending_do_not_hide_a_table(tmp_path: Path) -> None:
    table = "prompt;chosen;rejected\r\nName a fruit.;Apple, red;Chair.\r\n"
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\n" + table.encode())
    (tmp_path / "b.csv").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "c.csv.gz").write_bytes(table.encode())
    for name in ("a.csv", "b.csv", "c.csv.gz"):
        loaded = brought(tmp_path / name)
        assert {response.text for response in loaded.comparisons[0].responses} == {"Apple, red", "Chair."}


def test_people_and_rows_keep_their_number_in_a_table_with_gaps(tmp_path: Path) -> None:
    loaded = rows_of(tmp_path, {**PAIR, "annotator": 7, "id": 1}, {**PAIR, "annotator": 7.0, "id": 2.0})
    assert {judgment.annotator for judgment in loaded.judgments} == {"7"} and loaded.kept[1].name == "2"
    written = tmp_path / "gaps.csv"  # as a table with a gap is written out
    written.write_text("prompt,chosen,rejected,annotator,id\np,x,y,7.0,1.0\nq,x,y,7,2\nq,x,y,7.5,3\n")
    loaded = brought(written)
    assert {judgment.annotator for judgment in loaded.judgments} == {"7", "7.5"}
    assert [entry.name for entry in loaded.kept] == ["1", "2", "3"]


def test_preferences_as_openai_takes_them(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    row = {
        "input": {"messages": [{"role": "user", "content": "Name a fruit."}], "tools": [tool]},
        "preferred_output": [{"role": "assistant", "content": "Apple."}],
        "non_preferred_output": [{"role": "assistant", "content": "Chair."}],
    }
    loaded = rows_of(tmp_path, row)
    assert prompts(loaded) == [[("user", "Name a fruit.")]] and loaded.comparisons[0].tools == [tool]
    (entry,) = loaded.kept
    assert entry.comparison.responses[entry.judgment.ranking[0][0]].text == "Apple."


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"q": "p", "chosen_answer": "x", "rejected_answer": "y", "system": "s"}, "columns.chosen=chosen_answer col"),
        ({"q": "p", "preferred": "x", "dispreferred": "y"}, "columns.chosen=preferred columns.rejected=dispreferred"),
        ({"prompt": "p", "response_j": "x", "response_k": "y"}, "response_k columns.label=COLUMN"),
        ({"prompt": "p", "steps": ["x"]}, "columns.chosen=COLUMN columns.rejected=COLUMN"),
        ({"frage": "p", "gut": "x" * 30, "schlecht": "y" * 30}, "columns.chosen=COLUMN columns.rejected=COLUMN"),
        (
            {"user_prompt": "p", "model_response": "x", "score": 9},
            "columns.prompt=user_prompt columns.chosen=COLUMN",
        ),
        ({"id": "7", "fields": {"instruction": "p"}}, "--dry-run columns.chosen=COLUMN"),
        ({"WorkerId": "w", "Status": "ok", "answer_a": "x", "answer_b": "y"}, "answer_b columns.label=COLUMN"),
    ],
)
def test_a_command_to_start_from_guesses_only_what_names_tell(tmp_path: Path, row: dict[str, Any], hint: str) -> None:
    with pytest.raises(BadInput) as refused:
        rows_of(tmp_path, row)
    assert hint in str(refused.value)


def test_a_scale_around_zero_is_no_pair_of_labels(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "answer_a": "x", "answer_b": "y", "preference": n} for n in range(-3, 4)]
    with pytest.raises(BadInput) as refused:
        rows_of(tmp_path, *rows)
    assert "labels.left=[-1,-2,-3]" in str(refused.value) and "labels.right=[1,2,3]" in str(refused.value)
    assert "labels.tie=0 columns.strength=preference" in str(refused.value)


@pytest.mark.parametrize("expected", [("A is better", "Both are bad", "About the same"), (1, 4, 7)])
def test_of_many_labels_no_two_are_taken_for_the_sides(tmp_path: Path, expected: tuple[Any, ...]) -> None:
    rows = [{"prompt": f"p{n}", "answer_a": "x", "answer_b": "y", "which is better?": n} for n in expected]
    with pytest.raises(BadInput, match="'columns.label=which is better\\?' labels.left=LABEL labels.right=LABEL"):
        rows_of(tmp_path, *rows)


def test_workers_are_people_as_their_platform_calls_them(tmp_path: Path) -> None:
    rows = [{"WorkerId": f"w{n}", "prompt": "p", "answer_a": "x", "answer_b": "y", "label": "aab"[n]} for n in range(3)]
    loaded = rows_of(tmp_path, *rows, columns={"left": "answer_a", "right": "answer_b"})
    assert [judgment.annotator for judgment in loaded.judgments] == ["w0", "w1", "w2"] and len(loaded.comparisons) == 1


def test_names_of_columns_are_no_responses(tmp_path: Path) -> None:
    row = {"prompt": "p", "answer_a": "Apple.", "answer_b": "Chair.", "chosen": "answer_b", "rejected": "answer_a"}
    loaded = rows_of(tmp_path, row, {**row, "chosen": "Pear."})
    assert [entry.row for entry in loaded.kept] == [2]
    assert "map columns.left=answer_a columns.right=answer_b columns.label=chosen" in loaded.dropped[0]["reason"]
    loaded = rows_of(tmp_path, row, columns={"left": "answer_a", "right": "answer_b", "label": "chosen"})
    (entry,) = loaded.kept
    assert entry.comparison.responses[entry.judgment.ranking[0][0]].text == "Chair."


def test_a_column_called_prompt_holds_no_response(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="column 'prompt' cannot hold a response"):
        rows_of(tmp_path, PAIR, columns={"prompt": "chosen", "chosen": "prompt", "rejected": "rejected"})


def test_a_header_among_the_rows_is_no_row(tmp_path: Path) -> None:
    """Two tables, one after the other in one file."""
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\nName a fruit.,Apple.,Chair.\n" * 2)
    with pytest.raises(BadInput, match="row 2 is the header once more"):
        brought(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"columns": {"label": "who"}}, "'columns.label'; leave it out"),
        ({"columns": {"item": "who"}}, "'columns.item'; leave it out"),
        ({"columns": {"chosen": "chosen", "rejected": "rejected", "left": "who"}}, "'columns.left'; leave it out"),
        ({"labels": {"left": "x"}}, "'labels'; leave it out .it belongs to votes or label-studio"),
    ],
)
def test_a_map_that_is_not_read_is_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=f"read as preferences, which have no use for {named}"):
        rows_of(tmp_path, {**PAIR, "who": "ann"}, **settings)


def test_words_that_hold_for_no_row_are_told(tmp_path: Path) -> None:
    row = {**PAIR, "annotator": "ann", "split": "test", "language": "fr"}
    settings = {"annotator": "bob", "split": "train", "language": "de"}
    expected = [f"{name}={value} holds for no row: each says its own" for name, value in settings.items()]
    assert rows_of(tmp_path, row, **settings).notes == expected
    loaded = rows_of(tmp_path, row, {**PAIR, "prompt": "Name a bird."}, **settings)
    assert loaded.notes == [] and loaded.judgments[1].annotator == "bob" and loaded.comparisons[1].language == "de"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NaN", "write for none"),
        ("#NAME?", "write for none"),
        ("x" * 32_767, "32,767 characters"),
        ("Nan is bread.", ""),
    ],
)
def test_what_tables_leave_of_a_text_is_told(tmp_path: Path, text: str, expected: str) -> None:
    for column in PAIR:
        notes = rows_of(tmp_path, {**PAIR, column: text}).notes
        assert len(notes) == bool(expected) and all(expected in note for note in notes)


def test_one_language_has_one_tag(tmp_path: Path) -> None:
    tags = {"eng": "en", "ger": "de", "deu_AT": "de-AT", "cmn-Hans": "zh-Hans", "grc": "grc", "lua": "en"}
    rows = [{**PAIR, "prompt": f"Name {n}.", "language": tag} for n, tag in enumerate(tags)]
    assert [comparison.language for comparison in rows_of(tmp_path, *rows).comparisons] == [*tags.values()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"prompt": {"0": "p", "1": "q"}, "chosen": {"0": "x", "1": "y"}}, "holds columns, not rows"),
        ({"prompt": ["p", "q"], "chosen": ["x", "y"], "rejected": ["v", "w"]}, "holds columns, not rows"),
        ({"columns": ["prompt"], "index": [0], "data": [["p"]]}, "or 'data'"),
        ({"rows": [PAIR]}, "is it the list in 'rows'"),
    ],
)
def test_a_table_in_one_object_is_no_row(tmp_path: Path, content: dict[str, Any], expected: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=expected):
        brought(tmp_path / "a.json")


def test_one_row_on_one_line_is_a_row(tmp_path: Path) -> None:
    turns = {key: [{"role": "user" if key == "prompt" else "assistant", "content": PAIR[key]}] for key in PAIR}
    (tmp_path / "a.json").write_text(json.dumps(turns))
    assert len(brought(tmp_path / "a.json").kept) == 1


def test_thumbs_as_tables_hold_them_are_read(tmp_path: Path) -> None:
    labels = [False, 0, "0", 0.0, "FALSE", "bad", True, 1, "1", "good", "topic"]
    rows = [{"prompt": "p", "completion": f"c{n}", "label": label} for n, label in enumerate(labels)]
    write_jsonl(tmp_path / "a.jsonl", [*rows, {"prompt": "p", "completion": "c", "split": "spare"}])
    loaded = read_demonstrations(tmp_path / "a.jsonl")
    assert [entry["row"] for entry in loaded.dropped] == [1, 2, 3, 4, 5, 6]
    assert loaded.unread == {"label": 1, "split": 1}


def test_a_demonstration_whose_split_is_no_name_is_left_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c", "split": {"a": 1}}])
    loaded = read_demonstrations(tmp_path / "a.jsonl")
    assert [entry["reason"] for entry in loaded.dropped] == ["column 'split' holds no name ({'a': 1})"]


def test_marks_of_templates_in_demonstrations_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": "<|im_start|>user\nhi<|im_end|>", "completion": "c"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_demonstrations(tmp_path / "a.jsonl").marked == {"<|im_start|>": 1}


def test_several_people_in_a_cell_are_told(tmp_path: Path) -> None:
    loaded = rows_of(tmp_path, {**PAIR, "annotator": ["a", "b"]}, {**PAIR, "prompt": "p", "annotator": ["a"]})
    assert [judgment.annotator for judgment in loaded.judgments] == ["a, b", "a"]
    assert loaded.notes == ["1 " + SEVERAL]


def made_pairs(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> list[str]:
    """The notes of pairs made of rows."""
    write_jsonl(tmp_path / "a.jsonl", rows)
    feedback = tmp_path / "f.db"
    import_preferences(ImportConfig(run=tmp_path / "import", data=tmp_path / "a.jsonl", feedback=feedback))
    return pairs(PairsConfig(run=tmp_path / "pairs", feedback=feedback, **settings)).notes


def test_a_question_in_two_splits_under_other_system_prompts_is_told(tmp_path: Path) -> None:
    expected = {"A": "train", "B": "test", "C": "train"}
    rows = [{**PAIR, "system": system, "split": split} for system, split in expected.items()]
    other = [{**PAIR, "prompt": "Name a bird.", "system": system, "split": "train"} for system in expected]
    (note,) = made_pairs(tmp_path, [*rows, *other], validation=0)
    assert note.startswith("1 questions are asked in training and in a held-out split")


def test_a_split_that_came_out_empty_is_told(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"Name {n}.", "split": "train" if n else "test"} for n in range(3)]
    (note,) = made_pairs(tmp_path, rows)
    assert note.startswith("validation holds no pair, though validation=0.1")


def test_fewer_votes_are_no_remedy_for_ties(tmp_path: Path) -> None:
    votes = [{**PAIR, "annotator": "a"}, {**PAIR, "chosen": "Chair.", "rejected": "Apple.", "annotator": "b"}]
    with pytest.raises(BadInput, match=r"\(1 tie\); collect more votes$"):
        made_pairs(tmp_path, votes)


def test_a_licence_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="ask for one with card=true"):
        PairsConfig(run=tmp_path / "run", licence="cc-by-4.0")


def test_a_comparison_to_erase_that_is_not_there_is_looked_for_among_comparisons(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAIR])
    feedback = tmp_path / "f.db"
    import_preferences(ImportConfig(run=tmp_path / "run", data=tmp_path / "a.jsonl", feedback=feedback))
    with pytest.raises(BadInput, match="holds the ids of comparisons"):
        list(erase(comparison="zzz", feedback=feedback, runs=tmp_path))


def test_a_row_in_two_files_is_not_two_people_who_agree(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"Name fruit {n}."} for n in range(4)]
    mended = [*rows[:2], {**rows[2], "chosen": "Pear."}, {**rows[3], "chosen": "Chair.", "rejected": "Apple."}]
    feedback = tmp_path / "f.db"
    for name, content, split in (("a", rows, None), ("b", mended, "test")):
        write_jsonl(tmp_path / f"{name}.jsonl", content)
        data = tmp_path / f"{name}.jsonl"
        record = import_preferences(ImportConfig(run=tmp_path / name, data=data, feedback=feedback, split=split))
    assert (record.headline["new_judgments"], record.headline["test_comparisons"]) == (2, 4)
    assert record.dropped == {"stands in the store already": 2}
    assert any(note.startswith("1 rows contradict a row of another imported file") for note in record.notes)
    with Store.open(feedback) as store:
        assert len(store.judgments()) == 6
        assert sum(split == "test" for split in store.splits().values()) == 4, "a split holds for rows told before"
    again = import_preferences(ImportConfig(run=tmp_path / "again", data=tmp_path / "a.jsonl", feedback=feedback))
    assert (again.headline["new_judgments"], again.dropped) == (0, {}), "its own rows are no copies"
    measured = agreement(AgreementConfig(run=tmp_path / "agreement", feedback=feedback))
    assert measured.headline["pairwise_agreement"] == 0


def test_demonstrations_leave_out_what_is_bad_or_held_out_and_read_turns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a fruit.\n\nAssistant:", "completion": "Apple."},
        {"prompt": "Name a fruit.", "completion": "Chair.", "label": False},
        {"prompt": "Name a fruit.", "completion": "Apple.", "label": True, "split": "train"},
        {"prompt": "Name a bird.", "completion": "Owl.", "split": "test"},
        {"prompt": "Name a tree.", "completion": "[{'role': 'assistant', 'content': 'Oak.'}]"},
    ]
    write_jsonl(tmp_path / "d.jsonl", rows)
    loaded = read_demonstrations(tmp_path / "d.jsonl")
    assert [row["row"] for row in loaded.rows] == [1, 3]
    assert [turn["role"] for turn in loaded.rows[0]["prompt"]] == ["user", "assistant", "user"]
    assert [entry["reason"].partition(" (")[0] for entry in loaded.dropped] == [
        "its label says that the completion is bad",
        "held out by its split",
        "completion holds messages as Python prints them",
    ]
    assert not loaded.unread and json.dumps(loaded.rows)
