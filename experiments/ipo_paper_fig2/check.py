"""An action that never wins, and one that is in no comparison: where DPO and IPO leave it."""

import numpy as np
import pandas as pd

from experiments import three_actions
from experiments.study import Drawings, Frames, Number, Outcome, Sweeps, Verdict
from experiments.three_actions import SURE

COLUMNS = three_actions.COLUMNS
NEAR = 0.02
STAYS = 0.2
PROSE, PRINTED = "D3'", "D3"  # the set that fits the paper's text, and the one it prints
SHOWN = (0.1, 0.5, 2.0, 10.0)


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """runs and curves: see `three_actions.measure`."""
    return three_actions.measure(sweeps["d3"])


def check(frames: Frames) -> list[Verdict]:
    runs = frames["runs"]
    return [_dpo(runs), _ipo(runs), _printed(runs)]


def _dpo(runs: pd.DataFrame) -> Verdict:
    own = runs[(runs["data"] == PROSE) & (runs["loss"] == "dpo")]
    gone = (own["c"] < 1 - SURE).groupby(own["tau"]).all()
    numbers = three_actions.probabilities(runs, PROSE, "dpo", ["c"])
    said = (
        f"Below 0.01 by then at tau = {three_actions.taus(own[own['tau'].map(gone)])}; not at "
        f"{three_actions.taus(own[~own['tau'].map(gone)])}, where c is still falling: its logit is u/tau below that of "
        "b, and u is as far as Adam brings it in that time."
    )
    if gone.all():
        return Verdict("ipo-fig2-dpo", "holds", said, tuple(numbers))
    outcome: Outcome = "holds under conditions" if gone.loc[gone.index.min()] else "refuted"
    return Verdict("ipo-fig2-dpo", outcome, said, tuple(numbers))


def _ipo(runs: pd.DataFrame) -> Verdict:
    own = runs[(runs["data"] == PROSE) & (runs["loss"] == "ipo")]
    away, least = three_actions.furthest(runs, PROSE), own.groupby("tau")["c"].mean()
    numbers = (
        *three_actions.probabilities(runs, PROSE, "ipo"),
        Number("largest distance from the closed form, mean over seeds", away, expected=0.0),
    )
    said = (
        f"Every probability is within {away:.2g} of the closed form; pi(c) is {least.iloc[0]:.2g} at tau "
        f"{least.index[0]:g} and {least.iloc[-1]:.2g} at tau {least.index[-1]:g}."
    )
    good = away <= NEAR and bool((least.diff().dropna() > 0).all())
    return Verdict("ipo-fig2-ipo", "holds" if good else "refuted", said, numbers)


def _printed(runs: pd.DataFrame) -> Verdict:
    own = runs[(runs["data"] == PRINTED) & (runs["loss"] == "dpo")]
    drift = float(runs[runs["data"] == PRINTED]["drift"].max())
    numbers = (
        *three_actions.probabilities(runs, PRINTED, "dpo", ["c"]),
        Number("least pi(c) at the end of a run", float(own["c"].min()), expected=1 / 3),
        Number("furthest the logit of c ever was from the mean of the others', any run (nats)", drift, expected=0.0),
    )
    smallest = own[own["tau"] == own["tau"].min()]
    said = (
        "No loss of log-ratios of a and b has a gradient in the logit of c: it stays where the reference put it, to "
        f"{drift:.0e}. So pi(c) = 1/(1 + 2 cosh(h/2)), with h the margin of a over b, which has no trend. The figure "
        "cannot come from the set that is printed; with (b, c) added, as the text says of c that it has no win and was "
        "not compared with a, it can."
    )
    if (smallest["c"] < 1 - SURE).all():
        return Verdict("ipo-fig2-printed", "holds", f"pi(c) falls to {smallest['c'].max():.2g}.", numbers)
    if np.asarray(own["c"] > STAYS).all():
        return Verdict("ipo-fig2-printed", "refuted", said, numbers)
    return Verdict("ipo-fig2-printed", "holds under conditions", "pi(c) falls in some runs: see below.", numbers)


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {
        "learning_curves": lambda: three_actions.draw(frames["curves"], PROSE, SHOWN),
        "as_printed": lambda: three_actions.draw(frames["curves"], PRINTED, SHOWN),
    }
