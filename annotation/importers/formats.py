"""Preference files as rows: JSON lines, JSON, CSV and Parquet (plain or gzip), and the HH text format.

In: a file, of at most 4 GiB unpacked (JSON: 1 GiB), with rows of at most 64 MiB that are nested at most 100 levels
deep. Out: (row number, plain Python dict) one at a time, and for HH text a list of messages. Text that no
database or tokenizer can hold (NUL, lone surrogates) is replaced and counted. Not here: what a row means.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal, cast

from align.core.config import BadInput
from align.core.limits import MOST_ROW, MOST_ROWS, TooLong, bounded_bytes, bounded_lines, parse_json, shown_size
from align.core.messages import scrubbed
from align.core.records import Message

Format = Literal["auto", "trl", "csv", "parquet", "hh", "votes", "label-studio"]
Container = Literal["jsonl", "json", "csv", "tsv", "parquet"]
HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
PARQUET_BATCH = 1024  # rows that are unpacked at once: a few bytes can spell many long ones
SEPARATOR = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # a line that Excel reads before the header
AROUND = {"columns", "data", "index", "schema"}  # what pandas writes around a table's rows
GZIP = b"\x1f\x8b"  # how it begins


def container_of(path: Path, named: Format) -> Container:
    """Return the container of a preference file: as named, else by its ending."""
    if named in ("csv", "parquet"):
        return cast(Container, named)
    endings = [ending.lstrip(".").lower() for ending in path.suffixes if ending.lower() != ".gz"]
    ending = {"ndjson": "jsonl"}.get(endings[-1], endings[-1]) if endings else ""
    if ending in ("jsonl", "json", "csv", "tsv", "parquet"):
        return cast(Container, ending)
    if named in ("trl", "hh"):
        return "jsonl"
    if named == "label-studio":
        return "json"
    if named == "votes":
        raise BadInput(
            f"{path}: cannot tell the file format from its name; rename it to end in .csv, .tsv, .jsonl or .parquet"
        )
    raise BadInput(
        f"{path}: cannot tell the file format from its name; set format: trl, csv, parquet, hh, votes or label-studio"
    )


def read_rows(path: Path, container: Container) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, row). JSON lines are numbered by line.

    Raises:
        BadInput: the file cannot be read or is too long, or a row is not JSON or CSV at all; names the row.
    """
    readers = {"jsonl": _json_lines, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet}
    try:
        yield from readers[container](path)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except TooLong as error:
        raise BadInput(f"{path}: {error}") from None
    except RecursionError:
        raise BadInput(f"{path}: holds a row that is nested too deeply to be read; mend or remove it") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read ({_line(error)}); copy or pack it anew") from error


