"""Fitted growth of the margin of one pair, in a table of four actions, against closed forms."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import expit

from analysis.figures import draw as d
from analysis.figures.looks import LOOKS
from analysis.figures.sheet import Panel, sheet
from analysis.sweep import as_dicts
from experiments.study import Drawings, Frames, Number, Sweeps, Verdict
from src.theory.growth import adam_floor_u, adam_kappa, dpo_u_discrete

Array = npt.NDArray[np.float64]
MEMORY = {"adam": (0.9, 0.999), "rmsprop": (0.0, 0.99)}  # conf/optimizer/*.yaml; RMSprop has no first moment


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """sgd, adaptive, ipo: one row a run, with what was fitted and what was predicted."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, fitted in (("sgd", _sgd), ("adaptive", _adaptive), ("ipo", _ipo)):
        sweep = sweeps[name]
        rows = dict([*sweep.history.groupby("run", sort=False)])
        found[name] = []
        for run in as_dicts(sweep.runs):
            setting = {"optimizer": run["optimizer.name"], "beta": run["beta"], "lr": run["lr"]}
            found[name].append(setting | fitted(run, rows[run["id"]]))
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


def _sgd(run: dict[str, Any], history: pd.DataFrame) -> dict[str, float]:
    c = 2 * run["lr"] * run["beta"] ** 2
    t = np.unique(np.round(np.geomspace(1, history["step"].max(), 200)).astype(int))
    u = history["rewards/margins"].to_numpy()[t]
    line, late = dpo_u_discrete(t, c), t >= t[-1] / 10
    slope, predicted = (_slope(np.log(t[late]), values[late]) for values in (u, line))
    return {
        "c": c,
        "slope": slope,
        "predicted": predicted,
        "distance": float(np.abs(u - line).max()),
        "u": float(u[-1]),
    }


