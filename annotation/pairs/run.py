"""Stage ``pairs``: votes to what training reads, with an account of everything that was left out.

In: ``feedback.db``. Out: ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` (one ``Pair`` per line: TRL's
conversational columns and what we know of the vote), where people gave them ``demonstrations.jsonl``, ``thumbs.jsonl``
and ``labels.jsonl``, on demand a folder ``card/`` to publish, and ``manifest.json``: the sha256 of each file, and
everything that was left out and why. The same judgments, exclusions and config always give the same bytes, whatever
order they came in and whichever store holds them; the chain head, which depends on the store's random salts, therefore
is in the run's record (``inputs.feedback``) and not in the manifest.

Which judgments count is decided in ``counting.py``, which response is the better one and with what weight in
``decisions.py``, which split a prompt belongs to in ``splits.py``; what is no pair is made in ``products.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from align.core.config import BadInput, StageConfig
from align.core.files import write_json, write_jsonl
from align.core.hashes import file_hash
from align.core.records import Comparison, Judgment, Pair, Response
from align.core.runs import Run
from align.core.stage import stage
from align.core.stats.estimates import Estimate
from annotation.aggregation.counting import CountingJudgments, counting_judgments, exclusions_hash, questions_of
from annotation.aggregation.decisions import Method, Ties, called_both_bad, decide
from annotation.aggregation.votes import FIRST, TIE, Tally, Vote, tallies, votes_of
from annotation.agreement.measures import measure
from annotation.pairs.card import guideline_versions, write_card
from annotation.pairs.manifest import account
from annotation.pairs.products import Made, ProductRow, Products, columns, files, pair_key, products, side
from annotation.pairs.splits import SPLITS, Placement, is_for_judge, place
from annotation.store.chain import Split
from annotation.store.ledger import excluded
from annotation.store.store import Store

REASONS = ("tie", "too few votes", "chosen equals rejected", "duplicate", "leakage")


class PairsConfig(StageConfig):
    """``validation`` and ``test`` are shares of the prompts; a comparison's own split hint wins over them.

    ``judge_share`` of the training prompts are kept from policies: a second run with ``for_judge`` makes pairs of
    those alone, for a reward model that no policy is trained on. Validation and test are the same in both.
    ``exclude`` names annotators that do not count, beside those whom the store holds excluded. ``min_votes`` holds for
    pairs, thumbs and labels alike.
    """

    stage: Literal["pairs"] = "pairs"
    feedback: Path = Field(default=Path("feedback.db"), description="the store of judgments")
    method: Method = Field(default="majority", description="how votes become one answer")
    ties: Ties = Field(
        default="drop",
        description="drop: a tie can win, and then makes no pair; half: a tie is half a vote for either side",
    )
    both_bad: Literal["keep", "drop"] = Field(
        default="keep",
        description="drop leaves out comparisons of which half the judgments or more call all responses bad",
    )
    min_votes: int = Field(1, ge=1, description="votes that a pair needs")
    validation: float = Field(0.1, ge=0, lt=1, description="share of the prompts")
    test: float = Field(0.2, ge=0, lt=1, description="share of the prompts")
    judge_share: float = Field(0.0, ge=0, lt=1, description="share of the training prompts kept for a judge")
    for_judge: bool = Field(False, description="make training pairs of these prompts, and not of the others")
    min_rows: int = Field(1, ge=1, description="fewest training pairs worth going on with")
    exclude: tuple[str, ...] = Field(default=(), description="annotators whose judgments are left out")
    card: bool = Field(False, description="also write a folder that load_dataset reads, without annotators' names")
    licence: Annotated[str, StringConstraints(pattern=r"^\S[^\n]*$")] | None = Field(
        default=None, description="licence of the data set, for its card"
    )

    @property
    def ledger(self) -> Path:
        """The store of exclusions and purposes of tasks, which are no entries of the chain: an input of their own."""
        return self.feedback

    def input_hashes(self) -> dict[str, str]:
        with Store.open(self.feedback) as store:
            return {"feedback": store.head(), "ledger": exclusions_hash(store)}

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave prompts for training (sum below 1)")
        if self.for_judge and not self.judge_share:
            raise ValueError("for_judge: say which share of the training prompts is meant, e.g. judge_share: 0.25")
        if self.card and not self.licence:
            raise ValueError("card: say under which licence its data may be used, e.g. licence=cc-by-4.0")
        if self.licence and not self.card:
            raise ValueError("licence: it is written into a card; ask for one with card=true, or leave it out")
        return self


@stage
def pairs(config: PairsConfig, run: Run) -> dict[str, Any]:
    """Make preference pairs, demonstrations, thumbs and labels from a feedback store.

    Raises:
        BadInput: no store, nothing to be made (all ties, too few votes), or fewer training pairs than ``min_rows``.
    """
    with Store.open(config.feedback) as store:
        head = _intact(store, run)
        judgments, comparisons, hints = store.judgments(), store.comparisons(), store.splits()
        questions, versions = questions_of(store), guideline_versions(store)
        reasons = _exclusions(config, store, judgments)
    placement = place(comparisons, hints, config.validation, config.test, config.seed)
    others = _of_the_other_side(config, comparisons, placement)
    comparisons = [comparison for comparison in comparisons if comparison.id not in others]
    judgments = [judgment for judgment in judgments if judgment.comparison_id not in others]
    counting = counting_judgments(judgments, questions, reasons)
    by_id = {comparison.id: comparison for comparison in comparisons}
    votes = pooled(votes_of(counting.judgments), by_id)
    voted, estimated = _voted(config, counting, votes, by_id, placement)
    made = products(counting.judgments, by_id, placement, questions, voted.rows, config.min_votes)
    whole = sorted([*voted.rows, *made.edited_pairs.rows], key=lambda p: (p.prompt_id, p.comparison_id))
    rows = {split: [p for p in whole if placement.split[p.comparison_id] == split] for split in SPLITS}
    _count_drops(run, voted, made)
    outputs: dict[str, Sequence[ProductRow]] = {f"{split}.jsonl": rows[split] for split in SPLITS}
    outputs |= files(made, placement.split)
    _require_rows(config, outputs, voted.dropped, len(comparisons), len(judgments), has_votes=bool(votes))
    manifest = {
        **account(_policy(config), comparisons, judgments, votes, rows, voted.dropped, made, placement),
        **({_other_side(config): len(others)} if config.judge_share else {}),
        "guidelines": dict(sorted(Counter(j.guideline for j in counting.judgments if j.guideline).items())),
        "excluded": [
            {"annotator": name, "reason": reasons[name], "judgments": count}
            for name, count in sorted(counting.excluded.items())
        ],
        **estimated,
    }
    for name, lines in outputs.items():
        write_jsonl(run.path / name, map(columns, lines))
    if config.card and config.licence:
        alpha = measure(votes, by_id, config.seed)["alpha"] if votes else None
        languages = sorted({by_id[row.comparison_id].language for lines in outputs.values() for row in lines})
        write_card(run.path / "card", outputs, config.licence, languages, manifest, alpha, versions)
    written = [*outputs, *sorted(f"card/{path.name}" for path in (run.path / "card").glob("*"))]
    manifest["files"] = {name: file_hash(run.path / name) for name in written}
    write_json(run.path / "manifest.json", manifest)
    if config.judge_share:
        run.note(f"{len(others)} comparisons of training prompts are {_other_side(config).replace('_', ' ')}")
    for note in _remarks(config, rows, placement, voted.dropped):
        run.note(note)
    return {
        **{f"{split}_pairs": len(rows[split]) for split in SPLITS},
        **{name: sum(manifest[name]["rows"].values()) for name in made._fields if name in manifest},
        "annotator_ceiling": Estimate.model_validate(manifest["ceiling"]).model_dump(),
        "judgments": len(judgments),
        "comparisons": len(comparisons),
        "chain_head": head,
    }


def pooled(votes: Iterable[Vote], comparisons: Mapping[str, Comparison]) -> list[Vote]:
    """Return votes in which rows of the same texts, kept apart by names of their own, are one comparison.

    The merged votes get the id of the comparison without a name of its own, else the smallest id.
    """
    alike: dict[str, list[Comparison]] = {}
    for comparison in comparisons.values():
        if comparison.item is not None:
            plain = comparison.model_dump(exclude={"id", "item"})
            alike.setdefault(Comparison.model_validate(plain).id, []).append(comparison)
    stands_for = {
        comparison.id: content if content in comparisons else min(copy.id for copy in copies)
        for content, copies in alike.items()
        for comparison in copies
    }
    return [vote._replace(comparison_id=stands_for.get(vote.comparison_id, vote.comparison_id)) for vote in votes]


def _of_the_other_side(config: PairsConfig, comparisons: Iterable[Comparison], placement: Placement) -> set[str]:
    """Return ids of the training comparisons kept for the judge; where pairs are made for it, of the policies'."""
    if not config.judge_share:
        return set()
    return {
        comparison.id
        for comparison in comparisons
        if placement.split[comparison.id] == "train"
        and is_for_judge(comparison.prompt, config.judge_share, config.seed) != config.for_judge
    }


