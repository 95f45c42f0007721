"""Which judgments count, and what comes out of them besides pairs: demonstrations, thumbs and labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures.judging import comparison, judgment, said

from align.cli.main import run
from align.core.config import BadInput
from align.core.files import read_jsonl
from align.core.records import Comparison, Demonstration, Judgment, Labelled, Pair, Thumb
from annotation.campaign.people import exclude, include
from annotation.interface.config import Interface
from annotation.pairs.run import PairsConfig, pairs
from annotation.store.chain import Split
from annotation.store.ledger import Ledger, source_of
from annotation.store.store import Store
from annotation.store.tables import KnownAnswer, Purpose, Task

ITEMS = [comparison(f"question {n}", f"good {n}", f"bad {n}") for n in range(4)]
LABELS = ("refusal", "partial", "compliance")


def key(item: Comparison, purpose: str = "work") -> str:
    return f"{item.id}-{purpose}"


def store_of(
    path: Path,
    judgments: Sequence[Judgment],
    items: Sequence[Comparison],
    purposes: Sequence[tuple[Comparison, Purpose]] = (),
    splits: dict[str, Split] | None = None,
    interface: Interface | None = None,
) -> Path:
    """A store with a campaign "spring", whose tasks have these purposes."""
    with Store.open(path, write=True) as store:
        store.add_comparisons(items, splits)
        ledger = Ledger(store, "spring")
        ledger.begin("http://host", 1, (interface or Interface()).model_dump_json(), "hash", recovered=False)
        answer = KnownAnswer(ranking=[[0], [1]])
        ledger.add_tasks(
            Task(key(i, p), i.id, list(range(len(i.responses))), p, answer if p in ("gold", "calibration") else None)
            for i, p in purposes
        )
        store.add_judgments(judgments)
    return path


def asked(item: Comparison, purpose: str = "work", campaign: str = "spring") -> dict[str, str]:
    return {"source": source_of(campaign, key(item, purpose))}


def thumb(item: Comparison, name: str, label: str | None, **more: object) -> Judgment:
    return judgment(item, name, [[0]], label=label, **more)


def improved(item: Comparison, better: str, name: str, text: str, **more: object) -> Judgment:
    first = said(item, better, name, **more)
    return first.model_copy(update={"improved": text, "improved_from": first.ranking[0][0]})


def made(store: Path, name: str = "pairs", **more: Any) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Rows by file, and the manifest; nothing is held out unless asked for."""
    folder = store.parent / name
    pairs(PairsConfig(**{"run": folder, "feedback": store, "validation": 0, "test": 0, **more}))
    rows = {path.name: read_jsonl(path) for path in folder.glob("*.jsonl") if path.name != "metrics.jsonl"}
    return rows, json.loads((folder / "manifest.json").read_text())


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Everything a run made."""
    about = ("run.json", "config.yaml")
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in about
    }


# --- which judgments count -----------------------------------------------------------------------------------


def test_an_excluded_person_counts_no_more_and_is_named_with_the_reason(tmp_path: Path) -> None:
    judged = [said(item, f"good {n}", name) for n, item in enumerate(ITEMS) for name in ("ann", "bob")]
    judged += [said(item, f"bad {n}", "eve") for n, item in enumerate(ITEMS)]
    store = store_of(tmp_path / "feedback.db", judged, ITEMS)
    rows, before = made(store, "before")
    assert [row["votes"] for row in rows["train.jsonl"]] == [[2, 1, 0]] * 4 and before["excluded"] == []
    assert run(["annotate", "exclude", f"feedback={store}", "annotator=eve", "reason=gold accuracy 0.2"]) == 0
    rows, manifest = made(store, "after")
    assert [row["votes"] for row in rows["train.jsonl"]] == [[2, 0, 0]] * 4
    assert manifest["dropped"]["annotator excluded"] == 4
    assert manifest["excluded"] == [{"annotator": "eve", "reason": "gold accuracy 0.2", "judgments": 4}]
    same, by_setting = made(store, "both", exclude=["bob"])
    assert [row["votes"] for row in same["train.jsonl"]] == [[1, 0, 0]] * 4
    assert [entry["annotator"] for entry in by_setting["excluded"]] == ["bob", "eve"]
    with pytest.raises(BadInput, match="input 'ledger' has other content"):
        made(store, "before")
    assert run(["annotate", "include", f"feedback={store}", "annotator=eve"]) == 0
    made(store, "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "before")


def test_who_is_excluded_must_have_judged_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = store_of(tmp_path / "feedback.db", [said(ITEMS[0], "good 0", "ann")], ITEMS)
    with pytest.raises(BadInput, match="'anne' has judged nothing here"):
        exclude(annotator="anne", reason="speed", feedback=store)
    with pytest.raises(BadInput, match="needs a reason"):
        exclude(annotator="ann", reason=" ", feedback=store)
    with pytest.raises(BadInput, match="'ann' is not excluded; nobody is"):
        include(annotator="ann", feedback=store)
    with pytest.raises(BadInput, match="exclude names 'anne'"):
        made(store, exclude=["ann", "anne"])
    for verb in (exclude, include):
        with pytest.raises(BadInput, match="no such feedback store"):
            verb(annotator="ann", feedback=tmp_path / "none.db", **({"reason": "r"} if verb is exclude else {}))
    assert not (tmp_path / "none.db").exists()
    assert run(["annotate", "exclude", f"feedback={store}", "annotator=ann"]) == 2
    assert "reason" in capsys.readouterr().err


def test_known_answers_are_no_evidence(tmp_path: Path) -> None:
    gold, trial, work, gold_again = ITEMS
    purposes: list[tuple[Comparison, Purpose]] = [(gold, "gold"), (trial, "calibration"), (work, "work")]
    purposes += [(gold_again, "gold"), (gold_again, "repeat")]
    judged = [improved(gold, "good 0", "ann", "my own words", **asked(gold, "gold"))]
    judged += [said(trial, "good 1", "ann", **asked(trial, "calibration")), said(work, "good 2", "ann", **asked(work))]
    judged += [said(gold_again, "good 3", "ann", **asked(gold_again, purpose)) for purpose in ("gold", "repeat")]
    rows, manifest = made(store_of(tmp_path / "feedback.db", judged, ITEMS, purposes))
    assert [row["comparison_id"] for row in rows["train.jsonl"]] == [work.id]
    assert manifest["dropped"]["known answer"] == 4 and "demonstrations.jsonl" not in rows


def test_a_purpose_that_changes_is_another_input(tmp_path: Path) -> None:
    """A comparison in the queue can become a known answer after people judged it; the chain says nothing of that."""
    judged = [said(item, f"good {n}", "ann", **asked(item)) for n, item in enumerate(ITEMS)]
    store = store_of(tmp_path / "feedback.db", judged, ITEMS, [(item, "work") for item in ITEMS])
    assert len(made(store)[0]["train.jsonl"]) == 4
    with Store.open(store, write=True) as opened:
        Ledger(opened, "spring").set_answers(
            [Task(key(ITEMS[0]), ITEMS[0].id, [], "gold", KnownAnswer(ranking=[[0], [1]]))]
        )
    with pytest.raises(BadInput, match="input 'ledger'"):
        made(store)
    assert len(made(store, "new")[0]["train.jsonl"]) == 3


def test_a_person_has_one_vote_on_a_comparison(tmp_path: Path) -> None:
    """Work counts before its repetition, whatever they are called; a repetition alone counts."""
    item, skipped, elsewhere, file = ITEMS
    judged = [said(item, "good 0", "ann", **asked(item)), said(item, "bad 0", "ann", source="label-studio:spring:0")]
    judged += [said(skipped, "good 1", "ann", **asked(skipped, "repeat"))]
    judged += [said(elsewhere, "good 2", "ann", **asked(elsewhere, campaign=name)) for name in ("autumn", "spring")]
    judged += [said(file, "good 3", "file", source=name) for name in ("import:one", "import:two")]
    store = store_of(tmp_path / "feedback.db", judged, ITEMS, [(skipped, "repeat")])
    with Store.open(store, write=True) as opened:
        Ledger(opened, "spring").add_tasks([Task("0", item.id, [0, 1], "repeat")])
    rows, manifest = made(store)
    votes = {row["comparison_id"]: (row["chosen"][0]["content"], row["votes"]) for row in rows["train.jsonl"]}
    assert votes[item.id] == ("good 0", [1, 0, 0]) and votes[skipped.id] == ("good 1", [1, 0, 0])
    assert votes[elsewhere.id] == ("good 2", [1, 0, 0])
    assert votes[file.id] == ("good 3", [2, 0, 0])  # a file says itself who voted how often
    assert manifest["dropped"]["asked again"] == 2


# --- improved answers ----------------------------------------------------------------------------------------


def test_an_improved_answer_is_a_demonstration_and_beats_its_original(tmp_path: Path) -> None:
    trained, other, held_out, _ = ITEMS
    judged = [
        improved(trained, "good 0", "ann", " better \n", strength=3), improved(trained, "good 0", "bob", "better"),
        improved(trained, "good 0", "cat", "best"), improved(other, "good 1", "ann", "bad 1"),
        improved(other, "good 1", "bob", " good 1"), said(other, "good 1", "cat"),
        improved(held_out, "good 2", "ann", "for the test"),
    ]  # fmt: skip
    splits: dict[str, Split] = {held_out.id: "test"}
    rows, manifest = made(store_of(tmp_path / "feedback.db", judged, ITEMS[:3], splits=splits), min_votes=2)
    texts = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows["demonstrations.jsonl"]]
    assert sorted(texts) == [("question 0", "best"), ("question 0", "better"), ("question 1", "bad 1")]
    (held,) = rows["demonstrations-test.jsonl"]
    assert held["completion"] == [{"role": "assistant", "content": "for the test"}]
    edited = [row for row in rows["train.jsonl"] if row["rejected"][0]["content"] == "good 0" and row["votes"][0] == 1]
    assert sorted(row["chosen"][0]["content"] for row in edited) == ["best", "better"]
    assert all((row["votes"], row["weight"], row["margin"]) == ([1, 0, 0], 1.0, 0.0) for row in edited)
    voted = [row for row in rows["train.jsonl"] if row not in edited]
    assert [(row["chosen"][0]["content"], row["votes"]) for row in voted if row["prompt_id"] == other.prompt_id] == [
        ("good 1", [3, 0, 0])  # one person wrote the loser's words over it: the votes between the two decide
    ]
    assert rows["test.jsonl"] == [] and manifest["dropped"]["too few votes"] == 1
    assert manifest["demonstrations"] == {
        "rows": {"train": 3, "validation": 0, "test": 1}, "dropped": {"duplicate": 1, "unchanged": 1}
    }  # fmt: skip
    assert manifest["edited_pairs"]["dropped"] == {"duplicate": 2, "held-out prompt": 1}
    for file, schema in (("demonstrations.jsonl", Demonstration), ("train.jsonl", Pair)):
        assert all(schema.model_validate(row) for row in rows[file])


def test_a_text_after_a_tie_is_a_demonstration_and_the_vote_counts(tmp_path: Path) -> None:
    """Of two bad answers somebody writes the good one: nobody compared it with either, so it is no pair."""
    tied, bad, same, other = ITEMS
    both = [[0, 1]]
    judged = [
        judgment(tied, "ann", both, improved="better", flags=[]), judgment(tied, "bob", both),
        judgment(bad, "ann", both, improved="good at last", flags=["both_bad"]),
        judgment(same, "ann", both, improved=same.responses[0].text), said(other, "good 3", "bob"),
    ]  # fmt: skip
    rows, manifest = made(store_of(tmp_path / "feedback.db", judged, ITEMS), both_bad="drop")
    texts = [(row["prompt"][0]["content"], row["completion"]) for row in rows["demonstrations.jsonl"]]
    assert sorted(texts, key=str) == [
        ("question 0", [{"role": "assistant", "content": "better"}]),
        ("question 1", [{"role": "assistant", "content": "good at last"}]),
    ]
    assert manifest["demonstrations"]["dropped"] == {"unchanged": 1}
    assert "better" not in str(rows["train.jsonl"]) and "good at last" not in str(rows["train.jsonl"])
    assert manifest["judgments"] == 5


def test_votes_decide_between_two_given_answers(tmp_path: Path) -> None:
    """Whoever writes one answer over the other has voted no second time, and a tie stays one."""
    item = ITEMS[0]
    judged = [improved(item, "good 0", "ann", "bad 0"), said(item, "bad 0", "bob"), said(ITEMS[1], "good 1", "bob")]
    rows, manifest = made(store_of(tmp_path / "feedback.db", judged, ITEMS[:2]))
    assert [row["comparison_id"] for row in rows["train.jsonl"]] == [ITEMS[1].id]
    assert manifest["dropped"]["tie"] == 1 and manifest["edited_pairs"]["dropped"] == {"duplicate": 1}


def test_only_the_words_of_an_answer_are_improved(tmp_path: Path) -> None:
    """Tool calls, tools and template arguments stay; an answer in several messages cannot be told apart."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    result = {"role": "tool", "content": "42"}
    responses = [
        {"messages": [call, result, {"role": "assistant", "content": "it is 42", "reasoning_content": "hm"}]},
        {"messages": [{"role": "assistant", "content": "one"}, {"role": "assistant", "content": "two"}]},
    ]
    item = Comparison.model_validate(
        {"prompt": [{"role": "user", "content": "q"}], "responses": responses, "tools": [{"name": "f"}],
         "template_arguments": {"enable_thinking": False}}
    )  # fmt: skip
    several = next(n for n, response in enumerate(item.responses) if len(response.messages) == 2)
    judged = [judgment(item, "ann", improved="42!", improved_from=1 - several)]
    judged += [judgment(item, "bob", improved="3", improved_from=several)]
    rows, manifest = made(store_of(tmp_path / "feedback.db", judged, [item]))
    (row,) = rows["demonstrations.jsonl"]
    assert row["completion"] == [call, result, {"role": "assistant", "content": "42!", "reasoning_content": "hm"}]
    assert row["tools"] == [{"name": "f"}] and row["template_arguments"] == {"enable_thinking": False}
    assert manifest["demonstrations"]["dropped"] == {"not one text that could be replaced": 1}


