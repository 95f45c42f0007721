"""Products of judgments besides pairs: demonstrations, edited pairs, thumbs and labels.

In: the judgments that count, their comparisons, and the split of each. Out: rows, in an order that depends on their
content alone, and counts of what was left out, by reason. ``demonstrations.jsonl`` and ``thumbs.jsonl`` hold training
prompts only, as ``sft`` and TRL's KTO read the whole file; held-out prompts are in ``demonstrations-test.jsonl`` and
so on. Labels are for evaluation: one file, and each row names its split.

An improved answer is a demonstration, and beats the answer it was made of. That pair has its author's one vote, weight
1.0 and no margin, since nobody judged by how much it is better. ``min_votes`` counts votes on two given answers and
does not apply to it; where people also voted between the same two texts, their votes decide. It is in training alone,
because a person's text against a model's is an easier choice than those that a reward model's accuracy and the
annotators' ceiling are measured on. What was written after a tie, or where both are bad, is a demonstration alone:
it was made of neither. Thumbs and labels are decided by plain majority, by any method of pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from align.core.records import (
    Comparison,
    Demonstration,
    Judgment,
    Labelled,
    Message,
    Pair,
    Record,
    Response,
    Thumb,
    content_hash,
)
from annotation.aggregation.counting import Questions
from annotation.aggregation.votes import DOWN, UP
from annotation.pairs.splits import SPLITS, Placement
from annotation.store.chain import Split

ProductRowT = TypeVar("ProductRowT")
ProductRow = Pair | Demonstration | Thumb | Labelled


FILES: Mapping[str, Mapping[str, str]] = {  # names by kind of row and split
    "pairs": {split: f"{split}.jsonl" for split in SPLITS},
    **{
        kind: {split: f"{kind}.jsonl" if split == "train" else f"{kind}-{split}.jsonl" for split in SPLITS}
        for kind in ("demonstrations", "thumbs")
    },
    "labels": {"judged": "labels.jsonl"},  # of every split; a row names its own
}


class Edit(NamedTuple):
    """What a person wrote in place of a response, or of all of them (None) where none was better."""

    comparison: Comparison
    before: Response | None
    after: list[Message]


class Made(NamedTuple, Generic[ProductRowT]):
    """Rows, and how many could not be made, by reason."""

    rows: list[ProductRowT]
    dropped: Counter[str]


class Products(NamedTuple):
    """Everything but the pairs that were voted on."""

    demonstrations: Made[Demonstration]
    edited_pairs: Made[Pair]
    thumbs: Made[Thumb]
    labels: Made[Labelled]


def products(
    judgments: Sequence[Judgment],
    comparisons: Mapping[str, Comparison],
    placement: Placement,
    questions: Questions,
    voted: Iterable[Pair],
    min_votes: int,
) -> Products:
    """Make all of them; ``voted`` are the pairs that votes made already."""
    edits = _edits(judgments, comparisons, placement.leaking)
    single = [j for j in judgments if len(j.shown) == 1]
    thumbed = [j for j in single if j.label in (UP, DOWN)]
    named = [j for j in single if j.label not in (UP, DOWN)]
    return Products(
        _demonstrations(edits),
        _edited_pairs(edits.rows, placement, voted),
        _thumbs(thumbed, comparisons, placement.leaking, min_votes),
        _labels(named, comparisons, placement, questions, min_votes),
    )


def files(made: Products, split: Mapping[str, Split]) -> dict[str, Sequence[ProductRow]]:
    """Return rows by file name; files that would be empty are left out."""
    by_file: dict[str, Sequence[ProductRow]] = {}
    for kind, rows in (("demonstrations", made.demonstrations.rows), ("thumbs", made.thumbs.rows)):
        by_file |= {f: [row for row in rows if split[row.comparison_id] == s] for s, f in FILES[kind].items()}
    by_file["labels.jsonl"] = made.labels.rows
    return {file: rows for file, rows in by_file.items() if rows}


def columns(record: Record) -> dict[str, Any]:
    """Return a row as it is written to a file: ``tools`` and ``template_arguments`` only where there are any."""
    row = record.model_dump()
    return {key: value for key, value in row.items() if value or key not in ("tools", "template_arguments")}


def side(name: str, response: Response) -> dict[str, Any]:
    """Return a response as columns: its messages, and what is known of how it was written."""
    return {name: response.messages, f"{name}_ended": response.ended, f"{name}_tokens": response.tokens}


def pair_key(pair: Pair) -> tuple[str, ...]:
    """Return a key that is equal for two pairs about the same two responses, whichever won."""
    sides = sorted((content_hash(pair.chosen), content_hash(pair.rejected)))
    return (pair.prompt_id, *sides, content_hash(pair.template_arguments))


def _edits(judgments: Iterable[Judgment], comparisons: Mapping[str, Comparison], leaking: Iterable[str]) -> Made[Edit]:
    rows, dropped, left_out = [], Counter[str](), set(leaking)
    for judgment in judgments:
        if judgment.improved is None:
            continue
        comparison = comparisons[judgment.comparison_id]
        before = None if judgment.improved_from is None else comparison.responses[judgment.improved_from]
        given = comparison.responses if before is None else [before]
        after = _instead(given, judgment.improved.strip())
        if comparison.id in left_out:
            dropped["leakage"] += 1
        elif after is None:
            dropped["not one text that could be replaced"] += 1
        elif any(after == _rewritten(response.messages, _text(response.messages)) for response in given):
            dropped["unchanged"] += 1
        else:
            rows.append(Edit(comparison, before, after))
    rows.sort(
        key=lambda edit: (
            edit.comparison.prompt_id,
            edit.comparison.id,
            content_hash([edit.after, edit.before.messages if edit.before else None]),
        )
    )
    return Made(rows, dropped)


def _instead(given: Sequence[Response], text: str) -> list[Message] | None:
    """Return a response in a person's words, in place of one, or of several of which at least one is a single text."""
    if len(given) == 1:
        return _rewritten(given[0].messages, text)
    is_text = any(len(r.messages) == 1 and not r.messages[0].get("tool_calls") for r in given)
    return [{"role": "assistant", "content": text}] if is_text and text else None


