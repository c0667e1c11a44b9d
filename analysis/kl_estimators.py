"""Schulman's k1, k2, k3 for two unit Gaussians: their moments in closed form, and a seeded experiment. Pure.

x ~ q = N(0, 1), p = N(m, 1), r = p(x)/q(x): k1 = -log r, k2 = (log r)^2/2, k3 = r - 1 - log r (Schulman 2020,
"Approximating KL divergence"). KL(q, p) = m^2/2 [nats]; m, the shift of the means, in standard deviations.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

Array = npt.NDArray[np.float64]
NAMES = ("k1", "k2", "k3")
BATCHES, SAMPLES = 20, 20_000  # so many experiments of so many samples at each shift


def divergence(m: npt.ArrayLike) -> Array:
    """KL(N(0, 1), N(m, 1)) = m^2/2 [nats]."""
    return np.asarray(m, dtype=np.float64) ** 2 / 2


def mean(name: str, m: npt.ArrayLike) -> Array:
    """E k [nats]: k1 and k3 are unbiased; E k2 = m^2/2 + m^4/8."""
    shift = np.asarray(m, dtype=np.float64)
    return divergence(shift) + (shift**4 / 8 if name == "k2" else 0.0)


def standard_deviation(name: str, m: npt.ArrayLike) -> Array:
    """Of one sample [nats]: m; sqrt(m^4/2 + m^6/4); sqrt(e^{m^2} - 1 - m^2)."""
    shift = np.asarray(m, dtype=np.float64)
    if name == "k1":
        return np.abs(shift)
    if name == "k2":
        return np.asarray(np.sqrt(shift**4 / 2 + shift**6 / 4))
    return np.asarray(np.sqrt(np.expm1(shift**2) - shift**2))


def experiment(shifts: npt.ArrayLike, seed: int = 0) -> pd.DataFrame:
    """Draw x, take the mean and the standard deviation of each k, `BATCHES` times over.

    Columns: name, shift; mean, sd (averages over the experiments) and mean_half, sd_half (half of their 95 % t
    intervals), in nats.
    """
    rng = np.random.default_rng(seed)
    t = float(stdtrit(BATCHES - 1, 0.975)) / np.sqrt(BATCHES)
    rows = []
    for m in np.asarray(shifts, dtype=np.float64):
        log_r = m * rng.standard_normal((BATCHES, SAMPLES)) - m * m / 2
        for name, k in zip(NAMES, (-log_r, log_r**2 / 2, np.expm1(log_r) - log_r), strict=True):
            means, deviations = k.mean(1), k.std(1, ddof=1)
            row = {"name": name, "shift": m, "mean": means.mean(), "mean_half": t * means.std(ddof=1)}
            rows.append(row | {"sd": deviations.mean(), "sd_half": t * deviations.std(ddof=1)})
    return pd.DataFrame(rows)
