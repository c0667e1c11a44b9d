"""The same rows to Weights & Biases: one W&B run for each run of the stack."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

log = logging.getLogger(__name__)

# What a W&B table should show of a run: the worst, the best or the last value of a curve.
SUMMARIES = {"log_pi/rejected": "min,last", "log_pi/chosen": "min,last", "margin": "max,last", "grad_norm": "max,last"}


class Tracker(Protocol):
    """One run's mirror of its history."""

    def log(self, columns: Mapping[str, np.ndarray]) -> None: ...

    def finish(self, exit_code: int) -> None: ...


class NoTracker:
    def log(self, columns: Mapping[str, np.ndarray]) -> None:
        """Nothing to mirror."""

    def finish(self, exit_code: int) -> None:
        """Nothing to close."""


@dataclass(frozen=True, kw_only=True)
class Untracked:
    def start(self, config: Mapping[str, Any], folder: Path) -> Tracker:
        return NoTracker()


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Mirror to W&B, on disk (`offline`) or over the network (`online`)."""

    mode: Literal["offline", "online"]
    project: str
    entity: str | None

    def start(self, config: Mapping[str, Any], folder: Path) -> Tracker:
        """Begin the W&B run of one run directory.

        W&B is a mirror, never a reason to lose a run: if it cannot start, training goes on without it and says so.
        """
        import wandb

        try:
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                dir=str(folder),
                id=f"{config['id']}-{hashlib.sha256(str(config['sweep']).encode()).hexdigest()[:6]}",
                name=str(config["label"]),
                group=str(config["sweep"]),
                config={k: v for k, v in config.items() if k not in {"format", "tracking", "compute"}},
                mode=self.mode,
                reinit="create_new",
                settings=wandb.Settings(
                    console="off", silent=True, quiet=True, save_code=False, disable_git=True,
                    disable_job_creation=True, symlink=False, x_save_requirements=False,
                    x_disable_stats=True, x_disable_meta=True,
                ),
            )  # fmt: skip
            run.define_metric("step", hidden=True)
            run.define_metric("*", step_metric="step")
            for name, summary in SUMMARIES.items():
                run.define_metric(name, step_metric="step", summary=summary)
        except Exception as error:
            _gave_up(str(config["label"]), error)
            return NoTracker()
        return _WandbTracker(run, str(config["label"]))


class _WandbTracker:
    def __init__(self, run: Any, label: str) -> None:
        self._run, self._label = run, label

    def log(self, columns: Mapping[str, np.ndarray]) -> None:
        if self._run is None:
            return
        names = list(columns)
        try:
            for row in zip(*(column.tolist() for column in columns.values()), strict=True):
                self._run.log(dict(zip(names, row, strict=True)), step=int(row[0]))
        except Exception as error:
            self._run = None
            _gave_up(self._label, error)

    def finish(self, exit_code: int) -> None:
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            self._run = None
            _gave_up(self._label, error)


def _gave_up(label: str, error: Exception) -> None:
    log.warning("W&B is off for %s: %s: %s", label, type(error).__name__, " ".join(str(error).split()))
