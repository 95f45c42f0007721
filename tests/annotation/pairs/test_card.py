"""The folder to publish: load_dataset reads it, and nobody is named in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.judging import comparison, said
from test_products import asked, improved, made, store_of, thumb

from align.cli.main import run
from align.core.config import BadInput, build
from align.core.files import read_jsonl
from align.core.records import Comparison, Judgment
from align.core.stats.estimates import Estimate
from annotation.agreement.run import AgreementConfig, agreement
from annotation.campaign.people import exclude
from annotation.pairs.run import PairsConfig
from annotation.store.ledger import Ledger
from annotation.store.store import Store

PEOPLE = ("person-0a1b2c3d", "Ann Example", "bob@example.org")
GUIDELINES = "Prefer what is true. Then prefer what is short."


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``load(folder, name)`` without a network, into a cache of its own."""
    from datasets import config, load_dataset

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert config.HF_HUB_OFFLINE
    return lambda folder, *name: load_dataset(str(folder), *name)


def campaign(folder: Path) -> Path:
    """Forty judged prompts, some improved, thumbs, labels, and a person who is excluded."""
    items = [comparison(f"prompt {n}", f"good {n}", f"bad {n}") for n in range(40)]
    single = [comparison(f"single {n}", f"answer {n}") for n in range(40)]
    with Store.open(folder / "feedback.db", write=True) as store:
        guideline, _ = Ledger(store, "spring").guideline("an older text")
        guideline, _ = Ledger(store, "spring").guideline(GUIDELINES)
    judged: list[Judgment] = []
    for n, item in enumerate(items):
        worse = [f"{'bad' if (n + k) % 5 == 0 else 'good'} {n}" for k in range(3)]
        judged += [
            said(item, text, name, strength=2, guideline=guideline, rationale=f"says {name}", **asked(item))
            for text, name in zip(worse, PEOPLE, strict=True)
        ]
        judged.append(said(item, f"bad {n}", "eve, who guesses", **asked(item)))
        judged.append(improved(item, f"good {n}", "dora", f"the best {n}", guideline=guideline, **asked(item)))
    judged += [thumb(item, name, "up", **asked(item)) for item in single[:20] for name in PEOPLE]
    judged += [thumb(item, name, "partial", **asked(item)) for item in single[20:] for name in PEOPLE]
    store_path = store_of(folder / "feedback.db", judged, items + single)
    exclude(annotator="eve, who guesses", reason="clicks at random", feedback=store_path)
    return store_path


def front_matter(folder: Path) -> dict[str, Any]:
    head = (folder / "README.md").read_text().split("---\n")[1]
    return dict(yaml.safe_load(head))


def test_load_dataset_reads_the_card(tmp_path: Path, load: Any) -> None:
    store = campaign(tmp_path)
    arguments = ["validation=0.2", "test=0.2", "method=dawid-skene", "--card", "--licence", "cc-by-4.0"]
    assert run(["annotate", "pairs", f"feedback={store}", f"run={tmp_path / 'pairs'}", *arguments]) == 0
    folder = tmp_path / "pairs" / "card"
    read = load(folder)
    assert set(read) == {"train", "validation", "test"}
    for split, rows in read.items():
        written = read_jsonl(tmp_path / "pairs" / f"{split}.jsonl")
        assert rows.to_list() == written and written
    assert load(folder, "thumbs")["train"].features["label"].dtype == "bool"
    assert set(load(folder, "demonstrations")) == {"train", "validation", "test"}
    assert load(folder, "labels")["judged"].to_list() == read_jsonl(tmp_path / "pairs" / "labels.jsonl")
    head = front_matter(folder)
    assert (head["license"], head["language"], head["size_categories"]) == ("cc-by-4.0", ["en"], ["n<1K"])


