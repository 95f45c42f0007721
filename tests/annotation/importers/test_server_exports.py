"""Exports that a real Label Studio wrote: what people said in stock templates and in the bridge's own interface."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaigns import GOOD, answer, choice, for_good, tasks, text
from fixtures.campaigns import judged

from align.cli.main import run
from align.core.config import BadInput
from align.core.files import read_jsonl
from annotation.aggregation.votes import votes_of
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.importers.columns import Columns, FileSettings, Labels
from annotation.importers.exports import read_export
from annotation.importers.imported import ImportedFile
from annotation.importers.run import ImportConfig, import_preferences
from annotation.interface.decode import EDITED
from annotation.label_studio.studio import Studio
from annotation.store.ledger import pseudonym
from annotation.store.store import Store

PAIRWISE = """<View><Pairwise name="comparison" toName="answer1,answer2"/><Text name="prompt" value="$prompt"/>
  <Text name="answer1" value="$answer1"/><Text name="answer2" value="$answer2"/>
  <TextArea name="why" toName="prompt"/></View>"""
CHOICES = """<View><Text name="prompt" value="$prompt"/><Text name="one" value="$one"/><Text name="two" value="$two"/>
  <Choices name="which" toName="prompt" choice="single"><Choice value="First"/><Choice value="Second"/>
    <Choice value="Tie"/><Choice value="Strange"/></Choices>
  <Choices name="flags" toName="prompt" choice="multiple"><Choice value="odd"/><Choice value="rude"/></Choices>
