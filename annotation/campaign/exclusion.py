"""`annotate exclude` and `annotate include`: whose judgments count, by one flag that keeps its reason.

In: a feedback store and a name as it stands there. Out: the flag beside the judgments; nothing is erased, and every
stage that makes something of judgments reads it (``evidence.py``). Not here: who falls under a bar.
"""

from __future__ import annotations

from pathlib import Path

from align.core.config import BadInput
from annotation.store import ledger
from annotation.store.store import Store


def exclude(*, annotator: str, reason: str, feedback: Path = Path("feedback.db")) -> str:
    """Leave a person's judgments out of pairs from now on.

    Raises:
        BadInput: no such store, no reason, or nobody of that name has judged in it.
    """
    _require(feedback)
    with Store.open(feedback, write=True) as store:
        n = sum(judgment.annotator == annotator for judgment in store.judgments())
        if not n and not ledger.was_pulled(store, annotator):
            raise BadInput(
                f"{feedback}: '{annotator}' has judged nothing here; 'align annotate people --config F' says who is "
                "called what"
            )
        ledger.exclude(store, annotator, reason)
    return f"{annotator} is excluded ({reason}): {n} judgments are left out of pairs from now on"


def include(*, annotator: str, feedback: Path = Path("feedback.db")) -> str:
    """Take an exclusion back.

    Raises:
        BadInput: no such store, or the person is not excluded.
    """
    _require(feedback)
    with Store.open(feedback, write=True) as store:
        known = ledger.excluded(store)
        if annotator not in known:
            others = f"; excluded are {', '.join(known)}" if known else "; nobody is"
            raise BadInput(f"{feedback}: '{annotator}' is not excluded{others}")
        ledger.include(store, annotator)
    return f"{annotator} counts again"


def _require(feedback: Path) -> None:
    if not feedback.is_file():
        raise BadInput(f"{feedback}: no such feedback store; name the one that holds the judgments with feedback=")
