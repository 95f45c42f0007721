"""Break one line at a time, forty per module, and see whether the module's own tests notice.

    python benchmarks/mutation.py                     all modules, about an hour on two cores; writes MUTATION.md
    python benchmarks/mutation.py align/core/text.py  one of them; writes its part of MUTATION.md anew

Mutants come from cosmic-ray (the extra `mutation`), drawn by seed from all that it can make of a module, without those
of type annotations, which change nothing that runs. Each is written into a copy of the repository, and the tests run
in a process forked from one that holds the libraries already. A mutant is killed when its tests fail or take far
longer than they do on the unchanged module. Survivors are listed; one that `survivors.yaml` explains by its line is
printed with that reason, and any other makes the exit code 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.plugins
import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from evidence import Page, read_cpu

from align.core.files import write_text
from align.core.provenance import code

ROOT = Path(__file__).resolve().parent.parent
EXPLAINED = Path(__file__).with_name("survivors.yaml")
SAMPLE, SEED, JOBS = 40, 0, 2
OWN_TESTS = {
    "align/losses/kl.py": ["test_equations", "test_padding"],
    "align/losses/pairwise.py": ["test_equations", "test_padding", "test_loss"],
    "align/losses/policy_gradient.py": ["test_equations", "test_padding"],
    "align/losses/value.py": ["test_equations", "test_padding"],
    "align/model/packing.py": ["test_packing", "test_pair_trees", "test_turns"],
    "align/model/layouts.py": ["test_layout", "test_guards", "test_packing"],
    "align/core/stats/differences.py": ["test_stats", "test_bounds", "test_intervals", "test_compare"],
    "align/core/stats/bounds.py": ["test_bounds", "test_stats"],
    "align/audit/gates.py": ["test_gates", "test_pairing"],
    "align/audit/evaluations.py": ["test_evaluations", "test_pairing", "test_audit_lineage"],
    "align/model/chat.py": ["test_text", "test_omissions", "test_tokens", "test_turns", "test_template_arguments"],
    "align/data/pairs.py": ["test_reward_data", "test_pair_trees", "test_tokens"],
    "annotation/store/chain.py": ["test_chain", "test_store", "test_store_faults"],
    "annotation/campaign/pull.py": ["test_bridge", "test_following", "test_erasure"],
}
PRELOADED = ("torch", "transformers", "peft", "trl", "datasets", "scipy.stats", "statsmodels.api", "pydantic", "pytest")


class Mutant(NamedTuple):
    """One change of one line."""

    module: str
    line: int
    before: str
    after: str
    source: str


class Outcome(NamedTuple):
    """What the tests made of a mutant."""

    mutant: Mutant
    is_killed: bool


def mutants(module: str) -> list[Mutant]:
    """A seeded sample of what cosmic-ray can make of a module, without changes of annotations and of nothing."""
    source = (ROOT / module).read_text(encoding="utf-8")
    before = source.split("\n")
    places = _annotations(source)
    tree = get_ast(source)
    possible = [
        (name, occurrence)
        for name in sorted(cosmic_ray.plugins.operator_names())
        if not (operator := cosmic_ray.plugins.get_operator(name)).arguments()
        for occurrence, start in enumerate(_positions(tree, operator()))
        if not any(begin <= start < end for begin, end in places)
    ]
    random.Random(f"{SEED} {module}").shuffle(possible)
    chosen: list[Mutant] = []
    for name, occurrence in possible:
        changed = mutate_code(source, cosmic_ray.plugins.get_operator(name)(), occurrence)
        if changed is None or changed == source:
            continue
        after = changed.split("\n")
        number = next(i for i, line in enumerate(after) if i >= len(before) or line != before[i])
        chosen.append(Mutant(module, number + 1, before[number].strip(), after[number].strip(), changed))
        if len(chosen) == SAMPLE:
            break
    return sorted(chosen, key=lambda mutant: mutant.line)


def _positions(tree: object, operator: object) -> Iterator[tuple[int, int]]:
    for node in ast_nodes(tree):
        for start, _ in operator.mutation_positions(node):
            yield start


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where type annotations begin and end, (line, column) each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            inner = getattr(node, field, None)
            if isinstance(inner, ast.expr):
                found.append(((inner.lineno, inner.col_offset), (inner.end_lineno, inner.end_col_offset)))
    return found


def judge(module: str, work: Path) -> list[Outcome]:
    """Run a module's own tests on each of its mutants, in JOBS copies of the repository at once.

    Raises:
        SystemExit: the tests fail on the unchanged module, or pass where it raises on import: they could say nothing.
    """
    tests = [str(next((ROOT / "tests").rglob(f"{name}.py")).relative_to(ROOT)) for name in OWN_TESTS[module]]
    sample = mutants(module)
    workers = []
    for job in range(JOBS):
        report = work / f"{module.replace('/', '-')}-{job}.json"
        report.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _work(module, tests, sample[job::JOBS], work / f"copy-{job}", report)
        workers.append((pid, report))
    killed: dict[int, bool] = {}
    for job, (pid, report) in enumerate(workers):
        os.waitpid(pid, 0)
        if not report.exists():
            raise SystemExit(
                f"{module}: its own tests fail without a mutant, or pass without the module: {' '.join(tests)}"
            )
        killed |= dict(zip(range(job, len(sample), JOBS), json.loads(report.read_text()), strict=True))
    return [Outcome(mutant, killed[index]) for index, mutant in enumerate(sample)]


def _work(module: str, tests: Sequence[str], sample: Sequence[Mutant], copy: Path, report: Path) -> None:
    """One worker: its verdicts go into a file, and it never returns."""
    target = copy / module
    since = time.monotonic()
    if not _passes(copy, tests, None):
        os._exit(1)
    limit = 30 + 10 * (time.monotonic() - since)
    target.write_text("raise RuntimeError('this module is broken')\n", encoding="utf-8")
    if _passes(copy, tests, limit):
        os._exit(1)
    verdicts = []
    for mutant in sample:
        target.write_text(mutant.source, encoding="utf-8")
        verdicts.append(not _passes(copy, tests, limit))
    target.write_text((ROOT / module).read_text(encoding="utf-8"), encoding="utf-8")
    report.write_text(json.dumps(verdicts))
    os._exit(0)


def _passes(copy: Path, tests: Sequence[str], limit: float | None) -> bool:
    """Whether the tests pass in a copy, in a forked process group that is ended after ``limit`` seconds."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        os.chdir(copy)
        sys.path[:0] = [str(copy), str(copy / "tests")]
        os.environ["PYTHONPATH"] = f"{copy}{os.pathsep}{copy / 'tests'}"
        sys.dont_write_bytecode = True  # a mutant of the same second and size would run as the one before
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        for name in [name for name in sys.modules if name.partition(".")[0] in ("align", "annotation", "rewards")]:
            del sys.modules[name]
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])))
    since = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        if limit is not None and time.monotonic() - since > limit:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.02)


