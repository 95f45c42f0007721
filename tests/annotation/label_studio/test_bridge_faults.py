"""What befalls a campaign on a real server: restarts, projects that went away, two bridges at once. Nothing is lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from campaigns import GOOD, answer, for_good, new_campaign, tasks
from fixtures.campaigns import judged
from fixtures.studio import PATIENT, VENV
from flaky_proxy import FlakyProxy

from align.cli.main import run as command
from align.core.config import BadInput
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.label_studio.server import Server, start, stop
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger
from annotation.store.store import Store


def silent(line: str) -> None:
    """Say nothing."""


def one_line(error: BadInput) -> str:
    said = str(error)
    assert "\n" not in said
    return said


def test_a_server_that_restarts_in_the_middle_costs_nothing(server: Server, tmp_path: Path) -> None:
    begun = threading.Event()

    class Announcing(Studio):
        def import_tasks(self, *arguments: Any, **more: Any) -> Any:
            begun.set()
            return super().import_tasks(*arguments, **more)

    campaign = new_campaign(tmp_path, 400)
    patient = Announcing(server.url, server.token, patience=PATIENT)
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(push, campaign, patient)
        begun.wait()
        assert stop(server.folder)
        assert start(server.folder, VENV, say=silent).url == server.url
        assert pushed.result().tasks == 400
    assert len(tasks(patient, campaign)) == 400 and push(campaign, patient).new == 0


def test_a_server_that_is_down_is_said_in_one_line(server: Server, campaign: Campaign, studio: Studio) -> None:
    push(campaign, studio)
    stop(server.folder)
    try:
        for act in (push, pull):
            with pytest.raises(BadInput, match="no usable answer.*nothing is lost") as error:
                act(campaign, Studio(server.url, server.token, patience=1.0))
            assert server.token not in one_line(error.value)
    finally:
        start(server.folder, VENV, say=silent)
    assert pull(campaign, studio).judgments == 0
    with Store.open(campaign.feedback) as store:
        assert store.verify().ok


def test_a_project_that_was_deleted_is_missed(campaign: Campaign, studio: Studio) -> None:
    project = push(campaign, studio).project
    studio.connection.send("DELETE", f"api/projects/{project}/")
    for act in (push, pull):
        with pytest.raises(BadInput, match=f"has no project {project}: it was deleted"):
            act(campaign, studio)


def test_another_project_is_not_taken_for_ours(campaign: Campaign, studio: Studio, tmp_path: Path) -> None:
    """Another server may have another project under the number that is written down."""
    push(campaign, studio)
    (tmp_path / "other").mkdir()
    other = push(new_campaign(tmp_path / "other", 2), studio).project
    with Store.open(campaign.feedback, write=True) as store, store.transaction():
        store.write("UPDATE campaigns SET project = ?", [(other,)])
    for act in (push, pull):
        with pytest.raises(BadInput, match="is called 'bridge.*renamed by hand, or another server") as error:
            act(campaign, studio)
        assert campaign.name in one_line(error.value)


def test_two_bridges_at_once_make_one_set_of_tasks(campaign: Campaign, studio: Studio, server: Server) -> None:
    """Two stores push the same campaign at the same moment; each knows in the end what its tasks show."""
    both = [campaign, campaign.model_copy(update={"feedback": campaign.feedback.with_name("second.db")})]
    gate = threading.Barrier(2)

    def go(one: Campaign) -> None:
        client = Studio(server.url, server.token, patience=PATIENT)
        gate.wait()
        push(one, client)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(go, both))
    for one in both:
        push(one, studio)
    shown = tasks(studio, campaign)
    project = studio.project(_project(campaign))
    assert len(shown) == 8 == project.n_tasks
    for task in shown.values():
        answer(studio, task, [for_good(task)])
    assert not any(task.is_open for task in tasks(studio, campaign).values())  # the server still counts answers
    for one in both:
        assert pull(one, studio).judgments == 8
        assert all(best == f"{GOOD} {number}" for number, (_, best) in judged(one).items())


def test_what_another_bridge_sent_first_is_shown_as_it_sent_it(
    campaign: Campaign, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking what is there and sending, another store sends the same tasks, other sides first."""
    other = campaign.model_copy(update={"feedback": campaign.feedback.with_name("second.db")})
    send = studio.import_tasks

    def overtaken(project: int, tasks: Any) -> Any:
        monkeypatch.setattr(studio, "import_tasks", send)
        push(other, studio)
        return send(project, tasks)

    monkeypatch.setattr(studio, "import_tasks", overtaken)
    assert push(campaign, studio).new == 0
    for task in tasks(studio, campaign).values():
        answer(studio, task, [for_good(task)])
    for one in (campaign, other):
        assert pull(one, studio).judgments == 8
        assert all(best == f"{GOOD} {number}" for number, (_, best) in judged(one).items())


