"""The record of a run, ``run.json``: what was configured, read, used and measured.

In: a run folder. Out: its record, checked against its own checksum. No torch: reports read records without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from align.core.config import BadInput


class RunRecord(BaseModel):
    """What ``run.json`` holds. Paths are as given; hashes are sha256 in hex.

    ``template`` is what the conversations of the run were rendered with: ``Chat.fingerprint``. ``dropped`` counts rows
    that could not be used, ``remarks`` texts that were used, though not as they are written, by reason.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    stage: str
    status: Literal["running", "finished", "failed", "interrupted"]
    path: str
    seed: int
    given: dict[str, Any]
    resolved: dict[str, Any]
    template: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, dict[str, str]] = Field(default_factory=dict)
    parents: dict[str, dict[str, str]] = Field(default_factory=dict)
    lineage: dict[str, str] = Field(default_factory=dict)
    artefact: str | None = None
    hash_version: int = 1  # the rule of the hashes above (align.core.hashes.artefact_hash); records without it are of 1
    headline: dict[str, Any] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(default_factory=dict)
    remarks: dict[str, int] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    error: str | None = None
    created: str = ""
    seconds: float | None = None
    peak_memory_mb: float | None = None
    code: dict[str, str] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    checksum: str | None = None

    def sealed(self) -> str:
        """Return the record as JSON with the sha256 of everything else in it, which reveals an edit by hand.

        It is no signature: who edits can compute it anew. Records of earlier versions have none.
        """
        self.checksum = _checksum(json.loads(self.model_dump_json()))
        return self.model_dump_json(indent=1) + "\n"


def read_run(path: Path) -> RunRecord:
    """Read ``run.json`` of a run folder.

    Raises:
        BadInput: no such folder, or its record cannot be read or was edited.
    """
    file = path / "run.json"
    try:
        text = file.read_text(encoding="utf-8")
        record = RunRecord.model_validate_json(text)
    except FileNotFoundError:
        raise BadInput(f"{path}: not a run folder (no run.json); name the folder a stage wrote") from None
    except ValueError as error:
        raise BadInput(
            f"{file}: not a readable run record ({str(error).splitlines()[0]}); put a copy back, or remove the folder "
            "and run its stage again"
        ) from error
    if record.checksum is not None and record.checksum != _checksum(json.loads(text)):
        raise BadInput(f"{file}: edited after the run wrote it (its checksum does not fit); run `{record.stage}` again")
    record.path = str(path)
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the sha256 of a record's JSON without the checksum itself."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def finished_run(path: Path, stages: Iterable[str] = ()) -> RunRecord:
    """Read a run that must be finished and, where ``stages`` is given, of one of these stages."""
    record = read_run(path)
    if record.status != "finished":
        raise BadInput(f"{path}: this {record.stage} run is '{record.status}', not finished; run its stage again")
    wanted = tuple(stages)
    if wanted and record.stage not in wanted:
        raise BadInput(f"{path}: expected a run of {' or '.join(wanted)}, found '{record.stage}'")
    return record


def is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def is_ours(path: Path) -> bool:
    """Return whether a folder's ``run.json`` is a run record, complete or damaged, and not another program's."""
    try:
        return {"stage", "status"} <= set(json.loads((path / "run.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return True  # unreadable: read_run reports what is wrong