def _other_side(config: PairsConfig) -> str:
    return "left_to_policies" if config.for_judge else "left_to_the_judge"


def pairs_of(decided: Iterable[Tally], comparisons: Mapping[str, Comparison], min_votes: int) -> Made[Pair]:
    """Make pairs of decided tallies; where two make the same pair, the one with more votes is kept."""
    dropped = Counter(dict.fromkeys(REASONS, 0))
    by_answers: dict[tuple[str, ...], Pair] = {}
    for tally in decided:
        comparison = comparisons[tally.comparison_id]
        first, second = (comparison.responses[index] for index in (tally.first, tally.second))
        if reason := _unusable(tally, first.messages == second.messages, min_votes):
            dropped[reason] += 1
            continue
        pair = _pair(comparison, tally, (first, second))
        key = pair_key(pair)
        if (rival := by_answers.get(key)) is not None:
            dropped["duplicate"] += 1
            if sum(rival.votes) >= sum(pair.votes):
                continue
        by_answers[key] = pair
    return Made(sorted(by_answers.values(), key=lambda p: (p.prompt_id, p.comparison_id)), dropped)


def _unusable(tally: Tally, are_equal: bool, min_votes: int) -> str | None:
    if sum(tally.counts) < min_votes:
        return "too few votes"
    if are_equal:
        return "chosen equals rejected"
    return "tie" if tally.winner in (None, TIE) else None


