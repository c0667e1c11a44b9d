"""What holds a policy at its reference: two actions, one pair, three kinds of pull. Claim C6.

With two actions everything is a function of the margin h: pi(chosen) = sigma(logit ref(chosen) + h).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit

from analysis.figures.looks import NAMES
from analysis.sweep import as_dicts
from experiments.study import Number, Outcome, Sweeps, Verdict
from src.theory.growth import dpo_u_discrete

FORGOTTEN = 0.05  # as C9 and C10 of analysis.collapse
DETERMINISTIC = 0.99
AGREE = 0.8  # share of the labels of the sweep `uncertain` that agree

Array = npt.NDArray[np.float64]


def chosen(h: npt.ArrayLike, ref: float) -> Array:
    """pi(chosen) at margin h [nats], of a reference with ref(chosen)."""
    return np.asarray(expit(logit(ref) + np.asarray(h, dtype=np.float64)))


def pull(h: npt.ArrayLike, ref: float, form: str) -> Array:
    """dKL/dh: h pi (1 - pi) of KL(pi, ref) (reverse), which vanishes as pi -> 1; pi - ref of KL(ref, pi) (forward)."""
    pi = chosen(h, ref)
    return np.asarray(np.asarray(h) * pi * (1 - pi) if form == "reverse" else pi - ref)


def equilibrium(beta: float, coefficient: float, ref: float, form: str) -> float:
    """Margin h [nats] where descent on DPO, one certain pair, with a KL penalty stops: where the penalty first pulls as
    DPO pushes, beta sigma(-beta h). Infinite if it never does.
    """
    h = np.geomspace(1e-4, 500, 20_000)

    def left(at: npt.ArrayLike) -> Array:
        return np.asarray(beta * expit(-beta * np.asarray(at)) - coefficient * pull(at, ref, form))

    stops = np.flatnonzero(left(h) <= 0)
    if not len(stops):
        return math.inf
    return float(brentq(left, h[stops[0] - 1], h[stops[0]]))


def expected(sweep: str, loss: str, beta: float, ref: float, lr: float, steps: int, form: str = "") -> float:
    """Margin h [nats] after `steps` updates of SGD, or at the optimum where that is reached."""
    if sweep == "penalty":
        return equilibrium(beta, beta, ref, form)
    if sweep == "uncertain":
        # All pairs are one: DPO's optimum has sigma(beta h) equal to the share that agrees, IPO's is a mean of +-.
        return math.log(AGREE / (1 - AGREE)) / beta if loss == "dpo" else (2 * AGREE - 1) / (2 * beta)
    if loss == "dpo":
        return float(dpo_u_discrete(np.array([steps]), 2 * lr * beta**2)[0]) / beta
    return (1 - (1 - 4 * lr) ** steps) / (2 * beta)


def measure(sweeps: Sweeps) -> pd.DataFrame:
    """One row a run: where it ended, what was expected, the pull of the reverse KL there over its largest before."""
    rows = []
    for name in ("certain", "uncertain", "penalty"):
        sweep = sweeps[name]
        histories = dict([*sweep.history.groupby("run", sort=False)])
        for run in as_dicts(sweep.runs):
            own = histories[run["id"]]
            # Not the history's margin: that is the mean over pairs, and a pair with the other label counts against it.
            log_pi = own["log_pi/0/0"].to_numpy()
            ref = float(np.exp(log_pi[0]))
            h = log_pi - own["log_pi/0/1"].to_numpy() - logit(ref)
            form = str(run["kl_form"]) if name == "penalty" else ""
            pulls = pull(h, ref, "reverse")
            rows.append(
                {
                    "sweep": name, "loss": run["loss.name"], "beta": run["beta"], "ref": ref, "form": form,
                    "h": float(h[-1]), "chosen": float(np.exp(log_pi[-1])),
                    "expected": expected(name, run["loss.name"], run["beta"], ref, run["lr"], len(h) - 1, form),
                    "pull": float(pulls[-1] / pulls.max()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def tests(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each kind of labels, loss and beta: ratio, the distance of two references' policies over that of the
    references (total variation); surest, the smallest of their largest probabilities.
    """
    rows: list[dict[str, Any]] = []
    for (sweep, loss, beta), own in runs[runs["form"] == ""].groupby(["sweep", "loss", "beta"], sort=False):
        ratio = np.ptp(own["chosen"]) / np.ptp(own["ref"])
        surest = float(np.maximum(own["chosen"], 1 - own["chosen"]).min())
        ends = [float(chosen(h, ref)) for h, ref in zip(own["expected"], own["ref"], strict=True)]
        theory = float(np.ptp(ends) / np.ptp(own["ref"]))
        rows.append({"sweep": sweep, "loss": loss, "beta": beta, "ratio": ratio, "surest": surest, "theory": theory})
    return pd.DataFrame(rows)


