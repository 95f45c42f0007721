"""Who may judge what, on a real server: a calibration round before the work, and annotators with their languages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from campaigns import BAD, GOOD, answer, for_good, new_campaign, tasks
from fixtures.campaigns import judged
from fixtures.studio import PATIENT
from pydantic import ValidationError

from align.core.config import BadInput
from align.core.files import read_jsonl, write_jsonl
from align.core.http import Client
from align.core.limits import MOST_ANSWER
from annotation.campaign.calibration import calibration
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Calibration, Campaign, is_among, work_of
from annotation.campaign.text import lines
from annotation.label_studio import accounts
from annotation.label_studio.server import Server
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger, sources
from annotation.store.store import Store

NUMBERS = ("900", "901", "902", "903")


def round_file(folder: Path, **more: Any) -> Path:
    rows = []
    for number in NUMBERS:
        texts = (f"{GOOD} {number}", f"{BAD} {number}")
        responses = [{"messages": [{"role": "assistant", "content": text}]} for text in texts]
        prompt = [{"role": "user", "content": f"question {number} of the round?"}]
        rows.append({"prompt": prompt, "responses": responses, "best": 0, **more})
    write_jsonl(folder / "round.jsonl", rows)
    return folder / "round.jsonl"


def person(server: Server, studio: Studio) -> tuple[int, accounts.Account]:
    """A new account with its number."""
    account = accounts.create_annotator(server.url, server.token, f"p{random.randrange(10**9)}")
    return next(number for number, email in studio.users().items() if email == account.email), account


def served(server: Server, account: accounts.Account, project: int) -> str | None:
    """The key of the task that the labelling page shows an annotator next."""
    form = {"email": account.email, "password": account.password, "persist_session": "on"}
    with Client(server.url, most=MOST_ANSWER, timeout=PATIENT) as client:
        accounts._submit(client, server.url + "user/login/", form)
        reply = client.get(f"{server.url}api/projects/{project}/next")
    assert reply.status_code in (200, 404)  # 404: the queue is empty
    return str(reply.json()["data"]["pair_id"]) if reply.status_code == 200 else None


def test_work_comes_after_the_round_and_only_from_those_who_passed(
    studio: Studio, server: Server, tmp_path: Path
) -> None:
    (anna, anna_account), (ben, ben_account), (eve, eve_account) = (person(server, studio) for _ in range(3))
    addresses = [anna_account.email, ben_account.email, eve_account.email]
    rules = Calibration(file=round_file(tmp_path), bar=0.75, people=2)
    settings = {"annotators": addresses, "calibration": rules, "votes": 2}  # begun tasks are served first
    campaign = new_campaign(tmp_path, 3).model_copy(update=settings)
    first = push(campaign, studio)
    assert (first.new, first.work_waiting) == (4, 3) and "3 tasks wait" in "\n".join(lines(first))
    with pytest.raises(BadInput, match=r"3 tasks wait: 0 of 2 people have passed .*not done, 0 of 4 answered"):
        push(campaign, studio)

    shown = tasks(studio, campaign)
    assert set(shown) == set(NUMBERS)
    assert not any(word in json.dumps(task.data) for task in shown.values() for word in ("best", "calibration"))
    for number in NUMBERS:
        answer(studio, shown[number], [for_good(shown[number])], completed_by=anna)
        answer(studio, shown[number], [for_good(shown[number], 2 if number != "903" else -2)], completed_by=ben)
    for number in ("900", "901"):
        answer(studio, shown[number], [for_good(shown[number], -2)], completed_by=eve)
    pull(campaign, studio)
    said = {standing.address: standing.summary for standing in calibration(campaign, studio).people.values()}
    assert said == {
        anna_account.email: "passed, 4 of 4 right",
        ben_account.email: "passed, 3 of 4 right",
        eve_account.email: "not done, 2 of 4 answered",
    }
    assert served(server, anna_account, first.project) is None  # done, and nothing else is there yet
    assert served(server, eve_account, first.project) in {shown["902"].key, shown["903"].key}

    assert push(campaign, studio).new == 3
    shown = tasks(studio, campaign)
    assert served(server, anna_account, first.project) in {shown[number].key for number in "012"}
    late, late_account = person(server, studio)
    assert served(server, late_account, first.project) in {shown[number].key for number in NUMBERS}
    for number, who in (("0", anna), ("1", eve), ("2", late)):
        answer(studio, shown[number], [for_good(shown[number])], completed_by=who)
    for number in ("902", "903"):
        answer(studio, shown[number], [for_good(shown[number], -2)], completed_by=eve)
    found = pull(campaign, studio)
    assert found.outcomes == {"judgment": 3, "quarantine": 2}
    with Store.open(campaign.feedback) as store:
        reasons = sorted(row.reason for row in Ledger(store, campaign.name).quarantined())
        round_sources = sources(store, "calibration")
        by_work = [j for j in store.judgments() if j.source not in round_sources]
    assert "none of the campaign's annotators" in reasons[0] and "not passed the calibration round" in reasons[1]
    assert len(by_work) == 1 and set(judged(campaign)) == {"0", *NUMBERS}
    assert "not passed, 0 of 4 right" in "\n".join(lines(calibration(campaign, studio)))

    now = tasks(studio, campaign)
    for task in (now[number] for number in ("900", "901", "902")):
        for row in task.annotations:
            if row.completed_by == eve:
                studio.connection.send("PATCH", f"api/annotations/{row.id}/", body={"result": [for_good(task)]})
    assert pull(campaign, studio).outcomes == {"judgment": 3}
    assert pull(campaign, studio, full=True).outcomes == {"judgment": 1, "quarantine": 1}  # eve has passed by now


def test_the_round_is_asked_in_the_languages_of_a_person(studio: Studio, server: Server, tmp_path: Path) -> None:
    (anna, anna_account), (ben, ben_account) = (person(server, studio) for _ in range(2))
    people = {anna_account.email: ["de"], ben_account.email: ["en", "fr"]}
    rules = Calibration(file=round_file(tmp_path, language="de"), people=1)
    campaign = new_campaign(tmp_path, 2).model_copy(update={"annotators": people, "calibration": rules})
    push(campaign, studio)
    shown = tasks(studio, campaign)
    for number in NUMBERS:
        answer(studio, shown[number], [for_good(shown[number])], completed_by=ben)
    assert pull(campaign, studio).outcomes == {"quarantine": 4}
    with Store.open(campaign.feedback) as store:
        reasons = {row.reason for row in Ledger(store, campaign.name).quarantined()}
    assert reasons == {"by an annotator who does not list the comparison's language, de"}
    said = {standing.address: standing.summary for standing in calibration(campaign, studio).people.values()}
    assert said[ben_account.email] == "no item is in a language of theirs"
    assert said[anna_account.email] == "not done, 0 of 4 answered"


def test_a_judgment_counts_in_the_languages_of_its_annotator(studio: Studio, server: Server, tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 3)
    rows = read_jsonl(tmp_path / "candidates.jsonl")
    for row, language in zip(rows, ("de", "en-GB", "fr"), strict=True):
        row["language"] = language
    write_jsonl(tmp_path / "candidates.jsonl", rows)
    (anna, anna_account), (ben, ben_account) = (person(server, studio) for _ in range(2))
    campaign = campaign.model_copy(update={"annotators": {anna_account.email: ["en"], ben_account.email: ["de"]}})
    with pytest.raises(BadInput, match="1 comparisons in 'fr', which no annotator lists"):
        push(campaign, studio)
    campaign = campaign.model_copy(update={"languages": ["de", "en"]})
    done = push(campaign, studio)
    assert (done.new, done.dropped) == (2, {"language not asked for": 1})
    shown = tasks(studio, campaign)
    for who in (anna, ben):
        for number in "01":
            answer(studio, shown[number], [for_good(shown[number])], completed_by=who)
    assert pull(campaign, studio).outcomes == {"judgment": 2, "quarantine": 2}
    with Store.open(campaign.feedback) as store:
        language = {c.id: c.language for c in store.comparisons()}
        assert {language[j.comparison_id] for j in store.judgments()} == {"de", "en-GB"}
        reasons = {row.reason for row in Ledger(store, campaign.name).quarantined()}
    assert {reason.rpartition(" ")[2] for reason in reasons} == {"de", "en-GB"}
    everybody = campaign.model_copy(update={"annotators": list(campaign.annotators)})  # a plain list: any language
    assert pull(everybody, studio, full=True).outcomes == {"judgment": 2}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"annotators": ["a@b", "a@b"]}, "listed twice"),
        ({"annotators": ["annotator-1"]}, "'annotator-1' is no address"),
        ({"annotators": {"a@b": []}}, "at least 1 item"),
        ({"annotators": {"a@b": ["english"]}}, "match pattern"),
        ({"calibration": {"file": "f"}}, "0 people are to pass, and 1"),
        ({"calibration": {"file": "f", "people": 2}, "votes": 3}, "2 people are to pass, and 3"),
        ({"calibration": {"file": "f", "people": 1, "bar": 80}}, "less than or equal to 1"),
    ],
)
def test_a_campaign_that_cannot_work_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Campaign.model_validate({"name": "spring", **given})


@pytest.mark.parametrize(
    ("language", "languages", "holds"),
    [("en", ["en"], True), ("en-GB", ["de", "en"], True), ("EN-gb", ["en"], True), ("en", ["en-GB"], False),
     ("eng", ["en"], False), ("de", [], False)],
)  # fmt: skip
def test_a_language_takes_in_its_varieties(language: str, languages: list[str], holds: bool) -> None:
    assert is_among(language, languages) is holds


def test_nothing_is_left_in_the_languages_asked_for(tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 1).model_copy(update={"languages": ["de"]})
    with pytest.raises(BadInput, match="nothing to judge: no prompt in de has 2"):
        work_of(campaign, [], lambda reason, count: None, {})
