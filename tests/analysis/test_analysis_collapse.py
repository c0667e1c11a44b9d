"""Verdicts on histories in closed form, where what happened and when is known by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import collapse, growth_law, passes, theory
from analysis.collapse import DEFAULT, LABELS, Thresholds, sensitivity, verdicts
from tests.analysis.large import write

Columns = dict[str, Any]
LN100 = math.log(100)


def frames(*runs: tuple[Columns, Columns]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(columns of the history, settings) of each run -> `Sweep.runs`, `Sweep.history`."""
    rows, parts = [], []
    for i, (columns, own) in enumerate(runs):
        columns = {"loss": np.linspace(1.0, 0.5, len(next(iter(columns.values()))))} | columns
        parts.append(pd.DataFrame({"run": f"r{i}", "step": np.arange(len(columns["loss"])), **columns}))
        rows.append({"id": f"r{i}", "beta": 0.5, "state": "finished", "stopped_at": math.nan} | own)
    return pd.DataFrame(rows).set_index("id", drop=False).rename_axis(None), pd.concat(parts, ignore_index=True)


def judge(columns: Columns, thresholds: Thresholds = DEFAULT, **own: Any) -> "pd.Series[Any]":
    return verdicts(*frames((columns, own)), thresholds).iloc[0]


def single_pair(h: Any, beta: float, lr: float = 1.0) -> Columns:
    """A pair under a uniform reference over three actions: a and b follow from h (tabular softmax)."""
    h = np.asarray(h, dtype=float)
    log_z = np.log((np.exp(-np.abs(h)) + 1 + np.exp(-np.abs(h) / 2)) / 3) + np.abs(h) / 2
    a, b = h / 2 - log_z, -h / 2 - log_z
    log_pi = [x - math.log(3) for x in (a, b, -log_z)]
    return {
        "margin": h, "rewards/margins": beta * h, "log_ratios/chosen": a, "log_ratios/rejected": b,
        "log_pi/chosen": log_pi[0], "log_pi/rejected": log_pi[1], "lr": np.full(len(h), lr),
        "loss": np.logaddexp(0, -beta * h), **{f"log_pi/0/{k}": x for k, x in enumerate(log_pi)},
    }  # fmt: skip


def dpo(steps: int, beta: float = 0.5, eta: float = 0.1) -> Columns:
    t = np.arange(steps)
    return single_pair(theory.dpo_sgd_margin(t, h0=0.0, beta=beta, eta=eta, K=2.0), beta, eta)


def ipo(steps: int, beta: float = 0.5, eta: float = 0.01) -> Columns:
    t = np.arange(steps)
    return single_pair(theory.ipo_sgd_margin(t, h0=0.0, beta=beta, eta=eta, K=2.0), beta, eta)


# ---- the labels, one by one


def test_dpos_logarithmic_growth_is_margin_collapse_from_the_step_theory_gives() -> None:
    """u + e^u = 1 + c t reaches 4.6 at t = (4.6 + e^4.6 - 1)/c; c = K eta beta^2 = .05: 2061.7, so step 2062."""
    found = judge(dpo(6000), beta=0.5)
    assert found["label"] == "margin collapse"
    assert found["C1_onset"] == found["onset"] == math.ceil((4.6 + math.exp(4.6) - 1) / 0.05) == 2062
    assert found["onset_time"] == pytest.approx(0.1 * 2062)
    assert found["growth"] == "log" and found["du_dlog_s"] == pytest.approx(1.0, abs=0.03)


def test_dpo_that_has_not_come_so_far_is_not_there_yet() -> None:
    found = judge(dpo(2000), beta=0.5)
    assert not found["C1"] and found["label"] == "rejected collapse"  # which comes first
    assert judge(dpo(100), beta=0.5)["label"] == "none"


@pytest.mark.parametrize("beta", [0.01, 0.05, 0.5])
def test_ipos_exponential_approach_is_no_collapse_however_large_its_target(beta: float) -> None:
    """u* = 1/2 whatever beta. For beta = .01 b ends at -25, a hundred-billionth, and stays there."""
    found = judge(ipo(2000, beta), beta=beta)
    assert found["label"] == "none" and found["growth"] in ("bounded", "flat")
    assert not found[["C1", "C2", "C3", "C4"]].any()
    assert found["h"] == pytest.approx(1 / (2 * beta))


