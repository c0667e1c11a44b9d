"""Measuring by turns: what is compared runs A B C, C B A, A B C, …, and ratios are formed within a round.

A machine that is slow for a while is then slow for both sides of a ratio, and neither is always the first.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and their smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        one_value = self.low == self.high
        return f"{self.median:{spec}}" + ("" if one_value else f" ({self.low:{spec}} to {self.high:{spec}})")


def by_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> Samples:
    """Each contender's measurement, once a round. A contender does its own warm-up."""
    samples: Samples = {name: [] for name in contenders}
    for k in range(rounds):
        for name in list(contenders)[:: 1 if k % 2 == 0 else -1]:
            value = contenders[name]()
            samples[name].append(value)
            print(f"  round {k + 1}/{rounds} {name}: {value:.4g}", flush=True)
    return samples


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Round by round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])