def cleaned(
    path: Path, container: Container, replaced: list[int], limit: int | None = None, *, whole: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows by number (from 1) as text that can be stored; adds the characters replaced to ``replaced[0]``.

    What is null or no number (NaN) is left out, and so are empty cells of CSV, unless ``whole``.

    Raises:
        BadInput: the file cannot be read, or a row is not JSON or CSV at all.
    """
    for number, raw in islice(read_rows(path, container), limit):
        try:
            row = scrubbed(raw, replaced)
        except RecursionError:
            raise BadInput(f"{path}: row {number} is nested too deeply to be read; mend or remove it") from None
        is_csv = container in ("csv", "tsv")
        kept = {key: value for key, value in row.items() if not (is_missing(value) or (is_csv and value == ""))}
        yield number, row if whole else kept


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing: null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_hh(text: str) -> list[Message] | None:
    """Return the turns of ``\\n\\nHuman: ...\\n\\nAssistant: ...`` as messages; None where no turn begins the text.

    Turns keep their text without the spaces around it, empty ones included.
    """
    marks = list(HH_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {"role": HH_ROLES[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def without_none(value: Any) -> Any:
    """Return a copy without None-valued keys: Parquet fills the fields of a struct that other rows have."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_none(item) for item in value]
    return value


def _line(error: Exception) -> str:
    """Return an error's words in one line, cut."""
    return " ".join(str(error).split())[:200]


def _open(path: Path) -> IO[bytes]:
    """Return a file's bytes, unpacked where its first bytes are those of gzip."""
    with open(path, "rb") as file:
        is_packed = file.read(len(GZIP)) == GZIP
    return cast(IO[bytes], gzip.open(path, "rb")) if is_packed else open(path, "rb")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open(path) as file:
        for number, line in enumerate(bounded_lines(file), 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"), keys_once=True)
            except UnicodeDecodeError as error:
                raise BadInput(f"{path}:{number}: not UTF-8 text ({error.reason}); convert it first") from None
            except ValueError as error:
                raise BadInput(f"{path}:{number}: not JSON ({str(error)[:200]}); mend or remove it") from None
            yield number, _as_object(row, path, number)


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of one JSON list; a file that begins with an object is read as JSON lines."""
    with _open(path) as file:
        text = bounded_bytes(file).decode("utf-8-sig").strip()
    if not text.startswith("["):
        _refuse_one_object(path, text)
        yield from _json_lines(path)
        return
    try:
        rows = parse_json(text, keys_once=True)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: not JSON ({error.msg}); mend it") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON that can be read ({str(error)[:200]}); mend it") from None
    for number, row in enumerate(rows, 1):
        yield number, _as_object(row, path, number)


def _refuse_one_object(path: Path, text: str) -> None:
    """Refuse an object over several lines, which most likely contains the list of rows, and an object of columns."""
    is_one_line = text.partition("\n")[0].rstrip().endswith("}")
    if not text.startswith("{") or (is_one_line and "\n" in text):
        return
    try:
        content = parse_json(text)
    except ValueError:
        return
    if _holds_columns(content):
        raise BadInput(f"{path}: holds columns, not rows; write it row by row (pandas: orient='records', lines=True)")
    inside = [f"'{key}'" for key, value in content.items() if isinstance(value, list)]
    hint = f"; is it the list in {' or '.join(inside)}?" if inside else ""
    if not is_one_line or (inside and (len(content) == 1 or content.keys() <= AROUND)):
        raise BadInput(f"{path}: expected a list of rows, found one JSON object{hint}")


def _holds_columns(content: dict[str, Any]) -> bool:
    """Return whether an object holds a table by columns: lists of as many texts, or objects by the rows' numbers."""
    columns = list(content.values())
    if all(isinstance(column, dict) for column in columns):
        return all(column and all(key.isdecimal() for key in column) for column in columns)
    texts = [isinstance(column, list) and all(isinstance(cell, str) for cell in column) for column in columns]
    return len(columns) > 1 and all(texts) and len({len(column) for column in columns}) == 1


def _as_object(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
    return row


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MOST_ROW)
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as file:
        lines = bounded_lines(file)
        first = next(lines, "")
        separator = SEPARATOR.fullmatch(first)
        first = next(lines, "") if separator else first
        usual = next((mark for mark in ",;\t|" if mark in first), ",")  # some countries' spreadsheets write semicolons
        delimiter = "\t" if ".tsv" in path.suffixes else separator[1] if separator else usual
        reader = csv.DictReader(chain([first], lines), delimiter=delimiter, strict=True)
        number = 0
        try:
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            if twice := [name for name in names if name and names.count(name) > 1]:
                raise BadInput(f"{path}: column '{twice[0]}' stands twice in its header; rename one")
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    wrong = "more" if None in row else "fewer"
                    raise BadInput(f"{path}: row {number} has {wrong} fields than the header; mend its quotes")
                if len(names) > 1 and [cell.strip() for cell in row.values()] == names:
                    raise BadInput(f"{path}: row {number} is the header once more (of a second file?); remove it")
                yield number, row
        except csv.Error as error:
            raise BadInput(f"{path}: row {number + 1} is not CSV ({error}); mend its quotes") from None


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    if not path.is_file():
        raise FileNotFoundError
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise BadInput(f"{path}: column '{twice[0]}' stands twice; rename one")
            number = total = 0
            for batch in file.iter_batches(PARQUET_BATCH):
                total += batch.nbytes
                if total > MOST_ROWS:
                    raise TooLong(
                        f"holds more than {shown_size(MOST_ROWS)} (unpacked), the most that is read; split it"
                    )
                for row in batch.to_pylist():
                    number += 1
                    yield number, without_none(row)
    except TooLong:
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # a date, or text, that Python cannot hold
        raise BadInput(f"{path}: not a readable Parquet file ({_line(error)})") from error