def test_nobody_is_named(tmp_path: Path) -> None:
    store = campaign(tmp_path)
    made(store, method="dawid-skene", exclude=["Ann Example"], card=True, licence="mit")
    manifest = (tmp_path / "pairs" / "manifest.json").read_text()
    for name in (*PEOPLE, "dora", "eve, who guesses", "clicks at random"):
        assert name in manifest or name == "dora"  # so that there is something to keep to oneself
        for path in (tmp_path / "pairs" / "card").rglob("*"):
            assert name not in path.read_text(), f"{path.name} names {name}"


def test_the_card_says_how_it_came_about(tmp_path: Path) -> None:
    store = campaign(tmp_path)
    _, manifest = made(store, test=0.5, min_votes=2, ties="half", card=True, licence="cc0-1.0")
    text = (tmp_path / "pairs" / "card" / "README.md").read_text()
    with Store.open(store) as opened:
        kept = [j for j in opened.judgments() if not j.annotator.startswith("eve")]
        store_of(tmp_path / "kept" / "feedback.db", kept, opened.comparisons())
    agreement(AgreementConfig(run=tmp_path / "agreement", feedback=tmp_path / "kept" / "feedback.db"))
    alpha = json.loads((tmp_path / "agreement" / "agreement.json").read_text())["alpha"]
    assert alpha["low"] < alpha["value"] < alpha["high"]
    assert f"is {Estimate.model_validate(alpha)} (95 % interval), over {alpha['n']} pairs" in text
    (guideline,) = manifest["guidelines"]
    assert f"- sha256 `{guideline}`, version 2: 160 judgments" in text
    assert "| pairs | annotator excluded | 40 |" in text
    assert "| edited pairs | held-out prompt | " in text and "counts as half a vote" in text
    assert "A row needs 2 or more votes." in text and manifest["content_sha256"] in text


def test_optional_fields_differ_between_splits(tmp_path: Path, load: Any) -> None:
    """A tool call with other arguments in each split, and tools in one of them alone."""
    items = []
    for n, arguments in enumerate(({"x": 1}, {"y": "two"}, None)):
        call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        messages = [call] if arguments else [{"role": "assistant", "content": "it is 42"}]
        responses = [{"messages": messages}, {"messages": [{"role": "assistant", "content": "no"}]}]
        more = {"tools": [{"name": "f", "parameters": {"p": n}}]} if n == 1 else {"template_arguments": {"think": n}}
        data = {"prompt": [{"role": "user", "content": f"q{n}"}], "responses": responses, **(more if n < 2 else {})}
        items.append(Comparison.model_validate(data))
    splits = {items[1].id: "test", items[2].id: "validation"}
    store = store_of(tmp_path / "feedback.db", [said(item, "no", "ann") for item in items], items, splits=splits)
    made(store, card=True, licence="mit")
    read = load(tmp_path / "pairs" / "card")
    calls = {split: rows[0]["rejected"][0].get("tool_calls") for split, rows in read.items()}
    assert calls["train"][0]["function"]["arguments"] == {"x": 1}
    assert calls["test"][0]["function"]["arguments"] == {"y": "two"} and calls["validation"] is None
    assert read["test"][0]["tools"] == [{"name": "f", "parameters": {"p": 1}}] and read["train"][0]["tools"] is None
    assert read["train"][0]["template_arguments"] == {"think": 0}


def test_files_without_rows_are_left_out(tmp_path: Path, load: Any) -> None:
    item = comparison("question", "answer")
    made(store_of(tmp_path / "feedback.db", [thumb(item, "ann", "up")], [item]), card=True, licence="mit")
    assert {path.name for path in (tmp_path / "pairs" / "card").iterdir()} == {"README.md", "thumbs.jsonl"}
    assert load(tmp_path / "pairs" / "card")["train"][0]["label"] is True
    assert "Not measured" in (tmp_path / "pairs" / "card" / "README.md").read_text()


def test_a_card_wants_a_licence(tmp_path: Path) -> None:
    values = {"stage": "pairs", "run": tmp_path / "p", "card": True}
    with pytest.raises(BadInput, match="under which licence"):
        build(PairsConfig, values, "test")
    with pytest.raises(BadInput, match="licence"):
        build(PairsConfig, {**values, "licence": "mit\n---\nx"}, "test")
