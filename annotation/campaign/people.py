"""Manage who takes part: `annotate annotators`, `people`, `exclude` and `include`.

In: an embedded server's folder, a campaign with a client, or a feedback store. Out: accounts under aliases, each with a
password that is shown once and kept nowhere; which account has which name in the store; and an exclusion, with its
reason, by which every later stage leaves a person's judgments out. The store, its exports and its pages know people by
pseudonyms, and the open-source server shows every address to everybody, so the lead of the campaign writes down
elsewhere who has which alias. Not here: how an account is made (``accounts.py``), and who is under a bar (``gold.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from align.core.config import BadInput
from annotation.campaign.settings import Campaign
from annotation.label_studio.accounts import Account, check_alias, create_annotator
from annotation.label_studio.server import start, status
from annotation.label_studio.studio import Studio
from annotation.store import ledger
from annotation.store.store import Store


class Participant(NamedTuple):
    """An account: its name in the store, its address, and its judgments as of the last pull."""

    name: str
    address: str
    judgments: int


def annotators(folder: Path, *, names: tuple[str, ...] = ()) -> Iterator[str | Account]:
    """Make an account ``NAME@annotators.invalid`` with a random password for each name.

    Accounts are returned as they are made, so that none is lost when a later one fails.

    Args:
        names: the aliases, 1 to 40 of a-z, 0-9, _ and - each, that do not identify the person.

    Raises:
        BadInput: no server runs there, no names, a name twice, or one that is no alias or is taken.
    """
    if not names:
        raise BadInput("align annotate annotators: names=[annotator-1, annotator-2]: nobody is named")
    for name in names:
        check_alias(name)
        if names.count(name) > 1:
            raise BadInput(f"'{name}' is named twice; every annotator has an alias of their own")
    if status(folder).state != "running":
        raise BadInput(f"{folder}: no server answers there; start it with: align annotate up server={folder}")
    server = start(folder)  # it runs: this finds it
    yield f"people log in at {server.url}; each password is shown this once:"
    emails = []
    for name in names:
        account = create_annotator(server.url, server.token, name)
        emails.append(account.email)
        yield account
    yield f"for the campaign's YAML: annotators: [{', '.join(emails)}]"


def people(campaign: Campaign, studio: Studio) -> Iterator[Participant]:
    """List every account of the server: its name in the store, its address and its judgments.

    Raises:
        BadInput: nothing was pushed yet, or a silent server.
    """
    with Store.open(campaign.feedback) as store:
        state = ledger.Ledger(store, campaign.name).pushed_state()
        judged = Counter(judgment.annotator for judgment in store.judgments())
    for name, address in people_of(studio, state.url).items():
        yield Participant(name, address, judged[name])


def people_of(studio: Studio, url: str) -> dict[str, str]:
    """Return the addresses of a server's accounts by their names in the store.

    Args:
        url: the server's address when the campaign began, which names are made of: servers move, people stay.
    """
    return {ledger.pseudonym(url, number): address for number, address in sorted(studio.users().items())}


def exclude(*, annotator: str, reason: str, feedback: Path = Path("feedback.db")) -> str:
    """Leave an annotator's judgments out of pairs from now on.

    Args:
        annotator: the annotator's name in the store.
        reason: why, kept beside the exclusion.
        feedback: the feedback store.

    Raises:
        BadInput: no such store, no reason, or nobody of that name has judged in it.
    """
    with Store.open(feedback, write=True, create=False) as store:
        n = sum(judgment.annotator == annotator for judgment in store.judgments())
        if not n and not ledger.was_pulled(store, annotator):
            raise BadInput(
                f"{feedback}: '{annotator}' has judged nothing here; 'align annotate people --config F' says who is "
                "called what"
            )
        ledger.exclude(store, annotator, reason)
    return f"{annotator} is excluded ({reason}): {n} judgments are left out of pairs from now on"


def include(*, annotator: str, feedback: Path = Path("feedback.db")) -> str:
    """Count the judgments of an excluded annotator again.

    Args:
        annotator: the annotator's name in the store.
        feedback: the feedback store.

    Raises:
        BadInput: no such store, or the person is not excluded.
    """
    with Store.open(feedback, write=True, create=False) as store:
        known = ledger.excluded(store)
        if annotator not in known:
            others = f"; excluded are {', '.join(known)}" if known else "; nobody is"
            raise BadInput(f"{feedback}: '{annotator}' is not excluded{others}")
        ledger.include(store, annotator)
    return f"{annotator} counts again"
