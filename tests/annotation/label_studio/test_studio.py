"""The labelling bridge's floor against a real Label Studio: exactly once, faults in one line, secrets kept."""

from __future__ import annotations

import base64
import json
import re
import socket
import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fixtures.studio import CONFIG, PATIENT, VENV, new_project, rows, vote
from flaky_proxy import FlakyProxy

from align.core.config import BadInput
from align.core.http import redact
from annotation.label_studio.connection import address
from annotation.label_studio.doctor import doctor, settings
from annotation.label_studio.rows import KEY, CountedTask, Project, first_ids
from annotation.label_studio.server import Server, start, status, stop
from annotation.label_studio.studio import Studio


def token_of(**claims: Any) -> str:
    """A web token with these claims, signed by nobody."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"token_type": "refresh", "jti": "a" * 32, "user_id": "1", **claims}]
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in [*parts, {"sign": "ed"}]
    )


def refused(url: str, token: str) -> str:
    """What the doctor says, which is one line without the token."""
    with pytest.raises(BadInput) as caught:
        list(doctor(url, token))
    said = str(caught.value)
    assert "\n" not in said and token not in said
    return said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stored(studio: Studio, project: Project) -> list[str]:
    """The keys of all tasks as they stand there, copies and all."""
    return sorted(task.key or "" for task in studio.all_tasks(project.id))


# --- exactly once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_sixty_tasks_arrive_once_through_a_lossy_line(server: Server, studio: Studio, seed: int) -> None:
    target, sent = new_project(studio), rows(60)
    with FlakyProxy(server.url, seed) as proxy:
        flaky = Studio(proxy.url, server.token, patience=PATIENT)
        done = flaky.import_tasks(target.id, sent, batch=5)
        assert done.new == 60 and proxy.seen["none"] < 0.8 * proxy.seen.total()
        assert flaky.import_tasks(target.id, sent, batch=5)[:2] == (done.ids, 0)
    assert stored(studio, target) == sorted(row["data"][KEY] for row in sent)
    assert studio.keys(target.id) == done.ids


@pytest.mark.parametrize("fault", ["lost answer", "bad gateway", "twice"])
def test_each_fault_alone_leaves_no_copy(server: Server, studio: Studio, fault: str) -> None:
    target = new_project(studio)
    with FlakyProxy(server.url, 3, {fault: 0.5}) as proxy:
        flaky = Studio(proxy.url, server.token, patience=PATIENT)
        assert flaky.import_tasks(target.id, rows(12), batch=3).new == 12
        assert proxy.seen[fault] > 2
    if fault != "twice":  # what was carried out is not sent again, so no copy ever stood there
        ids = sorted(studio.keys(target.id).values())
        assert ids == list(range(ids[0], ids[0] + 12))
    assert stored(studio, target) == [row["data"][KEY] for row in rows(12)]


@pytest.mark.parametrize("fault", ["lost request", "lost answer", "bad gateway", "twice"])
def test_a_project_is_made_once_through_a_lossy_line(server: Server, studio: Studio, fault: str) -> None:
    title = f"made once, {fault}"
    with FlakyProxy(server.url, faults={}) as proxy:
        flaky = Studio(proxy.url, server.token, patience=PATIENT)
        flaky.whoami()
        proxy.forced = ["none", fault]  # the list of projects, then the new one
        made = flaky.ensure_project(title, CONFIG)
        assert proxy.seen[fault] == 1 and made.created
        assert flaky.ensure_project(title, CONFIG) == made._replace(created=False)
    assert studio._titled(title) == [made.id]
    copies = studio._titled(f"empty copy {made.id + 1}, not used")  # deleting it would make the server deaf meanwhile
    assert len(copies) == (fault == "twice")


def test_a_copy_that_was_answered_stays_and_counts(studio: Studio, project: Project) -> None:
    send = studio.connection.send
    send("POST", f"api/projects/{project.id}/import", body=rows(3))
    send("POST", f"api/projects/{project.id}/import", body=rows(3, annotations=[vote("left")]))
    send("POST", f"api/projects/{project.id}/import", body=rows(1, annotations=[vote("right")]))
    done = studio.import_tasks(project.id, rows(4))
    left = list(studio.all_tasks(project.id))
    assert done.new == 1 and [(task.key or "")[-1] + str(len(task.annotations)) for task in left] == [
        *("01", "11", "21", "01", "30")
    ]
    assert {task.key: task.id for task in reversed(left)} == done.ids == studio.keys(project.id)


def test_only_missing_rows_are_sent(studio: Studio, project: Project) -> None:
    first = studio.import_tasks(project.id, rows(450), batch=200)
    second = studio.import_tasks(project.id, rows(250, first=400))
    assert (first.new, second.new, studio.count(project.id)) == (450, 200, 650)
    assert second.ids[f"{449:016x}"] == first.ids[f"{449:016x}"]
    assert studio.keys(project.id, [f"{number:016x}" for number in (0, 649, 700)]).keys() == {
        f"{number:016x}" for number in (0, 649)
    }


@pytest.mark.parametrize(
    "bad, word",
    [
        ([{"data": {"text": "x"}}], KEY),
        (rows(1) * 2, "occurs twice"),
        ([{"data": {KEY: "a", "text": "\ud800"}}], "cannot be sent"),
        ([{"data": {KEY: "a"}}], "refused"),
    ],
)
def test_rows_that_cannot_be_sent(studio: Studio, project: Project, bad: list[dict[str, Any]], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        studio.import_tasks(project.id, bad)
    assert studio.count(project.id) == 0


def test_of_copies_the_answered_one_counts() -> None:
    tasks = [
        CountedTask(id=number, data={KEY: key}, total_annotations=answers, cancelled_annotations=0)
        for number, key, answers in [(1, "a", 0), (2, "a", 1), (3, "b", 0), (4, "b", 0)]
    ]
    assert first_ids(tasks) == {"a": 2, "b": 3}


# --- reading --------------------------------------------------------------------------------------------------


def test_answers_are_listed_and_tasks_read_in_order(
    monkeypatch: pytest.MonkeyPatch, studio: Studio, project: Project
) -> None:
    monkeypatch.setattr("annotation.label_studio.studio.READ_PAGE", 4)
    studio.import_tasks(project.id, rows(10))
    before = datetime.now(UTC)
    studio.import_tasks(project.id, rows(5, first=10, annotations=[vote("right")]))
    everything = list(studio.all_tasks(project.id))
    assert [task.id for task in everything] == sorted(studio.keys(project.id).values())
    assert studio.count(project.id) == 15 and studio.count(project.id, answered=True) == 5
    changed = studio.answered(project.id, before.replace(microsecond=0))
    assert changed == studio.answered(project.id) == {task.id: task.updated_at for task in everything[10:]}
    answer = everything[-1].annotations[0]
    assert answer.result[0]["value"] == {"choices": ["right"]} and answer.completed_by == 1
    assert not studio.answered(project.id, datetime.now(UTC) + timedelta(hours=1))
    picked = [task.id for task in everything[3:7]]
    assert [task.id for task in studio.tasks(project.id, [*picked, 10**6])] == picked


def test_a_list_that_stops_early_is_no_end(monkeypatch: pytest.MonkeyPatch, studio: Studio, project: Project) -> None:
    studio.import_tasks(project.id, rows(5))
    read = studio.connection.read

    def shorter(path: str, params: Any = None, **form: Any) -> Any:
        page = read(path, params, **form)
        return {**page, "tasks": []} if "tasks" in page else page

    monkeypatch.setattr(studio.connection, "read", shorter)
    with pytest.raises(BadInput, match="says 5 more tasks and lists 0"):
        list(studio.all_tasks(project.id))


def test_a_task_is_opened_again(server: Server, studio: Studio, project: Project) -> None:
    done = studio.import_tasks(project.id, rows(1, annotations=[vote("left")]))
    task = next(iter(done.ids.values()))
    assert studio.connection.read(f"api/tasks/{task}/")["is_labeled"]
    studio.reopen(task, 2)
    found = studio.connection.read(f"api/tasks/{task}/")
    assert (found["is_labeled"], found["overlap"]) == (False, 2)
    with pytest.raises(BadInput, match="task 999999 is gone"):
        studio.reopen(999999, 2)


# --- faults in one line ---------------------------------------------------------------------------------------


def test_doctor_on_a_healthy_server(server: Server) -> None:
    first, second = doctor(server.url, server.token)
    assert "is Label Studio 1.23.2" in first and server.email in second and server.token not in second


def test_doctor_on_a_wrong_address(server: Server) -> None:
    assert f"set LABEL_STUDIO_URL={server.url}" in refused(server.url + "projects/3/data", server.token)
    with FlakyProxy(server.url, faults={}, prefix="/labels") as proxy:
        said = refused(proxy.url.replace("/labels/", "/"), server.token)
        assert "answers and is not Label Studio" in said


def test_doctor_adds_the_slash_that_a_sub_path_needs(server: Server) -> None:
    with FlakyProxy(server.url, faults={}, prefix="/labels") as proxy:
        lines = list(doctor(proxy.url.rstrip("/"), server.token))
        assert "without the slash" in lines[1] and f"LABEL_STUDIO_URL={proxy.url}" in lines[1]
        assert len(list(doctor(proxy.url, server.token))) == 2


def test_doctor_on_tokens(server: Server, studio: Studio) -> None:
    legacy = studio.connection.read("api/current-user/token")["token"]
    assert "takes no legacy tokens" in refused(server.url, legacy)
    assert "the token has expired" in refused(server.url, token_of(exp=1700000000))
    assert "does not know this token" in refused(server.url, token_of(exp=8102452749))
    assert "does not know this token" in refused(server.url, "garbage")
    assert "lasts five minutes" in refused(server.url, token_of(exp=8102452749, token_type="access"))


def test_doctor_on_an_unreachable_host(server: Server) -> None:
    assert "cannot be reached" in refused(f"http://127.0.0.1:{free_port()}/", server.token)
    assert "cannot be reached" in refused("http://nowhere.invalid/", server.token)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x/", "http://", "http://me:secret@host/", "http://x:port/"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(BadInput, match="LABEL_STUDIO_URL") as caught:
        address(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "  ", "two words", "line\nbreak", "t\u00f6ken"])
def test_what_is_no_token(token: str) -> None:
    with pytest.raises(BadInput, match="LABEL_STUDIO_API_KEY: is empty or holds"):
        Studio("http://127.0.0.1:1/", token)


def test_settings_come_from_the_environment() -> None:
    with pytest.raises(BadInput, match="LABEL_STUDIO_API_KEY is not set"):
        settings({"LABEL_STUDIO_URL": "http://x/"})
    assert settings({"LABEL_STUDIO_URL": "http://x/", "LABEL_STUDIO_API_KEY": "k"}) == ("http://x/", "k")


def test_a_deleted_project_is_said(studio: Studio, project: Project) -> None:
    studio.connection.send("DELETE", f"api/projects/{project.id}/")
    for act in (
        lambda: studio.project(project.id),
        lambda: studio.import_tasks(project.id, rows(1)),
        lambda: studio._send_rows(project.id, {row["data"][KEY]: row for row in rows(1)}),
        lambda: list(studio.all_tasks(project.id)),
    ):
        with pytest.raises(BadInput, match=f"has no project {project.id}: .*nothing was changed"):
            act()


def test_a_restart_in_the_middle_is_waited_for(server: Server, studio: Studio, project: Project) -> None:
    patient = Studio(server.url, server.token, patience=PATIENT)
    done: list[Any] = []
    sender = threading.Thread(target=lambda: done.append(patient.import_tasks(project.id, rows(2000), batch=50)))
    sender.start()
    while not studio.count(project.id):
        time.sleep(0.05)
    assert stop(server.folder) and status(server.folder).state == "stopped"
    with pytest.raises(BadInput, match="no usable answer.*nothing is lost"):
        Studio(server.url, server.token, patience=0.5).whoami()
    again = start(server.folder, VENV, say=lambda line: None)
    sender.join()
    assert (again.url, again.token, again.password) == (server.url, server.token, None)
    assert done[0].new == 2000 and studio.count(project.id) == 2000 == len(studio.keys(project.id))


def test_a_server_that_cannot_write_is_said_and_nothing_doubles(server: Server, studio: Studio) -> None:
    target, sent = new_project(studio), rows(20)
    hasty = Studio(server.url, server.token, patience=1.0)
    hasty.whoami()
    with sqlite3.connect(server.folder / "data" / "label_studio.sqlite3") as database:
        database.execute("BEGIN IMMEDIATE")  # readers go on, writers wait in vain
        with pytest.raises(BadInput, match="no usable answer.*nothing is lost"):
            hasty.import_tasks(target.id, sent)
        database.rollback()
    assert studio.import_tasks(target.id, sent).new == 20 == studio.count(target.id)


def test_an_access_token_that_the_server_calls_old_is_renewed(server: Server, project: Project) -> None:
    with FlakyProxy(server.url, faults={}) as proxy:
        client = Studio(proxy.url, server.token, patience=PATIENT)
        client.whoami()
        proxy.forced = ["stale"]
        assert client.import_tasks(project.id, rows(1)).new == 1 and proxy.seen["stale"] == 1


def test_what_is_secret_is_left_out() -> None:
    token = token_of(exp=1)
    text = f"Bearer {token} sessionid=abc; Token 0123456789abcdef0123456789abcdef01234567 {{'token': 'k3y'}}"
    said = redact(text, "k3y")
    assert not re.search("eyJ|abc|0123|k3y", said) and len(redact("word " * 100)) == 200
