"""Write the parts of the documentation that follow from the code.

Written are docs/cli.md, the README's tables of verbs, the list of files in docs/architecture.md, and in
docs/extending.md the code of the tests' toy parts and what the schemas and functions beside them take.

    make docs                                      writes them
    .venv/bin/python scripts/write_docs.py --check  writes nothing; exit code 1 names what is not as the code says

Verbs, keys, types, defaults and descriptions come from the schemas and functions; the line for each file is the first
sentence of its module docstring. Text outside the marks in README.md and docs/architecture.md is written by hand.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from align.audit.gates import Gate
from align.cli.annotate import VERBS as BRIDGE
from align.cli.help import GIVEN, Setting, parameters_of, settings_of, settings_of_stage, text_of
from align.cli.main import ANNOTATE, WHOLE
from align.cli.recipe import RecipeConfig, Step
from align.cli.stages import STAGES
from align.core.plugins import Part, Seam, load
from align.evals.items import Item
from align.evals.judge import JUDGES
from align.evals.suite import SUITES
from align.generate.sampler import SAMPLERS
from align.losses.pairwise import LOSSES
from align.model.attention import ATTENTION
from align.model.tuners.tuner import TUNERS
from annotation.campaign.settings import Campaign
from annotation.importers.importer import IMPORTERS
from rewards.reward import REWARDS

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (  # from the top, each with what it holds; tests/test_layers.py holds imports to the same table
    ("align.cli", "the command line and recipes"),
    ("align.audit", "verdicts, comparisons and the report"),
    ("align.train", "stages sft, dpo and ppo"),
    ("align.evals", "stage eval: suites, judges, items and results"),
    ("rewards", "reward models and reward functions"),
    ("align.engine", "the training loop, optimisers, processes, checkpoints and logs"),
    ("align.generate", "samplers, and stage sample"),
    ("align.data", "rows of files to token trees"),
    ("align.model", "models, adapters, chat templates, packing and layouts"),
    ("align.losses", "equations, as pure functions of tensors"),
    ("annotation.simulate", "simulated people"),
    ("annotation.pairs", "judgments to pairs"),
    ("annotation.importers", "existing preference data to judgments"),
    ("annotation.campaign", "labelling campaigns"),
    ("annotation.label_studio", "the Label Studio server and its interface"),
    ("annotation.interface", "what people see and how answers are read"),
    ("annotation.agreement", "how far people agree"),
    ("annotation.aggregation", "votes to one answer"),
    ("annotation.store", "the feedback store"),
    ("align.report", "pages, plots and tables"),
    ("align.pocket", "the embedded world"),
    ("align.core", "configuration, runs, records, statistics and files"),
)
PARTS: tuple[tuple[str, str, Seam], ...] = (  # extension points, and how a configuration chooses a part
    ("Suites", "`eval`: `suite: [NAME, ...]`", SUITES),
    ("Judges", "`eval`: `judge:`, and an item's `judge`", JUDGES),
    ("Samplers", "`sample`, `eval`, `ppo`: `sampler:`", SAMPLERS),
    ("Rewards", "`ppo`: `rewards:`", REWARDS),
    ("Importers", "`import`: `format:`", IMPORTERS),
    ("Tuners", "`sft`, `dpo`, `ppo`, `reward`: `tuner:`", TUNERS),
    ("Preference losses", "`dpo`: `loss:`, one or a list", LOSSES),
    ("Attention", "`compute.attention:`", ATTENTION),
)


def cli_page() -> str:
    """docs/cli.md: every verb with its keys, types, defaults and descriptions."""
    lines = [
        "# The command line",
        "",
        "This page is written by `make docs` (`scripts/write_docs.py`) from the schemas, and a test holds it to them. "
        "A stage's settings come from a YAML (`--config F`) and from `key=value` words, which override it; "
        "`align VERB --help` prints the same list.",
        "",
        "Exit codes: 0 pass or done, 1 fail, 3 insufficient (audits, and recipes that hold one), 2 bad input or a "
        "named outside fault, 70 internal error, 130 interrupted.",
        "",
        "## Whole recipes",
        "",
        "| verb | what it does |",
        "|---|---|",
        *(f"| `align {name}` | {_cell(text)} |" for name, text in WHOLE.items()),
    ]
    lines += ["", "## A recipe's YAML", "", "What `align run` reads with `--config F`.", ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|", *map(_row, settings_of(RecipeConfig))]
    lines += [
        "",
        "A step:",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
        *map(_row, settings_of(Step)),
    ]
    for name, verb in STAGES.items():
        schema: type[BaseModel] = getattr(importlib.import_module(verb.module), verb.config)
        lines += ["", f"## align {'annotate ' if name in ANNOTATE else ''}{name}", "", _sentence(verb.summary)]
        lines += ["", inspect.getdoc(schema) or "", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += map(_row, settings_of_stage(name))
    lines += ["", "## A campaign's YAML", "", "What the verbs below read with `--config F`."]
    lines += ["", inspect.getdoc(Campaign) or "", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    lines += map(_row, settings_of(Campaign))
    for name, bridge in BRIDGE.items():
        function = getattr(importlib.import_module(bridge.module), bridge.function)
        lines += ["", f"## align annotate {name}", "", _sentence(bridge.summary)]
        lines += ["", f"Needs {GIVEN[bridge.given]}."] if GIVEN[bridge.given] else []
        lines += ["", "```text", text_of(function), "```"]
        if rows := [_row(setting) for setting in parameters_of(function)]:
            lines += ["", "| setting | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([*lines, *parts_section(), *gates_section()]) + "\n"


def parts_section() -> list[str]:
    """The shipped parts of every extension point, each with its settings."""
    lines = ["", "## Parts chosen by kind", ""]
    lines += ["A part is chosen by its name alone (`tuner: lora`), or with settings (`tuner: {kind: lora, r: 8}`); a "]
    lines[-1] += "class of your own is `module:Class` ([extending.md](extending.md))."
    for title, key, seam in PARTS:
        lines += ["", f"### {title}", "", f"{key}.", "", "| kind | setting | type | default | meaning |"]
        lines += ["|---|---|---|---|---|"]
        for kind, name in seam.shipped.items():
            part = load(name)
            lines.append(f"| `{kind}` | | | | {_cell(_first(inspect.getdoc(part) or ''))} |")
            lines += [f"| {_row(setting)}" for setting in settings_of(part) if setting.name != "kind"]
    return lines


def gates_section() -> list[str]:
    """The keys of a gate in gates.yaml."""
    lines = [
        "",
        "## Gates",
        "",
        "`audit`: `gates: F`, a YAML with one list, `gates:`. `configs/gates.yaml` is commented.",
    ]
    return [*lines, "", "| key | type | default | meaning |", "|---|---|---|---|", *map(_row, settings_of(Gate))]


def described(name: str) -> str:
    """What ``module:Name`` takes: fields of a schema or named tuple, class attributes of a part, arguments.

    ``module:Class.method`` is a method.
    """
    module, _, path = name.partition(":")
    thing = operator.attrgetter(path)(importlib.import_module(module))
    doc = inspect.getdoc(thing) or ""
    if inspect.isfunction(thing):
        signature = str(inspect.signature(thing)).replace("'", "")
        return f"```python\n{thing.__name__}{signature}\n```\n{doc}"
    if issubclass(thing, BaseModel) and not issubclass(thing, Part):
        return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *map(_row, _written_in(thing))])
    head, types, defaults = [doc, "", "| field | type | default |"], inspect.get_annotations(thing), vars(thing)
    if issubclass(thing, Part):
        types = {key: kind[9:-1] for key, kind in types.items() if kind.startswith("ClassVar")}
        head = ["| class attribute | type | default |"]
    else:
        defaults = thing._field_defaults
    shown = {key: getattr(kind, "__forward_arg__", kind) for key, kind in types.items()}
    rows = [f"| `{key}` | `{_cell(kind)}` | {_default(key, defaults)} |" for key, kind in shown.items()]
    return "\n".join([*head, "|---|---|---|", *rows])


def _written_in(schema: type[BaseModel]) -> Iterator[Setting]:
    """The settings of a schema; with defaults as Python writes them where it is Python that users write it in."""
    for setting in settings_of(schema):
        field = schema.model_fields[setting.name]
        if issubclass(schema, Item) or field.is_required():  # items are JSON lines
            yield setting
        else:
            yield setting._replace(default=repr(field.get_default(call_default_factory=True, validated_data={})))


def _default(key: str, defaults: Mapping[str, object]) -> str:
    if key not in defaults:
        return "needed"
    value = dict(given) if isinstance(given := defaults[key], Mapping) else given
    shown = getattr(value, "__name__", None) or repr(value)
    return f"`{_cell(shown)}`" if len(shown) < 40 else f"`{type(value).__name__}()`"


def verbs_table() -> str:
    """The README's table of stages."""
    rows = [f"| `{'annotate ' if name in ANNOTATE else ''}{name}` | {_cell(v.summary)} |" for name, v in STAGES.items()]
    rows += [f"| `{name}` | {_cell(text)} |" for name, text in WHOLE.items()]
    return "\n".join(["| verb | what it does |", "|---|---|", *rows])