def test_a_task_whose_sides_were_swapped_on_the_server_is_not_believed(campaign: Campaign, studio: Studio) -> None:
    """Every account can edit every task: an answer to what was not sent is set aside."""
    push(campaign, studio)
    task = tasks(studio, campaign)["0"]
    left, right = task.data["response_a_html"], task.data["response_b_html"]
    swapped = {**task.data, "response_a_html": right, "response_b_html": left}
    studio.connection.send("PATCH", f"api/tasks/{task.id}/", body={"data": swapped})
    answer(studio, task, [for_good(task)])
    assert pull(campaign, studio).outcomes == {"quarantine": 1}
    with Store.open(campaign.feedback) as store:
        (row,) = Ledger(store, campaign.name).quarantined()
    assert "shows something else than what was sent" in row.reason


def test_a_server_that_refuses_to_write_is_said_in_one_line(campaign: Campaign, server: Server, studio: Studio) -> None:
    push(campaign, studio)
    with FlakyProxy(server.url, faults={}) as proxy:
        client = Studio(proxy.url, server.token, patience=1.0)
        assert client.whoami()
        proxy._faults = {"bad gateway": 1.0}
        with pytest.raises(BadInput, match="no usable answer.*nothing is lost"):
            pull(campaign, client)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_changes_nothing(
    campaign: Campaign, server: Server, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Here, not on the server: no clock here is asked for access tokens, and changes bear the server's moments."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr("annotation.store.ledger.datetime", Shifted)
    studio = Studio(server.url, server.token, patience=PATIENT)
    assert push(campaign, studio).new == 8 and push(campaign, studio).new == 0
    shown = tasks(studio, campaign)
    number = answer(studio, shown["0"], [for_good(shown["0"])])
    assert pull(campaign, studio).judgments == 1
    studio.connection.send("PATCH", f"api/annotations/{number}/", body={"result": [for_good(shown["0"], -2)]})
    answer(studio, shown["1"], [for_good(shown["1"])])
    found = pull(campaign, studio)
    assert (found.tasks, found.judgments, found.quarantined) == (2, 2, 0)
    studio.connection.send("DELETE", f"api/annotations/{number}/")
    assert pull(campaign, studio).judgments == 1


def test_the_token_is_in_no_output(
    campaign: Campaign,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(campaign.model_dump_json())  # JSON is YAML
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", server.token)
    said = ""
    for url, code in ((server.url, 0), (server.url + "nowhere/", 2), ("http://127.0.0.1:9/", 2)):
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        for verb in ("doctor", "push", "pull"):
            words = ["annotate", verb, *([] if verb == "doctor" else ["--config", str(path)])]
            assert command(words) == code, (url, verb)
            found = capfd.readouterr()
            said += found.out + found.err
    assert "judgments: 0" in said
    kept = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    secret = server.token[-20:]
    assert secret not in said and not any(secret.encode() in content for content in kept)


def _project(campaign: Campaign) -> int:
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
    assert state is not None
    return state.project