def test_a_bound_beyond_the_threshold_is_a_large_margin_and_no_collapse() -> None:
    """EXO's optimum is u = log((1 - e)/e) = 6.9 for e = 1e-3."""
    t = np.arange(3000)
    found = judge(single_pair(6.9 * (1 - np.exp(-t / 200)) / 0.5, 0.5), beta=0.5)
    assert found["C1"] and not found["C2"] and found["growth"] == "bounded" and found["label"] == "none"


def test_adams_linear_growth_is_margin_collapse_with_a_dead_gradient() -> None:
    """u = 5.05e-3 t passes 4.6 after step 910.9; s(-u) < .01 when u > 4.595, after 909.9, at undiminished speed."""
    found = judge(single_pair(0.0101 * np.arange(3000), 0.5), beta=0.5)
    assert found["label"] == "margin collapse" and found["growth"] == "linear"
    assert found["onset"] == 911 and found["C11"] and found["C11_onset"] == 910


def test_gradient_descent_leaves_no_dead_gradient_that_moves() -> None:
    assert not judge(dpo(6000), beta=0.5)["C11"]


def test_a_rejected_response_that_keeps_falling_is_rejected_collapse_before_the_margin_collapses() -> None:
    """b = -2 log(1 + t/10) passes -log 100 when 1 + t/10 = 10, at t = 90: step 91 is the first below."""
    t = np.arange(2000)
    b = -2 * np.log1p(t / 10)
    found = judge(
        {"margin": -b, "rewards/margins": -0.1 * b, "log_ratios/chosen": 0 * b, "log_ratios/rejected": b}, beta=0.1
    )
    assert found["label"] == "rejected collapse" and found["onset"] == found["first_onset"] == 91
    assert found["db_dlog_s"] == pytest.approx(-2, abs=0.05)


def test_pairs_whose_both_responses_fall_are_displaced_from_the_first_step_below_the_reference() -> None:
    """a = -t/1000 is below -.01 from step 11 on, below -log 2 (severe) at the end."""
    t = np.arange(1000)
    found = judge({"margin": t / 1e4, "rewards/margins": t / 1e5, "log_ratios/chosen": -t / 1000,
                   "log_ratios/rejected": -t / 900})  # fmt: skip
    assert found["label"] == "displacement" and found["onset"] == 11 and found["displacement"] == "severe"


def test_a_chosen_response_that_falls_while_the_loss_rises_is_not_displacement() -> None:
    t = np.arange(1000)
    columns = {"rewards/margins": -t / 1e5, "log_ratios/chosen": -t / 1000, "log_ratios/rejected": -t / 1e4}
    assert judge(columns | {"loss": 1 + t / 1000})["label"] == "none"


def test_a_displacement_that_is_made_good_again_does_not_count() -> None:
    a = -np.sin(np.linspace(0, np.pi, 1000))
    assert judge({"rewards/margins": 0 * a, "log_ratios/chosen": a, "log_ratios/rejected": a})["label"] == "none"


def shared_features(slope: Any, lr: float, steps: int) -> Columns:
    """Gradient descent on W and h of logits W h: Razin et al. 2410.08847's setting with three tokens, w, l and z."""
    W, h = np.array([[4.0, 0.0], [4.0, -1.0], [4.0, 4.0]]), np.array([0.5, 0.0])
    rows = []
    for _ in range(steps):
        logits = W @ h
        log_pi = logits - np.logaddexp.reduce(logits)
        rows.append(log_pi)
        dz = slope(log_pi[0] - log_pi[1]) * np.array([1.0, -1.0, 0.0])  # log pi's normaliser cancels in the margin
        W, h = W - lr * np.outer(dz, h), h - lr * W.T @ dz
    log_pi = np.array(rows)
    a, b = log_pi[:, 0] + math.log(3), log_pi[:, 1] + math.log(3)
    return {"margin": a - b, "log_ratios/chosen": a, "log_ratios/rejected": b, "log_pi/chosen": log_pi[:, 0],
            "log_pi/rejected": log_pi[:, 1], **{f"log_pi/0/{k}": log_pi[:, k] for k in range(3)}}  # fmt: skip