def _pair(comparison: Comparison, tally: Tally, sides: tuple[Response, Response]) -> Pair:
    first_wins = tally.winner == FIRST
    chosen, rejected = sides if first_wins else sides[::-1]
    first, second, tied = tally.counts
    return Pair(
        prompt=comparison.prompt,
        **side("chosen", chosen),
        **side("rejected", rejected),
        tools=comparison.tools,
        template_arguments=comparison.template_arguments,
        margin=tally.margin,
        votes=[first, second, tied] if first_wins else [second, first, tied],
        comparison_id=comparison.id,
        prompt_id=comparison.prompt_id,
        weight=tally.weight,
    )


def _intact(store: Store, run: Run) -> str:
    """Return the chain head of a store whose log verifies; training on edited votes is refused."""
    chain = store.verify()
    if not chain.ok:
        problems = "; ".join(chain.problems[:3])
        raise BadInput(f"{store.path}: was changed by another program ({problems}); restore a copy")
    if chain.erased:
        run.note(f"{chain.erased} entries of the feedback store were erased on request")
    return chain.head


def _exclusions(config: PairsConfig, store: Store, judgments: Iterable[Judgment]) -> dict[str, str]:
    """Return who does not count, with the reason: the store's flag, or this config."""
    unknown = set(config.exclude) - {judgment.annotator for judgment in judgments}
    if unknown:
        raise BadInput(
            f"{config.feedback}: exclude names '{min(unknown)}', who has judged nothing there; mend the name"
        )
    return {**dict.fromkeys(config.exclude, "by the setting exclude"), **excluded(store)}


