"""Read the items of suites: JSON lines, folders that hold ``<suite>.jsonl``, or the test prompts of a pairs run.

In: paths and suites. Out: items by the suites' schemas, each question once. A pairs run has no items of its own; a
suite says what it makes of a test prompt. Not here: what an item is (items).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align.core.config import BadInput
from align.core.files import read_jsonl
from align.core.plugins import calling, choose
from align.core.problems import explain
from align.evals.items import Item
from align.evals.suite import SUITES, Suite


def load_items(paths: Path | Sequence[Path], suites: Sequence[Suite]) -> list[Item]:
    """Read the items of ``suites``, in the order of suites and files; items of other suites are passed over.

    Raises:
        BadInput: a row is not an item, repeats an id or asks what another one asks (named by file and line), or a
            suite has no items; one of several paths holds none of these suites; a folder's ``<suite>.jsonl`` holds
            an item of another suite.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    items: list[Item] = []
    read: set[Path] = set()
    for suite in suites:
        own: dict[str, Item] = {}
        by_question: dict[tuple[str, ...], Item] = {}
        for path in files:
            for where, row in _rows(path, suite):
                item = _item(row, where, suites)
                if item.suite != suite.name and path.is_dir():
                    raise BadInput(
                        f"{where}: an item of suite {item.suite} in {suite.name}.jsonl; put it in its own file"
                    )
                if item.suite != suite.name:
                    continue
                read.add(path)
                if item.id in own:
                    raise BadInput(f"{where}: id '{item.id}' occurs twice in suite {suite.name}; ids must differ")
                other = by_question.setdefault(item.question, item)
                if other is not item and (item.cluster is None or item.cluster != other.cluster):
                    raise BadInput(
                        f"{where}: '{item.id}' asks the same as '{other.id}', and one question counts once; "
                        "remove one, or give both the same 'cluster'"
                    )
                own[item.id] = item
        if not own:
            raise BadInput(
                f"suite {suite.name}: no items in {', '.join(map(str, files))}; name a file with such rows or a run "
                f"with {suite.name}.jsonl"
            )
        items += own.values()
    if unread := next((path for path in files if path not in read), None):
        names = " or ".join(suite.name for suite in suites)
        raise BadInput(f"{unread}: no items of suite {names}; name a file that has some, or leave it out")
    return items


def _rows(path: Path, suite: Suite) -> list[tuple[str, dict[str, Any]]]:
    """Read rows with their places, from a file, a folder's ``<suite>.jsonl``, or a pairs run's test prompts."""
    if not path.is_dir():
        return [(f"{path}:{number}", row) for number, row in enumerate(read_jsonl(path), 1)]
    file, pairs = path / f"{suite.name}.jsonl", path / "test.jsonl"
    if file.is_file():
        return [(f"{file}:{number}", row) for number, row in enumerate(read_jsonl(file), 1)]
    if not pairs.is_file():
        return []
    prompts = {row["prompt_id"]: row for row in read_jsonl(pairs)}
    distinct: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, pair in reversed(prompts.items()):
        if (row := suite.call(dict | None, suite.row_of_pair, name, pair)) is not None:
            distinct[json.dumps(row | {"id": ""}, sort_keys=True)] = (name, row)
    return [(f"{pairs}: prompt {name}", row) for name, row in reversed(distinct.values())]


def _item(row: dict[str, Any], where: str, suites: Sequence[Suite]) -> Item:
    """Read a row by the schema of its suite, one of ``suites`` or a shipped one."""
    schemas = {suite.name: suite.item for suite in suites}
    name = row.get("suite")
    if isinstance(name, str) and name not in schemas and name in SUITES.shipped:
        schemas[name] = choose(SUITES, Suite, name).item
    if name not in schemas:
        known = ", ".join(dict.fromkeys((*schemas, *SUITES.shipped)))
        raise BadInput(f"{where}: suite: '{name}' is no suite that is evaluated or shipped; write one of {known}")
    with calling(f"{where}: suite {name}", schemas[name]):
        try:
            return schemas[name].model_validate(row)
        except ValidationError as error:
            raise BadInput(explain(schemas[name], error, where, row)) from None
