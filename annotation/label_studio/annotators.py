"""`annotate annotators`: accounts for the people of a campaign on an embedded server, under aliases.

In: the server's folder and names that say nothing of who people are. Out: a line an account with its password, which
is shown this once and kept nowhere. Who goes by which alias is for the lead of the campaign to write down, elsewhere:
the open-source server shows every address to everybody. Not here: how an account is made (``accounts.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from align.core.config import BadInput
from annotation.label_studio.accounts import check_alias, create_annotator
from annotation.label_studio.server import start, status


def annotators(folder: Path, *, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Make an account ``NAME@annotators.invalid`` with a random password for each name, and say what to log in with.

    Accounts are said as they are made, so that none is lost when a later one fails.

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
        account = create_annotator(server, name)
        emails.append(account.email)
        yield f"{account.email}  {account.password}"
    yield f"for the campaign's YAML: annotators: [{', '.join(emails)}]"
