"""Name the limits of an evaluation: items of the training, a dependent judge, cut answers, settings that nothing reads.

In: the run's subject and reward by their records, items and results. Out: sentences for the run's notes and record, and
the number of items of each suite that were trained on. Audits repeat them. Training prompts are read from the pairs
runs behind the subject, where these still exist. Not here: rewards that the policy was trained on (training_reward).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from align.core.declarations import Declaration
from align.core.files import read_jsonl
from align.core.messages import normalised
from align.core.records import ItemResult, Message
from align.core.run_record import RunRecord, is_run, read_run
from align.evals.items import Item, as_text
from align.evals.suite import Suite

LEARNED = ("policy", "model", "data", "pairs")  # inputs of a training run that a policy's prompts come by


def trained_on_items(subject: Path, items: Sequence[Item]) -> dict[str, int]:
    """Count the items of each suite that are prompts of the policy's training; suites without one are left out."""
    prompts = _training_prompts(subject)
    counts: dict[str, int] = {}
    for item in items:
        if _asked(item) in prompts:
            counts[item.suite] = counts.get(item.suite, 0) + 1
    return counts


def of_training(counts: Mapping[str, int], items: Sequence[Item]) -> list[str]:
    """Name the suites with items that the policy was trained on."""
    return [
        f"{count} of {sum(item.suite == suite for item in items)} {suite} items are prompts that the policy was "
        "trained on: they say little about others"
        for suite, count in counts.items()
    ]


def of_judge(subject: Path, reward: Path | None) -> list[str]:
    """Name a reward model that learned from the judgments that the policy learned from."""
    if reward is None or not is_run(subject) or not is_run(reward):
        return []
    pairs = read_run(reward).lineage.get("pairs")
    if pairs is None or pairs != read_run(subject).lineage.get("pairs"):
        return []
    return ["the reward model learned from the pairs that the policy learned from: it is no independent judge"]


def of_settings(given: Collection[str], suites: Sequence[Suite], policy: str) -> list[str]:
    """Name the settings that were given and that nothing reads."""
    chosen = policy == "best-of-n"
    read = {key for suite in suites for key in suite.reads} | ({"reward"} if chosen else set())
    unread = {key: key not in read for key in ("judge", "gold", "sft", "reward")}
    unread = {"temperature": policy == "greedy", "n": not chosen} | unread
    context = f"suite {', '.join(suite.name for suite in suites)} and policy {policy}"
    return [f"'{key}' is given and not read: {context}" for key, value in unread.items() if value and key in given]


def of_metrics(declarations: Iterable[Declaration], results: Sequence[ItemResult]) -> list[str]:
    """Name the declared metrics that have no result, or none with a score.

    Metrics that need an input (``gold``, ``reward``, ``sft``, a module) have results only where it is given.
    """
    lines = []
    for declared in declarations:
        own = [result for result in results if result.suite == declared.suite]
        given = {result.metric.partition("/")[0] for result in own}
        wanted = [m for m in declared.metrics if not (m.judged_by or m.against or m.has_slices_only)]
        if lacking := [metric.name for metric in wanted if metric.name not in given]:
            lines.append(f"suite {declared.suite}: none of its items has a result of {', '.join(lacking)}")
        scored = {result.metric for result in own if result.score is not None}
        failed = {result.metric: result.reason for result in reversed(own) if result.metric not in scored}
        lines += [
            f"suite {declared.suite}: no result of {name} has a score ({reason})" for name, reason in failed.items()
        ]
    return lines


def of_cut(results: Sequence[ItemResult], max_new_tokens: int) -> list[str]:
    """Count the answers of each suite that were cut."""
    lines = []
    for suite in dict.fromkeys(result.suite for result in results):
        answers = {
            (result.item_id, result.sample): result.ended
            for result in results
            if result.suite == suite and result.ended is not None
        }
        if cut := sum(not ended for ended in answers.values()):
            lines.append(
                f"{cut} of {len(answers)} {suite} answers were cut at {max_new_tokens} tokens (max_new_tokens)"
            )
    return lines


def _asked(item: Item) -> str:
    """Return an item's prompt as pairs are split by; a text to predict as a user's message."""
    text: list[Message] = [{"role": "user", "content": item.text or ""}]
    return normalised(text if item.kind == "perplexity" else item.prompt or [])


def _training_prompts(subject: Path) -> set[str]:
    """Return the prompts of the training pairs of every run behind a policy."""
    if not is_run(subject):
        return set()
    prompts: set[str] = set()
    waiting, seen = [subject], set()
    while waiting:
        path = waiting.pop()
        if path in seen or not is_run(path):
            continue
        seen.add(path)
        record = read_run(path)
        waiting += [Path(parent["path"]) for role, parent in record.parents.items() if role in LEARNED]
        prompts |= _of_pairs(record, path)
    return prompts


def _of_pairs(record: RunRecord, path: Path) -> set[str]:
    file = path / "train.jsonl"
    if record.stage != "pairs" or not file.is_file():
        return set()
    prompts: list[list[Message]] = [row["prompt"] for row in read_jsonl(file)]
    texts: list[list[Message]] = [[{"role": "user", "content": as_text(prompt)}] for prompt in prompts]
    return {normalised(form) for form in (*prompts, *texts)}
