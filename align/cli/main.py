"""The `align` command: dispatch a verb with settings from a YAML and from key=value.

Exit codes: 0 pass or done, 1 fail, 3 insufficient (audits, and recipes that hold one), 2 bad input or a named
outside fault, 70 internal error, 130 interrupted. Heavy imports happen inside a verb, so --help is quick.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align import __version__
from align.cli.annotate import FLAGS
from align.cli.annotate import VERBS as BRIDGE
from align.cli.stages import STAGES
from align.core.config import BadInput, build, check_meant, override, read_yaml

WHOLE = {
    "run": "run a recipe: --config recipe.yaml [step.key=value ...]",
    "quickstart": "the main job on the embedded world, offline, on CPU: [runs=DIR] [--label-studio: a real server]",
    "init": "write a recipe for your model and pairs: --model DIR --data FILE [--vram 24] [out=recipe.yaml]",
    "check": "validate a YAML without a GPU or the network: --config F",
    "ls": "list the runs of a folder: [runs=DIR]",
}
ANNOTATE = ("simulate", "agreement", "pairs")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of the console script, and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name need not be text of the terminal's encoding
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        return _dispatch(argv)
    except BadInput as error:
        return _say(str(error), 2)
    except KeyboardInterrupt as stop:
        return _say(str(stop) or "interrupted; the same command goes on from the last checkpoint", 130)
    except MemoryError:
        return _say("out of memory; lower compute.max_tokens or batch, and run the same command again", 2)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _say("disk full; free some space and run the same command again", 2)
        if error.errno and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            return _say(f"{where}{error.strerror.lower()}; nothing half-written was left; mend it and run again", 2)
        return _internal()
    except Exception as error:  # the outermost place: everything not foreseen becomes exit code 70
        if "DefaultCPUAllocator" in str(error):  # torch's way to say it where there is no GPU
            return _say("out of memory; lower compute.max_tokens or batch, and run the same command again", 2)
        if str(error).startswith("Symlink loop from "):  # pathlib's own, and no OSError before Python 3.13
            return _say(f"{str(error).removeprefix('Symlink loop from ')}: is a link to itself; mend the link", 2)
        if type(error).__name__ == "OutOfMemoryError":
            return _say("the GPU is out of memory; lower compute.max_tokens or use compute.quantization: nf4", 2)
        return _internal()


def _dispatch(argv: list[str]) -> int:
    parser = _parser()
    if not argv:
        parser.print_help()
        return 0
    if any(word in ("-h", "--help") for word in argv):
        from align.cli.help import usage

        if (lines := usage(argv)) is not None:
            print("\n".join(lines))
            return 0
    known, rest = parser.parse_known_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    assignments = _assignments(rest)
    verb = known.verb
    if verb == "annotate":
        if " ".join(assignments[:2]) in BRIDGE:
            assignments[:2] = [" ".join(assignments[:2])]
        if not assignments or assignments[0] not in (*ANNOTATE, *BRIDGE):
            raise BadInput(f"align annotate: name one of {', '.join((*ANNOTATE, *BRIDGE))}")
        verb, *assignments = assignments
        if verb in BRIDGE:
            from align.cli.annotate import run as annotate

            return annotate(verb, known.config, assignments)
    if verb in WHOLE:
        return _whole(verb, known, assignments)
    if verb == "compare":
        assignments = _arms(assignments)
    if verb == "import":
        assignments = _file(assignments)
        if any(word.partition("=")[0] == "dry_run" for word in assignments):
            return _preview(known.config, assignments)
    return _stage(verb, known.config, assignments)


class _Once(argparse.Action):
    """An option that may be given once."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            raise BadInput(f"{option_string}: is given twice; name one file and give the rest as key=value")
        setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    verbs = [f"  {name:<24}{text}" for name, text in WHOLE.items()]
    verbs += [f"  {name:<24}{verb.summary}" for name, verb in STAGES.items() if name not in ANNOTATE]
    verbs += [f"  annotate {name:<15}{STAGES[name].summary}" for name in ANNOTATE]
    verbs += [f"  annotate {name:<15}{verb.summary}" for name, verb in BRIDGE.items()]
    parser = argparse.ArgumentParser(
        prog="align",
        description="From people's preference judgments to an aligned policy with an audit.",
        epilog="verbs:\n"
        + "\n".join(verbs)
        + "\n\nsettings: --config F, then key=value (or --key value) overrides; 'align VERB --help' lists a verb's own",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=[*WHOLE, *STAGES, "annotate"], metavar="VERB")
    parser.add_argument("--config", type=Path, action=_Once, help="a YAML file: one stage, or a recipe")
    parser.add_argument("--version", action="version", version=f"align {__version__}")
    parser.add_argument("--verbose", action="store_true", help="show the libraries' own messages")
    return parser