def copies(work: Path) -> None:
    """A copy of every tracked and new file per job, and what the tests look for beside them."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for job in range(JOBS):
        copy = work / f"copy-{job}"
        for name in names:
            if name and (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        (copy / ".venv-label-studio").symlink_to((ROOT / ".venv-label-studio").resolve())


def tell(page: Page, module: str, outcomes: Sequence[Outcome], explained: dict[str, str]) -> None:
    """A module's count and its survivors, each with its reason or as a failure."""
    survivors = [outcome.mutant for outcome in outcomes if not outcome.is_killed]
    tests = ", ".join(f"{name}.py" for name in OWN_TESTS[module])
    revision = code().get("revision", "unknown")[:12]
    page.say(f"\n## {module}\n\n{datetime.now(UTC):%Y-%m-%d}, revision {revision}, {read_cpu()}.")
    page.say(f"{len(outcomes) - len(survivors)} of {len(outcomes)} killed by {tests}.\n")
    for mutant in survivors:
        change = f"line {mutant.line}: `{mutant.before}` became `{mutant.after}`"
        line = f"{module}: {mutant.before} -> "
        reason = explained.get(line + mutant.after) or explained.get(line + "*")
        if reason is None:
            page.demand(False, f"{change} and no test noticed")
        else:
            page.say(f"- {change}: {reason}")


def parts(text: str) -> dict[str, str]:
    """The parts of MUTATION.md by module, without what stands above the first of them."""
    found = ("\n" + text).split("\n## ")
    return {part.split("\n", 1)[0]: part.rstrip("\n") for part in found[1:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(OWN_TESTS)}; all when none is named")
    wanted = parser.parse_args().modules
    if unknown := [module for module in wanted if module not in OWN_TESTS]:
        parser.error(f"{unknown[0]}: not one of {', '.join(OWN_TESTS)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    explained = yaml.safe_load(EXPLAINED.read_text(encoding="utf-8")) or {}
    page = Page()
    with tempfile.TemporaryDirectory() as folder:
        copies(Path(folder))
        for name in PRELOADED:
            __import__(name)
        for module in wanted or OWN_TESTS:
            tell(page, module, judge(module, Path(folder)), explained)
    file = Path(__file__).with_name("MUTATION.md")
    known = parts(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known |= parts("\n".join(page.lines))
    head = f"# Mutants\n\n`make mutants`: {SAMPLE} per module, drawn with seed {SEED} from all that cosmic-ray makes."
    write_text(file, "\n\n## ".join([head, *(known[module] for module in OWN_TESTS if module in known)]) + "\n")
    return 1 if page.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
