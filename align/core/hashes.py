"""Hash contents: of files, of model and adapter folders, and of the code of functions.

No torch: a safetensors file is hashed from its own header.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from align.core.config import BadInput

VOLATILE = {"run.json", "config.yaml", "metrics.jsonl", "samples.jsonl"}
UNORDERED = {"target_modules", "modules_to_save", "exclude_modules"}
VOLATILE_FOLDERS = {"checkpoints", "tracker"}
HASH_VERSION = 2  # see artefact_hash
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


def code_hash(*sources: Callable[..., Any] | ModuleType) -> str:
    """Return the sha256 of the files of functions, classes or modules; one without a file counts by its name.

    The file of a function or class counts with the modules beside it that it imports, and those that they import.
    """
    digest = hashlib.sha256()
    for source in sources:
        source = source if inspect.ismodule(source) else inspect.unwrap(source)
        has_file = inspect.isroutine(source) or inspect.ismodule(source) or inspect.isclass(source)
        written = source if has_file else type(source)
        try:
            file = inspect.getsourcefile(written)
        except TypeError:  # built in
            file = None
        if file is None:
            digest.update(str(written.__name__).encode())
            continue
        files = {Path(file)} if inspect.ismodule(source) else _imported_beside(Path(file))
        for part in sorted(files):
            digest.update(file_hash(part).encode())
    return digest.hexdigest()


def _imported_beside(file: Path) -> set[Path]:
    """Return a module's file and those of its folder that it imports, directly or through each other."""
    files: set[Path] = set()
    waiting = [file]
    while waiting:
        one = waiting.pop()
        files.add(one)
        try:
            tree = ast.parse(one.read_bytes())
        except (SyntaxError, ValueError):  # never run, since it cannot be: it counts, and leads no further
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            beside = {file.parent / f"{name.rpartition('.')[2]}.py" for name in names}
            waiting += [path for path in beside - files if path.is_file()]
    return files


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def has_other_text(path: Path, sha256: str | None) -> bool:
    """Return whether a text file differs from a text of a known hash; False where there is no file or no hash."""
    if sha256 is None or not path.is_file():
        return False
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True
    return hashlib.sha256(text.encode()).hexdigest() != sha256


def artefact_hash(folder: Path, version: int = HASH_VERSION) -> str:
    """Return the hash of what a run or a model folder holds: tensors by name, JSON by content, other files by bytes.

    Of a run its ``adapter/``, ``model/`` and ``value/`` count, or every file where it has none of them. Of a model or
    an adapter folder every file counts, and of an adapter folder the base that it names as well. JSON is hashed in
    canonical form because PEFT writes sets in an order that depends on PYTHONHASHSEED.

    Args:
        version: the rule. 1 let ``adapter/``, ``model/`` and ``value/`` stand for a model folder too that holds one,
            and left an adapter's base out; it is kept so that what was recorded by it can be compared.

    Raises:
        BadInput: a safetensors file that is not whole.
    """
    is_loaded_whole = version > 1 and any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    parts = [folder / name for name in ("adapter", "model", "value") if (folder / name).is_dir()]
    digest = hashlib.sha256()
    for root in [folder] if is_loaded_whole or not parts else parts:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            relative = path.relative_to(folder)
            if relative.parts[0] in VOLATILE_FOLDERS or relative.name in VOLATILE:
                continue
            if any(part.startswith(".") for part in relative.parts) or path.suffix in (".tmp", ".md", ".html"):
                continue
            digest.update(f"{relative}\0{_content_hash(path)}\n".encode())
    if version > 1 and (base := base_of_adapter(folder)) is not None:
        digest.update(f"base\0{artefact_hash(base, version)}\n".encode())
    return digest.hexdigest()


def base_of_adapter(folder: Path) -> Path | None:
    """Return the folder of an adapter's base; None where it is no adapter folder or the base does not exist.

    An adapter folder has ``adapter_config.json``, a model folder ``config.json``.
    """
    file = folder / "adapter_config.json"
    if not file.is_file() or (folder / "config.json").is_file():
        return None
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError):
        return None
    return Path(name) if isinstance(name, str) and (Path(name) / "config.json").is_file() else None


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the header of a safetensors file: ``dtype``, ``shape`` and ``data_offsets`` by name.

    Raises:
        BadInput: the header is no header, or the file does not hold the bytes that it names.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise BadInput(
                f"{path}: not a whole safetensors file (its header would have {length:,} bytes, the file has "
                f"{size:,}); copy or make it again"
            )
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            places = [(entry["data_offsets"], entry["dtype"], entry["shape"]) for entry in tensors.values()]
            ends = [0, *(end for (begin, end), _, _ in places if 0 <= begin <= end)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            problem = f"{type(error).__name__}: {str(error)[:100]}"
            raise BadInput(
                f"{path}: its safetensors header cannot be read ({problem}); copy or make it again"
            ) from None
    if len(ends) != len(places) + 1 or max(ends) != size - 8 - length:
        raise BadInput(
            f"{path}: not a whole safetensors file (its header names {max(ends):,} bytes of tensors, "
            f"{size - 8 - length:,} are there); copy or make it again"
        )
    return tensors


def _content_hash(path: Path) -> str:
    if path.suffix == ".safetensors":
        return _tensor_hash(path)
    if path.suffix == ".json":
        try:
            value = _canonical(json.loads(path.read_text(encoding="utf-8")))
            text = json.dumps(value, sort_keys=True)
        except (ValueError, RecursionError):  # no JSON that can be read: the reader of the file reports it
            return file_hash(path)
        return hashlib.sha256(text.encode()).hexdigest()
    return file_hash(path)


def _canonical(value: Any, key: str = "") -> Any:
    """Sort the lists that PEFT writes of sets of module names; every other list keeps its order."""
    if isinstance(value, dict):
        return {name: _canonical(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return sorted(value, key=str) if key in UNORDERED and value else [_canonical(inner) for inner in value]
    return value


def _tensor_hash(path: Path) -> str:
    """Return the sha256 of (name, dtype, shape, bytes) sorted by name, whatever their order in the file.

    A file of 16 MiB and more is read once per process as long as its inode, size and times stay as they are: its
    hash is needed by every input that is built on it.
    """
    stat = path.stat()
    if stat.st_size < 1 << 24:
        return _read_tensor_hash(path)
    return _known_tensor_hash(path.resolve(), (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@functools.lru_cache(maxsize=1024)
def _known_tensor_hash(path: Path, stamp: tuple[int, ...]) -> str:
    return _read_tensor_hash(path)


def _read_tensor_hash(path: Path) -> str:
    header = safetensors_header(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name in sorted(header):
            begin, end = header[name]["data_offsets"]
            file.seek(start + begin)
            digest.update(f"{name}\0{header[name]['dtype']}\0{header[name]['shape']}\0".encode())
            for at in range(begin, end, 1 << 20):
                digest.update(file.read(min(1 << 20, end - at)))
    return digest.hexdigest()
