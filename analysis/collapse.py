"""Collapse, defined: eleven indicators on histories, and a label with a time of onset for each run. Pure.

Symbols and units: a, b log-ratios of chosen and rejected [nats]; h = a - b margin [nats]; u = beta h reward margin [1];
time s = sum of the learning rates of the updates made, the clock of all growth laws here (s = lr * steps where lr is
constant). Arrays are [R, T]: runs, and steps from 0, NaN after a run's end.

Two rules hold for every indicator of one run. What is compared with a threshold is the mean over one pass over the
data (over one update, where a batch is all of it), so that a batch's luck is not taken for the state of the run: each
pass by itself where the data are shuffled and a pass is a whole number of batches, else the last so many rows. An
indicator sets in at the first row from which it held `Thresholds.hold` rows on end, and counts if it held in the last
`hold` rows of the record too. What is growing or still falling is judged at the end of the record, over the last
tenfold of s: so a crossing is dated, and growth is known from all that came after.

Sources. C1, C2: Azar et al. 2023 (arXiv 2310.12036, sec. 4.2): h -> infinity whatever beta. C3: 2406.07327, drop of the
rejected. C4: Razin et al. 2410.08847, Def. 1. C5: 2406.07327, dispersion. C6: any optimum of R - beta KL has at least
the reference's value. C7: Gao et al. 2210.10760. C8: Azar, greedy policies. C9, C10: Azar, a policy that ignores
reference and beta. C11: Adam (Kingma & Ba, 1412.6980) moves on however small the gradient.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from analysis import distribution, growth_law
from analysis.passes import rows_of_a_pass, smoothed

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# From harmless to worst; a run to which several apply has the last.
LABELS = (
    "none", "rejected collapse", "margin collapse", "displacement", "dispersion", "full collapse", "diverged",
)  # fmt: skip
INDICATORS = tuple(f"C{i}" for i in range(1, 12))
GOLD_REWARD = "gold_reward"  # mean true reward of the policy's responses, where a study knows it and records it
COLUMNS = (
    "loss", "lr", "margin", "rewards/margins", "log_ratios/chosen", "log_ratios/rejected", "log_pi/chosen",
    "log_pi/rejected", "exact/kl", "exact/entropy", "log_pi/*/*", GOLD_REWARD,
)  # fmt: skip


@dataclass(frozen=True)
class Thresholds:
    """Where each indicator begins, and why there."""

    # C1 [1]. Implied preference s(4.6) = .99. People agree with people on 65 to 87 % of pairs (2305.18290, Table 2), so
    # data hold at most logit(.87) = 1.9; a single label, Laplace-smoothed, holds logit(.75) = 1.1.
    reward_margin: float = 4.6
    # C2 [1 per log time]. du/dlog s is 1 where u = log(c s), as under DPO, and 0 at a finite optimum: halfway.
    growth: float = 0.5
    # C3 [nats]. The rejected response has a hundredth of its probability under the reference. IPO keeps b above about
    # -1/(2 beta), so it never gets there for beta > .11.
    rejected: float = -math.log(100)
    # C3 [nats per log time]. Slower than e^-.1 for a tenfold-and-more of training is standing still.
    falling: float = -0.1
    # C4 [nats]. Razin's definition has 0; float32 sums over 500 tokens are off by a few 1e-3.
    displaced: float = -0.01
    # C4, severe [nats]: the chosen response has lost half its probability.
    halved: float = -math.log(2)
    # C5 [probability]. A tenth of all mass has gone to responses that are in no pair.
    unaccounted: float = 0.1
    # C7 [standard errors], beyond what the largest of so many values owes to luck. The usual two.
    reward_drop: float = 2.0
    # C8 [probability]. Outside the most likely response there is less than a sample of a hundred would show …
    outside: float = 0.01
    # … or the entropy has lost nine tenths of the reference's.
    entropy: float = 0.1
    # C9 [ratio of total variations]. Two references' policies end twenty times closer than their references were.
    reference: float = 0.05
    # C10 [total variation]. The policies of all betas cannot be told apart in twenty samples.
    beta: float = 0.05
    # C11 [1]. DPO's gradient weight s(-u) is a hundredth of its largest value …
    dead: float = 0.01
    # … and the margin still moves at a tenth of its first speed; under SGD it would move at a fiftieth.
    moving: float = 0.1
    # All [rows]. Where half of the batches cross a threshold by luck, ten on end do so once in a thousand.
    hold: int = 10


DEFAULT = Thresholds()


def verdicts(runs: pd.DataFrame, history: pd.DataFrame, thresholds: Thresholds = DEFAULT) -> pd.DataFrame:
    """`Sweep.runs` and `Sweep.history` (at least those of `COLUMNS` that there are) -> one row for each run that has
    rows, indexed by id.

    label: one of `LABELS`; NA where the run is too short to judge or has no margin.
    onset [step], onset_time [s]: when the label's conditions first held together; NaN for "none".
    first_onset [step]: the earliest onset of any kind of collapse, for survival curves.
    rows: of its history. C1 to C11: does the indicator hold at the end; NA where it cannot be told.
    C1_onset, …: when it set in [step].
    displacement: "", "mild", "severe" or "catastrophic" (another response is likelier than the chosen one).
    u, h, a, b, b_per_token, du_dlog_s, db_dlog_s: at the end; growth: the law of u over the last tenfold of s.
    """
    return judged(features(runs, history), thresholds)


def sensitivity(runs: pd.DataFrame, history: pd.DataFrame, thresholds: Thresholds = DEFAULT) -> pd.DataFrame:
    """How labels move when a threshold does: a row for each threshold halved and doubled.

    Columns: threshold, factor, value, changed (runs with another label than at `thresholds`), then the number of runs
    under each label.
    """
    return sensitivity_of(features(runs, history), thresholds)


def sensitivity_of(found: "Features", thresholds: Thresholds = DEFAULT) -> pd.DataFrame:
    """`sensitivity`, of features that are there already."""
    base = judged(found, thresholds)["label"]
    rows = []
    for threshold in fields(thresholds):
        for factor in (0.5, 2.0):
            value = getattr(thresholds, threshold.name) * factor
            moved = replace(thresholds, **{threshold.name: round(value) if threshold.name == "hold" else value})
            label = judged(found, moved)["label"]
            changed = int((label.fillna("") != base.fillna("")).sum())
            counts = {name: int((label == name).sum()) for name in LABELS}
            rows.append({"threshold": threshold.name, "factor": factor, "value": value, "changed": changed} | counts)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Features:
    """Everything about R runs that no threshold has touched. Arrays are [R, T] means over a pass, unless said."""

    runs: pd.DataFrame
    rows: npt.NDArray[np.int64]  # [R] how many rows each has
    time: Array  # s before each update
    values: Mapping[str, Array]  # u, a, b, loss, reward, kl, entropy, top (largest probability), chosen, unaccounted
    speed: Array  # |dh| of each update over that of the first ones
    growth: growth_law.Growth  # of u, [R]
    fall: growth_law.Growth  # of b, [R]
    noise: Array  # [R] standard error of the gold reward
    reference_ratio: Array  # [R] C9
    beta_spread: Array  # [R] C10
    diverged: Flags  # [R]
    stopped: Array  # [R] step at which it diverged


def features(runs: pd.DataFrame, history: pd.DataFrame) -> Features:
    """The costly half of `verdicts`: reshape, smooth, fit."""
    code, ids = pd.factorize(history["run"])
    step = history["step"].to_numpy()
    runs = runs.loc[list(ids)]
    rows = np.bincount(code, minlength=len(ids))
    shape = (len(ids), int(rows.max(initial=0)))

    def grid(column: str) -> Array:
        filled = np.full(shape, np.nan)
        if column in history:
            filled[code, step] = history[column].to_numpy(dtype=float)
        return filled

    window = rows_of_a_pass(runs)

    def smooth(values: Array) -> Array:
        return smoothed(values, runs, rows)

    lr = grid("lr")
    lr[np.isnan(lr).all(1)] = 1.0  # a history without learning rates: time is counted in updates
    time = np.cumsum(np.concatenate([np.zeros((shape[0], 1)), lr[:, :-1]], axis=1), axis=1)
    chosen = np.exp(grid("log_pi/chosen"))
    values = {
        "u": smooth(grid("rewards/margins")),
        "h": smooth(grid("margin")),
        "a": smooth(grid("log_ratios/chosen")),
        "b": smooth(grid("log_ratios/rejected")),
        "loss": smooth(grid("loss")),
        "chosen": smooth(chosen),
        "unaccounted": smooth(1 - chosen - np.exp(grid("log_pi/rejected"))),
        "reward": smooth(grid(GOLD_REWARD)),
        "kl": grid("exact/kl"),
        "entropy": grid("exact/entropy"),
        "top": distribution.largest(history, grid, shape),
    }
    starts = np.cumsum(rows) - rows
    first, last = (history[distribution.columns(history)].iloc[row] for row in (starts, starts + rows - 1))
    difference = np.abs(np.diff(grid(GOLD_REWARD), axis=1))
    state = runs["state"] if "state" in runs else pd.Series("", index=runs.index)
    stopped = runs["stopped_at"].astype(float).to_numpy() if "stopped_at" in runs else np.full(len(runs), np.nan)
    return Features(
        runs=runs,
        rows=rows,
        time=time,
        values=values,
        speed=_relative_speed(values["u"], window),
        growth=growth_law.fit(time, values["u"], rows),
        fall=growth_law.fit(time, values["b"], rows),
        # From successive differences, which a trend hardly touches (von Neumann 1941); normal: sd = 1.4826 medians.
        noise=1.4826 * _nan_median(difference) / np.sqrt(2 * window),
        reference_ratio=distribution.reference_ratio(runs, first, last),
        beta_spread=distribution.beta_spread(runs, last),
        diverged=(state == "diverged").to_numpy(),
        stopped=np.where(np.isnan(stopped), rows - 1, stopped),
    )


def judged(f: Features, at: Thresholds = DEFAULT) -> pd.DataFrame:
    """The cheap half of `verdicts`: compare with thresholds, date, combine."""
    v, runs = f.values, f.runs
    beta = runs["beta"].to_numpy(dtype=float)[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        start = {name: _first(v[name]) for name in ("loss", "unaccounted", "reward", "entropy")}
        at_reference = np.abs(v["kl"][:, :1]) < 1e-6  # the run starts at its reference, so row 0 shows the reference
        objective = np.where(at_reference, v["reward"] - start["reward"] - beta * v["kl"], np.nan)
        best, u_then = _running_best(v["reward"], v["u"])
        # The largest of n noisy values lies sqrt(2 log n) standard errors above their mean, on average.
        luck = np.sqrt(2 * np.log(np.arange(1, best.shape[1] + 1)))
        held = {
            "C1": v["u"] > at.reward_margin,
            "C3": v["b"] < at.rejected,
            "C4": (v["a"] < at.displaced) & (v["loss"] < start["loss"]),
            "C5": v["unaccounted"] - start["unaccounted"] > at.unaccounted,
            "C6": objective < 0,
            "C7": (best - v["reward"] > (at.reward_drop + luck) * f.noise[:, None]) & (v["u"] > u_then),
            "C8": (1 - v["top"] < at.outside) | (at_reference & (v["entropy"] < at.entropy * start["entropy"])),
            "C11": (expit(-v["u"]) < at.dead) & (f.speed > at.moving),
        }
        dated = {name: _since(flags, f.rows, at.hold) for name, flags in held.items()}
        now = {name: on for name, (on, _) in dated.items()}
        onset = {name: np.where(on, first, np.nan) for name, (on, first) in dated.items()}
        now["C2"] = (f.growth.slope > at.growth) & ~f.growth.bounded
        now["C3"] &= (f.fall.slope < at.falling) & ~f.fall.bounded
        onset["C3"] = np.where(now["C3"], onset["C3"], np.nan)
        now["C9"], now["C10"] = f.reference_ratio < at.reference, f.beta_spread < at.beta
    margin = _together(onset["C1"], now["C1"] & now["C2"])
    # C9 is known at the end only; it is taken to have held all along.
    worse = np.fmin(np.fmin(onset["C4"], onset["C6"]), np.where(now["C9"], 0.0, np.nan))
    kinds = {
        "rejected collapse": onset["C3"],
        "margin collapse": margin,
        "displacement": onset["C4"],
        "dispersion": np.maximum(onset["C4"], onset["C5"]),  # NaN where either is
        "full collapse": np.maximum(margin, worse),
        "diverged": np.where(f.diverged, f.stopped, np.nan),
    }
    when = np.stack([kinds[name] for name in LABELS[1:]])  # [kinds, R]
    known = ~np.isnan(when)
    worst = np.where(known.any(0), len(LABELS) - 1 - known[::-1].argmax(0), 0)
    label = pd.array(np.array(LABELS, dtype=object)[worst], dtype="string")
    label[~known.any(0) & ~_can_be_judged(f, at)] = pd.NA
    picked = np.where(worst > 0, when[worst - 1, np.arange(len(worst))], np.nan)
    table = pd.DataFrame({"label": label, "onset": picked}, index=runs.index)
    table["onset_time"] = _at(f.time, picked)
    table["first_onset"] = np.fmin.reduce(when)
    table["rows"] = f.rows
    there = _there(f)
    for name in INDICATORS:
        table[name] = pd.array(now[name], dtype="boolean")
        table.loc[~there[name], name] = pd.NA
    for name in ("C1", "C3", "C4", "C5", "C6", "C7", "C8", "C11"):
        table[f"{name}_onset"] = onset[name]
    end = {name: _at(v[name], f.rows - 1.0) for name in ("u", "h", "a", "b", "top", "chosen")}
    severe, catastrophic = end["a"] < at.halved, end["top"] > end["chosen"] + 1e-3
    table["displacement"] = np.select(
        [~now["C4"], catastrophic, severe], ["", "catastrophic", "severe"], default="mild"
    )
    for name in ("u", "h", "a", "b"):
        table[name] = end[name]
    length = runs["rejected_tokens"].astype(float) if "rejected_tokens" in runs else np.nan
    table["b_per_token"] = end["b"] / length
    table["du_dlog_s"], table["db_dlog_s"] = f.growth.slope, f.fall.slope
    table["growth"] = f.growth.law
    return table


def _can_be_judged(f: Features, at: Thresholds) -> Flags:
    """Runs long enough to hold a threshold and to show a law, and with a margin at all."""
    return np.asarray((f.rows >= 2 * at.hold) & ~np.isnan(f.values["u"]).all(1), bool)


def _there(f: Features) -> dict[str, Flags]:
    """For each indicator, the runs that have what it is made of."""

    def has(*names: str) -> Flags:
        return np.asarray(np.all([~np.isnan(f.values[name]).all(1) for name in names], axis=0), bool)

    at_reference = np.abs(f.values["kl"][:, 0]) < 1e-6
    return {
        "C1": has("u"),
        "C2": has("u") & ~np.isnan(f.growth.slope),
        "C3": has("b") & ~np.isnan(f.fall.slope),
        "C4": has("a", "loss"),
        "C5": has("unaccounted"),
        "C6": has("reward", "kl") & at_reference,
        "C7": has("reward", "u"),
        "C8": has("top") | (has("entropy") & at_reference),
        "C9": ~np.isnan(f.reference_ratio),
        "C10": ~np.isnan(f.beta_spread),
        "C11": has("u"),
    }


def _since(flags: Flags, rows: npt.NDArray[np.int64], hold: int) -> tuple[Flags, Array]:
    """[R, T] -> [R] does it hold in the last `hold` rows, [R] the first row from which it held `hold` on end (NaN)."""
    if not flags.any():
        return np.zeros(len(rows), bool), np.full(len(rows), np.nan)
    steps = np.arange(flags.shape[1], dtype=np.int32)
    last_false = np.maximum.accumulate(np.where(flags, np.int32(-1), steps), axis=1)
    streak = steps - last_false
    long_enough = streak >= hold
    first = np.where(long_enough.any(1), long_enough.argmax(1) - hold + 1.0, np.nan)
    return _at(streak, rows - 1.0) >= hold, first


def _together(onset: Array, both: Flags) -> Array:
    return np.where(both, onset, np.nan)


def _relative_speed(u: Array, window: npt.NDArray[np.int64]) -> Array:
    """|du| of each update over the mean of the first ten: the optimiser's step as it shows in the margin.

    In a tabular softmax with one pair |dh| is sqrt(2) times the norm of the step; the norm itself is not recorded.
    """
    speed = np.full(u.shape, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.abs(np.diff(u, axis=1))
        for r, w in enumerate(window):
            early = moved[r, w - 1 : w + 9]
            speed[r, 1:] = moved[r] / early[np.isfinite(early)].mean() if np.isfinite(early).any() else np.nan
    return speed


def _running_best(reward: Array, u: Array) -> tuple[Array, Array]:
    """The largest reward so far, and u when it was reached."""
    if np.isnan(reward).all():
        return reward, reward
    best = np.fmax.accumulate(reward, axis=1)
    steps = np.arange(reward.shape[1])
    when = np.maximum.accumulate(np.where(reward == best, steps, 0), axis=1)
    return best, np.take_along_axis(u, when, axis=1)


def _first(values: Array) -> Array:
    """[R, T] -> [R, 1] each run's first value that is there."""
    there = ~np.isnan(values)
    at = there.argmax(1)[:, None] if values.shape[1] else np.zeros((len(values), 1), np.int64)
    return np.take_along_axis(values, at, axis=1)


def _at(values: npt.NDArray[Any], rows: npt.NDArray[np.floating]) -> Array:
    """[R, T], [R] -> [R] the value in that row; NaN for row NaN."""
    there = ~np.isnan(rows)
    picked = np.full(len(rows), np.nan)
    picked[there] = values[np.flatnonzero(there), rows[there].astype(np.int64)]
    return picked


def _nan_median(values: Array) -> Array:
    """[R, T] -> [R], NaN where there is nothing."""
    median = np.full(len(values), np.nan)
    some = ~np.isnan(values).all(1)
    median[some] = np.nanmedian(values[some], axis=1)
    return median
