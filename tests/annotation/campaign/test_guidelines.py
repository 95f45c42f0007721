"""Guidelines that change under a queue, on a real server: each judgment by the text that its task showed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from campaigns import answer, candidates, for_good, new_campaign, tasks
from fixtures.campaigns import judged

from align.core.config import BadInput
from annotation.campaign.parse import guideline_read
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign
from annotation.campaign.text import lines
from annotation.label_studio.rows import Annotation
from annotation.label_studio.studio import Studio
from annotation.store.tables import Refresh, Task

FIRST, SECOND = "Choose the **kinder** answer.", "Choose the *shorter* answer."


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def guided(folder: Path, n: int) -> Campaign:
    (folder / "guidelines.md").write_text(FIRST)
    return new_campaign(folder, n).model_copy(update={"guidelines": folder / "guidelines.md"})


def by_guideline(campaign: Campaign) -> dict[str, str | None]:
    return {number: judgment.guideline for number, (judgment, _) in judged(campaign).items()}


def test_old_tasks_keep_their_text_and_their_hash(studio: Studio, tmp_path: Path) -> None:
    campaign = guided(tmp_path, 3)
    assert push(campaign, studio).guideline_version == 1
    (tmp_path / "guidelines.md").write_text(SECOND)
    candidates(tmp_path, 5)
    again = push(campaign, studio)
    assert (again.new, again.guideline_version, again.older_guidelines) == (2, 2, 3)
    assert "3 unanswered tasks show other guidelines: push --refresh" in "\n".join(lines(again))
    shown = tasks(studio, campaign)
    assert {n: "kinder" in t.data["guidelines_html"] for n, t in shown.items()} == {n: n in "012" for n in "01234"}
    for task in shown.values():
        answer(studio, task, [for_good(task)])
    pull(campaign, studio)
    assert by_guideline(campaign) == {n: digest(FIRST if n in "012" else SECOND) for n in "01234"}


def test_unanswered_tasks_are_brought_up_to_date_where_they_stand(studio: Studio, tmp_path: Path) -> None:
    campaign = guided(tmp_path, 4)
    push(campaign, studio)
    before = tasks(studio, campaign)
    answer(studio, before["0"], [for_good(before["0"])])
    (tmp_path / "guidelines.md").write_text(SECOND)
    done = push(campaign, studio, refresh=True)
    assert (done.new, done.refreshed, done.older_guidelines) == (0, 3, 0)
    after = tasks(studio, campaign)
    assert {n: "kinder" in t.data["guidelines_html"] for n, t in after.items()} == {n: n == "0" for n in "0123"}
    assert {n: t.id for n, t in after.items()} == {n: t.id for n, t in before.items()}
    for number in "123":
        same = {key: value for key, value in before[number].data.items() if key != "guidelines_html"}
        assert same == {key: value for key, value in after[number].data.items() if key != "guidelines_html"}
    answer(studio, after["1"], [for_good(after["1"])], lead_time=600)  # the page was opened before the change
    answer(studio, after["2"], [for_good(after["2"])])  # nobody knows when it was opened
    pull(campaign, studio)
    assert by_guideline(campaign) == {"0": digest(FIRST), "1": None, "2": None}
    assert push(campaign, studio, refresh=True).refreshed == 0


class Killed(Studio):
    """A client whose process ends right after a task got its new text."""

    def replace_data(self, task: int, data: Mapping[str, Any]) -> str | None:
        super().replace_data(task, data)
        raise KeyboardInterrupt


def test_a_refresh_that_was_killed_claims_nothing_and_goes_on(studio: Studio, server: Any, tmp_path: Path) -> None:
    campaign = guided(tmp_path, 3)
    push(campaign, studio)
    (tmp_path / "guidelines.md").write_text(SECOND)
    with pytest.raises(KeyboardInterrupt):
        push(campaign, Killed(server.url, server.token), refresh=True)
    shown = tasks(studio, campaign)
    changed = next(number for number, task in shown.items() if "shorter" in task.data["guidelines_html"])
    answer(studio, shown[changed], [for_good(shown[changed])])
    pull(campaign, studio)
    assert by_guideline(campaign) == {changed: None}  # it may have been read before or after
    done = push(campaign, studio, refresh=True)
    assert (done.refreshed, done.older_guidelines) == (2, 0)


class Answered(Studio):
    """A client whose tasks are answered in the moment before they change."""

    def replace_data(self, task: int, data: Mapping[str, Any]) -> str | None:
        shown = SimpleNamespace(id=task, data=data)
        answer(self, shown, [for_good(shown)])
        return super().replace_data(task, data)


def test_what_stood_between_two_attempts_is_not_claimed(studio: Studio, server: Any, tmp_path: Path) -> None:
    campaign = guided(tmp_path, 1)
    push(campaign, studio)
    (tmp_path / "guidelines.md").write_text(SECOND)
    with pytest.raises(KeyboardInterrupt):
        push(campaign, Killed(server.url, server.token), refresh=True)
    assert push(campaign, Answered(server.url, server.token), refresh=True).refreshed == 1
    pull(campaign, studio)
    assert by_guideline(campaign) == {"0": None}  # its page had shown the new text for a while, or not


class AnsweredAfterwards(Studio):
    """A client whose tasks are answered right after it asked which of them are not."""

    def unanswered(self, project: int) -> set[str]:
        keys = super().unanswered(project)
        for task in self.all_tasks(project):
            answer(self, task, [for_good(task)])
        return keys


def test_an_answer_that_came_in_between_keeps_the_text_it_was_made_by(
    studio: Studio, server: Any, tmp_path: Path
) -> None:
    campaign = guided(tmp_path, 1)
    push(campaign, studio)
    (tmp_path / "guidelines.md").write_text(SECOND)
    assert push(campaign, AnsweredAfterwards(server.url, server.token), refresh=True).refreshed == 1
    assert push(campaign, studio, refresh=True).older_guidelines == 0
    pull(campaign, studio)
    assert by_guideline(campaign) == {"0": digest(FIRST)}


def test_a_lost_store_does_not_guess_what_was_shown(studio: Studio, tmp_path: Path) -> None:
    campaign = guided(tmp_path, 2)
    push(campaign, studio)
    shown = tasks(studio, campaign)
    answer(studio, shown["0"], [for_good(shown["0"])])
    for file in tmp_path.glob("feedback.db*"):
        file.unlink()
    (tmp_path / "guidelines.md").write_text(SECOND)
    assert push(campaign, studio).recovered == 2
    pull(campaign, studio, full=True)
    assert by_guideline(campaign) == {"0": None}


def test_a_task_that_is_made_anew_shows_the_new_text(studio: Studio, tmp_path: Path) -> None:
    campaign = guided(tmp_path, 1)
    push(campaign, studio)
    studio.connection.send("DELETE", f"api/tasks/{tasks(studio, campaign)['0'].id}/")
    (tmp_path / "guidelines.md").write_text(SECOND)
    assert push(campaign, studio).new == 1
    shown = tasks(studio, campaign)["0"]
    answer(studio, shown, [for_good(shown)])
    pull(campaign, studio)
    assert "shorter" in shown.data["guidelines_html"] and by_guideline(campaign) == {"0": digest(SECOND)}


def test_guidelines_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    campaign = guided(tmp_path, 1)
    (tmp_path / "guidelines.md").unlink()
    with pytest.raises(BadInput, match=r"guidelines.md: cannot be read"):
        push(campaign, None)  # type: ignore[arg-type]  # nothing is asked of the server before


CHANGES = [Refresh("k", "one", "2026-01-01T12:00:00Z"), Refresh("k", "two", "2026-01-02T12:00:00Z")]


@pytest.mark.parametrize(
    ("sent", "seconds", "changes", "read"),
    [
        ("2026-01-01T11:59:00Z", 5.0, CHANGES, "one"),
        ("2026-01-01T11:59:00Z", None, CHANGES, "one"),
        ("2026-01-01T12:10:00Z", 900.0, CHANGES, None),  # opened before the change, sent after it
        ("2026-01-01T12:10:00Z", 570.0, CHANGES, None),  # opened in the minute of the change
        ("2026-01-01T12:10:00Z", 500.0, CHANGES, "two"),
        ("2026-01-01T12:10:00Z", None, CHANGES, None),
        ("2026-01-03T12:00:00Z", 5.0, CHANGES, "three"),
        ("2026-01-03T12:00:00Z", 5.0, [], "three"),
        ("2026-01-03T12:00:00Z", 5.0, [*CHANGES, Refresh("k", "three", None)], None),
        ("2026-01-01T11:59:00Z", 5.0, [*CHANGES, Refresh("k", "three", None)], "one"),
        ("2026-01-01T11:59:00Z", 5.0, [Refresh("k", None, "2026-01-01T12:00:00Z")], None),
    ],
)
def test_the_servers_clock_says_which_text_was_read(
    sent: str, seconds: float | None, changes: list[Refresh], read: str | None
) -> None:
    row = {"id": 1, "completed_by": 1, "was_cancelled": False, "lead_time": seconds, "result": []}
    annotation = Annotation.model_validate({**row, "created_at": sent, "updated_at": sent})
    assert guideline_read(Task("k", "c", [0, 1], guideline="three"), changes, annotation) == read
