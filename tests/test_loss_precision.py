"""Every loss against the equation of its paper in 50-digit arithmetic, and for finiteness where float32 ends.

The claim, on a grid of log-ratios up to 1e4 nats and betas from 0.01 to 2:

* float64: value and gradient are right to 1e-6 of themselves wherever they are representable.
* float32: the same, plus what a rounding (2^-23 of itself) of each input does. e^-u at u = 87 moves by 87 of those when
  u does, and no formula can help that; where rounding matters less than 1e-6, the bound is 1e-6.
* Where an equation is a difference of terms that meet (EXO and robust near their zero), the error is measured against
  the largest term; a slope that is one (APO-down, the middle of a list), against the list's largest slope. A square of
  a difference (IPO) needs no such rule: the difference is exact to a rounding of its inputs.
* A number between 0 and the smallest normal one has only to be that small, one beyond the largest only to be finite.
* No NaN and no infinity in either, for any log-ratio in [-1e4, 1e4].
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from src.config import Choice
from src.losses.base import PairLogRatios, facts_of
from tests.conftest import CONF

NAMES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))

# ---- the papers' equations. p: one list of responses and the hyper-parameters; s: the same, not differentiated.
# p.x: log-ratios, best first; p.a, p.b, p.h; p.lp: log-probs; p.n: lengths; p.tok, p.ref_tok: token log-probs;
# p.pi, p.ref_pi: next-token log-probabilities. A pair (value, scale) names the larger of two terms that meet.


def sig(x):
    return 1 / (1 + mp.exp(-x)) if abs(x) < 1e6 else mpf(x > 0)


def ell(x):
    """-log sigma(x). Beyond 1e6, e^-|x| is 0 in every dtype."""
    return mp.log1p(mp.exp(-x)) if abs(x) < 1e6 else max(-x, mpf(0))


def pos(x):
    return max(x, mpf(0))


def minus_log_normal_cdf(u):
    return -mp.log1p(-mp.ncdf(-u)) if u > 0 else -mp.log(mp.ncdf(u))


def smooth(u, e):
    return (1 - e) * ell(u) + e * ell(-u)


def robust(p, s):
    u = p.beta * p.h
    terms = (1 - p.epsilon) * ell(u), p.epsilon * ell(-u)
    return (terms[0] - terms[1]) / (1 - 2 * p.epsilon), max(ell(u), abs(u) * p.epsilon / (1 - 2 * p.epsilon))


def exo(p, s):
    q, other = sig(p.beta * p.h), sig(-p.beta * p.h)
    terms = [q * -ell(p.beta * p.h), q * -mp.log1p(-p.epsilon), other * -ell(-p.beta * p.h), other * -mp.log(p.epsilon)]
    return sum(terms), max(map(abs, terms))


def discopop(p, s):
    u = p.beta * p.h
    return sig(-u / p.tau) * ell(u) + sig(u / p.tau) * mp.exp(-u)


def kto(p, s):
    z = pos(sum(s.x) / len(s.x))
    return p.lambda_chosen * sig(p.beta * (z - p.a)) + p.lambda_rejected * sig(p.beta * (p.b - z))


def cal_dpo(p, s):
    goal = 1 / (2 * p.beta)
    return ell(p.h) + ((p.a - goal) ** 2 + (p.b + goal) ** 2) / 2


def f_dpo(p, s):
    slope = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: 1 - mp.exp(-x),
        "js": lambda x: mp.log(2) - ell(x),
    }[p.divergence]
    return ell(p.beta * (slope(p.a) - slope(p.b)))


def f_dpo_alpha(p, s):
    def slope(x):
        return (1 - mp.exp(-p.alpha * x)) / p.alpha if p.alpha else x

    return ell(p.beta * (slope(p.a) - slope(p.b)))


def chi_po(p, s):
    score = p.beta * (mp.exp(p.a) + p.a - mp.exp(p.b) - p.b)
    return ell(min(max(score, -2 * p.r_max), 2 * p.r_max))


def beta_dpo(p, s):
    return ell(max(mpf("1e-3"), p.beta * (1 + p.alpha * (s.h - p.mean_margin))) * p.h)


def ld_dpo(p, s):
    shared = min(p.n)
    weighted = [
        sum((x - r) * (1 if t < shared else p.alpha) for t, (x, r) in enumerate(zip(tok, ref, strict=True)))
        for tok, ref in zip(p.tok, p.ref_tok, strict=True)
    ]
    return ell(p.beta * (weighted[0] - weighted[-1]))


def wpo(p, s):
    def weight(tok, pi):
        aligned = [x - mp.log(sum(mp.exp(2 * v) for v in row)) for x, row in zip(tok, pi, strict=True)]
        return mp.exp(sum(aligned) / len(aligned))

    return weight(s.tok[0], s.pi[0]) * weight(s.tok[-1], s.pi[-1]) * ell(p.beta * p.h)


def kl(p, k):
    """Forward KL of the next-token distributions along response k."""
    return sum(
        mp.exp(r) * (r - v)
        for row, ref in zip(p.pi[k], p.ref_pi[k], strict=True)
        for v, r in zip(row, ref, strict=True)
    )


def odds(log_p):
    """At probability 1 they are infinite; the code keeps 1e-12 away, and so does this."""
    return mp.exp(log_p) / -mp.expm1(min(log_p, -mpf("1e-12")))


def orpo(p, s):
    per_token = [lp / n for lp, n in zip(p.lp, p.n, strict=True)]
    ratio = odds(per_token[0]) / odds(per_token[-1])
    return p.odds_weight * mp.log1p(1 / ratio) - p.nll_weight * per_token[0]


def mean(terms):
    terms = list(terms)
    return mp.fsum(terms) / len(terms)


def pairs_of(x):
    return [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]


def list_mle(p, s):
    e = [mp.exp(p.beta * x) for x in p.x]
    return sum(mp.log1p(sum(e[t + 1 :]) / e[t]) for t in range(len(e)))


def lambda_loss(p, s):
    gain = [mpf(2) ** (1 - mpf(i) / (len(p.x) - 1)) - 1 for i in range(len(p.x))]
    rank = [1 + sum(y > x or (y == x and j < i) for j, y in enumerate(s.x)) for i, x in enumerate(s.x)]
    return sum(
        abs(gain[i] - gain[j])
        * abs(1 / mp.log(1 + rank[i]) - 1 / mp.log(1 + rank[j]))
        * ell(p.beta * (p.x[i] - p.x[j]))
        for i, j in pairs_of(p.x)
    )


# One row for each file of conf/loss.
EQUATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "aot": lambda p, s: smooth(p.beta * p.h, p.epsilon),
    "aot_unpaired": lambda p, s: smooth(p.beta * p.h, p.epsilon),
    "apo_down": lambda p, s: sig(p.beta * p.a) + sig(-p.beta * p.h),
    "apo_zero": lambda p, s: sig(-p.beta * p.a) + sig(p.beta * p.b),
    "bco": lambda p, s: ell(p.beta * p.a - p.delta) + ell(-(p.beta * p.b - p.delta)),
    "beta_dpo": beta_dpo,
    "cal_dpo": cal_dpo,
    "cdpo": lambda p, s: smooth(p.beta * p.h, p.epsilon),
    "chi_po": chi_po,
    "cpo": lambda p, s: ell(p.beta * (p.lp[0] - p.lp[-1])) - p.alpha * p.lp[0] / p.n[0],
    "discopop": discopop,
    "distill": lambda p, s: (p.score_gap - p.beta * p.h) ** 2,
    "dpo": lambda p, s: ell(p.beta * p.h),
    "dpop": lambda p, s: ell(p.beta * (p.h - p.penalty * pos(-p.a))),
    "exo": exo,
    "exp": lambda p, s: mp.exp(-p.beta * p.h),
    "f_dpo": f_dpo,
    "f_dpo_alpha": f_dpo_alpha,
    "hinge": lambda p, s: pos(1 - p.beta * p.h),
    "ipo": lambda p, s: (p.h - 1 / (2 * p.beta)) ** 2,
    "ipo_avg": lambda p, s: (p.a / p.n[0] - p.b / p.n[-1] - 1 / (2 * p.beta)) ** 2,
    "kto": kto,
    "lambda_loss": lambda_loss,
    "ld_dpo": ld_dpo,
    "list_mle": list_mle,
    "list_softmax": lambda p, s: mp.log1p(sum(mp.exp(p.beta * (x - p.a)) for x in p.x[1:])),
    "mix": lambda p, s: p.weights["a"] * ell(p.terms["a"]["beta"] * p.h) - p.weights["b"] * p.lp[0] / p.n[0],
    "nca": lambda p, s: ell(p.beta * p.a) + ell(-p.beta * p.a) / 2 + ell(-p.beta * p.b) / 2,
    "orpo": orpo,
    "pair_hinge": lambda p, s: mean(pos(1 - p.beta * (p.x[i] - p.x[j])) for i, j in pairs_of(p.x)),
    "pair_logistic": lambda p, s: mean(ell(p.beta * (p.x[i] - p.x[j])) for i, j in pairs_of(p.x)),
    "probit": lambda p, s: minus_log_normal_cdf(p.beta * p.h),
    "r_dpo": lambda p, s: ell(p.beta * p.h + p.alpha * (p.n[0] - p.n[-1])),
    "robust": robust,
    "rpo": lambda p, s: ell(p.beta * p.h) - p.alpha * p.lp[0] / p.n[0],
    "sft": lambda p, s: -p.lp[0] / p.n[0],
    "sigmoid_norm": lambda p, s: ell(p.beta * (p.a / p.n[0] - p.b / p.n[-1])),
    "simpo": lambda p, s: ell(p.beta * (p.lp[0] / p.n[0] - p.lp[-1] / p.n[-1]) - p.gamma),
    "slic_hf": lambda p, s: pos(p.delta - p.lp[0] + p.lp[-1]) - p.nll_weight * p.lp[0],
    "sppo_hard": lambda p, s: (p.a - 1 / (2 * p.beta)) ** 2 + (p.b + 1 / (2 * p.beta)) ** 2,
    "tdpo1": lambda p, s: ell(p.beta * (p.h - (kl(p, -1) - kl(p, 0)))),
    "tdpo2": lambda p, s: ell(p.beta * (p.h - p.alpha * (kl(p, -1) - kl(s, 0)))),
    "wpo": wpo,
}  # fmt: skip

# Beside the defaults: the other branches, and the ends of the ranges.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("aot", {"epsilon": 0.1}),
    ("bco", {"delta": -3.0}),
    ("cdpo", {"epsilon": 0.0}),
    ("discopop", {"tau": 1.5}),
    ("exo", {"epsilon": 0.4}),
    ("f_dpo", {"divergence": "js"}),
    ("f_dpo", {"divergence": "reverse_kl"}),
    ("f_dpo_alpha", {"alpha": 0.0}),
    ("f_dpo_alpha", {"alpha": 1e-3}),
    ("f_dpo_alpha", {"alpha": 2.0}),
    ("kto", {"lambda_chosen": 0.5, "lambda_rejected": 2.0}),
    ("robust", {"epsilon": 0.45}),
]
CASES = [*((name, {}) for name in NAMES), *VARIANTS]
CASE_IDS = [name + "".join(f"-{value}" for value in changed.values()) for name, changed in CASES]

# ---- the grid

MAGNITUDES = (1e-8, 1e-3, 1.0, 10.0, 50.0, 87.0, 700.0, 1e4)
RATIOS = np.float32([0.0, *MAGNITUDES, *(-x for x in MAGNITUDES)])
BETAS = np.float32([0.01, 0.1, 0.5, 2.0])
POINTS = [(float(a), float(b)) for x in RATIOS for a, b in ((x, 0), (0, x), (x, -x), (x, 1))]
MIDDLE = 0.5  # log-ratio of the second of three responses
LENGTHS = (3, 2)  # all tokens but the first have probability 1 under both models
REST = (-1.0, -2.0)  # the other log-probabilities where the first token is drawn
REF_REST = (-1.5, -0.5)


def float32_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters that both dtypes can hold."""

    def rounded(value: Any) -> Any:
        if isinstance(value, Choice):
            return replace(value, params=float32_values(value.params))
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        return float(np.float32(value)) if isinstance(value, float) else value

    return {key: rounded(value) for key, value in params.items()}


