"""Known answers: read from a file, mixed in blind on a real server, and held against what people say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from campaigns import BAD, GOOD, answer, candidates, choice, for_good, new_campaign, tasks
from fixtures.judging import comparison, said
from fixtures.paths import ROOT
from scipy.stats import binomtest

from align.cli.main import run
from align.core.config import BadInput
from align.core.files import write_jsonl
from align.core.records import Judgment
from annotation.agreement.run import AgreementConfig, agreement
from annotation.campaign.gold import add, report
from annotation.campaign.known import KnownItem, is_right, read_items
from annotation.campaign.pull import pull
from annotation.campaign.push import push
from annotation.campaign.settings import Campaign, task_row, tasks_of, work_of
from annotation.campaign.text import lines
from annotation.interface.config import Interface
from annotation.label_studio.studio import Studio
from annotation.store.ledger import Ledger, source_of
from annotation.store.store import Store
from annotation.store.tables import KnownAnswer, Task

NOBODY: Any = lambda reason, count: None  # noqa: E731 (a counter of what was left out that nobody reads)


def row(number: int, **more: Any) -> dict[str, Any]:
    """A gold row: the second response is the right one, and its text says so to a test alone."""
    texts = [f"{BAD} {number}", f"{GOOD} {number}"]
    responses = [{"messages": [{"role": "assistant", "content": text}], "ended": True} for text in texts]
    prompt = [{"role": "user", "content": f"question {number} of the known ones?"}]
    return {"prompt": prompt, "responses": responses, **({"best": 1} if not more else {}), **more}


def gold_file(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    write_jsonl(folder / "gold.jsonl", rows)
    return folder / "gold.jsonl"


# --- what a file says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [{"best": 1}, {"ranking": [[1], [0]]}])
def test_an_answer_means_the_rows_own_order(tmp_path: Path, told: dict[str, Any]) -> None:
    for number in range(8):  # canonical order is the file's for some and the other for the rest
        file = gold_file(tmp_path, [row(number, kind="attention", family="harm", **told)])
        ((key, item),) = read_items(file, Interface(), "gold").items()
        assert item.answer.ranking is not None and key == item.comparison.id
        assert item.comparison.responses[item.answer.ranking[0][0]].text == f"{GOOD} {number}"
        assert (item.answer.is_attention, item.answer.family, item.purpose) == (True, "harm", "gold")


def test_a_dumped_comparison_and_a_label_are_read(tmp_path: Path) -> None:
    item = comparison("is this rude?", "no")
    (found,) = read_items(gold_file(tmp_path, [{**item.model_dump(), "label": "up"}]), Interface(kind="thumbs"), "gold")
    assert found == item.id
    (two,) = read_items(gold_file(tmp_path, [{**row(0), "language": "de"}]), Interface(), "calibration").values()
    assert (two.comparison.language, two.purpose) == ("de", "calibration")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "holds no rows"),
        ([row(0, kind="gold")], "row 1: expected one of ranking and best, got none"),
        ([row(0, best=1, ranking=[[1], [0]])], "got ranking, best"),
        ([row(0), row(1, best=2)], r"row 2: best 2 must hold response numbers, 0 to 1"),
        ([row(0, best=-1)], "best -1"),
        ([row(0, ranking=[[0]])], "once each"),
        ([row(0, ranking=[[0], [0, 1]])], "once each"),
        ([row(0, label="up")], "got label"),
        ([row(0, kind="gould", best=1)], "kind 'gould' is none of gold, attention"),
        ([row(0), row(0)], "row 2: the same comparison"),
        ([{"prompt": "text", "best": 0}], "expected 'prompt' and 'responses'"),
        ([{**row(0), "responses": row(0)["responses"][:1]}], "1 responses, kind: pairwise shows 2"),
        ([{**row(0), "responses": row(0)["responses"][:1] * 2}], "are the same"),
        ([{**row(0), "id": "abc"}], "does not match its content"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        read_items(gold_file(tmp_path, rows), Interface(), "gold")


def test_what_is_right() -> None:
    def judged(ranking: list[list[int]], label: str | None = None) -> Judgment:
        shown = sorted(index for group in ranking for index in group)
        return Judgment(comparison_id="c", annotator="a", ranking=ranking, shown=shown, label=label)

    strict, tie, best = KnownAnswer([[1], [0]]), KnownAnswer([[0, 1]]), KnownAnswer([[2]])
    assert is_right(strict, judged([[1], [0]])) and is_right(tie, judged([[0, 1]]))
    assert not is_right(strict, judged([[0], [1]])) and not is_right(strict, judged([[0, 1]]))
    assert not is_right(tie, judged([[0], [1]]))
    assert is_right(best, judged([[2], [0], [1]])) and is_right(best, judged([[2], [0, 1]]))
    assert not is_right(best, judged([[2, 0], [1]])) and not is_right(best, judged([[0], [2], [1]]))
    assert is_right(KnownAnswer(label="up"), judged([[0]], "up")) and not is_right(
        KnownAnswer(label="up"), judged([[0]], "down")
    )


# --- who is under the bar ---------------------------------------------------------------------------------------

ITEMS = [comparison(f"known {n}", "right", "wrong") for n in range(12)]
SPRING = Campaign(name="spring")


def answered(folder: Path, rights: dict[str, Sequence[bool]], attention: Sequence[int] = ()) -> Campaign:
    """A campaign whose people answered the first so many items, right or wrong."""
    path = folder / "feedback.db"
    with Store.open(path, write=True) as store:
        store.add_comparisons(ITEMS)
        ledger = Ledger(store, SPRING.name)
        best = {c.id: [r.text for r in c.responses].index("right") for c in ITEMS}
        known = [
            Task(f"k{n}", c.id, [0, 1], "gold", KnownAnswer([[best[c.id]]], is_attention=n in attention))
            for n, c in enumerate(ITEMS)
        ]
        ledger.add_tasks(known)
        for name, marks in rights.items():
            store.add_judgments(
                said(c, "right" if mark else "wrong", name, source=source_of("spring", f"k{n}"))
                for n, (c, mark) in enumerate(zip(ITEMS, marks, strict=False))
            )
    return SPRING.model_copy(update={"feedback": path})


def test_the_upper_limit_decides_who_is_named(tmp_path: Path) -> None:
    marks = {"two": [False] * 2, "three": [False] * 3, "half": [True, False] * 6, "some": [True] * 7 + [False] * 5}
    found = report(answered(tmp_path, marks))
    for entry in found.accuracies:
        rights = marks[entry.annotator]
        exact = binomtest(sum(rights), len(rights)).proportion_ci(0.95, "exact")
        assert [entry.share.low, entry.share.high] == pytest.approx([exact.low, exact.high], abs=1e-9)
        assert entry.is_under == (exact.high < 0.8)
    assert found.under == ["half", "three"]  # 6 of 12 reach at most 0.79, 7 of 12 reach 0.85, and 0 of 2 reach 0.84
    assert f"exclude feedback={found.feedback} annotator=three reason='gold 0 of 3'" in "\n".join(lines(found))


def test_attention_checks_are_told_apart_from_gold(tmp_path: Path) -> None:
    campaign = answered(tmp_path, {"ann": [True] * 9 + [False] * 3}, attention=(9, 10, 11))
    assert [(a.kind, a.is_under) for a in report(campaign).accuracies] == [("attention", True), ("gold", False)]
    assert run(["annotate", "exclude", f"feedback={campaign.feedback}", "annotator=ann", "reason=asleep"]) == 0
    assert report(campaign).under == []


def test_agreement_knows_gold_and_leaves_calibration_out(tmp_path: Path) -> None:
    campaign = answered(tmp_path, {"ann": [True] * 8 + [False] * 4, "bob": [True] * 2})
    with Store.open(campaign.feedback, write=True) as store:
        ledger = Ledger(store, "spring")
        ledger.set_answers(t._replace(purpose="calibration") for t in ledger.tasks().values() if t.key == "k0")
    agreement(AgreementConfig(run=tmp_path / "run", feedback=campaign.feedback))
    found = json.loads((tmp_path / "run" / "agreement.json").read_text())
    gold = found["annotators"]["ann"]["gold"]
    exact = binomtest(7, 11).proportion_ci(0.95, "exact")
    assert (gold["value"], gold["n"], gold["low"], gold["high"]) == pytest.approx((7 / 11, 11, exact.low, exact.high))
    assert found["annotators"]["bob"]["votes"] == 1 and found["votes"] == 12


def test_a_ranking_is_one_answer_however_many_pairs_it_orders(tmp_path: Path) -> None:
    from annotation.aggregation.votes import votes_of
    from annotation.agreement.run import measure

    item = comparison("which?", "a", "b", "c", "d")
    orders = [[[0], [1], [2], [3]], [[1], [0], [2], [3]], [[0], [3], [1], [2]]]
    cast = votes_of(
        Judgment(comparison_id=item.id, annotator=f"p{n}", ranking=order, shown=[0, 1, 2, 3])
        for n, order in enumerate(orders)
    )
    gold = measure(cast, {item.id: item}, gold={item.id: [[0]]})["gold"]
    assert (gold["value"], gold["n"]) == (pytest.approx(2 / 3), 3)


# --- what a task tells ------------------------------------------------------------------------------------------


def shown_work(campaign: Campaign, folder: Path, *rows: dict[str, Any]) -> tuple[dict[str, KnownItem], Any]:
    items = read_items(gold_file(folder, rows), campaign.interface, "gold")
    return items, work_of(campaign, [], NOBODY, items)


def test_known_answers_are_concealed_and_counted_for_privacy_like_work(tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 2).model_copy(update={"concealed": ["harm"]})
    items, work = shown_work(campaign, tmp_path, row(50, best=1, family="harm"), row(51))
    made = {task.comparison_id: task for task in tasks_of(campaign, work, "g")}
    folded = {c.id: task_row(campaign, made[c.id], c, work)["prompt_html"].count("<details") for c in work.comparisons}
    harmful = next(key for key, item in items.items() if item.answer.family == "harm")
    assert folded.pop(harmful) == 1 and set(folded.values()) == {0}
    private = row(52)
    private["responses"][0]["messages"][0]["content"] = "write to anna.smith@example.com"
    with pytest.raises(BadInput, match="1 of 3 comparisons seem to hold personal data"):
        shown_work(campaign, tmp_path, private)


def test_a_key_is_that_of_work(tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 1)
    items, work = shown_work(campaign, tmp_path, row(7))
    as_gold = {task.comparison_id: task.key for task in tasks_of(campaign, work, "g")}
    plain = work._replace(items={})
    assert as_gold == {task.comparison_id: task.key for task in tasks_of(campaign, plain, "g")}
    (key,) = items
    assert [task.purpose for task in tasks_of(campaign, work, "g") if task.comparison_id == key] == ["gold"]


# --- on the server ----------------------------------------------------------------------------------------------


def sent(campaign: Campaign) -> dict[str, Task]:
    with Store.open(campaign.feedback) as store:
        return {task.key: task for task in Ledger(store, campaign.name).tasks().values()}


def test_gold_stands_among_the_work_and_nothing_tells_it(studio: Studio, tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 30).model_copy(update={"gold_share": 0.2, "repeat": 0.2})
    file = gold_file(tmp_path, [row(n, best=1, kind="attention" if n % 2 else "gold") for n in range(100, 110)])
    assert add(campaign, file=file)[:5] == (10, 0, 0, 0, 10)
    assert add(campaign, file=file).unchanged == 10
    done = push(campaign, studio)
    project = done.project
    by_key = sent(campaign)
    n_work = sum(task.purpose in ("work", "repeat") and task.task_id is not None for task in by_key.values())
    n_gold = sum(task.purpose == "gold" and task.task_id is not None for task in by_key.values())
    assert done.new == n_work + n_gold and done.gold_waiting == 10 - n_gold
    assert n_gold == -(-n_work // 4)  # a fifth of all, rounded up
    query = {"project": project, "fields": "all", "page_size": 100, "query": json.dumps({"ordering": ["tasks:id"]})}
    raw = studio.connection.read("api/tasks/", query)["tasks"]
    assert [task["data"]["pair_id"] for task in raw] == sorted(key for key, t in by_key.items() if t.task_id)
    purposes = ["gold" if by_key[task["data"]["pair_id"]].purpose == "gold" else "work" for task in raw]
    assert len([n for n in range(1, len(raw)) if purposes[n] != purposes[n - 1]]) > 4  # not in a block of their own

    def form(task: dict[str, Any]) -> str:
        """All of a task but its number, its texts and the moment it was made."""
        rest = {key: value for key, value in task.items() if key not in ("id", "inner_id", "data")}
        data = {key: len(value) if key == "pair_id" else "" for key, value in task["data"].items()}
        return json.dumps([rest, data], sort_keys=True, default=str)

    moments = ("created_at", "updated_at")
    forms = {form({key: value for key, value in task.items() if key not in moments}) for task in raw}
    assert len(forms) == 1
    assert len({task["created_at"][:16] for task in raw}) <= 2  # of one import, within the same minute or the next


def test_gold_that_comes_late_waits_for_work_or_is_found_in_the_queue(studio: Studio, tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 8)
    assert push(campaign, studio).new == 8
    pushed = json.loads((tmp_path / "candidates.jsonl").read_text().splitlines()[3])
    late = [{**row(200), "best": 1}, {**pushed, "best": 0}]
    found = add(campaign, file=gold_file(tmp_path, late))
    assert (found.new, found.in_queue, found.waiting) == (2, 1, 1)
    again = push(campaign, studio)
    assert (again.new, again.gold_waiting) == (0, 1) and "1 known answers wait" in "\n".join(lines(again))
    shown = tasks(studio, campaign)
    assert "200" not in shown
    wrong = for_good(shown["3"], -2)
    answer(studio, shown["3"], [wrong])
    pull(campaign, studio)
    (entry,) = report(campaign).accuracies
    assert (entry.share.value, entry.share.n) == (0.0, 1)
    fixed = [{**pushed, "ranking": [[1], [0]]}]
    assert add(campaign, file=gold_file(tmp_path, fixed)).corrected == 1
    (entry,) = report(campaign).accuracies
    assert entry.share.value == 1.0

    candidates(tmp_path, 12)
    more = push(campaign, studio)
    assert (more.new, more.gold_waiting) == (5, 0)
    order = [task.key for task in studio.all_tasks(more.project)][8:]
    assert order == sorted(filter(None, order)) and "200" in tasks(studio, campaign)


def test_gold_of_a_lost_store_is_found_again_with_its_sides(studio: Studio, tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 8).model_copy(update={"gold_share": 0.5})
    file = gold_file(tmp_path, [row(n) for n in range(300, 308)])
    add(campaign, file=file)
    assert push(campaign, studio).new == 16
    shown = tasks(studio, campaign)
    for number in range(300, 308):
        answer(studio, shown[str(number)], [for_good(shown[str(number)])])
    answer(studio, shown["0"], [choice("0")])
    pull(campaign, studio)
    before = lines(report(campaign))
    assert "8 of 8 right" in before[1]
    for path in tmp_path.glob("feedback.db*"):
        path.unlink()
    push(campaign, studio)
    pull(campaign, studio)
    with pytest.raises(BadInput, match="no answer is known"):
        report(campaign)
    add(campaign, file=file)
    assert push(campaign, studio)[2:5] == (0, 8, 0)  # new, recovered, unknown
    pull(campaign, studio, full=True)
    assert lines(report(campaign)) == before
    with Store.open(campaign.feedback) as store:
        assert Ledger(store, campaign.name).quarantined() == [] and store.verify().ok


def test_gold_whose_sides_cannot_be_told_is_set_aside(studio: Studio, tmp_path: Path) -> None:
    campaign = new_campaign(tmp_path, 3)
    file = gold_file(tmp_path, [row(400, best=1, family="harm")])
    add(campaign, file=file)
    push(campaign, studio)
    shown = tasks(studio, campaign)["400"]
    answer(studio, shown, [for_good(shown)])
    for path in tmp_path.glob("feedback.db*"):
        path.unlink()
    add(campaign, file=file)
    folded = campaign.model_copy(update={"concealed": ["harm"]})  # the task does not look as it would today
    assert push(folded, studio)[2:5] == (0, 3, 1)
    assert pull(folded, studio).outcomes == {"quarantine": 1}
    assert report(folded).accuracies == []


def test_verbs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "campaign.yaml"
    config.write_text(f"name: spring\nfeedback: {tmp_path}/feedback.db\nlanguages: [en]\n")
    file = gold_file(tmp_path, [row(1), row(2)])
    assert run(["annotate", "gold", "report", "--config", str(config)]) == 2
    assert run(["annotate", "gold", "add", "--config", str(config), f"file={file}"]) == 0
    assert "2 known answers are new" in capsys.readouterr().out
    assert run(["annotate", "gold", "report", "--config", str(config)]) == 0
    assert "nobody answered one of them yet" in capsys.readouterr().out
    file = gold_file(tmp_path, [{**row(1), "language": "fr"}])
    assert run(["annotate", "gold", "add", "--config", str(config), f"file={file}"]) == 2
    assert "1 comparisons in 'fr'" in capsys.readouterr().err


def test_a_comparison_of_the_round_is_no_gold(tmp_path: Path) -> None:
    campaign = Campaign(name="spring", feedback=tmp_path / "feedback.db")
    file = gold_file(tmp_path, [row(1)])
    add(campaign, file=file)
    with Store.open(campaign.feedback, write=True) as store:
        ledger = Ledger(store, "spring")
        ledger.set_answers(task._replace(purpose="calibration") for task in ledger.tasks().values())
    with pytest.raises(BadInput, match="belongs to the calibration round"):
        add(campaign, file=file)


def test_the_example_on_the_campaign_page_is_a_known_answer(tmp_path: Path) -> None:
    page = ROOT / "docs" / "campaign.md"
    (line,) = [text.strip() for text in page.read_text().splitlines() if text.strip().startswith('{"prompt"')]
    (tmp_path / "gold.jsonl").write_text(line + "\n")
    (item,) = read_items(tmp_path / "gold.jsonl", Interface(), "gold").values()
    best = item.answer.ranking[0] if item.answer.ranking else []
    assert [item.comparison.responses[i].text for i in best] == ["five."]
