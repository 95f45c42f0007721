"""`annotate people`: which account stands behind which name of the store.

In: a campaign and a client. Out: names, addresses, and how much each of them said. The store, its exports and its pages
know people by names that say nothing; only the server knows the addresses, so this is the one place that asks it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from align.core.config import BadInput
from annotation.campaign.settings import Campaign
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger, pseudonym
from annotation.store.store import Store


def people(campaign: Campaign, studio: Studio) -> Iterator[str]:
    """A line an account of the server: its name in the store, its address, and its judgments as of the last pull.

    Raises:
        BadInput: nothing was pushed yet, or a silent server.
    """
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
        if state is None:
            raise BadInput(f"{campaign.feedback}: campaign '{campaign.name}' was never pushed from here; push it first")
        said = Counter(judgment.annotator for judgment in store.judgments())
    for name, address in people_of(studio, state.url).items():
        yield f"{name}  {address}  {said[name]} judgments"


def people_of(studio: Studio, url: str) -> dict[str, str]:
    """Addresses of a server's accounts by the name that the store knows them by.

    Args:
        url: the server's address when the campaign began, which names are made of: servers move, people stay.
    """
    return {pseudonym(url, account): address for account, address in sorted(studio.users().items())}
