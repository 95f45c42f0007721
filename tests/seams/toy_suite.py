"""A suite from outside the package: does an answer keep to the number of words that its item allows?"""

from __future__ import annotations

from collections.abc import Sequence

from align.core.declarations import Metric
from align.core.records import ItemResult
from align.evals.generation import SamplingConfig, answer_items
from align.evals.items import Item
from align.evals.results import item_result
from align.evals.suite import Suite
from align.evals.targets import EvaluationTarget


class LimitItem(Item):
    """A prompt, and how many words an answer may have."""

    kinds = ("generate",)
    most_words: int


class WordLimit(Suite):
    """``slack`` words above an item's limit are let pass."""

    name = "word-limit"
    title = "Word limits"
    item = LimitItem
    metrics = (
        Metric(name="over_limit", higher_is_better=False, kind="binary"),
        Metric(name="words", higher_is_better=False, kind="unbounded", low=0.0, capped_by="max_new_tokens"),
    )
    slack: int = 0

    def results(self, items: Sequence[Item], target: EvaluationTarget, sampling: SamplingConfig) -> list[ItemResult]:
        results = []
        for one in answer_items(target.policy, items, sampling, target.reward):
            assert isinstance(one.item, LimitItem)
            counts = [len(answer.text.split()) for answer in one.answers]
            for number, words in enumerate(counts or [None]):  # an item without answers is one failed result
                over = None if words is None else float(words > one.item.most_words + self.slack)
                results.append(item_result(one, "over_limit", "word count", over, None, number))
                results.append(item_result(one, "words", "word count", words, None, number))
        return results
