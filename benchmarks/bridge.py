"""Measure the labelling bridge on a real Label Studio: faults, kills, scale. Writes benchmarks/BRIDGE.md.

    python benchmarks/bridge.py    about ten minutes on two cores

Every bound is written down here before anything is measured; one that does not hold is printed as such and makes the
exit code 1. Those on seconds are for a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from campaigns import Answering, answer, for_good, new_campaign, tasks
from evidence import Page, read_cpu
from flaky_proxy import FlakyProxy

from align.core.files import write_text
from align.core.provenance import code
from align.core.records import Comparison, Judgment, Response
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.label_studio.installation import is_installed
from annotation.label_studio.server import Server, start, stop
from annotation.label_studio.studio import Studio
from annotation.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-label-studio"
FAULTY, LARGE, CHANGED, JUDGMENTS = 500, 10_000, 5, 100_000
PUSH_SECONDS, UNCHANGED_SECONDS, CHANGED_SECONDS, CLIENT_MB = 20, 10, 2, 200
STATISTICS_SECONDS, STATISTICS_MB = 20, 1000
IMPORT_GROWTH = 2.5


class Cost(NamedTuple):
    """The cost of a command: wall seconds and peak memory."""

    seconds: float
    megabytes: float


def faults(page: Page, server: Server, work: Path) -> None:
    page.say(f"\n## {FAULTY} comparisons through a proxy that loses, delays, repeats or spoils 35 % of calls\n")
    for seed in range(3):
        folder = work / f"faults-{seed}"
        folder.mkdir(parents=True)
        campaign = new_campaign(folder, FAULTY)
        with FlakyProxy(server.url, seed=seed) as proxy:
            client = Studio(proxy.url, server.token, patience=60.0)
            push(campaign, client)
            again = push(campaign, client).new
            for file in folder.glob("feedback.db*"):
                file.unlink()
            lost = push(campaign, client)
            pull(campaign, client, full=True)
            bad = sum(count for name, count in proxy.seen.items() if name != "none")
        there = len(tasks(Studio(server.url, server.token), campaign))
        page.demand(
            (there, again, lost.new, lost.recovered, lost.unknown) == (FAULTY, 0, 0, FAULTY, 0),
            f"seed {seed}: {there} tasks; pushed again {again} new; store deleted: {lost.new} new, {lost.recovered} "
            f"recovered; {bad} of {sum(proxy.seen.values())} calls were spoilt",
        )


def kills(page: Page, times: int) -> None:
    page.say(f"\n## kill -9 at {times} random moments of push and of pull\n")
    tests = str(ROOT / "tests" / "engine" / "test_kills.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    done = subprocess.run(command, env={**os.environ, "ALIGN_KILLS": str(times)}, cwd=ROOT)
    page.demand(done.returncode == 0, f"{times} kills of each: the next one completes, nothing lost or doubled")


def large(page: Page, server: Server, work: Path) -> None:
    page.say(f"\n## {LARGE:,} pairs on the server\n")
    folder = work / "large"
    folder.mkdir(parents=True)
    campaign, client = new_campaign(folder, LARGE), Studio(server.url, server.token)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = _seconds(lambda: push(campaign, client))
    page.demand(seconds < PUSH_SECONDS, f"pushed in {seconds:.1f} s (asked: {PUSH_SECONDS})")
    seconds = _seconds(lambda: push(campaign, client))
    page.say(f"- pushed again, 0 new: {seconds:.1f} s")
    pull(campaign, client)
    seconds = _seconds(lambda: pull(campaign, client))
    page.demand(seconds < UNCHANGED_SECONDS, f"unchanged pull {seconds:.2f} s (asked: {UNCHANGED_SECONDS})")
    for task in list(tasks(client, campaign).values())[:CHANGED]:
        answer(client, task, [for_good(task)])
    seconds = _seconds(lambda: pull(campaign, client))
    page.demand(seconds < CHANGED_SECONDS, f"{CHANGED} changed pulled in {seconds:.2f} s (asked: {CHANGED_SECONDS})")
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    page.demand(added < CLIENT_MB, f"all of it added {added:.0f} MB to this process (asked: {CLIENT_MB})")

    answered = campaign.model_copy(update={"name": f"{campaign.name} b", "feedback": folder / "answered.db"})
    push(answered, Answering(server.url, server.token))
    seconds = _seconds(lambda: pull(answered, client))
    page.say(f"- {LARGE:,} answers, none of them seen before, pulled in {seconds:.1f} s")
    seconds = _seconds(lambda: pull(answered, client, full=True))
    page.say(f"- everything read again and reconciled (`--full`): {seconds:.1f} s")
    seconds = _seconds(lambda: pull(answered, client))
    page.demand(seconds < UNCHANGED_SECONDS, f"unchanged pull of these {seconds:.2f} s (asked: {UNCHANGED_SECONDS})")


def statistics(page: Page, work: Path) -> None:
    page.say(f"\n## {JUDGMENTS:,} judgments in feedback.db\n")
    path = work / "many.db"
    _fill(path)
    for verb in ("agreement", "pairs"):
        cost = _command("annotate", verb, f"feedback={path}", f"run={work / verb}")
        page.demand(
            cost.seconds < STATISTICS_SECONDS and cost.megabytes < STATISTICS_MB,
            f"{verb}: {cost.seconds:.1f} s, {cost.megabytes:.0f} MB "
            f"(asked: {STATISTICS_SECONDS} s, {STATISTICS_MB} MB)",
        )


def imports(page: Page, work: Path) -> None:
    """Check that the time of an import grows as the number of votes does."""
    page.say("\n## Votes of a file\n")
    cost = {}
    for n in (20_000, 40_000):
        rows = [f"p{i % 50},{i // 4},question {i // 4},{'an answer ' * 20},other {i // 4},a" for i in range(n)]
        (work / f"{n}.csv").write_text("worker,id,question,left,right,winner\n" + "\n".join(rows) + "\n")
        columns = ("annotator=worker", "item=id", "prompt=question", "left=left", "right=right", "label=winner")
        words = [str(work / f"{n}.csv"), "format=votes", *(f"columns.{column}" for column in columns), "labels.left=a"]
        cost[n] = _command("import", *words, f"feedback={work / f'{n}.db'}", f"run={work / f'votes-{n}'}")
        page.say(f"- {n:,} votes: {cost[n].seconds:.1f} s, {cost[n].megabytes:.0f} MB")
    growth = cost[40_000].seconds / cost[20_000].seconds
    page.demand(growth < IMPORT_GROWTH, f"twice the votes take {growth:.2f} times as long (asked: {IMPORT_GROWTH})")


def crowd(page: Page, work: Path, folder: Path) -> None:
    """Measure published crowd votes (llmfao, CC BY 4.0), by the same two commands that a user types."""
    page.say("\n## Crowd votes of llmfao\n")
    feedback = f"feedback={work / 'crowd.db'}"
    columns = ("columns.annotator=worker", "columns.item=id", "columns.label=winner")
    _command(
        "import", str(folder / "crowd-comparisons.csv"), "format=votes", *columns, feedback, f"run={work / 'votes'}"
    )
    _command("annotate", "agreement", feedback, f"run={work / 'crowd'}")
    measured = json.loads((work / "crowd" / "agreement.json").read_text())
    alpha, votes = measured["alpha"]["value"], measured["votes"]
    page.demand((round(alpha, 5), votes) == (0.29060, 8931), f"nominal alpha {alpha:.5f} of {votes} votes")


def _fill(path: Path) -> None:
    """Have ten people of different care judge each of 10,000 pairs."""
    draw = random.Random(0)
    comparisons = [_comparison(number) for number in range(JUDGMENTS // 10)]
    judgments = []
    for comparison in comparisons:
        for person in range(10):
            better = int(draw.random() < 0.95 - 0.03 * person)
            judgments.append(
                Judgment(
                    comparison_id=comparison.id,
                    annotator=f"person {person}",
                    ranking=[[better], [1 - better]],
                    shown=draw.sample([0, 1], 2),
                    strength=draw.randint(1, 3),
                    seconds=draw.uniform(5, 60),
                )
            )
    with Store.open(path, write=True) as store:
        store.add_comparisons(comparisons)
        store.add_judgments(judgments)


def _comparison(number: int) -> Comparison:
    def response(text: str) -> Response:
        return Response(messages=[{"role": "assistant", "content": text}])

    texts = (f"answer {number}, long and kind", f"reply {number}")
    return Comparison(prompt=[{"role": "user", "content": f"question {number}?"}], responses=list(map(response, texts)))


def _command(*words: str) -> Cost:
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "align.cli.main", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"align {' '.join(words)} ended with status {status}")
    return Cost(time.monotonic() - begin, used.ru_maxrss / 1024)


def _speed() -> float:
    """Measure the speed of this machine, to compare seconds on this page with: the best of five loops."""

    def loop() -> None:
        total = 0
        for number in range(1_000_000):
            total += number

    return 1 / min(_seconds(loop) for _ in range(5))


def _seconds(act: Any) -> float:
    begin = time.monotonic()
    act()
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bridge")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--crowd", type=Path, help="folder with llmfao's crowd-comparisons.csv")
    arguments = parser.parse_args()
    if not is_installed(VENV):
        parser.error(f"Label Studio is not installed; 'make {VENV.name}/.done' installs it")
    work: Path = arguments.work
    shutil.rmtree(work, ignore_errors=True)
    page = Page()
    page.say(
        f"# The labelling bridge, measured\n\n{datetime.now(UTC):%Y-%m-%d}, {read_cpu()}, 2 cores, Label Studio 1.23.2 "
        f"on SQLite on the same machine, revision {code().get('revision', 'unknown')[:12]}. "
        "From `benchmarks/bridge.py`. "
        f"Speed of this machine at the start: {_speed():.0f} million additions of a Python loop per second."
    )
    server = start(work / "server", VENV, say=lambda line: None)
    try:
        faults(page, server, work)
        large(page, server, work)
    finally:
        stop(server.folder)
    statistics(page, work)
    imports(page, work)
    if arguments.crowd:
        crowd(page, work, arguments.crowd)
    kills(page, arguments.kills)
    write_text(ROOT / "benchmarks" / "BRIDGE.md", "\n".join(page.lines) + "\n")
    sys.exit(1 if page.failed else 0)


if __name__ == "__main__":
    main()
