"""Which runs are one curve, and what its mean and interval are."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import load
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
