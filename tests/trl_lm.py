"""TRL's DPOTrainer on given token ids: what the parity test and the benchmark of language models compare with."""

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from src.config import run_config
from src.data.pairs import PairData
from src.launching.loading import load_data
from src.train import train_stack

REAL_PAIRS = Path(__file__).parents[1] / "../shared/data/hh-harmless-dev.jsonl.gz"
LOGGED = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


@dataclass
class Trained:
    """When each update ended, and of each update what is logged, by name."""

    ended: list[float] = field(default_factory=list)
    logged: list[dict[str, float]] = field(default_factory=list)


def overrides(pairs: int, batch_size: int, lr: float, max_length: int) -> list[str]:
    """The run both sides make: SmolLM2, real pairs in the order of the file, AdamW without decay, beta 0.1."""
    return [
        "loss=dpo", "beta=0.1", "model=smollm2", "model.source=package", "data=hh_rlhf", f"data.path={REAL_PAIRS}",
        f"data.limit={pairs}", f"data.max_length={max_length}", f"batch_size={batch_size}",
        f"steps={pairs // batch_size}", "sampling=sequential", "optimizer=adamw", f"lr={lr}",
        "optimizer.weight_decay=0", "tracking=none",
    ]  # fmt: skip


def ours(*runs: Sequence[str]) -> Trained:
    """Train a stack by `train_stack`; what is logged is its first run's. The reference's log-probs come beforehand."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        configs = [run_config(compose("config", list(given)))[0] for given in runs]
    compute = configs[0].compute.build()
    device = compute.prepare()
    compute.use_threads(None)
    trained = Trained()

    def emit(run: int, columns: Any) -> None:
        if run == 0:
            for row in zip(*(columns[name] for name in LOGGED), strict=True):
                trained.logged.append(dict(zip(LOGGED, map(float, row), strict=True)))

    outcomes, _ = train_stack(
        configs, load_data(configs), emit, device, lambda *_: trained.ended.append(time.perf_counter())
    )
    assert {outcome.state for outcome in outcomes} == {"finished"}
    return trained


def trl(model: Any, tokenizer: Any, data: PairData, batch_size: int, lr: float, **settings: Any) -> Trained:
    """One epoch in the order of the data, AdamW without decay or clipping, constant lr, beta 0.1, nothing else on.

    The reference's log-probs are computed beforehand.
    """
    from datasets import Dataset, disable_progress_bars
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset  # these are token ids already

        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    trained = Trained()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            trained.ended.append(time.perf_counter())

    os.environ["TQDM_DISABLE"] = "1"
    disable_progress_bars()
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    on_cpu = torch.device(model.device).type == "cpu"
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about settings, not about numbers
        columns = {"prompt_ids": data.prompts, "chosen_ids": data.chosen, "rejected_ids": data.rejected}
        Dataset.from_dict({k: [list(ids) for ids in v] for k, v in columns.items()}).save_to_disk(f"{scratch}/pairs")
        given = {
            "beta": 0.1, "num_train_epochs": 1, "per_device_train_batch_size": batch_size, "learning_rate": lr,
            "optim": "adamw_torch", "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 0.0,
            "max_length": None, "precompute_ref_log_probs": True, "precompute_ref_batch_size": batch_size,
            "gradient_checkpointing": False, "bf16": False, "report_to": "none", "logging_strategy": "steps",
            "logging_steps": 1, "logging_first_step": True, "save_strategy": "no", "eval_strategy": "no",
            "disable_tqdm": True, "use_cpu": on_cpu, "dataloader_pin_memory": not on_cpu,
        }  # fmt: skip
        trainer = Trainer(
            model,
            args=DPOConfig(scratch, **(given | settings)),
            train_dataset=Dataset.load_from_disk(f"{scratch}/pairs"),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    trained.logged = [{name: float(entry[name]) for name in LOGGED} for entry in history]
    return trained
