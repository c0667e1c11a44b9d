"""The space a search looks through, written in Hydra's own sweep syntax.

    loss=dpo,ipo   lr='tag(log,interval(1e-3,1))'   beta='interval(0.01,1)'   steps='range(100,500,100)'

What is no sweep is the same in every trial. A parameter that only some choices have, such as `loss.epsilon`, is left
out of trials whose choice lacks it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from src.config import GROUPS, run_config
from src.errors import BadInput
from src.launching.compose import compose_jobs

DIGITS = 6  # of a sampled value: a label can be read, and no optimum is that sharp


@dataclass(frozen=True)
class Space:
    """fixed: overrides of every trial. free: key -> where its value comes from.

    absent: for each combination of the groups that decide it, the keys without effect.
    """

    fixed: Mapping[str, str]
    free: Mapping[str, BaseDistribution]
    deciding: tuple[str, ...]
    absent: Mapping[tuple[str, ...], frozenset[str]]

    def overrides(self, values: Mapping[str, object]) -> tuple[str, ...]:
        """A trial's command line, from its value for each free key."""
        given = {**self.fixed, **{key: _typed(self.free[key], value) for key, value in values.items()}}
        without = self.absent[tuple(given[group] for group in self.deciding)]
        return tuple(f"{key}={value}" for key, value in given.items() if key not in without)


def space(arguments: Sequence[str], loader: ConfigLoader, master: DictConfig) -> Space:
    """Read the space, and try the middle of it with every combination of choices that decides which keys there are.

    Raises:
        BadInput: a sweep that cannot be searched, or a configuration that cannot be.
    """
    fixed: dict[str, str] = {}
    free: dict[str, BaseDistribution] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(arguments)):
        key = override.get_key_element()
        if override.is_sweep_override():
            free[key] = _distribution(key, override)
        else:
            fixed[key] = override.get_value_element_as_str()
    if unfit := {"sweep", "output"} & free.keys():
        raise BadInput(f"{unfit.pop()}: all trials go to one sweep; give one value")
    if not free:
        raise BadInput("hydra/sweeper=optuna: nothing to search; give for example lr='tag(log,interval(1e-3,1))'")
    middle = {**fixed, **{key: _middle(distribution) for key, distribution in free.items()}}
    deciding = tuple(g for g in GROUPS if _choices(free.get(g)) and any(key.startswith(f"{g}.") for key in middle))
    combinations = list(itertools.product(*(_choices(free[group]) for group in deciding)))
    cells = [middle | dict(zip(deciding, combination, strict=True)) for combination in combinations]
    jobs = compose_jobs(loader, master, [[f"{key}={value}" for key, value in cell.items()] for cell in cells])
    absent = {}
    for combination, (config, kept) in zip(combinations, jobs, strict=True):
        run_config(config)
        absent[combination] = frozenset(middle) - {override.partition("=")[0] for override in kept}
    return Space(fixed, free, deciding, absent)


def _distribution(key: str, override: Override) -> BaseDistribution:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return _interval(key, sweep)
    if override.is_range_sweep() and isinstance(sweep, RangeSweep) and not sweep.shuffle:
        values = sorted(sweep.range())
        if len(values) > 1:
            low, high, step = values[0], values[-1], abs(sweep.step)
            if all(isinstance(value, int) for value in values):
                return IntDistribution(int(low), int(high), step=int(step))
            return FloatDistribution(float(low), float(high), step=float(step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _interval(key: str, sweep: IntervalSweep) -> BaseDistribution:
    assert sweep.start is not None and sweep.end is not None
    if unknown := sweep.tags - {"log"}:
        raise BadInput(f"{key}: tag {', '.join(sorted(unknown))} means nothing here; there is tag(log, interval(a,b))")
    kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
    try:
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)  # type: ignore[arg-type]
    except ValueError as error:
        raise BadInput(f"{key}=interval({sweep.start},{sweep.end}): {error}") from error


def _choices(distribution: BaseDistribution | None) -> tuple[str, ...]:
    return tuple(map(str, distribution.choices)) if isinstance(distribution, CategoricalDistribution) else ()


def _middle(distribution: BaseDistribution) -> str:
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        return _choices(distribution)[0]
    low, high = distribution.low, distribution.high
    middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
    if isinstance(distribution, IntDistribution):
        return str(low + (round(middle) - low) // distribution.step * distribution.step)
    return _typed(distribution, middle)


def _typed(distribution: BaseDistribution, value: object) -> str:
    """A value as on the command line; a rounded one that would leave its interval is not rounded."""
    if not isinstance(distribution, FloatDistribution):
        return str(value)
    assert isinstance(value, float)
    rounded = float(f"{value:.{DIGITS}g}")
    return repr(rounded if distribution.low <= rounded <= distribution.high else value)
