"""Run `align annotate VERB`: a labelling campaign from its server to its judgments, one line per verb.

The server is the one that LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY name, else the embedded one of ``server=DIR``.
Unlike stages these verbs are repeated at will; what they did is in the feedback store and on the server. Each is
one function that a notebook can call too; its keyword-only arguments are the verb's settings, the rest of a line
overrides the campaign's YAML.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

from align.core.config import BadInput, check_meant, override
from align.core.problems import problem_text

FOLDER = "runs/label-studio"
FLAGS = ("full", "refresh", "watch", "card", "curve", "label_studio", "names", "dry_run")  # true by being named


class LabellingVerb(NamedTuple):
    """A verb: what its function is given, the function's module and name, and what it does.

    A function is given the folder of an embedded server, a server's address and token, a campaign with a client of
    its server, a campaign alone, or nothing but settings.
    """

    given: Literal["folder", "address", "studio", "campaign", "settings"]
    module: str
    function: str
    summary: str


CAMPAIGN, SERVER, STORE = "annotation.campaign", "annotation.label_studio", "annotation.store"
VERBS: Mapping[str, LabellingVerb] = {
    "up": LabellingVerb(
        "folder",
        __name__,
        "up",
        "start an embedded Label Studio server, installed in its own environment: [server=DIR]",
    ),
    "down": LabellingVerb("folder", __name__, "down", "stop the embedded Label Studio server: [server=DIR]"),
    "doctor": LabellingVerb(
        "address", f"{SERVER}.doctor", "doctor", "check the Label Studio server: its address, its version and the token"
    ),
    "annotators": LabellingVerb(
        "folder",
        f"{CAMPAIGN}.people",
        "annotators",
        "make accounts on the embedded server, under aliases: names=[a-1,a-2]",
    ),
    "people": LabellingVerb(
        "studio", f"{CAMPAIGN}.people", "people", "list the server's accounts by their names in the store: --config F"
    ),
    "push": LabellingVerb(
        "studio", f"{CAMPAIGN}.push", "push", "send a campaign's comparisons as tasks, each exactly once: --config F"
    ),
    "gold add": LabellingVerb(
        "campaign", f"{CAMPAIGN}.gold", "add", "add known answers, mixed in blind: --config F file=gold.jsonl"
    ),
    "gold report": LabellingVerb(
        "campaign", f"{CAMPAIGN}.gold", "report", "report which annotators miss too many known answers: --config F"
    ),
    "calibration": LabellingVerb(
        "studio", f"{CAMPAIGN}.calibration", "calibration", "report who has passed the calibration round: --config F"
    ),
    "pull": LabellingVerb(
        "studio", f"{CAMPAIGN}.following", "pull", "read answers into the store: --config F [--full] [--watch]"
    ),
    "status": LabellingVerb(
        "campaign",
        f"{CAMPAIGN}.status",
        "status",
        "report a campaign's progress and cost: --config F [hours=FILE] [price=RATE]",
    ),
    "open-contested": LabellingVerb(
        "studio",
        f"{CAMPAIGN}.contested",
        "open_contested",
        "give disputed tasks to one more annotator: --config F [limit=N]",
    ),
    "exclude": LabellingVerb(
        "settings", f"{CAMPAIGN}.people", "exclude", "leave an annotator's judgments out: annotator=A reason=TEXT"
    ),
    "include": LabellingVerb(
        "settings", f"{CAMPAIGN}.people", "include", "count an excluded annotator's judgments again: annotator=A"
    ),
    "erase": LabellingVerb(
        "settings",
        f"{STORE}.erasure",
        "erase",
        "erase an annotator or a comparison for good: annotator=A | comparison=C",
    ),
    "verify": LabellingVerb(
        "settings", f"{STORE}.lineage", "verify", "check whether a store was tampered with: [feedback=F] [runs=DIR]"
    ),
    "export": LabellingVerb(
        "settings", f"{STORE}.exports", "export", "write a store to files: out=DIR [format=parquet] [--names]"
    ),
    "plan": LabellingVerb(
        "settings", f"{CAMPAIGN}.plan", "plan", "plan how many labels are needed: width=0.1, or accuracy=0.75 curve=RUN"
    ),
}


def run(verb: str, config: Path | None, assignments: Sequence[str]) -> int:
    """Run one of ``VERBS``; returns the exit code."""
    given, module, name, _ = VERBS[verb]
    function = getattr(importlib.import_module(module), name)
    takes_server = given in ("folder", "address", "studio")
    servers = [word for word in assignments if takes_server and word.partition("=")[0] == "server"]
    folder = _folder(verb, servers)
    if servers and given != "folder" and os.environ.get("LABEL_STUDIO_URL"):
        raise BadInput(f"align annotate {verb}: LABEL_STUDIO_URL and server= both name a server; unset one of them")
    settings, rest = _settings(function, [word for word in assignments if word not in servers])
    if rest and given not in ("studio", "campaign"):
        known = ", ".join(_keywords(function)) or "server"
        raise BadInput(f"align annotate {verb}: unknown setting '{rest[0].partition('=')[0]}'; it takes {known}")
    _print(_call(verb, function, _given(verb, config, rest, folder), settings))
    return 0


def up(folder: Path) -> str:
    """Start the embedded server of a folder, or find it running, and return how to use it."""
    from annotation.label_studio.server import start

    server = start(folder)
    lines = [f"Label Studio answers at {server.url}; stop it with: align annotate down server={folder}"]
    if server.password:
        lines.append(f"administrator {server.email}, password {server.password} (shown this once)")
    return "\n".join([*lines, f"the bridge's token is in {folder / 'token'}, readable by you alone"])


def down(folder: Path) -> str:
    """Stop the embedded server of a folder."""
    from annotation.label_studio.server import stop

    return "stopped" if stop(folder) else f"{folder}: no server runs there"


def _folder(verb: str, words: Sequence[str]) -> Path:
    """Return the folder of the embedded server: a word as it is written, not read as YAML."""
    if len(words) > 1:
        raise BadInput(f"align annotate {verb}: server= stands {len(words)} times; keep one")
    folder = words[0].partition("=")[2] if words else FOLDER
    if not folder.strip() or "\0" in folder:
        raise BadInput(f"align annotate {verb}: server={folder!r} is no folder; name one, or leave it out")
    _check_meant(verb, "server", Path, folder)
    return Path(folder)


def _check_meant(verb: str, name: str, annotation: Any, value: Any) -> None:
    try:
        check_meant(annotation, value)
    except ValueError as error:
        raise BadInput(f"align annotate {verb}: {name}: {error} (given: {value!r})") from None


def _given(verb: str, config: Path | None, assignments: Sequence[str], folder: Path) -> tuple[Any, ...]:
    """Return what a verb's function takes before its settings."""
    given = VERBS[verb].given
    if given == "settings":
        return ()
    if given == "folder":
        return (folder,)
    if given == "address":
        return _server(folder)
    if config is None:
        raise BadInput(f"align annotate {verb}: name a campaign with --config F")
    from annotation.campaign.settings import load_campaign

    campaign = load_campaign(config, assignments)
    if given == "campaign":
        return (campaign,)
    from annotation.label_studio.studio import Studio

    return campaign, Studio(*_server(folder))


