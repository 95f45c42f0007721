"""The verbs of a campaign: their settings are read as they are meant, and what would be passed over is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.cli import main
from annotation.campaign import following
from annotation.store.exports import export


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["up", "server=~/labels"], "server: a path is read literally, ~ and $ are not expanded"),
        (["down", "server=$HOME/labels"], "server: a path is read literally"),
        (["doctor", "server=a", "server=b"], "server= stands 2 times; keep one"),
        (["export", "out=~/export"], "out: a path is read literally"),
        (["verify", "--runs=$RUNS"], "runs: a path is read literally"),
        (["plan", "width=true"], "width: expected a number, not true or false (given: True)"),
        (["plan", "width=0.1", "width=0.2"], "override 'width': 'width' was given before it"),
        (["exclude", "annotator=7", "reason=late"], "annotator: expected text, and YAML reads this as another type"),
        (["annotators", "names=annotator-3"], "names: expected a list; write names: [annotator-3]"),
    ],
)
def test_a_setting_that_would_be_read_as_another_is_refused(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["annotate", *words]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ls", "runs=5"], "5: no such folder"),
        (["ls", "runs=$HOME"], "runs: a path is read literally"),
        (["init", "model=m", "data=d", "vram=true"], "vram: expected a number, not true or false"),
        (["init", "model=m", "data=d", "vram=lots"], "vram: expected a number (given: 'lots')"),
        (["init", "model=~/m", "data=d"], "model: a path is read literally"),
        (["quickstart", "label_studio=7"], "label_studio: expected true or false"),
    ],
)
def test_so_are_those_of_the_other_verbs(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(words) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_names_of_runs_are_read_as_they_stand() -> None:
    assert main._arms(["runs/a, b", "runs/#1", "x=1"]) == ["x=1", 'arms=["runs/a, b", "runs/#1"]']


def test_two_servers_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1/")
    assert main.run(["annotate", "doctor", "server=labels"]) == 2
    assert "LABEL_STUDIO_URL and server= both name a server; unset one" in capsys.readouterr().err


def test_a_pace_without_a_watch_is_refused() -> None:
    with pytest.raises(main.BadInput, match="every= goes with --watch"):
        following.pull(None, None, every=10)  # type: ignore[arg-type]  # refused before either is asked


def test_an_export_leaves_nothing_of_the_one_before(store_path: Path, tmp_path: Path) -> None:
    export(out=tmp_path / "out", feedback=store_path, format="parquet", names=True)
    export(out=tmp_path / "out", feedback=store_path)
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 4 and not list((tmp_path / "out").glob("*.parquet"))
