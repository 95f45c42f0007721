"""What agreement measures beside nominal alpha, by hand and against independent implementations, and its page."""

from __future__ import annotations

import json
import random
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from fixtures.judging import comparison, judgment, said
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from align.core.records import Comparison, Judgment
from align.core.stats.agreement import alpha, bootstrap, chance_corrected, ordinal_alpha
from align.core.stats.estimates import format_number
from annotation.aggregation.votes import FIRST, SECOND, TIE, Vote, votes_of
from annotation.agreement.measures import COEFFICIENTS, measure
from annotation.agreement.page import page
from annotation.agreement.run import AgreementConfig, agreement
from annotation.simulate.run import Annotator, simulate_votes
from annotation.store.ledger import exclude
from annotation.store.store import Store

SAME = 1e-12


def random_votes(seed: int, units: int = 60, people: int = 4) -> tuple[list[Vote], np.ndarray]:
    """Votes with holes and strengths, and the signed strengths as a table (people x units, NaN: no vote)."""
    generator, cast = random.Random(seed), []
    table = np.full((people, units), np.nan)
    for unit in range(units):
        truth = generator.randint(-3, 3)
        for person in range(people):
            if generator.random() < 0.3:
                continue
            level = max(-3, min(3, truth + generator.choice([-2, -1, 0, 0, 1, 2])))
            table[person, unit] = level
            outcome = TIE if level == 0 else FIRST if level > 0 else SECOND
            cast.append(Vote(f"c{unit:03d}", 0, 1, f"p{person}", outcome, abs(level), 0, 10.0))
    return cast, table


@pytest.mark.parametrize("seed", range(3))
def test_ordinal_alpha_equals_an_independent_implementation(seed: int) -> None:
    cast, table = random_votes(seed)
    report = measure(cast, {}, seed)
    levels = krippendorff.alpha(reliability_data=np.sign(table), level_of_measurement="ordinal")
    strengths = krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal")
    assert report["alpha_ordinal"]["value"] == pytest.approx(levels, abs=SAME)
    assert report["alpha_strength"]["value"] == pytest.approx(strengths, abs=SAME)
    for name in COEFFICIENTS:
        low, high = report[name]["low"], report[name]["high"]
        assert low < report[name]["value"] < high


def test_resampled_ordinal_alpha_is_alpha_of_the_resample() -> None:
    counts = np.random.default_rng(0).integers(0, 3, (30, 5)).astype(float)
    weights = np.random.default_rng(1).integers(0, 3, (4, 30)).astype(float)
    for statistic in (ordinal_alpha, chance_corrected):
        counts = counts[counts.sum(1) >= 2]
        for row, value in zip(weights[:, : len(counts)], statistic(counts, weights[:, : len(counts)]), strict=True):
            assert value == pytest.approx(statistic(np.repeat(counts, row.astype(int), axis=0))[0], abs=SAME)


def test_all_intervals_come_from_the_same_resamples() -> None:
    counts = np.random.default_rng(0).integers(0, 3, (40, 3)).astype(float)
    owners = np.arange(40)
    n = {"a": len(counts), "o": len(counts)}
    both = bootstrap({"a": alpha, "o": ordinal_alpha}, counts, owners, n, seed=1)
    assert both["a"] == bootstrap({"a": alpha}, counts, owners, n, seed=1)["a"]
    assert both["a"] != bootstrap({"a": alpha}, counts, owners, n, seed=2)["a"]
    assert both["o"] == bootstrap({"o": ordinal_alpha}, counts, owners, n, seed=1)["o"]


def test_chance_corrected_is_fleiss_kappa_for_a_fixed_number_of_votes() -> None:
    counts = np.random.default_rng(3).multinomial(4, [0.5, 0.3, 0.2], 50).astype(float)
    assert chance_corrected(counts)[0] == pytest.approx(fleiss_kappa(counts), abs=SAME)
    by_hand = np.array([[2.0, 0], [0, 2], [1, 1], [2, 0]])  # agree 3/4; answers 5/8 and 3/8, so by chance 34/64
    assert chance_corrected(by_hand)[0] == pytest.approx((3 / 4 - 34 / 64) / (1 - 34 / 64), abs=SAME)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_kappa_equals_an_independent_implementation(seed: int) -> None:
    cast, table = random_votes(seed)
    people = measure(cast, {}, seed)["annotators"]
    for person in range(4):
        own, rest, weight = [], [], []
        for column in table.T:
            others = [column[p] for p in range(4) if p != person and not np.isnan(column[p])]
            if others and not np.isnan(column[person]):
                own += [column[person]] * len(others)
                rest += others
                weight += [1 / len(others)] * len(others)
        for name, values in (("weighted_kappa", np.sign), ("weighted_kappa_strength", np.array)):
            levels = [-1, 0, 1] if name == "weighted_kappa" else list(range(-3, 4))
            expected = cohen_kappa_score(
                values(own).astype(int), values(rest).astype(int), labels=levels, weights="quadratic",
                sample_weight=weight,
            )  # fmt: skip
            assert people[f"p{person}"][name]["value"] == pytest.approx(expected, abs=SAME)


