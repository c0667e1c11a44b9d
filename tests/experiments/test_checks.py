"""Each check on tables written by hand, in which its claim is true, true under conditions, or false."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.bradley_terry import check as bradley_terry
from experiments.finite_data import check as finite_data
from experiments.growth_laws import check as growth_laws
from experiments.kl_estimators import check as kl_estimators
from experiments.notebook_dpo_ipo import check as notebook
from experiments.softplus import check as softplus

CONDITIONS = "holds under conditions"


def outcomes(verdicts):
    return {verdict.claim: verdict.outcome for verdict in verdicts}


def bradley_terry_frames(deviation=1e-17, settled=2.0, slope=1.0, worked=(0.609, 0.609)):
    t = np.unique(np.round(np.geomspace(1, 1e5, 81)).astype(int))
    connected = pd.DataFrame({"data": "met", "epoch": t, "range": settled, "away": 0.0})
    separable = pd.DataFrame({"data": "never", "epoch": t, "range": slope * np.log(t), "away": np.nan})
    return {
        "forms": pd.DataFrame([{"largest": 10.0, "deviation": deviation, "allowed": 1e-14, "wrong": 0.0}]),
        "descent": pd.concat([connected, separable]),
        "asymptotes": pd.DataFrame(
            {"data": ["met", "never"], "connected": [True, False], "range": [2.0, np.nan], "slope": [0.0, 1.0]}
        ),
        "worked": pd.DataFrame(
            [{"games": str(p), "p": p, "low": 0.3, "high": 0.9, "w_B": -0.8, "w_C": -0.4} for p in worked]
        ),
    }


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (bradley_terry_frames(), {"C1": "holds", "C2": CONDITIONS, "C17": "holds"}),
        (bradley_terry_frames(deviation=1e-3), {"C1": "refuted"}),
        (bradley_terry_frames(slope=0.0), {"C2": "refuted"}),
        (bradley_terry_frames(slope=1.1), {"C2": "refuted"}),
        (bradley_terry_frames(worked=(0.603, 0.609)), {"C17": CONDITIONS}),
        (bradley_terry_frames(worked=(0.5, 0.5)), {"C17": "refuted"}),
    ],
)
def test_bradley_terry(frames, expected):
    assert outcomes(bradley_terry.check(frames)).items() >= expected.items()


def test_scores_that_never_settle_anywhere_would_make_the_claim_of_divergence_hold():
    frames = bradley_terry_frames()
    met = frames["descent"]["data"] == "met"
    frames["descent"].loc[met, "range"] = np.log(frames["descent"].loc[met, "epoch"])
    frames["descent"].loc[met, "away"] = 1.0
    assert outcomes(bradley_terry.check(frames))["C2"] == "holds"


def kl_frames(mean=None, sd=None, everywhere=None, least=1e-12, ours=(0.0, 0.0), naive=(0.0, 0.0)):
    mean = {"k1": 0.125, "k2": 0.062, "k3": 0.126} | (mean or {})
    sd = {"k1": 0.5, "k2": 0.19, "k3": 0.18} | (sd or {})
    rows = [
        {"name": name, "shift": m, "mean": mean[name], "mean_half": 0.0, "sd": sd[name], "sd_half": 0.0,
         "exact_mean": mean[name], "exact_sd": (sd if m == 0.5 else everywhere or sd)[name]}
        for m in (0.5, 2.0)
        for name in ("k1", "k2", "k3")
    ]  # fmt: skip
    signs = [
        {"dtype": "float32", "formula": formula, "negative": shares[0], "zero": shares[1], "at_zero": 0.0, "least": 0.0}
        for formula, shares in (("k3", ours), ("r - 1 - log r", naive))
    ]
    means = pd.DataFrame({"noise": [0.1, 1.0], "k3": [least, 0.5], "kl": [0.1, 0.5]})
    return {"moments": pd.DataFrame(rows), "signs": pd.DataFrame(signs), "means": means}


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (kl_frames(), {"C8": "holds", "C9": "holds"}),
        (kl_frames(everywhere={"k1": 0.1, "k2": 0.2, "k3": 0.3}), {"C8": CONDITIONS}),
        (kl_frames(mean={"k2": 0.1328}), {"C8": "refuted"}),
        (kl_frames(mean={"k3": 0.2}), {"C8": "refuted"}),
        (kl_frames(sd={"k3": 0.2}), {"C8": "refuted"}),
        (kl_frames(naive=(0.1, 0.2)), {"C9": CONDITIONS}),
        (kl_frames(ours=(0.0, 0.1)), {"C9": "refuted"}),
        (kl_frames(least=0.0), {"C9": "refuted"}),
    ],
)
def test_kl_estimators(frames, expected):
    assert outcomes(kl_estimators.check(frames)).items() >= expected.items()


def softplus_frames(**errors):
    """Largest error of the value by dtype: of softplus and of logsigmoid."""
    rows = []
    for dtype, (built_in, other) in errors.items():
        for form, worst in ((softplus.BUILT_IN, built_in), (softplus.OTHER, other), (softplus.NAIVE, math.inf)):
            rows += [{"dtype": dtype, "form": form, "u": u, "value": worst * u, "gradient": 0.5} for u in (0.5, 1.0)]
    return {"errors": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (softplus_frames(float16=(1, 3), float32=(1, math.inf)), "holds"),
        (softplus_frames(float16=(1, 3), float32=(1, 1)), CONDITIONS),
        (softplus_frames(float16=(1, 1.5), float32=(1, 1)), "refuted"),
        (softplus_frames(float16=(3, 1), float32=(1, 1)), "refuted"),
        (softplus_frames(float16=(math.inf, math.inf)), "refuted"),
    ],
)
def test_softplus(frames, expected):
    assert outcomes(softplus.check(frames)) == {"C10": expected}


def growth_frames(sgd=1.0, distance=0.0, c=0.1, adaptive=1e-3, linear=0.0, ipo=0.96):
    setting = {"optimizer": "sgd", "beta": 0.5, "lr": 0.01}
    fitted = {"slope": adaptive, "predicted": 1e-3, "linear": linear, "log": 0.5}
    return {
        "sgd": pd.DataFrame([setting | {"c": c, "slope": sgd, "predicted": 1.0, "distance": distance, "u": 5.0}]),
        "adaptive": pd.DataFrame([setting | fitted, setting | dict.fromkeys(fitted, np.nan)]),
        "ipo": pd.DataFrame([setting | {"slope": ipo, "predicted": 0.96, "final": 1.0}]),
    }


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (growth_frames(), {"growth-sgd": "holds", "growth-adaptive": "holds", "growth-ipo": "holds"}),
        (growth_frames(sgd=1.05), {"growth-sgd": "refuted"}),
        (growth_frames(distance=0.1), {"growth-sgd": "refuted"}),
        (growth_frames(distance=0.1, c=2.0), {"growth-sgd": CONDITIONS}),
        (growth_frames(adaptive=1.1e-3), {"growth-adaptive": "refuted"}),
        (growth_frames(linear=0.6), {"growth-adaptive": "refuted"}),
        (growth_frames(adaptive=np.nan), {"growth-adaptive": "refuted"}),
        (growth_frames(ipo=0.961), {"growth-ipo": "refuted"}),
    ],
)
def test_growth_laws(frames, expected):
    assert outcomes(growth_laws.check(frames)).items() >= expected.items()


def finite_data_frames(ns=(1, 2, 50), certain_collapse=True, mixed_collapse=False, share=finite_data.exact):
    rows = [
        {"loss": loss, "beta": beta, "p_star": 0.8, "n": n, "seed": seed,
         "certain": (certain := seed < round(40 * share(0.8, n))),
         "collapsed": loss == "dpo" and (certain_collapse if certain else mixed_collapse), "u": 0.0}
        for loss in ("dpo", "ipo")
        for beta in (0.1, 1.0)
        for n in ns
        for seed in range(40)
    ]  # fmt: skip
    return {"runs": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (finite_data_frames(ns=(1, 2)), "holds"),
        (finite_data_frames(), CONDITIONS),
        (finite_data_frames(certain_collapse=False), "refuted"),
        (finite_data_frames(mixed_collapse=True), "refuted"),
        (finite_data_frames(share=lambda p, n: 0.5), "refuted"),
    ],
)
def test_finite_data(frames, expected):
    assert outcomes(finite_data.check(frames)) == {"C7": expected}


def notebook_runs(**changes):
    """One row a run, as the claims would have it, but for `changes`: sweep -> columns."""
    rows = []
    sound = {"rises": 0, "stable": True, "u_start": 0.0, "u": 5.0, "h": 10.0, "b": -9.0, "log_rejected": -20.0,
             "last_token": -8.0, "fall": -1.0, "optimizer": "sgd"}  # fmt: skip
    for seed in (1, 2):
        for sweep in ("long_dpo", "table_dpo", "notes_dpo"):
            for beta in (0.1, 0.5):
                rows.append(sound | {"sweep": sweep, "loss": "dpo", "beta": beta, "lr": 0.1, "seed": seed})
        for sweep, tokens in (("long_ipo", 1), ("notes_ipo", 4)):
            for beta in (0.1, 0.5):
                stopped = {"h": tokens / (2 * beta), "log_rejected": -20 + 10 * beta, "fall": 0.0}
                rows.append(sound | stopped | {"sweep": sweep, "loss": "ipo", "beta": beta, "lr": 1e-4, "seed": seed})
        for form in ("", "_notes"):
            for loss, optimizer, largest in (("dpo", "sgd", 1), ("ipo", "sgd", 0.01), ("ipo", "adam", 0.1)):
                for beta in (0.1, 0.5):
                    for lr in (0.001, 0.01, 0.1, 1.0):
                        setting = {"sweep": f"rates_{optimizer}{form}", "loss": loss, "optimizer": optimizer}
                        setting |= {"beta": beta, "lr": lr, "seed": seed, "stable": lr <= largest}
                        rows.append(sound | setting)
    runs = pd.DataFrame(rows)
    for sweep, columns in changes.items():
        for column, value in columns.items():
            runs.loc[runs["sweep"] == sweep, column] = value
    return runs


def notebook_frames(kl=lambda loss, step, beta: 1 / beta, **changes):
    table = [
        {"loss": loss, "step": step, "beta": beta, "kl": kl(loss, step, beta)}
        for loss in ("dpo", "ipo")
        for step in notebook.TIMES
        for beta in (0.1, 0.5, 1.0)
    ]
    return {"runs": notebook_runs(**changes), "kl": pd.DataFrame(table)}


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (notebook_frames(), dict.fromkeys(("C3", "C4", "C5", "C11", "C12"), "holds")),
        (notebook_frames(long_dpo={"fall": 0.0}), {"C3": CONDITIONS}),
        (notebook_frames(long_dpo={"fall": 0.0}, table_dpo={"b": -1.0}), {"C3": "refuted"}),
        (notebook_frames(notes_ipo={"h": 0.1}), {"C4": CONDITIONS}),
        (notebook_frames(long_ipo={"h": 0.1}), {"C4": "refuted"}),
        (notebook_frames(long_ipo={"log_rejected": -20.0}), {"C4": "refuted"}),
        (notebook_frames(rates_sgd={"stable": True}), {"C5": CONDITIONS}),
        (notebook_frames(rates_sgd={"stable": True}, rates_sgd_notes={"stable": True}), {"C5": "refuted"}),
        (notebook_frames(rates_adam={"stable": True}), {"C5": "refuted"}),
        (notebook_frames(notes_dpo={"rises": 1}), {"C11": "refuted"}),
        (notebook_frames(notes_dpo={"u": -1.0}), {"C11": "refuted"}),
        (notebook_frames(kl=lambda loss, step, beta: beta if step < 100 else 1 / beta), {"C12": CONDITIONS}),
        (notebook_frames(kl=lambda loss, step, beta: beta), {"C12": "refuted"}),
    ],
)
def test_notebook_dpo_ipo(frames, expected):
    assert outcomes(notebook.check(frames)).items() >= expected.items()
