"""Build the embedded world's base model from a seed: tokenizer, chat template, about 1 M Llama parameters.

    python scripts/build_pocket_base.py --out align/pocket/base --steps 3200 --threads 2

The number of steps, not the clock, decides when it stops, so the same seed and thread count give the same
weights. At the end it prints what the base can do (greedy and at temperature 1) on held-out questions.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.pocket.corpus import base_documents
from align.pocket.utility import classify
from align.pocket.world import FAMILIES, draw

SPECIALS = ["<pad>", "<bos>", "<end>", "<user>", "<assistant>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<assistant>' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}"
    "{{ '<user>' + message['content'] + eos_token }}{% else %}{{ '<user>' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the base corpus, 1,024 pieces."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = (f"{question or ''} {answer}" for question, answer in base_documents(seed, 20_000))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1024, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<end>", model_max_length=256
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def documents(tokenizer: PreTrainedTokenizerFast, seed: int, n: int) -> list[list[int]]:
    """Token ids of the corpus: plain documents and one-turn transcripts, each with its end token."""
    bos, end, user, assistant = tokenizer.convert_tokens_to_ids(SPECIALS[1:])
    rows = list(base_documents(seed, n))
    answers = tokenizer([answer for _, answer in rows], add_special_tokens=False).input_ids
    questions = tokenizer([question or "" for question, _ in rows], add_special_tokens=False).input_ids
    return [
        [bos, user, *asked, end, assistant, *said, end] if question else [bos, *said, end]
        for (question, _), asked, said in zip(rows, questions, answers, strict=True)
    ]


def train(tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, batch: int) -> LlamaForCausalLM:
    """AdamW with warm-up and a linear decay over batches bucketed by length."""
    torch.manual_seed(seed)
    pad, bos, end = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=384, max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=pad, bos_token_id=bos, eos_token_id=end,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    warmup, chunk, rng = 100, 64, random.Random(seed)
    started, done = time.monotonic(), 0
    while done < steps:
        rows = sorted(documents(tokenizer, seed * 1000 + done, batch * chunk), key=len)
        groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        rng.shuffle(groups)
        for group in groups[: steps - done]:
            longest = max(map(len, group))
            ids = torch.tensor([row + [pad] * (longest - len(row)) for row in group])
            labels = torch.tensor([row + [-100] * (longest - len(row)) for row in group])
            rate = 3e-3 * min((done + 1) / warmup, (steps - done) / (steps - warmup))
            for parameters in optimiser.param_groups:
                parameters["lr"] = rate
            loss = model(input_ids=ids, attention_mask=(labels >= 0).long(), labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            done += 1
            if done % 100 == 0:
                print(f"step {done}/{steps} loss {loss.item():.3f} {time.monotonic() - started:.0f} s", flush=True)
    return model.eval()


@torch.no_grad()
def rates(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, greedy: bool) -> dict[str, dict[str, float]]:
    """Share of each kind of answer by family, 60 held-out (dev) questions each."""
    torch.manual_seed(0)
    tokenizer.padding_side = "left"
    found: dict[str, dict[str, float]] = {}
    for family in FAMILIES:
        items = draw("dev", 60, 1, {family: 1.0})
        prompts = [[{"role": "user", "content": item.question}] for item in items]
        batch = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        settings = GenerationConfig(
            max_new_tokens=64, do_sample=not greedy, top_k=0, pad_token_id=0, eos_token_id=tokenizer.eos_token_id
        )
        output = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=settings
        )
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        kinds = [classify(item.question, text).kind for item, text in zip(items, texts, strict=True)]
        found[family] = {str(kind): round(kinds.count(kind) / len(kinds), 2) for kind in sorted(set(kinds))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("align/pocket/base"))
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = train_tokenizer(arguments.seed)
    model = train(tokenizer, arguments.seed, arguments.steps, arguments.batch)
    print("parameters:", sum(parameter.numel() for parameter in model.parameters()))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    model.save_pretrained(arguments.out, safe_serialization=True)
    tokenizer.save_pretrained(arguments.out)
    for greedy in (True, False):
        for family, kinds in rates(model, tokenizer, greedy).items():
            print("greedy" if greedy else "T = 1", family, kinds)


if __name__ == "__main__":
    main()
