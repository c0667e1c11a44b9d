"""How long a large sweep takes to load, and how much memory: `python -m tests.analysis.large [RUNS [STEPS]]`.

`write` makes run directories to the letter of docs/run-directory.md, `measure` loads them in a process of their own.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

COLUMNS = (
    "loss", "logps/chosen", "logps/rejected", "log_ratios/chosen", "log_ratios/rejected", "margin", "rewards/chosen",
    "rewards/rejected", "rewards/margins", "rewards/accuracies", "implied_preference", "log_pi/chosen",
    "log_pi/rejected", "k1_on_data", "k2_on_data", "k3_on_data", "grad_norm", "lr", "exact/kl",
)  # fmt: skip  # 20 with `step`
BATCH = 200  # rows a flush, as src/recording.py does it

READ = """
import json, resource, sys, time
from analysis import load
start = time.perf_counter()
sweep = load(sys.argv[1], columns=json.loads(sys.argv[2]))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
print(json.dumps([seconds, peak, *sweep.history.shape]))
"""


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak_gib: float  # of the whole process, libraries included
    rows: int
    columns: int


def write(folder: Path, runs: int, steps: int, seeds: int = 5) -> Path:
    """A finished sweep of DPO and IPO over betas and `seeds` seeds: the closed forms of one pair under SGD, K = 2."""
    folder.mkdir(parents=True)
    listed = []
    t = np.arange(steps)
    for i in range(runs):
        loss, seed = ("dpo", "ipo")[i % 2], (i // 2) % seeds
        beta, eta = 0.02 * (1 + i // (2 * seeds)), 0.05
        noise = np.random.default_rng(i).normal(0, 1e-3, steps)
        # u = log(1 + c t) stands for DPO's Lambert-W line, which it tends to; IPO's line is exact
        h = np.log1p(2 * eta * beta**2 * t) / beta if loss == "dpo" else (1 - (1 - 4 * eta) ** t) / (2 * beta)
        values = dict.fromkeys(COLUMNS, h + noise) | {
            "margin": h + noise, "rewards/margins": beta * (h + noise), "log_ratios/chosen": h / 2 + noise,
            "log_ratios/rejected": -h / 2 + noise, "lr": np.full(steps, eta), "loss": 1 / (1 + h),
            "rewards/accuracies": (h + noise > 0).astype(float),
        }  # fmt: skip
        id, label = f"{i:010x}", f"{loss}_beta{beta:g}_seed{seed}"
        run = folder / f"{label}-{id}"
        run.mkdir()
        listed.append({"id": id, "label": label, "dir": run.name, "overrides": []})
        config = {
            "format": 1, "id": id, "label": label, "sweep": folder.name, "beta": beta, "lr": eta, "seed": seed,
            "steps": steps, "batch_size": 1, "logps": "sequence", "objective": "preference", "kl_coef": 0.0,
            "loss": {"name": loss, "beta": beta}, "optimizer": {"name": "sgd", "lr": eta, "momentum": 0.0},
            "scheduler": {"name": "constant"}, "model": {"name": "tabular"}, "data": {"name": "notebook_pair"},
        }  # fmt: skip
        status = {"format": 1, "state": "finished", "steps_done": steps, "step": None, "reason": None}
        for name, content in (("config", config), ("status", status), ("data", {"pairs": 1})):
            (run / f"{name}.json").write_text(json.dumps(content, indent=2))
        table = pa.table({"step": t, **values})
        with pa.ipc.new_stream(run / "history.arrow", table.schema) as stream:
            for part in table.to_batches(max_chunksize=BATCH):
                stream.write_batch(part)
    content = {"format": 1, "name": folder.name, "command": [], "created": "", "runs": listed}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def measure(folder: Path, columns: list[str] | None = None) -> Measured:
    """Load the sweep in a fresh process. `columns` None: all."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder), json.dumps(columns)], capture_output=True, text=True, check=True
    )
    return Measured(*json.loads(done.stdout))


if __name__ == "__main__":
    runs, steps = [*map(int, sys.argv[1:]), *(2000, 1000)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as place:
        sweep = write(Path(place) / "large", runs, steps)
        for _ in range(3):
            print("all columns", measure(sweep))
        print("four columns", measure(sweep, ["margin", "log_ratios/chosen"]))
