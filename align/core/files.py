"""Read and write files, none of which is ever half-written, and lock a runs folder.

Everything that a run leaves is written aside and renamed. Not here: hashes (``hashes.py``).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from align.core.config import BadInput
from align.core.limits import TooLong, bounded_lines, parse_json
from align.core.problems import explain

SchemaT = TypeVar("SchemaT", bound=BaseModel)


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that nobody reads it half-written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    aside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise BadInput(f"{path}: cannot be written ({error.strerror}); nothing was changed") from error


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, by name; none where it does not exist.

    Raises:
        BadInput: it cannot be listed, so that what lies in it would be passed over.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unlisted(error) from None


def files_under(folder: Path) -> list[Path]:
    """Return every file under a folder, by path, those behind links to folders once; none where it does not exist.

    Raises:
        BadInput: a folder under it cannot be listed, so that what lies in it would be passed over.
    """
    paths, known = list[Path](), set[str]()

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise _unlisted(error) from None

    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (place := os.path.realpath(root)) in known:
            folders.clear()
            continue
        known.add(place)
        paths += [path for path in (Path(root, name) for name in names) if path.is_file()]
    return sorted(paths)


def _unlisted(error: OSError) -> BadInput:
    return BadInput(f"{error.filename}: cannot be listed ({error.strerror}); make it readable, or name another folder")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines, up to the limits of ``limits.py``.

    Raises:
        BadInput: no such file, one that is too long or not UTF-8, or a line that is not a JSON object: names the first.
    """
    try:
        with open(path, encoding="utf-8") as file:
            rows = [_json_object(line, f"{path}:{n}") for n, line in enumerate(bounded_lines(file), 1) if line.strip()]
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except TooLong as error:
        raise BadInput(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error})") from error
    return rows


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line, keys_once=True)
    except ValueError as error:
        raise BadInput(f"{where}: not JSON that can be read ({str(error)[:200]})") from None
    if not isinstance(row, dict):
        raise BadInput(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def read_rows(path: Path, schema: type[SchemaT], what: str) -> list[SchemaT]:
    """Read JSON lines of one schema; BadInput names the first line that is not ``what``."""
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            rows.append(schema.model_validate(row))
        except ValidationError as error:
            raise BadInput(explain(schema, error, f"{path}:{number}: not {what}", row)) from None
    return rows


class Cut(NamedTuple):
    """A journal after :func:`cut_jsonl`: the steps of the rows it kept, and the lines that could not be read."""

    steps: list[int]
    unreadable: list[str]


def cut_jsonl(path: Path, last_step: int) -> Cut:
    """Keep the rows up to ``last_step``: remove those that a resumed run writes again, and those that cannot be read.

    ``unreadable`` holds ``line 7 (not JSON)`` for each line that is no JSON object with a whole number as its step.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Cut([], [])
    kept, steps, unreadable = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        step = _step_of(line)
        if isinstance(step, str):
            unreadable.append(f"line {number} ({step})")
        elif step <= last_step:
            kept.append(line + b"\n")
            steps.append(step)
    write_bytes(path, b"".join(kept))
    return Cut(steps, unreadable)


def _step_of(line: bytes) -> int | str:
    """Return the step of a journal's row, or what is wrong with the row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else "no step"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the one lock of a runs folder; re-entrant within a process, refused to a second process."""
    key = folder.resolve()
    if key in _HELD or int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # a feedback store, with people's words, may lie there
        file = open(folder / ".lock", "a+")  # noqa: SIM115 (held until the block ends)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); choose another runs folder") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BadInput(f"{folder}: another process is working in this runs folder; wait or use another") from None
    _HELD.add(key)
    try:
        yield
    finally:
        _HELD.discard(key)
        file.close()


_HELD: set[Path] = set()
