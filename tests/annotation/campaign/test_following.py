"""`pull --watch` on a real server: it survives a restart and a second writer, and ends on Ctrl-C with a sentence."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import answer, for_good, tasks
from fixtures.studio import VENV

from align.core.config import BadInput
from annotation.campaign import following
from annotation.campaign.following import Poll, polls, show
from annotation.campaign.pull import PullResult
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.label_studio.server import Server, start, stop
from annotation.label_studio.studio import Studio
from annotation.store.store import Store


def test_polls_survive_silence_and_another_writer(server: Server, campaign: Campaign) -> None:
    impatient = Studio(server.url, server.token, patience=1.0)
    push(campaign, impatient)
    shown = tasks(impatient, campaign)
    results = polls(campaign, impatient, full_every=3)
    first = next(results)
    assert first.result is not None and not first.is_full and not first.is_news
    with Store.open(campaign.feedback, write=True):
        assert "is writing to this feedback store" in next(results).trouble
    stop(server.folder)
    try:
        silent = next(results)
        assert silent.result is None and silent.is_full and "no usable answer" in silent.trouble
    finally:
        start(server.folder, VENV, say=lambda line: None)
    answer(impatient, shown["0"], [for_good(shown["0"])])
    back = next(results)
    assert back.result and back.is_full and back.is_news  # what was due is made up for
    assert back.result.outcomes == {"judgment": 1}
    assert [next(results).is_full for _ in range(3)] == [False, True, False]


def test_the_first_poll_fails_like_a_pull_and_a_later_one_for_what_is_no_silence(
    studio: Studio, campaign: Campaign
) -> None:
    with pytest.raises(BadInput, match="was never pushed from here"):
        next(polls(campaign, studio))
    project = push(campaign, studio).project
    with pytest.raises(BadInput, match="no usable answer"):
        next(polls(campaign, Studio("http://127.0.0.1:9/", "x" * 40, patience=0.1)))
    results = polls(campaign, studio)
    next(results)
    studio.connection.send("DELETE", f"api/projects/{project}/")
    with pytest.raises(BadInput, match="has no project"):
        next(results)
    with pytest.raises(BadInput, match="every=0"):
        following.pull(campaign, studio, watch=True, every=0)


def test_a_plain_line_only_when_something_changed_and_trouble_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> Iterator[Poll]:
        yield Poll(1, True, PullResult(0, {}, 0, 0, 7), "")
        yield Poll(2, False, PullResult(0, {}, 0, 0, 7), "")
        yield Poll(
            3, False, None, "http://host/: no usable answer for 60 s (refused); nothing is lost: start the server"
        )
        yield Poll(
            4, False, None, "http://host/: no usable answer for 60 s (refused); nothing is lost: start the server"
        )
        yield Poll(5, False, PullResult(0, {}, 0, 0, 7), "")
        yield Poll(6, True, PullResult(3, {"judgment": 2, "skipped": 1}, 1, 0, 8), "")
        raise KeyboardInterrupt

    paused: list[float] = []
    monkeypatch.setattr(following.time, "sleep", paused.append)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt, match=r"after 6 polls \(2 judgment, 1 skipped\); all .* is kept"):
        show(results(), 7, out)
    first, silent, back, news = [line.partition(" ")[2] for line in out.getvalue().splitlines()]
    assert first.startswith("poll 1: nothing new, everything read again; 7 judgments")
    assert silent == "http://host/: no usable answer for 60 s (refused); going on, it is asked again every 7 s"
    assert back == "answers again" and "2 judgment, 1 skipped, 1 taken back, everything read again; 8 jud" in news
    assert paused == [7] * 6


@pytest.mark.parametrize("is_terminal", [True, False])
def test_ctrl_c_ends_the_command_with_130_and_a_last_sentence(
    server: Server, studio: Studio, campaign: Campaign, tmp_path: Path, is_terminal: bool
) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    file = tmp_path / "campaign.yaml"
    file.write_text(
        f"name: {campaign.name}\nfeedback: {campaign.feedback}\ninterface: {campaign.interface.model_dump_json()}\n"
    )
    environment = {**os.environ, "LABEL_STUDIO_URL": server.url, "LABEL_STUDIO_API_KEY": server.token, "COLUMNS": "60"}
    command = [sys.executable, "-m", "align.cli.main", "annotate", "pull", "--watch", "every=1", "--config", str(file)]
    near, far = pty.openpty() if is_terminal else os.pipe()
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=far,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background are deaf to it
    )
    os.close(far)
    try:
        text = read_until(near, "poll 1:")
        answer(studio, shown["0"], [for_good(shown["0"])])
        text += read_until(near, "1 judgment;")
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    (sentence,) = said.decode().splitlines()
    assert sentence.startswith("align: stopped watching after ") and "(1 judgment)" in sentence
    if is_terminal:
        assert text.count("\n") == 0 and text.count("\r") >= 2 and "\x1b[K" in text
        assert all(len(line.replace("\x1b[K", "")) < 60 for line in text.split("\r"))
    else:
        assert len(text.splitlines()) == 2 and "\r" not in text


def read_until(source: int, wanted: str) -> str:
    """What a process writes, up to the end of a piece that holds some words."""
    text = ""
    while wanted not in text:
        piece = os.read(source, 4096).decode()
        assert piece, f"the process ended before it wrote {wanted!r}: {text}"
        text += piece
    return text