def verdict(runs: pd.DataFrame) -> Verdict:
    found, numbers = tests(runs), []
    labels = {"certain": "certain labels", "uncertain": f"labels that agree in {AGREE:.0%}"}
    for row in as_dicts(found):
        what = f"{NAMES[row['loss']]}, {labels[row['sweep']]}, beta {row['beta']:g}"
        numbers.append(
            Number(f"what is left of the distance of two references, {what}", row["ratio"], expected=row["theory"])
        )
    spread = runs[runs["form"] == ""].groupby(["sweep", "loss", "ref"])["chosen"].agg(np.ptp)
    for sweep in labels:
        for loss in ("dpo", "ipo"):
            what = f"largest distance of the policies of two betas, {NAMES[loss]}, {labels[sweep]}"
            numbers.append(Number(what, float(spread.loc[(sweep, loss)].max())))
    for row in as_dicts(runs[(runs["sweep"] == "certain") & (runs["loss"] == "dpo") & (runs["ref"] == 0.5)]):
        what = f"pull of KL(policy, reference) at the end, over its largest, DPO, certain labels, beta {row['beta']:g}"
        numbers.append(Number(what, row["pull"], expected=0.0))
    for row in as_dicts(runs[runs["form"] != ""]):
        what = (
            f"margin at the end, DPO and beta times the {row['form']} KL, certain labels, beta {row['beta']:g} (nats)"
        )
        numbers.append(Number(what, row["h"], expected=row["expected"] if math.isfinite(row["expected"]) else None))
    dpo = found[(found["sweep"] == "certain") & (found["loss"] == "dpo")]
    forgets = dpo[dpo["ratio"] < FORGOTTEN]["beta"].tolist()
    blind = bool((spread.loc[("certain", "dpo")] < FORGOTTEN).all())
    undecided = found[found["surest"] < DETERMINISTIC]
    wrong = undecided[undecided["ratio"] < FORGOTTEN]
    stopped = runs[np.isfinite(runs["expected"]) & (runs["form"] == "reverse")]["beta"].tolist()
    said = (
        f"After certain labels DPO keeps {dpo['ratio'].max():.1%} of the distance of two references or less: the KL "
        "pulls at the margin with h pi (1 - pi), which vanishes with the rejected response. Where the policy is not "
        f"deterministic {undecided['ratio'].min():.0%} of the distance or more is left. An explicit KL(policy, "
        f"reference) of weight beta stops the margin at these betas only: {_list(stopped)}; KL(reference, policy) does "
        "at all."
    )
    if not forgets or not wrong.empty:
        return Verdict("C6", "refuted", said, tuple(numbers))
    outcome: Outcome = "holds" if len(forgets) == len(dpo) and blind else "holds under conditions"
    condition = "" if outcome == "holds" else f"At beta {_list(forgets)} only, or not alike at all betas. "
    return Verdict("C6", outcome, condition + said, tuple(numbers))


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"
