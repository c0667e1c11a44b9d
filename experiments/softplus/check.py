"""-log sigma(u) and its gradient in three ways, at every number of the half precisions up to 65504, by mpmath.

An error is in units of eps * max(|true value|, smallest normal number): 1/2 is the best that rounding allows.
"""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from analysis.figures import draw as d
from analysis.figures.looks import LOOKS
from analysis.figures.sheet import Panel, sheet
from experiments.study import Drawings, Frames, Number, Sweeps, Verdict

LARGEST = 65504.0  # of float16
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus(−u)": lambda u: softplus(-u),
    "−logsigmoid(u)": lambda u: -logsigmoid(u),
    "−log(sigmoid(u))": lambda u: -torch.log(torch.sigmoid(u)),
}
BUILT_IN, OTHER, NAIVE = FORMS


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """errors: one row for each dtype, form and u."""
    parts = []
    for name, dtype in DTYPES.items():
        u = _points(dtype, 64 if fast else 1)
        value, gradient = _true(u)
        parts += [_errors(name, dtype, form, u, value, gradient) for form in FORMS]
    return {"errors": pd.concat(parts, ignore_index=True)}


def _points(dtype: torch.dtype, every: int) -> Tensor:
    """All numbers of a 16-bit dtype up to `LARGEST`, or 30,000 of float32; each `every`-th of them."""
    if dtype == torch.float32:
        size = torch.logspace(-6, np.log10(LARGEST), 15_000, dtype=torch.float64).to(dtype)
        u = torch.cat([-size, size])
    else:
        u = torch.arange(2**16).to(torch.int16).view(dtype)
        u = u[u.isfinite() & (u.abs() <= LARGEST)]
    return u.double().sort().values[::every].to(dtype)


def _true(u: Tensor) -> tuple[Tensor, Tensor]:
    """-log sigma(u) = log(1 + e^{-u}) and its derivative -sigma(-u), rounded to float64."""
    with mpmath.workdps(40):
        exact = [mpmath.mpf(x) for x in u.double().tolist()]
        # Beyond u = 100, log(1 + e^-u) is e^-u to 40 digits; log1p would first compute with as many as u has.
        values = [float(mpmath.exp(-x) if x > 100 else mpmath.log1p(mpmath.exp(-x))) for x in exact]
        gradients = [float(-1 / (1 + mpmath.exp(x))) for x in exact]
    return torch.tensor(values, dtype=torch.float64), torch.tensor(gradients, dtype=torch.float64)


def _errors(name: str, dtype: torch.dtype, form: str, u: Tensor, value: Tensor, gradient: Tensor) -> pd.DataFrame:
    point = u.clone().requires_grad_()
    computed = FORMS[form](point)
    (slope,) = torch.autograd.grad(computed.sum(dtype=torch.float64), point)
    limits = torch.finfo(dtype)

    def error(found: Tensor, true: Tensor) -> Any:
        """inf where it is not finite although the true value can be written in this dtype."""
        off = (found.double() - true).abs() / (limits.eps * true.abs().clamp(min=limits.tiny))
        return torch.where(found.isfinite() | (true.abs() > limits.max), off, torch.inf).numpy()

    columns = {"u": u.double().numpy(), "value": error(computed.detach(), value), "gradient": error(slope, gradient)}
    return pd.DataFrame({"dtype": name, "form": form, **columns})


