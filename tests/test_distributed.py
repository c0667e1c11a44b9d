"""Two processes of torchrun make of a run what one makes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from src.store import read_history
from tests.policy.test_pretrained import tiny_config
from tests.tiny_tokenizer import CHAT, tiny_tokenizer

REPO = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    """A model and text to train it on, as overrides."""
    import torch

    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("llama", max_position_embeddings=128, vocab_size=300)).save_pretrained(
        folder / "model"
    )
    tiny_tokenizer(bos=True, template=CHAT).save_pretrained(folder / "model")
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "by"]
    rows = [
        {"prompt": " ".join(words[i : i + 3]), "chosen": " ".join(words[i + 1 : i + 5]), "rejected": words[-1 - i]}
        for i in range(7)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "model=pretrained", f"model.path={folder / 'model'}", "data=jsonl", f"data.path={folder / 'pairs.jsonl'}",
        "batch_size=3", "steps=6", "optimizer=adamw", "lr=1e-3", "beta=0.5", "tracking=none", "dtype=float64",
    ]  # fmt: skip


def train(
    processes: int, folder: Path, *overrides: str, script: Sequence[str] = ("-m", "src.run")
) -> subprocess.CompletedProcess[str]:
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, *start, *script, *overrides, f"output={folder}", "sweep=s"],
        cwd=REPO, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def histories(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for path in sorted((folder / "s").glob("*/history.arrow")):
        history = read_history(path.parent)
        found[path.parent.name] = {name: history[name].to_numpy() for name in history.column_names}
    return found


def assert_same(one: Path, several: Path, runs: int) -> None:
    alone, together = histories(one), histories(several)
    assert alone.keys() == together.keys()
    assert len(alone) == runs
    for name, columns in alone.items():
        assert len(columns["step"]) == 6
        for column, values in columns.items():
            np.testing.assert_allclose(together[name][column], values, rtol=1e-6, atol=1e-8, err_msg=f"{name} {column}")
        assert np.ptp(columns["margin"]) > 0.1


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss=ipo"],
        ["loss=kto", "batch_size=1"],  # a process without a pair of its own; a loss over the whole batch
        ["loss=kto", "compute.max_tokens=20", "max_grad_norm=0.5"],
        ["-m", "loss=dpo,ipo", "adapter=lora", "adapter.r=4", "adapter.dropout=0", "seed=0,1"],
        ["loss=tdpo1"],  # whole distributions
    ],
    ids=" ".join,
)
def test_two_processes_equal_one(given, tmp_path, overrides):
    overrides = sorted([*given, *overrides], key=lambda override: override != "-m")  # options come first
    for processes in (1, 2):
        done = train(processes, tmp_path / str(processes), *overrides)
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "1", tmp_path / "2", runs=4 if "-m" in overrides else 1)


def test_only_the_first_process_speaks_and_writes(given, tmp_path):
    done = train(2, tmp_path / "o", *given, "save=true", "sweep=s")
    assert done.stdout.count("1 finished") == 1
    (run,) = (tmp_path / "o" / "s").glob("dpo*")
    assert json.loads((run / "status.json").read_text())["attempt"] == 1
    assert (run / "policy" / "model.safetensors").exists()


def test_what_cannot_be_is_refused_in_one_line(given, tmp_path):
    done = train(2, tmp_path / "o", "model=tiny_llama", "tracking=none")
    assert "margincall: torchrun needs model=pretrained or model=smollm2, not model=tiny_llama" in done.stderr
    assert not (tmp_path / "o").exists()


DIES = """
import os
import src.checkpoint

save = src.checkpoint.Checkpoints.save

def save_and_die(self, snapshot):
    save(self, snapshot)
    os._exit(9)

src.checkpoint.Checkpoints.save = save_and_die
from src.run import cli
cli()
"""


def test_a_run_that_was_killed_goes_on(given, tmp_path):
    """From a checkpoint of two processes in one, and the other way round."""
    (tmp_path / "dies.py").write_text(DIES)
    assert train(1, tmp_path / "whole", *given).returncode == 0
    for first, second in ((1, 2), (2, 1)):
        folder = tmp_path / f"{first}{second}"
        killed = train(first, folder, *given, "launcher.checkpoint_steps=3", script=[str(tmp_path / "dies.py")])
        assert killed.returncode != 0
        assert len(histories(folder).popitem()[1]["step"]) == 3
        assert train(second, folder, *given).returncode == 0
        assert_same(tmp_path / "whole", folder, runs=1)
        (status,) = (json.loads(path.read_text()) for path in (folder / "s").glob("*/status.json"))
        assert [at["step"] for at in status["resumed"]] == [3]
