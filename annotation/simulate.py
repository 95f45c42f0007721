"""Stage ``simulate``: people with known faults judge candidates whose true utility is known.

In: ``candidates.jsonl``, annotators described in the config, and the utility as a function that the caller hands
over. Out: comparisons and judgments in ``feedback.db``, and ``annotators.json`` (how often each of them agreed with
gold). A vote depends on the seed, the comparison and the annotator alone, never on the order of anything.

The model of a vote: latent = logit(reliability) x (utility left - right) + length bias x (words left - right) +
position bias + logistic noise; small values are ties, large ones strong preferences. Not here: learning, fatigue,
and people who share their mistakes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from align.core.config import BadInput, Frozen, StageConfig
from align.core.files import write_json
from align.core.runs import Run, stage
from annotation.agreement import share
from annotation.candidates import CandidatePrompt, choose_groups, compare, lot, read_candidates
from annotation.store import STRICTNESS, Split, Store
from annotation.types import Comparison, Judgment, content_hash

Utility = Callable[..., list[float | None]]  # TRL's reward signature: f(prompts, completions, **columns)


class Annotator(Frozen):
    """A simulated person: ``reliability`` .5 ignores the truth; ``careless`` is the share of random answers."""

    name: str
    reliability: float = Field(0.8, gt=0, lt=1)
    position_bias: float = Field(0.0, description="added to the latent preference for the left response")
    length_bias: float = Field(0.0, description="latent preference per word by which a response is longer")
    careless: float = Field(0.0, ge=0, le=1)


class SimulateConfig(StageConfig):
    """``candidates`` is a file or the run that wrote it; ``gold`` names the utility for the record."""

    INPUTS: ClassVar[tuple[str, ...]] = ("candidates",)

    stage: Literal["simulate"] = "simulate"
    candidates: Path
    feedback: Path = Path("feedback.db")
    annotators: list[Annotator] = Field(min_length=1)
    votes_per_comparison: int = Field(3, ge=1)
    pairs_per_prompt: Literal["all"] | int = "all"
    tie_threshold: float = Field(0.3, ge=0)
    keep_unended: bool = Field(False, description="show responses that were cut at the token limit, too")
    gold: str | None = Field(None, description="module:function with TRL's reward signature")

    @model_validator(mode="after")
    def _has_enough_people(self) -> SimulateConfig:
        names = [annotator.name for annotator in self.annotators]
        if len(set(names)) < len(names):
            raise ValueError("two annotators have the same name")
        if self.votes_per_comparison > len(names):
            raise ValueError(f"votes_per_comparison {self.votes_per_comparison} exceeds the {len(names)} annotators")
        if self.pairs_per_prompt != "all" and self.pairs_per_prompt < 1:
            raise ValueError("pairs_per_prompt must be 'all' or at least 1")
        return self


class Candidates(NamedTuple):
    """Comparisons of two responses by id, the true utilities of both (canonical order), and split hints."""

    comparisons: list[Comparison]
    utilities: dict[str, tuple[float, float]]
    splits: dict[str, Split]


@stage
def simulate(config: SimulateConfig, run: Run, *, utility: Utility | None = None) -> dict[str, Any]:
    """Let simulated annotators judge candidates by a known utility; writes to the feedback store.

    Raises:
        BadInput: no utility, unreadable candidates, or no prompt with two responses to compare.
    """
    if utility is None:
        raise BadInput("simulate: needs a true utility to judge by; set gold: module:function")
    found = _candidates(config, run, utility)
    judgments = simulate_votes(
        found.comparisons,
        found.utilities,
        config.annotators,
        config.seed,
        votes_per_comparison=config.votes_per_comparison,
        tie_threshold=config.tie_threshold,
    )
    with Store.open(config.feedback, write=True) as store:
        ours = {comparison.id for comparison in found.comparisons}
        if others := sum(judgment.comparison_id not in ours for judgment in store.judgments()):
            run.note(f"{config.feedback} also holds {others} judgments of other comparisons; 'pairs' reads them")
        store.add_comparisons(found.comparisons, found.splits)
        added = store.add_judgments(judgments)
        run.record.inputs["feedback"] = {"path": str(config.feedback), "sha256": store.head()}
    report = _against_gold(judgments, found.utilities)
    write_json(run.path / "annotators.json", report)
    return {
        "comparisons": len(found.comparisons),
        "judgments": len(judgments),
        "new_judgments": added,
        "ties": share(sum(len(judgment.ranking) == 1 for judgment in judgments), len(judgments), len(judgments)),
        "agreement_with_gold": report,
    }


def simulate_votes(
    comparisons: Sequence[Comparison],
    utilities: Mapping[str, Sequence[float]],
    annotators: Sequence[Annotator],
    seed: int,
    *,
    votes_per_comparison: int = 3,
    tie_threshold: float = 0.3,
) -> list[Judgment]:
    """Judge comparisons of two responses; pure, and each vote is drawn from its own seed.

    Args:
        utilities: true utility of both responses by comparison id, in canonical order.
        votes_per_comparison: how many of the annotators, drawn per comparison, see it.
    """
    judgments = []
    for comparison in comparisons:
        turn = sorted(annotators, key=lambda person: lot(seed, "who", comparison.id, person.name))
        for person in turn[:votes_per_comparison]:
            judgments.append(_vote(comparison, utilities[comparison.id], person, seed, tie_threshold))
    return judgments


def _vote(
    comparison: Comparison, utilities: Sequence[float], person: Annotator, seed: int, tie_threshold: float
) -> Judgment:
    draw = random.Random(lot(seed, "vote", comparison.id, person.name))
    left, right = (0, 1) if draw.random() < 0.5 else (1, 0)
    words = [len(response.text.split()) for response in comparison.responses]
    noise = _logit(draw.uniform(1e-12, 1 - 1e-12))
    latent = (
        _logit(person.reliability) * (utilities[left] - utilities[right])
        + person.length_bias * (words[left] - words[right])
        + person.position_bias
        + noise
    )
    is_tie = abs(latent) < tie_threshold
    strength = 0 if is_tie else min(3, 1 + int(abs(latent)))
    seconds = 4 + sum(words) / 4 * draw.lognormvariate(0, 0.3)
    if draw.random() < person.careless:
        latent, is_tie = draw.choice((-1.0, 1.0)), draw.random() < 1 / 3
        strength, seconds = 0 if is_tie else draw.randint(1, 3), draw.uniform(1, 3)
    ranking = [[0, 1]] if is_tie else [[left], [right]] if latent > 0 else [[right], [left]]
    return Judgment(
        comparison_id=comparison.id,
        annotator=person.name,
        ranking=ranking,
        shown=[left, right],
        strength=strength,
        seconds=round(seconds, 1),
        source="simulated",
    )


def _candidates(config: SimulateConfig, run: Run, utility: Utility) -> Candidates:
    """Read candidates, ask for the utility of every response once, and pair the responses of each prompt."""
    prompts = read_candidates([config.candidates], run.drop, keep_unended=config.keep_unended, at_least=2)
    values = _utilities(prompts, utility)
    found = Candidates([], {}, {})
    for prompt in prompts:
        known = [(response, value) for response in prompt.responses if (value := next(values)) is not None]
        run.drop("utility unknown", len(prompt.responses) - len(known))
        wanted = None if config.pairs_per_prompt == "all" else config.pairs_per_prompt
        texts = [content_hash(response["messages"]) for response, _ in known]
        for one, other in choose_groups(texts, 2, wanted, config.seed, content_hash(prompt.messages)):
            _add(found, prompt, known[one], known[other], run)
    if not found.comparisons:
        raise BadInput(f"{config.candidates}: no prompt has two different responses to compare ({run.record.dropped})")
    found.comparisons.sort(key=lambda comparison: comparison.id)
    return found


def _utilities(prompts: Sequence[CandidatePrompt], utility: Utility) -> Any:
    """An iterator over the utility of every response, prompt by prompt, from one call."""
    flat = [(prompt, response) for prompt in prompts for response in prompt.responses]
    columns = {key: [prompt.columns[key] for prompt, _ in flat] for key in ("prompt_id", "family", "split")}
    asked, said = [prompt.messages for prompt, _ in flat], [response["messages"] for _, response in flat]
    ended = [response["ended"] for _, response in flat]
    values = utility(prompts=asked, completions=said, ended=ended, **columns) if flat else []
    if len(values) != len(flat):
        raise BadInput(f"gold: the utility gave {len(values)} values for {len(flat)} responses; it must give one each")
    return iter(values)


def _add(found: Candidates, prompt: CandidatePrompt, one: Any, other: Any, run: Run) -> None:
    comparison = compare(prompt, [one[0], other[0]], run.drop)
    if comparison is None:
        return
    if prompt.split and STRICTNESS[prompt.split] > STRICTNESS[found.splits.get(comparison.id)]:
        found.splits[comparison.id] = prompt.split
    if comparison.id in found.utilities:
        run.drop("repeated comparison")
        return
    first_is_one = comparison.responses[0].messages == one[0]["messages"]
    found.comparisons.append(comparison)
    found.utilities[comparison.id] = (one[1], other[1]) if first_is_one else (other[1], one[1])


def _against_gold(judgments: Sequence[Judgment], utilities: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Each annotator's share of votes for the truly better response, where both the vote and the truth choose."""
    told: dict[str, list[bool | None]] = {}
    for judgment in judgments:
        first, second = utilities[judgment.comparison_id]
        chooses = len(judgment.ranking) == 2 and first != second
        told.setdefault(judgment.annotator, []).append(
            judgment.ranking[0][0] == int(second > first) if chooses else None
        )
    return {
        name: share(answers.count(True), len(answers) - answers.count(None), len(answers))
        for name, answers in sorted(told.items())
    }


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