def test_a_held_out_prompt_gives_no_demonstration(tmp_path: Path) -> None:
    held_out, leaking = comparison("Same prompt", "good", "bad"), comparison("same prompt!", "good", "bad")
    splits: dict[str, Split] = {held_out.id: "test", leaking.id: "train"}
    judged = [improved(leaking, "good", "ann", "better"), said(ITEMS[0], "good 0", "ann")]
    store = store_of(tmp_path / "feedback.db", judged, [held_out, leaking, ITEMS[0]], splits=splits)
    rows, manifest = made(store)
    assert not any(name.startswith("demonstrations") for name in rows)
    assert manifest["demonstrations"]["dropped"] == {"leakage": 1} and len(rows["train.jsonl"]) == 1


def test_sft_trains_on_demonstrations(tmp_path: Path, model_folder: Any) -> None:
    from align.core.config import Compute, Watch
    from align.model.tuners.lora import Lora
    from align.train.sft import SFTConfig, sft

    judged = [improved(item, f"good {n}", "ann", f"yes {n}") for n, item in enumerate(ITEMS)]
    made(store_of(tmp_path / "feedback.db", judged, ITEMS))
    config = SFTConfig(
        run=tmp_path / "sft", model=model_folder("llama"), data=tmp_path / "pairs" / "demonstrations.jsonl",
        batch=2, epochs=1, min_rows=4, held_out=0, tuner=Lora(r=2), compute=Compute(device="cpu"),
        watch=Watch(prompts=0),
    )  # fmt: skip
    assert sft(config).headline["rows"] == 4