def test_shared_features_disperse_the_policy_under_ipo_though_its_margin_is_bounded() -> None:
    """beta = .1, lr .001: the margin stops at 5, pi(chosen) falls from .333 to .017 and .983 goes to a third token."""
    columns = shared_features(lambda h: theory.ipo_slope(h, 0.1), 1e-3, 1000)
    assert np.exp(columns["log_pi/chosen"][-1]) == pytest.approx(0.0170, abs=1e-4)
    found = judge(columns | {"rewards/margins": 0.1 * columns["margin"]}, beta=0.1)
    assert found["label"] == "dispersion" and found["displacement"] == "catastrophic"
    unaccounted = 1 - np.exp(columns["log_pi/chosen"]) - np.exp(columns["log_pi/rejected"])
    by_hand = max(np.argmax(columns["log_ratios/chosen"] < -0.01), np.argmax(unaccounted > unaccounted[0] + 0.1))
    assert found["onset"] == by_hand > 0 and not found["C1"] and found["h"] == pytest.approx(5.0, abs=1e-3)


def test_shared_features_make_dpos_collapse_a_full_one() -> None:
    columns = shared_features(lambda h: theory.dpo_slope(h, 1.0), 0.01, 4000)
    found = judge(columns | {"rewards/margins": columns["margin"]}, beta=1.0)
    assert found["C1"] and found["C2"] and found["C4"]
    assert found["label"] == "full collapse" and found["onset"] == max(found["C1_onset"], found["C4_onset"])


def test_a_run_that_diverged_is_that_and_nothing_else_from_its_step() -> None:
    columns = dpo(6000)
    columns["rewards/margins"][-1] = math.nan
    found = judge(columns, beta=0.5, state="diverged", stopped_at=5999.0)
    assert found["label"] == "diverged" and found["onset"] == 5999
    assert found["first_onset"] < 5999  # it had collapsed before


def test_a_run_too_short_to_judge_or_without_a_margin_has_no_label() -> None:
    short = {"rewards/margins": np.full(19, 50.0)}
    assert judge(short)["label"] is pd.NA and pd.isna(judge(short)["C3"])
    assert judge({"log_pi/chosen": np.full(100, -1.0)})["label"] is pd.NA
    blown = judge(short, state="diverged", stopped_at=18.0)
    assert blown["label"] == "diverged"


# ---- the indicators no label needs by itself


def test_a_gold_reward_below_its_price_in_kl_is_worse_than_the_reference() -> None:
    """R = 1 + t/1000, KL = t/100, beta = .5: J = R - 1 - KL/2 = -.004 t < 0 from step 1."""
    t = np.arange(500)
    columns = {collapse.GOLD_REWARD: 1 + t / 1000, "exact/kl": t / 100, "rewards/margins": t / 1000}
    found = judge(columns, beta=0.5)
    assert found["C6"] and found["C6_onset"] == 1
    assert not judge(columns | {collapse.GOLD_REWARD: 1 + t / 50}, beta=0.5)["C6"]
    off = judge(columns | {"exact/kl": 1 + t / 100}, beta=0.5)
    assert pd.isna(off["C6"])  # it did not start at its reference, so the reference's reward is not known


def test_a_gold_reward_that_falls_while_the_margin_grows_is_over_optimised() -> None:
    """R peaks at step 250 and falls by .001 a row; noise .01. Luck among 300 values, sqrt(2 log 300) = 3.4, and two
    more standard errors are a fall of .054, reached at 304 from the true peak, some rows earlier from a lucky one.
    """
    t = np.arange(800)
    reward = 1 - np.abs(t - 250) / 1000
    noisy = reward + np.random.default_rng(0).normal(0, 0.01, 800)
    found = judge({collapse.GOLD_REWARD: noisy, "rewards/margins": t / 100})
    assert found["C7"] and 280 < found["C7_onset"] < 330
    assert not judge({collapse.GOLD_REWARD: noisy, "rewards/margins": -t / 100})["C7"]
    for seed in range(5):
        level = np.random.default_rng(seed).normal(0, 0.01, 800)
        assert not judge({collapse.GOLD_REWARD: level, "rewards/margins": t / 100})["C7"]


