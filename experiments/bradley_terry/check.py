"""Bradley-Terry: two forms of one function, what diverges, and the worked example. Everything is computed here."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import expit

from analysis.figures import draw as d
from analysis.figures.looks import LOOKS
from analysis.figures.sheet import Panel, sheet
from experiments.study import Drawings, Frames, Number, Sweeps, Verdict
from src.bradley_terry import Comparisons, Fit, NoFiniteEstimate, descend, divergence, fit

EPS = float(np.finfo(np.float64).eps)
LR = 1.0  # the curvature of the mean -log likelihood is at most 1/2, so this is stable on all data
LARGEST = (1.0, 10.0, 300.0, 1000.0)  # scores are drawn from -largest to largest

WORKED = (("A", "B", 7), ("B", "A", 3), ("A", "C", 6), ("C", "A", 4), ("C", "B", 6), ("B", "C", 4))
TEAMS = ("Baltimore", "Cleveland", "Boston", "New York", "Toronto", "Detroit", "Milwaukee")
BASEBALL = (
    (0, 7, 1, 3, 1, 4, 2), (6, 0, 6, 6, 5, 4, 4), (12, 7, 0, 7, 6, 2, 6), (10, 7, 6, 0, 6, 8, 6),
    (12, 8, 7, 7, 0, 6, 4), (9, 9, 11, 5, 7, 0, 6), (11, 9, 7, 7, 9, 7, 0),
)  # fmt: skip
# Citations between journals and baseball: the data sets of BradleyTerry2 (Turner & Firth 2012). The two letter sets are
# D1 and D2 of Azar et al. 2023 (arXiv 2310.12036, sec. 5.4).
DATA = {
    "worked example": Comparisons.from_records(WORKED),
    "citations": Comparisons.from_matrix(
        [[0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]],
        ("Biometrika", "CommStat", "JASA", "JRSS-B"),
    ),
    "baseball": Comparisons.from_matrix(BASEBALL, TEAMS),
    "cycle": Comparisons.from_records([("a", "b"), ("b", "c"), ("c", "a")]),
    "total order": Comparisons.from_records([("a", "b"), ("b", "c"), ("a", "c")]),
    "never won": Comparisons.from_records([("a", "b"), ("b", "a"), ("b", "c")]),
    "one pair": Comparisons.from_records([("a", "b")]),
}


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """forms: largest difference of the two forms, by size of the scores. descent: range of scores against epochs.
    asymptotes: what each set should come to. worked: P(C beats B) by the games used.
    """
    epochs = 10_000 if fast else 100_000
    return {
        "forms": pd.DataFrame([_forms(largest) for largest in LARGEST]),
        "descent": pd.concat([_descent(name, epochs) for name in DATA], ignore_index=True),
        "asymptotes": pd.DataFrame([_asymptote(name) for name in DATA]),
        "worked": pd.DataFrame(
            [
                _worked("all 30 games", WORKED),
                _worked("the 20 games of A", [game for game in WORKED if "A" in game]),
            ]
        ),
    }


def _forms(largest: float, pairs: int = 100_000) -> dict[str, float]:
    s = np.random.default_rng(0).uniform(-largest, largest, (2, pairs))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        powers = np.exp(s)
        ratio = powers[0] / powers.sum(0)
    normal = (np.isfinite(powers) & (powers >= np.finfo(np.float64).tiny)).all(0)
    deviation = np.abs(ratio - expit(s[0] - s[1]))
    return {
        "largest": largest,
        "deviation": float(deviation[normal].max()),
        "allowed": 4 * EPS * (1 + largest),
        "wrong": 1 - float(np.mean(deviation <= 4 * EPS * (1 + largest))),  # NaN is wrong too
    }


def _descent(name: str, epochs: int) -> pd.DataFrame:
    at = np.unique(np.round(np.geomspace(1, epochs, 81)).astype(int))
    found = descend(DATA[name], epochs=epochs, lr=LR, at=at)
    goal = _quiet_fit(DATA[name])
    away = np.abs(found.scores - goal.scores).max(1) if goal.existence.finite else np.nan
    return pd.DataFrame({"data": name, "epoch": at, "range": np.ptp(found.scores, axis=1), "away": away})


def _asymptote(name: str) -> dict[str, object]:
    limit = divergence(DATA[name])
    return {
        "data": name,
        "connected": limit.existence.finite,
        "range": float(np.ptp(_quiet_fit(DATA[name]).scores)) if limit.existence.finite else np.nan,
        "slope": float(np.ptp(limit.slopes)),
    }


def _worked(games: str, records: object) -> dict[str, object]:
    found = fit(Comparisons.from_records(records), reference="A")  # type: ignore[arg-type]
    b, c = found.data.index("B"), found.data.index("C")
    gap, V = found.scores[c] - found.scores[b], found.covariance
    half = 1.959964 * np.sqrt(V[b, b] + V[c, c] - 2 * V[b, c])
    row = {"games": games, "p": expit(gap), "low": expit(gap - half), "high": expit(gap + half)}
    return row | {"w_B": found.scores[b], "w_C": found.scores[c]}


def _quiet_fit(data: Comparisons) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoFiniteEstimate)
        return fit(data)


def check(frames: Frames) -> list[Verdict]:
    return [_same_function(frames["forms"]), _diverges(frames), _example(frames["worked"])]


def _same_function(forms: pd.DataFrame) -> Verdict:
    good = bool((forms["deviation"] <= forms["allowed"]).all())
    finding = f"The probabilities differ by at most {forms['deviation'].max():.1e}" + (
        ", which is rounding." if good else ", more than rounding."
    )
    worst = forms.iloc[-1]
    if worst["wrong"] > 0:
        finding += (
            f" But exp(s) leaves the range of float64: of random scores up to {worst['largest']:g}, "
            f"{worst['wrong']:.0%} of the pairs are NaN or wrong in the exponential form, where "
            "sigma(s_i - s_j) needs their difference only."
        )
    numbers = tuple(
        Number(f"largest difference, scores up to {row['largest']:g}", row["deviation"], expected=0.0)
        for _, row in forms.iterrows()
    )
    return Verdict("C1", "holds" if good else "refuted", finding, numbers)


def _diverges(frames: Frames) -> Verdict:
    numbers, settled, grew = [], {}, {}
    for _, limit in frames["asymptotes"].iterrows():
        own = frames["descent"][frames["descent"]["data"] == limit["data"]]
        last, late = own.iloc[-1], own[own["epoch"] >= own["epoch"].max() / 10]
        slope = float(np.polyfit(np.log(late["epoch"]), late["range"], 1)[0])
        name, early = limit["data"], own.iloc[(own["epoch"] - 100).abs().argmin()]
        if limit["connected"]:
            settled[name] = bool(last["away"] < 1e-6)
            grew[name] = slope > 0.01 and not settled[name]
        else:
            grew[name] = abs(slope / limit["slope"] - 1) < 0.02
            settled[name] = slope < 0.01
        expected = None if not limit["connected"] else float(limit["range"])
        what = f"range of scores, {name}"
        numbers.append(Number(f"{what}, {early['epoch']:g} epochs (nats)", float(early["range"]), expected=expected))
        numbers.append(Number(f"{what}, {last['epoch']:,g} epochs (nats)", float(last["range"]), expected=expected))
        numbers.append(Number(f"d {what} / d log t, last decade", slope, expected=float(limit["slope"])))
    connected = frames["asymptotes"].set_index("data")["connected"].astype(bool)
    which, others = connected[connected].index, connected[~connected].index
    if all(grew[name] for name in connected.index):
        return Verdict("C2", "holds", "Scores grow like log t on every data set.", tuple(numbers))
    if all(settled[name] for name in which) and all(grew[name] for name in others):
        finding = (
            "Scores diverge only where the graph of wins is not strongly connected, that is where some items never "
            f"lost to the rest (Ford 1957): there ({', '.join(others)}) they grow like log t for ever, at the slope of "
            f"the largest margin. Elsewhere ({', '.join(which)}) they settle at the maximum-likelihood estimate, and "
            "what changes between 100 epochs and the last is only that the fit was not finished."
        )
        return Verdict("C2", "holds under conditions", finding, tuple(numbers))
    odd = [name for name in connected.index if not (settled if connected[name] else grew)[name]]
    return Verdict("C2", "refuted", f"Not as predicted: {', '.join(odd)}.", tuple(numbers))


def _example(worked: pd.DataFrame) -> Verdict:
    near = [abs(p - 0.609) <= 0.001 for p in worked["p"]]
    numbers = [
        Number(f"P(C beats B), {row['games']}", row["p"], row["low"], row["high"], expected=0.609)
        for _, row in worked.iterrows()
    ]
    for strength, claimed in (("w_B", -0.8473), ("w_C", -0.4055)):
        numbers += [
            Number(f"{strength}, {row['games']} (nats)", row[strength], expected=claimed)
            for _, row in worked.iterrows()
        ]
    whole, part = worked["p"].iloc[0], worked["p"].iloc[1]
    if near[0]:
        return Verdict("C17", "holds", f"The fit to all games gives {whole:.4f}.", tuple(numbers))
    if near[1]:
        finding = (
            f"Only of a fit that leaves out the games between B and C: {part:.4f}. The fit to all 30 games gives "
            f"{whole:.4f}. Thirty games cannot tell the two apart."
        )
        return Verdict("C17", "holds under conditions", finding, tuple(numbers))
    return Verdict("C17", "refuted", f"The fits give {whole:.4f} and {part:.4f}.", tuple(numbers))


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {"scores": lambda: _scores(frames)}


def _scores(frames: Frames) -> Figure:
    """The range of scores against epochs, with where it should end or how fast it should grow."""
    limits = frames["asymptotes"].set_index("data")
    groups = {
        "every item was beaten: scores settle": limits.index[limits["connected"].astype(bool)],
        "some never lost to the rest: log t": limits.index[~limits["connected"].astype(bool)],
    }
    looks = dict(zip(limits.index, LOOKS, strict=False))
    keys = [
        Line2D([], [], color=look.colour, marker=look.marker, linewidth=d.WIDTH, label=name, **d.MARKER)
        for name, look in looks.items()
    ]
    theory: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2.5)), "zorder": 4}
    key = Line2D([], [], color="black", linewidth=0.8, linestyle=(0, (4, 2.5)), label="theory")
    note = f"Gradient descent on the mean −log likelihood, lr = {LR:g}, from equal scores; no randomness."
    panels = [Panel("largest − smallest score (nats)", 36.0)]
    with sheet([*groups], "epochs (log scale)", panels, [keys, [key]], note) as on:
        on.axes[0].set_xscale("log")
        for ax, members in zip(on.axes, groups.values(), strict=True):
            for nth, name in enumerate(members):
                own, look = frames["descent"][frames["descent"]["data"] == name], looks[name]
                ax.plot(own["epoch"], own["range"], color=look.colour, linewidth=d.WIDTH, zorder=3)
                some = own.iloc[8 + 5 * nth :: 20]
                ax.plot(
                    some["epoch"],
                    some["range"],
                    color=look.colour,
                    marker=look.marker,
                    linestyle="",
                    zorder=3.1,
                    **d.MARKER,
                )
                late = own[own["epoch"] >= 30]
                line = limits.loc[name, "range"] + 0 * late["epoch"]
                if not limits.loc[name, "connected"]:
                    line = own["range"].iloc[-1] + limits.loc[name, "slope"] * np.log(
                        late["epoch"] / own["epoch"].max()
                    )
                ax.plot(late["epoch"], line, **theory)
    return on.figure
