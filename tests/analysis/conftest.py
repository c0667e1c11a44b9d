"""Sweeps written by hand to the letter of docs/run-directory.md, so that analysis is tested without src.

Histories are those of a tabular softmax with one pair (K = 2), trained by plain gradient descent.
"""

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analysis.__main__ import main

P = 0.25  # reference probability of the chosen and of the rejected action
K = 2.0


@dataclass
class Run:
    loss: str = "dpo"
    beta: float = 0.1
    lr: float = 0.1
    seed: int = 42
    steps: int = 60
    state: str = "finished"
    stopped_at: int | None = None
    reason: str = ""
    pairs: int = 1
    noise: float = 0.0
    log_pi_rejected: float | None = None  # where it falls to, in a straight line, in place of the softmax's …
    log_pi_start: float = math.log(P)  # … and from where
    reference: bool = True  # without: no margin, log-ratios, rewards, k's
    objective: str = "preference"  # reward_model: rewards, and no log-probabilities
    changes: dict[str, Any] = field(default_factory=dict)  # over config.json

    @property
    def label(self) -> str:
        return f"{self.loss}_beta{self.beta:g}_seed{self.seed}"

    @property
    def id(self) -> str:
        key = json.dumps([self.loss, self.beta, self.lr, self.seed, self.objective, self.changes])
        return hashlib.sha256(key.encode()).hexdigest()[:10]

    @property
    def dir(self) -> str:
        return f"{self.label}-{self.id}"

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "format": 1, "id": self.id, "label": self.label, "sweep": "synthetic", "beta": self.beta, "lr": self.lr,
            "seed": self.seed, "steps": self.steps, "batch_size": 1, "sampling": "shuffle", "dtype": "float64",
            "logps": "sequence", "max_grad_norm": None, "save": False, "kl_coef": 0.0,
            "reference": "always" if self.reference else "if_needed", "objective": self.objective,
            "loss": {"_target_": f"src.losses.pairwise.{self.loss}", "name": self.loss, "beta": self.beta},
            "optimizer": {"name": "sgd", "lr": self.lr, "momentum": 0.0, "weight_decay": 0.0},
            "scheduler": {"name": "constant"}, "model": {"name": "tabular", "seed": self.seed},
            "data": {"name": "notebook_pair"}, "compute": {"name": "cpu"}, "tracking": {"name": "none"},
        }  # fmt: skip
        return config | self.changes

    def rows(self) -> int:
        return self.steps if self.stopped_at is None else self.stopped_at

    def history(self) -> dict[str, Any]:
        n, beta = self.rows(), self.beta
        h = np.zeros(n)
        slope = np.zeros(n)
        for t in range(n):
            slope[t] = -beta / (1 + math.exp(beta * h[t])) if self.loss == "dpo" else 2 * (h[t] - 1 / (2 * beta))
            if t + 1 < n:
                h[t + 1] = h[t] - self.lr * K * slope[t]
        if self.noise:
            h += np.random.default_rng(self.seed).normal(0, self.noise, n).cumsum() * (np.arange(n) > 0)
        log_z = np.logaddexp(np.logaddexp(h / 2, -h / 2) + math.log(P), math.log(1 - 2 * P))
        chosen, rejected = math.log(P) + h / 2 - log_z, math.log(P) - h / 2 - log_z
        if self.log_pi_rejected is not None:
            rejected = np.linspace(self.log_pi_start, self.log_pi_rejected, n)
        a, b = chosen - math.log(P), rejected - math.log(P)
        loss = np.logaddexp(0, -beta * h) if self.loss == "dpo" else (h - 1 / (2 * beta)) ** 2
        columns = {
            "step": np.arange(n), "loss": loss, "logps/chosen": chosen, "logps/rejected": rejected,
            "log_ratios/chosen": a, "log_ratios/rejected": b, "margin": h, "rewards/chosen": beta * a,
            "rewards/rejected": beta * b, "rewards/margins": beta * h, "rewards/accuracies": (h > 0).astype(float),
            "implied_preference": np.exp(-np.logaddexp(0, -beta * h)), "log_pi/chosen": chosen,
            "log_pi/rejected": rejected,
            "k1_on_data": -(a + b) / 2, "k2_on_data": (a**2 + b**2) / 4, "k3_on_data": np.expm1(a) - a,
            "grad_norm": math.sqrt(K) * np.abs(slope), "lr": np.full(n, self.lr),
            "tokens": 2 * np.arange(1, n + 1), "pairs": np.arange(1, n + 1), "nonfinite": np.zeros(n, dtype=int),
        }  # fmt: skip
        unwanted: tuple[str, ...] = ()
        if not self.reference:
            unwanted = ("margin", "log_ratios", "rewards", "implied_preference", "k1", "k2", "k3")
        if self.objective == "reward_model":
            unwanted += ("margin", "log_ratios", "logps", "log_pi", "k1", "k2", "k3")
        return {name: values for name, values in columns.items() if not name.startswith(unwanted or ("-",))}

    def evaluations(self, every: int, answers: int = 0) -> dict[str, Any]:
        """The history's rows 0, every, …, and the last one after the last update; the KL of so many answers."""
        n, of_training = self.rows(), ("step", "grad_norm", "lr", "tokens", "pairs", "nonfinite")
        steps = np.array([*range(0, n, every), n])
        rows = {
            f"eval/{name}": values[steps.clip(max=n - 1)]
            for name, values in self.history().items()
            if name not in of_training
        }
        kl = 0.01 * steps.astype(float) * (1 + self.seed % 7)
        if answers:
            rows |= {"eval/kl_k1": kl, "eval/kl_k1_se": 0.5 * kl, "eval/kl_k3": kl, "eval/kl_k3_se": 0.1 * kl}
        return {"step": steps, **rows}


