"""Pairs as trees: what shares a tree, and what only looks as if it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import make_tokenizer

from align.core.files import read_jsonl, write_jsonl
from align.core.records import prompt_id
from align.core.run_record import RunRecord
from align.core.runs import Run
from align.data.pairs import load_pairs
from align.model.chat import Chat
from align.train.sft import _rows

USER = [{"role": "user", "content": "hello world"}]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ('!' if flag else '?') + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' + ('!' if flag else '?') }}{% endif %}"
)


def row(chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    sides = {k: [{"role": "assistant", "content": v}] for k, v in (("chosen", chosen), ("rejected", rejected))}
    ids = {"comparison_id": f"{chosen}-{rejected}", "prompt_id": prompt_id(USER)}
    return {"prompt": USER, **sides, "votes": [1, 0, 0], **ids, **more}


def load(folder: Path, rows: list[dict[str, Any]]) -> Any:
    write_jsonl(folder / "train.jsonl", rows)
    record = RunRecord(id="x", stage="x", status="running", path=str(folder), seed=0, given={}, resolved={})
    return load_pairs(Run(record), folder, "train", Chat(make_tokenizer(TEMPLATE)), None, 1)


def test_pairs_of_a_prompt_share_its_tree_and_its_responses(tmp_path: Path) -> None:
    (only,) = load(tmp_path, [row("yes", "no"), row("yes", "maybe")])
    assert len(only.tree.responses) == 3
    assert (only.chosen, only.rejected) == ([0, 0], [1, 2])


def test_other_template_arguments_make_another_prompt(tmp_path: Path) -> None:
    asked = [row("yes", "no", template_arguments={"flag": flag}) for flag in (False, True)]
    first, second = load(tmp_path, asked)
    chat = Chat(make_tokenizer(TEMPLATE))
    assert first.tree.prompt == chat.prompt_ids(USER, None, {"flag": False})
    assert second.tree.prompt == chat.prompt_ids(USER, None, {"flag": True}) != first.tree.prompt


def test_an_empty_response_trains_nothing_and_is_counted(tmp_path: Path) -> None:
    (only,) = load(tmp_path, [row("yes", "no"), row("yes", ""), row(" ", "no")])
    assert len(only.rows) == 1
    reasons = [line["reason"] for line in read_jsonl(tmp_path / "dropped-train.jsonl")]
    assert reasons == ["rejected is an empty response", "chosen is an empty response"]
    record = RunRecord(id="x", stage="x", status="running", path=str(tmp_path), seed=0, given={}, resolved={})
    chosen = [{"row": n, "prompt": USER, "completion": row(text, "no")["chosen"]} for n, text in enumerate(("yes", ""))]
    dropped: list[dict[str, Any]] = []
    assert len(_rows(Run(record), Chat(make_tokenizer(TEMPLATE)), chosen, None, dropped)) == 1
    assert dropped == [{"row": 1, "reason": "an empty response"}], "nor does it as a demonstration"