def test_a_policy_with_one_response_left_is_deterministic() -> None:
    """Three actions, uniform: pi_w = 1/(1 + e^{-h/2} + e^{-h}) > .99 needs e^{-h/2} < .01, h > 9.2."""
    h = np.arange(2000) / 100
    found = judge(single_pair(h, 0.01))
    pi = 1 / (1 + np.exp(-h / 2) + np.exp(-h))
    assert found["C8"] and found["C8_onset"] == np.argmax(pi > 0.99) > 0
    entropy = -(pi * np.log(pi))  # any falling entropy will do
    by_entropy = judge({"rewards/margins": h, "exact/entropy": entropy, "exact/kl": h})
    assert by_entropy["C8"] and by_entropy["C8_onset"] == np.argmax(entropy < 0.1 * entropy[0])


def three_actions(end: tuple[float, ...], start: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)) -> Columns:
    part = np.linspace(0, 1, 100)
    pi = np.outer(1 - part, start) + np.outer(part, end)
    return {"rewards/margins": part, **{f"log_pi/0/{k}": np.log(pi[:, k]) for k in range(3)}}


def test_policies_that_end_alike_from_different_references_ignore_them() -> None:
    """Total variation at the start: .6. At the end .01 (ratio 1/60 < .05), or .1 (ratio 1/6)."""
    one, two = (0.8, 0.1, 0.1), (0.2, 0.7, 0.1)
    for last, ignores in (((0.97, 0.02, 0.01), True), ((0.88, 0.11, 0.01), False)):
        table = verdicts(*frames(
            (three_actions((0.98, 0.01, 0.01), one), {"model.ref_probs": "[0.8, 0.1, 0.1]", "seed": 1}),
            (three_actions(last, two), {"model.ref_probs": "[0.2, 0.7, 0.1]", "seed": 1}),
            (three_actions(last, two), {"model.ref_probs": "[0.2, 0.7, 0.1]", "seed": 2}),
        ))  # fmt: skip
        assert table["C9"].to_list() == [ignores, ignores, pd.NA]  # the third has no companion of its seed


def test_policies_of_all_betas_that_end_alike_ignore_beta() -> None:
    own = [{"beta": beta, "loss.beta": beta, "loss.name": name} for name in ("dpo", "ipo") for beta in (0.1, 1.0)]
    ends = [(0.98, 0.01, 0.01), (0.96, 0.03, 0.01), (0.96, 0.03, 0.01), (0.5, 0.3, 0.2)]
    table = verdicts(*frames(*((three_actions(end), those) for end, those in zip(ends, own, strict=True))))
    assert table["C10"].to_list() == [True, True, False, False]


def test_a_policy_that_ignores_its_reference_makes_margin_collapse_full() -> None:
    runs = [(dpo(6000), {"model.ref_probs": probs}) for probs in ("a", "b")]
    for k, shift in enumerate((-0.2, 0.1, 0.1)):
        runs[1][0][f"log_pi/0/{k}"] = runs[1][0][f"log_pi/0/{k}"] + shift * (np.arange(6000) < 100)
    table = verdicts(*frames(*runs))
    assert table["C9"].all() and (table["label"] == "full collapse").all() and (table["onset"] == 2062).all()


# ---- noise, passes, learning rates


def test_one_batch_over_a_threshold_is_no_onset() -> None:
    columns = dpo(6000)
    columns["rewards/margins"][500:509] = 50.0
    assert judge(columns, beta=0.5)["C1_onset"] == 2062
    columns["rewards/margins"][500:510] = 50.0
    assert judge(columns, beta=0.5)["C1_onset"] == 500


def test_what_is_judged_is_the_mean_over_a_pass_so_that_it_does_not_matter_which_pair_was_drawn() -> None:
    """Two pairs by turns, u = 0 and u = 2 x 5e-3 t: their mean 5e-3 t passes 4.6 after 920; the window ends there."""
    t = np.arange(3000)
    columns = {"rewards/margins": 0.01 * t * (t % 2), "margin": 0.02 * t * (t % 2)}
    assert judge(columns, pairs=1, batch_size=1)["label"] == "none"
    by_pass = judge(columns, pairs=2, batch_size=1)
    assert by_pass["label"] == "margin collapse" and by_pass["onset"] in (921, 922)
    assert judge(columns, pairs=2, batch_size="full")["label"] == "none"


