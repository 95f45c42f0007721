"""How often control changes file between the command line and PPO's first loss.

A setting of PPO travels from `align ppo` down to the first call of ``policy_loss``. The functions that are open at that
moment, from the command line to the loss, are the spine. Each call from a file of the spine into another file of this
project, and each return from one, is a stop: a place where somebody who follows the setting has to look. A pair of
functions counts once for its calls and once for its returns, however often a loop repeats them, so the count does not
depend on the size of the data. Calls made while a module is imported are left out.

    python scripts/count_stops.py            # prints the count
    python scripts/count_stops.py --list     # and every stop, in the order of its first time
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("align", "annotation", "rewards")
STOPS_AT = "policy_loss"


class Arrived(BaseException):
    """The first loss has been reached."""


class Stop(NamedTuple):
    """A call or a return: which of the two, who called, and who was called, each as ``file:function``."""

    event: str
    caller: str
    callee: str


class Tracer:
    """Distinct calls and returns between files of this project, in the order of their first time."""

    def __init__(self) -> None:
        self.stops: dict[Stop, None] = {}
        self.spine: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        callee = _place(frame.f_code) if event in ("call", "return") else None
        if callee is None:
            return
        caller = _caller(frame)
        if caller is not None and caller.partition(":")[0] != callee.partition(":")[0]:
            self.stops.setdefault(Stop(event, caller, callee))
        if event == "call" and frame.f_code.co_name == STOPS_AT:
            sys.setprofile(None)
            self.spine = [place for above in _above(frame) if (place := _place(above.f_code))][::-1]
            raise Arrived

    def on_the_spine(self) -> list[Stop]:
        files = {place.partition(":")[0] for place in self.spine}
        return [stop for stop in self.stops if stop.caller.partition(":")[0] in files]


@cache
def _place(code: CodeType) -> str | None:
    """``file:function`` of code of this project; None for other code, and for the body of a module or a class."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT) or not code.co_flags & inspect.CO_OPTIMIZED:
        return None
    relative = path.relative_to(ROOT)
    return f"{relative}:{code.co_qualname}" if relative.parts[0] in PACKAGES else None


def _above(frame: FrameType) -> Iterator[FrameType]:
    above = frame.f_back
    while above is not None:
        yield above
        above = above.f_back


def _caller(frame: FrameType) -> str | None:
    """The nearest function of this project above a frame; None while a module is imported."""
    for above in _above(frame):
        if above.f_code.co_name == "<module>":
            return None
        if place := _place(above.f_code):
            return place
    return None


def _align(*words: str) -> None:
    """Run a command as `align` would; a code other than 0 ends the trace."""
    module = importlib.import_module("align.cli.main" if (ROOT / "align" / "cli").is_dir() else "align.cli")
    if code := module.run(list(words)):
        raise SystemExit(f"align {' '.join(words)}: ended with {code}")


def trace(folder: Path) -> Tracer:
    """Run `align ppo` on the embedded base up to its first loss."""
    items = [item for item in importlib.import_module("align.pocket.world").all_items() if item.split == "train"][:64]
    rows = [{"prompt": item.question, "chosen": "Yes, here it is.", "rejected": "I do not know."} for item in items]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, pairs = folder / "feedback.db", folder / "pairs"
    _align("import", str(file), f"feedback={store}", f"run={folder / 'import'}")
    _align("annotate", "pairs", f"feedback={store}", f"run={pairs}", "min_rows=1")
    base = ROOT / "align" / "pocket" / "base"
    config = folder / "ppo.yaml"
    config.write_text(
        f"stage: ppo\nrun: {folder / 'ppo'}\npolicy: {base}\npairs: {pairs}\n"
        "functions: ['align.pocket.utility:utility']\nbatch: 4\nsamples: 2\niterations: 1\nmax_new_tokens: 8\n"
        "compute: {device: cpu}\nwatch: {prompts: 2}\n"
    )
    tracer = Tracer()
    sys.setprofile(tracer)
    try:
        _align("ppo", "--config", str(config))
    except Arrived:
        return tracer
    finally:
        sys.setprofile(None)
    raise SystemExit(f"align ppo ended without a call of {STOPS_AT}; its messages say why")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as scratch:
        traced = trace(Path(scratch))
    stops = traced.on_the_spine()
    if "--list" in sys.argv:
        print("\n".join(["spine:", *traced.spine, "", "stops:"]))
        for event, caller, callee in stops:
            print(f"{event:6} {caller} -> {callee}" if event == "call" else f"{event:6} {callee} -> {caller}")
    files = {stop.callee.partition(":")[0] for stop in stops}
    returns = sum(stop.event == "return" for stop in stops)
    print(f"{len(stops)} stops, {returns} of them returns, in {len(files)} files")
