"""A labelling campaign in one YAML: what people judge, how they see it, and the rules of its tasks.

In: the YAML. Out: a frozen ``Campaign``, its comparisons, and the tasks they make. A task's key is a hash of what is
asked, so the same campaign makes the same tasks on any machine; the order on screen is drawn anew for each task and
known to the ledger alone. Not here: sending (``push.py``) and reading back (``pull.py``).
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, model_validator

from align.core.config import BadInput, Frozen, build, override, read_yaml
from align.core.records import Comparison, content_hash
from annotation.campaign import privacy
from annotation.campaign.candidates import Drop, choose_groups, compare, read_candidates
from annotation.campaign.known import KnownItem
from annotation.interface.config import (
    Interface,
    order_on_screen,
    shown_hash,
    task_data,
)
from annotation.interface.render import scrub
from annotation.store.chain import STRICTNESS, Split
from annotation.store.tables import KnownAnswer, Purpose, Task

Language = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$")]


class Calibration(Frozen):
    """A round that everybody does before any work is sent."""

    file: Path = Field(description="comparisons with their known answers")
    bar: float = Field(default=0.8, gt=0, le=1, description="share of answers that must be right to pass")
    people: int | None = Field(
        default=None, ge=1, description="people who must have passed before work is sent; none: all annotators"
    )


class Campaign(Frozen):
    """What a campaign asks of whom."""

    stage: Literal["campaign"] = "campaign"
    name: Annotated[str, StringConstraints(min_length=3, max_length=50, strip_whitespace=True)] = Field(
        description="also the project's title on the server"
    )
    feedback: Path = Field(default=Path("feedback.db"), description="the feedback store")
    candidates: list[Path] = Field(
        default_factory=list, description="files or runs of `sample`; none: what the store holds"
    )
    interface: Interface = Interface()
    guidelines: Path | None = Field(default=None, description="a Markdown file, shown beside every task")
    votes: int = Field(default=1, ge=1, description="people who judge each task")
    groups_per_prompt: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        default="all", description="tasks per prompt, each a group of its responses"
    )
    keep_unended: bool = Field(default=False, description="show responses that were cut at the token limit, too")
    repeat: float = Field(
        default=0.0, ge=0, le=0.5, description="share of comparisons that everybody judges twice, unknowingly"
    )
    concealed: list[str] = Field(
        default_factory=list, description="families of prompts whose tasks start folded behind a warning"
    )
    personal_data_limit: int = Field(default=0, ge=0, description="comparisons that may seem to hold personal data")
    annotators: list[str] | dict[str, Annotated[list[Language], Field(min_length=1)]] = Field(
        default_factory=list,
        description="e-mail addresses that may judge, or addresses with their languages; none: anybody",
    )
    languages: list[Language] = Field(
        default_factory=list, description="languages of the comparisons to judge (`en` includes `en-GB`); none: any"
    )
    gold_share: float = Field(default=0.1, gt=0, lt=1, description="share of a push that may be known answers")
    gold_bar: float = Field(
        default=0.8, gt=0, lt=1, description="share of known answers that an annotator has to get right"
    )
    calibration: Calibration | None = Field(default=None, description="a round that comes before any work")
    seed: int = Field(default=0, description="fixes the draw of groups and repetitions")

    @model_validator(mode="after")
    def _paths(self) -> Self:
        if not self.name.isprintable():
            raise ValueError("name: holds what cannot be printed; use letters, digits and spaces")
        for name, path in (("feedback", self.feedback), ("guidelines", self.guidelines), *enumerate(self.candidates)):
            if path is not None and ("\0" in str(path) or not path.name):
                raise ValueError(f"{name if isinstance(name, str) else 'candidates'}: '{str(path)!r}' is no file")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.annotators)) < len(self.annotators):
            raise ValueError("annotators: an address is listed twice")
        if odd := [name for name in self.annotators if "@" not in name]:
            raise ValueError(f"annotators: '{odd[0]}' is no address; people log in as NAME@annotators.invalid")
        return self

    @model_validator(mode="after")
    def _enough_people(self) -> Self:
        if self.calibration is not None and self.people_to_pass < self.votes:
            raise ValueError(
                f"calibration: {self.people_to_pass} people are to pass, and {self.votes} (votes) judge each task: "
                "list as many annotators, or set calibration.people"
            )
        return self

    @property
    def people_to_pass(self) -> int:
        """Return how many people have to pass the calibration round before work is sent."""
        return (self.calibration.people if self.calibration else None) or len(self.annotators)

    def speaks(self, address: str, language: str) -> bool:
        """Return whether an annotator lists a language; who lists none judges any."""
        return not isinstance(self.annotators, dict) or is_among(language, self.annotators.get(address, ()))

    @property
    def group_size(self) -> int:
        """Return how many responses a task shows."""
        return self.interface.n_responses


class Work(NamedTuple):
    """Everything a campaign shows: comparisons with split hints, the families of their prompts, the guidelines' text.

    ``items`` are those of the comparisons whose answer is known.
    """

    comparisons: list[Comparison]
    splits: dict[str, Split]
    families: dict[str, str]
    guidelines: str
    items: Mapping[str, KnownItem]


def load_campaign(path: Path, assignments: Iterable[str] = ()) -> Campaign:
    """Read and validate a campaign's YAML."""
    data = override(read_yaml(path), assignments)
    if data.get("stage", "campaign") != "campaign":
        raise BadInput(f"{path}: this is a config of stage '{data['stage']}'; push and pull want stage: campaign")
    return build(Campaign, data, str(path))


