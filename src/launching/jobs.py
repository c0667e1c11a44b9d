"""From Hydra's composed configurations to a sweep. A single run and a sweep both come through here."""

import sys
from collections.abc import Sequence

from src.config import run_config
from src.errors import BadInput
from src.launching.compose import Job
from src.launching.launch import Launched, launch
from src.launching.plan import Cell


def run_jobs(jobs: Sequence[Job]) -> Launched:
    """Check every configuration, then train.

    Args:
        jobs: composed configurations, each with the overrides that made it.

    Raises:
        BadInput: before anything is created.
    """
    converted = [(run_config(config), overrides) for config, overrides in jobs]
    (_, destination), _ = converted[0]
    if any(other != destination for (_, other), _ in converted):
        raise BadInput("output, sweep and launcher.* are the whole sweep's: give one value of each")
    return launch([Cell(config, overrides) for (config, _), overrides in converted], destination, sys.argv[1:])
