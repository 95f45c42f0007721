"""A real labelling server for tests: started once a session in a folder of its own, from the migrated template."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from annotation.label_studio.installation import is_installed
from annotation.label_studio.rows import KEY, Project
from annotation.label_studio.server import Server, start, stop
from annotation.label_studio.studio import Studio

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-label-studio"
CONFIG = """<View>
  <Text name="text" value="$text"/>
  <Choices name="verdict" toName="text" choice="single-radio">
    <Choice value="left"/><Choice value="right"/>
  </Choices>
</View>"""
PATIENT = 600.0  # seconds a test waits for the server: as long as a slow machine takes
_NUMBER = itertools.count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, the same for all tests; one that stops it starts it again."""
    if not is_installed(VENV):
        pytest.skip(f"Label Studio is not installed; 'make {VENV.name}/.done' installs it (network, 1 GB)")
    running = start(tmp_path_factory.mktemp("campaign"), VENV, say=lambda line: None)
    yield running
    stop(running.folder)


@pytest.fixture
def studio(server: Server) -> Studio:
    return Studio(server.url, server.token, patience=PATIENT)


@pytest.fixture
def project(studio: Studio) -> Project:
    """A project of its own, empty."""
    return new_project(studio)


def new_project(studio: Studio) -> Project:
    return studio.ensure_project(f"campaign {next(_NUMBER)}", CONFIG, {"maximum_annotations": 1})


def rows(n: int, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Rows to send, with keys ``first`` to ``first + n - 1`` in hexadecimal."""
    return [{"data": {KEY: f"{number:016x}", "text": f"text {number}"}, **more} for number in range(first, first + n)]


def vote(choice: str, user: int = 1) -> dict[str, Any]:
    """An annotation as the labelling page makes it, for rows that arrive answered."""
    region = {"from_name": "verdict", "to_name": "text", "type": "choices", "value": {"choices": [choice]}}
    return {"result": [region], "completed_by": user, "ground_truth": False}