def work_of(campaign: Campaign, stored: Sequence[Comparison], drop: Drop, items: Mapping[str, KnownItem]) -> Work:
    """Return what there is to judge: groups of the candidates' responses, or the store's own comparisons of that size.

    Args:
        items: comparisons whose answer is known, by id: shown for their own purpose, and not as work too.

    Raises:
        BadInput: there is nothing to judge, nobody to judge some of it, or more comparisons seem to hold personal
            data than are allowed.
    """
    size = campaign.group_size
    splits: dict[str, Split] = {}
    families: dict[str, str] = {}
    grouped: dict[str, Comparison] = {}
    for prompt in read_candidates(campaign.candidates, drop, keep_unended=campaign.keep_unended, at_least=size):
        texts = [content_hash(response["messages"]) for response in prompt.responses]
        wanted = None if campaign.groups_per_prompt == "all" else campaign.groups_per_prompt
        for group in choose_groups(texts, size, wanted, campaign.seed, content_hash(prompt.messages)):
            comparison = compare(prompt, [prompt.responses[i] for i in group], drop)
            if comparison is None:
                continue
            grouped[comparison.id] = comparison
            families[comparison.id] = str(prompt.columns.get("family") or "")
            if prompt.split and STRICTNESS[prompt.split] > STRICTNESS[splits.get(comparison.id)]:
                splits[comparison.id] = prompt.split
    if not campaign.candidates:
        sized = [comparison for comparison in stored if len(comparison.responses) == size]
        grouped = {c.id: c for c in sized if not any(response.is_empty for response in c.responses)}
        drop("empty response", len(sized) - len(grouped))
    chosen = {
        key: c for key, c in grouped.items() if not campaign.languages or is_among(c.language, campaign.languages)
    }
    drop("language not asked for", len(grouped) - len(chosen))
    if not chosen:
        where = ", ".join(map(str, campaign.candidates)) or f"{campaign.feedback} (no candidates are named)"
        languages = f" in {', '.join(campaign.languages)}" if campaign.languages else ""
        raise BadInput(f"{where}: nothing to judge: no prompt{languages} has {size} different responses")
    chosen |= {key: item.comparison for key, item in items.items()}
    families |= {key: item.answer.family for key, item in items.items() if item.answer.family}
    comparisons = [chosen[key] for key in sorted(chosen)]
    check_languages(campaign, comparisons, f"campaign '{campaign.name}'")
    _check_privacy(campaign, comparisons)
    return Work(comparisons, splits, families, _guidelines(campaign), items)


def is_among(language: str, languages: Iterable[str]) -> bool:
    """Return whether a language is one of a list or a variety of one: ``en`` takes in ``en-GB`` (RFC 4647, 3.3.1)."""
    return any(f"{language}-".lower().startswith(f"{wanted}-".lower()) for wanted in languages)


