"""Who collapses, and when: the family of losses on one pair, by beta, optimiser and learning rate.

Losses that are another one on a pair of equally long responses with a batch of one are left out: AOT, R-DPO, LD-DPO and
the listwise ones are DPO (LambdaLoss up to a factor), pair hinge is hinge. So are SFT, which has no rejected response,
and mixtures.
"""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from scipy.integrate import quad

from analysis import collapse
from analysis.figures import collapse_map
from analysis.figures.looks import NAMES
from analysis.statistics import mean_interval
from analysis.sweep import Sweep, as_dicts
from experiments.collapse_map.draw import same_first_step, times
from experiments.study import ROOT, Drawings, Frames, Number, Outcome, Sweeps, Verdict
from src.theory.weights import SLOPES

COLUMNS = ("loss", "lr", "margin", "rewards/margins", "log_ratios/chosen", "log_ratios/rejected", "log_pi/chosen",
           "log_pi/rejected", "grad_norm")  # fmt: skip

# How the margin grows under gradient flow (docs/losses.md has the table, and a test compares the two).
GROUPS = {
    "no finite optimum: u grows like log t, or faster": (
        "dpo", "exp", "simpo", "sigmoid_norm", "robust", "kto", "bco", "nca", "apo_zero", "apo_down", "dpop", "rpo",
        "cpo", "orpo", "slic_hf", "tdpo1", "tdpo2", "wpo",
    ),
    "no finite optimum: slower than log t": ("probit", "beta_dpo", "f_dpo", "f_dpo_alpha"),
    "finite optimum": (
        "ipo", "ipo_avg", "hinge", "distill", "cdpo", "exo", "sppo_hard", "cal_dpo", "chi_po", "discopop",
    ),
}  # fmt: skip
FAST, SLOW, FINITE = GROUPS
TOKENS = 4  # of both responses
PER_TOKEN = ("ipo_avg", "sigmoid_norm")  # their margin is one a token: h / TOKENS
REWARD_MARGIN, REJECTED = collapse.DEFAULT.reward_margin, -collapse.DEFAULT.rejected
# The losses of h alone. SimPO has the reference's own margin in it, and DiscoPOP goes the other way.
OF_MARGIN = ("dpo", "exp", "sigmoid_norm", "robust", "probit", "ipo", "ipo_avg", "hinge", "distill", "cdpo", "exo")
MEMORY = 0.99  # of RMSprop: conf/optimizer/rmsprop.yaml


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """runs: one row a run of the map. times: those of SGD with a loss of the margin, and when they should cross.
    steps: one row a run of Adam or RMSprop with its partners of SGD.
    """
    runs = pd.concat([_judged(sweeps[name]) for name in ("map_sgd", "map_adaptive")], ignore_index=True)
    group = {loss: name for name, losses in GROUPS.items() for loss in losses}
    runs.insert(0, "group", runs["loss"].map(group))
    runs["beyond"] = [_beyond(row) for row in as_dicts(runs)]
    of_margin = runs[(runs["optimizer"] == "sgd") & runs["loss"].isin(OF_MARGIN)]
    predicted = [_predicted(row) for row in as_dicts(of_margin)]
    steps = pd.concat([_judged(sweeps[name]) for name in ("step_sgd", "step_adaptive")], ignore_index=True)
    return {"runs": runs, "times": of_margin.assign(predicted=predicted), "steps": _partners(steps)}


def _judged(sweep: Sweep) -> pd.DataFrame:
    """Settings, label, how the run ended, `first`: the margin after one update, `crossed`: the first row with u above
    4.6 or b below -log 100 (NaN: none), and K. A loss without a beta has one run, whichever beta is asked for.
    """
    runs = sweep.runs[sweep.runs["copy_of"].isna()]
    history = sweep.history[sweep.history["run"].isin(runs.index)]
    found = collapse.verdicts(runs, history)
    parameters = {
        row["id"]: {k.removeprefix("loss."): v for k, v in row.items() if k.startswith("loss.") and not _missing(v)}
        for row in as_dicts(runs)
    }
    without = {run for run, own in parameters.items() if "beta" not in own}
    rows: dict[str, dict[str, Any]] = {}
    for run, own in history.groupby("run", sort=False):
        h, u, b = (own[name].to_numpy() for name in ("margin", "rewards/margins", "log_ratios/rejected"))
        over = ((u > REWARD_MARGIN) & (str(run) not in without)) | (b < -REJECTED)
        rows[str(run)] = {
            "first": h[1] if len(h) > 1 else np.nan,
            "crossed": float(over.argmax()) if over.any() else np.nan,
            "steps": len(own),
            "grad_norm": own["grad_norm"].iloc[0],
        }
    table = found.join(pd.DataFrame.from_dict(rows, orient="index"))
    about = runs.loc[table.index]
    names = {"loss.name": "loss", "optimizer.name": "optimizer", "lr": "lr", "seed": "seed"}
    table = table.join(about[[*names]].rename(columns=names))
    table["beta"] = [float(parameters[run].get("beta", math.nan)) for run in table.index]
    table["optimum"] = [_optimum(parameters[run]) for run in table.index]
    # u is beta h: of a loss without a beta only pi(rejected) can be judged.
    margin = table["C1"].fillna(False) & table["C2"].fillna(False) & table["beta"].notna()
    table["collapsed"] = margin | table["C3"].fillna(False)
    return table.reset_index(names="run")