def batch(points: torch.Tensor) -> PairLogRatios:
    """Log-ratios [R, N, K] as pairs of log-probs at most 0; logps and token log-probs carry the gradient."""
    first = points.clamp(max=0).requires_grad_()
    ref_first = -points.clamp(min=0)
    runs, lists, size = points.shape
    lengths = torch.tensor([LENGTHS[0]] * (size - 1) + [LENGTHS[1]]).expand(runs, lists, size)
    mask = torch.arange(LENGTHS[0]) < lengths[..., None]
    certain = torch.tensor([0.0, -1e4, -1e4], dtype=points.dtype)

    def tokens(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., None], torch.zeros(*x.shape, LENGTHS[0] - 1, dtype=x.dtype)], -1)

    def whole(x: torch.Tensor, rest: tuple[float, ...]) -> torch.Tensor:
        drawn = torch.cat([x[..., None], torch.tensor(rest, dtype=x.dtype).expand(*x.shape, len(rest))], -1)
        return torch.stack([drawn, *[certain.expand_as(drawn)] * (LENGTHS[0] - 1)], -2)

    return PairLogRatios(
        first, ref_first, lengths, None, tokens(first), tokens(ref_first), mask,
        whole(first.detach(), REST), whole(ref_first, REF_REST),
    )  # fmt: skip


