"""Time to collapse, seeds as the unit: Kaplan-Meier curves and log-rank tests, through lifelines. Pure.

A run that never collapses is no zero and no infinity: it is known to have lasted to its last step, and is censored
there. So are runs that were interrupted. Time is counted in optimiser updates.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import pandas as pd

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
    p_holm (Holm's correction over all rows).

    It compares the groups as they are: settings that only one of them has are not allowed for, so give groups of the
    same settings. Two groups without a collapse are not compared.
    """
    from lifelines.statistics import logrank_test  # type: ignore[import-untyped]

    rows = []
    for one, two in combinations([name for name, ids in groups.items() if ids], 2):
        a, b = timed.loc[list(groups[one])], timed.loc[list(groups[two])]
        if not (a["collapsed"].any() or b["collapsed"].any()):
            continue
        test = logrank_test(a["duration"], b["duration"], a["collapsed"], b["collapsed"])
        rows.append({"group": one, "other": two, "chi2": float(test.test_statistic), "p": float(test.p_value)})
    table = pd.DataFrame(rows, columns=["group", "other", "chi2", "p"])
    return table.assign(p_holm=holm(table["p"].to_list()))
