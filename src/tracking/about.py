"""What W&B is told about a run, whichever way it is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

WANDB = version("wandb")  # without importing it, which takes half a second

# What a W&B table should show of a run beside a curve's last value: its worst or its best.
SUMMARIES = {"log_pi/rejected": "min", "log_pi/chosen": "min", "margin": "max", "grad_norm": "max"}


@dataclass(frozen=True, kw_only=True)
class About:
    id: str
    name: str
    group: str
    project: str
    entity: str | None
    config: Mapping[str, Any]
