"""Agreement that published campaigns reported, to compare one's own numbers with.

Each row names its measure, because they do not compare across: agreement of two people, a person with a majority, and
a kappa are different scales. Numbers without a source that was read (AlpacaFarm, SafeRLHF, HelpSteer3) are left out.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One campaign: who agreed with whom, by which measure of ours, how much (as printed), and the source."""

    campaign: str
    between: str
    measure: str
    reached: str
    source: str


PUBLISHED = (
    Published("InstructGPT", "training labelers", "pairwise_agreement", "72.6 ± 1.5 %", "arXiv 2203.02155, 3.4"),
    Published("InstructGPT", "held-out labelers", "pairwise_agreement", "77.3 ± 1.3 %", "arXiv 2203.02155, 3.4"),
    Published("Summarize from feedback", "labeler and labeler", "pairwise_agreement", "72 %", "arXiv 2009.01325, C.2"),
    Published(
        "Summarize from feedback",
        "labeler and researcher",
        "agreement_with_others",
        "77 ± 2 %",
        "arXiv 2009.01325, 3.3",
    ),
    Published(
        "Summarize from feedback",
        "researcher and researcher",
        "pairwise_agreement",
        "73 ± 4 %",
        "arXiv 2009.01325, C.2",
    ),
    Published("Anthropic HH", "researcher and crowdworker", "pairwise_agreement", "about 63 %", "arXiv 2204.05862"),
    Published("MT-bench", "two people", "pairwise_agreement_without_ties", "81 %", "arXiv 2306.05685"),
    Published("Chatbot Arena", "crowd and expert", "pairwise_agreement", "72 to 83 %", "arXiv 2403.04132"),
    Published("Chatbot Arena", "expert and expert", "pairwise_agreement", "79.4 to 89.8 %", "arXiv 2403.04132"),
    Published(
        "HelpSteer2, helpfulness",
        "annotators, before and after guidelines and filters",
        "weighted_kappa",
        "0.465, then 0.706 (summaries disagree: 0.791)",
        "arXiv 2406.08673",
    ),
    Published(
        "HelpSteer2, correctness",
        "annotators, before and after guidelines and filters",
        "weighted_kappa",
        "0.472, then 0.715 (summaries disagree: 0.793)",
        "arXiv 2406.08673",
    ),
)