def check_languages(campaign: Campaign, comparisons: Iterable[Comparison], where: str) -> None:
    """Refuse comparisons that the campaign does not ask for, or that none of its annotators can judge.

    Raises:
        BadInput: there are some; says how many of which language.
    """
    counted = Counter(comparison.language for comparison in comparisons)
    for language, count in sorted(counted.items()):
        if campaign.languages and not is_among(language, campaign.languages):
            raise BadInput(f"{where}: {count} comparisons in '{language}', none of the campaign's languages; add it")
        if campaign.annotators and not any(campaign.speaks(address, language) for address in campaign.annotators):
            raise BadInput(
                f"{where}: {count} comparisons in '{language}', which no annotator lists; add it to one, or leave them "
                "out with languages: [...]"
            )


def tasks_of(campaign: Campaign, work: Work, guideline: str) -> list[Task]:
    """Return every task of the campaign, each with an order on screen drawn for it alone.

    They are in the order of their keys, in which they are sent and served: a hash, so that known answers and repeated
    tasks are anywhere among the others, and their place reveals nothing.
    """
    made = []
    for comparison in work.comparisons:
        item = work.items.get(comparison.id)
        made.append(_task(comparison, guideline, item.purpose if item else "work", item.answer if item else None))
        if item is None and _draw(comparison.id, campaign.seed) < campaign.repeat:
            made.append(_task(comparison, guideline, "repeat"))
    return sorted(made, key=lambda task: task.key)


def task_key(comparison_id: str, purpose: Purpose) -> str:
    """Return the key of a task on the server, which reveals nothing of the task.

    A known answer has the key that it would have as work, so that nobody can recognise it, even by computing keys from
    what is shown. The guidelines are no part of it: a comparison that was judged by older ones is not sent again.
    """
    return content_hash(["task", comparison_id, "repeat" if purpose == "repeat" else "work"])


def task_row(campaign: Campaign, task: Task, comparison: Comparison, work: Work) -> dict[str, Any]:
    """Return the data of a task as the server gets it, without origin, side, purpose and answer."""
    concealed = work.families.get(comparison.id, "") in campaign.concealed
    return task_data(campaign.interface, comparison, task.shown, work.guidelines, concealed, key=task.key)


def shown_order(campaign: Campaign, comparison: Comparison, data: dict[str, Any], work: Work) -> list[int] | None:
    """Return the order in which a task's data shows a comparison's responses, by their texts; None where it is unclear.

    This is how sides are recovered when the ledger is lost. A task that shows another prompt has no order.
    """
    concealed = work.families.get(comparison.id, "") in campaign.concealed
    order = order_on_screen(campaign.interface, comparison, data, concealed)
    if order is None:
        return None
    expected = task_data(campaign.interface, comparison, order, work.guidelines, concealed, key="")
    return order if shown_hash(expected) == shown_hash(data) else None


def _task(comparison: Comparison, guideline: str, purpose: Purpose, answer: KnownAnswer | None = None) -> Task:
    shown = list(range(len(comparison.responses)))
    secrets.SystemRandom().shuffle(shown)
    return Task(task_key(comparison.id, purpose), comparison.id, shown, purpose, answer, guideline)


def _draw(identity: str, seed: int) -> float:
    return int(content_hash([seed, "repeat", identity]), 16) / 2**64


def _guidelines(campaign: Campaign) -> str:
    if campaign.guidelines is None:
        return ""
    try:
        return scrub(campaign.guidelines.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"guidelines: {campaign.guidelines}: cannot be read ({error})") from error


def _check_privacy(campaign: Campaign, comparisons: Sequence[Comparison]) -> None:
    counted = privacy.count(comparisons)
    if counted["any"] > campaign.personal_data_limit:
        kinds = ", ".join(f"{n} {kind}" for kind, n in counted.items() if n and kind != "any")
        raise BadInput(
            f"{counted['any']} of {len(comparisons)} comparisons seem to hold personal data ({kinds}); remove it, or "
            f"allow it with personal_data_limit={counted['any']} once somebody has read them"
        )
