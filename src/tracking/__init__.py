"""The same rows to Weights & Biases: one W&B run for each run of the stack."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from src.tracking.about import WANDB, About
from src.tracking.guard import Guarded, Tracker
from src.tracking.offline import OfflineRun
from src.tracking.service import InBackground, ServiceRun

__all__ = ["NoTracker", "Tracker", "Untracked", "Wandb"]

# The versions of wandb whose offline files the tests have compared ours with. Others write them themselves, slowly.
FORMAT_KNOWN = ("0.31.",)
NOT_TOLD = {"format", "tracking", "compute"}


class NoTracker:
    def log(self, columns: Mapping[str, np.ndarray]) -> None:
        """Nothing to mirror."""

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Nothing to show."""

    def finish(self, exit_code: int) -> None:
        """Nothing to close."""


@dataclass(frozen=True, kw_only=True)
class Untracked:
    def start(self, config: Mapping[str, Any], folder: Path, attempt: int = 1) -> Tracker:
        return NoTracker()


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Mirror to W&B, on disk (`offline`) or over the network (`online`)."""

    mode: Literal["offline", "online"]
    project: str
    entity: str | None

    def start(self, config: Mapping[str, Any], folder: Path, attempt: int = 1) -> Tracker:
        """Begin the W&B run of one run directory.

        W&B drops rows that go back in time, so a run that goes on from a checkpoint begins a new mirror: log all
        its rows again, from the first. Offline the mirror of the earlier attempt is replaced; online it is there to
        stay, and the new one has the attempt in its id.

        W&B is a mirror, never a reason to lose a run: where it fails, training goes on without it and says so.
        """
        sweep = hashlib.sha256(str(config["sweep"]).encode()).hexdigest()[:6]
        rewound = f"-a{attempt}" if attempt > 1 and self.mode == "online" else ""
        told = {key: value for key, value in config.items() if key not in NOT_TOLD}
        about = About(
            id=f"{config['id']}-{sweep}{rewound}",
            name=str(config["label"]),
            group=str(config["sweep"]),
            project=self.project,
            entity=self.entity,
            config=told | {"attempt": attempt},
        )

        offline, known = self.mode == "offline", WANDB.startswith(FORMAT_KNOWN)

        def begin() -> Tracker:
            if offline:
                for earlier in folder.glob("wandb/offline-run-*"):
                    shutil.rmtree(earlier)
            return OfflineRun(about, folder) if offline and known else ServiceRun(about, folder, self.mode)

        tracker = Guarded(about.name, begin)
        if not (offline and known):
            return InBackground(tracker)
        tracker.begin()
        return tracker
