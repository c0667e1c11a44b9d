"""From Hydra's composed configurations to a sweep. A single run and a sweep both come through here."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from src.config import run_config
from src.errors import BadInput
from src.launching.local import launch
from src.launching.plan import Cell


def run_jobs(jobs: Sequence[tuple[DictConfig, tuple[str, ...]]]) -> None:
    """Check every configuration, then train.

    Args:
        jobs: composed configurations, each with the overrides that made it.

    Raises:
        BadInput: before anything is created.
        SystemExit: with the sweep's exit code, where that is not 0.
    """
    converted = [(run_config(config), overrides) for config, overrides in jobs]
    destinations = {destination for (_, destination), _ in converted}
    if len(destinations) > 1:
        raise BadInput("output and sweep name the whole sweep: give one value of each")
    cells = [Cell(config, overrides) for (config, _), overrides in converted]
    code = launch(cells, destinations.pop(), sys.argv[1:])
    if code:
        sys.exit(code)
