"""Find and hash the inputs of a stage, and compare a configured run with a run that exists.

In: a stage's config, and the record of a run. Out: paths and hashes by input, or the first difference in words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

from align.core import provenance
from align.core.config import BadInput, StageConfig
from align.core.hashes import HASH_VERSION, artefact_hash, base_of_adapter, code_hash, file_hash, has_other_text
from align.core.plugins import Part, load, parts_of
from align.core.run_record import RunRecord, finished_run, is_run, read_run


def input_hash(path: Path, version: int = HASH_VERSION) -> str:
    """Hash an input: a run's artefact, a folder's artefact hash (by the rule ``version``), or a file's bytes.

    Raises:
        BadInput: nothing is there, or a finished run's files, or those of the base under them, are not what they were.
    """
    if is_run(path):
        record = finished_run(path)
        digest = artefact_hash(path, record.hash_version)
        if record.artefact is not None and record.artefact != digest:
            raise BadInput(f"{path}: its files are not those the run left (changed since); run its stage again")
        _refuse_changed_base(path, record)
        return digest
    if path.is_dir():
        return artefact_hash(path, version)
    if path.is_file():
        return file_hash(path)
    raise BadInput(f"{path}: no such file or folder; name one on this machine (nothing is fetched from a hub)")


def code_hashes(config: StageConfig) -> dict[str, str]:
    """Return hashes of inputs that are not files of data, and of the code of parts from outside the package."""
    hashes = {name: code_hash(*part.code()) for name, part in parts_of(config) if part.code()}
    attention = getattr(getattr(config, "compute", None), "attention", None)
    kind = attention.get("kind") if isinstance(attention, dict) else attention
    if isinstance(kind, str) and ":" in kind:  # align.model chooses it, which is a layer above
        hashes["compute.attention"] = code_hash(load(kind))
    return hashes | config.input_hashes()


def _refuse_changed_base(path: Path, record: RunRecord) -> None:
    """Compare the base of a run's adapter with the record: the hash of the run covers its adapter alone."""
    base, known = base_of_adapter(path / "adapter"), record.lineage.get("base")
    if base is None or known is None:
        return
    if artefact_hash(base, record.hash_version) != known:
        raise BadInput(
            f"{path}: its base {base} has other content than when this run was trained; put the base back, "
            f"or train again from it"
        )


def input_paths(config: StageConfig | Part, names: Iterable[str] | None = None) -> dict[str, Path]:
    """Yield the inputs of a config by name (all, or those named); a list field yields name[0], name[1], ...

    A part that reads paths of its own adds name.field.
    """
    paths: dict[str, Path] = {}
    for name in config.INPUTS if names is None else names:
        value = getattr(config, name)
        if isinstance(value, list | tuple):
            paths |= {f"{name}[{index}]": Path(path) for index, path in enumerate(value)}
        elif value is not None:
            paths[name] = Path(value)
    for name, part in parts_of(config):
        paths |= {f"{name}.{field}": path for field, path in input_paths(part, part.INPUTS).items()}
    return paths


def input_hashes(config: StageConfig, version: int = HASH_VERSION) -> dict[str, str]:
    """Return the content hash of every input by name."""
    return {name: input_hash(path, version) for name, path in input_paths(config).items()} | code_hashes(config)


def resolved(config: StageConfig) -> dict[str, Any]:
    """Return a config as plain JSON values, without the folder that it is written to."""
    data = json.loads(config.model_dump_json())
    data.pop("run")
    return data


def settings(config: StageConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved config that is not a path: inputs count by their content."""
    return {key: value for key, value in values.items() if key not in config.INPUTS and key != "feedback"}


def differing_key(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str | None:
    """Return the first dotted key at which two resolved configs differ, or None."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if inner := differing_key(before, after, f"{prefix}{key}."):
                return inner
        elif before != after:
            return f"{prefix}{key}"
    return None


def difference(record: RunRecord, config: StageConfig) -> str | None:
    """Return in words why ``config`` is another run than ``record``, or None."""
    before = settings(config, config.renamed(record.resolved))
    if key := differing_key(before, settings(config, resolved(config))):
        return f"key '{key}' differs from the run in that folder"
    hashes = input_hashes(config, record.hash_version)
    template = getattr(config, "chat_template", None)
    if template and has_other_text(Path(template), record.template.get("template_sha256")):
        return f"chat template '{template}' has other content than what the run in that folder read"
    own = {name for name in record.inputs if name.partition("[")[0] in config.INPUTS}
    recorded = {*config.INPUTS, *record.inputs}  # earlier versions kept no hash of a function's code
    for name in sorted(own | {name for name in hashes if not recorded.isdisjoint((name, name.partition("[")[0]))}):
        if record.inputs.get(name, {}).get("sha256") != hashes.get(name):
            return f"input '{name}' has other content than what the run in that folder read"
    return None


PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate", "evaluate")


def new_record(config: StageConfig) -> RunRecord:
    """Return the record that a run of this config begins with: inputs, their hashes, and the inherited lineage."""
    inputs: dict[str, dict[str, str]] = {}
    parents: dict[str, dict[str, str]] = {}
    lineage: dict[str, str] = {}
    rewards: set[str] = set()  # of several parents' rewards none may be forgotten
    for name, path in input_paths(config).items():
        inputs[name] = {"path": str(path), "sha256": input_hash(path)}
        if is_run(path):
            parent = read_run(path)
            parents[name] = {
                "path": str(path),
                "id": parent.id,
                "stage": parent.stage,
                "artefact": parent.artefact or "",
            }
            rewards |= set(parent.lineage.get("rewards", "").split())
            lineage |= parent.lineage
    lineage |= {"rewards": " ".join(sorted(rewards))} if rewards else {}
    for name, digest in code_hashes(config).items():
        inputs[name] = {"path": str(attrgetter(name.partition("[")[0])(config)), "sha256": digest}
    values = resolved(config)
    identity = json.dumps([settings(config, values), {n: i["sha256"] for n, i in inputs.items()}], sort_keys=True)
    return RunRecord(
        id=f"{config.stage}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}",
        stage=config.stage,
        status="running",
        path=str(config.run),
        seed=config.seed,
        given=json.loads(config.model_dump_json(exclude_unset=True)),
        resolved=values,
        inputs=inputs,
        parents=parents,
        lineage=lineage,
        hash_version=HASH_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        code=provenance.code(),
        packages=provenance.packages(PACKAGES),
        machine=provenance.facts(),
    )
