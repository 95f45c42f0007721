"""Stage `sft`: supervised fine-tuning of a base on demonstrations, or on the chosen responses of pairs.

In: a model folder and rows {prompt, completion} (a JSONL file, or a pairs run whose chosen responses are
used). Out: ``adapter/``. TRL's SFTTrainer does the training (``sft_trainer.py``) on token ids that are made here, so
that every stage reads the same rows; the loss is on completions only. A mixture of experts gets no load-balancing
loss, as in every other stage: its routers are frozen. Not here: packing, full fine-tuning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.core.config import MOST_EPOCHS, BadInput, Optim, Watch
from align.core.files import read_jsonl, write_jsonl
from align.core.plugins import RewardFunction
from align.core.records import Tokens, is_empty, prompt_id
from align.core.run_record import is_run
from align.core.runs import Run
from align.core.seeds import stage_seed
from align.core.stage import stage
from align.data.tokens import RenderedPrompt, TokenSource, note_sources, response_tokens
from align.engine.checkpoints import METRICS, load_checkpoint
from align.engine.loop import TrainingConfig
from align.engine.metrics_logger import MetricsLogger
from align.engine.samples import PromptRow, SampleLogger, prompt_row
from align.generate.local import LocalSampler
from align.generate.sampler import Request, sample_all
from align.model.adapters import AdapterModel
from align.model.chat import Chat, Unusable, untrained_tokens
from align.model.load import context_length
from align.model.open import Role, open_models
from align.model.roles import RoleModel
from align.model.tuners.tuner import refuse_changed_head
from annotation.importers.demonstrations import Demonstrations, read_demonstrations

MARKS_NAMED = 5
CHOSEN = ("chosen", "chosen_ended", "chosen_tokens")  # the fields of a pair that make a demonstration
ENDED = 0.9  # share of greedy responses that must end, below which a warning is given


class SFTConfig(TrainingConfig):
    """Hyper-parameters of supervised fine-tuning; ``batch`` counts demonstrations."""

    INPUTS: ClassVar[tuple[str, ...]] = ("model", "data")

    stage: Literal["sft"] = "sft"
    model: Path = Field(description="the base: a model folder")
    data: Path = Field(description="demonstrations or pairs: a file, or a run that wrote them")
    batch: int = Field(default=16, ge=1, description="demonstrations per optimiser step")
    epochs: int = Field(default=2, ge=1, le=MOST_EPOCHS, description="passes over the data")
    max_rows: int | None = Field(default=None, ge=1, description="use only the first rows")
    optim: Optim = Optim(lr=2e-4)
    min_rows: int = Field(default=20, ge=1, description="refuse to train on fewer rows")
    held_out: int = Field(default=32, ge=0, description="demonstrations kept back to see whether answers end")
    watch: Watch = Watch()


@stage
def sft(config: SFTConfig, run: Run, *, gold: RewardFunction | None = None) -> dict[str, Any]:
    """Fine-tune a base; ``gold`` gives the true utility of its periodic samples, where it is known."""
    model = open_models(run, config, config.model, {"policy": Role(trainable=True)}, tuner=config.tuner)
    refuse_changed_head(model.tuners["policy"], model.wrapped("policy"), "policy")
    if untrained := untrained_tokens(model.chat, model.base.get_input_embeddings().weight):
        run.note(f"the template uses tokens this base never trained: {', '.join(untrained)}; consider plain")
    data = _demonstrations(config)
    if data.unread:
        columns = ", ".join(f"'{column}' ({count})" for column, count in sorted(data.unread.items()))
        run.note(f"{config.data}: columns that are not read, with how many rows have them: {columns}")
    if data.marked:
        marks = ", ".join(f"'{mark}' ({count})" for mark, count in data.marked.most_common(MARKS_NAMED))
        run.note(f"{data.marked.total()} rows hold marks of turns or of a chat template in their text: {marks}; kept")
    kept_back, used = data.rows[: config.held_out], data.rows[config.held_out :]
    rows = _rows(run, model.chat, used, context_length(model.base), [*data.dropped])
    if len(rows) < config.min_rows:
        raise BadInput(
            f"{config.data}: {len(rows)} of {len(used) + len(data.dropped)} demonstrations can be used, "
            f"min_rows asks for {config.min_rows}; dropped: {run.record.dropped or 'none'}; {len(kept_back)} more are "
            "kept back (held_out)"
        )
    if longer := sum(len(row["input_ids"]) > config.compute.max_tokens for row in rows):
        run.note(f"{longer} of {len(rows)} rows are longer than compute.max_tokens: each is computed alone")
    prompts = [prompt_row(row) for row in kept_back]
    samples = SampleLogger(model, prompts[: config.watch.prompts], config.watch, config.seed, gold=gold)
    seconds = _fit(config, run, model, rows, samples)
    if run.is_main:
        model.save_role("policy", run.path / "adapter")
    ended = _ended(model, prompts, config)
    if ended is not None and ended < ENDED:
        run.note(f"only {ended:.0%} of greedy responses end: train longer, or raise watch.max_new_tokens")
    losses = [row["loss"] for row in read_jsonl(run.path / METRICS)]
    return {"rows": len(rows), "loss": sum(losses) / len(losses), "greedy_ended": ended, "train_seconds": seconds}


def _fit(
    config: SFTConfig, run: Run, model: AdapterModel, rows: list[dict[str, list[int]]], samples: SampleLogger
) -> float:
    """Train the policy's adapter; returns the seconds spent."""
    from datasets import Dataset
    from transformers import PrinterCallback

    from align.train.sft_trainer import BudgetedTrainer, Progress, StepPlan, misfit_of

    per_epoch = -(-len(rows) // config.batch)
    plan = StepPlan(per_epoch, per_epoch * config.epochs, config.checkpoint_every)
    resumed = load_checkpoint(run, partial(misfit_of, model.parameters("policy")))
    with closing(MetricsLogger(run, plan.steps, config.tracker, resumed)) as metrics:
        if resumed is None:
            samples.log(0, metrics)
        with model.use("policy"):
            trainer = BudgetedTrainer(
                model=model.wrapped("policy"),
                max_tokens=config.compute.max_tokens,
                args=_arguments(config, run, model),
                train_dataset=Dataset.from_list(rows),
                processing_class=model.tokenizer,
                callbacks=[Progress(run, metrics, samples, plan, resumed)],
            )
            trainer.remove_callback(PrinterCallback)  # it would print every step; metrics.jsonl has them
            if resumed:
                trainer.go_on(run.path / "checkpoints" / "trainer", resumed.step)
            else:
                trainer.train()
    model.base.eval()
    return metrics.seconds


def _demonstrations(config: SFTConfig) -> Demonstrations:
    """Read rows {prompt, completion} as lists of messages, from a file or from the chosen responses of a pairs run."""
    pairs = config.data / "train.jsonl"
    if is_run(config.data) and pairs.is_file():
        rows = [
            {**row, "row": number, **{name.replace("chosen", "completion"): row.get(name) for name in CHOSEN}}
            for number, row in enumerate(read_jsonl(pairs), 1)
        ]
        unique = {(prompt_id(row["prompt"]), str(row["completion"])): row for row in rows}
        return Demonstrations(list(unique.values())[: config.max_rows], [], Counter(), Counter())
    file = config.data / "demonstrations.jsonl" if is_run(config.data) else config.data
    demonstrations = read_demonstrations(file)
    return demonstrations._replace(rows=demonstrations.rows[: config.max_rows])


def _rows(
    run: Run,
    chat: Chat,
    demonstrations: Sequence[Mapping[str, Any]],
    context: int | None,
    dropped: list[dict[str, Any]],
) -> list[dict[str, list[int]]]:
    """Return token ids with completion masks; add unusable rows to ``dropped`` and write it to dropped.jsonl."""
    for entry in dropped:
        run.drop(entry["reason"].partition(" (")[0])
    rows = []
    used: Counter[tuple[TokenSource, bool]] = Counter()
    for row in demonstrations:
        extra = (row.get("tools"), row.get("template_arguments"))
        try:
            if is_empty(row["completion"]):
                raise Unusable("an empty response")
            prompt = chat.prompt_ids(row["prompt"], *extra)
            recorded = row.get("completion_tokens")
            response, own, source = response_tokens(
                chat,
                RenderedPrompt(row["prompt"], prompt, *extra),
                row["completion"],
                row.get("completion_ended"),
                None if recorded is None else Tokens.model_validate(recorded),
                context,
            )
        except Unusable as error:
            run.drop(str(error))
            dropped.append({"row": row["row"], "reason": str(error)})
            continue
        used[source, row.get("completion_ended") is False] += 1
        rows.append({"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [int(o) for o in own]})
    note_sources(run, "demonstrations", used)
    if dropped and run.is_main:
        write_jsonl(run.path / "dropped.jsonl", dropped)
    return rows


def _arguments(config: SFTConfig, run: Run, model: AdapterModel) -> Any:
    from trl import SFTConfig as TrlConfig

    optim = config.optim
    return TrlConfig(
        output_dir=str(run.path / "checkpoints"),
        per_device_train_batch_size=config.batch,
        num_train_epochs=config.epochs,
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        max_grad_norm=optim.max_grad_norm,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(optim.schedule, optim.schedule),
        warmup_steps=optim.warmup,
        completion_only_loss=True,
        max_length=None,
        packing=False,
        bf16=False,
        fp16=False,
        use_cpu=model.device.type == "cpu",
        gradient_checkpointing=config.compute.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=stage_seed(config.seed, "sft-order"),
        router_aux_loss_coef=0.0,
        eos_token=None,
    )


def _ended(model: AdapterModel, prompts: Sequence[PromptRow], config: SFTConfig) -> float | None:
    """Return the share of greedy responses to held-out prompts that end with a stop token; None without prompts."""
    requests = [
        Request(
            str(number),
            (config.seed, "sft-ended", number),
            prompt.messages,
            prompt.tools,
            prompt.arguments or {},
            temperature=0,
            max_new_tokens=config.watch.max_new_tokens,
        )
        for number, prompt in enumerate(prompts)
    ]
    replies = sample_all(LocalSampler(), requests, RoleModel(model, "policy"))
    ended = [sample.ended for reply in replies for sample in reply.samples]
    return sum(ended) / len(ended) if ended else None