def test_growth_is_counted_in_learning_rates_so_that_a_decaying_one_does_not_look_like_a_bound() -> None:
    """A cosine schedule stops DPO's steps, not its law: u = log(1 + s) is logarithmic in s, saturated in t."""
    t = np.arange(4000)
    lr = 0.5 * (1 + np.cos(np.pi * t / 4000))
    s = np.cumsum(lr) - lr
    columns = {"rewards/margins": np.log1p(s), "margin": 2 * np.log1p(s), "lr": lr}
    found = judge(columns)
    assert found["label"] == "margin collapse" and found["growth"] == "log"
    assert found["onset_time"] == pytest.approx(math.exp(4.6) - 1, abs=1.0)
    assert judge({key: columns[key] for key in ("rewards/margins", "margin")})["du_dlog_s"] < found["du_dlog_s"]


@pytest.mark.parametrize("series, law, slope", [
    (lambda s: 3 + 2 * np.log(s + 1e-9), "log", 2.0),
    (lambda s: 0.5 * s, "linear", None),
    (lambda s: np.sqrt(s), "power", None),
    (lambda s: 5 * (1 - np.exp(-s / 150)), "bounded", None),
    (lambda s: np.full_like(s, 7.0), "flat", 0.0),
])  # fmt: skip
def test_each_law_is_told_from_the_others(series: Any, law: str, slope: float | None) -> None:
    s = np.arange(1000.0)[None]
    found = growth_law.fit(s, series(s), np.array([1000]))
    assert found.law[0] == law
    assert slope is None or found.slope[0] == pytest.approx(slope, abs=1e-5)


def test_growth_under_adam_that_slows_down_within_the_record_is_not_taken_for_a_bound() -> None:
    """Reward margins of DPO, beta 0.5, Adam at 1e-4, on the toy Llama of hidden size 64, as measured."""
    update, u = [30, 60, 100, 150, 200, 250, 299], [2.79, 3.94, 4.61, 5.07, 5.36, 5.58, 5.77]
    t = np.arange(300.0)
    series = np.interp(np.log(np.maximum(t, 1)), np.log(update), u)
    assert growth_law.fit(t[None], series[None], np.array([300])).law[0] == "log"


def test_a_growth_law_stops_where_a_series_is_not_finite_any_more() -> None:
    s = np.arange(1000.0)[None]
    y = np.log(s + 1)
    cut = np.where(s < 900, y, np.inf)
    assert growth_law.fit(s, cut, np.array([1000])).law[0] == growth_law.fit(s, y, np.array([900])).law[0] == "log"
    assert growth_law.fit(s, np.full_like(s, np.nan), np.array([1000])).law[0] == ""


# ---- invariances


@settings(max_examples=30, deadline=None)
@given(c=st.floats(0.02, 1.0), longer=st.floats(1.5, 8.0), beta=st.floats(0.05, 2.0))
def test_a_label_and_its_onset_stay_when_training_goes_on(c: float, longer: float, beta: float) -> None:
    eta = c / (2 * beta**2)
    enough = math.ceil(1.5 * (4.6 + math.exp(4.6)) / c)
    at_first, later = (judge(dpo(n, beta, eta), beta=beta) for n in (enough, int(longer * enough)))
    assert at_first["label"] == later["label"] == "margin collapse"
    assert at_first["onset"] == later["onset"]


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.1, 10.0), steps=st.integers(300, 6000))
def test_margin_collapse_depends_on_beta_times_h_only(factor: float, steps: int) -> None:
    u = dpo(steps)["rewards/margins"]
    one, other = (judge({"rewards/margins": u, "margin": u / beta}, beta=beta) for beta in (0.5, 0.5 * factor))
    for column in ("label", "onset", "C1", "C2", "growth"):
        assert one[column] == other[column] or (pd.isna(one[column]) and pd.isna(other[column]))


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(4)))
def test_a_verdict_depends_on_its_own_run_only(order: list[int]) -> None:
    runs = [(dpo(3000), {"beta": 0.5}), (ipo(500), {"beta": 0.5}), (dpo(700, 0.1), {"beta": 0.1}), (ipo(40), {})]
    alone = [judge(columns, **own)[["label", "onset", "C1", "growth"]].to_list() for columns, own in runs]
    together = verdicts(*frames(*(runs[i] for i in order)))
    for position, i in enumerate(order):
        mine = together.iloc[position][["label", "onset", "C1", "growth"]].to_list()
        assert [x if pd.notna(x) else None for x in mine] == [x if pd.notna(x) else None for x in alone[i]]


