"""What every test starts from: one thread, no network, W&B offline and quiet."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "HF_HUB_OFFLINE": "1"}

import hydra
import pytest
import torch
from omegaconf import DictConfig

from src.config import Destination, Launcher, RunConfig, run_config
from src.launching.launch import launch
from src.launching.plan import Cell

REPO = Path(__file__).parent.parent
CONF = REPO / "conf"

# The fastest run there is: one softmax, one pair, no W&B.
TOY = ("model=tabular", "data=synthetic", "data.p_star=1.0", "data.comparisons=1", "tracking=none", "steps=5")

HERE = Launcher(processes=1)  # in this process, where a test can reach in

Compose = Callable[..., DictConfig]
Convert = Callable[..., RunConfig]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: one that begins last would leave a worker idle for minutes."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Also after a test in which `compute.threads` was applied."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compose() -> Compose:
    """Hydra's configuration for some overrides."""

    def composed(*overrides: str) -> DictConfig:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("config", overrides=list(overrides))

    return composed


@pytest.fixture(scope="session")
def convert(compose: Compose) -> Convert:
    """The RunConfig for some overrides."""
    return lambda *overrides: run_config(compose(*overrides))[0]


@pytest.fixture
def sweep(convert: Convert, tmp_path: Path) -> Callable[..., int]:
    """Train in this process what the cells (strings of overrides) ask for, in `tmp_path`/s; gives the exit code."""

    def launched(*cells: str, output: Path = tmp_path, launcher: Launcher = HERE) -> int:
        made = [Cell(convert(*cell.split()), tuple(cell.split())) for cell in cells]
        destination = Destination(output=str(output), sweep="s", launcher=launcher)
        return launch(made, destination, ["test"]).code

    return launched


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For subprocesses: the repository importable from anywhere, and a home folder that was empty.

    W&B leaves the address of this process's service in the environment; a subprocess that inherited it would look for a
    service that may be gone.
    """
    home = tmp_path_factory.mktemp("home")
    foreign = ("XDG_", "HYDRA_", "COV_", "WANDB_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | {"PYTHONPATH": str(REPO), "HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@pytest.fixture(scope="session")
def cli(environment: dict[str, str]) -> Cli:
    """`python -m src.run` in a folder of its own choice."""

    def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "src.run", *arguments]
        return subprocess.run(command, cwd=cwd, env=environment | env, capture_output=True, text=True, timeout=120)

    return run
