"""A labelling campaign in one YAML: what people judge, how they see it, and the rules of its tasks.

In: the YAML. Out: a frozen ``Campaign``, its comparisons, and the tasks they make. A task's key is a hash of what is
asked, so the same campaign makes the same tasks on any machine; the order on screen is drawn anew for each task and
known to the ledger alone. Not here: sending (``push.py``) and reading back (``pull.py``).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, model_validator

from align.core.config import BadInput, Frozen, build, override, read_yaml
from annotation import privacy
from annotation.candidates import Drop, choose_groups, compare, read_candidates
from annotation.interfaces.config import Interface, config_hash, labeling_config, task_data
from annotation.interfaces.render import scrub
from annotation.ledger import Purpose, Task
from annotation.store import STRICTNESS, Split
from annotation.types import Comparison, content_hash


class Campaign(Frozen):
    """What a campaign asks of whom.

    ``name`` is also the project's title on the server. ``votes`` people judge each task; ``repeat`` is the share of
    comparisons that everybody meets twice, to see whether people agree with themselves. ``concealed`` names families
    of prompts whose tasks start folded behind a warning.
    """

    stage: Literal["campaign"] = "campaign"
    name: Annotated[str, StringConstraints(min_length=3, max_length=50, strip_whitespace=True)]
    feedback: Path = Path("feedback.db")
    candidates: list[Path] = Field(
        default_factory=list, description="files or runs of `sample`; none: what the store holds"
    )
    interface: Interface = Interface()
    guidelines: Path | None = None
    votes: int = Field(default=1, ge=1)
    groups_per_prompt: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    keep_unended: bool = Field(default=False, description="show responses that were cut at the token limit, too")
    repeat: float = Field(default=0.0, ge=0, le=0.5)
    concealed: list[str] = Field(default_factory=list)
    personal_data_limit: int = Field(default=0, ge=0, description="comparisons that may seem to hold personal data")
    annotators: list[str] = Field(default_factory=list, description="e-mail addresses that may judge; none: anybody")
    seed: int = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.annotators)) < len(self.annotators):
            raise ValueError("annotators: an address stands twice")
        return self

    @property
    def group_size(self) -> int:
        """How many responses meet in a task."""
        return self.interface.n_responses


class Work(NamedTuple):
    """The comparisons of a campaign with split hints, the families of their prompts, and the guidelines' text."""

    comparisons: list[Comparison]
    splits: dict[str, Split]
    families: dict[str, str]
    guidelines: str


def load_campaign(path: Path, assignments: Iterable[str] = ()) -> Campaign:
    """Read and validate a campaign's YAML."""
    data = override(read_yaml(path), assignments)
    if data.get("stage", "campaign") != "campaign":
        raise BadInput(f"{path}: this is a config of stage '{data['stage']}'; push and pull want stage: campaign")
    return build(Campaign, data, str(path))


def work_of(campaign: Campaign, stored: Sequence[Comparison], drop: Drop) -> Work:
    """What there is to judge: groups of the candidates' responses, or the store's own comparisons of that size.

    Raises:
        BadInput: there is nothing to judge, or more comparisons seem to hold personal data than are allowed.
    """
    size = campaign.group_size
    splits: dict[str, Split] = {}
    families: dict[str, str] = {}
    found: dict[str, Comparison] = {}
    for prompt in read_candidates(campaign.candidates, drop, keep_unended=campaign.keep_unended, at_least=size):
        texts = [content_hash(response["messages"]) for response in prompt.responses]
        wanted = None if campaign.groups_per_prompt == "all" else campaign.groups_per_prompt
        for group in choose_groups(texts, size, wanted, campaign.seed, content_hash(prompt.messages)):
            comparison = compare(prompt, [prompt.responses[i] for i in group], drop)
            if comparison is None:
                continue
            found[comparison.id] = comparison
            families[comparison.id] = str(prompt.columns.get("family") or "")
            if prompt.split and STRICTNESS[prompt.split] > STRICTNESS[splits.get(comparison.id)]:
                splits[comparison.id] = prompt.split
    if not campaign.candidates:
        found = {comparison.id: comparison for comparison in stored if len(comparison.responses) == size}
    if not found:
        where = ", ".join(map(str, campaign.candidates)) or f"{campaign.feedback} (no candidates are named)"
        raise BadInput(f"{where}: nothing to judge: no prompt has {size} different responses")
    comparisons = [found[key] for key in sorted(found)]
    _check_privacy(campaign, comparisons)
    return Work(comparisons, splits, families, _guidelines(campaign))


def tasks_of(campaign: Campaign, work: Work, guideline: str) -> list[Task]:
    """Every task of the campaign, each with an order on screen drawn for it alone."""
    made = []
    for comparison in work.comparisons:
        made.append(_task(comparison, guideline, "work"))
        if _draw(comparison.id, campaign.seed) < campaign.repeat:
            made.append(_task(comparison, guideline, "repeat"))
    return made


def task_key(comparison_id: str, purpose: Purpose) -> str:
    """What a task is known by on the server; who reads it learns nothing of the task.

    The guidelines are no part of it: a comparison that was judged by older ones is not asked again.
    """
    return content_hash(["task", comparison_id, purpose])


def task_row(campaign: Campaign, task: Task, comparison: Comparison, work: Work) -> dict[str, Any]:
    """The data of a task as the server gets it: nothing in it tells an origin, a side, a purpose or an answer."""
    concealed = work.families.get(comparison.id, "") in campaign.concealed
    return task_data(campaign.interface, comparison, task.shown, work.guidelines, concealed, key=task.key)


def shown_order(campaign: Campaign, comparison: Comparison, data: dict[str, Any], work: Work) -> list[int] | None:
    """The order in which a task's data shows a comparison's responses, told by their texts; None where it cannot be.

    This is how sides are recovered when the ledger is lost: every response is rendered in every place and compared
    with what the task shows.
    """
    size = len(comparison.responses)
    concealed = work.families.get(comparison.id, "") in campaign.concealed
    pages: list[list[int]] = []
    for place in range(size):
        letter = "abcdef"[place]
        fitting = []
        for index in range(size):
            order = [index, *(i for i in range(size) if i != index)]
            order[0], order[place] = order[place], order[0]
            rendered = task_data(campaign.interface, comparison, order, work.guidelines, concealed, key="")
            if rendered[f"response_{letter}_html"] == data.get(f"response_{letter}_html"):
                fitting.append(index)
        pages.append(fitting)
    if any(len(fitting) != 1 for fitting in pages):
        return None
    order = [fitting[0] for fitting in pages]
    return order if sorted(order) == list(range(size)) else None


def interface_of(campaign: Campaign) -> tuple[str, str]:
    """The labelling configuration and its hash."""
    xml = labeling_config(campaign.interface)
    return xml, config_hash(xml)


def _task(comparison: Comparison, guideline: str, purpose: Purpose) -> Task:
    shown = list(range(len(comparison.responses)))
    secrets.SystemRandom().shuffle(shown)
    return Task(task_key(comparison.id, purpose), comparison.id, shown, purpose, None, guideline)


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
            f"allow it with personal_data_limit={counted['any']} once somebody has looked"
        )
