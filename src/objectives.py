"""What a search optimises and what it must respect: one number of a run's history, chosen by name.

A name is a reduction over the run's rows and a quantity, such as `final_kl` or `lowest_log_pi_chosen`; a quantity alone
means its final value. A row is measured on the batch of its update: where batches differ, `late_` says more than
`final_`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from src.errors import BadInput

History = Mapping[str, np.ndarray]  # column of docs/run-directory.md -> its values, one a row


@dataclass(frozen=True)
class Quantity:
    """columns: the first of these that a run has. better: what a search does with it if it is not told otherwise."""

    columns: tuple[str, ...]
    better: str


QUANTITIES = {
    "loss": Quantity(("loss",), "minimize"),
    "margin": Quantity(("margin",), "maximize"),
    "reward_margin": Quantity(("rewards/margins",), "maximize"),
    "accuracy": Quantity(("rewards/accuracies",), "maximize"),
    "kl": Quantity(("exact/kl", "k3_on_data"), "minimize"),  # exact on a table; elsewhere k3 over the data's own tokens
    "chosen": Quantity(("log_ratios/chosen",), "maximize"),
    "rejected": Quantity(("log_ratios/rejected",), "minimize"),
    "log_pi_chosen": Quantity(("log_pi/chosen",), "maximize"),
    "log_pi_rejected": Quantity(("log_pi/rejected",), "maximize"),  # it is what collapses
    "grad_norm": Quantity(("grad_norm",), "minimize"),
}

REDUCTIONS: dict[str, Callable[[np.ndarray], float]] = {
    "final": lambda values: float(values[-1]),
    "late": lambda values: float(np.mean(values[-math.ceil(len(values) / 10) :])),  # the last tenth of the rows
    "lowest": lambda values: float(np.min(values)),
    "highest": lambda values: float(np.max(values)),
}


class NoValue(Exception):
    """This run has no such number: why, in one line."""


@dataclass(frozen=True)
class Objective:
    """A number of a run, by its full name."""

    name: str
    quantity: Quantity
    reduce: Callable[[np.ndarray], float]

    def __call__(self, history: History) -> float:
        """Its value, finite.

        Raises:
            NoValue: the run has no such column or no rows, or the value is not finite.
        """
        column = next((name for name in self.quantity.columns if name in history), None)
        if column is None:
            raise NoValue(f"{self.name} has no meaning for this run: no column {' or '.join(self.quantity.columns)}")
        if not len(history[column]):
            raise NoValue(f"{self.name}: no row was written")
        value = self.reduce(history[column])
        if not math.isfinite(value):
            raise NoValue(f"{self.name} is {value}")
        return value


@dataclass(frozen=True)
class Constraint:
    """`accuracy>=0.9`: feasible where it holds."""

    objective: Objective
    sign: float  # +1 for >=, -1 for <=
    bound: float

    @property
    def name(self) -> str:
        return f"{self.objective.name}{'>=' if self.sign > 0 else '<='}{self.bound:g}"

    def violation(self, value: float) -> float:
        """How far `value` is beyond the bound; at most 0 where it is not."""
        return self.sign * (self.bound - value)


def objective(name: str) -> Objective:
    """The objective of this name.

    Raises:
        BadInput: there is none.
    """
    reduction, _, quantity = name.partition("_")
    if name in QUANTITIES:
        reduction, quantity = "final", name
    if reduction not in REDUCTIONS or quantity not in QUANTITIES:
        raise BadInput(
            f"{name}: no such objective; there are such as final_kl, made of {', '.join(REDUCTIONS)} and "
            f"{', '.join(QUANTITIES)}"
        )
    return Objective(f"{reduction}_{quantity}", QUANTITIES[quantity], REDUCTIONS[reduction])


def constraints(text: str) -> tuple[Constraint, ...]:
    """Read `accuracy>=0.9, lowest_log_pi_chosen>=-20`; nothing gives none.

    Raises:
        BadInput: a part of it is not NAME>=NUMBER or NAME<=NUMBER.
    """
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(r"(\w+)\s*(>=|<=)\s*(\S+)", part)
        try:
            name, sign, bound = match.groups()  # type: ignore[union-attr]
            found.append(Constraint(objective(name), 1.0 if sign == ">=" else -1.0, float(bound)))
        except (AttributeError, ValueError) as error:
            raise BadInput(f"hydra.sweeper.subject_to: {part} is not NAME>=NUMBER or NAME<=NUMBER") from error
    return tuple(found)
