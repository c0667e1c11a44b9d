"""Which runs are one curve, and what its mean and interval are."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import load, statistics, survival
from analysis.statistics import Curve, curves, over_seeds, set_apart


def test_runs_that_differ_only_in_their_seed_are_one_curve(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run(loss, beta, seed=s) for s in range(3) for loss in ("ipo", "dpo") for beta in (0.5, 0.1)]
    found = curves(load(write_sweep(*runs)).runs)
    assert [(c.loss, c.beta, c.setting) for c in found] == [
        ("ipo", 0.1, ""), ("ipo", 0.5, ""), ("dpo", 0.1, ""), ("dpo", 0.5, "")
    ]  # fmt: skip
    assert all(len(c.ids) == 3 for c in found)


def test_other_things_swept_are_named_once(write_sweep: Any, make_run: Any) -> None:
    """`optimizer.lr` follows `lr`, and Adam's lack of momentum follows its name: neither is said twice."""
    adam = {"optimizer": {"name": "adam", "lr": 0.1}}
    runs = [make_run(lr=0.1), make_run(lr=0.2), make_run(lr=0.1, changes=adam)]
    assert [c.setting for c in curves(load(write_sweep(*runs)).runs)] == [
        "lr = 0.1, optimizer = sgd", "lr = 0.2, optimizer = sgd", "lr = 0.1, optimizer = adam"
    ]  # fmt: skip


def test_a_setting_that_follows_the_loss_needs_no_name(write_sweep: Any, make_run: Any) -> None:
    found = curves(load(write_sweep(make_run("dpo", lr=0.1), make_run("ipo", lr=0.001))).runs)
    assert [c.setting for c in found] == ["", ""]


def test_a_reward_model_is_a_curve_of_its_own_and_not_a_setting(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run(objective=o, seed=s) for s in range(2) for o in ("reward_model", "preference")]
    found = curves(load(write_sweep(*runs)).runs)
    assert [(c.loss, c.setting, c.objective, len(c.ids)) for c in found] == [
        ("dpo", "", "preference", 2), ("dpo", "", "reward_model", 2)
    ]  # fmt: skip


def history(*series: list[float]) -> pd.DataFrame:
    rows = [(f"r{i}", step, value) for i, values in enumerate(series) for step, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["run", "step", "margin"])


def test_the_interval_is_students_t() -> None:
    curve = Curve("dpo", 0.1, "", ("r0", "r1", "r2"))
    row = over_seeds(history([1.0], [2.0], [4.0], [99.0]), curve, "margin").iloc[0]  # r3 belongs to another curve
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)  # t(.975, 2); variance 7/3
    assert row["n"] == 3
    assert [row["mean"], row["low"], row["high"]] == pytest.approx([7 / 3, 7 / 3 - half, 7 / 3 + half], rel=1e-6)


def test_one_seed_has_a_line_and_no_interval() -> None:
    frame = over_seeds(history([1.0, 2.0]), Curve("dpo", 0.1, "", ("r0",)), "margin")
    assert list(frame["mean"]) == [1.0, 2.0] and frame[["low", "high"]].isna().all(axis=None)


def test_seeds_that_stop_early_or_are_not_finite_leave_the_mean_to_the_others() -> None:
    frame = over_seeds(history([1.0, 2.0, 3.0], [3.0, math.inf]), Curve("dpo", 0.1, "", ("r0", "r1")), "margin")
    assert list(frame["mean"]) == [2.0, 2.0, 3.0] and list(frame["n"]) == [2, 1, 1]


def test_diverged_runs_are_set_apart_from_the_mean() -> None:
    runs = pd.DataFrame({"state": ["finished", "diverged", "finished"]}, index=["a", "b", "c"])
    steady, blown = set_apart(runs, Curve("ipo", 0.1, "", ("a", "b", "c")))
    assert steady is not None and steady.ids == ("a", "c") and [c.ids for c in blown] == [("b",)]
    assert set_apart(runs, Curve("ipo", 0.1, "", ("b",)))[0] is None


