"""The feedback store's chain, agreement against an independent implementation, simulated people, and pairs."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import krippendorff
import numpy as np
import pytest

from align.core.config import BadInput, build
from align.core.files import read_jsonl
from annotation.agreement import (
    AgreementConfig,
    against_others,
    agreement,
    alpha,
    bootstrap,
    ceiling,
    count,
    measure,
    pairwise_agreement,
)
from annotation.pairs import PairsConfig, normalised, pairs, place
from annotation.simulate import Annotator, SimulateConfig, simulate, simulate_votes
from annotation.store import GENESIS, Store
from annotation.types import Comparison, Judgment, Pair
from annotation.votes import FIRST, SECOND, TIE, Vote, majority, tallies, votes

ROOT = Path(__file__).resolve().parents[1]


def comparison(prompt: str, *texts: str) -> Comparison:
    responses = [{"messages": [{"role": "assistant", "content": text}]} for text in texts]
    return Comparison(prompt=[{"role": "user", "content": prompt}], responses=responses)


def judgment(item: Comparison, annotator: str, ranking: list[list[int]] | None = None, **more: object) -> Judgment:
    order = ranking or [[0], [1]]
    return Judgment(
        comparison_id=item.id, annotator=annotator, ranking=order, shown=sorted(i for g in order for i in g), **more
    )


def said(item: Comparison, better: str, annotator: str, **more: object) -> Judgment:
    """A judgment by the text of the better of two responses."""
    first = int(item.responses[0].text != better)
    return judgment(item, annotator, [[first], [1 - first]], **more)


ITEMS = [comparison(f"question {n}", f"yes {n}", f"no, not {n}") for n in range(4)]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Rows 1-4 are comparisons, 5-12 are judgments of ann and bob."""
    path = tmp_path / "feedback.db"
    with Store.open(path, write=True) as store:
        store.add_comparisons(ITEMS)
        store.add_judgments(judgment(item, name, source="test") for item in ITEMS for name in ("ann", "bob"))
    return path


