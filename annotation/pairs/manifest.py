"""The account of a pairs run: what was read, what was made of it, and what was left out and why.

In: the comparisons, judgments and votes that were read, and the rows that were made. Out: the content of
``manifest.json`` but for its files. Nothing in it depends on the store that held them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from align.core.records import Comparison, Judgment, Pair, Record
from annotation.aggregation.votes import Vote
from annotation.agreement.measures import ceiling
from annotation.pairs.products import Products
from annotation.pairs.splits import SPLITS, Placement
from annotation.store.chain import Split


def account(
    policy: Mapping[str, Any],
    comparisons: Sequence[Comparison],
    judgments: Sequence[Judgment],
    votes: Sequence[Vote],
    pairs: Mapping[Split, Sequence[Pair]],
    dropped: Mapping[str, int],
    made: Products,
    placement: Placement,
) -> dict[str, Any]:
    """Return what was read and how far people agree on it, and what was made by split; ``policy`` are the settings.

    Kinds of products without judgments are left out.
    """
    used = {split: {pair.comparison_id for pair in pairs[split]} for split in SPLITS}
    judged = {judgment.comparison_id for judgment in judgments}
    digest = hashlib.sha256()  # the same in every store that holds the same comparisons and judgments
    for record in (*comparisons, *judgments):
        digest.update(json.dumps(record, sort_keys=True, default=Record.model_dump).encode() + b"\n")
    products = {}
    for name, (rows, reasons) in made._asdict().items():
        if rows or reasons:
            counted = Counter(placement.split[row.comparison_id] for row in rows)
            products[name] = {"rows": {s: counted[s] for s in SPLITS}, "dropped": dict(sorted(reasons.items()))}
    seed = policy["seed"]
    return {
        "comparisons": len(comparisons),
        "without_judgment": sum(comparison.id not in judged for comparison in comparisons),
        "judgments": len(judgments),
        "annotators": len({judgment.annotator for judgment in judgments}),
        "pairs": {split: len(pairs[split]) for split in SPLITS},
        "prompts": {split: len({pair.prompt_id for pair in pairs[split]}) for split in SPLITS},
        "dropped": dict(sorted(dropped.items())),
        "near_duplicate_prompts": placement.near_duplicates,
        "ceiling": {
            **ceiling(votes, seed),
            **{split: ceiling([v for v in votes if v.comparison_id in used[split]], seed) for split in SPLITS},
        },
        "policy": policy,
        "content_sha256": digest.hexdigest(),
        **products,
    }