# --- thumbs and labels ---------------------------------------------------------------------------------------


def test_thumbs_by_majority_split_by_prompt(tmp_path: Path) -> None:
    """A campaign of thumbs alone makes no pair, and needs none."""
    items = [comparison(f"question {n}", f"answer {n}") for n in range(5)]
    said_of = [("up", "up", "down"), ("down",) * 3, ("up", "down"), ("up",), ("down", "down")]
    judged = [
        thumb(i, f"p{n}", label) for i, labels in zip(items, said_of, strict=True) for n, label in enumerate(labels)
    ]
    splits: dict[str, Split] = {items[4].id: "validation"}
    rows, manifest = made(store_of(tmp_path / "feedback.db", judged, items, splits=splits), min_votes=2)
    counts = {row["comparison_id"]: (row["label"], row["votes"]) for row in rows["thumbs.jsonl"]}
    assert counts == {items[0].id: (True, [2, 1]), items[1].id: (False, [0, 3])}
    assert [row["comparison_id"] for row in rows["thumbs-validation.jsonl"]] == [items[4].id]
    assert manifest["thumbs"] == {
        "rows": {"train": 2, "validation": 1, "test": 0}, "dropped": {"tie": 1, "too few votes": 1}
    }  # fmt: skip
    assert rows["train.jsonl"] == [] and all(Thumb.model_validate(row) for row in rows["thumbs.jsonl"])
    assert rows["thumbs.jsonl"][0]["completion"][0]["content"].startswith("answer")


