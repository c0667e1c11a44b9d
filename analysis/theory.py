"""Closed forms for one pair under gradient descent. Pure: numbers in, numbers out.

Symbols and units: h margin [nats]; beta [1]; u = beta h reward margin [1]; eta step size; t optimiser updates made;
K = |grad_theta h|^2 [nats^2 per parameter^2]; L1 = dL/dh [1/nat]. Gradient descent on any model moves the margin by
dh/dt = -eta K L1(h), so K is all a closed form must know of the model. K = 2 in a tabular softmax; it drifts in a
network.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, wrightomega

from analysis.sweep import REWARD_MODEL

Array = npt.NDArray[np.float64]


def ipo_target(beta: float) -> float:
    """h* = 1/(2 beta) [nats], the optimum of IPO's margin (Azar et al. 2023, arXiv 2310.12036, Eq. 17, tau = beta)."""
    return 1.0 / (2.0 * beta)


def dpo_slope(h: npt.ArrayLike, beta: float) -> Array:
    """L1 = -beta sigma(-beta h) for L = -log sigma(beta h) (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7)."""
    return np.asarray(-beta * expit(-beta * np.asarray(h, dtype=np.float64)))


def ipo_slope(h: npt.ArrayLike, beta: float) -> Array:
    """L1 = 2 (h - 1/(2 beta)) for L = (h - 1/(2 beta))^2 (arXiv 2310.12036, Eq. 17)."""
    return np.asarray(2.0 * (np.asarray(h, dtype=np.float64) - ipo_target(beta)))


def solve_u_plus_exp_u(w: npt.ArrayLike) -> Array:
    """The u with u + e^u = w, elementwise, for any finite w. (u = w - W0(e^w); W0(e^w) is the Wright omega function,
    which does not overflow where e^w does.)
    """
    w_ = np.asarray(w, dtype=np.float64)
    omega = wrightomega(w_)
    with np.errstate(divide="ignore"):  # omega underflows to 0 for w < -745, where the other branch is exact
        u: Array = np.where(w_ > 0, np.log(omega), w_ - omega)
    return u


def dpo_sgd_margin(t: npt.ArrayLike, *, h0: float, beta: float, eta: float, K: float, momentum: float = 0.0) -> Array:
    """DPO under gradient flow: u + e^u = u0 + e^{u0} + c t, with c = K eta beta^2 / (1 - momentum).

    t: [T] updates -> h: [T] nats. Integrates du/dt = c sigma(-u), the gradient flow of arXiv 2305.18290, Eq. 7. Plain
    gradient descent leads it in u by at most c / (2e (1 + e^{u0})), to first order in c: .092 c from u0 = 0. Heavy-ball
    momentum makes it lag, by less than mu/(1 - mu) updates.
    """
    t_ = np.asarray(t, dtype=np.float64)
    u0 = beta * h0
    if u0 > 700.0:  # e^{u0} overflows; the gradient, e^{-u0}, is zero in float64
        return np.full_like(t_, h0)
    c = K * eta * beta**2 / (1.0 - momentum)
    return solve_u_plus_exp_u(u0 + math.exp(u0) + c * t_) / beta


def ipo_sgd_margin(t: npt.ArrayLike, *, h0: float, beta: float, eta: float, K: float) -> Array:
    """IPO under gradient descent, exactly: h_t = h* + (h0 - h*) (1 - 2 K eta)^t, h* = 1/(2 beta).

    t: [T] whole updates -> h: [T] nats. From h0 = 0 this is (1 - (1 - 2 K eta)^t) / (2 tau). Stable iff eta K < 1.
    """
    target = ipo_target(beta)
    return target + (h0 - target) * np.power(1.0 - 2.0 * K * eta, np.asarray(t, dtype=np.int64))


@dataclass(frozen=True)
class ClosedForm:
    """What is known in closed form about one loss under SGD on one pair."""

    slope: Callable[[npt.ArrayLike, float], Array]  # (h, beta) -> L1
    loss: Callable[[Array, float], Array]  # (h, beta) -> L
    margin: Callable[..., Array]
    momentum: bool  # does `margin` know heavy-ball momentum?


CLOSED_FORMS = {
    "dpo": ClosedForm(dpo_slope, lambda h, beta: np.logaddexp(0, -beta * h), dpo_sgd_margin, momentum=True),
    "ipo": ClosedForm(ipo_slope, lambda h, beta: (h - ipo_target(beta)) ** 2, ipo_sgd_margin, momentum=False),
}


@dataclass(frozen=True)
class Line:
    """The closed-form margin of one run [nats], or None and why there is none."""

    margin: Array | None
    K: float = math.nan
    why_not: str = ""


