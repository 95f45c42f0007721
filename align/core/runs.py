"""Open and write run folders, which are the only thing that stages share.

A run is a folder with ``run.json`` (its record), ``config.yaml`` (resolved), ``metrics.jsonl``, ``samples.jsonl``, its
artefact (``adapter/``, ``model/`` or data files) and, while it trains, ``checkpoints/``. ``run.json`` is written at the
start with ``status: running``, so that a crash shows. A finished run is never written again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from align.core import provenance
from align.core.config import BadInput, StageConfig
from align.core.files import write_text
from align.core.hashes import HASH_VERSION
from align.core.inputs import (
    difference,
    input_hashes,
    input_paths,
    new_record,
)
from align.core.messages import scrubbed
from align.core.run_record import RunRecord, is_ours, is_run, read_run

LEFT_BEHIND = {"run.json.tmp", ".lock"}  # all that a run killed at its very start, or a runs folder, leaves
SAID = 5  # reasons that are written out on the terminal


class Renderer(Protocol):
    """What conversations are rendered with (``align.model.chat.Chat``)."""

    remark: Callable[[str], None]

    def fingerprint(self) -> dict[str, Any]: ...


class Run:
    """An open run: its folder, its record, and the ways to write into it (main process only)."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.path = Path(record.path)
        self.is_main = int(os.environ.get("RANK", "0")) == 0
        self._since = time.monotonic()

    def note(self, text: str) -> None:
        """Record a fact, and print it once; what parts from elsewhere give is written as text that can be stored."""
        text = scrubbed(str(text), [0])
        if text not in self.record.notes:
            self.record.notes.append(text)
            if self.is_main:
                print(f"[{self.record.stage}] {text}", file=sys.stderr)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count rows that could not be used."""
        if count:
            self.record.dropped[reason] = self.record.dropped.get(reason, 0) + count

    def remark(self, reason: str) -> None:
        """Count a text that is used without some of its content."""
        self.record.remarks[reason] = self.record.remarks.get(reason, 0) + 1

    def say_counts(self) -> None:
        """Print how many rows were left out and how many texts have remarks, the most frequent first."""
        for what, counts in (("left out", self.record.dropped), ("remarked on", self.record.remarks)):
            commonest = Counter(counts).most_common(SAID)
            lines = [f"{count} x {reason}" for reason, count in commonest]
            if others := len(counts) - len(commonest):
                lines.append(f"{others} more reasons, see run.json")
            if lines and self.is_main:
                print(f"[{self.record.stage}] {what}: {'; '.join(lines)}", file=sys.stderr)

    def renders_with(self, chat: Renderer) -> None:
        """Record what renders conversations (BadInput: it changed since the run began); count what it leaves out."""
        fingerprint = chat.fingerprint()
        if self.record.template.get("template_sha256") not in (None, fingerprint["template_sha256"]):
            raise BadInput(
                f"{self.path}: its chat template changed since it began; put that back, or choose another run="
            )
        self.record.template = fingerprint
        chat.remark = self.remark

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to a JSON-lines file of the run."""
        if self.is_main:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def save(self) -> None:
        """Update the record's seconds and memory, and write it."""
        now = time.monotonic()
        self.record.seconds = round((self.record.seconds or 0.0) + now - self._since, 2)
        self.record.peak_memory_mb = max(self.record.peak_memory_mb or 0.0, provenance.peak_memory_mb())
        self._since = now
        if self.is_main:
            write_text(self.path / "run.json", self.record.sealed())


def check_folder(config: StageConfig) -> None:
    """Refuse a folder that holds anything but a run; nothing in it is changed, not even by a lock.

    Raises:
        BadInput: the folder is a file, holds something and no run of ours, lies in a run, or is, holds or lies in an
            input.
    """
    folder = config.run.resolve()
    if config.run.is_symlink() and not folder.exists():
        raise BadInput(f"{config.run}: is a link to {folder}, which is not there; make that folder or mend the link")
    given = [name for name in config.INPUTS if name in type(config).model_fields]  # others are yet to be looked for
    for name, path in input_paths(config, given).items():
        place = path.resolve()
        if folder == place or place in folder.parents:
            raise BadInput(f"{config.run}: lies in the input '{name}' ({path}); choose another run= folder")
        if folder in place.parents:
            raise BadInput(f"{config.run}: holds the input '{name}' ({path}); choose another run= folder")
    if is_run(folder.parent) and is_ours(folder.parent):
        raise BadInput(f"{config.run}: lies in the run {config.run.parent}; choose a run= folder outside of it")
    if is_run(folder):
        if not is_ours(folder):
            raise BadInput(f"{config.run}: its run.json is another program's; choose another run= folder")
    elif folder.is_dir() and (strange := {path.name for path in folder.iterdir()} - LEFT_BEHIND):
        raise BadInput(f"{config.run}: holds {min(strange)} and no run; choose a new or an empty run= folder")
    elif folder.exists() and not folder.is_dir():
        raise BadInput(f"{config.run}: is a file; choose another run= folder")


def open_run(config: StageConfig) -> tuple[RunRecord, bool]:
    """Return the record of the run, and whether it is finished already."""
    if is_run(config.run):
        record = read_run(config.run)
        if record.status == "running" and record.stage == config.stage:
            record.status = "interrupted"
        reason = difference(record, config)
        is_bare = {path.name for path in config.run.iterdir()} <= {"run.json", "config.yaml", *LEFT_BEHIND}
        if reason and is_bare and record.stage == config.stage and record.status != "finished":
            return _started(config), False
        if reason:
            raise BadInput(f"{config.run}: {reason}; choose another run= folder or remove this one")
        if record.status == "finished":
            print(f"[{config.stage}] {config.run} is finished; {config.why_nothing(record.inputs)}", file=sys.stderr)
            return record, True
        _renew_hashes(record, config)
        record.status = "running"
        record.dropped, record.remarks = {}, {}  # the stage reads its rows again, and counts them again
        Run(record).save()
        return record, False
    return _started(config), False


def _started(config: StageConfig) -> RunRecord:
    """Write and return the record of a run that begins, with its config."""
    record = new_record(config)
    run = Run(record)
    run.save()
    if run.is_main:
        write_text(config.run / "config.yaml", yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False))
    return record


def _renew_hashes(record: RunRecord, config: StageConfig) -> None:
    """Record the hashes of a resumed run by today's rule; by its own rule its inputs are unchanged."""
    if record.hash_version != HASH_VERSION:
        record.hash_version = HASH_VERSION
        for name, digest in input_hashes(config).items():
            record.inputs[name]["sha256"] = digest