def check(frames: Frames) -> list[Verdict]:
    errors = frames["errors"]
    worst = errors.groupby(["dtype", "form"], sort=False)[["value", "gradient"]].max()
    numbers: list[Number] = []
    safer: list[str] = []
    no_worse: list[str] = []
    for dtype in errors["dtype"].unique():
        for form in FORMS:
            own = errors[(errors["dtype"] == dtype) & (errors["form"] == form)]
            for what in ("value", "gradient"):
                finite = own[np.isfinite(own[what])]
                numbers.append(
                    Number(f"worst finite error of the {what}, {form}, {dtype} (eps)", float(finite[what].max()))
                )
            lost = int((~np.isfinite(own[["value", "gradient"]])).any(axis=1).sum())
            numbers.append(Number(f"u where it or its gradient is not finite, {form}, {dtype}", lost, expected=0.0))
        one, two = (
            errors.loc[(errors["dtype"] == dtype) & (errors["form"] == form), ["value", "gradient"]].to_numpy()
            for form in (BUILT_IN, OTHER)
        )
        loses = bool((np.isinf(two) & ~np.isinf(one)).any())
        halves = bool(
            np.isfinite(one).all() and (one.max(0) <= two.max(0)).all() and (2 * one.max(0) <= two.max(0)).any()
        )
        (safer if loses or halves else no_worse).append(str(dtype))
    naive = errors[errors["form"] == NAIVE]
    naive = naive[np.isinf(naive[["value", "gradient"]].to_numpy()).any(axis=1)]
    limits = ", ".join(f"u <= {own['u'].max():.4g} in {dtype}" for dtype, own in naive.groupby("dtype", sort=False))
    beside = f" What fails is the logarithm of a sigmoid computed first: not finite for {limits}." if limits else ""
    compared = "; ".join(
        f"{dtype}: "
        + " and ".join(f"{worst.loc[(dtype, form), 'value']:.3g}" for form in (BUILT_IN, OTHER))
        + " for the value, "
        + " and ".join(f"{worst.loc[(dtype, form), 'gradient']:.3g}" for form in (BUILT_IN, OTHER))
        + " for the gradient"
        for dtype in errors["dtype"].unique()
    )
    said = f"Worst errors of softplus(-u) and -logsigmoid(u), in eps: {compared}.{beside}"
    if not no_worse:
        return [Verdict("C10", "holds", said, tuple(numbers))]
    if safer:
        return [Verdict("C10", "holds under conditions", f"Only in {', '.join(safer)}. {said}", tuple(numbers))]
    return [Verdict("C10", "refuted", f"softplus is not safer in any of the three. {said}", tuple(numbers))]


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {"errors": lambda: _draw(frames["errors"])}


def _draw(errors: pd.DataFrame) -> Figure:
    """The largest error of the value among neighbouring u, by form; a gap where none is finite."""
    edges = np.linspace(-40, 40, 161)
    styles: dict[str, Any] = dict(zip(FORMS, ("-", (0, (3, 1.5)), (0, (1, 1))), strict=True))
    keys = [
        Line2D([], [], color=look.colour, linewidth=d.WIDTH, linestyle=styles[form], label=form)
        for form, look in zip(FORMS, LOOKS, strict=False)
    ]
    note = (
        "Largest error among neighbouring u, against 40-digit arithmetic, in eps × max(|true value|, smallest normal "
        "number). Log scale. Crosses: not finite."
    )
    panels = [Panel("error of −log σ(u) (eps)", 28.0)]
    with sheet([*DTYPES], "u", panels, [keys], note) as on:
        for ax, dtype in zip(on.axes, DTYPES, strict=True):
            ax.set_yscale("log")
            ax.set_ylim(1e-2, 1e4)
            for form, look in zip(FORMS, LOOKS, strict=False):
                own = errors[(errors["dtype"] == dtype) & (errors["form"] == form) & (errors["u"].abs() <= 40)]
                largest = own.groupby(np.digitize(own["u"], edges))["value"].max()
                middle = (edges[largest.index - 1] + edges[largest.index.to_numpy().clip(max=len(edges) - 1)]) / 2
                seen = largest.where(np.isfinite(largest)).clip(lower=1e-2)
                ax.plot(middle, seen, color=look.colour, linewidth=d.WIDTH, linestyle=styles[form])
                blown = np.isinf(largest).to_numpy()
                ax.plot(
                    middle[blown], np.full(blown.sum(), 5e3), color=look.colour, marker="x", markersize=3, linestyle=""
                )
    return on.figure