def _optimum(parameters: dict[str, Any]) -> float:
    """The margin [nats] that is best for one certain pair, as stated beside the loss; NaN where it is not stated."""
    given = {key: value for key, value in parameters.items() if key != "name"}
    if parameters["name"] == "ipo_avg":  # it depends on the lengths
        return TOKENS / (2 * float(given["beta"]))
    written: Any = OmegaConf.load(ROOT / "conf" / "loss" / f"{parameters['name']}.yaml")
    module, _, function = written["_target_"].rpartition(".")
    stated = getattr(import_module(module), function).facts.optimum
    return math.nan if stated is None else float(stated(**given))


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _beyond(run: dict[str, Any]) -> bool:
    """Is a finite optimum farther out than where a run is called collapsed?"""
    there = run["group"] == FINITE and math.isfinite(run["optimum"])
    return there and run["optimum"] > crossing_margin(run["beta"])


def crossing_margin(beta: float) -> float:
    """The margin [nats] at which u = beta h passes 4.6, or b = -h/2 -log 100, whichever is first."""
    return min(REWARD_MARGIN / beta, 2 * REJECTED)


def slope(loss: str, h: float, beta: float) -> float:
    """dL/dh [1/nat] on responses of `TOKENS` tokens; hyper-parameters at the defaults of conf/loss."""
    own = {
        "cdpo": {"epsilon": 0.1},
        "robust": {"epsilon": 0.1},
        "exo": {"epsilon": 1e-3},
        "distill": {"score_gap": 1.0},
    }
    scale = TOKENS if loss in PER_TOKEN else 1
    return float(SLOPES[loss](np.array([h / scale]), beta=beta, **own.get(loss, {}))[0]) / scale


def crossing_time(loss: str, beta: float, lr: float, K: float) -> float:
    """Updates until `crossing_margin` under dh/dt = -lr K dL/dh from h = 0, an integral over h; inf if never."""
    end = crossing_margin(beta)
    if any(slope(loss, h, beta) >= 0 for h in np.linspace(0, end, 200)):
        return math.inf
    return float(quad(lambda h: -1 / (lr * K * slope(loss, h, beta)), 0, end)[0])


def _predicted(run: dict[str, Any]) -> float:
    """`crossing_time` of a run, with K from the norm of its first gradient."""
    K = (run["grad_norm"] / slope(run["loss"], 0.0, run["beta"])) ** 2
    return crossing_time(run["loss"], run["beta"], run["lr"], K)


def _partners(runs: pd.DataFrame) -> pd.DataFrame:
    """For each run of an adaptive optimiser, when SGD with the same first step crosses: between SGD's rates on both
    sides log(updates) is interpolated in log(first step). Those without a rate on each side are left out, and where SGD
    does not cross, and where the first step alone is more than 1 nat. One that does not cross counts as crossing at its
    end: too early, if anything.
    """
    rows = []
    for (loss, beta, seed), own in runs.groupby(["loss", "beta", "seed"]):
        sgd = own[(own["optimizer"] == "sgd") & (own["first"] > 0)].sort_values("first")
        for run in as_dicts(own[(own["optimizer"] != "sgd") & (own["first"] < 1)]):
            above = int(np.searchsorted(sgd["first"], run["first"]))
            if not 0 < above < len(sgd):
                continue
            x, y = (np.log(sgd[name].to_numpy()[above - 1 : above + 1]) for name in ("first", "crossed"))
            partner = math.exp(float(np.interp(math.log(run["first"]), x, y)))
            if math.isnan(partner):
                continue
            crossed = run["steps"] if math.isnan(run["crossed"]) else run["crossed"]
            ratio = crossed / partner
            ideal = idealised_ratio(run["optimizer"], float(run["beta"]), run["first"])
            setting = {"loss": loss, "beta": beta, "seed": seed, "optimizer": run["optimizer"], "lr": run["lr"]}
            rows.append(setting | {"first": run["first"], "crossed": crossed, "sgd": partner, "ratio": ratio,
                                   "ideal": ideal})  # fmt: skip
    return pd.DataFrame(rows)