def _voted(
    config: PairsConfig,
    counting: CountingJudgments,
    votes: Sequence[Vote],
    comparisons: Mapping[str, Comparison],
    placement: Placement,
) -> tuple[Made[Pair], dict[str, Any]]:
    """Return the pairs that votes make, every drop up to here, and what the method estimated on the way."""
    counted = tallies(votes)
    clean = [tally for tally in counted if tally.comparison_id not in placement.leaking]
    bad = called_both_bad(counting.judgments) if config.both_bad == "drop" else set()
    usable = [tally for tally in clean if tally.comparison_id not in bad]
    decisions = decide(config.method, config.ties, votes, usable, comparisons)
    voted = pairs_of(decisions.tallies, comparisons, config.min_votes)
    voted.dropped["leakage"] = len(counted) - len(clean)
    if config.both_bad == "drop":
        voted.dropped["both bad"] = len(clean) - len(usable)
    voted.dropped.update(+counting.left_out)
    return voted, decisions.estimated


def _count_drops(run: Run, voted: Made[Pair], made: Products) -> None:
    """Count drops in the run's record; what is no pair under the name of its kind."""
    for reason, count in sorted(voted.dropped.items()):
        run.drop(reason, count)
    for name, kind in made._asdict().items():
        for reason, count in sorted(kind.dropped.items()):
            run.drop(f"{name.replace('_', ' ')}: {reason}", count)


def _remarks(
    config: PairsConfig, rows: Mapping[Split, Sequence[Pair]], placement: Placement, dropped: Counter[str]
) -> list[str]:
    """Return notes on what is easily misunderstood about the split."""
    shares: dict[Split, float] = {"validation": config.validation, "test": config.test}
    notes = [
        f"{split} holds no pair, though {split}={share:g}: a share is drawn prompt by prompt, and a split that rows "
        "came with holds; more prompts fill it"
        for split, share in shares.items()
        if share and not rows[split] and any(rows.values())
    ]
    if placement.across:
        notes.append(
            f"{placement.across} questions are asked in training and in a held-out split, under different system "
            "prompts; where that is a leak, import them with a split (columns.split=...)"
        )
    if dropped["leakage"]:
        notes.append(f"{dropped['leakage']} pairs left out: their prompt is also held out")
    return notes


def _require_rows(
    config: PairsConfig,
    outputs: Mapping[str, Sequence[ProductRow]],
    dropped: Counter[str],
    n_comparisons: int,
    n_judgments: int,
    *,
    has_votes: bool,
) -> None:
    """Require rows, and ``min_rows`` training pairs where answers were compared: thumbs and labels make no pair."""
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count) or "nothing dropped"
    if not any(outputs.values()):
        raise BadInput(
            f"{config.feedback}: no pair can be made of {n_comparisons} comparisons with {n_judgments} judgments "
            f"({why}); collect more votes{' or lower min_votes' if dropped['too few votes'] else ''}"
        )
    n_train = len(outputs["train.jsonl"])
    if has_votes and n_train < config.min_rows:
        held_out = len(outputs["validation.jsonl"]) + len(outputs["test.jsonl"])
        raise BadInput(
            f"{config.feedback}: {n_train} training pairs, min_rows asks for {config.min_rows} "
            f"({held_out} held out; {why}); collect more votes, or lower validation, test, judge_share or min_rows"
        )


def _policy(config: PairsConfig) -> dict[str, Any]:
    """Return the settings that decide; a later one only where it is set, so that older files keep their bytes."""
    keys = {"method", "ties", "min_votes", "validation", "test", "seed"}
    later = {"both_bad"} if config.both_bad != "keep" else set()
    later |= {"judge_share", "for_judge"} if config.judge_share else set()
    return config.model_dump(mode="json", include=keys | later | ({"exclude"} if config.exclude else set()))
