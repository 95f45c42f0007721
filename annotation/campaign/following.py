"""`annotate pull`, once or with ``--watch``: poll a server and show the progress of its answers.

In: a campaign and a client. Out: the result of one pull or, watching, a line of progress: rewritten in place on a
terminal, elsewhere a plain line whenever something changed. A server that falls silent, or a store that another process
is writing to, is reported once and tried again until it answers. Every other fault ends the watch, as it ends a pull.
Ctrl-C ends it with exit code 130; each pull is a transaction, so nothing is lost. Not here: a single pull
(``pull.py``).
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from typing import IO, NamedTuple

from align.core.config import BadInput
from align.core.http import Silent
from annotation.campaign import pull as once
from annotation.campaign.pull import PullResult
from annotation.campaign.settings import Campaign
from annotation.campaign.text import Screen, poll_line
from annotation.label_studio.studio import Studio
from annotation.store.database import Busy

FULL_EVERY = 120  # polls: an hour, at one in 30 s


class Poll(NamedTuple):
    """One poll of the server: the result of a pull, or why there was none; ``is_full`` reads everything again."""

    number: int
    is_full: bool
    result: PullResult | None
    trouble: str

    @property
    def is_news(self) -> bool:
        return self.result is not None and bool(self.result.outcomes or self.result.taken_back)


def pull(
    campaign: Campaign, studio: Studio, *, full: bool = False, watch: bool = False, every: float | None = None
) -> PullResult:
    """Read answers that are new or changed, once or again and again until Ctrl-C.

    Args:
        full: read every answer, what is in quarantine once more, and notice deleted tasks.
        watch: poll the server until Ctrl-C, and show the progress.
        every: seconds between two polls of a watch, 1 to 86400; 30 where it is not given.

    Raises:
        BadInput: as a single pull does; while watching, a silent server does not end it once it has answered.
        KeyboardInterrupt: the watch was ended; its text counts what was read.
    """
    if not watch:
        if every is not None:
            raise BadInput("pull: every= goes with --watch; add it, or leave every= out")
        return once.pull(campaign, studio, full=full)
    every = 30.0 if every is None else every
    if not 1 <= every <= 86400:
        raise BadInput(f"pull: every={every:g} must be 1 to 86400 seconds")
    show(polls(campaign, studio, full=full), every, sys.stdout)
    raise AssertionError("polls never end")


def polls(campaign: Campaign, studio: Studio, *, full: bool = False, full_every: int = FULL_EVERY) -> Iterator[Poll]:
    """Pull each time the next poll is asked for; one in ``full_every`` reads everything (``full``: the first one too).

    Raises:
        BadInput: the first pull fails, or a later one for another reason than silence or another writer.
    """
    is_due = full
    for number in count(1):
        is_due = is_due or number % full_every == 0
        try:
            result = once.pull(campaign, studio, full=is_due)
        except (Silent, Busy) as trouble:
            if number == 1:
                raise
            yield Poll(number, is_due, None, str(trouble))
            continue
        yield Poll(number, is_due, result, "")
        is_due = False


def show(results: Iterator[Poll], every: float, out: IO[str]) -> None:
    """Write the progress of polls, with a pause after each; returns when they end, which those of a server never do.

    Raises:
        KeyboardInterrupt: with a last sentence.
    """
    screen, outcomes, n_polls, in_trouble = Screen(out), Counter[str](), 0, False
    try:
        for poll in results:
            n_polls = poll.number
            now = datetime.now().strftime("%H:%M:%S")
            if poll.result is None:
                if not in_trouble:
                    screen.keep(
                        f"{now} {poll.trouble.partition('; ')[0]}; going on, it is asked again every {every:g} s"
                    )
                in_trouble = True
            else:
                outcomes.update(poll.result.outcomes)
                if in_trouble:
                    screen.keep(f"{now} answers again")
                line = poll_line(poll.number, poll.is_full, poll.result, outcomes)
                screen.update(f"{now} {line}", poll.is_news or n_polls == 1)
                in_trouble = False
            time.sleep(every)
    except KeyboardInterrupt:
        screen.end()
        read = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())) or "nothing new"
        raise KeyboardInterrupt(
            f"stopped watching after {n_polls} polls ({read}); all that was read is kept, the same command goes on"
        ) from None
