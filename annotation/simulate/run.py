"""Stage ``simulate``: people with known faults judge candidates whose true utility is known.

In: ``candidates.jsonl``, annotators described in the config, and the utility as a function that the caller hands
over. Out: comparisons and judgments in ``feedback.db``, and ``annotators.json`` (how often each of them agreed with
gold). A vote depends on the seed, the comparison and the annotator alone, never on the order of anything. With
``server`` the same people judge at a real Label Studio, what it shows where it shows it, and their judgments are those
that were pulled. Not here: how a person votes (``voters.py``), and the way to the server (``posting.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import yaml
from pydantic import Field, model_validator

from align.core.config import BadInput, Frozen, StageConfig
from align.core.files import write_json, write_text
from align.core.records import Comparison, Judgment, content_hash
from align.core.runs import Run
from align.core.stage import stage
from align.core.stats.estimates import proportion
from annotation.campaign.candidates import CandidatePrompt, choose_groups, compare, lot, read_candidates
from annotation.campaign.posting import post
from annotation.campaign.settings import Campaign
from annotation.label_studio.server import start
from annotation.simulate.voters import Annotator, panel, simulate_votes, vote
from annotation.store.chain import STRICTNESS, Split
from annotation.store.store import Store

Utility = Callable[..., list[float | None]]  # TRL's reward signature: f(prompts, completions, **columns)


class AtServer(Frozen):
    """An embedded Label Studio to judge at, by its folder; ``open_tasks`` are left to others."""

    folder: Path = Field(description="folder of the embedded server")
    open_tasks: int = Field(0, ge=0, description="tasks that are left for you to judge")
    guidelines: Path | None = Field(None, description="Markdown, shown with every task")


class SimulateConfig(StageConfig):
    """``candidates`` is a file or the run that wrote it; ``gold`` names the utility for the record."""

    INPUTS: ClassVar[tuple[str, ...]] = ("candidates",)

    stage: Literal["simulate"] = "simulate"
    candidates: Path = Field(description="candidates.jsonl, or a run that wrote it")
    feedback: Path = Field(default=Path("feedback.db"), description="the store of judgments")
    annotators: list[Annotator] = Field(min_length=1, description="the simulated people: name and how they vote")
    votes_per_comparison: int = Field(3, ge=1, description="people who judge each comparison")
    pairs_per_prompt: Literal["all"] | int = Field(
        default="all", description="pairs of responses that are judged per prompt"
    )
    tie_threshold: float = Field(0.3, ge=0, description="differences of utility below this are ties")
    keep_unended: bool = Field(False, description="show responses that were cut at the token limit, too")
    gold: str | None = Field(None, description="module:function with TRL's reward signature")
    server: AtServer | None = Field(
        default=None, description="post the judgments through a Label Studio server instead of writing them"
    )

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


class SimulatedJudgments(NamedTuple):
    """Judgments by the names of the config, how many of them are new, and other figures for the record."""

    judgments: list[Judgment]
    new: int
    figures: dict[str, Any]


@stage
def simulate(config: SimulateConfig, run: Run, *, utility: Utility | None = None) -> dict[str, Any]:
    """Let simulated annotators judge candidates by a known utility; writes to the feedback store.

    Raises:
        BadInput: no utility, unreadable candidates, or no prompt with two responses to compare.
    """
    if utility is None:
        raise BadInput("simulate: needs a true utility to judge by; set gold: module:function")
    candidates = _candidates(config, run, utility)
    with Store.open(config.feedback, write=True) as store:
        ours = {comparison.id for comparison in candidates.comparisons}
        if others := sum(judgment.comparison_id not in ours for judgment in store.judgments()):
            run.note(f"{config.feedback} also holds {others} judgments of other comparisons; 'pairs' reads them")
        store.add_comparisons(candidates.comparisons, candidates.splits)
        run.drop("erased from the store", store.passed_over)
    simulated = (
        _written(config, run, candidates) if config.server is None else _posted(config, config.server, run, candidates)
    )
    with Store.open(config.feedback) as store:
        run.record.inputs["feedback"] = {"path": str(config.feedback), "sha256": store.head()}
    judgments = simulated.judgments
    report = _against_gold(judgments, candidates.utilities)
    write_json(run.path / "annotators.json", report)
    n_ties = sum(len(judgment.ranking) == 1 for judgment in judgments)
    return {
        "comparisons": len(candidates.comparisons),
        "judgments": len(judgments),
        "new_judgments": simulated.new,
        "ties": proportion(n_ties, len(judgments), len(judgments)).model_dump(),
        "agreement_with_gold": report,
    } | simulated.figures


def _written(config: SimulateConfig, run: Run, candidates: Candidates) -> SimulatedJudgments:
    """Let everybody vote, straight into the store."""
    judgments = simulate_votes(
        candidates.comparisons,
        candidates.utilities,
        config.annotators,
        config.seed,
        votes_per_comparison=config.votes_per_comparison,
        tie_threshold=config.tie_threshold,
    )
    with Store.open(config.feedback, write=True) as store:
        added = store.add_judgments(judgments)
        run.drop("erased from the store", store.passed_over)
    return SimulatedJudgments(judgments, added, {})


def _posted(config: SimulateConfig, at: AtServer, run: Run, candidates: Candidates) -> SimulatedJudgments:
    """Let everybody vote at a real server; some tasks stay open."""
    server = start(at.folder)
    campaign = Campaign(
        name=f"{config.run.resolve().parent.name} {config.run.name}"[:50],
        feedback=config.feedback.resolve(),
        guidelines=at.guidelines and at.guidelines.resolve(),
        votes=config.votes_per_comparison,
    )
    shown = {"stage": "campaign", **json.loads(campaign.model_dump_json(exclude_defaults=True))}
    write_text(run.path / "campaign.yaml", yaml.safe_dump(shown, sort_keys=False))
    people = {person.name: person for person in config.annotators}
    ids = sorted(candidates.utilities, key=lambda identity: lot(config.seed, "open", identity))
    size = config.votes_per_comparison
    panels = {key: [p.name for p in panel(key, config.annotators, config.seed, size)] for key in ids[at.open_tasks :]}

    def judge(comparison: Comparison, name: str, left: int) -> Judgment:
        utilities = candidates.utilities[comparison.id]
        return vote(comparison, utilities, people[name], config.seed, config.tie_threshold, left)

    done = post(server, campaign, panels, judge)
    rate = round(done.posted / done.seconds, 1) if done.posted else None
    return SimulatedJudgments(
        done.judgments, done.posted, {"open_tasks": len(ids) - len(panels), "posted_per_second": rate}
    )


def _candidates(config: SimulateConfig, run: Run, utility: Utility) -> Candidates:
    """Read candidates, ask for the utility of every response once, and pair the responses of each prompt."""
    prompts = read_candidates([config.candidates], run.drop, keep_unended=config.keep_unended, at_least=2)
    values = _utilities(prompts, utility)
    candidates = Candidates([], {}, {})
    for prompt in prompts:
        known = [(response, value) for response in prompt.responses if (value := next(values)) is not None]
        run.drop("utility unknown", len(prompt.responses) - len(known))
        wanted = None if config.pairs_per_prompt == "all" else config.pairs_per_prompt
        texts = [content_hash(response["messages"]) for response, _ in known]
        for one, other in choose_groups(texts, 2, wanted, config.seed, content_hash(prompt.messages)):
            _add(candidates, prompt, known[one], known[other], run)
    if not candidates.comparisons:
        raise BadInput(f"{config.candidates}: no prompt has two different responses to compare ({run.record.dropped})")
    candidates.comparisons.sort(key=lambda comparison: comparison.id)
    return candidates


def _utilities(prompts: Sequence[CandidatePrompt], utility: Utility) -> Any:
    """Return an iterator over the utility of every response, prompt by prompt, from one call."""
    flat = [(prompt, response) for prompt in prompts for response in prompt.responses]
    columns = {key: [prompt.columns[key] for prompt, _ in flat] for key in ("prompt_id", "family", "split")}
    messages, answers = [prompt.messages for prompt, _ in flat], [response["messages"] for _, response in flat]
    ended = [response["ended"] for _, response in flat]
    values = utility(prompts=messages, completions=answers, ended=ended, **columns) if flat else []
    if len(values) != len(flat):
        raise BadInput(f"gold: the utility gave {len(values)} values for {len(flat)} responses; it must give one each")
    return iter(values)


def _add(candidates: Candidates, prompt: CandidatePrompt, one: Any, other: Any, run: Run) -> None:
    comparison = compare(prompt, [one[0], other[0]], run.drop)
    if comparison is None:
        return
    if prompt.split and STRICTNESS[prompt.split] > STRICTNESS[candidates.splits.get(comparison.id)]:
        candidates.splits[comparison.id] = prompt.split
    if comparison.id in candidates.utilities:
        run.drop("repeated comparison")
        return
    first_is_one = comparison.responses[0].messages == one[0]["messages"]
    candidates.comparisons.append(comparison)
    candidates.utilities[comparison.id] = (one[1], other[1]) if first_is_one else (other[1], one[1])


def _against_gold(judgments: Sequence[Judgment], utilities: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return each annotator's share of votes for the truly better response, where both vote and truth choose."""
    hits: dict[str, list[bool | None]] = {}
    for judgment in judgments:
        first, second = utilities[judgment.comparison_id]
        chooses = len(judgment.ranking) == 2 and first != second
        hits.setdefault(judgment.annotator, []).append(
            judgment.ranking[0][0] == int(second > first) if chooses else None
        )
    return {
        name: proportion(answers.count(True), len(answers) - answers.count(None), len(answers)).model_dump()
        for name, answers in sorted(hits.items())
    }