def _server(folder: Path) -> tuple[str, str]:
    """Return address and token: the environment's, else the embedded server's."""
    from annotation.label_studio.doctor import settings
    from annotation.label_studio.server import start, status

    if os.environ.get("LABEL_STUDIO_URL"):
        return settings()
    if status(folder).state == "stopped":
        if (folder / "server.json").exists():
            raise BadInput(
                f"{folder}: its server is stopped; nothing is lost: start it with 'align annotate up server={folder}', "
                "or export LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY for another one"
            )
        return settings()
    server = start(folder)  # it runs: this finds it
    return server.url, server.token


def _keywords(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _settings(function: Callable[..., Any], words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the words that are a function's own settings, read as YAML, and the others."""
    known = _keywords(function)
    own = [word for word in words if word.partition("=")[0] in known]
    return override({}, own), [word for word in words if word not in own]


def _call(verb: str, function: Callable[..., Any], given: Sequence[Any], settings: Mapping[str, Any]) -> Any:
    """Call with settings checked by the function's annotations."""
    from pydantic import ConfigDict, ValidationError, validate_call

    annotations = get_type_hints(function)
    for name, value in settings.items():
        _check_meant(verb, name, annotations[name], value)
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
    try:
        return checked(*given, **settings)
    except ValidationError as error:
        problem = error.errors()[0]
        where = f"align annotate {verb}: {problem['loc'][0] if problem['loc'] else 'settings'}"
        if problem["type"].startswith("missing"):
            raise BadInput(f"{where}= is missing; 'align annotate {verb} --help' says what it takes") from None
        raise BadInput(f"{where}: {problem_text(problem, str(problem['loc'][0]))}") from None


def _print(result: Any) -> None:
    """Print a result as lines; of several, each as it is made."""
    for part in result if isinstance(result, Iterator) else [result]:
        if not isinstance(part, str):
            from annotation.campaign.text import lines

            part = "\n".join(lines(part))
        print(part, flush=True)
