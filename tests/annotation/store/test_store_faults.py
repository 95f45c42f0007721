"""The feedback store under a bad disk, a kill at any moment, and without permission to write."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from fixtures.judging import ITEMS, comparison, edit, judgment
from fixtures.paths import ROOT

from align.core.config import BadInput
from align.core.files import write_jsonl
from annotation.store.lineage import verify
from annotation.store.store import Store


@pytest.mark.parametrize("place", [0.1, 0.35, 0.6, 0.85])
@pytest.mark.parametrize("kind", ["noise", "cut", "zeros"])
def test_a_corrupted_file_is_told_or_read_right(tmp_path: Path, kind: str, place: float) -> None:
    """Whatever happens to the bytes: one line, or exactly what was written; never something else."""
    path = tmp_path / "feedback.db"
    said = [judgment(item, f"p{n}", rationale="x" * 200) for item in ITEMS for n in range(40)]
    with Store.open(path, write=True) as store:
        store.add_comparisons(ITEMS)
        store.add_judgments(said)
        written = store.judgments()
    whole = bytearray(path.read_bytes())
    start = int(len(whole) * place)
    if kind == "cut":
        del whole[start:]
    else:
        whole[start : start + 3000] = random.Random(place).randbytes(3000) if kind == "noise" else bytes(3000)
    path.write_bytes(whole)
    told = []
    for read in (Store.judgments, Store.comparisons, Store.splits, Store.counts, Store.head):
        try:
            with Store.open(path) as store:
                found = read(store)
                assert read is not Store.judgments or not store.verify().ok or found == written
        except BadInput as error:
            told.append(str(error))
    with pytest.raises(BadInput) as caught:
        verify(feedback=path, runs=tmp_path)
    for line in [*told, str(caught.value)]:
        assert line.startswith(str(path)) and "\n" not in line


def test_a_damaged_row_is_told_in_one_line(store_path: Path) -> None:
    edit(store_path, "UPDATE bodies SET body = 'no json at all' WHERE sequence IN (1, 6)")
    with Store.open(store_path, write=True) as store:
        for read in (store.judgments, store.comparisons, store.splits, lambda: store.add_comparisons(ITEMS)):
            with pytest.raises(BadInput, match="holds a damaged row; 'align annotate verify' names it"):
                read()
    with pytest.raises(BadInput, match="row 1: its text or salt was changed; row 6:"):
        verify(feedback=store_path, runs=store_path.parent)


def test_a_full_disk_is_told_and_loses_nothing(store_path: Path) -> None:
    many = [judgment(ITEMS[0], f"p{n}", rationale="long " * 300) for n in range(200)]
    with Store.open(store_path, write=True) as store:
        head = store.head()
        store.connection.execute("PRAGMA max_page_count = 20")
        with pytest.raises(BadInput, match=r"database or disk is full\); nothing was changed"):
            store.add_judgments(many)
        assert store.head() == head and store.counts().judgments == 8 and store.verify().ok
        store.connection.execute("PRAGMA max_page_count = 1000000")
        assert store.add_judgments(many) == 200


LIMITED = """
import resource, sys
from pathlib import Path
from align.cli.main import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(run(sys.argv[2:]))
"""


def test_a_verb_on_a_full_disk_ends_with_two_and_one_line(store_path: Path, tmp_path: Path) -> None:
    """No file may grow beyond what the store has now: neither its log nor a copy of it can be written."""
    rows = [{"prompt": f"question {n}", "chosen": "yes " * 200, "rejected": "no"} for n in range(200)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ["import", f"data={tmp_path / 'rows.jsonl'}", f"feedback={store_path}", f"run={tmp_path / 'runs' / 'more'}"]
    with Store.open(store_path) as store:
        head = store.head()
    command = [sys.executable, "-c", LIMITED, str(store_path.stat().st_size), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    with Store.open(store_path, write=True) as store:
        assert store.head() == head and store.verify().ok


def test_a_disk_without_a_byte_left_is_told_by_the_store(store_path: Path) -> None:
    words = ["annotate", "erase", "annotator=ann", f"feedback={store_path}", f"runs={store_path.parent}"]
    done = subprocess.run([sys.executable, "-c", LIMITED, "0", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith(f"align: {store_path}: cannot be "), done.stderr
    with Store.open(store_path) as store:
        assert store.verify().ok and store.counts() == (4, 8, 8, 2, 0)


def as_nobody(act: Callable[[], object]) -> str:
    """What an act says when a user does it who may write nothing here (root may write everywhere)."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_told_to_nobody, (act,))


