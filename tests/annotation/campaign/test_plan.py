"""How many labels: widths against the intervals that evaluation reports, accuracies against curves that are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import curve_fit

from align.cli.main import run as align
from align.core.config import BadInput
from align.core.files import write_json, write_jsonl
from align.core.run_record import RunRecord
from align.core.stats.estimates import Estimate, mean_interval, wilson
from align.core.stats.learning_curve import CURVE, CurvePoint, fit_curves, read_curve, resampled_errors
from align.core.stats.widths import prompt_variance
from annotation.campaign.plan import plan
from annotation.campaign.text import lines

TRAINED = [500, 1000, 2000, 4000]


def wide(interval: tuple[float | None, float | None]) -> float:
    low, high = interval
    assert low is not None and high is not None
    return high - low


def scores(counts: dict[float, int]) -> list[float | None]:
    return [score for score, count in counts.items() for _ in range(count)]


# --- widths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.4, 0.1, 0.03])
@pytest.mark.parametrize("win_rate", [0.5, 0.62, 0.97, 1.0])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_won_or_lost_takes_what_evaluation_s_wilson_interval_takes(
    width: float, win_rate: float, confidence: float
) -> None:
    n = plan(width=width, win_rate=win_rate, confidence=confidence).needed
    assert n is not None and n > 1
    assert wide(wilson(win_rate, n, confidence)) <= width < wide(wilson(win_rate, n - 1, confidence))


def test_half_won_is_the_widest_that_evaluation_can_report() -> None:
    n = plan(width=0.1).needed
    assert n is not None
    for wins in range(0, n + 1, 10):
        found = mean_interval(scores({1.0: wins, 0.0: n - wins}), "binary")
        assert wide((found.low, found.high)) <= 0.1


@pytest.mark.parametrize("n", [20, 400])
@pytest.mark.parametrize(("win_rate", "ties"), [(0.5, 0.2), (0.7, 0.4), (0.4, 0.1)])
def test_ties_take_what_evaluation_s_interval_of_a_share_takes(n: int, win_rate: float, ties: float) -> None:
    """Prompts in these shares have an interval; a plan for its width asks for as many, for less width one more."""
    halves, wins = round(ties * n), round((win_rate - ties / 2) * n)
    found = mean_interval(scores({1.0: wins, 0.5: halves, 0.0: n - halves - wins}), "share")
    width = wide((found.low, found.high))
    assert plan(width=width * (1 + 1e-9), win_rate=win_rate, ties=ties).needed == n
    assert plan(width=width * (1 - 1e-9), win_rate=win_rate, ties=ties).needed == n + 1


@pytest.mark.parametrize("agreement", [0.55, 0.7, 0.9])
def test_votes_on_one_prompt_count_by_their_agreement(agreement: float) -> None:
    n = plan(width=0.1, votes=3, agreement=agreement).needed
    assert n is not None

    def measured(count: int) -> float:
        unanimous = round((agreement - 1 / 3) / (2 / 3) * count / 2)  # two of three split votes agree in a third
        split = (count - 2 * unanimous) // 2
        found = mean_interval(scores({1.0: unanimous, 2 / 3: split, 1 / 3: split, 0.0: unanimous}), "share")
        return wide((found.low, found.high))

    above = -(-n // 40) * 40
    assert measured(above) <= 0.1 < measured(above - 40)


def test_votes_that_agree_by_chance_are_worth_prompts_and_votes_that_always_agree_nothing() -> None:
    once = plan(width=0.1, ties=0.2)
    blind = plan(width=0.1, ties=0.2, votes=4, agreement=0.4**2 + 0.2**2 + 0.4**2)
    alike = plan(width=0.1, ties=0.2, votes=4, agreement=1.0)
    unknown = plan(width=0.1, ties=0.2, votes=4)
    assert once.needed is not None and blind.needed is not None
    assert alike.needed == unknown.needed == once.needed and alike.judgments == 4 * once.needed
    assert (
        once.needed / 4 < blind.needed < once.needed
    )  # which disagreements are half ones is unknown: the safer number
    assert plan(width=0.1, votes=4, agreement=1.0).needed == plan(width=0.1).needed, "zeros and ones stay Wilson's"


def test_the_variance_of_a_prompt_is_never_below_that_of_people_with_this_agreement() -> None:
    """People who know each prompt more or less well, drawn at random: their exact variance against the plan's."""
    generator = np.random.default_rng(3)
    value = np.array([1.0, 0.5, 0.0])
    closest = np.inf
    for _ in range(300):
        kinds_KO = generator.dirichlet(generator.choice([0.1, 0.5, 2.0], size=3), size=4)
        weight_K = generator.dirichlet(np.ones(4))
        votes = int(generator.integers(2, 6))
        mean_K, second_K = kinds_KO @ value, kinds_KO @ value**2
        win_rate, ties = float(weight_K @ mean_K), float(weight_K @ kinds_KO[:, 1])
        agreement = float(weight_K @ (kinds_KO**2).sum(1))
        within, between = weight_K @ (second_K - mean_K**2), weight_K @ mean_K**2 - win_rate**2
        excess = prompt_variance(win_rate, ties, votes, agreement) - float(within / votes + between)
        assert excess >= -1e-12
        closest = min(closest, excess)
    assert closest < 0.01, "the bound must be near somewhere, or this could not fail"