def write_stream(file: Path, columns: dict[str, Any], batch: int = 25) -> None:
    table = pa.table(columns)
    with pa.ipc.new_stream(file, table.schema) as stream:
        for part in table.to_batches(max_chunksize=batch):
            stream.write_batch(part)


def write_run(sweep: Path, run: Run) -> Path:
    folder = sweep / run.dir
    folder.mkdir()
    status = {"format": 1, "state": run.state, "steps_done": run.rows(), "step": run.stopped_at, "reason": run.reason}
    for name, content in (("config", run.config()), ("status", status), ("data", {"pairs": run.pairs}),
                          ("provenance", {})):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))
    if run.rows():
        write_stream(folder / "history.arrow", run.history())
    return folder


def write_sweep_file(folder: Path, runs: list[Run]) -> None:
    listed = [{"id": run.id, "label": run.label, "dir": run.dir, "overrides": []} for run in runs]
    content = {"format": 1, "name": "synthetic", "command": [], "created": "2026-01-01T00:00:00+00:00", "runs": listed}
    (folder / "sweep.json").write_text(json.dumps(content))


WriteSweep = Callable[..., Path]


def written(folder: Path, *runs: Run) -> Path:
    folder.mkdir()
    write_sweep_file(folder, list(runs))
    for run in runs:
        write_run(folder, run)
    return folder


def four() -> list[Run]:
    """DPO and IPO at beta .1 and .5: the README's sweep."""
    return [Run(loss, beta) for loss in ("dpo", "ipo") for beta in (0.1, 0.5)]


@pytest.fixture
def write_sweep(tmp_path: Path) -> WriteSweep:
    """write_sweep(*runs) -> a sweep's directory with those runs in it."""
    return lambda *runs: written(tmp_path / "sweep", *runs)


@pytest.fixture
def make_run() -> Iterator[type[Run]]:
    yield Run


@pytest.fixture
def four_runs(write_sweep: WriteSweep) -> Path:
    """A sweep to spoil."""
    return write_sweep(*four())


@dataclass
class Command:
    sweep: Path
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`python -m analysis` on four runs, once; to look at, not to change."""
    sweep = written(tmp_path_factory.mktemp("command") / "sweep", *four())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(sweep)])
    return Command(sweep, status, out.getvalue(), err.getvalue())