def idealised_ratio(optimizer: str, beta: float, first: float) -> float:
    """Updates of Adam or RMSprop over SGD's until DPO crosses, for one first step [nats], if |grad h| never changed.

    Adam's margin then grows by `first` an update, RMSprop's by first sqrt((1 - m)/(1 - m^k)) at update k, m its memory:
    its second moment starts at 0, so the first step is the largest. SGD follows u + e^u = 1 + c t, c = 2 beta first.
    """
    end = crossing_margin(beta)
    u = beta * end
    sgd = (u + math.exp(u) - 1) / (2 * beta * first)
    if optimizer == "adam":
        return end / first / sgd
    k = np.arange(1, 200_000)
    reached = first * np.sqrt((1 - MEMORY) / (1 - MEMORY**k)).cumsum()
    return float(np.searchsorted(reached, end) + 1) / sgd


def check(frames: Frames) -> list[Verdict]:
    return [_family(frames["runs"]), _time(frames["times"]), _optimiser(frames["steps"])]


def _family(runs: pd.DataFrame) -> Verdict:
    infinite, finite = runs[runs["group"] != FINITE], runs[runs["group"] == FINITE]
    share, other = float(infinite["collapsed"].mean()), float(finite["collapsed"].mean())
    agree = runs["collapsed"] == (runs["group"] != FINITE)
    numbers = [
        _share("share of runs that end as theory says", agree, runs["seed"], 1.0),
        _share("share collapsed, no finite optimum", infinite["collapsed"], infinite["seed"], 1.0),
        _share("share collapsed, finite optimum", finite["collapsed"], finite["seed"], 0.0),
    ]
    for name in (FAST, SLOW):
        own = runs[runs["group"] == name]
        numbers.append(_share(f"share collapsed, {name}", own["collapsed"], own["seed"], 1.0))
    for where, those in (("within", ~finite["beyond"]), ("beyond", finite["beyond"])):
        own = finite[those]
        numbers.append(_share(f"share collapsed, optimum {where} the thresholds", own["collapsed"], own["seed"], 0.0))
    for optimizer, own in runs.groupby("optimizer", sort=False):
        right = agree.loc[own.index]
        numbers.append(_share(f"share of runs that end as theory says, {optimizer}", right, own["seed"], 1.0))
    for loss, own in runs.groupby("loss", sort=False):
        expected = float(own["group"].iloc[0] != FINITE)
        if own["collapsed"].mean() != expected:
            what = f"share collapsed, {NAMES[str(loss)]}"
            numbers.append(_share(what, own["collapsed"], own["seed"], expected))
    numbers = [number for number in numbers if not math.isnan(number.measured)]
    said = (
        f"{share:.0%} of {len(infinite)} runs without a finite optimum collapse, and {other:.0%} of {len(finite)} "
        "with one. Where it is otherwise: a margin that grows more slowly than log t, or a loss that works mostly on "
        "the chosen response (ORPO, SLiC-HF), does not get there in so many updates; a finite optimum farther out than "
        "the thresholds of collapse (h = 4.6/beta, or 2 log 100) looks like none on the way there; DiscoPOP's optimum "
        "is on the other side, and large steps jump over the barrier. Growth is judged by a fit, which calls a few "
        "margins that slow down bounded."
    )
    if share >= 0.95 and other <= 0.05:
        return Verdict("collapse-family", "holds", said, tuple(numbers))
    outcome: Outcome = "refuted" if share - other < 0.5 else "holds under conditions"
    return Verdict("collapse-family", outcome, said, tuple(numbers))