def _assignments(rest: Sequence[str]) -> list[str]:
    """Write ``--key value`` and ``--key=value`` as ``key=value``, and a flag alone as ``flag=true``."""
    settings: list[str] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            settings.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals and key.replace("-", "_") in FLAGS:
            is_alone = not words or words[0].startswith("--") or "=" in words[0]
            value = "true" if is_alone else words.pop(0)
        elif not equals:
            if not words:
                raise BadInput(f"{word}: a value is missing")
            value = words.pop(0)
        settings.append(f"{key.replace('-', '_')}={value}")
    return settings


def _arms(words: Sequence[str]) -> list[str]:
    """Read ``align compare RUN RUN key=value``: words without '=' are the arms."""
    runs = [word for word in words if "=" not in word]
    return [
        *(word for word in words if "=" in word),
        *([f"arms={json.dumps(runs, ensure_ascii=False)}"] if runs else []),
    ]


def _file(words: Sequence[str]) -> list[str]:
    """Read ``align import FILE key=value``: the word without '=' is the file."""
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise BadInput(f"align import: reads one file at a time, got {' and '.join(files)}")
    named = [f"data={json.dumps(file, ensure_ascii=False)}" for file in files]  # quoted: settings are read as YAML
    return [*named, *(word for word in words if "=" in word)]


def _whole(verb: str, known: argparse.Namespace, assignments: list[str]) -> int:
    if not known.verbose:
        _quiet()
    if verb == "run":
        from align.cli.recipe import exit_code, load_recipe, run_recipe

        if known.config is None:
            raise BadInput("align run: name a recipe with --config F")
        recipe = load_recipe(read_yaml(known.config), assignments, str(known.config))
        return exit_code(run_recipe(recipe, str(known.config)))
    values = override({}, assignments)
    words = (word.partition("=") for word in assignments)
    texts = {key: value for key, _, value in words if key in ("model", "data", "out", "runs")}  # paths: 5 is a name
    if verb == "quickstart":
        from align.cli.quickstart import quickstart

        return quickstart(**_checked(values | texts, {"runs": Path, "label_studio": bool}, verb))
    if verb == "init":
        from align.cli.init import init

        types = {"model": Path, "data": Path, "vram": float, "out": Path}
        return init(**_checked(values | texts, types, verb))
    if verb == "check":
        from align.cli.check import check

        if known.config is None:
            raise BadInput("align check: name a YAML with --config F")
        return check(known.config, assignments)
    from align.cli.ls import ls

    return ls(**_checked(values | texts, {"runs": Path}, verb))


def _preview(config: Path | None, assignments: list[str]) -> int:
    """Print for ``align import FILE --dry-run`` what would be imported; nothing is written."""
    from annotation.importers.run import ImportConfig, preview

    data, where = _settings("import", config, assignments)
    if data.pop("dry_run") is False:
        raise BadInput(f"{where}: dry_run=false is what happens without it; leave it out")
    lines, fault = preview(build(ImportConfig, data, where))
    print("\n".join(lines))
    return _say(fault, 2) if fault else 0


def _settings(verb: str, config: Path | None, assignments: list[str]) -> tuple[dict[str, Any], str]:
    """Return the settings of a stage's verb, and where they were given."""
    where = str(config) if config else "command line"
    data = override(read_yaml(config) if config else {}, assignments)
    if data.setdefault("stage", verb) != verb:
        raise BadInput(f"{where}: this is a config of stage '{data['stage']}', the verb is '{verb}'")
    data.setdefault("run", f"runs/{verb}")
    return data, where


def _stage(verb: str, config: Path | None, assignments: list[str]) -> int:
    from align.cli.headline import headline_lines
    from align.cli.recipe import exit_code
    from align.cli.stages import run_stage, stage_config

    _quiet()
    data, where = _settings(verb, config, assignments)
    gold = data.pop("gold", None) if STAGES[verb].gold else None
    record = run_stage(stage_config(verb, data, where), gold)
    for line in headline_lines(record.headline):
        print(line)
    return exit_code([record])


def _checked(values: dict[str, Any], types: Mapping[str, type], verb: str) -> dict[str, Any]:
    for key, value in values.items():
        if key not in types:
            raise BadInput(f"align {verb}: unknown setting '{key}'; it takes {', '.join(sorted(types))}")
        try:
            check_meant(types[key], value)
        except ValueError as error:
            raise BadInput(f"align {verb}: {key}: {error} (given: {value!r})") from None
        if types[key] is float and not isinstance(value, int | float):
            raise BadInput(f"align {verb}: {key}: expected a number (given: {value!r})")
        if types[key] is bool and not isinstance(value, bool):
            raise BadInput(f"align {verb}: {key}: expected true or false (given: {value!r})")
    return values


def _quiet() -> None:
    """Silence the libraries' messages; the package's own are printed."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|trl|peft|datasets")
    for name in ("transformers", "trl", "peft", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _say(text: str, code: int) -> int:
    print(f"align: {text}", file=sys.stderr)
    return code


def _internal() -> int:
    traceback.print_exc()
    return _say("internal error; the lines above say where. Runs are as they were at the last checkpoint", 70)


if __name__ == "__main__":
    main()
