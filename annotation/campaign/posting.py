"""Simulated people at a real server: each logs in as themselves, judges tasks as they are shown, and posts over REST.

In: an embedded server, a campaign, who judges which comparison, and how. Out: annotations on the server, and what
``pull`` makes of them. An interrupted run resumes: what a person answered already is not posted again, and a post
without an answer is searched for before it is repeated. Their tokens are in the server's folder, in ``people/``,
readable by its owner alone. Not here: how people vote (``voters.py``), and what is to be judged (``campaign.py``).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tqdm import tqdm

from align.core.config import BadInput
from align.core.records import Comparison, Judgment
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.interface.config import Interface, controls, order_on_screen
from annotation.label_studio.accounts import DOMAIN, Account, create_annotator, create_token
from annotation.label_studio.connection import Connection
from annotation.label_studio.rows import Annotation, StudioTask
from annotation.label_studio.server import Server, write_secret
from annotation.label_studio.studio import PATIENCE, Studio
from annotation.store.ledger import Ledger, pseudonym
from annotation.store.store import Store

Judge = Callable[[Comparison, str, int], Judgment]  # (comparison, who, the response on the left) to a judgment


class Posted(NamedTuple):
    """Judgments of the simulated people under their own names, how many were posted now, and in how many seconds."""

    judgments: list[Judgment]
    posted: int
    seconds: float


Turn = tuple[StudioTask, Comparison]  # a task for somebody to judge


class _SimulatedPerson(NamedTuple):
    name: str
    account: int
    token: str


def post(server: Server, campaign: Campaign, panels: Mapping[str, Sequence[str]], judge: Judge) -> Posted:
    """Push the campaign, have the people of each comparison's panel judge it, and pull their judgments.

    Args:
        panels: names of those who judge a comparison, by its id; one without a panel stays open.

    Raises:
        BadInput: as ``push`` and ``pull``; or a task shows other texts than its comparison's.
    """
    studio = Studio(server.url, server.token)
    pushed = push(campaign, studio)
    people = [_enrol(server, studio, name) for name in sorted({name for names in panels.values() for name in names})]
    turns = _turns(campaign, list(studio.all_tasks(pushed.project)), panels, people)
    started = time.monotonic()
    _post_all(server, campaign.interface, people, turns, judge)
    seconds = time.monotonic() - started
    pull(campaign, studio)
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
        began = state.url if state else studio.url  # the address that people are known by, wherever the server is now
        names = {pseudonym(began, person.account): person.name for person in people}
        mine = [judgment for judgment in store.judgments() if judgment.annotator in names]
    judgments = [judgment.model_copy(update={"annotator": names[judgment.annotator]}) for judgment in mine]
    return Posted(judgments, sum(map(len, turns.values())), seconds)


def invite(server: Server, name: str) -> Account:
    """Make an account for a person, once, and keep it in the server's folder, readable by its owner."""
    return Account(**_kept(server, name, lambda account: account._asdict()))


def _enrol(server: Server, studio: Studio, name: str) -> _SimulatedPerson:
    """Return the account of a simulated person, which is made once; one without a token never posted and is left."""

    def log_in(account: Account) -> dict[str, str]:
        return {"email": account.email, "token": create_token(server.url, account.email, account.password)}

    kept = _kept(server, name, log_in)
    numbers = {email: number for number, email in studio.users().items()}
    if kept["email"] not in numbers:
        file = server.folder / "people" / name
        raise BadInput(f"{server.url}: has no account {kept['email']}; remove {file} to have one made")
    return _SimulatedPerson(name, numbers[kept["email"]], kept["token"])


def _kept(server: Server, name: str, secret: Callable[[Account], dict[str, str]]) -> dict[str, str]:
    """Return what the server's folder keeps of a person; an account is made where it keeps nothing."""
    file = server.folder / "people" / name
    if not file.exists():
        taken = set(Studio(server.url, server.token).users().values())
        aliases = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))]
        free = next(alias for alias in aliases if f"{alias}@{DOMAIN}" not in taken)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        write_secret(file, json.dumps(secret(create_annotator(server.url, server.token, free))))
    return dict(json.loads(file.read_text()))


def _turns(
    campaign: Campaign,
    tasks: Sequence[StudioTask],
    panels: Mapping[str, Sequence[str]],
    people: Sequence[_SimulatedPerson],
) -> dict[str, list[Turn]]:
    """Return what each person still has to judge, in the order of tasks on the server."""
    with Store.open(campaign.feedback) as store:
        known = Ledger(store, campaign.name).tasks()
        comparisons = {comparison.id: comparison for comparison in store.comparisons()}
    accounts = {person.name: person.account for person in people}
    turns: dict[str, list[Turn]] = {person.name: [] for person in people}
    for task in tasks:
        own = known.get(task.key or "")
        if own is None:
            continue
        answered = {annotation.completed_by for annotation in task.annotations}
        for name in panels.get(own.comparison_id, ()):
            if accounts[name] not in answered:
                turns[name].append((task, comparisons[own.comparison_id]))
    return turns


def _post_all(
    server: Server,
    interface: Interface,
    people: Sequence[_SimulatedPerson],
    turns: Mapping[str, list[Turn]],
    judge: Judge,
) -> None:
    """Let everybody judge at once, each their own tasks; the first fault stops all."""
    stopped = threading.Event()

    def work(person: _SimulatedPerson, progress: Any) -> None:
        connection = Connection(server.url, person.token, PATIENCE)
        for task, comparison in turns[person.name]:
            if stopped.is_set():
                return
            order = order_on_screen(interface, comparison, task.data, False)
            if order is None:
                raise BadInput(f"task {task.id} shows other texts than the responses of comparison {comparison.id}")
            judgment = judge(comparison, person.name, order[0])
            _post(connection, interface, task.id, person.account, judgment, order[0])
            progress.update()

    total = sum(map(len, turns.values()))
    with tqdm(total=total, desc="votes", unit="vote") as progress, ThreadPoolExecutor(max(1, len(people))) as pool:
        try:
            for future in [pool.submit(work, person, progress) for person in people if turns[person.name]]:
                future.result()
        finally:
            stopped.set()


def _post(connection: Connection, interface: Interface, task: int, account: int, judgment: Judgment, left: int) -> None:
    """Post a judgment as the labelling page would, once."""
    path = f"api/tasks/{task}/annotations/"
    strength = judgment.strength or 0
    lean = 0 if len(judgment.ranking) == 1 else -strength if judgment.ranking[0] == [left] else strength
    control = controls(interface)["verdict"]
    region = {"from_name": "verdict", "to_name": control.to_name, "type": control.type, "origin": "manual"}
    result = [{"id": f"verdict-{account}", **region, "value": {control.type: [str(lean)]}}]
    body = {"result": result, "lead_time": judgment.seconds}
    connection.write(
        lambda: connection.send("POST", path, body=body),
        lambda: any(row.completed_by == account for row in connection.read(path, form=list[Annotation])),
    )
