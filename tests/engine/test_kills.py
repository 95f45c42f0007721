"""kill -9 at random moments of a push and of a pull: the next one completes, nothing is lost or doubled.

ALIGN_KILLS says how many times each (two here; `make evidence` asks for twenty).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from campaigns import Answering, new_campaign, tasks
from fixtures.campaigns import judged
from fixtures.paths import ROOT
from flaky_proxy import FlakyProxy

from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger
from annotation.store.store import Store

KILLS = int(os.environ.get("ALIGN_KILLS", "2"))
N = 300
ACT = """
import sys
from pathlib import Path
from annotation.campaign.settings import Campaign
from annotation.label_studio.doctor import settings
from annotation.label_studio.studio import Studio
from annotation.campaign.{verb} import {verb}
studio = Studio(*settings())
campaign = Campaign.model_validate_json(sys.stdin.read())
print("ready", flush=True)
{verb}(campaign, studio)
"""


class Line:
    """The way to the server, which counts requests: a moment of a run is a number of them, on any machine."""

    def __init__(self, proxy: FlakyProxy, token: str) -> None:
        self.proxy, self.token = proxy, token

    @property
    def requests(self) -> int:
        return sum(self.proxy.seen.values())


@pytest.fixture
def line(server: Any) -> Iterator[Line]:
    with FlakyProxy(server.url, faults={}) as proxy:
        yield Line(proxy, server.token)


def requests_of(verb: str, campaign: Campaign, line: Line, kill_at: int | None) -> int | None:
    """Run push or pull in a process of its own; its requests, or None when it was killed at the given one."""
    environment = {**os.environ, "LABEL_STUDIO_URL": line.proxy.url, "LABEL_STUDIO_API_KEY": line.token}
    process = subprocess.Popen(
        [sys.executable, "-c", ACT.format(verb=verb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin and process.stdout
    process.stdin.write(campaign.model_dump_json())
    process.stdin.close()
    assert process.stdout.readline() == "ready\n"
    begin = line.requests
    while process.poll() is None:
        if kill_at is not None and line.requests - begin >= kill_at:
            time.sleep(random.uniform(0, 0.02))  # somewhere in what follows the request
            process.kill()
            break
        time.sleep(0.001)
    process.stdout.close()
    if process.wait() == -signal.SIGKILL:
        return None
    assert process.returncode == 0
    return line.requests - begin


def check_sides(studio: Studio, campaign: Campaign) -> None:
    """Each comparison has one task, and the ledger knows what stands on which of its sides."""
    shown = tasks(studio, campaign)
    with Store.open(campaign.feedback) as store:
        assert store.verify().ok
        own = Ledger(store, campaign.name).tasks()
        comparisons = {comparison.id: comparison for comparison in store.comparisons()}
    assert len(shown) == len(own) == len(comparisons) == N
    for task in shown.values():
        place = own[task.key]
        assert place.task_id == task.id
        assert comparisons[place.comparison_id].responses[place.shown[0]].text in task.data["response_a_html"]


def test_push_survives_kills(line: Line, studio: Studio, tmp_path: Path) -> None:
    whole = new_campaign(tmp_path, N)
    lasts = requests_of("push", whole, line, None)
    assert lasts is not None
    killed, number = 0, 0
    while killed < KILLS:
        number += 1
        campaign = new_campaign(tmp_path, N).model_copy(update={"feedback": tmp_path / f"{number}.db"})
        killed += requests_of("push", campaign, line, random.randrange(lasts)) is None
        requests_of("push", campaign, line, random.randrange(lasts))  # and once more, on what stands there now
        push(campaign, studio)
        check_sides(studio, campaign)
        assert push(campaign, studio).new == 0
        assert number < 3 * KILLS + 5, "most pushes end before they are killed: this shows nothing"


def test_pull_survives_kills(line: Line, server: Any, studio: Studio, tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, N)
    push(campaign, Answering(server.url, server.token))
    store = campaign.feedback.read_bytes()

    def begin_again() -> None:
        for file in campaign.feedback.parent.glob("feedback.db*"):
            file.unlink()
        campaign.feedback.write_bytes(store)

    lasts = requests_of("pull", campaign, line, None)
    assert lasts is not None
    answers = {number: best for number, (_, best) in judged(campaign).items()}
    assert len(answers) == N and all(best and best.startswith("a good answer") for best in answers.values())
    killed, number = 0, 0
    while killed < KILLS:
        number += 1
        begin_again()
        killed += requests_of("pull", campaign, line, random.randrange(lasts)) is None
        found = pull(campaign, studio)
        assert found.judgments == N
        assert {number: best for number, (_, best) in judged(campaign).items()} == answers
        with Store.open(campaign.feedback) as read:
            assert read.counts().versions == N
        assert number < 3 * KILLS + 5, "most pulls end before they are killed: this shows nothing"