def test_interval_of_weighted_kappa_is_that_of_a_bootstrap() -> None:
    """Percentiles over resampled comparisons, of another implementation."""
    cast, table = random_votes(5, units=150, people=2)
    kappa = measure(cast, {})["annotators"]["p0"]["weighted_kappa"]
    low, high = kappa["low"], kappa["high"]
    one, other = np.sign(table[:, ~np.isnan(table).any(0)]).astype(int)
    draws = np.random.default_rng(0).integers(0, len(one), (1000, len(one)))
    kappas = [cohen_kappa_score(one[d], other[d], labels=[-1, 0, 1], weights="quadratic") for d in draws]
    assert [low, high] == pytest.approx(np.quantile(kappas, [0.025, 0.975]), abs=0.02)


def test_where_nobody_disagreed_no_interval_has_a_width_of_zero() -> None:
    cast = [
        Vote(f"c{unit:03d}", 0, 1, f"p{person}", FIRST if unit % 3 else SECOND, 2, 0, 10.0)
        for unit in range(20)
        for person in range(3)
    ]
    report = measure(cast, {})
    for name in COEFFICIENTS:
        assert (report[name]["value"], report[name]["low"]) in ((1.0, None), (None, None)), name
    assert report["alpha"]["value"] == 1.0
    kappa = report["annotators"]["p0"]["weighted_kappa"]
    assert (kappa["value"], kappa["low"], kappa["high"]) == (1.0, None, None)
    assert "no interval" in page(report)
    one_differs = [*cast[:-1], cast[-1]._replace(outcome=SECOND)]
    differing = measure(one_differs, {})["alpha"]
    low, high = differing["low"], differing["high"]
    assert low < high


def test_order_of_votes_moves_nothing() -> None:
    cast, _ = random_votes(4)
    assert measure(random.Random(0).sample(cast, len(cast)), {}) == measure(cast, {})


ITEM, OTHER = comparison("q", "good", "bad"), comparison("q two", "good", "bad")


def test_repeats_and_gold_are_counted_by_hand() -> None:
    cast = votes_of([
        said(ITEM, "good", "a", source="first"), said(ITEM, "good", "a", source="second"),
        said(ITEM, "bad", "a", source="third"), said(ITEM, "bad", "b"), said(OTHER, "good", "a"),
    ])  # fmt: skip
    good = [[0], [1]] if ITEM.responses[0].text == "good" else [[1], [0]]
    report = measure(cast, {}, gold={ITEM.id: good})
    ann = report["annotators"]["a"]
    assert (ann["self_consistency"]["value"], ann["self_consistency"]["n"]) == (0.5, 2)
    assert (ann["gold"]["value"], ann["gold"]["n"]) == (pytest.approx(2 / 3), 3)
    assert report["annotators"]["b"]["gold"]["value"] == 0.0
    again = report["annotators"]["b"]["self_consistency"]
    assert (again["value"], again["low"], again["n"], again["n_scored"], again["n_failed"]) == (None, None, 0, 0, 0)
    assert report["alpha"]["votes"] == 2 and report["pairwise_agreement"]["value"] == 0.0  # one vote a person
    assert report["votes"] == 5


def test_speed_is_told_by_others_on_the_same_comparison() -> None:
    items = [comparison(f"q {n}", "good", "bad") for n in range(12)]
    seconds = {"quick": 4.0, "usual": 10.0, "steady": 12.0, "slow": 40.0}
    cast = votes_of([said(item, "good", name, seconds=time) for item in items for name, time in seconds.items()])
    people = measure(cast, {})["annotators"]
    assert {name: entry["speed"]["outlier"] for name, entry in people.items()} == {
        "quick": "fast", "usual": None, "steady": None, "slow": "slow"
    }  # fmt: skip
    assert people["quick"]["speed"]["ratio"] == pytest.approx(4 / 12)
    assert people["slow"]["speed"]["ratio"] == pytest.approx(4.0)
    assert people["quick"]["speed"]["rushed"]["value"] == 0.0
    few = [v for v in cast if v.comparison_id in {item.id for item in items[:9]}]
    assert measure(few, {})["annotators"]["quick"]["speed"]["outlier"] is None


