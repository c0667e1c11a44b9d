"""Train stacks in memory, for tests."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from src.config import RunConfig, run_config
from src.data.pairs import PairData
from src.launching.loading import load_data
from src.train import Outcome, train_stack

CONF = str(Path(__file__).parent.parent / "conf")
SMALL_LLAMA = (
    "model.hidden_size=16", "model.intermediate_size=24", "model.num_attention_heads=4", "model.num_key_value_heads=2",
)  # fmt: skip

History = dict[str, np.ndarray]


def configs(*runs: str) -> list[RunConfig]:
    """One RunConfig for each string of space-separated overrides."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return [run_config(compose("config", overrides=overrides.split()))[0] for overrides in runs]


def train(runs: Sequence[RunConfig], data: Sequence[PairData] | None = None) -> tuple[list[History], list[Outcome]]:
    """Histories in columns, and outcomes."""
    collected: list[dict[str, list[np.ndarray]]] = [defaultdict(list) for _ in runs]

    def emit(run: int, columns) -> None:
        for name, values in columns.items():
            collected[run][name].append(values)

    outcomes, _ = train_stack(runs, data or load_data(runs), emit, torch.device("cpu"))
    return [{name: np.concatenate(parts) for name, parts in run.items()} for run in collected], outcomes