def _time(runs: pd.DataFrame) -> Verdict:
    due = runs[runs["crossed"].notna() | (runs["predicted"] < runs["steps"])]
    ratio = (due["crossed"] / due["predicted"]).to_numpy(dtype=float)
    near = pd.Series((ratio > 0.5) & (ratio < 2), index=due.index)  # NaN and 0, where one never comes, are not
    share = float(near.mean())
    both = due[np.isfinite(ratio) & (ratio > 0)]
    logs = np.log(both["crossed"] / both["predicted"])
    numbers = [_share("share of crossings within a factor of 2", near, due["seed"], 1.0)]
    for beta, own in both.groupby("beta"):
        numbers.append(_ratio(f"measured over predicted update, beta {beta:g}", logs.loc[own.index], own["seed"], 1.0))
    for loss, own in both.groupby("loss", sort=False):
        what = f"measured over predicted update, {NAMES[str(loss)]}"
        numbers.append(_ratio(what, logs.loc[own.index], own["seed"], 1.0))
    overshot = int((due["crossed"].notna() & np.isinf(due["predicted"])).sum())
    late = math.exp(float(logs.mean())) if len(logs) else math.nan
    said = (
        f"{share:.0%} of {len(due)} crossings come within a factor of 2 of the predicted update; "
        f"{len(runs) - len(due)} runs neither cross nor should. Predictions span {both['predicted'].min():.0f} to "
        f"{both['predicted'].max():.0f} updates and are missed by a factor of {late:.2g} in the geometric mean: K is "
        "taken at the first update and falls from there."
    )
    if overshot:
        said += f" {overshot} runs cross that should not: too large a step carries them past their optimum."
    outcome: Outcome = "holds" if share >= 0.9 else "refuted" if share < 0.5 else "holds under conditions"
    return Verdict("collapse-time", outcome, said, tuple(numbers))


def _optimiser(pairs: pd.DataFrame) -> Verdict:
    numbers, below = [], {}
    for (optimizer, loss, beta), own in pairs.groupby(["optimizer", "loss", "beta"]):
        what = f"{optimizer}, {NAMES[str(loss)]}, beta {beta:g}"
        ideal = float(np.exp(np.log(own["ideal"]).mean())) if loss == "dpo" else None
        number = _ratio(f"updates to collapse over SGD's, {what}", np.log(own["ratio"]), own["seed"], ideal)
        numbers.append(number)
        end = number.measured if number.high is None else number.high
        below[str(optimizer), what] = end < 1
    where = {name: [what for (one, what), yes in below.items() if yes and one == name] for name in ("adam", "rmsprop")}
    first = pairs["first"]
    earlier = "; ".join(what for those in where.values() for what in those) or "none"
    said = (
        f"Earlier than SGD: {earlier}. First steps of {first.min():.2g} to {first.max():.2g} nats. Adam keeps its pace "
        "while SGD's fades with the gradient, which matters where collapse comes late on SGD's logarithm (u = 4.6) and "
        "hardly where it comes early (beta 0.1, u = 0.9). RMSprop's first step is ten times its later ones, so at the "
        "same first step it is slow."
    )
    if all(below.values()):
        return Verdict("collapse-optimiser", "holds", said, tuple(numbers))
    if not all(where.values()):
        never = " and ".join(name for name, those in where.items() if not those)
        return Verdict("collapse-optimiser", "refuted", f"Nowhere with {never}. {said}", tuple(numbers))
    return Verdict("collapse-optimiser", "holds under conditions", said, tuple(numbers))


def _share(what: str, flags: "pd.Series[bool]", seeds: "pd.Series[int]", expected: float) -> Number:
    """Mean over seeds of their own shares, with the interval over seeds."""
    by_seed = flags.astype(float).groupby(seeds).mean()
    return _number(what, by_seed.to_numpy(), expected, lambda x: x)


def _ratio(what: str, logs: "pd.Series[float]", seeds: "pd.Series[int]", expected: float | None) -> Number:
    """Geometric mean over seeds."""
    return _number(what, logs.groupby(seeds).mean().to_numpy(), expected, math.exp)


def _number(what: str, values: Any, expected: float | None, back: Callable[[float], float]) -> Number:
    if not len(values):
        return Number(what, math.nan)
    mean = float(np.mean(values))
    low, high = mean_interval(np.asarray(values, dtype=float))
    if math.isnan(low) or low == high:
        return Number(what, back(mean), expected=expected)
    return Number(what, back(mean), back(low), back(high), expected)


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {
        "collapse_map": lambda: collapse_map.by_loss(frames["runs"], GROUPS),
        "times": lambda: times(frames["times"]),
        "same_first_step": lambda: same_first_step(frames["steps"]),
    }
