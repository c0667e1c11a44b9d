"""How the margin of one pair grows, from the loss's slope alone. Float64 arrays in and out.

c = K eta beta^2 [1 per update] is the only constant DPO's growth under SGD depends on. K = |grad_theta h|^2 is 2 in a
tabular softmax; `span` = sum |grad_theta h|, which Adam's first steps follow, is 2 there too.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import expit, wrightomega

Array = npt.NDArray[np.float64]
Slope = Callable[[float], float]


def margin_flow(slope: Slope, t: npt.ArrayLike, *, eta: float, K: float = 2.0, h0: float = 0.0) -> Array:
    """h(t) of dh/dt = -eta K L1(h): the gradient flow of any loss of the margin, in any model while its K holds.

    t: [T] increasing updates >= 0 -> h: [T] nats. Measured within 2e-10 nats of the closed forms of DPO, IPO, hinge
    and the exponential loss up to t = 1e6. Gradient descent leads it by O(eta K L1').
    """
    times = np.asarray(t, dtype=np.float64)
    solved = solve_ivp(
        lambda _, h: [-eta * K * float(slope(float(h[0])))],
        (0.0, max(float(times[-1]), 1e-300)),
        [h0],
        method="Radau",
        t_eval=times,
        rtol=1e-10,
        atol=1e-12,
    )
    return np.asarray(solved.y[0])


def solve_u_plus_exp_u(w: npt.ArrayLike) -> Array:
    """The u with u + e^u = w, elementwise. u = w - W0(e^w), W0(e^w) = wrightomega(w), which does not overflow."""
    w_ = np.asarray(w, dtype=np.float64)
    omega = wrightomega(w_)
    with np.errstate(divide="ignore"):  # omega underflows below w = -745, where the other branch is taken
        u: Array = np.where(w_ > 0, np.log(omega), w_ - omega)
    return u


def dpo_u(t: npt.ArrayLike, c: float, u0: float = 0.0) -> Array:
    """DPO under gradient flow: u + e^u = u0 + e^{u0} + c t, so u ~ log(c t). [T] -> [T].

    Gradient descent leads it by (c/2) log(x/x0)/x, x = 1 + e^u, to first order in c: at most c / (2 e (1 + e^{u0})),
    which is .092 c from u0 = 0. Heavy-ball momentum mu: c -> c/(1 - mu), within what
    `dpo_u_discrete` adds to it.
    """
    return solve_u_plus_exp_u(u0 + math.exp(u0) + c * np.asarray(t, dtype=np.float64))


def dpo_u_discrete(t: npt.ArrayLike, c: float, u0: float = 0.0, momentum: float = 0.0) -> Array:
    """DPO under gradient descent with heavy-ball momentum mu, corrected to second order in c. [T] -> [T].

        u + e^u - C (1/2 + m) log(1 + e^u) = C (t - m (1 - mu^t)) + (left at u0); m = mu/(1 - mu), C = c/(1 - mu)

    Momentum acts m updates late: it starts m updates behind, then gains, since the older gradient is the larger one.
    Measured distance from descent: 1.9e-8 (c = .002), 1.9e-6 (.02), 2.0e-4 (.2), 3.3e-2 (2) without momentum; with
    mu = .9 6.5e-5 (C = .002), 5.4e-3 (.02), 2.8e-2 (.05), where the flow is off by 8.6e-3, 7.2e-2, 1.5e-1.
    """
    m = momentum / (1 - momentum)
    C = c / (1 - momentum)

    def left(u: float) -> float:
        return u + math.exp(u) - C * (0.5 + m) * float(np.logaddexp(0, u))

    def at(target: float) -> float:
        guess = float(solve_u_plus_exp_u(target))
        return float(brentq(lambda u: left(u) - target, guess - 1, guess + 1 + C * (1 + 2 * m), xtol=1e-14))

    times = np.atleast_1d(np.asarray(t, dtype=np.float64))
    return np.array([at(C * (time - m * (1 - momentum**time)) + left(u0)) for time in times])


def dpo_time(u: npt.ArrayLike, c: float, u0: float = 0.0) -> Array:
    """Updates until DPO's flow reaches u: (u + e^u - u0 - e^{u0}) / c."""
    u_ = np.asarray(u, dtype=np.float64)
    return np.asarray((u_ + np.exp(u_) - u0 - math.exp(u0)) / c)


def ipo_h(t: npt.ArrayLike, *, tau: float, eta: float, K: float = 2.0, h0: float = 0.0) -> Array:
    """IPO under gradient descent, exactly: h* + (h0 - h*) (1 - 2 K eta)^t, h* = 1/(2 tau). [T] -> [T] nats.

    The rate does not depend on tau. Stable iff eta K < 1.
    """
    target = 1 / (2 * tau)
    return target + (h0 - target) * np.power(1 - 2 * K * eta, np.asarray(t, dtype=np.int64))


def exp_u(t: npt.ArrayLike, c: float) -> Array:
    """The exponential loss under gradient flow from 0: u = log(1 + c t). [T] -> [T]."""
    return np.log1p(c * np.asarray(t, dtype=np.float64))


def hinge_h(t: npt.ArrayLike, *, beta: float, eta: float, K: float = 2.0) -> Array:
    """Hinge under gradient descent from 0: K eta beta t, stopped at or just beyond 1/beta. [T] -> [T] nats."""
    step = K * eta * beta
    return step * np.minimum(np.asarray(t, dtype=np.float64), math.ceil(1 / beta / step - 1e-9))


def probit_u(t: npt.ArrayLike, c: float) -> Array:
    """Probit under gradient flow, late: e^{u^2/2}/u = c t/sqrt(2 pi). [T] -> [T].

    .01 above gradient descent at c t = 2e3 (4.938 against 4.928); needs c t/sqrt(2 pi) > e, where u > 1.
    """
    goal = np.log(np.atleast_1d(np.asarray(t, dtype=np.float64)) * c / math.sqrt(2 * math.pi))
    return np.array([brentq(lambda u, g=g: u * u / 2 - math.log(u) - g, 1.0, 2 + 2 * math.sqrt(g)) for g in goal])


def cdpo_rate(*, beta: float, epsilon: float, eta: float, K: float = 2.0) -> float:
    """Rate [1/update] at which cDPO's flow closes in on u* = log((1 - epsilon)/epsilon)."""
    return K * eta * beta**2 * epsilon * (1 - epsilon)


def robust_h_slope(*, beta: float, epsilon: float, eta: float, K: float = 2.0) -> float:
    """dh/dt [nats/update] that robust DPO tends to: its loss has no lower bound."""
    return K * eta * beta * epsilon / (1 - 2 * epsilon)


def wpo_log_slope(u: npt.ArrayLike, beta: float) -> Array:
    """dh/dlog t [nats] of WPO in a tabular softmax, late: 1/(1 + beta s(u)); DPO's is 1/(beta s(u)).

    The 1 is WPO's own weight, which holds pi(rejected) and so falls like e^{-h} once pi(chosen) is near 1.
    """
    return np.asarray(1 / (1 + beta * expit(np.asarray(u, dtype=np.float64))))


def decay_h(*, beta: float, weight_decay: float) -> float:
    """Where SGD's weight decay stops DPO [nats]: lambda h = 2 beta s(-beta h). Tabular softmax, uniform reference."""
    top = 2 * beta / weight_decay
    return float(brentq(lambda h: weight_decay * h - 2 * beta * expit(-beta * h), 0.0, top, xtol=1e-13))


def one_step(*, eta: float, grad_norm: npt.ArrayLike, slope: npt.ArrayLike) -> Array:
    """dh [nats] of one SGD step on one pair, from what is logged: eta |g|^2 / |L1|, signed like -L1.

    First order in eta: in a tabular softmax it is exact, in a network it is off by O(eta K).
    """
    g, L1 = np.asarray(grad_norm, dtype=np.float64), np.asarray(slope, dtype=np.float64)
    return -eta * g**2 / L1


def adam_factor(kappa: float, betas: tuple[float, float] = (0.9, 0.999)) -> float:
    """Adam's step over lr, m/sqrt(v), when the gradient falls like e^{-kappa t}; late in training, eps negligible.

    m / g = (1 - b1)/(1 - b1 e^kappa) and v / g^2 = (1 - b2)/(1 - b2 e^{2 kappa}): sums of geometric series.
    """
    b1, b2 = betas
    return (1 - b1) / (1 - b1 * math.exp(kappa)) * math.sqrt(max(0.0, 1 - b2 * math.exp(2 * kappa)) / (1 - b2))


def adam_cap(beta2: float) -> float:
    """The fastest fall of a gradient that Adam (RMSprop: beta2 = alpha) sustains [1/update]: -ln(beta2)/2.

    A faster one outruns the memory of v: the step over lr, g/sqrt(v), then shrinks, and the fall with it.
    """
    return -math.log(beta2) / 2


def adam_kappa(rate: float, lr: float, betas: tuple[float, float] = (0.9, 0.999), span: float = 2.0) -> float:
    """Fall of the gradient [1/update] under Adam when |L1| ~ e^{-rate h}: kappa/rate = lr span factor(kappa).

    rate: [1/nat], beta for DPO's tail; h then grows by kappa/rate an update, u by kappa. RMSprop: betas = (0, alpha).
    Holds until |L1| is near eps (`adam_floor_u`). Between the small-lr limit 2 lr rate and `adam_cap`.
    """
    if rate <= 0:
        return 0.0
    top = min(adam_cap(betas[1]), -math.log(betas[0]) if betas[0] > 0 else math.inf)
    return float(brentq(lambda k: lr * span * adam_factor(k, betas) - k / rate, 0.0, top, xtol=1e-18, rtol=1e-14))


def adam_margin(
    slope: Slope,
    t: npt.ArrayLike,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    span: float = 2.0,
    h0: float = 0.0,
) -> Array:
    """h(t) under Adam of a loss whose slope keeps its sign: dh/dt = kappa/r, r(h) = -dlog|L1|/dh. [T] -> [T] nats.

    Quasi-steady: the gradient is taken to have fallen at today's rate for all of v's memory, 1/(1 - beta2) updates.
    Measured for DPO: within .05 in u while span lr beta is below half of `adam_cap`. Above it the first updates, made
    before v remembers anything, run ahead of it by 1.6 to 5 in u (span lr beta 4 to 40 times the cap); the slopes agree
    again until |L1| nears eps (`adam_floor_u`). RMSprop: betas = (0, alpha); `rmsprop_first_step` is left out.
    """
    times = np.asarray(t, dtype=np.float64)
    way = -math.copysign(1.0, slope(h0))

    def speed(_: float, h: Array) -> float:
        at, d = float(h[0]), 1e-5
        rate = -way * (math.log(abs(slope(at + d))) - math.log(abs(slope(at - d)))) / (2 * d)
        # A slope that grows instead of falling is followed at full step: v is then recent gradients.
        return way * (adam_kappa(rate, lr, betas, span) / rate if rate > 1e-9 else lr * span)

    solved = solve_ivp(speed, (0.0, float(times[-1])), [h0], method="LSODA", t_eval=times, rtol=1e-8, atol=1e-10)
    return np.asarray(solved.y[0])


def adam_floor_u(beta: float, eps: float = 1e-8) -> float:
    """The u at which DPO's gradient beta e^{-u} meets eps: linear growth ends there and u grows like log t again."""
    return math.log(beta / eps)


def rmsprop_first_step(lr: float, alpha: float = 0.99, span: float = 2.0) -> float:
    """dh [nats] of RMSprop's first update: v starts at 0 and is not corrected, so lr span / sqrt(1 - alpha)."""
    return lr * span / math.sqrt(1 - alpha)