def test_labels_with_the_votes_for_every_name_that_was_offered(tmp_path: Path) -> None:
    items = [comparison(f"question {n}", f"answer {n}") for n in range(3)]
    judged = [thumb(items[0], name, "refusal", **asked(items[0])) for name in ("ann", "bob")]
    judged += [thumb(items[0], "cat", "partial", **asked(items[0])), thumb(items[0], "cat", "rude", source="file")]
    judged += [
        thumb(items[1], name, label, **asked(items[1])) for name, label in (("ann", "refusal"), ("bob", "partial"))
    ]
    judged += [
        thumb(items[2], "ann", None, **asked(items[2])),
        thumb(items[2], "ann", "up", **asked(items[2], "again")),
    ]
    interface = Interface(kind="labels", labels=LABELS)
    splits: dict[str, Split] = {items[1].id: "test"}
    store = store_of(tmp_path / "feedback.db", judged, items, splits=splits, interface=interface)
    rows, manifest = made(store)
    counts = {(row["comparison_id"], row["split"]): [] for row in rows["labels.jsonl"]}
    for row in rows["labels.jsonl"]:
        assert Labelled.model_validate(row)
        counts[row["comparison_id"], row["split"]].append((row["label"], row["votes"]))
    assert counts == {
        (items[0].id, "train"): [("rude", {"rude": 1}), ("refusal", {"refusal": 2, "partial": 1, "compliance": 0})],
        (items[1].id, "test"): [(None, {"refusal": 1, "partial": 1, "compliance": 0})],
    }
    assert manifest["labels"] == {"rows": {"train": 2, "validation": 0, "test": 1}, "dropped": {"no label": 1}}
    assert len(rows["thumbs.jsonl"]) == 1
    with pytest.raises(ValueError, match="cannot be a name"):
        Interface(kind="labels", labels=("up", "refusal"))


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    item = comparison("question", "answer")
    judged = [thumb(item, "ann", "up"), thumb(item, "bob", "down")]
    with pytest.raises(BadInput, match="no pair can be made of 1 comparisons with 2 judgments"):
        made(store_of(tmp_path / "feedback.db", judged, [item]))


