"""L1 = dL/dh in closed form, for the losses that see a pair of one-token responses through its margin alone. Pure.

h: margin [nats], [N]; beta [1]; L1 [1/nat], [N]. |L1| is the weight with which a pair pulls at the policy: the gradient
of the loss is L1 times that of the margin (Rafailov et al. 2023, arXiv 2305.18290, sec. 4). Papers: references.bib.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_ndtr

from analysis.theory import Array, dpo_slope, ipo_slope

Slope = Callable[..., Array]

# Of these the closed form holds for responses of one token only: they divide by lengths or compare them.
BY_LENGTH = frozenset({"sigmoid_norm", "ipo_avg", "r_dpo", "ld_dpo", "simpo", "tdpo1"})
LISTWISE = frozenset({"list_mle", "list_softmax", "pair_logistic", "pair_hinge", "lambda_loss"})  # and of two
LAMBDA_WEIGHT = 1 / math.log(2) - 1 / math.log(3)  # what swapping the two ranks would cost in DCG


def _dpo(h: Array, *, beta: float, **_: float) -> Array:
    return dpo_slope(h, beta)


def _ipo(h: Array, *, beta: float) -> Array:
    return ipo_slope(h, beta)


def _smoothed(h: Array, *, beta: float, epsilon: float) -> Array:
    return np.asarray(-beta * (expit(-beta * h) - epsilon))


def _robust(h: Array, *, beta: float, epsilon: float) -> Array:
    return np.asarray(-beta * (expit(-beta * h) + epsilon / (1 - 2 * epsilon)))


def _hinge(h: Array, *, beta: float) -> Array:
    return np.asarray(-beta * (beta * h < 1))


def _exp(h: Array, *, beta: float) -> Array:
    return np.asarray(-beta * np.exp(-beta * h))


def _probit(h: Array, *, beta: float) -> Array:
    u = beta * h
    return np.asarray(-beta * np.exp(-u * u / 2 - math.log(2 * math.pi) / 2 - log_ndtr(u)))


def _distill(h: Array, *, beta: float, score_gap: float) -> Array:
    return np.asarray(-2 * beta * (score_gap - beta * h))


def _exo(h: Array, *, beta: float, epsilon: float) -> Array:
    u = beta * h
    return np.asarray(beta * expit(u) * expit(-u) * (u - math.log((1 - epsilon) / epsilon)))


def _discopop(h: Array, *, beta: float, tau: float) -> Array:
    u = beta * h
    m = expit(u / tau)
    blend = m * expit(-u / tau) / tau * (np.exp(-u) - np.logaddexp(0, -u))
    return np.asarray(beta * (blend - (1 - m) * expit(-u) - m * np.exp(-u)))


def _simpo(h: Array, *, beta: float, gamma: float) -> Array:
    return np.asarray(-beta * expit(gamma - beta * h))


def _beta_dpo(h: Array, *, beta: float, alpha: float, mean_margin: float, **_: float) -> Array:
    of_batch = np.maximum(beta * (1 + alpha * (h - mean_margin)), 1e-3)
    return np.asarray(-of_batch * expit(-of_batch * h))


def _lambda(h: Array, *, beta: float) -> Array:
    return LAMBDA_WEIGHT * dpo_slope(h, beta)


# One pair, one token a response, and for SimPO a reference that gives both the same probability.
SLOPES: dict[str, Slope] = {
    "dpo": _dpo, "r_dpo": _dpo, "sigmoid_norm": _dpo, "ld_dpo": _dpo, "tdpo1": _dpo, "list_mle": _dpo,
    "list_softmax": _dpo, "pair_logistic": _dpo, "lambda_loss": _lambda, "beta_dpo": _beta_dpo, "cdpo": _smoothed,
    "aot": _smoothed, "aot_unpaired": _smoothed, "robust": _robust, "ipo": _ipo, "ipo_avg": _ipo, "hinge": _hinge,
    "pair_hinge": _hinge, "exp": _exp, "probit": _probit, "distill": _distill, "exo": _exo, "discopop": _discopop,
    "simpo": _simpo,
}  # fmt: skip


def weight(loss: str, h: npt.ArrayLike, settings: Mapping[str, float]) -> Array:
    """|L1| [1/nat] at margins h [N] nats. `settings`: the loss's own, beta among them. KeyError: no closed form."""
    with np.errstate(over="ignore", invalid="ignore"):  # exponentials far from any margin that is drawn
        return np.abs(SLOPES[loss](np.asarray(h, dtype=np.float64), **settings))


def why_no_weight(run: Mapping[str, Any]) -> str:
    """Why |L1| at a run's margin is not known in closed form; empty if it is. `run`: its row of `Sweep.runs`."""
    loss = run["loss.name"]
    if loss not in SLOPES:
        return "not a function of the margin alone"
    if run.get("objective") == "reward_model":
        return "a reward model has no margin"
    try:
        inspect.signature(SLOPES[loss]).bind(None, **settings_of(run))
    except TypeError:
        return "the configuration does not have the parameters of its loss"
    responses = run.get("data.responses")
    if loss in LISTWISE and responses is not None and responses > 2:
        return "compares more than two responses"
    if loss in BY_LENGTH and not run.get("chosen_tokens") == run.get("rejected_tokens") == 1:
        return "depends on the lengths of responses"
    if loss == "distill" and run.get("data.name") != "notebook_pair":
        return "depends on the scores of the data"
    return ""


def settings_of(run: Mapping[str, Any]) -> dict[str, float]:
    """The parameters of a run's loss, from its row of `Sweep.runs`."""
    found = {}
    for key, value in run.items():
        name = key.removeprefix("loss.")
        if key.startswith("loss.") and isinstance(value, (int, float)) and not math.isnan(value):
            found[name] = float(value)
    return found