def margin_line(run: Mapping[str, Any], start: Mapping[str, Any], t: npt.ArrayLike) -> Line:
    """The line for one run. `run` is its row of `Sweep.runs`, `start` row 0 of its history, `t` the steps wanted.

    K is not logged; row 0 gives it as (grad_norm / L1)^2, which holds when one pair is the whole data. It is the value
    at the start: exact throughout for a tabular softmax, a first approximation for a network.
    """
    reason = why_no_line(run)
    if reason:
        return Line(None, why_not=reason)
    form = CLOSED_FORMS[run["loss.name"]]
    beta, eta, h0 = float(run["beta"]), float(run["lr"]), float(start["margin"])
    slope = float(form.slope(h0, beta))
    K = (float(start["grad_norm"]) / slope) ** 2 if slope else math.nan
    if not (math.isfinite(K) and math.isfinite(h0)):
        return Line(None, why_not="row 0 does not give K (gradient zero or not finite)")
    if run["loss.name"] == "ipo" and eta * K >= 1.0:
        return Line(None, K, f"eta K = {eta * K:.3g} >= 1 at step 0: SGD on IPO is unstable if K stays there")
    if form.momentum:
        return Line(form.margin(t, h0=h0, beta=beta, eta=eta, K=K, momentum=_number(run, "optimizer.momentum")), K)
    return Line(form.margin(t, h0=h0, beta=beta, eta=eta, K=K), K)


# What follows from the margin alone, where one pair is the whole data: (closed form, K, h [T], beta) -> [T].
FROM_MARGIN: dict[str, Callable[[ClosedForm, float, Array, float], Array]] = {
    "margin": lambda form, K, h, beta: h,
    "rewards/margins": lambda form, K, h, beta: beta * h,
    "implied_preference": lambda form, K, h, beta: np.asarray(expit(beta * h)),
    "loss": lambda form, K, h, beta: form.loss(h, beta),
    "grad_norm": lambda form, K, h, beta: math.sqrt(K) * np.abs(form.slope(h, beta)),
}


def metric_line(
    metric: str, run: Mapping[str, Any], start: Mapping[str, Any], t: npt.ArrayLike
) -> tuple[Array | None, str]:
    """One of `FROM_MARGIN` at the margin of `margin_line` [T]; or None and why there is none."""
    if metric not in FROM_MARGIN:
        return None, f"no closed form for {metric}"
    line = margin_line(run, start, t)
    if line.margin is None:
        return None, line.why_not
    return FROM_MARGIN[metric](CLOSED_FORMS[run["loss.name"]], line.K, line.margin, float(run["beta"])), ""


def why_no_line(run: Mapping[str, Any]) -> str:
    """Why this run's configuration has no closed form; empty if it has one."""
    form = CLOSED_FORMS.get(run["loss.name"])
    if form is None:
        return "no closed form for this loss"
    if run.get("objective") == REWARD_MODEL:
        return "closed forms are for a policy's margin, which a reward model has not"
    if run.get("optimizer.name") != "sgd":
        return f"closed forms are for SGD, not {run.get('optimizer.name')}"
    if run.get("scheduler.name") != "constant":
        return "closed forms need a constant learning rate"
    if run.get("pairs") != 1:
        return "closed forms are for a single pair"
    if run.get("logps") != "sequence":
        return "closed forms are for whole-sequence log-probabilities"
    unwanted = [
        "kl_coef",
        "max_grad_norm",
        "optimizer.weight_decay",
        "optimizer.dampening",
        "optimizer.nesterov",
        "optimizer.maximize",
    ]
    if not form.momentum:
        unwanted.append("optimizer.momentum")
    unwanted += [key for key in run if key.startswith("loss.") and key not in ("loss.name", "loss.beta")]
    for key in unwanted:
        if _number(run, key):
            return f"no closed form with {key} = {run[key]:g}"
    return ""


def target_line(run: Mapping[str, Any]) -> float:
    """The margin [nats] at which the run's loss is least; NaN if there is none or it is not known in closed form."""
    if run["loss.name"] != "ipo" or run.get("logps") != "sequence":
        return math.nan
    if run.get("objective") == REWARD_MODEL or _number(run, "kl_coef"):
        return math.nan
    return ipo_target(float(run["beta"]))


def _number(run: Mapping[str, Any], key: str) -> float:
    """A numeric setting; 0 where it is absent, null or not a number."""
    value = run.get(key)
    if isinstance(value, (bool, int, float, np.number, np.bool_)) and not math.isnan(float(value)):
        return float(value)
    return 0.0
