"""Stage ``agreement``: how far people agree with each other, and what else moves their votes.

In: ``feedback.db``. Out: ``agreement.json`` (``measures.py``) and ``agreement.html`` (``page.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from align.core.config import BadInput, StageConfig
from align.core.files import write_json, write_text
from align.core.runs import Run
from align.core.stage import stage
from annotation.aggregation.votes import is_shared, votes_of
from annotation.agreement.measures import measure
from annotation.agreement.page import page
from annotation.store.ledger import excluded, gold_rankings, sources
from annotation.store.store import Store, store_head


class AgreementConfig(StageConfig):
    """``feedback`` is the store to read; its chain head goes into the record."""

    stage: Literal["agreement"] = "agreement"
    feedback: Path = Field(default=Path("feedback.db"), description="the store of judgments")

    def input_hashes(self) -> dict[str, str]:
        return store_head(self.feedback)


@stage
def agreement(config: AgreementConfig, run: Run) -> dict[str, Any]:
    """Measure agreement in a feedback store; writes ``agreement.json`` and ``agreement.html``.

    Raises:
        BadInput: no store, or no judgments in it.
    """
    with Store.open(config.feedback) as store:
        calibration = sources(store, "calibration")
        votes = votes_of(judgment for judgment in store.judgments() if judgment.source not in calibration)
        gold = gold_rankings(store)
        comparisons = {comparison.id: comparison for comparison in store.comparisons()}
        out = sorted(excluded(store).keys() & {vote.annotator for vote in votes})
    if not votes:
        raise BadInput(f"{config.feedback}: holds no judgments; collect, simulate or import some first")
    if not is_shared(votes):
        run.note("no two people judged the same: agreement is not measured (`votes: 2` has two judge each task)")
    if out:
        run.note(f"what these excluded people said is in the figures, though in no pair: {', '.join(out)}")
    report = measure(votes, comparisons, config.seed, gold)
    write_json(run.path / "agreement.json", report)
    write_text(run.path / "agreement.html", page(report))
    return {
        "alpha": report["alpha"],
        "alpha_ordinal": report["alpha_ordinal"]["value"],
        "pairwise_agreement": report["pairwise_agreement"]["value"],
        "weighted_kappa": report["weighted_kappa"]["value"],
        "left_share": report["position"]["value"],
        "longer_share": report["length"]["value"],
        "tie_share": report["ties"]["value"],
        "n_votes": report["votes"],
        "n_comparisons": report["comparisons"],
        "n_annotators": len(report["annotators"]),
    }