def test_hours_and_price_are_those_of_the_judgments() -> None:
    found = plan(width=0.1, votes=3, agreement=0.8, seconds=30, rate=24)
    assert found.needed is not None and found.judgments == 3 * found.needed
    assert found.hours == pytest.approx(found.judgments * 30 / 3600)
    assert found.price == pytest.approx(found.judgments * 0.2)
    assert lines(found)[-1].startswith(f"{found.judgments:,} judgments at 30 s")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "either width=0.1"),
        (["width=0.1", "accuracy=0.7"], "either width=0.1"),
        (["width=10"], "between 0 and 1, found 10"),
        (["width=0.1", "win_rate=1.2"], "cannot be"),
        (["width=0.1", "win_rate=0.9", "ties=0.3"], "cannot be"),
        (["width=0.1", "agreement=0.7"], "votes="),
        (["width=0.1", "votes=0"], "1 or more"),
        (["width=0.1", "votes=3", "agreement=0.6", "win_rate=0.9"], "blindly"),
        (["width=0.1", "rate=20"], "seconds="),
        (["width=0.1", "curve=runs/reward"], "accuracy="),
        (["accuracy=0.7"], "curve=RUN"),
        (["accuracy=0.7", "curve=runs/reward", "ties=0.1"], "go with width="),
        (["accuracy=0.7", "curve=nowhere"], "not a run folder"),
        (["width=wide"], "expected a number"),
        (["wdith=0.1"], "unknown setting 'wdith'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(["annotate", "plan", *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and told in said[0]


# --- accuracies ---------------------------------------------------------------------------------------------------


def reward_run(folder: Path, errors: Sequence[float], pairs: Sequence[int] = TRAINED, held_out: int = 4000) -> Path:
    """A finished reward run whose curve has about these errors; each model is right where a worse one is, and more."""
    luck = np.random.default_rng(5).permutation((np.arange(held_out) + 0.5) / held_out)
    rows = []
    for error, n in zip(errors, pairs, strict=True):
        right = {f"p{i}": (float(luck[i] > error), 1) for i in range(held_out)}
        mean = sum(value for value, _ in right.values()) / held_out
        counts = {"n": held_out, "n_scored": held_out, "n_failed": 0, "clusters": held_out}
        rows.append(
            CurvePoint(
                share=n / max(pairs), prompts=n, pairs=n, error=1 - mean,
                accuracy=Estimate(value=mean, low=mean - 0.01, high=mean + 0.01, **counts),
                loss=Estimate(value=0.5, **counts), seconds=1.0, right=right,
            )
        )  # fmt: skip
    write_jsonl(folder / CURVE, [row.model_dump() for row in rows])
    write_json(folder / "pairs" / "manifest.json", {"judgments": 12000, "pairs": {"train": 4000, "test": 1000}})
    record = RunRecord(
        id="reward", stage="reward", status="finished", path=str(folder), seed=0, given={}, resolved={},
        headline={"ceiling_annotators": {"value": 0.83}}, inputs={"pairs": {"path": str(folder / "pairs")}},
    )  # fmt: skip
    write_json(folder / "run.json", record.model_dump())
    return folder


def law(floor: float, scale: float, power: float, pairs: Sequence[int] = TRAINED) -> list[float]:
    return [floor + scale * n**-power for n in pairs]


@pytest.mark.parametrize("errors", [[0.391, 0.325, 0.306, 0.272], [0.42, 0.27, 0.15, 0.04], [0.30, 0.29, 0.31, 0.32]])
def test_the_fit_is_weighted_least_squares(errors: list[float]) -> None:
    """Against scipy's curve_fit, on errors that no power law passes through, also where a bound holds the fit."""
    pairs = np.array(TRAINED, dtype=float)
    found = fit_curves(pairs, np.array([errors]))
    sigma = 1 / np.sqrt(np.arange(1, 5) / 4)
    theirs, _ = curve_fit(
        lambda n, floor, scale, power: floor + scale * n**-power, pairs, errors, p0=(0.1, 5.0, 0.5), sigma=sigma,
        bounds=([0, 0, 0.05], [1, 1000, 1]), xtol=1e-12, ftol=1e-12,
    )  # fmt: skip
    for n in (500, 4000, 16000):
        assert found.accuracy(n)[0] == pytest.approx(1 - theirs[0] - theirs[1] * n ** -theirs[2], abs=1e-3)


def test_a_known_curve_is_read_back_within_and_beyond_what_was_trained_on(tmp_path: Path) -> None:
    run = reward_run(tmp_path / "reward", law(0.15, 3.0, 0.4))
    for target, truth in ((0.68, (3 / 0.17) ** 2.5), (0.77, (3 / 0.08) ** 2.5)):
        found = plan(accuracy=target, curve=run)
        assert found.needed is not None and found.low is not None
        assert found.low <= truth and (found.high is None or truth <= found.high)
        assert found.needed == pytest.approx(truth, rel=0.1)
        assert ("an extrapolation" in found.text) == (truth > 4000)
        assert found.judgments == pytest.approx(3 * max(0, found.needed - 4000), abs=1)
    assert "people agree with each other's majority in 0.830" in found.text
    assert plan(accuracy=0.77, curve=run, votes=5).judgments == 5 * (found.needed - 4000)


def test_beyond_eight_times_what_was_trained_on_no_number_is_named(tmp_path: Path) -> None:
    run = reward_run(tmp_path / "reward", law(0.05, 1.6, 0.2))
    found = plan(accuracy=0.85, curve=run)  # the law says 2 million pairs
    assert found[:6] == (None,) * 6
    assert found.text.startswith("not within reach: at 8 times the 4,000 pairs trained on 0.7")


def test_a_curve_that_flattens_below_says_where(tmp_path: Path) -> None:
    run = reward_run(tmp_path / "reward", law(0.25, 60.0, 0.95))
    found = plan(accuracy=0.85, curve=run, seconds=30, rate=20)
    assert found[:6] == (None,) * 6
    assert found.text.startswith("not within reach: the curve flattens at 0.7")


def test_what_the_resampled_curves_disagree_on_is_left_open(tmp_path: Path) -> None:
    """A best fit that flattens is no proof: of 300 held-out prompts many draws give a curve that goes on rising."""
    run = reward_run(tmp_path / "reward", law(0.25, 3.0, 0.5), held_out=300)
    found = plan(accuracy=0.76, curve=run)
    assert found.text.startswith("not decided by this curve: by its best fit the curve flattens at 0.7")
    assert found.needed is None and found.high is None
    assert found.low is not None and 500 < found.low <= 32000


def test_what_no_curve_shows_is_not_said(tmp_path: Path) -> None:
    flat = reward_run(tmp_path / "flat", [0.300, 0.305, 0.302, 0.299], held_out=400)
    assert plan(accuracy=0.8, curve=flat).text.startswith("not known: from 500 to 4,000 pairs")
    reached = plan(accuracy=0.65, curve=flat, seconds=30, rate=20)
    assert reached.needed == 500 and (reached.judgments, reached.hours, reached.price) == (0, 0, 0)
    short = reward_run(tmp_path / "short", [0.4, 0.3, 0.25], [100, 200, 400])
    assert plan(accuracy=0.8, curve=short).text.startswith("not enough points: 3 sizes")


def test_resamples_spread_as_means_over_held_out_prompts_do(tmp_path: Path) -> None:
    found = resampled_errors(read_curve(reward_run(tmp_path / "reward", [0.4, 0.3, 0.2, 0.1], held_out=500)))
    assert found[0] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert found[1:].std(0) == pytest.approx([(e * (1 - e) / 500) ** 0.5 for e in (0.4, 0.3, 0.2, 0.1)], rel=0.1)
    rise = found[1:, 0] - found[1:, -1]  # both models judge the same prompts: 0.3 of them tell the two apart
    assert rise.std() == pytest.approx((0.3 * 0.7 / 500) ** 0.5, rel=0.1)


def test_fewer_held_out_prompts_give_wider_answers(tmp_path: Path) -> None:
    many = plan(accuracy=0.75, curve=reward_run(tmp_path / "many", law(0.15, 3.0, 0.4), held_out=8000))
    few = plan(accuracy=0.75, curve=reward_run(tmp_path / "few", law(0.15, 3.0, 0.4), held_out=800))
    assert many.low is not None and many.high is not None and few.low is not None
    assert few.low < many.low and (few.high is None or few.high > many.high)


def test_a_curve_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    run = reward_run(tmp_path / "reward", law(0.15, 3.0, 0.4), held_out=20)
    rows = (run / CURVE).read_text().splitlines()
    (run / CURVE).write_text("\n".join([*rows[:3], rows[3].replace('"p7"', '"p70"')]))
    with pytest.raises(BadInput, match="same held-out pairs"):
        plan(accuracy=0.7, curve=run)
    (run / CURVE).write_text('{"share": 1}\n')
    with pytest.raises(BadInput, match="not a point of a learning curve"):
        plan(accuracy=0.7, curve=run)
    (run / CURVE).unlink()
    with pytest.raises(BadInput, match="--curve"):
        plan(accuracy=0.7, curve=run)
