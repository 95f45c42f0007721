"""A campaign on the real labelling server: what it asks, how answers to it look, and what was made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.core.files import write_jsonl
from annotation.campaign.settings import Campaign
from annotation.feedback.ledger import Ledger
from annotation.feedback.store import Store
from annotation.interfaces.config import Interface
from annotation.label_studio.studio import Studio

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
    """A campaign of its own with n comparisons."""
    interface = Interface(rationale=True, improve=True, ratings=("helpful",))
    name = f"bridge {random.randrange(10**9)}"
    return Campaign(name=name, feedback=folder / "feedback.db", candidates=[candidates(folder, n)], interface=interface)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return new_campaign(tmp_path, 8)


def tasks(studio: Studio, campaign: Campaign) -> dict[str, Any]:
    """The tasks on the server by question number."""
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
    assert state is not None
    found = {}
    for task in studio.all_tasks(state.project):
        number = task.data["prompt_html"].split("question ")[1].split(" ")[0]
        found[number] = task
    return found


def choice(value: str) -> dict[str, Any]:
    region = {"from_name": "verdict", "to_name": "response_a", "type": "choices", "value": {"choices": [value]}}
    return {"id": "v", "origin": "manual", **region}


def text(name: str, value: str) -> dict[str, Any]:
    return {"from_name": name, "to_name": "response_a", "type": "textarea", "value": {"text": [value]}}


def answer(studio: Studio, task: Any, result: Sequence[dict[str, Any]], **facts: Any) -> int:
    body = {"result": list(result), **facts}
    return int(studio._calls.send("POST", f"api/tasks/{task.id}/annotations/", body=body)["id"])


def for_good(task: Any, strength: int = 2) -> dict[str, Any]:
    """A verdict for the good answer, wherever it stands on screen."""
    good_is_left = GOOD in task.data["response_a_html"]
    return choice(str(-strength if good_is_left else strength))


def judged(campaign: Campaign) -> dict[str, Any]:
    """Question number to (judgment, text of the better response or None)."""
    with Store.open(campaign.feedback) as store:
        assert store.verify().ok
        comparisons = {c.id: c for c in store.comparisons()}
        found = {}
        for judgment in store.judgments():
            comparison = comparisons[judgment.comparison_id]
            number = comparison.prompt[0]["content"].split(" ")[1]
            best = judgment.ranking[0]
            found[number] = (judgment, comparison.responses[best[0]].text if len(best) == 1 else None)
    return found
