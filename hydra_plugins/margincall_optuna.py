"""`hydra/sweeper=optuna`: optuna chooses the runs. The work is in `src.launching.search`.

The options are named as in Hydra's own plugin, which for Hydra 1.3 needs an optuna below 3 and knows no constraints.
Nothing heavy is imported here: Hydra imports this file whenever it starts.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from src.errors import BadInput


@dataclass
class OptunaConf:
    """hydra.sweeper.* under `hydra/sweeper=optuna`."""

    _target_: str = f"{__name__}.OptunaSweeper"
    objective: str = "final_kl"  # final_, late_, lowest_ or highest_ and a quantity; see src/objectives.py
    subject_to: str | None = None  # 'accuracy>=0.9, lowest_log_pi_chosen>=-20'
    direction: str | None = None  # minimize | maximize; null: what suits the objective
    sampler: str = "tpe"  # tpe | random | cmaes
    n_trials: int = 20
    n_jobs: int = 8  # trials that are proposed at once, and train together
    seed: int = 0  # of the sampler
    storage: str | None = None  # an optuna storage, such as sqlite:///study.db; null: none
    study_name: str | None = None  # in that storage; needed there


class OptunaSweeper(Sweeper):
    """Reads the space off the command line and lets `src.launching.search` look through it, in one sweep."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader, self._config = hydra_context.config_loader, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        try:
            from src.launching.search import search, settings
            from src.launching.space import space
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise BadInput("hydra/sweeper=optuna needs optuna: pip install -e '.[optuna]'") from error
        what = settings(self._options)
        if not any(argument.startswith("sweep=") for argument in arguments) and self._config.sweep is None:
            identity = json.dumps([what.plain(), sorted(arguments)])
            digest = hashlib.sha256(identity.encode()).hexdigest()[:6]
            arguments = [*arguments, f"sweep={what.sampler}-{what.objective.name}-{digest}"]
        code = search(what, space(arguments, self._loader, self._config), self._launch)
        if code:
            sys.exit(code)

    def _launch(self, lines: Sequence[Sequence[str]]) -> tuple[int, list[Path]]:
        returns = self._launcher.launch(lines, initial_job_idx=0)
        return getattr(self._launcher, "code", 0), [Path(job.return_value) for job in returns]


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConf, provider="margincall")
