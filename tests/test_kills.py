"""kill -9 at random moments of a push and of a pull: the next one completes, nothing is lost or doubled.

ALIGN_KILLS says how many times each (two here; `make evidence` asks for twenty).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from campaigns import for_good, judged, new_campaign, tasks

from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.feedback.ledger import Ledger
from annotation.feedback.store import Store
from annotation.label_studio.studio import Studio

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


class Answering(Studio):
    """A client whose tasks arrive answered: the server takes answers only ten a second one by one."""

    def import_tasks(self, project: int, rows: Any, batch: int = 1000) -> Any:
        class Shown:
            def __init__(self, data: dict[str, Any]) -> None:
                self.data = data

        said = [{**row, "annotations": [{"result": [for_good(Shown(row["data"]))], "completed_by": 1}]} for row in rows]
        return super().import_tasks(project, said, batch)


def seconds_of(verb: str, campaign: Campaign, server: Any, kill_after: float | None) -> float | None:
    """Run push or pull in a process of its own; its seconds, or None when it was killed before its end."""
    environment = {**os.environ, "LABEL_STUDIO_URL": server.url, "LABEL_STUDIO_API_KEY": server.token}
    process = subprocess.Popen(
        [sys.executable, "-c", ACT.format(verb=verb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert process.stdin and process.stdout
    process.stdin.write(campaign.model_dump_json())
    process.stdin.close()
    assert process.stdout.readline() == "ready\n"
    begin = time.monotonic()
    try:
        code = process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    finally:
        process.stdout.close()
    assert code == 0
    return time.monotonic() - begin


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


def test_push_survives_kills(server: Any, studio: Studio, tmp_path: Path) -> None:
    whole = new_campaign(tmp_path, N)
    lasts = seconds_of("push", whole, server, None)
    assert lasts is not None
    killed, number = 0, 0
    while killed < KILLS:
        number += 1
        campaign = new_campaign(tmp_path, N).model_copy(update={"feedback": tmp_path / f"{number}.db"})
        killed += seconds_of("push", campaign, server, random.uniform(0, lasts)) is None
        seconds_of("push", campaign, server, random.uniform(0, lasts))  # and once more, on what stands there now
        push(campaign, studio)
        check_sides(studio, campaign)
        assert push(campaign, studio).new == 0
        assert number < 3 * KILLS + 5, "most pushes end before they are killed: this shows nothing"


def test_pull_survives_kills(server: Any, studio: Studio, tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, N)
    push(campaign, Answering(server.url, server.token))
    store = campaign.feedback.read_bytes()

    def begin_again() -> None:
        for file in campaign.feedback.parent.glob("feedback.db*"):
            file.unlink()
        campaign.feedback.write_bytes(store)

    lasts = seconds_of("pull", campaign, server, None)
    assert lasts is not None
    said = {number: best for number, (_, best) in judged(campaign).items()}
    assert len(said) == N and all(best and best.startswith("a good answer") for best in said.values())
    killed, number = 0, 0
    while killed < KILLS:
        number += 1
        begin_again()
        killed += seconds_of("pull", campaign, server, random.uniform(0, lasts)) is None
        found = pull(campaign, studio)
        assert found.judgments == N
        assert {number: best for number, (_, best) in judged(campaign).items()} == said
        with Store.open(campaign.feedback) as read:
            assert read.counts().versions == N
        assert number < 3 * KILLS + 5, "most pulls end before they are killed: this shows nothing"
