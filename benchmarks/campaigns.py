"""Campaigns on a real labelling server, whose answers are known: for the measurements here and for the tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.core.files import write_jsonl
from annotation.campaign.settings import Campaign
from annotation.interface.config import Interface
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger
from annotation.store.store import Store

GOOD, BAD = "a good answer", "a bad answer"


def candidates(folder: Path, n: int) -> Path:
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"question {i} of {folder.name}?"}],
            "responses": [
                {
                    "messages": [{"role": "assistant", "content": f"{GOOD} {i}"}],
                    "origin": "secret-run-a",
                    "ended": True,
                },
                {"messages": [{"role": "assistant", "content": f"{BAD} {i}"}], "origin": "secret-run-b", "ended": True},
            ],
            "family": "help",
            "split": "train",
        }
        for i in range(n)
    ]
    write_jsonl(folder / "candidates.jsonl", rows)
    return folder / "candidates.jsonl"


def new_campaign(folder: Path, n: int) -> Campaign:
    """Return a campaign of its own with n comparisons."""
    interface = Interface(rationale=True, improve=True, ratings=("helpful",))
    name = f"bridge {random.randrange(10**9)}"
    return Campaign(name=name, feedback=folder / "feedback.db", candidates=[candidates(folder, n)], interface=interface)


def tasks(studio: Studio, campaign: Campaign) -> dict[str, Any]:
    """Return the tasks on the server by question number."""
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
    assert state is not None
    shown = {}
    for task in studio.all_tasks(state.project):
        number = task.data["prompt_html"].split("question ")[1].split(" ")[0]
        shown[number] = task
    return shown


def choice(value: str) -> dict[str, Any]:
    region = {"from_name": "verdict", "to_name": "response_a", "type": "choices", "value": {"choices": [value]}}
    return {"id": "v", "origin": "manual", **region}


def text(name: str, value: str) -> dict[str, Any]:
    return {"from_name": name, "to_name": "response_a", "type": "textarea", "value": {"text": [value]}}


def answer(studio: Studio, task: Any, result: Sequence[dict[str, Any]], **facts: Any) -> int:
    body = {"result": list(result), **facts}
    return int(studio.connection.send("POST", f"api/tasks/{task.id}/annotations/", body=body)["id"])


def for_good(task: Any, strength: int = 2) -> dict[str, Any]:
    """Return a verdict for the good answer, wherever it is on screen."""
    good_is_left = GOOD in task.data["response_a_html"]
    return choice(str(-strength if good_is_left else strength))


class Answering(Studio):
    """A client whose tasks arrive answered: the server takes answers only ten a second one by one."""

    def import_tasks(self, project: int, rows: Any, batch: int = 1000) -> Any:
        class Shown:
            def __init__(self, data: dict[str, Any]) -> None:
                self.data = data

        answered = [
            {**row, "annotations": [{"result": [for_good(Shown(row["data"]))], "completed_by": 1}]} for row in rows
        ]
        return super().import_tasks(project, answered, batch)