def test_faulty_annotators_show() -> None:
    items = [comparison(f"q {n}", f"short {n}", f"a longer answer to it {n}") for n in range(600)]
    utilities = {item.id: (1.0, 0.0) if len(item.id) and n % 2 else (0.0, 1.0) for n, item in enumerate(items)}
    people = [Annotator(name=f"good{n}", reliability=0.95) for n in range(3)]
    people += [Annotator(name="left", reliability=0.6, position_bias=2.0)]
    people += [Annotator(name="long", reliability=0.6, length_bias=0.5), Annotator(name="idle", careless=0.95)]
    cast = votes_of(simulate_votes(items, utilities, people, seed=1, votes_per_comparison=6))
    report = measure(cast, {item.id: item for item in items})["annotators"]
    assert max(report, key=lambda name: report[name]["position"]["value"]) == "left"
    assert max(report, key=lambda name: report[name]["length"]["value"]) == "long"
    assert [name for name in report if report[name]["speed"]["outlier"] == "fast"] == ["idle"]
    for measured in ("weighted_kappa", "agreement_with_others"):
        best = sorted(report, key=lambda name: report[name][measured]["value"], reverse=True)[:3]
        assert set(best) == {"good0", "good1", "good2"}
    assert min(report[f"good{n}"]["reliability"] for n in range(3)) > report["left"]["reliability"]


def in_language(language: str, prompt: str) -> Comparison:
    return comparison(prompt, "good", "bad").model_copy(update={"language": language})


def test_groups_are_measured_apart() -> None:
    german, english = [[in_language(code, f"{code} {n}") for n in range(5)] for code in ("de", "en")]
    cast: list[Judgment] = []
    for n, (g, e) in enumerate(zip(german, english, strict=True)):
        better = "good" if n % 2 else "bad"
        cast += [said(g, better, name, guideline="v1") for name in "ab"]
        cast += [said(e, better, "a", guideline="v2"), said(e, "bad", "b")]
    report = measure(votes_of(cast), {item.id: item for item in german + english})
    assert {k: v["pairwise_agreement"]["value"] for k, v in report["by_language"].items()} == {"de": 1.0, "en": 0.6}
    guidelines = {k: (v["votes"], v["pairwise_agreement"]["value"]) for k, v in report["by_guideline"].items()}
    assert guidelines == {"v1": (10, 1.0), "v2": (5, None), "none recorded": (5, None)}
    assert set(report["by_language"]["en"]["annotators"]) == {"a", "b"}
    assert report["pairwise_agreement"]["value"] == 0.8