def _rewritten(messages: Sequence[Message], text: str) -> list[Message] | None:
    """Return a response with other words and the same tool calls; None unless exactly one message has words."""
    places = [n for n, message in enumerate(messages) if message["role"] == "assistant" and message.get("content")]
    if len(places) != 1 or not text:
        return None
    return [{**message, "content": text} if n == places[0] else message for n, message in enumerate(messages)]


def _text(messages: Sequence[Message]) -> str:
    words = (str(message.get("content") or "") for message in messages if message["role"] == "assistant")
    return "".join(words).strip()


def _demonstrations(edits: Made[Edit]) -> Made[Demonstration]:
    by_content: dict[tuple[str, ...], Demonstration] = {}
    dropped = Counter(edits.dropped)
    for comparison, _, after in edits.rows:
        key = (comparison.prompt_id, content_hash(after), content_hash(comparison.template_arguments))
        if key in by_content:
            dropped["duplicate"] += 1
        else:
            by_content[key] = Demonstration(completion=after, **_shared_columns(comparison))
    return Made(list(by_content.values()), dropped)


def _edited_pairs(edits: Sequence[Edit], placement: Placement, voted: Iterable[Pair]) -> Made[Pair]:
    dropped, rows = Counter[str](), []
    prompts = {edit.comparison.prompt_id for edit in edits}
    known = {pair_key(pair) for pair in voted if pair.prompt_id in prompts}
    for comparison, before, after in edits:
        if before is None:  # a text that was written after a tie: nobody compared it with either
            continue
        if placement.split[comparison.id] != "train":
            dropped["held-out prompt"] += 1
            continue
        pair = Pair(chosen=after, **side("rejected", before), votes=[1, 0, 0], **_shared_columns(comparison))
        is_given = any(response.messages == after for response in comparison.responses)  # then votes decide, or a tie
        if is_given or (key := pair_key(pair)) in known:
            dropped["duplicate"] += 1
            continue
        known.add(key)
        rows.append(pair)
    return Made(rows, dropped)


def _thumbs(
    judgments: Iterable[Judgment], comparisons: Mapping[str, Comparison], leaking: Iterable[str], min_votes: int
) -> Made[Thumb]:
    counted: dict[str, Counter[str]] = {}
    for judgment in judgments:
        counted.setdefault(judgment.comparison_id, Counter())[str(judgment.label)] += 1
    rows, dropped, left_out = [], Counter[str](), set(leaking)
    for comparison in _in_order(counted, comparisons):
        up, down = counted[comparison.id][UP], counted[comparison.id][DOWN]
        if reason := _unusable(comparison.id in left_out, up + down, min_votes, is_tie=up == down):
            dropped[reason] += 1
            continue
        completion = side("completion", comparison.responses[0])
        rows.append(Thumb(**completion, label=up > down, votes=[up, down], **_shared_columns(comparison)))
    return Made(rows, dropped)


def _labels(
    judgments: Iterable[Judgment],
    comparisons: Mapping[str, Comparison],
    placement: Placement,
    questions: Questions,
    min_votes: int,
) -> Made[Labelled]:
    """Return one row per response and set of labels; a tie is a row without a label, which keeps its votes."""
    counted: dict[str, dict[tuple[str, ...], Counter[str]]] = {}
    dropped: Counter[str] = Counter()
    for judgment in judgments:
        if judgment.label is None:
            dropped["no label"] += judgment.improved is None
            continue
        offered = questions.offered(judgment)
        counted.setdefault(judgment.comparison_id, {}).setdefault(offered, Counter())[judgment.label] += 1
    rows = []
    for comparison in _in_order(counted, comparisons):
        for offered, chosen in sorted(counted[comparison.id].items()):
            if reason := _unusable(comparison.id in placement.leaking, chosen.total(), min_votes, is_tie=False):
                dropped[reason] += 1
                continue
            leaders = [name for name, count in chosen.items() if count == max(chosen.values())]
            rows.append(
                Labelled(
                    **side("completion", comparison.responses[0]),
                    label=leaders[0] if len(leaders) == 1 else None,
                    votes={name: chosen[name] for name in dict.fromkeys((*offered, *sorted(chosen)))},
                    split=placement.split[comparison.id],
                    **_shared_columns(comparison),
                )
            )
    return Made(rows, +dropped)


def _in_order(ids: Iterable[str], comparisons: Mapping[str, Comparison]) -> list[Comparison]:
    return sorted((comparisons[key] for key in ids), key=lambda comparison: (comparison.prompt_id, comparison.id))


def _unusable(is_leaking: bool, n_votes: int, min_votes: int, *, is_tie: bool) -> str | None:
    if is_leaking:
        return "leakage"
    if n_votes < min_votes:
        return "too few votes"
    return "tie" if is_tie else None


def _shared_columns(comparison: Comparison) -> dict[str, Any]:
    """Return the columns that every row has of its comparison."""
    return {
        "prompt": comparison.prompt,
        "tools": comparison.tools,
        "template_arguments": comparison.template_arguments,
        "comparison_id": comparison.id,
        "prompt_id": comparison.prompt_id,
    }
