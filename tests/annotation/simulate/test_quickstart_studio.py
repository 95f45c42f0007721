"""Simulated people at a real Label Studio: they judge what is shown, once, under their own names; some tasks wait."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fixtures.paths import ROOT
from flaky_proxy import FlakyProxy

from align.cli import main
from align.cli.quickstart import RECIPE, at_server, left_open
from align.cli.recipe import load_recipe, step_config
from align.core.config import read_yaml
from align.core.files import write_jsonl
from align.core.records import Comparison, Judgment
from annotation.campaign.posting import post
from annotation.campaign.settings import Campaign, load_campaign
from annotation.label_studio.accounts import create_token
from annotation.label_studio.rows import StudioTask
from annotation.label_studio.server import Server
from annotation.label_studio.studio import Studio
from annotation.simulate.run import SimulateConfig, simulate
from annotation.simulate.voters import Annotator, vote
from annotation.store.ledger import Ledger, pseudonym
from annotation.store.store import Store

SURE = {"reliability": 0.999}
PEOPLE = [{"name": "ada", **SURE}, {"name": "ben", **SURE}, {"name": "cleo", "reliability": 0.6, "position_bias": 9.0}]
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
from test_quickstart_studio import judge_at
judge_at(Path({folder!r}), Path({server!r}), {n}, 3)
"""


def best_is_longest(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    return [float(len(completion[-1]["content"].split())) for completion in completions]


def judge_at(folder: Path, home: Path, n: int, votes: int, open_tasks: int = 2) -> Any:
    """The `simulate` stage at a server, over n prompts with a long (better) and a short response."""
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"question {i}?"}],
            "responses": [
                {"messages": [{"role": "assistant", "content": text}], "origin": "secret-run", "ended": True}
                for text in (f"short {i}", f"a long and good answer to {i}")
            ],
        }
        for i in range(n)
    ]
    write_jsonl(folder / "candidates.jsonl", rows)
    given = {
        "run": folder / "votes",
        "candidates": folder / "candidates.jsonl",
        "feedback": folder / "feedback.db",
        "annotators": PEOPLE,
        "votes_per_comparison": votes,
        "server": {"folder": home, "open_tasks": open_tasks, "guidelines": RECIPE.with_name("guidelines.md")},
    }
    return simulate(SimulateConfig.model_validate(given), utility=best_is_longest)


def tasks(studio: Studio, campaign: Campaign) -> list[StudioTask]:
    with Store.open(campaign.feedback) as store:
        state = Ledger(store, campaign.name).state()
    return list(studio.all_tasks(state.project)) if state else []


def answers(shown: list[StudioTask]) -> Counter[tuple[int, int | None]]:
    return Counter((task.id, annotation.completed_by) for task in shown for annotation in task.annotations)