# ---- sensitivity


def test_the_sensitivity_table_shows_which_labels_hang_on_which_threshold() -> None:
    """u ends at 5.7 and grows by 1 in log time: twice the threshold (9.2) is not reached, half of it is."""
    found = sensitivity(*frames((dpo(6000), {"beta": 0.5}), (ipo(1000), {"beta": 0.5})))
    at = found.set_index(["threshold", "factor"])
    assert set(found["threshold"]) == set(Thresholds.__dataclass_fields__) and len(found) == 2 * len(at.index.levels[0])
    assert at.loc[("reward_margin", 0.5), "changed"] == 0
    assert at.loc[("reward_margin", 2.0), "changed"] == 1 and at.loc[("reward_margin", 2.0), "margin collapse"] == 0
    assert at.loc[("hold", 0.5), "value"] == 5
    assert (found[list(LABELS)].sum(axis=1) == 2).all()


def test_runs_of_a_large_sweep_are_judged_as_they_are_one_by_one(tmp_path: Any) -> None:
    from analysis import load

    sweep = load(write(tmp_path / "large", runs=24, steps=300, seeds=2), columns=collapse.COLUMNS)
    table = verdicts(sweep.runs, sweep.history)
    assert len(table) == 24 and list(table.index) == list(sweep.runs.index)
    for run in table.index[[0, 7, 23]]:
        alone = verdicts(sweep.runs.loc[[run]], sweep.history[sweep.history["run"] == run])
        numbers = ["onset", "u", "b", "du_dlog_s"]
        assert alone[numbers].iloc[0].to_list() == pytest.approx(table.loc[run, numbers].to_list(), nan_ok=True)


def shuffled(pairs: int, passes: int, slope: float) -> Columns:
    """One pair a batch, each pass in another order; pair i has u = slope t (1 + s_i), and the s_i sum to 0."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(pairs) for _ in range(passes)])
    t = np.arange(pairs * passes)
    u = slope * t + 20.0 * np.linspace(-1, 1, pairs)[order]
    return {"rewards/margins": u, "margin": 2 * u}


def test_passes_of_shuffled_data_are_judged_whole_so_that_the_order_does_not_matter() -> None:
    """u is 5e-3 t plus what the pairs differ by, of which a whole pass has none: 4.6 is passed after 920. The mean over
    a pass is dated at its end, 4.5 updates after its middle. The mean over the last ten batches wanders by 10 and more.
    """
    columns = shuffled(10, 300, slope=5e-3)
    own = judge(columns, pairs=10, batch_size=1, sampling="shuffle")
    assert own["label"] == "margin collapse" and own["C1_onset"] == pytest.approx(920 + 4.5, abs=1.0)
    unaligned = judge(columns, pairs=10, batch_size=1, sampling="replacement")
    assert abs(unaligned["C1_onset"] - own["C1_onset"]) > 10


def test_a_pass_that_is_no_whole_number_of_batches_or_longer_than_a_hundred_is_a_sliding_mean() -> None:
    columns = shuffled(10, 300, slope=5e-3)
    sliding = judge(columns, pairs=10, batch_size=1, sampling="sequential")
    for own in ({"pairs": 19, "batch_size": 2}, {"pairs": 10, "batch_size": 1, "sampling": None}):
        assert judge(columns, **({"sampling": "shuffle"} | own))["C1_onset"] == pytest.approx(
            sliding["C1_onset"], nan_ok=True
        )


def test_the_end_of_a_run_is_the_mean_over_its_last_pass() -> None:
    runs, history = frames(({"margin": np.arange(10.0)}, {"pairs": 4, "batch_size": 1}), ({"margin": np.ones(2)}, {}))
    assert passes.at_end(runs, history, ["margin"])["margin"].to_dict() == {"r0": 7.5, "r1": 1.0}
