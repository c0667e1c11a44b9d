"""Time to collapse, seeds as the unit: Kaplan-Meier curves, through lifelines, and log-rank tests. Pure.

A run that never collapses is no zero and no infinity: it is known to have lasted to its last step, and is censored
there. So are runs that were interrupted. Time is counted in optimiser updates.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from analysis.statistics import holm

Groups = Mapping[str, Sequence[str]]  # name -> ids of runs, such as those of a loss


def times(verdicts: pd.DataFrame) -> pd.DataFrame:
    """`collapse.verdicts` -> duration [updates] and collapsed, by id: the first onset, or the last step without one."""
    onset = verdicts["first_onset"].astype(float)
    return pd.DataFrame({"duration": onset.fillna(verdicts["rows"] - 1.0), "collapsed": onset.notna()})


def curves(timed: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """For each group the share of its runs that have not collapsed yet, as a step function from step 0.

    Columns: group, step, survival, low, high (95 %, Greenwood's on the log-log scale), at_risk. A group without a run
    is left out.
    """
    from lifelines import KaplanMeierFitter  # type: ignore[import-untyped]

    parts = []
    for name, ids in groups.items():
        own = timed.loc[list(ids)]
        if own.empty:
            continue
        fitted = KaplanMeierFitter().fit(own["duration"], own["collapsed"])
        interval = fitted.confidence_interval_survival_function_
        parts.append(
            pd.DataFrame(
                {
                    "group": name,
                    "step": fitted.survival_function_.index.to_numpy(),
                    "survival": fitted.survival_function_.iloc[:, 0].to_numpy(),
                    "low": interval.iloc[:, 0].to_numpy(),
                    "high": interval.iloc[:, 1].to_numpy(),
                    "at_risk": fitted.event_table["at_risk"].to_numpy(),
                }
            )
        )
    columns = ["group", "step", "survival", "low", "high", "at_risk"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def medians(timed: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """For each group: median [updates] (infinite where fewer than half of its runs collapsed), runs, collapsed."""
    from lifelines import KaplanMeierFitter

    rows = {}
    for name, ids in groups.items():
        own = timed.loc[list(ids)]
        if not own.empty:
            median = KaplanMeierFitter().fit(own["duration"], own["collapsed"]).median_survival_time_
            rows[name] = {"median": float(median), "runs": len(own), "collapsed": int(own["collapsed"].sum())}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")


def log_rank(timed: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """For every two groups the log-rank test of equal times to collapse: group, other, chi2 (1 degree of freedom), p,
    p_holm (Holm's correction over all rows). Mantel (1966), with the hypergeometric variance.

    It compares the groups as they are: settings that only one of them has are not allowed for, so give groups of the
    same settings. Two groups without a collapse are not compared.
    """
    names = [name for name, ids in groups.items() if ids]
    own = [timed.loc[list(groups[name])] for name in names]
    times_T = np.unique(np.concatenate([np.zeros(0), *(one.loc[one["collapsed"], "duration"] for one in own)]))
    if len(names) < 2 or not len(times_T):
        return pd.DataFrame(columns=["group", "other", "chi2", "p", "p_holm"])
    all_G = [np.sort(one["duration"].to_numpy(dtype=float)) for one in own]
    fell_G = [np.sort(one.loc[one["collapsed"], "duration"].to_numpy(dtype=float)) for one in own]
    at_risk_GT = np.array([len(ends) - np.searchsorted(ends, times_T) for ends in all_G])
    fell_GT = np.array([np.searchsorted(e, times_T, "right") - np.searchsorted(e, times_T) for e in fell_G])
    parts: list[pd.DataFrame] = []
    for i in range(len(names) - 1):  # against all that follow at once
        at_risk, fell = at_risk_GT[i] + at_risk_GT[i + 1 :], fell_GT[i] + fell_GT[i + 1 :]
        share = at_risk_GT[i] / np.maximum(at_risk, 1)
        surplus = (fell_GT[i] - fell * share).sum(1)
        variance = (fell * share * (1 - share) * (at_risk - fell) / np.maximum(at_risk - 1, 1)).sum(1)
        chi2 = np.divide(surplus**2, variance, out=np.zeros_like(variance), where=variance > 0)
        found = pd.DataFrame({"group": names[i], "other": names[i + 1 :], "chi2": chi2, "p": chdtrc(1, chi2)})
        parts.append(found[fell.any(axis=1)])
    table = pd.concat(parts, ignore_index=True)
    return table.assign(p_holm=holm(table["p"].to_list()))
