"""Make a function a stage: open the run, record how it ended, and hash what it wrote."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from align.core import provenance
from align.core.config import BadInput, StageConfig
from align.core.files import lock
from align.core.hashes import artefact_hash
from align.core.run_record import RunRecord
from align.core.runs import Run, check_folder, open_run

Parameters = ParamSpec("Parameters")
ConfigT = TypeVar("ConfigT", bound=StageConfig)


def stage(
    body: Callable[Concatenate[ConfigT, Run, Parameters], dict[str, Any]],
) -> Callable[Concatenate[ConfigT, Parameters], RunRecord]:
    """Turn ``body(config, run, ...) -> headline`` into the stage's public function, which returns its record.

    The wrapper opens the run (or resumes an unfinished one of the same config and inputs, or returns a
    finished one untouched), records how it ended, and hashes what it left.

    Raises:
        BadInput: the folder holds a run of another config or other inputs, or something else than a run; or an input
            is missing; or several processes were started for a stage that does not divide its work.
    """

    @functools.wraps(body)
    def run_stage(config: ConfigT, *args: Parameters.args, **kwargs: Parameters.kwargs) -> RunRecord:
        if (processes := os.environ.get("WORLD_SIZE", "1")) != "1" and not config.SHARES_WORK:
            raise BadInput(
                f"stage '{config.stage}' works in one process, and {processes} were started (WORLD_SIZE); start it "
                "without torchrun or accelerate launch (reward, dpo and ppo divide their work)"
            )
        check_folder(config)
        with lock(config.run.parent):
            record, finished = open_run(config)
            if finished:
                return record
            provenance.reset_peak_memory()
            run = Run(record)
            try:
                record.headline = body(config, run, *args, **kwargs)
            except BaseException as error:
                record.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                record.error = f"{type(error).__name__}: {error}".splitlines()[0]
                run.save()
                raise
            record.status = "finished"
            record.error = None
            record.machine["threads"] = provenance.threads()
            if run.is_main:
                record.artefact = artefact_hash(run.path, record.hash_version)
                record.lineage[record.stage] = record.artefact
                shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
            run.say_counts()
            run.save()
            return record

    return run_stage
