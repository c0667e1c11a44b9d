"""Does a quantity still grow at the end of its record, and is there a bound in view? Pure.

Over the last tenfold of training time s a series is compared with five laws without a bound,
y = p + q (s^k - 1)/k for k = 0 (log s: gradient descent on a vanishing gradient), 1/4, 1/2, 3/4, 1 (a straight line:
Adam, whose step does not vanish with the gradient), and with saturation, y = p + q exp(-s/T), of which at least 99 %
lie in the record (T up to a fifth of it: a bound farther out is not in view). All have three parameters, so Akaike's
criterion chooses the one with the least squares.

Why a fifth: saturation still grows by q (s/T) exp(-s/T) a log time at the end of the record, .034 q at T = 1/5. At 1/3
it would be .15 q, as fast as much of what has no bound: a margin under Adam, whose growth slows from linear to
logarithmic within the record, was taken for bounded.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

POINTS = 64  # a series is read at so many moments, evenly spaced in log s
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
SCALES = np.geomspace(1 / 300, 1 / 5, 60)  # T over the length of the record
FLAT = 1e-9  # of the series' size: below this there is nothing to fit but rounding


@dataclass(frozen=True)
class Growth:
    """[R] each. Of a run with less than a tenfold of time, slope is NaN and law empty."""

    slope: Array  # dy/dlog s, least squares over the last tenfold of s
    law: npt.NDArray[np.str_]  # "log", "power", "linear", "bounded" or "flat"

    @property
    def bounded(self) -> npt.NDArray[np.bool_]:
        return np.isin(self.law, ("bounded", "flat"))


def fit(time: Array, values: Array, rows: npt.NDArray[np.int64]) -> Growth:
    """time: [R, T] s before each update, rising within a run. values: [R, T]. rows: [R] how many of each are the run's.

    Values that are not finite are left out by ending the record before the first of them.
    """
    slope, law = np.full(len(rows), np.nan), np.full(len(rows), "", dtype="<U8")
    sampled, series, those = [], [], []
    for r, n in enumerate(rows):
        y, s = values[r, :n], time[r, :n]
        finite = np.isfinite(y)
        first = int(finite.argmax()) if n else 0
        gaps = np.flatnonzero(~finite[first:])
        end = first + int(gaps[0]) if gaps.size else int(n)
        if end - first < 2 or s[first] > s[end - 1] / 10 or s[end - 1] <= 0:
            continue
        at = np.geomspace(s[end - 1] / 10, s[end - 1], POINTS)
        those.append(r)
        sampled.append(at / at[-1])
        series.append(np.interp(at, s[first:end], y[first:end]))
    if those:
        slope[those], law[those] = _fit(np.array(sampled)[0], np.array(series))
    return Growth(slope, law)


def _fit(s: Array, y: Array) -> tuple[Array, npt.NDArray[np.str_]]:
    """s: [P] from .1 to 1, the same for all. y: [R, P]."""
    powers = [np.log(s) if k == 0 else (s**k - 1) / k for k in POWERS]
    scales = [-np.exp(-s / (T * (1 - s[0]))) for T in SCALES]
    basis = np.array([*powers, *scales])  # [B, P]
    basis = basis - basis.mean(1, keepdims=True)
    centred = y - y.mean(1, keepdims=True)
    total = (centred**2).sum(1)
    inner = centred @ basis.T  # [R, B]
    size = (basis**2).sum(1)
    # The part that a law leaves, not total - explained: that difference loses what tells exact laws apart.
    left = np.stack([((centred - np.outer(inner[:, i] / size[i], basis[i])) ** 2).sum(1) for i in range(len(basis))], 1)
    best = left.argmin(1)
    names = np.array(["log", "power", "power", "power", "linear"] + ["bounded"] * len(SCALES))
    law = np.where(np.sqrt(total) <= FLAT * (math.sqrt(POINTS) * np.abs(y).max(1) + 1e-300), "flat", names[best])
    return inner[:, 0] / size[0], law
