"""`align annotate VERB`: a labelling campaign from its server to its judgments, one line a verb.

The server is the one that LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY name, else the embedded one of ``server=DIR``.
Unlike stages these verbs are repeated at will; what they did stands in the feedback store and on the server. Each is
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

from align.core.config import NO_TEXT, BadInput, check_meant, is_short, override

FOLDER = "runs/label-studio"
FLAGS = (
    "full",
    "refresh",
    "watch",
    "card",
    "curve",
    "label_studio",
    "names",
    "dry_run",
)  # settings that are true by being named


class Verb(NamedTuple):
    """A verb: what its function is given, where the function stands, and what it is good for.

    Given are the folder of an embedded server, a server's address and token, a campaign with a client of its server,
    a campaign alone, or nothing but settings.
    """

    given: Literal["folder", "address", "studio", "campaign", "settings"]
    module: str
    function: str
    summary: str


VERBS: Mapping[str, Verb] = {
    "up": Verb("folder", "align.cli.annotate", "up", "start an embedded Label Studio, installed apart: [server=DIR]"),
    "down": Verb("folder", "align.cli.annotate", "down", "stop it: [server=DIR]"),
    "doctor": Verb("address", "annotation.label_studio.doctor", "doctor", "what is wrong on the way to the server"),
    "annotators": Verb("folder", "annotation.campaign.people", "annotators", "accounts under aliases: names=[a-1,a-2]"),
    "people": Verb("studio", "annotation.campaign.people", "people", "who is who in the store: --config F"),
    "push": Verb(
        "studio", "annotation.campaign.push", "push", "comparisons to tasks, each exactly once: --config campaign.yaml"
    ),
    "gold add": Verb(
        "campaign", "annotation.campaign.gold", "add", "known answers to mix in blind: --config F file=gold.jsonl"
    ),
    "gold report": Verb(
        "campaign", "annotation.campaign.gold", "report", "who misses too many known answers: --config F"
    ),
    "calibration": Verb(
        "studio", "annotation.campaign.calibration", "calibration", "who has passed the round before the work"
    ),
    "pull": Verb(
        "studio",
        "annotation.campaign.following",
        "pull",
        "what people said to judgments: --config F [--full] [--watch]",
    ),
    "status": Verb(
        "campaign",
        "annotation.campaign.status",
        "status",
        "how far it is, at which cost: --config F [hours=FILE] [price=RATE]",
    ),
    "open-contested": Verb(
        "studio",
        "annotation.campaign.contested",
        "open_contested",
        "disputed tasks to one more person: --config F [limit=N]",
    ),
    "exclude": Verb(
        "settings",
        "annotation.campaign.people",
        "exclude",
        "leave a person's judgments out: annotator=A reason=TEXT",
    ),
    "include": Verb("settings", "annotation.campaign.people", "include", "take that back: annotator=A"),
    "erase": Verb(
        "settings", "annotation.store.erasure", "erase", "a person or a text for good: annotator=A | comparison=C"
    ),
    "verify": Verb(
        "settings", "annotation.store.lineage", "verify", "was the store tampered with: [feedback=F] [runs=DIR]"
    ),
    "export": Verb(
        "settings", "annotation.store.exports", "export", "all of the store: out=DIR [format=parquet] [--names]"
    ),
    "plan": Verb(
        "settings", "annotation.campaign.plan", "plan", "labels to make: width=0.1, or accuracy=0.75 curve=RUN"
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
    """Start the embedded server of a folder (or find it running) and say how to use it."""
    from annotation.label_studio.server import start

    server = start(folder)
    lines = [f"Label Studio answers at {server.url}; stop it with: align annotate down server={folder}"]
    if server.password:
        lines.append(f"administrator {server.email}, password {server.password} (shown this once)")
    return "\n".join([*lines, f"the bridge's token stands in {folder / 'token'}, readable by you alone"])


def down(folder: Path) -> str:
    """Stop the embedded server of a folder."""
    from annotation.label_studio.server import stop

    return "stopped" if stop(folder) else f"{folder}: no server runs there"


def _folder(verb: str, words: Sequence[str]) -> Path:
    """The folder of the embedded server: a word as it stands, not read as YAML."""
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
    """What a verb's function takes before its settings."""
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
    """Address and token: the environment's, else the embedded server's."""
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
    """The words that are a function's own settings, read as YAML, and the others."""
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
        given, said = problem.get("input"), problem["msg"]
        if problem["type"] in ("string_type", "path_type") and isinstance(given, bool | int | float):
            said = NO_TEXT
        elif problem["type"] in ("list_type", "tuple_type") and isinstance(given, str | int | float):
            said = f"expected a list, write {problem['loc'][0]}=[{given}]"
        raise BadInput(f"{where}: {said}" + (f" (given: {given!r})" if is_short(given) else "")) from None


def _print(result: Any) -> None:
    """A result as lines; of several, each as it comes."""
    for part in result if isinstance(result, Iterator) else [result]:
        if not isinstance(part, str):
            from annotation.campaign.text import lines

            part = "\n".join(lines(part))
        print(part, flush=True)
