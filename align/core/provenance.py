"""Record what a run ran on: processor, packages, revision of the code, memory; torch only where it is loaded."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any


def reset_peak_memory() -> None:
    """Start a new peak: of the GPU's memory, or of resident memory (Linux; elsewhere that of the whole process)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float:
    """Return the peak in MB: of the GPU where one is used, else of resident memory (0 where unknown)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 1e6)
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def threads() -> int | None:
    """Return the number of threads of torch; None where it is not loaded."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else None


def packages(names: Iterable[str]) -> dict[str, str]:
    """Return installed versions by distribution name, without those that are missing."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def facts() -> dict[str, Any]:
    """Return processor, cores, Python and threads."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version(), "threads": threads()}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def code() -> dict[str, str]:
    """Return the revision of a git checkout and a hash of its uncommitted difference; nothing elsewhere."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        diff = subprocess.run(["git", "diff", "HEAD"], cwd=here, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if head.returncode:
        return {}
    return {"revision": head.stdout.strip(), "diff_sha256": hashlib.sha256(diff.stdout).hexdigest()[:16]}
