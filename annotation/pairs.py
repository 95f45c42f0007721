"""Stage ``pairs``: votes to what training reads, with an account of everything that was left out.

In: ``feedback.db``. Out: ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` (one ``Pair`` a line: TRL's
conversational columns and what we know of the vote) and ``manifest.json``. The same judgments and config always give
the same bytes, whatever order they came in and whichever store holds them; the chain head, which depends on the
store's random salts, therefore stands in the run's record (``inputs.feedback``) and not in the manifest.

Prompts, not pairs, are split, and prompts that differ in case, spaces or punctuation only count as one. Which response
is the better one, and with what weight, is decided in ``verdicts.py``.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from pydantic import Field, model_validator

from align.core.config import BadInput, StageConfig
from align.core.files import write_json, write_jsonl
from align.core.runs import Run, stage
from annotation.agreement import ceiling
from annotation.store import STRICTNESS, Split, Store, store_head
from annotation.types import Comparison, Judgment, Message, Pair, content_hash
from annotation.verdicts import Method, Ties, Verdict, called_both_bad, judge
from annotation.votes import FIRST, TIE, Tally, Vote, margin, tallies, votes

REASONS = ("tie", "too few votes", "chosen equals rejected", "duplicate", "leakage")
SPLITS: tuple[Split, ...] = get_args(Split)


class PairsConfig(StageConfig):
    """``validation`` and ``test`` are shares of the prompts; a comparison's own split hint wins over them.

    ``both_bad: drop`` leaves out comparisons of which half the judgments or more say that both responses are bad.
    """

    stage: Literal["pairs"] = "pairs"
    feedback: Path = Path("feedback.db")
    method: Method = "majority"
    ties: Ties = "drop"
    both_bad: Literal["keep", "drop"] = "keep"
    min_votes: int = Field(1, ge=1)
    validation: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    min_rows: int = Field(1, ge=1, description="fewest training pairs worth going on with")

    def heads(self) -> dict[str, str]:
        return store_head(self.feedback)

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave prompts for training (sum below 1)")
        return self


class Decided(NamedTuple):
    """Pairs by comparison order, before the split, and why the others are none."""

    pairs: list[Pair]
    dropped: Counter[str]


class Placement(NamedTuple):
    """The split of each comparison id; ``leaking`` are ids whose hint put a held-out prompt into training."""

    split: dict[str, Split]
    leaking: set[str]
    near_duplicates: int


@stage
def pairs(config: PairsConfig, run: Run) -> dict[str, Any]:
    """Make preference pairs from a feedback store.

    Raises:
        BadInput: no store, no pair to be made (all ties, too few votes), or fewer training pairs than ``min_rows``.
    """
    with Store.open(config.feedback) as store:
        head = _intact(store, run)
        judgments, comparisons, hints = store.judgments(), store.comparisons(), store.splits()
    placement = place(comparisons, hints, config.validation, config.test, config.seed)
    cast, by_id = votes(judgments), {comparison.id: comparison for comparison in comparisons}
    counted = tallies(cast)
    clean = [tally for tally in counted if tally.comparison_id not in placement.leaking]
    bad = called_both_bad(judgments) if config.both_bad == "drop" else set()
    usable = [tally for tally in clean if tally.comparison_id not in bad]
    judged = judge(config.method, config.ties, cast, usable, by_id)
    decided = decide(usable, judged.verdicts, by_id, config.min_votes)
    decided.dropped["leakage"] = len(counted) - len(clean)
    if config.both_bad == "drop":
        decided.dropped["both bad"] = len(clean) - len(usable)
    rows = {split: [p for p in decided.pairs if placement.split[p.comparison_id] == split] for split in SPLITS}
    for reason, count in sorted(decided.dropped.items()):
        run.drop(reason, count)
    _require_rows(config, rows, decided.dropped, len(comparisons), len(judgments))
    manifest = _manifest(config, rows, decided.dropped, placement, comparisons, judgments, cast) | judged.estimated
    for split in SPLITS:
        write_jsonl(run.path / f"{split}.jsonl", [_columns(pair) for pair in rows[split]])
    write_json(run.path / "manifest.json", manifest)
    if manifest["dropped"]["leakage"]:
        run.note(f"{manifest['dropped']['leakage']} pairs left out: their prompt is also held out")
    return {
        **{f"{split}_pairs": len(rows[split]) for split in SPLITS},
        "annotator_ceiling": manifest["ceiling"]["value"],
        "annotator_ceiling_interval": manifest["ceiling"]["interval"],
        "annotator_ceiling_n": manifest["ceiling"]["n_scored"],
        "judgments": len(judgments),
        "comparisons": len(comparisons),
        "chain_head": head,
    }


def decide(
    counted: Iterable[Tally], verdicts: Iterable[Verdict], comparisons: Mapping[str, Comparison], min_votes: int
) -> Decided:
    """Turn tallies and their verdicts into pairs; where two make the same pair, the one with more votes stays."""
    dropped = Counter(dict.fromkeys(REASONS, 0))
    found: dict[tuple[str, ...], Pair] = {}
    for tally, verdict in zip(counted, verdicts, strict=True):
        comparison = comparisons[tally.comparison_id]
        first, second = (comparison.responses[index].messages for index in (tally.first, tally.second))
        if reason := _unusable(tally, verdict.winner, first == second, min_votes):
            dropped[reason] += 1
            continue
        pair = _pair(comparison, tally, (first, second), verdict)
        key = (
            pair.prompt_id,
            *sorted((content_hash(first), content_hash(second))),
            content_hash(pair.template_arguments),
        )
        if (rival := found.get(key)) is not None:
            dropped["duplicate"] += 1
            if sum(rival.votes) >= sum(pair.votes):
                continue
        found[key] = pair
    return Decided(sorted(found.values(), key=lambda p: (p.prompt_id, p.comparison_id)), dropped)


def place(
    comparisons: Sequence[Comparison],
    hints: Mapping[str, Split | None],
    validation: float,
    test: float,
    seed: int,
) -> Placement:
    """Give every comparison a split, the same for all prompts that are alike after ``normalised``.

    The strictest hint among them wins (test over validation over train); a comparison whose own hint is laxer leaks.
    Without hints the split is drawn from sha256(seed, normalised prompt), so new prompts never move old ones.
    """
    alike: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        alike.setdefault(normalised(comparison.prompt), []).append(comparison)
    split: dict[str, Split] = {}
    leaking: set[str] = set()
    for text, group in alike.items():
        hinted = [hint for comparison in group if (hint := hints.get(comparison.id))]
        chosen = max(hinted, key=STRICTNESS.__getitem__) if hinted else _draw(text, validation, test, seed)
        for comparison in group:
            split[comparison.id] = chosen
            if (hint := hints.get(comparison.id)) and hint != chosen:
                leaking.add(comparison.id)
    near = sum(len({comparison.prompt_id for comparison in group}) - 1 for group in alike.values())
    return Placement(split, leaking, near)


def normalised(prompt: Sequence[Message]) -> str:
    """A prompt's text without case, spaces and punctuation: near-duplicates come out equal.

    A prompt of punctuation alone keeps it, and so does a message without text (its tool calls count).
    """
    return "\n".join(f"{message['role']}: {_plain(message)}" for message in prompt)


def _plain(message: Message) -> str:
    said = str(message.get("content") or "") or json.dumps(message, sort_keys=True)
    folded = unicodedata.normalize("NFKC", said).casefold()
    return " ".join(folded.translate(_WORDS).split()) or folded


class _Words(dict[int, str]):
    """Characters as they stand in a normalised prompt, looked up once each: what is no part of a word is a space."""

    def __missing__(self, code: int) -> str:
        self[code] = chr(code) if unicodedata.category(chr(code))[0] in "LNMS" else " "
        return self[code]


_WORDS = _Words()


def _draw(text: str, validation: float, test: float, seed: int) -> Split:
    digest = hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"


def _unusable(tally: Tally, winner: int | None, are_equal: bool, min_votes: int) -> str | None:
    if sum(tally.counts) < min_votes:
        return "too few votes"
    if are_equal:
        return "chosen equals rejected"
    return "tie" if winner in (None, TIE) else None


def _pair(comparison: Comparison, tally: Tally, sides: tuple[list[Message], list[Message]], verdict: Verdict) -> Pair:
    first_wins = verdict.winner == FIRST
    chosen, rejected = sides if first_wins else sides[::-1]
    first, second, tied = tally.counts
    return Pair(
        prompt=comparison.prompt,
        chosen=chosen,
        rejected=rejected,
        tools=comparison.tools,
        template_arguments=comparison.template_arguments,
        margin=margin(tally, FIRST if first_wins else 1),
        votes=[first, second, tied] if first_wins else [second, first, tied],
        comparison_id=comparison.id,
        prompt_id=comparison.prompt_id,
        weight=verdict.weight,
    )


def _columns(pair: Pair) -> dict[str, Any]:
    """A row of the pairs file; ``tools`` and ``template_arguments`` stand only where there are any."""
    row = pair.model_dump()
    return {key: value for key, value in row.items() if value or key not in ("tools", "template_arguments")}


def _intact(store: Store, run: Run) -> str:
    """The chain head of a store whose log verifies; training on edited votes is refused."""
    found = store.verify()
    if not found.ok:
        raise BadInput(f"{store.path}: edited behind the log's back ({'; '.join(found.problems[:3])}); restore a copy")
    if found.erased:
        run.note(f"{found.erased} entries of the feedback store were erased on request")
    return found.head


def _require_rows(
    config: PairsConfig,
    rows: Mapping[Split, Sequence[Pair]],
    dropped: Counter[str],
    n_comparisons: int,
    n_judgments: int,
) -> None:
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count) or "nothing dropped"
    if not any(rows.values()):
        raise BadInput(
            f"{config.feedback}: no pair can be made of {n_comparisons} comparisons with {n_judgments} judgments "
            f"({why}); collect more votes or lower min_votes"
        )
    if len(rows["train"]) < config.min_rows:
        held_out = len(rows["validation"]) + len(rows["test"])
        raise BadInput(
            f"{config.feedback}: {len(rows['train'])} training pairs, min_rows asks for {config.min_rows} "
            f"({held_out} held out; {why}); collect more votes, or lower validation, test or min_rows"
        )


def _manifest(
    config: PairsConfig,
    rows: Mapping[Split, Sequence[Pair]],
    dropped: Counter[str],
    placement: Placement,
    comparisons: Sequence[Comparison],
    judgments: Sequence[Judgment],
    cast: Sequence[Vote],
) -> dict[str, Any]:
    used = {split: {pair.comparison_id for pair in rows[split]} for split in SPLITS}
    judged = {judgment.comparison_id for judgment in judgments}
    return {
        "comparisons": len(comparisons),
        "without_judgment": sum(comparison.id not in judged for comparison in comparisons),
        "judgments": len(judgments),
        "annotators": len({judgment.annotator for judgment in judgments}),
        "pairs": {split: len(rows[split]) for split in SPLITS},
        "prompts": {split: len({pair.prompt_id for pair in rows[split]}) for split in SPLITS},
        "dropped": dict(sorted(dropped.items())),
        "near_duplicate_prompts": placement.near_duplicates,
        "ceiling": {
            **ceiling(cast, config.seed),
            **{split: ceiling([v for v in cast if v.comparison_id in used[split]], config.seed) for split in SPLITS},
        },
        "policy": _policy(config),
        "content_sha256": _content(comparisons, judgments),
    }


def _policy(config: PairsConfig) -> dict[str, Any]:
    """The keys that decide; one that came later stands there where it is set, so older files keep their bytes."""
    keys = {"method", "ties", "min_votes", "validation", "test", "seed"}
    return config.model_dump(mode="json", include=keys | ({"both_bad"} if config.both_bad != "keep" else set()))


def _content(comparisons: Sequence[Comparison], judgments: Sequence[Judgment]) -> str:
    """Hash of what was read, the same in every store that holds the same comparisons and judgments."""
    digest = hashlib.sha256()
    for record in (*comparisons, *judgments):
        digest.update(json.dumps(record, sort_keys=True, default=vars).encode() + b"\n")
    return digest.hexdigest()
