"""Where a campaign stands, told by its store alone: counts by hand, hours under a cap, an end where there is one."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from campaigns import answer, choice, for_good, tasks
from fixtures.judging import comparison, said

from align.cli.main import run
from align.core.config import BadInput
from annotation.campaign.hours import Day, harmless, project_end, write_hours
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.campaign.status import status
from annotation.campaign.text import lines
from annotation.interface.decode import EDITED
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger, exclude, source_of
from annotation.store.store import Store
from annotation.store.tables import KnownAnswer, Pulled, Quarantined, Task

ITEMS = [comparison(f"question {n}", "yes", "no") for n in range(6)]
SPRING = Campaign(name="spring", votes=2)
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


class Books:
    """A store that is written as pulls write it: answers one by one, each a minute after the last."""

    def __init__(self, store: Store) -> None:
        self.ledger, self.store, self.n = Ledger(store, SPRING.name), store, 0
        self.ledger.begin("http://host/", 7, "{}", "hash", recovered=False)
        _, self.version = self.ledger.guideline("be kind")
        guide, _ = self.ledger.guideline("be kind and brief")
        store.add_comparisons(ITEMS)
        purposes: dict[int, Any] = {4: "gold", 5: "calibration"}
        self.ledger.add_tasks(
            Task(f"k{n}", c.id, [0, 1], purposes.get(n, "work"), self._answer(n), guide, n + 1)
            for n, c in enumerate(ITEMS)
        )

    @staticmethod
    def _answer(n: int) -> KnownAnswer | None:
        return KnownAnswer([[[r.text for r in ITEMS[n].responses].index("yes")]]) if n >= 4 else None

    def judged(self, who: str, n: int, better: str, seconds: float | None, flags: tuple[str, ...] = ()) -> None:
        source = source_of("spring", f"k{n}")
        self.store.add_judgments([said(ITEMS[n], better, who, source=source, flags=list(flags), seconds=seconds)])
        self.read(who, n, "judgment", seconds)

    def read(self, who: str, n: int, outcome: str, seconds: float | None) -> None:
        self.n += 1
        made = (NOON + timedelta(minutes=self.n)).isoformat()
        self.ledger.note([Pulled(self.n, made, n + 1, f"k{n}", who, "digest", outcome, seconds)])
        if outcome == "quarantine":
            row = Quarantined(self.n, made, n + 1, f"k{n}", who, "no choice 'ba\x1b[2Jnana'", {})
            self.ledger.quarantine([row])


@pytest.fixture
def spring(tmp_path: Path) -> Campaign:
    path = tmp_path / "feedback.db"
    with Store.open(path, write=True) as store:
        books = Books(store)
        books.judged("ann", 0, "yes", 20)
        books.judged("bob", 0, "yes", 40, (EDITED,))
        books.judged("ann", 1, "yes", 30)
        books.judged("bob", 1, "no", 2000)  # left the page open
        books.judged("ann", 2, "no", 10)
        books.read("bob", 2, "skipped", 100)
        books.read("bob", 3, "quarantine", None)
        books.judged("ann", 3, "yes", None)
        books.judged("ann", 4, "yes", 50)
        books.judged("bob", 4, "no", 50)
        books.judged("ann", 5, "yes", 5)
        books.ledger.advance(None)
    return SPRING.model_copy(update={"feedback": path})


def test_tasks_and_people_are_counted_as_by_hand(spring: Campaign) -> None:
    found = status(spring)
    assert (found.tasks, found.done, found.open, found.contested, found.short) == (5, 2, 1, 1, 1)
    assert (found.judgments, found.skipped, found.edited, sum(found.quarantine.values())) == (8, 1, 1, 1)
    ann, bob = found.people
    assert (ann.annotator, ann.done, ann.open, ann.contested, ann.skipped, ann.quarantined) == ("ann", 5, 0, 1, 0, 0)
    assert (bob.annotator, bob.done, bob.open, bob.contested, bob.skipped, bob.quarantined) == ("bob", 3, 0, 1, 1, 1)
    assert (bob.edited, ann.edited) == (1, 0)
    assert ann.gold and bob.gold and (ann.gold.value, bob.gold.value, bob.gold.n) == (1.0, 0.0, 1)
    assert ann.attention is None
    assert (found.agreement.overall.value, found.agreement.overall.n_scored) == (0.5, 4)  # tasks 0 and 1
    assert found.projection.missing == 1 and found.projection.ends is None
    assert (found.guideline.version, found.guideline.known, found.guideline.shown) == (2, 2, {2: 5})
    assert found.usable == 3  # one task is even, of one nobody's word counts twice, gold makes no pairs


def test_a_task_opened_again_is_open_and_an_excluded_vote_leaves_it_short(spring: Campaign) -> None:
    with Store.open(spring.feedback, write=True) as store:
        Ledger(store, "spring").set_reopened({"k1": 3})
        exclude(store, "bob", "gold 0 of 1")
    found = status(spring)
    assert (found.done, found.open, found.contested, found.short) == (0, 2, 0, 3)
    assert found.projection.missing == 2
    bob = next(person for person in found.people if person.annotator == "bob")
    assert bob.excluded == "gold 0 of 1" and bob.done == 3 and bob.agreement.value is None


def test_hours_are_capped_priced_and_exported(spring: Campaign, tmp_path: Path) -> None:
    found = status(spring, hours=tmp_path / "hours.csv", price=36.0)
    ann, bob = 20 + 30 + 10 + 50 + 5, 40 + 600 + 100 + 50
    assert found.work.hours == pytest.approx((ann + bob) / 3600) and found.work.untimed == 2
    assert found.work.per_hour == pytest.approx(9 / found.work.hours)
    assert found.people[1].work.seconds == 50 and found.people[0].work.seconds == 20  # medians, not capped
    assert found.cost == pytest.approx(36 * found.work.hours) and found.pair_cost == pytest.approx(found.cost / 3)
    assert status(spring, cap=60).work.hours == pytest.approx((ann + 40 + 60 + 60 + 50) / 3600)
    with (tmp_path / "hours.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"annotator": "ann", "day": "2026-03-10", "tasks": "6", "hours": f"{ann / 3600:.4f}"},
            {"annotator": "bob", "day": "2026-03-10", "tasks": "5", "hours": f"{bob / 3600:.4f}"},
        ]
    for settings in ({"cap": 0}, {"price": -1.0}):
        with pytest.raises(BadInput, match="status: cap="):
            status(spring, **settings)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "ann", 'say "hi", now']
    write_hours(tmp_path / "hours.csv", [Day(name, "2026-03-10", 1, 0.5, 0) for name in names])
    with (tmp_path / "hours.csv").open(newline="") as file:
        cells = [row["annotator"] for row in csv.DictReader(file)]
    assert cells == ["'" + name for name in names[:5]] + names[5:] == [harmless(name) for name in names]


def test_hours_are_written_over_hours_alone(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text("stage: campaign")
    for there in (tmp_path / "campaign.yaml", tmp_path):
        with pytest.raises(BadInput, match="is there and holds no hours"):
            write_hours(there, [])
    assert (tmp_path / "campaign.yaml").read_text() == "stage: campaign"
    for day in ("2026-03-10", "2026-03-11"):
        write_hours(tmp_path / "hours.csv", [Day("ann", day, 1, 0.5, 0)])
    assert "2026-03-11" in (tmp_path / "hours.csv").read_text()


def test_it_reads_as_lines_and_a_table_that_no_text_can_break(spring: Campaign) -> None:
    text = "\n".join(lines(status(spring, price=36.0)))
    assert "project 7 of http://host/, as of the last pull" in text and "\x1b" not in text
    assert "5; 2 done, 1 open, 1 contested, 1 with too few votes that count" in text
    assert "an answer counts at most 600 s, 2 answers have no time" in text
    assert "nobody answered in the 7 days" in text and "version 2 on 5 tasks" in text
    head, *rows = text.splitlines()[-3:]
    for title in ("done", "contested", "hours", "agreement", "gold"):
        end = head.index(title) + len(title)
        assert all(row[end - 1] != " " and row[end : end + 2] in ("  ", "") for row in rows), title


def moments(n: int, days_ago: float) -> list[datetime]:
    """Answers spread evenly over the last days."""
    return [NOON - timedelta(days=days_ago * (k + 1) / n) for k in range(n)]


def test_an_end_is_projected_from_the_pace_of_the_last_seven_days() -> None:
    found = project_end([*moments(70, 7), *(NOON - timedelta(days=30) for _ in range(500))], 40, NOON)
    assert found.per_day == pytest.approx(10) and found.ends == NOON + timedelta(days=4)
    younger = project_end(moments(20, 2), 40, NOON)
    assert younger.per_day == pytest.approx(10) and younger.ends == NOON + timedelta(days=4)


@pytest.mark.parametrize(
    ("answers", "missing", "reason"),
    [
        (moments(70, 7), 0, "nothing is open"),
        (moments(9, 7), 5, "not enough"),
        (moments(70, 0.9), 5, "not enough"),
        ([NOON - timedelta(days=8)] * 50, 5, "nobody answered in the 7 days"),
        ([], 5, "nobody answered"),
    ],
)
def test_no_end_is_named_where_it_cannot_be_told(answers: list[datetime], missing: int, reason: str) -> None:
    found = project_end(answers, missing, NOON)
    assert found.ends is None and reason in found.reason


def test_a_campaign_that_was_never_pushed_or_pulled_says_so(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Store.open(path, write=True) as store:
        Books(store)
    found = status(SPRING.model_copy(update={"feedback": path}))
    assert found.pulled_at is None and found.people == [] and found.work.seconds is None and found.open == 5
    assert "never pulled" in lines(found)[0] and "nobody answered yet" in lines(found)
    with pytest.raises(BadInput, match="campaign 'autumn' was never pushed from here"):
        status(SPRING.model_copy(update={"feedback": path, "name": "autumn"}))


def test_what_a_server_measured_is_told_without_it(
    studio: Studio, campaign: Campaign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(campaign, studio)
    shown = tasks(studio, campaign)
    for number, seconds in zip("0123", (12.5, 20, 30, 5000), strict=True):
        answer(studio, shown[number], [for_good(shown[number])], lead_time=seconds)
    answer(studio, shown["4"], [], was_cancelled=True, lead_time=60)
    answer(studio, shown["5"], [choice("too_disturbing")], lead_time=9)
    answer(studio, shown["6"], [choice("banana")], lead_time=11)
    pull(campaign, studio)
    file = tmp_path / "campaign.yaml"
    file.write_text(f"name: {campaign.name}\nfeedback: {campaign.feedback}\n")
    assert run(["annotate", "status", "--config", str(file), f"hours={tmp_path / 'hours.csv'}", "price=10"]) == 0
    text = capsys.readouterr().out
    assert "tasks: 8; 4 done, 2 open, 0 contested, 2 with too few votes" in text
    assert "4 judgments, 2 skipped, 0 edited by others, 1 in quarantine" in text and "no choice 'banana'" in text
    hours = (12.5 + 20 + 30 + 600 + 60 + 9 + 11) / 3600
    assert (
        f"paid hours: {hours:.2f};" in text and f"cost: {10 * hours:.2f}; {10 * hours / 4:.2f} per usable pair" in text
    )
    (row,) = csv.DictReader((tmp_path / "hours.csv").open())
    assert (row["tasks"], row["hours"]) == ("7", f"{hours:.4f}")
    found = status(campaign)
    assert found.pulled_at is not None and abs(datetime.now(UTC) - found.pulled_at) < timedelta(minutes=5)