def test_log_probabilities_are_averaged_as_logarithms(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(make_run(seed=1, log_pi_rejected=-2000.0), make_run(seed=2, log_pi_rejected=-1000.0)))
    (curve,) = curves(sweep.runs)
    frame = over_seeds(sweep.history, curve, "log_pi/rejected")
    assert frame["mean"].iloc[-1] == pytest.approx(-1500.0) and np.isfinite(frame["low"]).all()


def test_bands_of_shares_stay_between_0_and_1() -> None:
    """Student's t on accuracies 0, 1, 1, 1 gives .75 + .80."""
    accuracies = history([0.5, 0.0, 1.0], [0.5, 1.0, 1.0], [0.5, 1.0, 1.0], [0.5, 1.0]).rename(
        columns={"margin": "rewards/accuracies"}
    )
    frame = over_seeds(accuracies, Curve("dpo", 0.1, "", ("r0", "r1", "r2", "r3")), "rewards/accuracies")
    assert list(frame["mean"]) == [0.5, 0.75, 1.0]
    assert frame["low"].between(0, 1).all() and frame["high"].between(0, 1).all()
    assert frame["low"].iloc[1] < 0.75 < frame["high"].iloc[1] == 1.0
    assert list(frame.loc[[0, 2], "low"]) == list(frame.loc[[0, 2], "high"]) == [0.5, 1.0]


def scored(**losses: dict[str, list[float]]) -> pd.DataFrame:
    """scored(dpo={"a": [1, 2, 3]}): values of seeds 0, 1, 2 in setting a."""
    rows = [
        (f"{loss} {stratum} {seed}", loss, stratum, seed, value)
        for loss, own in losses.items()
        for stratum, values in own.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["run", "loss", "stratum", "seed", "value"]).set_index("run")


NOISE = [float(x) for x in np.random.default_rng(0).normal(size=40)]


def test_an_interval_depends_on_its_seed_and_on_nothing_else() -> None:
    data = scored(dpo={"a": NOISE[:10], "b": NOISE[10:20]}, ipo={"a": NOISE[20:30], "b": NOISE[30:]})
    for compare in (statistics.aggregate, statistics.paired, statistics.improvement):
        np.random.seed(1)
        first = compare(data, seed=3)
        np.random.seed(2)
        pd.testing.assert_frame_equal(first, compare(data, seed=3))
        other = compare(data, seed=4)
        assert not first["low"].equals(other["low"])
        assert first["low"].to_list() == pytest.approx(other["low"].to_list(), abs=0.1)


