"""Hydra looks for sweepers and launchers in this namespace only, so they live here; the work is in `src.launching`.

Both are deliberately thin, and import nothing heavy: Hydra imports this file whenever it starts, `--help` included.
"""

import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from src.errors import BadInput


class StackSweeper(BasicSweeper):
    """Hydra's grid, handed to the launcher whole, without the folder Hydra makes before it looks at a config."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=None)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None and self.hydra_context is not None
        overrides = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)
        for override in overrides:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise BadInput(f"{override.input_line}: an interval is for a search, see hydra/sweeper=optuna")
        (jobs,) = self.split_arguments(overrides, self.max_batch_size)
        launched = self.launcher.launch(jobs, initial_job_idx=0)
        code = getattr(self.launcher, "code", 0)
        if code:
            sys.exit(code)
        return launched


class StackLauncher(Launcher):
    """Trains compatible jobs together. `code` is then the exit code; a job's return value is its run directory."""

    code = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader, self._config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        from src.launching.compose import compose_jobs  # these import torch, which a typo should not wait for
        from src.launching.jobs import run_jobs

        launched = run_jobs(compose_jobs(self._loader, self._config, job_overrides))
        self.code = launched.code
        return [
            JobReturn(overrides=overrides, _return_value=folder, status=JobStatus.COMPLETED)
            for overrides, folder in zip(job_overrides, launched.folders, strict=True)
        ]


for group, cls in (("sweeper", StackSweeper), ("launcher", StackLauncher)):
    ConfigStore.instance().store(
        group=f"hydra/{group}", name="stack", node={"_target_": f"{__name__}.{cls.__name__}"}, provider="margincall"
    )
