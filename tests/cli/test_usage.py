"""What a verb's own help says, and what is said of settings that are missing or no folder."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from align.cli.annotate import VERBS as BRIDGE
from align.cli.main import run
from align.cli.stages import STAGES


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_all_its_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    schema = getattr(importlib.import_module(STAGES[name].module), STAGES[name].config)
    words = ["annotate", name] if name in ("simulate", "agreement", "pairs") else [name]
    assert run([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert STAGES[name].summary in said
    assert all(f"  {field}" in said for field in schema.model_fields if field != "stage")


@pytest.mark.parametrize("name", BRIDGE)
def test_a_verb_of_the_bridge_lists_its_settings_and_what_it_raises(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = BRIDGE[name]
    function = getattr(importlib.import_module(verb.module), verb.function)
    assert run(["annotate", *name.split(), "-h"]) == 0
    said = capsys.readouterr().out
    assert verb.summary in said and (inspect.getdoc(function) or "?").splitlines()[0] in said
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert all(f"  {parameter.name} " in said for parameter in own)
    assert "Raises" not in said and "BadInput" not in said


def test_without_a_verb_all_of_them_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and all(name in said for name in (*STAGES, *BRIDGE))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["annotate", "exclude"], "annotator= is missing"),
        (["annotate", "up", "server="], "is no folder"),
        (
            ["annotate", "annotators", "names=one"],
            "names: expected a list; write names: [one], on a command line",
        ),
        (["annotate", "verify", "feedback=f.db", "runs=nope"], "nope: no such folder of runs"),
        (["annotate", "pairs"], "name it with feedback="),
    ],
)
def test_what_is_missing_is_named(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize(
    "line", ['feedback: "a\\0b"', "feedback: .", 'candidates: ["\\0"]', 'guidelines: "\\0"', 'name: "two\\nlines"']
)
def test_a_campaign_names_files_and_one_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text("name: a campaign\n" + line + "\n" if not line.startswith("name") else line + "\n")
    assert run(["annotate", "status", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and line.partition(":")[0] in said and "Value error" not in said


def test_a_stopped_server_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    (tmp_path / "server.json").write_text('{"port": 1}')
    assert run(["annotate", "doctor", f"server={tmp_path}"]) == 2
    assert (
        f"is stopped; nothing is lost: start it with 'align annotate up server={tmp_path}'" in capsys.readouterr().err
    )
    assert run(["annotate", "doctor", f"server={tmp_path / 'none'}"]) == 2
    assert "LABEL_STUDIO_URL is not set" in capsys.readouterr().err