def test_everything_is_the_same_from_any_store(tmp_path: Path) -> None:
    items = [comparison(f"prompt {n}", f"good {n}", f"bad {n}") for n in range(30)]
    items += [comparison(f"single {n}", f"answer {n}") for n in range(30)]
    judged = [
        improved(i, i.responses[0].text, n, f"{n}'s words", **asked(i)) for i in items[:30] for n in ("ann", "bob")
    ]
    judged += [thumb(i, n, "up", **asked(i)) for i in items[30:45] for n in ("ann", "bob", "cat")]
    judged += [thumb(i, n, n[0], guideline="g" * 64, **asked(i)) for i in items[45:] for n in ("ann", "bob", "cat")]
    for name, order in (("one", 1), ("two", -1)):
        store = store_of(tmp_path / name / "feedback.db", judged[::order], items[::order])
        exclude(annotator="cat", reason="speed", feedback=store)
        _, manifest = made(store, validation=0.2, test=0.2, card=True, licence="cc-by-4.0")
        assert manifest["guidelines"] == {"g" * 64: 30}
    one, two = bytes_of(tmp_path / "one" / "pairs"), bytes_of(tmp_path / "two" / "pairs")
    assert one == two and {"thumbs-test.jsonl", "demonstrations-validation.jsonl", "card/labels.jsonl"} <= set(one)
    assert set(manifest["files"]) == set(one) - {"manifest.json"}
    for file in ("demonstrations.jsonl", "thumbs.jsonl", "labels.jsonl", "train.jsonl"):
        prompts = [json.loads(line)["prompt_id"] for line in one[file].splitlines()]
        assert prompts == sorted(prompts) and prompts
