"""`align annotate up | down | doctor | push | pull`: a campaign's labelling server, and the way there and back.

The server is the one that LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY name, else the embedded one of ``server=DIR``.
Unlike stages these verbs are repeated at will; what they did stands in the feedback store and on the server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.core.config import BadInput

FOLDER = "runs/label-studio"
VERBS = {
    "up": "start an embedded Label Studio, installed apart: [server=DIR]",
    "down": "stop it: [server=DIR]",
    "doctor": "say what is wrong between here and the labelling server",
    "push": "comparisons to tasks, each exactly once: --config campaign.yaml",
    "pull": "what people said to judgments: --config campaign.yaml [full=true]",
}


def run(verb: str, config: Path | None, assignments: Sequence[str]) -> int:
    """Run one of ``VERBS``; returns the exit code."""
    own = {key: value for key, _, value in (word.partition("=") for word in assignments) if key in ("server", "full")}
    rest = [word for word in assignments if word.partition("=")[0] not in own]
    folder = Path(own.get("server", FOLDER))
    if verb in ("up", "down", "doctor") and rest:
        raise BadInput(f"align annotate {verb}: unknown setting '{rest[0]}'; it takes server")
    if verb == "up":
        return _up(folder)
    if verb == "down":
        from annotation.server import stop

        print("stopped" if stop(folder) else f"{folder}: no server runs there")
        return 0
    if verb == "doctor":
        from annotation.doctor import doctor

        for line in doctor(*_server(folder)):
            print(line)
        return 0
    if config is None:
        raise BadInput(f"align annotate {verb}: name a campaign with --config F")
    return _sync(verb, config, rest, folder, own.get("full", "false").lower() == "true")


def _up(folder: Path) -> int:
    from annotation.server import start

    server = start(folder)
    print(f"Label Studio answers at {server.url}; stop it with: align annotate down server={folder}")
    if server.password:
        print(f"administrator {server.email}, password {server.password} (shown this once)")
    print(f"the bridge's token stands in {folder / 'token'}, readable by you alone")
    return 0


def _sync(verb: str, config: Path, assignments: Sequence[str], folder: Path, full: bool) -> int:
    from annotation.campaign import load_campaign
    from annotation.pull import pull
    from annotation.push import push
    from annotation.studio import Studio

    campaign = load_campaign(config, assignments)
    studio = Studio(*_server(folder))
    found: Any = push(campaign, studio) if verb == "push" else pull(campaign, studio, full=full)
    for name, value in found._asdict().items():
        print(f"{name.replace('_', ' ')}: {value}")
    return 0


def _server(folder: Path) -> tuple[str, str]:
    """Address and token: the environment's, else the embedded server's."""
    from annotation.doctor import settings
    from annotation.server import start, status

    if os.environ.get("LABEL_STUDIO_URL") or status(folder).state == "stopped":
        return settings()
    server = start(folder)  # it runs: this finds it
    return server.url, server.token
