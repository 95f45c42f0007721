"""Push and pull on a real Label Studio: every comparison once, every word once, sides mapped back, nothing guessed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from campaigns import GOOD, answer, choice, for_good, tasks, text
from fixtures.campaigns import judged

from align.core.config import BadInput
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.campaign.text import lines
from annotation.interface.decode import EDITED
from annotation.label_studio.accounts import create_annotator
from annotation.label_studio.rows import KEY
from annotation.label_studio.server import Server
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger, pseudonym
from annotation.store.store import Store


def test_every_comparison_is_there_once_and_blind(studio: Studio, campaign: Campaign) -> None:
    first = push(campaign, studio)
    assert (first.tasks, first.new) == (8, 8)
    assert push(campaign, studio)[1:3] == (8, 0)
    shown = tasks(studio, campaign)
    assert len(shown) == 8
    assert not any("secret-run" in json.dumps(task.data) for task in shown.values())
    with Store.open(campaign.feedback) as store:
        sides = Ledger(store, campaign.name).tasks()
        comparisons = {c.id: c for c in store.comparisons()}
    for task in shown.values():
        own = sides[task.key]
        left = comparisons[own.comparison_id].responses[own.shown[0]].text
        assert left in task.data["response_a_html"]


def test_what_people_said_is_mapped_back_edited_and_taken_back(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    for number in "0123":
        answer(studio, shown[number], [for_good(shown[number]), text("rationale", "שלום <b>why</b>")])
    tie = answer(studio, shown["4"], [choice("0")])
    answer(studio, shown["5"], [choice("both_bad")])
    answer(studio, shown["6"], [], was_cancelled=True)
    improved = answer(studio, shown["7"], [for_good(shown["7"]), text("improved", "the best answer")])
    found = pull(campaign, studio)
    assert found.outcomes == {"judgment": 7, "skipped": 1} and found.judgments == 7
    said = judged(campaign)
    assert all(said[number][1] == f"{GOOD} {number}" for number in "01237")
    assert said["0"][0].strength == 2 and said["0"][0].rationale == "שלום <b>why</b>"
    assert said["4"][1] is None and said["5"][0].flags == ["both_bad"] and "6" not in said
    assert said["7"][0].improved == "the best answer"
    assert said["7"][0].ranking[0] == [said["7"][0].improved_from]
    assert pull(campaign, studio).outcomes == {}  # the overlap is read again, and nothing is new

    path = f"api/annotations/{tie}/"
    studio.connection.send("PATCH", path, body={"result": [for_good(shown["4"], 3)]})
    studio.connection.send("DELETE", f"api/annotations/{improved}/")
    again = pull(campaign, studio)
    assert (again.outcomes, again.taken_back, again.judgments) == ({"judgment": 1}, 1, 6)
    said = judged(campaign)
    assert said["4"][1] == f"{GOOD} 4" and said["4"][0].version == 2 and "7" not in said
    assert EDITED not in said["4"][0].flags


BROKEN = {
    "0": ([{**choice("1"), "from_name": "stranger"}], "unknown control 'stranger'"),
    "1": ([choice("banana")], "has no choice 'banana'"),
    "2": ([], "the result is empty"),
    "3": ([{"x": 1}], "unknown control None"),
    "4": ([{"from_name": "comparison", "to_name": "comparison", "type": "pairwise", "value": {"selected": "left"}}],
          "stock Pairwise"),
}  # fmt: skip


def test_what_cannot_be_read_is_set_aside_with_its_reason(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    ids = {number: answer(studio, shown[number], result) for number, (result, _) in BROKEN.items()}
    closed = campaign.model_copy(update={"annotators": ["somebody@else"]})
    answer(studio, shown["5"], [for_good(shown["5"])])
    found = pull(closed, studio)
    assert found.outcomes == {"quarantine": 6} and found.judgments == 0
    with Store.open(campaign.feedback) as store:
        reasons = {row.annotation_id: row.reason for row in Ledger(store, campaign.name).quarantined()}
    assert all("none of the campaign's annotators" in reason for reason in reasons.values())

    pulled = pull(campaign, studio, full=True)  # without the list of people, one of them can be read
    assert (pulled.outcomes, pulled.quarantined) == ({"judgment": 1, "quarantine": len(ids)}, len(ids))


def test_each_kind_of_broken_answer_has_its_reason(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    ids = {answer(studio, shown[number], result): number for number, (result, _) in BROKEN.items()}
    assert pull(campaign, studio).outcomes == {"quarantine": len(BROKEN)}
    with Store.open(campaign.feedback) as store:
        reasons = {ids[row.annotation_id]: row.reason for row in Ledger(store, campaign.name).quarantined()}
    for number, (_, told) in BROKEN.items():
        assert told in reasons[number]
    mended = next(annotation for annotation, number in ids.items() if number == "1")
    studio.connection.send("PATCH", f"api/annotations/{mended}/", body={"result": [for_good(shown["1"])]})
    after = pull(campaign, studio)
    assert (after.outcomes, after.quarantined, after.judgments) == ({"judgment": 1}, len(BROKEN) - 1, 1)


def test_a_lost_store_is_made_again_from_what_the_tasks_show(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    for number in "0123":
        answer(studio, shown[number], [for_good(shown[number])])
    pull(campaign, studio)
    before = {number: best for number, (_, best) in judged(campaign).items()}
    for file in campaign.feedback.parent.glob("feedback.db*"):
        file.unlink()
    again = push(campaign, studio)
    assert (again.tasks, again.new, again.recovered, again.unknown) == (8, 0, 8, 0)
    pull(campaign, studio, full=True)
    assert {number: best for number, (_, best) in judged(campaign).items()} == before
    assert len(studio.keys(again.project)) == 8


def test_an_interface_edited_by_hand_stops_the_bridge(studio: Studio, campaign: Campaign) -> None:
    project = push(campaign, studio).project
    config = studio.project(project).config.replace("<Header", "<Header size='1'", 1)
    config = config.replace('size="6"', "", 1)
    studio.connection.send("PATCH", f"api/projects/{project}/", body={"label_config": config})
    for act in (push, pull):
        with pytest.raises(BadInput, match="is not the campaign's"):
            act(campaign, studio)


def test_a_deleted_task_takes_its_judgment_along(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    answer(studio, shown["0"], [for_good(shown["0"])])
    assert pull(campaign, studio).judgments == 1
    studio.connection.send("DELETE", f"api/tasks/{shown['0'].id}/")
    found = pull(campaign, studio)
    assert (found.taken_back, found.judgments) == (1, 0)
    assert push(campaign, studio).new == 1
    answer(studio, shown["1"], [for_good(shown["1"])])
    assert (pull(campaign, studio).tasks, pull(campaign, studio).tasks) == (1, 0)  # nothing is read in vain


def test_an_answer_to_a_task_that_the_bridge_did_not_send_is_set_aside(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)["0"]
    data = shown.data | {KEY: "sent by somebody else"}
    studio.connection.send("POST", f"api/projects/{pushed_to(campaign)}/import", body=[{"data": data}])
    stranger = max(row.id for row in studio.keyed(pushed_to(campaign)))
    assert stranger > shown.id
    answer(studio, shown.model_copy(update={"id": stranger}), [for_good(shown)])
    found = pull(campaign, studio)
    assert (found.outcomes, found.judgments) == ({"quarantine": 1}, 0)


def test_changes_that_come_to_light_late_are_read(studio: Studio, campaign: Campaign) -> None:
    """An answer, an edit or a deletion may bear a moment before the newest that was read, by far or by little."""
    push(campaign, studio)
    shown = tasks(studio, campaign)
    numbers = [answer(studio, shown[name], [for_good(shown[name])]) for name in "012"]
    assert pull(campaign, studio).judgments == 3

    def later(watermark: str) -> None:
        with Store.open(campaign.feedback, write=True) as store:
            Ledger(store, campaign.name).advance(watermark)

    later((datetime.now(UTC) + timedelta(minutes=4)).isoformat())  # within the overlap
    studio.connection.send("PATCH", f"api/annotations/{numbers[0]}/", body={"result": [for_good(shown["0"], -2)]})
    assert pull(campaign, studio).tasks == 1
    answer(studio, shown["3"], [for_good(shown["3"])])
    found = pull(campaign, studio)
    assert (found.tasks, found.judgments) == (1, 4)
    later((datetime.now(UTC) + timedelta(hours=1)).isoformat())  # far outside: only the count of answers tells
    studio.connection.send("DELETE", f"api/annotations/{numbers[1]}/")
    found = pull(campaign, studio)
    assert (found.tasks, found.taken_back, found.judgments) == (1, 1, 3)
    answer(studio, shown["4"], [for_good(shown["4"])])
    assert pull(campaign, studio).judgments == 4
    assert {name: best for name, (_, best) in judged(campaign).items()}.keys() == {"0", "2", "3", "4"}


def test_nothing_is_pulled_before_it_was_pushed(studio: Studio, campaign: Campaign) -> None:
    with pytest.raises(BadInput, match="was never pushed from here"):
        pull(campaign, studio)


def test_names_in_the_store_are_no_addresses() -> None:
    assert pseudonym("http://a/", 1) != pseudonym("http://b/", 1) != pseudonym("http://b/", 2)
    assert "@" not in pseudonym("http://a/", 1)


# --- what people and managers do on the server ------------------------------------------------------------------


def chain(campaign: Campaign) -> int:
    """Judgments that stand in the chain."""
    with Store.open(campaign.feedback) as store:
        assert store.verify().ok
        return len(store.judgments())


def test_a_task_deleted_and_judged_anew_keeps_its_new_answer(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    task = tasks(studio, campaign)["0"]
    answer(studio, task, [for_good(task)])
    assert pull(campaign, studio).judgments == 1
    studio.connection.send("DELETE", f"api/tasks/{task.id}/")
    assert push(campaign, studio).new == 1
    task = tasks(studio, campaign)["0"]
    answer(studio, task, [for_good(task)])
    for full in (False, True):
        assert pull(campaign, studio, full=full).judgments == 1
    assert {number: best for number, (_, best) in judged(campaign).items()} == {"0": f"{GOOD} 0"}


def test_a_task_copied_by_hand_is_named_by_push(studio: Studio, campaign: Campaign) -> None:
    assert push(campaign, studio).copies == ()
    shown = tasks(studio, campaign)
    studio.connection.send("POST", f"api/projects/{pushed_to(campaign)}/import", body=[{"data": shown["0"].data}] * 2)
    ids = sorted(row.id for row in studio.keyed(pushed_to(campaign)) if row.key == shown["0"].key)
    pushed = push(campaign, studio)
    assert pushed.new == 0 and pushed.copies == ((ids[1], ids[0]), (ids[2], ids[0])) and shown["0"].id == ids[0]
    assert f"task {ids[2]} is a copy of task {ids[0]}, made on the server" in "\n".join(lines(pushed))
    copy = shown["1"].model_copy(update={"id": ids[2]})
    answer(studio, copy, [for_good(shown["0"])])  # now the copy is the one that counts
    assert [copy for copy, _ in push(campaign, studio).copies] == ids[:2]


def test_a_text_after_a_tie_loses_no_vote(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    for number, verdict in (("0", "both_bad"), ("1", "0")):
        answer(studio, shown[number], [choice(verdict), text("improved", f"a fine answer {number}")])
    assert pull(campaign, studio)[1:] == ({"judgment": 2}, 0, 0, 2)
    for number, flags in (("0", ["both_bad"]), ("1", [])):
        said, _ = judged(campaign)[number]
        assert (said.ranking, said.flags, said.improved_from) == ([[0, 1]], flags, None)
        assert said.improved == f"a fine answer {number}"


def test_of_two_answered_copies_one_may_go(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    task = tasks(studio, campaign)["0"]
    number = answer(studio, task, [for_good(task)])
    body = [{"data": task.data, "annotations": [{"result": [for_good(task, -1)]}]}]
    studio.connection.send("POST", f"api/projects/{pushed_to(campaign)}/import", body=body)
    assert pull(campaign, studio).judgments == 1  # one word of one person
    studio.connection.send("DELETE", f"api/annotations/{number}/")
    assert pull(campaign, studio).judgments == chain(campaign) == 1
    assert judged(campaign)["0"][1] != f"{GOOD} 0"
    answer(studio, task, [], was_cancelled=True)  # skipped there, judged on the copy
    assert pull(campaign, studio).judgments == pull(campaign, studio, full=True).judgments == 1


def test_an_answer_given_to_somebody_else_or_moved_counts_once(
    studio: Studio, server: Server, campaign: Campaign
) -> None:
    push(campaign, studio)
    (first, lower), *_, (second, higher) = sorted(tasks(studio, campaign).items(), key=lambda item: item[1].id)
    number = answer(studio, higher, [for_good(higher)])
    assert pull(campaign, studio).judgments == 1
    email, _ = create_annotator(server.url, server.token, f"p{number}")
    other = next(account for account, address in studio.users().items() if address == email)
    studio.connection.send("PATCH", f"api/annotations/{number}/", body={"completed_by": other})
    assert pull(campaign, studio).judgments == pull(campaign, studio, full=True).judgments == chain(campaign) == 1
    studio.connection.send(
        "PATCH", f"api/annotations/{number}/", body={"task": lower.id}
    )  # it is met there before it is missed
    assert pull(campaign, studio, full=True).judgments == chain(campaign) == 1
    assert set(judged(campaign)) == {first} != {second}
    studio.connection.send("DELETE", f"api/users/{other}/")  # the account is gone, the word and whose it was are known
    found = pull(campaign, studio, full=True)
    assert (found.judgments, found.quarantined) == (1, 0)


def test_of_two_answers_of_one_person_the_later_counts(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    task = tasks(studio, campaign)["0"]
    first = answer(studio, task, [for_good(task)])
    answer(studio, task, [for_good(task, -1)])
    assert pull(campaign, studio).outcomes == {"judgment": 1, "superseded": 1}
    assert judged(campaign)["0"][1] != f"{GOOD} 0"
    studio.connection.send("PATCH", f"api/annotations/{first}/", body={"result": [for_good(task, 1)]})
    assert pull(campaign, studio).outcomes == {"judgment": 1, "superseded": 1}
    assert judged(campaign)["0"][1] == f"{GOOD} 0" and chain(campaign) == 1


def test_what_the_server_copies_is_nobodys_judgment(studio: Studio, campaign: Campaign) -> None:
    project = push(campaign, studio).project
    shown = tasks(studio, campaign)
    number = answer(studio, shown["0"], [for_good(shown["0"])])
    chosen = {
        "selectedItems": {"all": False, "included": [shown["1"].id, shown["2"].id]},
        "source_annotation_id": number,
    }
    studio.connection.send("POST", "api/dm/actions/", {"id": "propagate_annotations", "project": project}, chosen)
    assert studio.count(project, answered=True) == 3
    found = pull(campaign, studio)
    assert found.outcomes == {"judgment": 1, "quarantine": 2}


@pytest.mark.parametrize("seconds", [7e10, 1e300, -5])
def test_a_time_that_cannot_be_is_no_time(studio: Studio, campaign: Campaign, seconds: float) -> None:
    push(campaign, studio)
    task = tasks(studio, campaign)["0"]
    answer(studio, task, [for_good(task)], lead_time=seconds)
    assert pull(campaign, studio).judgments == 1
    with Store.open(campaign.feedback) as store:
        assert store.judgments()[0].seconds is None


def test_a_full_pull_heals_a_chain_that_says_something_else(studio: Studio, campaign: Campaign) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    for number in "01":
        answer(studio, shown[number], [for_good(shown[number])])
    assert pull(campaign, studio).judgments == 2
    with Store.open(campaign.feedback, write=True) as store:
        first, second = store.judgments()
        store.withdraw([(first.comparison_id, first.annotator, first.source)], "lost")
        store.add_judgments([second.model_copy(update={"annotator": "nobody's"})])
    assert pull(campaign, studio).judgments == 2
    with Store.open(campaign.feedback) as store:
        assert "nobody's" in {judgment.annotator for judgment in store.judgments()}, "what did not change is not read"
    assert pull(campaign, studio, full=True).judgments == 2
    assert {number: best for number, (_, best) in judged(campaign).items()} == {n: f"{GOOD} {n}" for n in "01"}
    with Store.open(campaign.feedback) as store:
        assert {judgment.annotator for judgment in store.judgments()} == {first.annotator}


def pushed_to(campaign: Campaign) -> int:
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
    assert state is not None
    return state.project