def test_the_bootstrap_is_within_settings_so_that_what_differs_between_them_widens_nothing() -> None:
    apart = statistics.aggregate(scored(dpo={"a": [0.0, 0.1] * 4, "b": [100.0, 100.1] * 4}), np.mean).loc["dpo"]
    assert apart["value"] == pytest.approx(50.05)
    assert 50.0 <= apart["low"] < 50.05 < apart["high"] <= 50.1
    assert (apart["runs"], apart["strata"]) == (16, 2)


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert statistics.interquartile_mean([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1e9]) == 4.5
    found = statistics.aggregate(scored(dpo={"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1e9]})).loc["dpo"]
    assert found["value"] == 4.5 and found["low"] < 4.5


def test_one_seed_in_a_setting_gives_no_interval() -> None:
    found = statistics.aggregate(scored(dpo={"a": [1.0, 2.0], "b": [3.0]})).loc["dpo"]
    assert math.isnan(found["low"]) and found["value"] == 2.0


def test_the_intervals_cover_what_they_should() -> None:
    """60 samples of 20 normal values; nominally 57 of the intervals hold their mean, and the percentile bootstrap is a
    little short of that."""
    draws = np.random.default_rng(5).normal(size=(60, 20))
    found = [statistics.aggregate(scored(dpo={"a": list(draw)}), np.mean).loc["dpo"] for draw in draws]
    assert 0.85 <= np.mean([row["low"] < 0 < row["high"] for row in found]) <= 1.0


def test_differences_are_taken_seed_by_seed_in_the_settings_both_losses_have() -> None:
    """Seeds vary by tens; the difference is 1 +- .1 in each. Ten pairs of one sign: p = 2/2^10."""
    base = [10.0 * x for x in NOISE[:10]]
    data = scored(
        dpo={"a": [x + 1 + 0.1 * e for x, e in zip(base, NOISE[10:20], strict=True)], "only": [5.0, 5.0]},
        ipo={"a": [*base, 99.0]},
    )
    (row,) = statistics.paired(data).to_dict("records")
    assert (row["loss"], row["other"], row["n"]) == ("dpo", "ipo", 10)
    assert row["difference"] == pytest.approx(1 + 0.1 * np.mean(NOISE[10:20])) and 0.85 < row["low"] < row["high"] < 1.1
    assert row["p"] == pytest.approx(2 / 2**10) == row["p_holm"]


def test_losses_without_a_seed_in_common_are_not_compared() -> None:
    assert statistics.paired(scored(dpo={"a": [1.0]}, ipo={"b": [1.0]})).empty
    assert statistics.improvement(scored(dpo={"a": [1.0]}, ipo={"b": [1.0]})).empty


def test_the_probability_of_improvement_counts_pairs_of_runs_and_ties_half() -> None:
    """Setting a: 3 > 1, 3 > 2, 2 > 1, 2 = 2: 3.5 of 4. Setting b: 0 of 4. Mean .4375."""
    (row,) = statistics.improvement(
        scored(dpo={"a": [3.0, 2.0], "b": [0.0, 0.0]}, ipo={"a": [1.0, 2.0], "b": [1.0, 2.0]})
    ).to_dict("records")
    assert row["probability"] == pytest.approx(0.4375) and row["strata"] == 2
    assert 0 <= row["low"] <= 0.4375 <= row["high"] <= 1


def test_holm_multiplies_by_what_is_left_and_never_reverses_an_order() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0] and statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_no_correction_and_bonferronis(p: list[float]) -> None:
    corrected = statistics.holm(p)
    assert all(a <= b <= min(1, a * len(p)) + 1e-12 for a, b in zip(p, corrected, strict=True))


def test_scores_are_the_final_values_by_loss_setting_and_seed(write_sweep: Any, make_run: Any) -> None:
    runs = [make_run(loss, beta, seed=s, noise=0.1) for loss in ("dpo", "ipo") for beta in (0.1, 0.5) for s in (1, 2)]
    sweep = load(write_sweep(*runs))
    last = sweep.history.groupby("run")["margin"].last()
    found = statistics.scores(sweep.runs, last)
    assert len(found) == 8 and found.groupby(["loss", "stratum"]).size().to_list() == [2, 2, 2, 2]
    assert found["value"].to_dict() == last.to_dict()
    compared = statistics.paired(found)
    assert compared["n"].to_list() == [4]


def test_a_value_that_is_not_finite_is_no_score(write_sweep: Any, make_run: Any) -> None:
    sweep = load(write_sweep(make_run(), make_run("ipo")))
    assert len(statistics.scores(sweep.runs, pd.Series([1.0, math.nan], index=sweep.runs.index))) == 1


# ---- time to collapse


def judged(onset: list[float], rows: int = 101) -> pd.DataFrame:
    return pd.DataFrame({"first_onset": onset, "rows": rows}, index=[f"r{i}" for i in range(len(onset))])


def test_a_run_that_never_collapses_is_censored_at_its_last_step() -> None:
    timed = survival.times(judged([10.0, math.nan]))
    assert timed["duration"].to_list() == [10.0, 100.0] and timed["collapsed"].to_list() == [True, False]


def test_survival_is_kaplan_and_meiers_product() -> None:
    """Onsets 10, 20, 40; one run ends without at 30: 3/4, then 2/3 of it, then (one left) 0."""
    verdicts = judged([10.0, 20.0, math.nan, 40.0])
    verdicts["rows"] = [101, 101, 31, 101]
    curve = survival.curves(survival.times(verdicts), {"dpo": list(verdicts.index)}).set_index("step")
    assert curve["survival"].to_dict() == pytest.approx({0: 1, 10: 0.75, 20: 0.5, 30: 0.5, 40: 0})
    assert curve["at_risk"].to_list() == [4, 4, 3, 2, 1]
    assert curve["low"].between(0, 1).all() and curve["high"].between(0, 1).all()


def test_the_median_is_infinite_where_most_runs_hold_out() -> None:
    timed = survival.times(judged([10.0, math.nan, math.nan, 5.0, 6.0, 7.0]))
    groups = {"ipo": ["r0", "r1", "r2"], "dpo": ["r3", "r4", "r5"], "none": []}
    found = survival.medians(timed, groups)
    assert found["median"].to_dict() == {"ipo": math.inf, "dpo": 6.0}
    assert found["collapsed"].to_list() == [1, 3]


def test_log_rank_tells_early_from_late_and_corrects_for_the_number_of_pairs() -> None:
    early, late = [float(x) for x in range(1, 11)], [float(x) for x in range(50, 60)]
    timed = survival.times(judged([*early, *late, *(x + 0.5 for x in late), *[math.nan] * 2]))
    groups = {"dpo": [f"r{i}" for i in range(10)], "ipo": [f"r{i}" for i in range(10, 20)],
              "exo": [f"r{i}" for i in range(20, 30)], "sft": ["r30"], "rpo": ["r31"]}  # fmt: skip
    found = survival.log_rank(timed, groups).set_index(["group", "other"])
    assert ("sft", "rpo") not in found.index and len(found) == 9
    assert found.loc[("dpo", "ipo"), "p"] < 1e-4 < 0.05 < found.loc[("ipo", "exo"), "p"]
    assert found.loc[("dpo", "ipo"), "p_holm"] == pytest.approx(9 * found["p"].min())
    assert survival.log_rank(timed, {"sft": ["r30"], "rpo": ["r31"]}).empty


@pytest.mark.parametrize("seed", range(5))
def test_log_rank_agrees_with_lifelines_with_ties_and_runs_that_end_early(seed: int) -> None:
    from lifelines.statistics import logrank_test  # type: ignore[import-untyped]

    rng = np.random.default_rng(seed)
    verdicts = judged(np.where(rng.random(60) < 0.6, rng.integers(0, 12, 60), math.nan).tolist())
    verdicts["rows"] = rng.integers(1, 15, 60) + 12
    timed = survival.times(verdicts)
    sizes = np.split(np.array(verdicts.index), [1, 3, 10, 30])
    groups = {f"g{i}": list(ids) for i, ids in enumerate(sizes)}
    found = survival.log_rank(timed, groups)
    assert len(found) >= 9
    for row in found.to_dict("records"):
        a, b = (timed.loc[groups[row[side]]] for side in ("group", "other"))
        theirs = logrank_test(a["duration"], b["duration"], a["collapsed"], b["collapsed"])
        assert (row["chi2"], row["p"]) == pytest.approx((theirs.test_statistic, theirs.p_value), rel=1e-9, abs=1e-12)


def test_groups_that_cannot_be_told_apart_at_any_collapse_differ_in_nothing() -> None:
    """The one run of `b` had ended before anything in `a` collapsed."""
    verdicts = judged([50.0, 60.0, math.nan])
    verdicts["rows"] = [101, 101, 11]
    (row,) = survival.log_rank(survival.times(verdicts), {"a": ["r0", "r1"], "b": ["r2"]}).to_dict("records")
    assert (row["chi2"], row["p"]) == (0.0, 1.0)
    assert survival.log_rank(survival.times(verdicts), {"a": ["r0", "r1"], "b": []}).empty


def test_log_rank_agrees_with_its_formula_by_hand() -> None:
    """Onsets a: 1, 3; b: 2, 4. Expected for a: 2/4 + 1/3 + 1/2; variance 1/4 + 2/9 + 1/4."""
    timed = survival.times(judged([1.0, 3.0, 2.0, 4.0]))
    (row,) = survival.log_rank(timed, {"a": ["r0", "r1"], "b": ["r2", "r3"]}).to_dict("records")
    assert row["chi2"] == pytest.approx((2 - 4 / 3) ** 2 / (13 / 18))