def _told_to_nobody(act: Callable[[], object]) -> str:
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        return str(act())
    except BadInput as error:
        return f"BadInput: {error}"


class Reading(NamedTuple):
    """Something to do with a store, in another process."""

    path: Path
    write: bool

    def __call__(self) -> int:
        with Store.open(self.path, write=self.write) as store:
            if self.write:
                store.add_comparisons([comparison("new", "a", "b")])
            return store.counts().judgments


def test_what_may_not_be_written_is_read_all_the_same(store_path: Path) -> None:
    folder = store_path.parent
    for parent in folder.parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    store_path.chmod(0o644)  # shown to others on purpose
    folder.chmod(0o555)
    try:
        assert as_nobody(Reading(store_path, write=False)) == "8"
        assert as_nobody(Reading(store_path, write=True)).startswith(
            f"BadInput: {store_path}: cannot be written (Permi"
        )
        assert as_nobody(Reading(folder / "new.db", write=True)).startswith("BadInput:")
        folder.chmod(0o777)
        store_path.chmod(0o444)
        store_path.with_name("feedback.db.writer").chmod(0o666)
        assert "readonly database" in as_nobody(Reading(store_path, write=True))
        assert as_nobody(Reading(store_path, write=False)) == "8"
    finally:
        folder.chmod(0o755)


WRITER = """
import sys
from pathlib import Path
from annotation.store.erasure import ErasureTarget, remove
from annotation.store.store import Store
from align.core.records import Comparison, Judgment
items = [Comparison(prompt=[{"role": "user", "content": f"q {n}"}],
                    responses=[{"messages": [{"role": "assistant", "content": t}]} for t in ("a", "b")])
         for n in range(20)]
with Store.open(Path(sys.argv[1]), write=True) as store:
    store.add_comparisons(items)
    for batch in range(int(sys.argv[2]), 100000):
        store.add_judgments(Judgment(comparison_id=item.id, annotator=f"a{batch}", ranking=[[0], [1]], shown=[0, 1])
                            for item in items)
        print(batch + 1, flush=True)
        if batch % 5 == 4:
            remove(store, ErasureTarget("annotator", f"a{batch - 1}"))
"""


def test_kills_at_random_moments_leave_whole_batches(tmp_path: Path) -> None:
    """Writing, erasing and rewriting the file, killed again and again in the same store."""
    path = tmp_path / "feedback.db"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    moments = random.Random(7)
    done = 0
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(done)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert writer.stdout is not None
        done = int(writer.stdout.readline())
        for _ in range(moments.randint(5, 9)):  # so many batches that one was erased and another one followed
            done = int(writer.stdout.readline())
        time.sleep(moments.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        done = max([done, *map(int, writer.stdout.read().split())])
        assert writer.wait() == -signal.SIGKILL
        with Store.open(path) as store:
            assert store.verify().ok
            by_person = Counter(judgment.annotator for judgment in store.judgments())
        assert set(by_person.values()) == {20}
        numbers = {int(name[1:]) for name in by_person}
        gone = set(range(done)) - numbers
        assert gone <= {batch for batch in range(done) if batch % 5 == 3}
        assert max(numbers) <= done
        done = max(numbers) + 1
    assert gone
    with Store.open(path, write=True) as store:
        store.add_judgments([judgment(store.comparisons()[0], "after")])
        assert store.verify().ok
