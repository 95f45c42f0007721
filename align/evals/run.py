"""Stage `eval`: items x a policy -> per-item results, a run of its own about its ``subject``.

In: a policy (run or model folder), items, and where wanted a reward run, an SFT run and a gold utility. Out:
``items.jsonl``, one result per line, and in the headline every metric's mean with its counts and interval, by family
too. Intervals take the items as clusters. Not here: whether a number is good enough (the audit).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from align.core.config import BadInput, Template
from align.core.files import write_jsonl
from align.core.hashes import file_hash
from align.core.plugins import choose
from align.core.records import ItemResult
from align.core.run_record import is_run, read_run
from align.core.runs import Run
from align.core.stage import stage
from align.evals import caveats
from align.evals.fingerprint import fingerprint
from align.evals.generation import Policy, SamplingConfig
from align.evals.item_files import load_items
from align.evals.items import Item, items_hash
from align.evals.judge import DEFAULT, Judge, find_judge
from align.evals.measurements import load_measurement
from align.evals.results import chances_of, check_results, summarise
from align.evals.suite import SUITES, Suite
from align.evals.targets import EvaluationTarget, load_reference, load_reward
from align.evals.training_reward import LABEL, REWARD_MODEL, trained_on
from align.generate.local import LocalSampler
from align.generate.sampler import TokenSampler
from align.model.chat import Chat
from align.model.open import ModelConfig, Role, open_models
from align.model.roles import RoleModel
from align.model.sources import on_the_day_of, template_of
from rewards.functions import code_of, load_function, origin_of


class EvalConfig(ModelConfig):
    """What is evaluated and how the policy acts.

    ``items``: JSON lines, or runs that hold ``<suite>.jsonl`` (or a pairs run, where a suite takes its test prompts).
    ``policy``: ``sample`` and ``prompt-only`` draw ``samples`` answers; ``best-of-n`` draws n for each of them and
    keeps what ``reward`` scores highest. ``sft`` is what win rate and KL are measured against.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("subject", "items", "reward", "sft", "measured_higher", "measured_lower")

    stage: Literal["eval"] = "eval"
    subject: Path = Field(description="what is evaluated: a run or a model folder")
    suite: list[SerializeAsAny[Suite]] = Field(min_length=1, description="shipped names, or module:Class")
    items: Path | list[Path] = Field(description="items by suite: a folder, files, or a pairs run")
    policy: Policy = Field(default="greedy", description="how answers are given: greedy, sample, or best of n")
    samples: int = Field(default=1, ge=1, description="answers per prompt")
    n: int = Field(default=4, ge=2, description="answers that best-of-n chooses among")
    temperature: float = Field(default=1.0, gt=0, description="divides the logits before sampling")
    max_new_tokens: int = Field(default=64, ge=1, description="most tokens of a response")
    reward: Path | None = Field(default=None, description="a reward run that scores answers")
    sft: Path | None = Field(default=None, description="the SFT run that win rates and KL are measured against")
    gold: str | None = Field(default=None, description="module:function of the known utility")
    judge: SerializeAsAny[Judge] = Field(
        default_factory=lambda: find_judge(DEFAULT),
        description="for items that name none: a shipped name, module:function, or module:Class with its settings",
    )
    measured_higher: list[Path] = Field(
        default_factory=list,
        description="local `evaluate` modules that judge answers to the preference items: more is better",
    )
    measured_lower: list[Path] = Field(default_factory=list, description="the same, and less is better")
    system_prompt: str | None = Field(default=None, description="put before every prompt that has none")
    sampler: TokenSampler | None = Field(default=None, description="kind: local, or module:Class; null is local")

    @field_validator("suite", mode="before")
    @classmethod
    def _chosen(cls, value: Any) -> list[Suite]:
        given = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        return [choose(SUITES, Suite, one) for one in given]

    @field_validator("judge", mode="before")
    @classmethod
    def _judge(cls, value: Any) -> Judge:
        return find_judge(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [suite.name for suite in self.suite]
        if len(set(names)) < len(names):
            raise ValueError("suite: a suite is named twice; name each once")
        if self.policy == "best-of-n" and self.reward is None:
            raise ValueError("policy best-of-n needs reward: RUN to choose by")
        if self.policy == "best-of-n" and (silent := [suite.name for suite in self.suite if not suite.generates]):
            raise ValueError(f"suite {silent[0]} scores options and texts, and best-of-n has no likelihood; use greedy")
        if (self.policy == "prompt-only") != (self.system_prompt is not None):
            raise ValueError("policy prompt-only and system_prompt go together: set both or neither")
        if self.policy == "greedy" and self.samples > 1:
            raise ValueError("policy greedy gives the same answer every time; set samples: 1 or policy: sample")
        for key in ("measured_higher", "measured_lower"):
            if getattr(self, key) and not any(key in suite.reads for suite in self.suite):
                raise ValueError(f"{key}: suite {', '.join(names)} reads no measurements; add a suite that does")
        return self

    def input_hashes(self) -> dict[str, str]:
        """Return the hashes of the code that the known utility and the judge are written in."""
        gold = {"gold": code_of(self.gold)} if self.gold else {}
        return gold | ({"judge": self.judge.version()} if any("judge" in suite.reads for suite in self.suite) else {})

    def template(self, created: str) -> Template:
        """Return the configured template, on the day of the models that the policy is compared with or scored by."""
        return on_the_day_of(super().template(created), (self.sft, self.reward))

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            policy=self.policy,
            samples=self.samples,
            n=self.n,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            system_prompt=self.system_prompt,
            seed=self.seed,
            sampler=self.sampler or LocalSampler(),
        )