def test_stage_leaves_json_and_a_page_that_escapes(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\u202e"
    with Store.open(tmp_path / "feedback.db", write=True) as store:
        store.add_comparisons([ITEM, OTHER])
        store.add_judgments([judgment(item, name, guideline=evil) for item in (ITEM, OTHER) for name in (evil, "b")])
    record = agreement(AgreementConfig(run=tmp_path / "run", feedback=tmp_path / "feedback.db"))
    assert record.headline["n_votes"] == 4
    report = json.loads((tmp_path / "run" / "agreement.json").read_text())
    assert report["alpha"]["value"] is None and report["pairwise_agreement"]["value"] == 1.0
    assert any("72.6" in row["reached"] for row in report["published"])
    html = (tmp_path / "run" / "agreement.html").read_text()
    assert "<script" not in html and "\u202e" not in html and "&lt;script&gt;alert(1)" in html
    assert "http" not in html.replace("http-equiv", "") and "not measured" in html


def test_page_draws_what_was_measured_and_stays_small() -> None:
    cast, _ = random_votes(0)
    crowd = [vote._replace(annotator=f"{vote.annotator} of {vote.comparison_id}") for vote in cast]
    html = page(measure(crowd, {}))
    assert html.count("<svg") == 3 and html.count("<circle") < 130
    assert "more in agreement.json" in html
    assert page(measure([cast[0]], {})).count("<svg") == 1


def test_what_nobody_shares_is_said_not_to_be_measured(tmp_path: Path) -> None:
    items = [comparison(f"question {n}", "yes", "no") for n in range(6)]
    with Store.open(tmp_path / "feedback.db", write=True) as store:
        store.add_comparisons(items)
        store.add_judgments(judgment(item, ("ann", "bob")[n % 2], source="t") for n, item in enumerate(items))
    record = agreement(AgreementConfig(run=tmp_path / "alone", feedback=tmp_path / "feedback.db"))
    report = json.loads((tmp_path / "alone" / "agreement.json").read_text())
    assert any("no two people judged the same" in note for note in record.notes)
    assert all("reliability" not in entry for entry in report["annotators"].values())
    with Store.open(tmp_path / "feedback.db", write=True) as store:
        store.add_judgments([judgment(items[0], "bob", source="t")])
        exclude(store, "bob", "careless")
    record = agreement(AgreementConfig(run=tmp_path / "shared", feedback=tmp_path / "feedback.db"))
    report = json.loads((tmp_path / "shared" / "agreement.json").read_text())
    (note,) = record.notes
    assert "excluded people said is in the figures" in note and note.endswith("bob")
    assert all("reliability" in entry for entry in report["annotators"].values())


# --- every two annotators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_kappa_of_every_two_people_equals_an_independent_implementation(seed: int) -> None:
    cast, table = random_votes(seed)
    couples = {tuple(couple["annotators"]): couple for couple in measure(cast, {}, seed)["couples"]}
    assert sorted(couples) == [(f"p{a}", f"p{b}") for a in range(4) for b in range(a + 1, 4)]
    for (one, other), couple in couples.items():
        levels = np.sign(table[[int(one[1]), int(other[1])]])
        both = levels[:, ~np.isnan(levels).any(0)]
        assert couple["value"] == pytest.approx(cohen_kappa_score(*both), abs=SAME)
        assert couple["n"] == couple["n_scored"] == couple["comparisons"] == both.shape[1]
        low, high = couple["low"], couple["high"]
        assert low < couple["value"] < high < 1


def test_kappa_of_two_people_by_hand() -> None:
    """Of four answers three are the same; by chance half would be: kappa 1/2. Wilson of 3 in 4 is .301 to .954."""
    said_by = {"ann": [FIRST, FIRST, SECOND, SECOND], "bob": [FIRST, FIRST, SECOND, FIRST], "cat": [TIE] * 4}
    cast = [
        Vote(f"c{n}", 0, 1, name, out, None, 0, 1.0) for name, said in said_by.items() for n, out in enumerate(said)
    ]
    cast += [Vote("alone", 0, 1, name, FIRST, None, 0, 1.0) for name in ("dan",)]
    cast += [Vote(f"c{n}", 0, 1, "eve", TIE, None, 0, 1.0) for n in range(2)]
    couples = {tuple(couple["annotators"]): couple for couple in measure(cast, {})["couples"]}
    assert couples["ann", "bob"]["value"] == pytest.approx((3 / 4 - 1 / 2) / (1 / 2))
    assert [couples["ann", "bob"][end] for end in ("low", "high")] == pytest.approx(
        [2 * 0.3006 - 1, 2 * 0.9544 - 1], abs=1e-4
    )
    assert couples["ann", "cat"]["value"] == 0 and couples["ann", "cat"]["high"] > 0.4
    assert [couples["cat", "eve"][key] for key in ("value", "n", "n_failed")] == [None, 2, 2]
    assert not any("dan" in couple for couple in couples), "nobody judged anything with dan"


def test_answers_of_one_ranking_are_one_observation() -> None:
    """Perfect agreement on three rankings of four: 18 answers, and no surer than three."""
    cast = [
        Vote(f"c{n}", a, b, name, (FIRST, SECOND)[(a + n) % 2], None, 0, 1.0)
        for n in range(3) for name in ("ann", "bob") for a in range(4) for b in range(a + 1, 4)
    ]  # fmt: skip
    (couple,) = measure(cast, {})["couples"]
    assert (couple["value"], couple["n"], couple["comparisons"]) == (1.0, 18, 3)
    assert couple["low"] < 0 < 0.99 < couple["high"] <= 1


def test_the_page_shows_every_two_annotators() -> None:
    cast, _ = random_votes(0)
    cast += [Vote("alone", 0, 1, "p\u202e9", FIRST, None, 0, 1.0)]
    report = measure(cast, {})
    shown = page(report)
    lowest = min(report["couples"], key=lambda couple: couple["value"])
    cell = f"<td>{format_number(lowest['value'], (lowest['high'] - lowest['low']) / 2)}<span"
    assert "Every two annotators" in shown and cell in shown
    assert "4 couples judged nothing together." in shown
