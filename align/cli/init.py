"""`align init`: write a commented recipe for the user's own model and pairs, sized to their memory, and its gates."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from align.core.config import BadInput
from align.core.files import write_text

GIB = 1 << 30


def init(model: str, data: str, vram: float | None = None, out: str = "recipe.yaml") -> int:
    """Write ``out`` and, beside it, the gates that its audits judge by; print how to check and run it.

    Args:
        model: a local Hugging Face model folder.
        data: preference pairs (JSON lines, CSV, Parquet, or HH text).
        vram: GPU memory in GiB; without it the recipe is for the CPU.

    Raises:
        BadInput: a path is missing, the model has neither a template nor an EOS token, or a file exists already.
    """
    from align.model.chat import Chat
    from align.model.load import kind_of_storage, load_tokenizer, quantization_for
    from align.model.weights import config_of

    target, folder, pairs = Path(out), Path(model), Path(data)
    gates = target.with_name(f"{target.stem}.gates.yaml")
    if existing := next((file for file in (target, gates) if file.exists()), None):
        raise BadInput(f"{existing}: exists already; name another file with out=")
    if not pairs.is_file():
        raise BadInput(f"{pairs}: no such file; name your preference pairs with --data")
    config = config_of(folder)
    tokenizer = load_tokenizer(folder)
    template = None if tokenizer.chat_template else "plain"
    Chat(tokenizer, template)
    size = parameters(config)
    compute = sizing(size, vram)
    if stored_as := kind_of_storage(config):
        compute |= {"quantization": quantization_for(stored_as), "why": f"weights as they are stored, {stored_as}"}
    text = TEMPLATE.format(
        model=json.dumps(str(folder.resolve())),
        data=json.dumps(str(pairs.resolve())),
        size=f"{size / 1e9:.2f}" if size > 1e8 else f"{size / 1e9:.4f}",
        day=datetime.now(UTC).date().isoformat(),
        template=f"chat_template: {template}" if template else "# chat_template: the model's own is used",
        gates=json.dumps(f"./{gates.name}"),
        **compute,
    )
    write_text(gates, GATES)
    write_text(target, text)
    print(f"{target} written: {compute['why']}; {gates} holds what its audits demand")
    print(f"next: align check --config {target}, then align run --config {target}")
    return 0


def parameters(config: Any) -> int:
    """Return the number of parameters of an architecture, counted without allocating them."""
    from align.model.weights import skeleton

    return int(sum(parameter.numel() for parameter in skeleton(config).parameters()))


def sizing(size: int, vram: float | None) -> dict[str, Any]:
    """Return dtype, quantization and row budget for a model of ``size`` parameters in ``vram`` GiB.

    The frozen base takes 2 bytes per parameter in bf16 and about 0.6 in NF4; a third of the memory is left to
    activations, four adapters and the optimiser.
    """
    if vram is None:
        return {"dtype": "float32", "quantization": "none", "max_tokens": 2048, "checkpointing": "false",
                "why": "for the CPU, fp32 (give --vram for a GPU)"}  # fmt: skip
    room = vram * GIB * 2 / 3
    if size * 2 <= room:
        kind, why = "none", f"bf16 base, {size * 2 / GIB:.1f} of {vram:g} GiB"
    elif size * 0.6 <= room:
        kind, why = "nf4", f"NF4 base, {size * 0.6 / GIB:.1f} of {vram:g} GiB"
    else:
        raise BadInput(f"{size / 1e9:.1f} B parameters do not fit {vram:g} GiB even in NF4; give a smaller model")
    return {"dtype": "bfloat16", "quantization": kind, "max_tokens": 8192, "checkpointing": "true", "why": why}


TEMPLATE = """\
# From your pairs to an audited policy. Check it with `align check`, run it with `align run`.
# Model: {size} billion parameters. Settings: {why}.
stage: recipe
model: {model}
data: {data}
runs: runs/mine
seed: 0
defaults:                       # for every stage that knows the key
  {template}
  template_arguments: {{date: "{day}"}}  # the day that a chat template prints, the same in every run
  compute:
    dtype: {dtype}
    quantization: {quantization}           # none, int8 or nf4 (bitsandbytes)
    max_tokens: {max_tokens}            # rows x length of one forward pass: lower it when memory runs out
    gradient_checkpointing: {checkpointing}