@stage
def evaluate(config: EvalConfig, run: Run) -> dict[str, Any]:
    """Answer every item of the suites and write ``items.jsonl``."""
    paths = config.items if isinstance(config.items, list) else [config.items]
    items = load_items(paths, config.suite)
    _check_judges(items, config.suite)
    target = _target(config, run)
    results: list[ItemResult] = []
    suites: dict[str, Any] = {}
    chances: dict[str, dict[str, float]] = {}
    declarations = {suite.name: suite.declaration() for suite in config.suite}
    for suite in config.suite:
        own = [item for item in items if item.suite == suite.name]
        measured = _results(suite, own, target, config)
        results += measured
        hashes = {name: entry["sha256"] for name, entry in run.record.inputs.items()}
        hashes |= {"gold": f"{origin_of(config.gold)} {hashes['gold']}"} if config.gold else {}
        judges = suite.call(dict, suite.judges, own, target)
        how = fingerprint(suite, target.policy, own, config.sampling, judges, hashes)
        chances[suite.name] = chances_of(suite, own)
        suites[suite.name] = {"items": len(own), "sha256": items_hash(own), "fingerprint": how}
        suites[suite.name]["declaration"] = declarations[suite.name].model_dump(mode="json")
    metrics = summarise(results, declarations, chances)
    if run.is_main:
        write_jsonl(run.path / "items.jsonl", [result.model_dump(mode="json") for result in results])
    by_suite = caveats.trained_on_items(config.subject, items)
    limits = [*caveats.of_training(by_suite, items), *caveats.of_judge(config.subject, config.reward)]
    unread = caveats.of_settings(config.model_fields_set, config.suite, config.policy)
    lacking = caveats.of_metrics(declarations.values(), results)
    for line in (*limits, *unread, *lacking, *caveats.of_cut(results, config.max_new_tokens)):
        run.note(line)
    judged_by = sorted({result.judge for result in results})
    run.note(f"judged by: {', '.join(judged_by)}")
    if by_training := sorted({result.metric for result in results if LABEL in result.judge}):
        run.note(f"{', '.join(by_training)}: by what the policy was trained on ({LABEL}): no test of it")
    return {
        "metrics": metrics,
        "items_sha256": items_hash(items),
        "results_sha256": file_hash(run.path / "items.jsonl") if run.is_main else None,
        "suites": suites,
        "policy": config.policy,
        "judges": judged_by,
        "gold": origin_of(config.gold) if config.gold else None,
        "training_reward": by_training,
        "caveats": limits,
        "trained_on_items": by_suite,
        "own_template": _asks_through_own_template(config, target),
    }