def _adaptive(run: dict[str, Any], history: pd.DataFrame) -> dict[str, float]:
    u, t = history["rewards/margins"].to_numpy(), history["step"].to_numpy(dtype=float)
    window = np.flatnonzero((u > 2) & (u < adam_floor_u(run["beta"], run["optimizer.eps"]) - 3))
    second = window[len(window) // 2 :]
    nothing = {"rows": len(window), "slope": np.nan, "predicted": np.nan, "linear": np.nan, "log": np.nan}
    if len(window) < 500:
        return nothing
    # |L1| = beta sigma(-u) falls with h at the rate beta sigma(u), which is beta but for the start.
    at = float(expit(u[second].mean()))
    kappa = adam_kappa(run["beta"] * at, run["lr"], MEMORY[run["optimizer.name"]])
    fits = {"linear": _left(t[second], u[second]), "log": _left(np.log(t[second]), u[second])}
    return nothing | {"slope": _slope(t[second], u[second]), "predicted": kappa / at, **fits}


def _ipo(run: dict[str, Any], history: pd.DataFrame) -> dict[str, float]:
    target = 1 / (2 * run["beta"])
    gap = target - history["margin"].to_numpy()
    seen = np.flatnonzero(gap > 1e-8 * target)
    factor = np.exp(_slope(seen.astype(float), np.log(gap[seen])))
    return {"slope": float(factor), "predicted": 1 - 4 * run["lr"], "final": float(history["margin"].iloc[-1])}


def _slope(x: Array, y: Array) -> float:
    return float(np.polyfit(x, y, 1)[0])


def _left(x: Array, y: Array) -> float:
    """Root mean square of what a straight line leaves."""
    return float(np.sqrt(np.mean((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2)))


def check(frames: Frames) -> list[Verdict]:
    return [_log(frames["sgd"]), _linear(frames["adaptive"]), _exponential(frames["ipo"])]


def _log(runs: pd.DataFrame) -> Verdict:
    off = (runs["slope"] / runs["predicted"] - 1).abs()
    numbers = (
        *_each(runs, "du/dlog t"),
        Number("largest relative error of a slope", float(off.max()), expected=0.0),
        *(
            Number(f"largest distance in u, c {where} 1", float(runs.loc[those, "distance"].max()), expected=0.0)
            for where, those in (("up to", runs["c"] <= 1), ("above", runs["c"] > 1))
            if those.any()
        ),
    )
    said = (
        f"{len(runs)} runs; slopes agree to {off.max():.2%}, margins to {runs['distance'].max():.2g} in u. "
        f"The slope is {runs['predicted'].min():.2f} to {runs['predicted'].max():.2f}: it tends to 1 once c t is large."
    )
    far = runs["distance"] > 0.05
    if (off > 0.02).any() or (far & (runs["c"] <= 1)).any():
        return Verdict("growth-sgd", "refuted", said, numbers)
    if far.any():
        return Verdict("growth-sgd", "holds under conditions", f"For steps of c up to 1. {said}", numbers)
    return Verdict("growth-sgd", "holds", said, numbers)


def _linear(runs: pd.DataFrame) -> Verdict:
    seen = runs.dropna(subset="slope")
    off = (seen["slope"] / seen["predicted"] - 1).abs()
    straight = seen["linear"] < seen["log"]
    numbers = (
        *_each(seen, "du/dt"),
        Number("largest relative error of a slope", float(off.max()), expected=0.0),
        Number("share of runs that a line fits better than a + b log t", float(straight.mean()), expected=1.0),
        Number("runs with a window to fit, of all", len(seen) / len(runs)),
    )
    said = f"{len(seen)} of {len(runs)} runs have a window to fit; their slopes agree to {off.max():.1%}."
    good = len(seen) > 0 and bool((off <= 0.05).all() and straight.all())
    return Verdict("growth-adaptive", "holds" if good else "refuted", said, numbers)


def _exponential(runs: pd.DataFrame) -> Verdict:
    off = float((runs["slope"] - runs["predicted"]).abs().max())
    numbers = (*_each(runs, "factor an update"), Number("largest error of a factor", off, expected=0.0))
    said = f"{len(runs)} runs; the factor is 1 - 4 lr to {off:.1e} at every tau."
    return Verdict("growth-ipo", "holds" if off <= 1e-6 else "refuted", said, numbers)


def _each(runs: pd.DataFrame, what: str) -> tuple[Number, ...]:
    return tuple(
        Number(
            f"{what}, {run['optimizer']}, beta {run['beta']:g}, lr {run['lr']:g}",
            run["slope"],
            expected=run["predicted"],
        )
        for _, run in runs.iterrows()
    )


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {"slopes": lambda: _draw(frames)}


def _draw(frames: Frames) -> Figure:
    """How far fitted rates are from predicted ones. Full runs are within 1 %, the limit of the axis."""
    panels = {
        "DPO, SGD: du/dlog t": frames["sgd"],
        "DPO, Adam and RMSprop: du/dt (1/update)": frames["adaptive"].dropna(subset="slope"),
        "IPO, SGD: rate of approach −log factor (1/update)": frames["ipo"].assign(
            slope=-np.log(frames["ipo"]["slope"]), predicted=-np.log(frames["ipo"]["predicted"])
        ),
    }
    settings = list(
        dict.fromkeys(
            (o, b) for frame in frames.values() for o, b in zip(frame["optimizer"], frame["beta"], strict=True)
        )
    )
    optimizers, betas = (list(dict.fromkeys(pair[i] for pair in settings)) for i in (0, 1))
    keys = [
        Line2D([], [], color=LOOKS[i].colour, marker="o", linestyle="", label=f"β = {beta:g}", **d.MARKER)
        for i, beta in enumerate(betas)
    ] + [
        Line2D([], [], color="0.4", marker="os^"[i], linestyle="", label=optimizer, **d.MARKER)
        for i, optimizer in enumerate(optimizers)
    ]  # fmt: skip
    note = "One pair, four actions. A point is a run: how far its fitted rate is from the predicted one, at that rate."
    with sheet([*panels], "predicted rate (log scale)", [Panel("error of the fit (%)", 30.0)], [keys], note) as on:
        on.axes[0].set_xscale("log")
        for ax, frame in zip(on.axes, panels.values(), strict=True):
            for _, run in frame.iterrows():
                marks: dict[str, Any] = d.MARKER | {"marker": "os^"[optimizers.index(run["optimizer"])]}
                colour = LOOKS[betas.index(run["beta"])].colour
                off = 100 * (run["slope"] / run["predicted"] - 1)
                ax.plot(run["predicted"], off, color=colour, linestyle="", zorder=3, **marks)
            ax.axhline(0, color="black", linewidth=0.8, linestyle=(0, (4, 2.5)), zorder=2)
            ax.set_ylim(-1, 1)
    return on.figure
