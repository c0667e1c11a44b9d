"""Total order and cycle of three actions: where DPO and IPO end."""

import pandas as pd

from experiments import three_actions
from experiments.study import Drawings, Frames, Number, Outcome, Sweeps, Verdict
from experiments.three_actions import ACTIONS, SURE

COLUMNS = three_actions.COLUMNS
NEAR = 0.02  # IPO's batches conflict, so its noise never dies down
UNIFORM = 0.1
SHOWN = (0.1, 0.5, 2.0, 10.0)


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """runs and curves: see `three_actions.measure`."""
    return three_actions.measure(sweeps["d1_d2"])


def check(frames: Frames) -> list[Verdict]:
    runs = frames["runs"]
    return [_dpo(runs), _ipo(runs), _cycle(runs)]


def _dpo(runs: pd.DataFrame) -> Verdict:
    own = runs[(runs["data"] == "D1") & (runs["loss"] == "dpo")]
    sure = (own["a"] > SURE).groupby(own["tau"]).all()
    numbers = three_actions.probabilities(runs, "D1", "dpo", ["a"])
    for tau, those in own.groupby("tau"):
        if those["sure_at"].notna().all():
            numbers.append(Number.mean(f"updates until pi(a) stays above {SURE:g}, tau {tau:g}", those["sure_at"]))
        numbers.append(Number.mean(f"tau h between a and b at the end, tau {tau:g}", those["u"]))
    u = own.groupby("tau")["u"].mean()
    said = (
        f"Deterministic by then at tau = {three_actions.taus(own[own['tau'].map(sure)])}; not at "
        f"{three_actions.taus(own[~own['tau'].map(sure)])}. By then u = tau h of a over b is {u.min():.0f} to "
        f"{u.max():.0f}, and at a large tau h = u/tau is too small. Adam then adds at most 5e-4 an update to u "
        "(-log(beta2)/2), and once the gradient has sunk to its eps u grows like log t: the limit is the same for all "
        "tau, the time to it is not."
    )
    if sure.all():
        return Verdict("ipo-fig1-dpo", "holds", said, tuple(numbers))
    outcome: Outcome = "holds under conditions" if sure.loc[sure.index.min()] else "refuted"
    return Verdict("ipo-fig1-dpo", outcome, said, tuple(numbers))


def _ipo(runs: pd.DataFrame) -> Verdict:
    own = runs[(runs["data"] == "D1") & (runs["loss"] == "ipo")]
    away, best = three_actions.furthest(runs, "D1"), own.groupby("tau")["a"].mean()
    numbers = (
        *three_actions.probabilities(runs, "D1", "ipo"),
        Number("largest distance from the closed form, mean over seeds", away, expected=0.0),
        Number("largest probability of a run in the last half", float(own["largest"].max())),
    )
    good = away <= NEAR and bool((best.diff().dropna() < 0).all()) and bool((own["largest"] <= SURE).all())
    said = (
        f"Every probability is within {away:.2g} of the closed form; pi(a) goes from {best.iloc[0]:.3f} at tau "
        f"{best.index[0]:g} to {best.iloc[-1]:.3f} at tau {best.index[-1]:g}. It does not stand still: the three "
        "margins cannot all be 1/(2 tau), so batches pull it to and fro."
    )
    return Verdict("ipo-fig1-ipo", "holds" if good else "refuted", said, numbers)


def _cycle(runs: pd.DataFrame) -> Verdict:
    own = runs[runs["data"] == "D2"]
    away = (own.groupby(["loss", "tau"])[ACTIONS].mean() - 1 / 3).abs().max(axis=1)
    numbers, good = [], {}
    for loss, name in (("dpo", "DPO"), ("ipo", "IPO")):
        those = own[own["loss"] == loss]
        off, largest = float(away[loss].max()), float(those["largest"].max())
        numbers.append(Number(f"largest distance from 1/3, mean over seeds, {name}", off, expected=0.0))
        numbers.append(Number(f"largest probability of a run in the last half, {name}", largest))
        good[name] = off <= UNIFORM and largest <= SURE
    where = [name for name, yes in good.items() if yes]
    said = (
        f"So for {' and '.join(where) or 'neither'}. Batches of nine do not hold each comparison three times, so "
        "single runs wander, the more the smaller tau is: an action's probability reaches "
        f"{own[own['loss'] == 'dpo']['largest'].max():.2f} with DPO, {own[own['loss'] == 'ipo']['largest'].max():.2f} "
        "with IPO."
    )
    outcome: Outcome = "holds" if all(good.values()) else "holds under conditions" if where else "refuted"
    return Verdict("ipo-fig1-cycle", outcome, said, tuple(numbers))


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {
        "learning_curves": lambda: three_actions.draw(frames["curves"], "D1", SHOWN),
        "cycle": lambda: three_actions.draw(frames["curves"], "D2", SHOWN),
    }
