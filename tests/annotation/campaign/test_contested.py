"""Which tasks are contested, and that on a real server exactly one more person is served each of them, once."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
from campaigns import answer, candidates, choice, for_good, tasks
from fixtures.judging import comparison, judgment
from fixtures.studio import PATIENT, rows, vote
from flaky_proxy import FlakyProxy

from align.core.config import BadInput
from align.core.records import Judgment
from annotation.aggregation.votes import answers_of
from annotation.agreement.answers import agreement, certainty, contested, winners
from annotation.campaign.contested import open_contested
from annotation.campaign.people import people as who
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.campaign.text import lines
from annotation.label_studio.accounts import create_annotator, create_token
from annotation.label_studio.connection import Missing
from annotation.label_studio.rows import Project
from annotation.label_studio.server import Server
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger, exclude
from annotation.store.store import Store

PAIR = comparison("which?", "this", "that")
THREE = comparison("rank", "one", "two", "three")
FIRST, SECOND, TIED = [[0], [1]], [[1], [0]], [[0, 1]]


def said(rankings: list[list[list[int]]], source: str = "t") -> list[Judgment]:
    item = PAIR if max(i for g in rankings[0] for i in g) == 1 else THREE
    return [judgment(item, f"person {n}", ranking, source=source) for n, ranking in enumerate(rankings)]


def labelled(*labels: str) -> list[Judgment]:
    one = comparison("name it", "text")
    return [judgment(one, f"person {n}", [[0]], label=label, source="t") for n, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("rankings", "is_contested"),
    [
        ([FIRST], False),
        ([FIRST, FIRST], False),
        ([FIRST, SECOND], True),
        ([FIRST, TIED], True),  # a tie is an answer of its own
        ([TIED, TIED], False),
        ([FIRST, FIRST, TIED], False),
        ([FIRST, SECOND, TIED], True),
        ([FIRST, FIRST, SECOND, SECOND], True),
        ([FIRST, FIRST, SECOND, TIED], True),  # most, and not more than half
        ([FIRST, FIRST, FIRST, SECOND], False),
    ],
)
def test_a_pair_is_contested_without_a_strict_majority(rankings: list[list[list[int]]], is_contested: bool) -> None:
    assert contested(answers_of(said(rankings))) == ({"t"} if is_contested else set())


def test_a_ranking_is_contested_when_half_of_its_pairs_are_undecided() -> None:
    one_swap = said([[[0], [1], [2]], [[1], [0], [2]]])  # one of three pairs
    two_swaps = said([[[0], [1], [2]], [[2], [0], [1]]])
    assert contested(answers_of(one_swap)) == set() and contested(answers_of(two_swaps)) == {"t"}


def test_a_label_is_contested_like_a_pair_and_only_in_its_own_task() -> None:
    assert contested(answers_of(labelled("refusal", "refusal", "answer"))) == set()
    assert contested(answers_of(labelled("refusal", "answer"))) == {"t"}
    apart = [*said([FIRST], "a"), *said([SECOND], "b")]  # the same two texts in two tasks, one word on each
    assert contested(answers_of(apart)) == set()


def test_a_bound_also_doubts_what_unreliable_people_agree_on() -> None:
    def cast(who: str, ranking: list[list[int]], n: int) -> Judgment:
        return judgment(comparison(f"q{n}", "this", "that"), who, ranking, source=f"t{n}")

    right = [(FIRST, SECOND)[n % 2] for n in range(20)]
    good = [cast(who, right[n], n) for n in range(20) for who in ("ann", "bob", "cem")]
    noisy = [cast("dot", right[n // 2], n) for n in range(20)]  # right half of the time
    given = answers_of([*good, *noisy, cast("dot", FIRST, 90), cast("ann", FIRST, 91)])
    sure = certainty(given)
    assert sure["t90", 0, 1] < 0.7 < 0.95 < sure["t91", 0, 1]
    assert contested(given) == set() and contested(given, posterior=0.8) == {"t90"}


def test_agreement_and_winners_of_a_small_table() -> None:
    judgments = [*said([FIRST, FIRST, SECOND]), judgment(THREE, "person 0", [[0], [1, 2]], source="u")]
    found = agreement(answers_of(judgments))
    # person 0 and 1 each have one that agrees and one that does not: no single answer of most others; person 2 is alone
    assert (found.overall.value, found.overall.n_scored, found.overall.n) == (0.0, 1, 6)
    assert found.by_person["person 2"].value == 0.0 and found.by_person["person 0"].value is None
    assert winners(answers_of(judgments)) == 3  # of the pair, and two of three in the ranking
    apart = [judgment(PAIR, "ann", FIRST, source="work"), judgment(PAIR, "bob", FIRST, source="repeated")]
    assert (agreement(answers_of(apart)).overall.value, winners(answers_of(apart))) == (1.0, 1)  # of one question
    assert agreement([]).alpha.value is None and winners([]) == 0


# --- on the server ----------------------------------------------------------------------------------------------


def people(server: Server, n: int) -> list[Studio]:
    """Clients of new annotators, each with an account and a token of their own."""
    accounts = [create_annotator(server.url, server.token, f"p{secrets.token_hex(4)}") for _ in range(n)]
    return [Studio(server.url, create_token(server.url, *account), patience=PATIENT) for account in accounts]


def next_task(person: Studio, number: int) -> int | None:
    """The task that the server gives a person next."""
    try:
        return int(person.connection.read(f"api/projects/{number}/next")["id"])
    except Missing:
        return None


def new_campaign(folder: Path, n: int, **more: Any) -> Campaign:
    name, file = f"contested {secrets.token_hex(4)}", candidates(folder, n)
    return Campaign(name=name, feedback=folder / "feedback.db", candidates=[file], votes=2, **more)


def test_a_third_person_is_served_a_contested_task_once_and_a_fourth_is_not(
    server: Server, studio: Studio, tmp_path: Path
) -> None:
    campaign = new_campaign(tmp_path, 3)
    number = push(campaign, studio).project
    shown = tasks(studio, campaign)
    ann, bob, cem, dot = people(server, 4)
    for task in shown.values():
        answer(ann, task, [for_good(task)])
    answer(bob, shown["0"], [for_good(shown["0"], -2)])  # the other one
    answer(bob, shown["1"], [for_good(shown["1"])])
    assert open_contested(campaign, studio)[:3] == (1, 1, 0)  # of the third task one answer is still to come
    answer(bob, shown["2"], [choice("0")])  # a tie
    assert open_contested(campaign, studio)[:3] == (2, 1, 1)
    again = open_contested(campaign, studio)
    assert again[:3] == (2, 0, 2) and "0 of 2 contested tasks re-opened; 2 open already" in "\n".join(lines(again))

    disputed = {shown["0"].id, shown["2"].id}
    assert next_task(ann, number) is None and next_task(bob, number) is None  # they have answered everything
    served = []
    while (task := next_task(cem, number)) is not None:
        served.append(task)
        mine = next(t for t in shown.values() if t.id == task)
        answer(cem, mine, [for_good(mine)] if mine.id == shown["0"].id else [for_good(mine, -2)])
    assert sorted(served) == sorted(disputed)
    assert next_task(dot, number) is None

    # two against one is settled; good, tie and bad is a new disagreement, whose fourth person is asked below a maximum
    assert open_contested(campaign, studio, maximum=3)[:4] == (1, 0, 0, 1)
    assert next_task(dot, number) is None
    assert open_contested(campaign, studio)[:4] == (1, 1, 0, 0)
    assert next_task(dot, number) == shown["2"].id
    with Store.open(campaign.feedback) as store:
        assert set(Ledger(store, campaign.name).reopened().values()) == {3, 4}


def test_nobody_is_asked_twice_when_the_store_is_lost_and_limits_hold(
    server: Server, studio: Studio, tmp_path: Path
) -> None:
    campaign = new_campaign(tmp_path, 3)
    push(campaign, studio)
    shown = tasks(studio, campaign)
    for person, strength in zip(people(server, 2), (2, -2), strict=True):
        for task in shown.values():
            answer(person, task, [for_good(task, strength)])
    found = open_contested(campaign, studio, limit=2)
    assert (found.contested, found.reopened, found.over_limit) == (3, 2, 1)
    for file in tmp_path.glob("feedback.db*"):
        file.unlink()
    push(campaign, studio)
    listed = campaign.model_copy(update={"annotators": [a for a in studio.users().values() if a.startswith("p")]})
    few = listed.model_copy(update={"annotators": listed.annotators[-2:]})
    assert open_contested(few, studio)[:4] == (3, 0, 2, 1)  # nobody but those two may judge
    assert open_contested(campaign, studio)[:4] == (3, 1, 2, 0)
    with Store.open(campaign.feedback) as store:
        assert list(Ledger(store, campaign.name).reopened().values()) == [3, 3, 3]


def test_a_lost_answer_does_not_undo_a_third_persons_word(
    monkeypatch: pytest.MonkeyPatch, server: Server, studio: Studio, project: Project
) -> None:
    sent = studio.import_tasks(project.id, rows(1, annotations=[vote("left", 1)]))
    task = next(iter(sent.ids.values()))
    (cem,) = people(server, 1)
    body = {"result": vote("right")["result"]}

    def meanwhile(seconds: float) -> None:
        cem.connection.send("POST", f"api/tasks/{task}/annotations/", body=body)

    with FlakyProxy(server.url, faults={}) as proxy:
        lossy = Studio(proxy.url, server.token, patience=PATIENT)
        lossy.whoami()
        proxy.forced = ["lost answer"]
        monkeypatch.setattr(lossy.connection._patience.stop, "wait", meanwhile)
        lossy.reopen(task, 2)
    found = studio.connection.read(f"api/tasks/{task}/")
    assert proxy.seen["lost answer"] == 1 and (found["overlap"], found["is_labeled"]) == (2, True)


def test_more_votes_reach_tasks_that_stand_there_and_disputed_ones_keep_theirs(
    server: Server, studio: Studio, tmp_path: Path
) -> None:
    campaign = new_campaign(tmp_path, 3)
    number = push(campaign, studio).project
    shown = tasks(studio, campaign)
    ann, bob, cem = people(server, 3)
    for person, strength in ((ann, 2), (bob, -2)):
        answer(person, shown["0"], [for_good(shown["0"], strength)])
        answer(person, shown["1"], [for_good(shown["1"])])
    assert open_contested(campaign, studio, votes=2).reopened == 1  # four people on the first
    more = campaign.model_copy(update={"votes": 3})
    push(more, studio)
    found = {task.id: task.is_open for task in tasks(studio, campaign).values()}
    assert all(found.values()) and studio.project(number).votes == 3
    for task in shown.values():
        answer(cem, task, [for_good(task)])
    left = {name: task.is_open for name, task in tasks(studio, campaign).items()}
    assert left == {"0": True, "1": False, "2": True}
    push(more, studio)  # nothing changed: nothing is reset
    assert {name: task.is_open for name, task in tasks(studio, campaign).items()} == left
    listed = list(who(campaign, studio))
    assert len(listed) >= 4 and [person.judgments for person in listed].count(2) == 2


@pytest.mark.parametrize("settings", [{"votes": 0}, {"limit": 0}, {"maximum": -1}, {"posterior": 1.5}])
def test_settings_that_cannot_be_are_refused(studio: Studio, tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=f"open-contested: {next(iter(settings))}="):
        open_contested(new_campaign(tmp_path, 1), studio, **settings)


def test_what_an_exclusion_leaves_short_is_judged_again(server: Server, studio: Studio, tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 2)
    number = push(campaign, studio).project
    shown = tasks(studio, campaign)
    ann, bob, cem = people(server, 3)
    for person in (ann, bob):
        answer(person, shown["0"], [for_good(shown["0"])])
    assert open_contested(campaign, studio).contested == 0  # the second is open as it is
    with Store.open(campaign.feedback, write=True) as store:
        exclude(store, store.judgments()[0].annotator, "careless")
    found = open_contested(campaign, studio)
    assert (found.contested, found.short, found.reopened) == (1, 1, 1) and "for want of votes that count" in lines(
        found
    )[0]
    assert open_contested(campaign, studio).reopened == 0
    served = {next_task(cem, number)}
    assert served <= {task.id for task in shown.values()} and len(served) == 1
    answer(cem, shown["0"], [for_good(shown["0"])])
    assert open_contested(campaign, studio).contested == 0
