"""Hydra looks for sweepers and launchers in this namespace only, so they live here; the work is in `src.launching`.

Both are deliberately thin, and import nothing heavy: Hydra imports this file whenever it starts, `--help` included.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StackSweeper(BasicSweeper):
    """Hydra's grid, handed to the launcher whole, without the folder Hydra makes before it looks at a config."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=None)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None and self.hydra_context is not None
        overrides = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)
        (jobs,) = self.split_arguments(overrides, self.max_batch_size)
        return self.launcher.launch(jobs, initial_job_idx=0)


class StackLauncher(Launcher):
    """Trains compatible jobs together."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader, self._config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        jobs = [(self._loader.load_sweep_config(self._config, list(o)), tuple(o)) for o in job_overrides]
        from src.launching.jobs import run_jobs  # imports torch, which a typo should not wait for

        run_jobs(jobs)
        return []


for group, cls in (("sweeper", StackSweeper), ("launcher", StackLauncher)):
    ConfigStore.instance().store(
        group=f"hydra/{group}", name="stack", node={"_target_": f"{__name__}.{cls.__name__}"}, provider="margincall"
    )