def edit(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for trigger in ("log_keeps", "log_stays", "bodies_keep"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_store_returns_what_was_put_in_whatever_the_order(store_path: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.db", write=True) as other, Store.open(store_path) as store:
        other.add_comparisons(reversed(ITEMS), {ITEMS[1].id: "test"})
        other.add_judgments(reversed([judgment(i, n, source="test") for i in ITEMS for n in ("ann", "bob")]))
        assert other.comparisons() == store.comparisons() == sorted(ITEMS, key=lambda item: item.id)
        assert other.judgments() == store.judgments()
        assert other.splits()[ITEMS[1].id] == "test" and set(store.splits().values()) == {None}
        assert store.counts() == (4, 8, 8, 2, 0)


def test_same_judgment_again_is_nothing_and_a_changed_one_is_a_new_version(store_path: Path) -> None:
    with Store.open(store_path, write=True) as store:
        head = store.head()
        assert store.add_comparisons(ITEMS) == 0
        assert store.add_judgments(store.judgments()) == 0
        assert store.head() == head
        assert store.add_judgments([judgment(ITEMS[0], "ann", [[1], [0]], source="test")]) == 1
        latest = {(j.comparison_id, j.annotator): j for j in store.judgments()}[ITEMS[0].id, "ann"]
        assert (latest.version, latest.ranking) == (2, [[1], [0]])
        assert store.counts()[1:3] == (8, 9)
        assert store.verify().ok and store.head() != head


def test_split_hint_only_gets_stricter(store_path: Path) -> None:
    key = ITEMS[0].id
    with Store.open(store_path, write=True) as store:
        for hint, expected in (("train", "train"), ("test", "test"), ("train", "test")):
            store.add_comparisons([ITEMS[0]], {key: hint})
            assert store.splits()[key] == expected


def test_refused_judgments_leave_nothing_behind(store_path: Path) -> None:
    stranger = comparison("unknown", "a", "b")
    with Store.open(store_path, write=True) as store:
        head = store.head()
        with pytest.raises(BadInput, match=stranger.id):
            store.add_judgments([judgment(ITEMS[0], "cat"), judgment(stranger, "cat")])
        with pytest.raises(BadInput, match="ranks 3 responses"):
            store.add_judgments([judgment(ITEMS[0], "cat", [[0], [1], [2]])])
        assert store.head() == head and store.counts().judgments == 8 and store.verify().ok


DAMAGE = {
    "hash of a body": (["UPDATE log SET salted_hash = 'x' || substr(salted_hash, 2) WHERE sequence = 6"], "row 6:"),
    "entry hash": (["UPDATE log SET entry_hash = 'x' || substr(entry_hash, 2) WHERE sequence = 6"], "row 6:"),
    "text": (["UPDATE bodies SET body = replace(body, '[[0], [1]]', '[[1], [0]]') WHERE sequence = 6"], "row 6:"),
    "salt": (["UPDATE bodies SET salt = zeroblob(16) WHERE sequence = 6"], "row 6:"),
    "kind": (["UPDATE bodies SET kind = 'comparison' WHERE sequence = 6"], "row 6:"),
    "comparison id": (["UPDATE bodies SET comparison_id = 'x' WHERE sequence = 6"], "row 6:"),
    "annotator": (["UPDATE bodies SET annotator = 'eve' WHERE sequence = 6"], "row 6:"),
    "source": (["UPDATE bodies SET source = 'x' WHERE sequence = 6"], "row 6:"),
    "deleted text": (["DELETE FROM bodies WHERE sequence = 6"], "row 6:"),
    "deleted row": (["DELETE FROM log WHERE sequence = 6", "DELETE FROM bodies WHERE sequence = 6"], "row 6:"),
    "deleted tail": (["DELETE FROM log WHERE sequence > 10", "DELETE FROM bodies WHERE sequence > 10"], "row 10,"),
    "added text": (["INSERT INTO bodies SELECT 99, kind, 'c', 'a', 's', body, salt FROM bodies LIMIT 1"], "row 99:"),
    "reordered": (
        [
            f"UPDATE {table} SET sequence = {new} WHERE sequence = {old}"
            for table in ("log", "bodies")
            for old, new in ((6, -1), (7, 6), (-1, 7))
        ],
        "row 6:",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_the_damaged_row(store_path: Path, kind: str) -> None:
    statements, expected = DAMAGE[kind]
    with Store.open(store_path) as store:
        assert store.verify().ok
    edit(store_path, *statements)
    with Store.open(store_path) as store:
        found = store.verify()
    assert not found.ok
    assert expected in found.problems[0], found.problems


def test_log_refuses_edits_from_outside(store_path: Path) -> None:
    connection = sqlite3.connect(store_path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM log WHERE sequence = 6")
    connection.close()


def test_rewritten_history_is_told_by_a_recorded_head(store_path: Path, tmp_path: Path) -> None:
    with Store.open(store_path, write=True) as store:
        recorded = store.head()
        store.add_judgments([judgment(ITEMS[0], "cat")])
        assert store.verify([recorded, GENESIS]).ok
    with Store.open(tmp_path / "forged.db", write=True) as forged:
        forged.add_comparisons(ITEMS)
        assert forged.verify().ok
        assert recorded[:12] in forged.verify([recorded]).problems[0]


def everything_on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir() if file.name.startswith(path.name))


def test_erased_person_is_gone_and_the_chain_still_verifies(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with Store.open(path, write=True) as store:
        store.add_comparisons(ITEMS)
        store.add_judgments(
            judgment(item, name, flags=[f"remark by {name} " + "x" * 5000])
            for item in ITEMS
            for name in ("zebedee", "bob")
        )
        store.add_judgments([judgment(ITEMS[0], "zebedee", [[1], [0]])])
        assert b"zebedee" in everything_on_disk(path)
        assert store.erase(annotator="zebedee") == 5
        assert b"zebedee" not in everything_on_disk(path)
        found = store.verify()
        assert found.ok and found.erased == 5, found.problems
        assert {j.annotator for j in store.judgments()} == {"bob"} and len(store.judgments()) == 4
        assert store.erase(annotator="zebedee") == 0
        store.add_judgments([judgment(ITEMS[0], "cat")])
        assert store.verify().ok


def test_erased_comparison_takes_its_judgments_along(store_path: Path) -> None:
    with Store.open(store_path, write=True) as store:
        assert store.erase(comparison_id=ITEMS[2].id) == 3
        found = store.verify()
        assert found.ok and found.erased == 3
        assert ITEMS[2].id not in store.splits() and store.counts().judgments == 6
        assert b"yes 2" not in everything_on_disk(store_path)
    edit(store_path, "DELETE FROM bodies WHERE annotator = 'ann'")
    with Store.open(store_path) as store:
        assert not store.verify().ok


def test_second_writer_is_told_who_writes_and_readers_are_not_bothered(store_path: Path) -> None:
    with Store.open(store_path, write=True) as store:
        with pytest.raises(BadInput, match=f"process {os.getpid()} is writing"):
            Store.open(store_path, write=True)
        with Store.open(store_path) as reader:
            store.add_judgments([judgment(ITEMS[0], "cat")])
            assert reader.counts().judgments == 8
            with pytest.raises(BadInput, match="opened for reading"):
                reader.add_judgments([judgment(ITEMS[0], "cat")])
    with Store.open(store_path, write=True) as store:
        assert store.counts().judgments == 9


def test_what_is_no_store_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such feedback store"):
        Store.open(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("hello, this is text and no database at all" * 40)
    with pytest.raises(BadInput, match="cannot be opened"):
        Store.open(tmp_path / "text.db", write=True)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    for write in (False, True):
        with pytest.raises(BadInput, match="not a feedback store"):
            Store.open(tmp_path / "other.db", write=write)


def test_newer_schema_is_refused(store_path: Path) -> None:
    connection = sqlite3.connect(store_path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(BadInput, match="newer version"):
        Store.open(store_path)


WRITER = """
import sys
from pathlib import Path
from annotation.store import Store
from annotation.types import Comparison, Judgment
items = [Comparison(prompt=[{"role": "user", "content": f"q {n}"}],
                    responses=[{"messages": [{"role": "assistant", "content": t}]} for t in ("a", "b")])
         for n in range(20)]
with Store.open(Path(sys.argv[1]), write=True) as store:
    store.add_comparisons(items)
    for batch in range(100000):
        store.add_judgments(Judgment(comparison_id=item.id, annotator=f"a{batch}", ranking=[[0], [1]], shown=[0, 1])
                            for item in items)
        print(batch + 1, flush=True)
"""


@pytest.mark.parametrize("delay", [3, 12])
def test_kill_in_the_middle_of_writing_leaves_whole_batches(tmp_path: Path, delay: int) -> None:
    path = tmp_path / "feedback.db"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout is not None
    reported = 0
    for line in writer.stdout:
        reported = int(line)
        if reported == delay:
            writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    with Store.open(path) as store:
        assert store.verify().ok
        held = store.counts().judgments
    assert held % 20 == 0 and held >= reported * 20
    with Store.open(path, write=True) as store:
        store.add_judgments([judgment(store.comparisons()[0], "after")])
        assert store.verify().ok and store.counts().judgments == held + 1


def random_votes(seed: int, units: int, people: int) -> tuple[list[Vote], np.ndarray]:
    """Votes with holes, and the reliability matrix (people x units, NaN where there is none) they come from."""
    generator = random.Random(seed)
    table = np.full((people, units), np.nan)
    cast = []
    for unit in range(units):
        truth = generator.choice([FIRST, SECOND, TIE])
        for person in range(people):
            if generator.random() < 0.5:
                continue
            outcome = truth if generator.random() < 0.5 else generator.choice([FIRST, SECOND, TIE])
            table[person, unit] = outcome
            cast.append(Vote(f"c{unit}", 0, 1, f"p{person}", outcome, None, 0, None))
    return cast, table


@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_an_independent_implementation(seed: int) -> None:
    cast, table = random_votes(seed, units=40, people=4)
    counts, _ = count(cast)
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    assert alpha(counts)[0] == pytest.approx(expected, abs=1e-12)
    report = measure(cast, {}, seed)["alpha"]
    assert report["value"] == pytest.approx(expected, abs=1e-12)
    assert report["interval"][0] < expected < report["interval"][1]


def test_resampled_alpha_is_alpha_of_the_resample() -> None:
    counts, _ = count(random_votes(7, units=30, people=4)[0])
    weights = np.random.default_rng(0).integers(0, 3, (4, len(counts))).astype(float)
    for row, value in zip(weights, alpha(counts, weights), strict=True):
        assert value == pytest.approx(alpha(np.repeat(counts, row.astype(int), axis=0))[0], abs=1e-12)


def test_pairs_of_one_ranking_are_resampled_together() -> None:
    """Repeating every unit of a comparison adds no information, so the interval must not narrow."""
    counts, _ = count(random_votes(9, units=30, people=4)[0])
    counts = counts[counts.sum(1) >= 2]
    owners = np.arange(len(counts))
    once = bootstrap(pairwise_agreement, counts, owners, seed=0)
    assert bootstrap(pairwise_agreement, np.repeat(counts, 4, axis=0), np.repeat(owners, 4), seed=0) == pytest.approx(
        once
    )


def test_others_majority_leaves_out_the_own_vote() -> None:
    outcomes = [FIRST, FIRST, SECOND, FIRST, SECOND]
    cast = [Vote("abcde"[i > 2], 0, 1, f"p{i}", outcome, None, 0, None) for i, outcome in enumerate(outcomes)]
    counts, unit = count(cast)
    agrees, decided = against_others(counts, unit, np.array(outcomes))
    assert decided.tolist() == [False, False, True, True, True]  # one FIRST and one SECOND are left to p0 and p1
    assert agrees[decided].tolist() == [False, False, False]


def test_ceiling_counts_only_votes_that_choose_against_others_that_choose() -> None:
    table = {
        "a": [FIRST, FIRST, FIRST],
        "b": [FIRST, FIRST, SECOND, SECOND, FIRST],
        "c": [TIE, TIE, FIRST],
        "d": [FIRST],
    }
    cast = [Vote(key, 0, 1, f"p{i}", o, None, 0, None) for key, row in table.items() for i, o in enumerate(row)]
    found = ceiling(cast)
    # a: 3 of 3; b: each FIRST faces 2:2 and is undecided, each SECOND faces 3:1 against it; c and d: none
    assert (found["value"], found["n_scored"], found["n"]) == (3 / 5, 5, 12)


def test_nothing_to_compute_is_none_with_counts() -> None:
    same = [Vote("c", 0, 1, name, FIRST, None, None, None) for name in "ab"]
    report = measure(same, {})
    assert report["alpha"]["value"] is None and report["alpha"]["n_failed"] == 1
    assert report["pairwise_agreement"]["value"] == 1.0
    assert report["position"] == {"value": None, "interval": None, "n": 2, "n_scored": 0, "n_failed": 2}
    assert report["median_seconds"] is None
    lonely = measure(same[:1], {})
    assert lonely["pairwise_agreement"]["value"] is None and lonely["agreement_with_others"]["value"] is None


def test_position_and_length_are_counted_by_hand() -> None:
    item = comparison("q", "one", "one two three")
    long = [r.text for r in item.responses].index("one two three")
    shown = [long, 1 - long]
    rankings = [[[long], [1 - long]], [[long], [1 - long]], [[1 - long], [long]], [[0, 1]]]
    cast = votes(
        Judgment(comparison_id=item.id, annotator=f"p{i}", ranking=r, shown=shown, seconds=i + 1)
        for i, r in enumerate(rankings)
    )
    report = measure(cast, {item.id: item})
    assert report["position"]["value"] == report["length"]["value"] == 2 / 3
    assert report["ties"]["value"] == 1 / 4 and report["median_seconds"] == 2.5
    assert report["annotators"]["p2"]["position"]["value"] == 0.0


MANY = [comparison(f"question {n}", f"short {n}", f"long {n} " + "word " * 9 + str(n)) for n in range(3000)]
BETTER = {c.id: (1.0, 0.0) if i % 2 else (0.0, 1.0) for i, c in enumerate(MANY)}
EQUAL = {c.id: (0.0, 0.0) for c in MANY}


def test_a_vote_does_not_depend_on_the_others() -> None:
    people = [Annotator(name=name) for name in "abcd"]
    forward = simulate_votes(MANY[:50], BETTER, people, seed=1)
    backward = simulate_votes(MANY[49::-1], BETTER, people[::-1], seed=1)
    assert sorted(map(repr, forward)) == sorted(map(repr, backward))
    assert forward != simulate_votes(MANY[:50], BETTER, people, seed=2)
    assert len({(j.comparison_id, j.annotator) for j in forward}) == 150


def rate(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def test_faults_are_recovered_from_many_votes() -> None:
    """With a utility gap of 1 and no ties, reliability is the share of right votes; a bias is a logit of a share."""

    def cast(utilities: dict[str, tuple[float, float]], **fault: float) -> list[Judgment]:
        person = Annotator(name="a", **fault)
        return simulate_votes(MANY, utilities, [person], seed=3, votes_per_comparison=1, tie_threshold=0)

    right = [BETTER[j.comparison_id][j.ranking[0][0]] == 1.0 for j in cast(BETTER, reliability=0.8)]
    assert rate(right) == pytest.approx(0.8, abs=0.03)
    left = [j.ranking[0][0] == j.shown[0] for j in cast(EQUAL, position_bias=0.6)]
    assert rate(left) == pytest.approx(1 / (1 + np.exp(-0.6)), abs=0.03)
    lengths = {c.id: [len(r.text.split()) for r in c.responses] for c in MANY}
    longer = [
        max(lengths[j.comparison_id]) == lengths[j.comparison_id][j.ranking[0][0]] for j in cast(EQUAL, length_bias=0.1)
    ]
    gap = 10
    assert rate(longer) == pytest.approx(1 / (1 + np.exp(-0.1 * gap)), abs=0.03)
    assert rate([j.ranking[0][0] == j.shown[0] for j in cast(BETTER, reliability=0.9)]) == pytest.approx(0.5, abs=0.03)


def test_careless_annotator_is_fast_and_ranks_last() -> None:
    people = [Annotator(name=name, reliability=0.9) for name in "abc"] + [Annotator(name="z", careless=0.9)]
    cast = votes(simulate_votes(MANY[:800], BETTER, people, seed=5))
    report = measure(cast, {})["annotators"]
    by_agreement = sorted(report, key=lambda name: report[name]["agreement_with_others"]["value"])
    assert by_agreement[0] == "z"
    assert report["z"]["median_seconds"] < min(report[name]["median_seconds"] for name in "abc")


def longest_is_best(prompts: list, completions: list, ended: list, **columns: list) -> list[float | None]:
    values = [float(len(completion[-1]["content"].split())) for completion in completions]
    return [value - 5 * (not end) for value, end in zip(values, ended, strict=True)]


def candidates(path: Path, n: int = 30) -> Path:
    rows = []
    for number in range(n):
        texts = ["good answer with many words", "good answer", "bad", "bad"]
        responses = [
            {"messages": [{"role": "assistant", "content": f"{t}"}], "origin": "sft", "ended": True} for t in texts
        ]
        responses.append({"messages": [{"role": "assistant", "content": "and so on and"}], "ended": False})
        split = "test" if number % 5 == 0 else ""
        prompt = [{"role": "user", "content": f"What about number {number}?"}]
        rows.append(
            {"prompt_id": str(number), "prompt": prompt, "responses": responses, "family": "help", "split": split}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def simulated(folder: Path, **more: object) -> SimulateConfig:
    people = [{"name": name, "reliability": 0.95} for name in "abc"]
    data = {"stage": "simulate", "run": folder / "votes", "candidates": folder / "candidates.jsonl"}
    return build(SimulateConfig, {**data, "feedback": folder / "feedback.db", "annotators": people, **more}, "test")


def test_simulate_to_agreement_to_pairs(tmp_path: Path) -> None:
    candidates(tmp_path / "candidates.jsonl")
    record = simulate(simulated(tmp_path), utility=longest_is_best)
    assert record.dropped == {"identical response": 30, "response did not end": 30}
    assert record.headline["comparisons"] == 90 and record.headline["judgments"] == 270
    assert all(entry["value"] > 0.9 for entry in record.headline["agreement_with_gold"].values())
    feedback = tmp_path / "feedback.db"
    measured = agreement(AgreementConfig(run=tmp_path / "agreement", feedback=feedback))
    assert measured.headline["n_votes"] == 270 and measured.headline["alpha"] > 0.5
    made = pairs(PairsConfig(run=tmp_path / "pairs", feedback=feedback, test=0.0, validation=0.1))
    rows = {split: read_jsonl(tmp_path / "pairs" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    prompts = {split: {row["prompt_id"] for row in found} for split, found in rows.items()}
    assert len(prompts["test"]) == 6  # the hints of the candidates
    assert not prompts["train"] & prompts["test"] and not prompts["train"] & prompts["validation"]
    assert all(Pair.model_validate(row) for found in rows.values() for row in found)
    with Store.open(feedback) as store:
        assert made.inputs["feedback"]["sha256"] == measured.inputs["feedback"]["sha256"] == store.head()
    assert made.headline["annotator_ceiling"] > 0.9


def test_simulate_again_adds_nothing_and_a_killed_one_can_be_repeated(tmp_path: Path) -> None:
    candidates(tmp_path / "candidates.jsonl", 4)
    first = simulate(simulated(tmp_path), utility=longest_is_best)
    again = simulate(simulated(tmp_path, run=tmp_path / "again"), utility=longest_is_best)
    assert first.headline["new_judgments"] == first.headline["judgments"] > again.headline["new_judgments"] == 0
    assert first.artefact == again.artefact
    unended = simulate(simulated(tmp_path, run=tmp_path / "all", keep_unended=True), utility=longest_is_best)
    assert unended.headline["comparisons"] == 4 * 6
    some = simulate(simulated(tmp_path, run=tmp_path / "some", pairs_per_prompt=1), utility=longest_is_best)
    assert some.headline["comparisons"] == 4


def test_simulate_config_and_candidates_are_checked(tmp_path: Path) -> None:
    candidates(tmp_path / "candidates.jsonl", 2)
    with pytest.raises(BadInput, match="exceeds the 3 annotators"):
        simulated(tmp_path, votes_per_comparison=4)
    with pytest.raises(BadInput, match="gold"):
        simulate(simulated(tmp_path))
    with pytest.raises(BadInput, match="one each"):
        simulate(simulated(tmp_path), utility=lambda prompts, completions, **columns: [1.0])
    with pytest.raises(BadInput, match="no prompt has two"):
        simulate(simulated(tmp_path), utility=lambda prompts, completions, **columns: [None] * len(prompts))
    (tmp_path / "candidates.jsonl").write_text('{"prompt": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(BadInput, match="row 1"):
        simulate(simulated(tmp_path, run=tmp_path / "other"), utility=longest_is_best)


def stored(path: Path, judgments: list[Judgment], items: list[Comparison], splits: dict | None = None) -> Path:
    with Store.open(path, write=True) as store:
        store.add_comparisons(items, splits)
        store.add_judgments(judgments)
    return path


def make_pairs(folder: Path, name: str, **more: object) -> dict[str, list[dict]]:
    pairs(PairsConfig(run=folder / name, feedback=folder / "feedback.db", **more))
    read = {s: (folder / name / f"{s}.jsonl").read_text().splitlines() for s in ("train", "validation", "test")}
    return {split: [json.loads(line) for line in lines] for split, lines in read.items()}


@pytest.mark.parametrize(("better", "worse"), [("good", "bad"), ("bad", "good")])
def test_majority_margin_and_drops_by_hand(tmp_path: Path, better: str, worse: str) -> None:
    """Both ways round: whichever of the two stands first in the comparison's own order."""
    a, b, c, d = (comparison(f"prompt {n}", better, worse) for n in "abcd")
    judged = [
        *(said(a, better, f"p{i}", strength=s) for i, s in enumerate((3, 1))), said(a, worse, "p2", strength=1),
        said(b, better, "p0"), said(b, worse, "p1"),
        judgment(c, "p0", [[0, 1]]), judgment(c, "p1", [[0, 1]]), said(c, better, "p2"),
        said(d, better, "p0"),
    ]  # fmt: skip
    stored(tmp_path / "feedback.db", judged, [a, b, c, d])
    found = make_pairs(tmp_path, "pairs", validation=0, test=0, min_votes=2)
    (row,) = found["train"]
    assert row["chosen"][0]["content"] == better and row["rejected"][0]["content"] == worse
    assert (row["margin"], row["votes"], row["weight"]) == (1.0, [2, 1, 0], 1.0)
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert manifest["dropped"] == {
        "chosen equals rejected": 0, "duplicate": 0, "leakage": 0, "tie": 2, "too few votes": 1
    }  # fmt: skip
    assert manifest["judgments"] == 9 and manifest["pairs"]["train"] == 1


@pytest.mark.parametrize(("counts", "expected"), [((2, 1, 0), 0), ((1, 2, 2), None), ((1, 0, 1), None), ((0, 1, 2), 2)])
def test_majority(counts: tuple[int, int, int], expected: int | None) -> None:
    assert majority(counts) == expected


def test_a_ranking_votes_on_all_its_pairs(tmp_path: Path) -> None:
    item = comparison("rank", "one", "two", "three", "four")
    cast = votes([judgment(item, "p", [[2], [0, 3], [1]])])
    outcomes = {(vote.first, vote.second): vote.outcome for vote in cast}
    assert outcomes == {(0, 1): FIRST, (0, 2): SECOND, (0, 3): TIE, (1, 2): SECOND, (1, 3): SECOND, (2, 3): FIRST}
    assert [t.counts for t in tallies(cast)][2] == (0, 0, 1)
    stored(tmp_path / "feedback.db", [judgment(item, "p", [[2], [0, 3], [1]], strength=2)], [item])
    rows = make_pairs(tmp_path, "pairs", validation=0, test=0)["train"]
    assert len(rows) == 5 and {row["margin"] for row in rows} == {0.0}
    best = item.responses[2].text
    assert sum(row["chosen"][0]["content"] == best for row in rows) == 3


def test_same_judgments_give_the_same_bytes_from_any_store(tmp_path: Path) -> None:
    items = [comparison(f"prompt {n}", f"good {n}", f"bad {n}") for n in range(60)]
    judged = [said(item, item.responses[0].text, f"p{i}") for item in items for i in range(3)]
    files = []
    for name, order in (("one", 1), ("two", -1)):
        stored(tmp_path / name / "feedback.db", judged[::order], items[::order])
        made = pairs(PairsConfig(run=tmp_path / name / "pairs", feedback=tmp_path / name / "feedback.db"))
        names = ("train.jsonl", "validation.jsonl", "test.jsonl", "manifest.json")
        files.append(([(tmp_path / name / "pairs" / file).read_bytes() for file in names], made.artefact))
    assert files[0] == files[1]
    assert all(files[0][0])
    other = make_pairs(tmp_path / "one", "reseeded", seed=1)
    assert [row["prompt_id"] for row in other["test"]] != [
        json.loads(x)["prompt_id"] for x in files[0][0][2].splitlines()
    ]


def test_near_duplicate_prompts_share_a_split() -> None:
    words = ["How are you?", "how ARE you", " how  are you ?!", "How are they?"]
    assert len({normalised(comparison(w, "a", "b").prompt) for w in words[:3]}) == 1
    assert normalised(comparison("???", "a", "b").prompt) != normalised(comparison("!!!", "a", "b").prompt)
    items = [comparison(w.replace("you", f"you {n}"), "a", "b") for n in range(40) for w in words[:3]]
    placement = place(items, {}, validation=0.2, test=0.3, seed=0)
    for start in range(0, 120, 3):
        assert len({placement.split[item.id] for item in items[start : start + 3]}) == 1
    assert set(placement.split.values()) == {"train", "validation", "test"} and placement.near_duplicates == 80


def test_held_out_prompt_never_trains(tmp_path: Path) -> None:
    held_out, leaking, plain = (comparison(p, "good", "bad") for p in ("Same prompt", "same prompt!", "Other"))
    follower = comparison("same  prompt?", "good", "bad")
    items = [held_out, leaking, plain, follower]
    hints = {held_out.id: "test", leaking.id: "train", plain.id: "train"}
    stored(tmp_path / "feedback.db", [said(i, "good", "p") for i in items], items, hints)
    rows = make_pairs(tmp_path, "pairs", validation=0, test=0)
    assert [row["comparison_id"] for row in rows["train"]] == [plain.id]
    assert {row["comparison_id"] for row in rows["test"]} == {held_out.id, follower.id}
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert manifest["dropped"]["leakage"] == 1 and manifest["near_duplicate_prompts"] == 2


def test_the_same_pair_from_two_comparisons_counts_once(tmp_path: Path) -> None:
    two, three = comparison("q", "good", "bad"), comparison("q", "good", "bad", "worse")
    ranked = [[i] for i in sorted(range(3), key=lambda i: ("good", "bad", "worse").index(three.responses[i].text))]
    judged = [said(two, "good", "a"), said(two, "good", "b"), judgment(three, "a", ranked)]
    stored(tmp_path / "feedback.db", judged, [two, three])
    rows = make_pairs(tmp_path, "pairs", validation=0, test=0)["train"]
    assert len(rows) == 3
    assert [row["votes"] for row in rows if row["comparison_id"] == two.id] == [[2, 0, 0]]
    assert json.loads((tmp_path / "pairs" / "manifest.json").read_text())["dropped"]["duplicate"] == 1


def test_no_pairs_is_an_error_that_names_the_counts(tmp_path: Path, store_path: Path) -> None:
    stored(tmp_path / "ties.db", [judgment(i, "p", [[0, 1]]) for i in ITEMS], ITEMS)
    with pytest.raises(BadInput, match=r"4 comparisons with 4 judgments \(4 tie\)"):
        pairs(PairsConfig(run=tmp_path / "ties", feedback=tmp_path / "ties.db"))
    with pytest.raises(BadInput, match=r"0 judgments"):
        pairs(PairsConfig(run=tmp_path / "none", feedback=stored(tmp_path / "empty.db", [], ITEMS)))
    with pytest.raises(BadInput, match="min_rows asks for 5"):
        pairs(PairsConfig(run=tmp_path / "few", feedback=store_path, min_rows=5))
    with pytest.raises(BadInput, match="no judgments"):
        agreement(AgreementConfig(run=tmp_path / "silent", feedback=tmp_path / "empty.db"))
    with pytest.raises(BadInput, match="must leave prompts"):
        build(PairsConfig, {"stage": "pairs", "run": tmp_path / "p", "validation": 0.5, "test": 0.5}, "test")


def test_pairs_refuses_an_edited_store(tmp_path: Path, store_path: Path) -> None:
    edit(store_path, "UPDATE bodies SET body = replace(body, '[[0], [1]]', '[[1], [0]]') WHERE sequence = 6")
    with pytest.raises(BadInput, match="row 6"):
        pairs(PairsConfig(run=tmp_path / "pairs", feedback=store_path))
