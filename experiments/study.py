"""What a study is: a folder of experiments/ with two files.

study.yaml  question, claims with what would refute them (written before anything is run), sweeps as overrides of
            `python -m src.run -m`; none where everything is computed.
check.py    measure(sweeps, fast) -> frames        tidy tables of what was measured; `sweeps` by their names
            check(frames) -> verdicts              pure; one for each claim of study.yaml
            figures(sweeps, frames) -> drawings    name of the file -> what draws it
            COLUMNS                                of the histories, those it reads; all if it does not say

The full run's verdict is kept beside them, in verdict.json, and docs/claims.md is made of these.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict

from analysis.statistics import mean_interval
from analysis.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
STUDIES = Path(__file__).parent

Outcome = Literal["holds", "holds under conditions", "refuted"]
Size = Literal["full", "fast", "gpu"]
Frames = Mapping[str, pd.DataFrame]
Sweeps = Mapping[str, Sweep]
Drawings = Mapping[str, "Callable[[], Figure]"]


@dataclass(frozen=True)
class Number:
    """One measured quantity. low, high: its 95 % interval; expected: what a closed form or the claim says."""

    quantity: str  # with its unit
    measured: float
    low: float | None = None
    high: float | None = None
    expected: float | None = None

    @classmethod
    def mean(cls, quantity: str, values: Any, expected: float | None = None) -> "Number":
        """Of values over seeds, or what else is the unit, with its bootstrapped interval; none where that is undefined,
        as of one value.
        """
        seen = np.asarray(values, dtype=np.float64)
        low, high = mean_interval(seen)
        if math.isnan(low):
            return cls(quantity, float(seen.mean()), expected=expected)
        return cls(quantity, float(seen.mean()), low, high, expected)


@dataclass(frozen=True)
class Verdict:
    """finding: what was found, in sentences; with "holds under conditions" it says which."""

    claim: str
    outcome: Outcome
    finding: str
    numbers: tuple[Number, ...]


class Claim(BaseModel):
    """says: only of a claim that is not among those of the source notes, which `experiments.claims` words.
    full_only: a fast run is too small to come to the same verdict, and is not asked to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    holds_if: str
    refuted_if: str
    says: str | None = None
    full_only: bool = False


class Study(BaseModel):
    """study.yaml. minutes: on two cores, at full and at `--fast` size. fast, gpu: overrides that replace a sweep's own
    with `--fast` or `--gpu`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    question: str
    minutes: tuple[float, float]
    claims: dict[str, Claim]
    sweeps: dict[str, str] = {}
    fast: dict[str, str] = {}
    gpu: dict[str, str] = {}

    def overrides(self, sweep: str, size: Size) -> list[str]:
        """Of one sweep, in the words of the command line."""
        own = {"full": {}, "fast": self.fast, "gpu": self.gpu}[size].get(sweep, "")
        words = [*self.sweeps[sweep].split(), *own.split()]
        return list({word.partition("=")[0]: word for word in words}.values())

    @property
    def folder(self) -> Path:
        return STUDIES / self.name

    @property
    def stored(self) -> dict[str, Any] | None:
        """The verdict that was kept; None if the study was never run in full."""
        file = self.folder / "verdict.json"
        return json.loads(file.read_text()) if file.is_file() else None

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Those of the histories that check.py reads, where it says so (COLUMNS): thousands of runs fill the memory."""
        return getattr(self._module, "COLUMNS", None)

    def measure(self, sweeps: Sweeps, fast: bool) -> Frames:
        frames: Frames = self._module.measure(sweeps, fast)
        return frames

    def check(self, frames: Frames) -> Sequence[Verdict]:
        """Raises ValueError unless there is one verdict for each claim."""
        verdicts: Sequence[Verdict] = self._module.check(frames)
        if [verdict.claim for verdict in verdicts] != list(self.claims):
            raise ValueError(f"{self.name}: verdicts on {[v.claim for v in verdicts]}, claims {list(self.claims)}")
        return verdicts

    def figures(self, sweeps: Sweeps, frames: Frames) -> Drawings:
        drawings: Drawings = self._module.figures(sweeps, frames)
        return drawings

    @property
    def _module(self) -> Any:
        return import_module(f"experiments.{self.name}.check")


def names() -> list[str]:
    return sorted(file.parent.name for file in STUDIES.glob("*/study.yaml"))


def read(name: str) -> Study:
    """Raises KeyError for a name that no folder has."""
    if name not in names():
        raise KeyError(name)
    content = OmegaConf.to_container(OmegaConf.load(STUDIES / name / "study.yaml"))
    return Study.model_validate({"name": name, **content})  # type: ignore[dict-item]