def test_people_judge_what_is_shown_under_their_own_names(
    tmp_path: Path, server: Server, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = random.Random(3)  # puts either response on the left of 4 of 10 tasks or more: of any 8 at least 2
    monkeypatch.setattr("annotation.campaign.settings.secrets.SystemRandom", lambda: sides)
    record = judge_at(tmp_path, server.folder, 10, 2)
    campaign = load_campaign(tmp_path / "votes" / "campaign.yaml")
    shown = tasks(studio, campaign)
    by_task = Counter(len(task.annotations) for task in shown)
    assert by_task == {2: 8, 0: 2}, "two people a task, and two tasks left open"
    assert set(answers(shown).values()) == {1}
    people = studio.users()
    names = {people[a.completed_by or 0] for task in shown for a in task.annotations}
    assert names <= {f"{p['name']}@annotators.invalid" for p in PEOPLE}
    assert not any("secret-run" in str(task.data) for task in shown)
    assert all("Which answer is better" in task.data["guidelines_html"] for task in shown)
    assert record.headline["judgments"] == record.headline["new_judgments"] == 16
    gold = record.headline["agreement_with_gold"]
    assert gold["ada"]["value"] == gold["ben"]["value"] == 1.0, "whichever side the better answer was on"
    with Store.open(campaign.feedback) as store:
        judgments = store.judgments()
        assert store.verify().ok
    assert {judgment.shown[0] for judgment in judgments} == {0, 1}
    (cleo,) = (number for number, email in people.items() if email == "cleo@annotators.invalid")
    hers = [judgment for judgment in judgments if judgment.annotator == pseudonym(studio.url, cleo)]
    assert hers and all(judgment.ranking[0] == [judgment.shown[0]] for judgment in hers), "she likes the left"
    assert all(j.strength is not None and j.seconds and not j.flags and j.guideline for j in judgments)


def test_killed_and_run_again_it_goes_on(tmp_path: Path, server: Server, studio: Studio) -> None:
    script = SCRIPT.format(
        tests=[str(ROOT / "tests"), str(ROOT / "benchmarks"), str(Path(__file__).parent)],
        folder=str(tmp_path),
        server=str(server.folder),
        n=9,
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    config = tmp_path / "votes" / "campaign.yaml"
    while process.poll() is None:
        time.sleep(0.2)
        if config.exists() and sum(answers(tasks(studio, load_campaign(config))).values()) >= 4:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    campaign = load_campaign(config)
    before = sum(answers(tasks(studio, campaign)).values())
    assert 4 <= before < 21
    record = judge_at(tmp_path, server.folder, 9, 3)
    counted = answers(tasks(studio, campaign))
    assert set(counted.values()) == {1} and sum(counted.values()) == 21
    assert record.headline["new_judgments"] == 21 - before and record.headline["judgments"] == 21
    assert judge_at(tmp_path, server.folder, 9, 3).headline == record.headline, "finished: nothing is done again"


def test_lost_answers_do_not_double_a_vote(tmp_path: Path, server: Server, studio: Studio) -> None:
    judge_at(tmp_path, server.folder, 6, 1, open_tasks=6)
    campaign = load_campaign(tmp_path / "votes" / "campaign.yaml")
    with Store.open(campaign.feedback) as store:
        ids = [comparison.id for comparison in store.comparisons()]
    person = Annotator(name="ada")
    faults = [[], ["lost answer"], ["bad gateway"], ["lost request"], ["lost answer", "bad gateway"], ["lost answer"]]
    with FlakyProxy(server.url, faults={}) as proxy:

        def judge(comparison: Comparison, name: str, left: int) -> Judgment:
            proxy.forced = faults.pop(0)
            return vote(comparison, (0.0, 1.0), person, 0, 0.3, left)

        done = post(dataclasses.replace(server, url=proxy.url), campaign, {key: ["ada"] for key in ids}, judge)
    assert proxy.seen["lost answer"] == 3 and done.posted == len(done.judgments) == 6
    counted = answers(tasks(studio, campaign))
    assert len(counted) == 6 and set(counted.values()) == {1}


def test_the_person_at_the_keyboard_can_log_in_and_is_heard(
    tmp_path: Path, server: Server, studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    judge_at(tmp_path, server.folder, 5, 2)
    (tmp_path / "label-studio").symlink_to(server.folder)
    lines = list(left_open(tmp_path))
    assert lines == list(left_open(tmp_path)), "the same account when it is asked for again"
    assert lines[0].startswith(f"2 tasks wait for you: {server.url}projects/")
    email, password = lines[1].split("log in as ")[1].split("; ")[0].split(", password ")
    assert email == "you@annotators.invalid"
    you = Studio(server.url, create_token(server.url, email, password))
    campaign = load_campaign(tmp_path / "votes" / "campaign.yaml")
    waiting = [task for task in tasks(studio, campaign) if not task.annotations]
    region = {"from_name": "verdict", "to_name": "response_a", "type": "choices", "value": {"choices": ["-3"]}}
    for task in waiting:
        you.connection.send("POST", f"api/tasks/{task.id}/annotations/", body={"result": [region]})
    command = lines[2].split("align ")[1].split()
    assert main.run(command) == 0
    assert "judgments: 8" in capsys.readouterr().out
    assert list(left_open(tmp_path))[0].startswith("0 tasks wait")


@pytest.mark.parametrize("words", [["--label-studio", "runs=x"], ["--runs", "x", "--label-studio"]])
def test_the_flag_asks_for_a_server(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr("align.cli.quickstart.quickstart", lambda **settings: calls.append(settings) or 0)
    assert main.run(["quickstart", *words]) == 0
    assert calls == [{"label_studio": True, "runs": "x"}]


def test_the_recipe_is_the_same_but_for_its_people(tmp_path: Path) -> None:
    plain = load_recipe(read_yaml(RECIPE), [f"runs={tmp_path}"], str(RECIPE))
    served = load_recipe(read_yaml(RECIPE), [f"runs={tmp_path}", *at_server(tmp_path)], str(RECIPE))
    differ = [a.name for a, b in zip(plain.steps, served.steps, strict=True) if a != b]
    assert differ == ["world", "votes"]
    config = step_config(served, next(step for step in served.steps if step.name == "votes"), "test")
    assert isinstance(config, SimulateConfig) and config.server is not None
    assert config.server.folder == tmp_path / "label-studio" and config.server.open_tasks == 10
    assert config.server.guidelines and config.server.guidelines.is_file()