def _results(suite: Suite, items: Sequence[Item], target: EvaluationTarget, config: EvalConfig) -> Sequence[ItemResult]:
    """Return a suite's results; it is given a list of its own, and of the settings of the evaluation what it reads."""
    reads = suite.reads | ({"reward"} if config.policy == "best-of-n" else set())
    seen = target._replace(
        sft=target.sft if "sft" in reads else None,
        reward=target.reward if "reward" in reads else None,
        gold=target.gold if "gold" in reads else None,
        measurements=[one for one in target.measurements if f"measured_{one.better}" in reads],
        unjudged=None if suite.is_judged else suite.kind,
    )
    given, before = list(items), items_hash(items)
    results = suite.call(list | tuple, suite.results, given, seen, config.sampling)
    if items_hash(given) != before:
        raise BadInput(
            f"suite {suite.kind}: results: the items were changed by the suite or its judge; work on a copy of them"
        )
    check_results(suite, items, results)
    return results


def _check_judges(items: Sequence[Item], suites: Sequence[Suite]) -> None:
    """Refuse, before anything is loaded, a judge that an item or a suite names and that does not exist."""
    named = {item.judge: f"item '{item.id}' of suite {item.suite}" for item in reversed(items) if item.judge}
    named |= {suite.judged_by: f"suite {suite.kind}" for suite in suites if suite.judged_by}
    for name, where in named.items():
        try:
            find_judge(name)
        except ValueError as error:
            raise BadInput(f"{where}: judge: {error}") from None


def _asks_through_own_template(config: EvalConfig, target: EvaluationTarget) -> bool:
    """Return whether the policy reads its prompts through the template it was trained with (or, a folder, comes with).

    A policy that has no template can be evaluated through any.
    """
    chat = target.policy.model.chat
    trained = read_run(config.subject).template.get("template_sha256") if is_run(config.subject) else None
    if trained is not None:
        return trained == chat.fingerprint()["template_sha256"]
    try:
        own = Chat(chat.tokenizer, template_of(config.subject, Template()).name)
    except BadInput:
        return True
    return own.template == chat.template


def _target(config: EvalConfig, run: Run) -> EvaluationTarget:
    """Open the policy and what it is compared with or scored by."""
    gold = load_function(config.gold) if config.gold else None
    template = config.template(run.record.created)
    model = open_models(run, config, config.subject, {"policy": Role()})
    policy = RoleModel(model, "policy" if "policy" in model.trainable else None)
    sft = load_reference(policy, config.sft, template, run.note) if config.sft else None
    reward = load_reward(policy, config.reward, template.day, run.note) if config.reward else None
    measurements = [load_measurement(path, "higher") for path in config.measured_higher]
    measurements += [load_measurement(path, "lower") for path in config.measured_lower]
    return EvaluationTarget(
        policy, sft, reward, gold, config.gold or "gold", measurements, _own_judges(config, run), config.judge
    )


def _own_judges(config: EvalConfig, run: Run) -> dict[str, str]:
    """Return the judges that the policy was trained on or that choose among its answers."""
    trained = read_run(config.subject) if is_run(config.subject) else None
    rewards = trained_on(trained)
    own = {REWARD_MODEL: LABEL} if config.reward and run.record.inputs["reward"]["sha256"] in rewards else {}
    own |= {config.gold: LABEL} if config.gold and not rewards.isdisjoint((config.gold, origin_of(config.gold))) else {}
    if config.policy == "best-of-n":
        own.setdefault(REWARD_MODEL, "which chose among the answers")
    return own