steps:
  - name: import                # your file into the feedback store; what cannot be used is listed
    stage: import
    inputs: {{data: data}}
  - name: pairs                 # split by prompt; manifest.json counts everything that was dropped
    stage: pairs
    config: {{validation: 0.1, test: 0.2, judge_share: 0.25}}
  - name: judge-pairs           # a quarter of the training prompts: what no policy and no other reward learns from
    stage: pairs
    config: {{validation: 0.1, test: 0.2, judge_share: 0.25, for_judge: true}}
  - name: sft                   # on the chosen responses
    stage: sft
    inputs: {{model: model, data: pairs}}
    config: {{batch: 16, epochs: 1, optim: {{lr: 2.0e-4}}}}
  - name: sample                # what the SFT policy writes: reward scores are shifted to average 0 on it
    stage: sample
    inputs: {{policy: sft, prompts: pairs/train.jsonl}}
    config: {{k: 1, limit: 128}}
  - name: reward                # what ppo follows
    stage: reward
    inputs: {{pairs: pairs, policy: sft, candidates: sample}}
    config: {{batch: 16, epochs: 1, optim: {{lr: 1.0e-4}}}}
  - name: judge                 # what evaluations read: other prompts, another seed
    stage: reward
    inputs: {{pairs: judge-pairs, policy: sft, candidates: sample}}
    config: {{seed: 1000, batch: 16, epochs: 1, optim: {{lr: 1.0e-4}}}}
  - name: dpo                   # beta: how strongly the policy is held to its reference
    stage: dpo
    inputs: {{pairs: pairs, policy: sft}}
    config:
      loss: [{{kind: sigmoid, beta: 0.1}}, {{kind: sft, weight: 0.2}}]
      batch: 16
      epochs: 1
      optim: {{lr: 2.0e-5}}
  - name: ppo                   # kl: the price of a nat in reward; learning stops beyond kl_max nats
    stage: ppo
    inputs: {{pairs: pairs, policy: sft, reward: reward}}
    config: {{iterations: 100, batch: 32, samples: 4, kl: 0.05, kl_max: 20, max_new_tokens: 128}}
  - name: eval-base             # held-out prompts of your pairs: likelihood, the judge's score, win rate, KL, length
    stage: eval
    inputs: {{subject: model, items: pairs, sft: sft, reward: judge}}
    config: {{suite: [forgetting, preference], policy: sample, max_new_tokens: 128}}
  - name: eval-sft
    stage: eval
    inputs: {{subject: sft, items: pairs, sft: sft, reward: judge}}
    config: {{suite: [forgetting, preference], policy: sample, max_new_tokens: 128}}
  - name: eval-dpo
    stage: eval
    inputs: {{subject: dpo, items: pairs, sft: sft, reward: judge}}
    config: {{suite: [forgetting, preference], policy: sample, max_new_tokens: 128}}
  - name: eval-ppo
    stage: eval
    inputs: {{subject: ppo, items: pairs, sft: sft, reward: judge}}
    config: {{suite: [forgetting, preference], policy: sample, max_new_tokens: 128}}
  - name: audit-dpo             # the verdict: exit code 0 pass, 1 fail, 3 too little evidence
    stage: audit
    inputs: {{base: model, candidate: dpo, sft: sft, rival: ppo, gates: {gates}}}
  - name: audit-ppo
    stage: audit
    inputs: {{base: model, candidate: ppo, sft: sft, rival: dpo, gates: {gates}}}
  - name: compare
    stage: compare
    inputs: {{arms: [dpo, ppo]}}
  - name: report
    stage: report
    inputs: {{runs_folder: runs, audits: [audit-dpo, audit-ppo], comparison: compare}}
"""

GATES = """\
# What the audits of this recipe demand. Set margins before anything is measured: what you would accept losing.
# type       non_inferior (default): not worse than the reference by more than `margin`
#            improves: better than the reference; at_most: the candidate's own mean is at most `limit`
# against    base (the model before any tuning) or sft (where preference training started)
# min_items  fewer scored items are too little evidence for a pass; a fail that they prove counts
# range      [low, high] of an item's difference (at_most: of its value); without it bits_per_byte, reward_score and kl
#            need 150 items
# Your pairs hold no items on safety or knowledge, so nothing here speaks of them: add an evaluation of such items
# (suites safety and forgetting, inputs.items: FILE) and gates like those of configs/gates.yaml.
gates:
  - {name: text is not forgotten, suite: forgetting, metric: bits_per_byte, against: base, margin: 0.1, min_items: 60}
  - {name: answers end, suite: preference, metric: ended, against: sft, margin: 0.05, min_items: 60}
  - {name: preferred by the judge, suite: preference, metric: reward_score, type: improves, against: sft, min_items: 60}
  - {name: close to SFT, suite: preference, metric: kl, type: at_most, limit: 20, min_items: 60}
  - {name: no more garbage, suite: preference, metric: garbage, against: sft, margin: 0.05, min_items: 60}
  - {name: no more empty answers, suite: preference, metric: empty, against: sft, margin: 0.05, min_items: 60}
"""