</View>"""
RANKER = """<View><Text name="prompt" value="$prompt"/><List name="answers" value="$items" title="All"/>
  <Ranker name="rank" toName="answers"/></View>"""
BUCKETS = RANKER.replace("/></View>", '><Bucket name="bad"/><Bucket name="good"/></Ranker></View>')
FORMS = ("JSON", "snapshot", "JSON_MIN")


def region(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "from_name": name, "to_name": "comparison" if kind == "pairwise" else "prompt", "type": kind,
            "value": value}  # fmt: skip


def selected(side: str) -> dict[str, Any]:
    return region("comparison", "pairwise", {"selected": side})


def chosen(name: str, *labels: str) -> dict[str, Any]:
    return region(name, "choices", {"choices": list(labels)})


def rank(value: Any) -> dict[str, Any]:
    return region("rank", "ranker", {"ranker": value})


def project(studio: Studio, title: str, config: str, data: Sequence[dict[str, Any]]) -> tuple[int, list[int]]:
    """A project made by hand, and the ids of its tasks."""
    made = studio.ensure_project(f"{title} {time.time_ns()}", config, {"maximum_annotations": 2}).id
    rows = [{"data": row} for row in data]
    reply = studio.connection.send("POST", f"api/projects/{made}/import", {"return_task_ids": "true"}, rows)
    return made, reply["task_ids"]


def say(studio: Studio, task: int, *result: dict[str, Any], **facts: Any) -> int:
    return int(
        studio.connection.send("POST", f"api/tasks/{task}/annotations/", body={"result": list(result), **facts})["id"]
    )


def colleague(studio: Studio) -> int:
    """A second account."""
    body = {"email": f"second-{time.time_ns()}@annotators.invalid", "first_name": "", "last_name": "", "username": "x"}
    return int(studio.connection.send("POST", "api/users/", body=body)["id"])


def export(studio: Studio, project: int, form: str, folder: Path) -> Path:
    """What the server itself writes: the export of all tasks, or a snapshot that names accounts with their fields."""
    path = f"api/projects/{project}/export"
    params = {"exportType": form, "download_all_tasks": "true"}
    if form == "snapshot":
        body = {"title": "s", "serialization_options": {"annotations__completed_by": {"only_id": False}}}
        made = f"{path}s/{studio.connection.send('POST', f'{path}s/', body=body)['id']}"
        while studio.connection.read(made)["status"] not in ("completed", "failed"):
            time.sleep(0.1)
        path, params = f"{made}/download", {"exportType": "JSON"}
    file = folder / f"{form}-{project}.json"
    file.write_bytes(studio.connection.client.get(studio.url + path, params=params).content)
    return file


def read(path: Path, **settings: Any) -> ImportedFile:
    columns, labels = Columns(**settings.pop("columns", {})), settings.pop("labels", Labels())
    return read_export(path, FileSettings(columns, labels), **settings)


def ranking(entry: Any) -> list[list[str]]:
    """Texts of a judgment, tie groups best first."""
    return [sorted(entry.comparison.responses[i].text for i in group) for group in entry.judgment.ranking]


def rankings_of(loaded: ImportedFile) -> dict[str, list[list[str]]]:
    return {entry.comparison.prompt[0]["content"]: ranking(entry) for entry in loaded.kept}


def plain(loaded: ImportedFile) -> list[str]:
    """Judgments in one order, without flags."""
    return sorted(judgment.model_copy(update={"flags": []}).model_dump_json() for judgment in loaded.judgments)


def reasons(loaded: ImportedFile) -> list[str]:
    return sorted(entry["reason"].partition(" (")[0] for entry in loaded.dropped)


def questions(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"q{i}", "answer1": f"left {i}", "answer2": f"right {i}"} for i in range(n)]


def cards(n: int) -> list[dict[str, Any]]:
    bodies = ("zero", "one", "two", "three")
    return [{"prompt": f"q{i}", "items": [{"id": f"c{k}", "title": "?", "body": body} for k, body in enumerate(bodies)]}
            for i in range(n)]  # fmt: skip


def test_every_form_of_a_stock_pairwise_export_says_the_same(studio: Studio, tmp_path: Path) -> None:
    number, ids = project(studio, "stock", PAIRWISE, questions(6))
    other = colleague(studio)
    say(studio, ids[0], selected("left"), lead_time=2.5)
    say(studio, ids[0], selected("right"), completed_by=other)
    say(studio, ids[1], selected("left"))
    say(
        studio, ids[1], selected("right"), region("why", "textarea", {"text": ["because", "so"]})
    )  # the last one counts
    say(studio, ids[2], was_cancelled=True)
    say(studio, ids[3])
    say(studio, ids[4], region("comparison", "pairwise", {"selected": "banana"}))
    studio.connection.send("POST", f"api/tasks/{ids[5]}/drafts", body={"result": [selected("left")], "lead_time": 1})
    loaded = {form: read(export(studio, number, form, tmp_path), columns={"rationale": "why"}) for form in FORMS}
    for form in FORMS:
        kept = loaded[form].kept
        assert [ranking(entry) for entry in kept if entry.comparison.prompt[0]["content"] == "q0"] in (
            [[["left 0"], ["right 0"]], [["right 0"], ["left 0"]]],
            [[["right 0"], ["left 0"]], [["left 0"], ["right 0"]]],
        )
        assert rankings_of(loaded[form])["q1"] == [["right 1"], ["left 1"]] and len(kept) == 3
        assert plain(loaded[form]) == plain(loaded["JSON"])
        for entry in kept:
            assert [entry.comparison.responses[i].text[:4] for i in entry.judgment.shown] == ["left", "righ"]
    edited = {form: [EDITED in j.flags for j in loaded[form].judgments].count(True) for form in FORMS}
    assert edited == {"JSON": 1, "snapshot": 1, "JSON_MIN": 0}  # one was sent in somebody else's name
    by_person = {entry.judgment.annotator: entry.judgment for entry in loaded["JSON"].kept[:2]}
    assert set(by_person) == {pseudonym("label-studio", 1), pseudonym("label-studio", other)}
    assert by_person[pseudonym("label-studio", 1)].seconds == 2.5
    assert loaded["JSON"].kept[-1].judgment.rationale == "because\nso"
    common = ["neither left nor right is selected", "nobody answered it"]
    common.append("superseded by a later answer of the same person")
    whole = [*common, "a draft that was not submitted", "skipped", "the result is empty"]
    assert reasons(loaded["JSON"]) == reasons(loaded["snapshot"]) == sorted(whole)
    empty = "the result is empty, or its choices are not named by columns.label"
    assert reasons(loaded["JSON_MIN"]) == sorted([*common, empty])  # it keeps no skips and no drafts


def test_fields_and_labels_of_choices_are_named(studio: Studio, tmp_path: Path) -> None:
    data = [{"prompt": f"q{i}", "one": f"left {i}", "two": f"right {i}"} for i in range(5)]
    number, ids = project(studio, "choices", CHOICES, data)
    for task, label in zip(ids, ("First", "Second", "Tie", "Strange"), strict=False):
        say(studio, task, chosen("which", label), chosen("flags", "odd", "rude"))
    say(studio, ids[4], chosen("flags", "odd"))
    settings = {
        "columns": {"left": "one", "right": "two", "label": "which"},
        "labels": Labels(left="First", right="Second"),
    }
    for form in FORMS:
        path = export(studio, number, form, tmp_path)
        loaded = read(path, **settings)
        assert rankings_of(loaded) == {
            "q0": [["left 0"], ["right 0"]],
            "q1": [["right 1"], ["left 1"]],
            "q2": [["left 2", "right 2"]],
        }
        assert reasons(loaded)[-1] == "unknown label" and len(loaded.dropped) == 2
    with pytest.raises(BadInput, match=r"row 1: has no column 'on' \(columns.left\); did you mean 'one'"):
        read(path, columns={"left": "on", "right": "two", "label": "which"}, labels=settings["labels"])
    with pytest.raises(BadInput, match="no column 'left'; say which holds it with columns.left"):
        read(path, columns={"label": "which"}, labels=settings["labels"])
    unnamed = read(export(studio, number, "JSON", tmp_path), columns={"left": "one", "right": "two"})
    assert reasons(unnamed) == ["more than one answer"] * 4 + ["unknown label"]


def test_rankings_by_order_and_by_bucket(studio: Studio, tmp_path: Path) -> None:
    number, ids = project(studio, "rank", RANKER, cards(5))
    say(studio, ids[0], rank({"rank": ["c1", "c3", "c2", "c0"]}))
    say(studio, ids[1], rank({"rank": ["c0", "c1", "c2", "c3"]}))  # untouched
    say(studio, ids[2], rank({"rank": ["c1", "c1", "c2", "c0"]}))
    say(studio, ids[3], rank({"rank": ["c1", "c9", "c2", "c0"]}))
    say(studio, ids[4], rank({"rank": ["c1", "c2"]}))
    for form in FORMS:
        loaded = read(export(studio, number, form, tmp_path))
        assert rankings_of(loaded) == {"q0": [["one"], ["three"], ["two"], ["zero"]]}
        assert [loaded.kept[0].comparison.responses[i].text for i in loaded.kept[0].judgment.shown] == [
            "zero", "one", "two", "three"
        ]  # fmt: skip
        assert reasons(loaded) == [
            "a card is placed twice", "cards are missing", "the order is the one that was shown", "unknown card"
        ]  # fmt: skip
    assert len(votes_of(loaded.judgments)) == 6

    number, ids = project(studio, "buckets", BUCKETS, cards(3))
    say(studio, ids[0], rank({"_": [], "bad": ["c1"], "good": ["c3", "c0", "c2"]}))
    say(studio, ids[1], rank({"_": ["c1"], "bad": [], "good": ["c3", "c0", "c2"]}))
    say(studio, ids[2], rank({"worst": ["c1"], "bad": [], "good": ["c3", "c0", "c2"]}))
    for form in FORMS:
        path = export(studio, number, form, tmp_path)
        with pytest.raises(BadInput, match=r"row 1: cards are sorted into buckets \(bad, good\).*buckets="):
            read(path)
        loaded = read(path, buckets=("good", "bad"))
        assert rankings_of(loaded) == {"q0": [["three", "two", "zero"], ["one"]]}
        assert reasons(loaded) == ["cards in no place", "unknown place"]


@pytest.mark.parametrize("form", FORMS)
def test_an_export_of_a_campaign_says_what_a_pull_says(
    studio: Studio, campaign: Campaign, tmp_path: Path, form: str
) -> None:
    number = push(campaign, studio).project
    shown = tasks(studio, campaign)
    stars = {"from_name": "rating_helpful_b", "to_name": "response_b", "type": "rating", "value": {"rating": 4}}
    for task in "0123":
        answer(studio, shown[task], [for_good(shown[task]), stars, text("rationale", "why\nso")], lead_time=4.5)
    answer(studio, shown["4"], [choice("both_bad")])
    answer(studio, shown["5"], [for_good(shown["5"]), text("improved", "the best answer")])
    answer(studio, shown["6"], [choice("banana")])
    answer(studio, shown["7"], [choice("too_disturbing")])
    path = export(studio, number, form, tmp_path)
    record = import_preferences(ImportConfig(run=tmp_path / "r" / "one", data=path, feedback=campaign.feedback))
    assert record.headline["format"] == "label-studio" and record.headline["new_judgments"] == 6
    assert record.dropped == {"not an answer to its interface": 1, "skipped": 1}
    by_task = judged(campaign)
    assert all(by_task[task][1] == f"{GOOD} {task}" for task in "01235") and by_task["4"][0].flags == ["both_bad"]
    with Store.open(campaign.feedback) as store:
        before = store.judgments()
    assert pull(campaign, studio).judgments == 6
    with Store.open(campaign.feedback) as store:
        assert store.judgments() == before, "the pull reads the same judgments again, and adds none"
    with pytest.raises(BadInput, match="8 x a pull has read it already"):
        import_preferences(ImportConfig(run=tmp_path / "r" / "two", data=path, feedback=campaign.feedback))


@pytest.mark.parametrize("form", ["JSON", "JSON_MIN"])
def test_sides_that_were_swapped_on_the_server_are_not_believed(
    studio: Studio, campaign: Campaign, tmp_path: Path, form: str
) -> None:
    number = push(campaign, studio).project
    shown = tasks(studio, campaign)
    for task in "01":
        answer(studio, shown[task], [for_good(shown[task])])
    left, right = (shown["0"].data[f"response_{letter}_html"] for letter in "ab")
    swapped = {**shown["0"].data, "response_a_html": right, "response_b_html": left}
    studio.connection.send("PATCH", f"api/tasks/{shown['0'].id}/", body={"data": swapped})
    path = export(studio, number, form, tmp_path)
    record = import_preferences(ImportConfig(run=tmp_path / "one", data=path, feedback=campaign.feedback))
    assert record.dropped == {"its task shows something else than what was sent": 1, "nobody answered it": 6}
    assert judged(campaign).keys() == {"1"}


def test_a_campaign_sent_from_elsewhere_comes_in_by_its_yaml(
    studio: Studio, campaign: Campaign, tmp_path: Path
) -> None:
    number = push(campaign, studio).project
    shown = tasks(studio, campaign)
    for task in "012":
        answer(studio, shown[task], [for_good(shown[task])])
    path, feedback = export(studio, number, "JSON", tmp_path), tmp_path / "elsewhere.db"
    with pytest.raises(BadInput, match="3 x its task was not sent from this store"):
        import_preferences(ImportConfig(run=tmp_path / "r" / "one", data=path, feedback=feedback))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(json.loads(campaign.model_dump_json())))
    words = [str(path), f"campaign={tmp_path / 'c.yaml'}", f"server={studio.url}", f"feedback={feedback}"]
    assert run(["import", *words, f"run={tmp_path / 'r' / 'two'}"]) == 0
    there = judged(campaign.model_copy(update={"feedback": feedback}))
    pull(campaign, studio)
    here = judged(campaign)
    assert {task: (j.annotator, j.ranking, j.shown, j.source) for task, (j, _) in there.items()} == {
        task: (j.annotator, j.ranking, j.shown, j.source) for task, (j, _) in here.items()
    }
    with Store.open(feedback) as store:
        assert set(store.splits().values()) == {"train"}
    rows = [row | {"project": row["project"] + 1} for row in json.loads(path.read_text()) if row["annotations"]]
    rows[0]["data"]["response_a_html"] = "another text"
    path.write_text(json.dumps(rows))
    assert "shows other texts" in read(path, campaign=tmp_path / "c.yaml").dropped[0]["reason"]
    elsewhere = read(path, feedback=campaign.feedback)  # in a project of that number this store sent nothing
    assert {reason[:36] for reason in reasons(elsewhere)} == {"its task was not sent from this stor"}


def test_what_is_foreign_in_an_export_is_told(studio: Studio, tmp_path: Path) -> None:
    number, ids = project(studio, "foreign", PAIRWISE, questions(5))
    for task in ids:
        say(studio, task, selected("left"))
    path = export(studio, number, "JSON", tmp_path)
    rows = sorted(json.loads(path.read_text()), key=lambda row: row["id"])
    rows[0]["annotations"][0]["completed_by"] = None
    rows[1]["annotations"][0]["updated_by"] = 77
    rows[2]["annotations"] = [12]
    rows[3]["data"] = "text"
    rows[4]["data"]["answer2"] = "left 4"
    path.write_text(json.dumps(rows))
    loaded = read(path)
    assert [entry.judgment.flags for entry in loaded.kept] == [[EDITED]]
    assert [entry["reason"] for entry in loaded.dropped] == [
        "nobody is named who gave it",
        "an annotation that was exported without its result",
        "no task with data and a list of annotations",
        "left equals right",
    ]
    for body, problem in {
        '{"data": {},\n "annotations": []}': "expected a list of rows, found one JSON object",
        '[{"chosen": "x"}]': "is no task of an export",
        "[": "not JSON",
    }.items():
        path.write_text(body)
        with pytest.raises(BadInput, match=problem):
            read(path)


def test_the_same_people_on_another_server_are_other_people(studio: Studio, tmp_path: Path) -> None:
    number, ids = project(studio, "people", PAIRWISE, questions(2))
    say(studio, ids[1], selected("left"))
    path, feedback = export(studio, number, "snapshot", tmp_path), tmp_path / "f.db"
    for name, whose, new in (("a", "label-studio", 1), ("b", "label-studio", 0), ("c", "another", 1)):
        config = ImportConfig(run=tmp_path / name, data=path, feedback=feedback, server=whose)
        assert import_preferences(config).headline["new_judgments"] == new
    first, second = json.loads(path.read_text())
    assert first["annotations"] == []  # told to be an export all the same
    address = second["annotations"][0]["completed_by"]["email"].encode()
    assert address and address not in b"".join(file.read_bytes() for file in tmp_path.glob("f.db*"))
    assert (
        "@" not in (tmp_path / "a" / "rows.jsonl").read_text() and len(read_jsonl(tmp_path / "a" / "rows.jsonl")) == 1
    )


@pytest.mark.parametrize("form", ["JSON", "JSON_MIN"])
def test_two_campaigns_that_ask_the_same_are_told_apart(
    studio: Studio, campaign: Campaign, tmp_path: Path, form: str
) -> None:
    """Their tasks have the same keys, and each drew its own sides."""
    second = campaign.model_copy(update={"name": f"{campaign.name} again"})
    numbers = {own.name: push(own, studio).project for own in (campaign, second)}
    for own in (campaign, second):
        for task in tasks(studio, own).values():
            answer(studio, task, [for_good(task)])
        path = export(studio, numbers[own.name], form, tmp_path)
        config = ImportConfig(run=tmp_path / "r" / own.name, data=path, feedback=campaign.feedback)
        record = import_preferences(config)
        assert record.headline["new_judgments"] == 8
        assert all(best.startswith(GOOD) for _, best in judged(campaign).values())
    with Store.open(campaign.feedback) as store:
        sources = {judgment.source.rpartition(":")[0] for judgment in store.judgments()}
    assert sources == {f"label-studio:{name}" for name in numbers}