def campaign_table() -> str:
    """The README's table of `align annotate` verbs."""
    rows = [f"| `{name}` | {_cell(verb.summary)} |" for name, verb in BRIDGE.items()]
    return "\n".join(["| verb (`align annotate …`) | what it does |", "|---|---|", *rows])


def file_list() -> str:
    """One line per file, by layer, from the top."""
    lines = []
    for layer, holds in LAYERS:
        folder = ROOT / layer.replace(".", "/")
        lines += ["", f"### {layer.replace('.', '/')}: {holds}", ""]
        for path in sorted(folder.rglob("*.py")):
            if path.name != "__init__.py" and path.read_text().strip():
                lines.append(f"- `{path.relative_to(folder)}` {_first_sentence(path)}")
    return "\n".join(lines).strip()


def with_code(text: str) -> str:
    """A page with every file of the tests, and what every ``module:Name`` takes, that it names between two marks."""
    for name in re.findall(r"<!-- (\S+): written by", text):
        is_file = name.startswith("tests/")
        text = _between(text, name, f"```python\n{(ROOT / name).read_text()}```" if is_file else described(name))
    return text


def pages() -> dict[Path, str]:
    """Every page by path, as it has to read."""
    readme, architecture, extending = ROOT / "README.md", ROOT / "docs/architecture.md", ROOT / "docs/extending.md"
    text = _between(readme.read_text(), "verbs", verbs_table())
    return {
        ROOT / "docs" / "cli.md": cli_page(),
        readme: _between(text, "campaign verbs", campaign_table()),
        architecture: _between(architecture.read_text(), "files", file_list()),
        extending: with_code(extending.read_text()),
    }


def _row(setting: Setting) -> str:
    default = "needed" if setting.default is None else f"`{_cell(setting.default)}`"
    return f"| `{setting.name}` | `{_cell(setting.type)}` | {default} | {_cell(setting.description)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _first_sentence(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text()))
    if not doc:
        raise SystemExit(f"{path}: has no module docstring; its first sentence is its line in docs/architecture.md")
    return _first(doc)


def _first(doc: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(doc.split()), maxsplit=1)[0]


def _between(text: str, mark: str, content: str) -> str:
    """A text with what stands between two marks replaced."""
    start, end = f"<!-- {mark}: written by scripts/write_docs.py -->", f"<!-- end of {mark} -->"
    if start not in text or end not in text:
        raise SystemExit(f"the marks '{start}' and '{end}' are missing")
    return text[: text.index(start) + len(start)] + f"\n{content}\n" + text[text.index(end) :]


def main() -> int:
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)}: not as the code says; run make docs")
        else:
            path.write_text(pages()[path])
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
