"""How far a setting travels: the stops between the command line and PPO's first loss."""

from __future__ import annotations

import re
import subprocess
import sys

from fixtures.paths import ROOT

MOST = 63  # half of the 126 that there were before stages opened their models in one place


def test_a_setting_of_ppo_passes_few_stops_on_its_way_to_the_loss() -> None:
    """Calls and returns are counted, in files of this project; ``--list`` names each."""
    command = [sys.executable, str(ROOT / "scripts" / "count_stops.py"), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    count = re.fullmatch(r"(\d+) stops, (\d+) of them returns, in (\d+) files", last)
    assert count, last
    stops, returns, files = map(int, count.groups())
    listed = [line for line in lines if re.match(r"(call|return) ", line)]
    spine = lines[lines.index("spine:") + 1 : lines.index("stops:") - 1]
    assert len(listed) == stops and sum(line.startswith("return") for line in listed) == returns
    assert 0 < returns < stops and 1 < files <= stops, "calls and returns are counted"
    assert spine[0].startswith("align/cli/main.py:run") and spine[-1].startswith("align/train/ppo.py:")
    assert stops <= MOST, f"{stops} stops: a stage hands a setting on where it could use it; {command[-1]} names them"
