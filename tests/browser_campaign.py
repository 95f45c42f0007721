"""Two people with a browser each, and a campaign whose prompts and responses are told apart by what can be read."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from browser import Person

from align.core.files import write_jsonl
from annotation.campaign.settings import Campaign
from annotation.feedback.ledger import Ledger, pseudonym
from annotation.feedback.store import Store
from annotation.interfaces.config import Interface, words
from annotation.label_studio.accounts import Account
from annotation.label_studio.annotators import annotators
from annotation.label_studio.server import Server
from annotation.label_studio.studio import Studio
from annotation.types import Comparison, Judgment

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WARNING, AS_WRITTEN = words("en").warning, words("en").as_written


class People(NamedTuple):
    keys: Person
    mouse: Person


@pytest.fixture(scope="module")
def people(chromium: Browser, server: Server) -> Iterator[People]:
    names = tuple(f"annotator-{secrets.token_hex(4)}" for _ in range(2))
    lines = list(annotators(server.folder, names=names))
    accounts = [Account(*line.split()) for line in lines[1:-1]]
    assert [account.email for account in accounts] == [f"{name}@annotators.invalid" for name in names]
    assert server.url in lines[0] and all(account.email in lines[-1] for account in accounts)
    found = People(
        Person(chromium, server.url, accounts[0], "Dark", (1280, 800)),
        Person(chromium, server.url, accounts[1], "Light", (1920, 1080)),
    )
    yield found
    for person in found:
        person.leave()


class Asked(NamedTuple):
    """A question and its responses, the good one first."""

    name: str
    responses: Sequence[str]
    history: Sequence[dict[str, Any]] = ()
    family: str = "help"


def new_campaign(folder: Path, asked: Sequence[Asked], interface: Interface, **settings: Any) -> Campaign:
    rows = [
        {
            "prompt_id": question.name,
            "prompt": [*question.history, {"role": "user", "content": f"About {question.name}: what is best?"}],
            "responses": [
                {"messages": [{"role": "assistant", "content": text}], "origin": f"run-{n}", "ended": True}
                for n, text in enumerate(question.responses)
            ],
            "family": question.family,
            "split": "train",
        }
        for question in asked
    ]
    write_jsonl(folder / "candidates.jsonl", rows)
    return Campaign(
        name=f"browser {random.randrange(10**9)}",
        feedback=folder / "feedback.db",
        candidates=[folder / "candidates.jsonl"],
        interface=interface,
        **settings,
    )


def question(person: Person) -> str:
    """What the prompt on the page asks about."""
    return person.text("prompt").split("About ")[1].split(":")[0]


def first_line(text: str) -> str:
    return text.removeprefix(WARNING).strip().removeprefix(AS_WRITTEN).strip().splitlines()[0]


Judged = dict[tuple[str, str], tuple[Judgment, Comparison]]


def judged(campaign: Campaign, studio: Studio) -> Judged:
    """The judgments of the store by question and by address of the account that made them."""
    names = {pseudonym(studio.url, number): email for number, email in studio.users().items()}
    with Store.open(campaign.feedback) as store:
        assert store.verify().ok
        comparisons = {comparison.id: comparison for comparison in store.comparisons()}
        found = {}
        for judgment in store.judgments():
            comparison = comparisons[judgment.comparison_id]
            asked = comparison.prompt[-1]["content"].split("About ")[1].split(":")[0]
            found[asked, names[judgment.annotator]] = (judgment, comparison)
    return found


def best(judgment: Judgment, comparison: Comparison) -> str | None:
    """First line of the better response, None for a tie."""
    group = judgment.ranking[0]
    return first_line(comparison.responses[group[0]].text) if len(group) == 1 else None


def task_ids(campaign: Campaign, studio: Studio) -> dict[str, int]:
    """Task number by question."""
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
    assert state is not None
    return {
        task.data["prompt_html"].split("About ")[1].split(":")[0]: task.id for task in studio.all_tasks(state.project)
    }