def evaluate(loss: Choice, points: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [R, N] and gradients [R, N, K] with respect to the log-probs; each row has its beta [R, 1]."""
    pairs = batch(points)
    hyper = {
        key: betas if key == "beta" else torch.full_like(betas, value) if isinstance(value, float) else value
        for key, value in loss.params.items()
    }
    value = loss.function(pairs, **hyper)
    (gradient,) = torch.autograd.grad(value.sum(), pairs.logps)
    return value.detach(), gradient


class Exact:
    """One list's equation as a function of its leaves: the log-probs, the reference's, and the numbers in `params`."""

    def __init__(self, loss: Choice, point: tuple[float, ...], beta: float) -> None:
        self.equation, self.size, facts = EQUATIONS[loss.name], len(point), facts_of(loss)
        self.fixed: dict[str, Any] = {}
        self.leaves: dict[str, mpf] = {}
        for k, x in enumerate(point):
            self.leaves |= {f"lp{k}": mpf(min(x, 0)), f"ref{k}": mpf(-max(x, 0))}
            if facts.vocabulary:
                self.leaves |= {f"pi{k}": mpf(min(x, 0)), f"refpi{k}": mpf(-max(x, 0))}
        for key, value in loss.params.items():
            if key == "beta":
                self.leaves[key] = mpf(beta)
            elif isinstance(value, float):
                self.leaves[key] = mpf(value)
            elif key == "terms":
                self.fixed[key] = {term: made.params for term, made in value.items()}
            else:
                self.fixed[key] = value

    def at(self, moved: Mapping[str, mpf]) -> SimpleNamespace:
        leaves = self.leaves | dict(moved)
        lp, ref, pi, ref_pi = (
            [leaves.get(f"{kind}{k}", mpf(0)) for k in range(self.size)] for kind in ("lp", "ref", "pi", "refpi")
        )
        n = [LENGTHS[0]] * (self.size - 1) + [LENGTHS[1]]
        certain = [mpf(0), mpf(-10000), mpf(-10000)]
        x = [p - r for p, r in zip(lp, ref, strict=True)]
        return SimpleNamespace(
            x=x, a=x[0], b=x[-1], h=x[0] - x[-1], lp=lp, n=n,
            tok=[[p] + [mpf(0)] * (m - 1) for p, m in zip(lp, n, strict=True)],
            ref_tok=[[r] + [mpf(0)] * (m - 1) for r, m in zip(ref, n, strict=True)],
            pi=[[[p, *map(mpf, REST)]] + [certain] * (m - 1) for p, m in zip(pi, n, strict=True)],
            ref_pi=[[[r, *map(mpf, REF_REST)]] + [certain] * (m - 1) for r, m in zip(ref_pi, n, strict=True)],
            **{key: value for key, value in leaves.items() if not key[-1].isdigit()}, **self.fixed,
        )  # fmt: skip

    def value(self, moved: Mapping[str, mpf]) -> tuple[mpf, mpf]:
        """The value, and the size its error is measured against."""
        here = self.at(moved)
        result = self.equation(here, here)
        return result if isinstance(result, tuple) else (result, abs(result))

    def slopes(self, k: int, moved: Mapping[str, mpf]) -> tuple[mpf, mpf]:
        """Slopes in log-prob k from the left and from the right; they differ at a kink."""
        stopped = self.at(moved)
        middle, step = moved.get(f"lp{k}", self.leaves[f"lp{k}"]), mpf(10) ** -60

        def value(at: mpf) -> mpf:
            result = self.equation(self.at({**moved, f"lp{k}": at}), stopped)
            return result[0] if isinstance(result, tuple) else result

        here = value(middle)
        return (here - value(middle - step)) / step, (value(middle + step) - here) / step

    def rounding(self, quantity: Callable[[Mapping[str, mpf]], mpf], eps: float) -> mpf:
        """How far `quantity` moves, in all, when each leaf moves by `eps` of itself, either way."""
        here = quantity({})
        moves = [{key: x * (1 + d)} for key, x in self.leaves.items() if x for d in (-eps, eps)]
        return mp.fsum(abs(quantity(moved) - here) for moved in moves) / 2


# Slopes that are differences of terms that meet: measured against the list's largest slope.
SLOPES_MEET = {"apo_down", "lambda_loss", "list_mle", "pair_hinge", "pair_logistic"}


@pytest.fixture(params=CASES, ids=CASE_IDS)
def case(request, convert) -> tuple[str, Choice]:
    name, changed = request.param
    loss = convert(f"loss={name}").loss
    return request.node.callspec.id, replace(loss, params=float32_values({**loss.params, **changed}))


def points_of(loss: Choice) -> list[tuple[float, ...]]:
    wide = [(a, MIDDLE, b) for a, b in POINTS] if facts_of(loss).lists else []
    return [*POINTS, *wide] if not wide else [*POINTS, *wide[:: len(wide) // 34]]


def test_every_loss_has_its_equation_here():
    assert sorted(EQUATIONS) == NAMES


def test_value_and_gradient_are_those_of_50_digit_arithmetic(case):
    label, loss = case
    found: list[Comparison] = []
    for size in {len(point) for point in points_of(loss)}:
        points = [point for point in points_of(loss) if len(point) == size]
        grid = [(point, float(beta)) for point in points for beta in (BETAS if "beta" in loss.params else BETAS[:1])]
        ours = {}
        for dtype in (torch.float32, torch.float64):
            log_ratios = torch.tensor([point for point, _ in grid], dtype=dtype)[:, None]
            ours[dtype] = evaluate(loss, log_ratios, torch.tensor([beta for _, beta in grid], dtype=dtype)[:, None])
        for row, (point, beta) in enumerate(grid):
            exact = Exact(loss, point, beta)
            with mpmath.workdps(50):
                found += compare_value(exact, ours, row)
                above = max(0, int(mp.log10(abs(exact.value({})[0]) + 1)))
            largest = max(map(abs, point))
            if largest < 1e4 and above <= 308:
                # A slope may be as small as 1e-308, beside a value as large as 1e308.
                with mpmath.workdps(130 + min(320, int(largest)) + above):
                    found += compare_slopes(exact, ours, row, label.split("-")[0] in SLOPES_MEET)
    for what, dtype in itertools.product(("value", "slope"), (torch.float32, torch.float64)):  # pytest -rP shows it
        worst, beyond = (
            max(x) for x in zip(*((c.raw, c.error) for c in found if (c.what, c.dtype) == (what, dtype)), strict=True)
        )
        print(f"{label}: {what} in {dtype}: worst error {worst:.1e}, beyond the inputs' rounding {beyond:.1e}")
    failures = [str(c) for c in found if not c.error <= 1e-6]
    assert not failures, "\n".join(failures[:20]) + f"\n({len(failures)} in all)"


@dataclass(frozen=True)
class Comparison:
    """raw: the error relative to the scale; error: what the inputs' rounding leaves of it, where that is asked for."""

    what: str
    dtype: torch.dtype
    ours: float
    exact: str
    raw: float
    error: float
    where: dict[str, Any]


Ours = Mapping[torch.dtype, tuple[torch.Tensor, torch.Tensor]]


def compare_value(exact: Exact, ours: Ours, row: int) -> list[Comparison]:
    true, scale = exact.value({})
    return [
        compare("value", values[row, 0].item(), true, scale, exact, lambda moved: exact.value(moved)[0], dtype)
        for dtype, (values, _) in ours.items()
    ]


def compare_slopes(exact: Exact, ours: Ours, row: int, slopes_meet: bool) -> list[Comparison]:
    """With respect to each response's log-prob, where the equation has no kink."""
    slopes = [exact.slopes(k, {}) for k in range(exact.size)]
    largest = max(abs(right) for _, right in slopes)
    return [
        compare(
            "slope", gradients[row, 0, k].item(), right, largest if slopes_meet else abs(right),
            exact, lambda moved, k=k: exact.slopes(k, moved)[1], dtype,
        )
        for k, (left, right) in enumerate(slopes)
        if abs(right - left) <= mpf("1e-20") * max(abs(left), abs(right))
        for dtype, (_, gradients) in ours.items()
    ]  # fmt: skip


def compare(
    what: str, ours: float, true: mpf, scale: mpf, exact: Exact, quantity: Callable[..., mpf], dtype: torch.dtype
) -> Comparison:
    """A number beyond the largest has only to be finite; one below the smallest normal one may be anything below it."""
    limits = torch.finfo(dtype)
    off = mpf(0) if abs(true) > limits.max else abs(mpf(ours) - true) - 2 * mpf(limits.tiny)
    left = off - exact.rounding(quantity, limits.eps) if off > scale * mpf("1e-6") and dtype is torch.float32 else off
    raw, error = (
        math.inf if not math.isfinite(ours) else 0.0 if x <= 0 else float(x / scale) if scale else math.inf
        for x in (off, left)
    )
    where = {key: float(value) for key, value in exact.leaves.items()}
    return Comparison(what, dtype, ours, mp.nstr(true, 17), raw, error, where)


# ---- where float32 ends


@pytest.fixture(scope="module")
def losses(convert) -> dict[str, Choice]:
    """Every file of conf/loss and every variant."""
    made = {}
    for (name, changed), label in zip(CASES, CASE_IDS, strict=True):
        loss = convert(f"loss={name}").loss
        made[label] = replace(loss, params={**loss.params, **changed})
    return made


def assert_finite(losses: Mapping[str, Choice], points: torch.Tensor, betas: torch.Tensor) -> None:
    """points: log-ratios [R, N, 2]."""
    for label, loss in losses.items():
        wide = torch.cat([points, points.mean(-1, keepdim=True)], -1) if facts_of(loss).lists else points
        for batch_of in (points, wide):
            value, gradient = evaluate(loss, batch_of, betas)
            bad = ~(torch.isfinite(value) & torch.isfinite(gradient).all(-1))
            where = [(batch_of[r, n].tolist(), betas[r].item()) for r, n in bad.nonzero().tolist()]
            assert not where, f"{label} is not finite at (log-ratios, beta) {where[:5]}, {len(where)} in all"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_nan_or_infinite_at_any_pair_of_extremes(losses, dtype):
    grid = torch.tensor(RATIOS, dtype=dtype)
    points = torch.cartesian_prod(grid, grid).repeat(len(BETAS), 1)
    betas = torch.tensor(BETAS, dtype=dtype).repeat_interleave(len(grid) ** 2)[:, None]
    assert_finite(losses, points[:, None], betas)
    assert_finite(losses, torch.stack([points, points.flip(-1), -points], 1), betas)


ratio = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=60)
@given(
    points=st.lists(st.tuples(ratio, ratio), min_size=1, max_size=4), log_beta=st.floats(math.log(1e-3), math.log(10))
)
def test_nothing_is_nan_or_infinite_for_any_batch(losses, points, log_beta):
    betas = torch.full((1, 1), math.exp(log_beta))
    assert_finite(losses, torch.tensor([points], dtype=torch.float32), betas)
