"""Our runs beside TRL's DPOTrainer: the same toy Llama, pairs, order, optimiser and rate.

TRL divides each log-ratio of IPO by the length of its response; here that loss is `ipo_avg`.
"""

import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import draw as d
from analysis.figures.looks import LOOKS, NAMES
from analysis.figures.sheet import Panel, sheet
from analysis.sweep import as_dicts, read_sweep_file
from experiments.study import ROOT, Drawings, Frames, Number, Outcome, Sweeps, Verdict
from src.config import run_config
from src.data.pairs import PairData
from src.launching.loading import load_data
from src.policy.base import Build
from src.train import train_stack

QUANTITIES = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins")
COLUMNS = QUANTITIES
TOLERANCE = 1e-3  # of the largest value in TRL's run
WARM_UP = 5  # updates before the clock starts
LOSS_TYPES = {"dpo": "sigmoid", "ipo_avg": "ipo"}  # TRL's names
OPTIMIZERS = {"sgd": "sgd", "adamw": "adamw_torch"}


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """differences: a row for each run, update and quantity: ours, trl. seconds: for each run, of one update of either.

    Raises StudyFailed without TRL.
    """
    differences, seconds = [], []
    for sweep in sweeps.values():
        overrides = {entry["id"]: entry["overrides"] for entry in read_sweep_file(Path(sweep.source))[1]}
        for run in as_dicts(sweep.runs):
            config = _config(overrides[run["id"]])
            (data,) = load_data([config])
            started = time.perf_counter()
            logged, each = trl(config, data)
            whole = time.perf_counter() - started
            setting = {"loss": config.loss.name, "optimizer": config.optimizer.name, "seed": config.seed}
            seconds.append(setting | {"ours": _alone(config, data), "trl": each, "trl_whole": whole})
            for quantity in QUANTITIES:
                ours = sweep.history.loc[sweep.history["run"] == run["id"], quantity].to_numpy()
                columns = {"update": np.arange(len(ours)), "ours": ours, "trl": logged[quantity]}
                differences.append(pd.DataFrame(setting | {"quantity": quantity} | columns))
    return {"differences": pd.concat(differences, ignore_index=True), "seconds": pd.DataFrame(seconds)}


def _config(overrides: list[str]) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return run_config(compose("config", overrides=overrides))[0]


def _alone(config: Any, data: PairData) -> float:
    """Seconds of one update of the run by itself, not in a stack: the median after the warm-up."""
    ended: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_stack(
            [config], [data], lambda *_: None, torch.device("cpu"), lambda *_: ended.append(time.perf_counter())
        )
    finally:
        torch.set_num_threads(threads)
    return float(np.median(np.diff(ended)[WARM_UP:]))


def trl(config: Any, data: PairData) -> tuple[dict[str, np.ndarray], float]:
    """The run that `config` says, by TRL: what it logged of each update, and the median seconds of one.

    The reference's log-probs are computed beforehand, as ours are; there is no clipping, decay, schedule or report.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from datasets import Dataset, disable_progress_bars
        from torch.utils.data import SequentialSampler
        from transformers import LlamaForCausalLM, TrainerCallback
        from transformers.trainer_callback import PrinterCallback
        from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]
    except ImportError as error:
        from experiments.running import StudyFailed

        raise StudyFailed(f"vs_trl: {error}; pip install -e '.[dev]'") from error

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # these are token ids already

        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    ended: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.perf_counter())

    disable_progress_bars()
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    spec = config.model.build()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about settings, not about numbers
        start = type(spec).stack([spec], [data], Build(torch.device("cpu"), torch.float32))
        start.save(0, Path(scratch) / "start")
        model = LlamaForCausalLM.from_pretrained(f"{scratch}/start", dtype=torch.float32)
        columns = {"prompt_ids": data.prompts, "chosen_ids": data.chosen, "rejected_ids": data.rejected}
        Dataset.from_dict({name: [list(ids) for ids in rows] for name, rows in columns.items()}).save_to_disk(
            f"{scratch}/pairs"  # TRL keeps the reference's log-probs beside it
        )
        trainer = Trainer(
            model,
            args=DPOConfig(
                scratch, beta=config.beta, loss_type=[LOSS_TYPES[config.loss.name]], max_steps=config.steps,
                per_device_train_batch_size=config.batch_size, learning_rate=config.lr,
                optim=OPTIMIZERS[config.optimizer.name], lr_scheduler_type="constant", weight_decay=0.0,
                max_grad_norm=0.0, max_length=None, precompute_ref_log_probs=True, gradient_checkpointing=False,
                bf16=False, report_to="none", logging_strategy="steps", logging_steps=1, logging_first_step=True,
                save_strategy="no", eval_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.load_from_disk(f"{scratch}/pairs"),
            processing_class=_tokenizer(spec.vocab_size),
            callbacks=[Watch()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        finally:
            torch.set_num_threads(threads)
    rows = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    found = {name: np.array([float(row[name]) for row in rows]) for name in QUANTITIES}
    return found, float(np.median(np.diff(ended)[WARM_UP:]))


def _tokenizer(vocabulary: int) -> Any:
    """A word for each token; TRL asks for one even where the data are ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{k}": k for k in range(vocabulary)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t0")


def relative(differences: pd.DataFrame) -> "pd.Series[float]":
    """Largest difference of each run and quantity over the largest value that TRL's run has of it."""
    keys = [differences[name] for name in ("loss", "optimizer", "seed", "quantity")]
    away = (differences["ours"] - differences["trl"]).abs().groupby(keys, sort=False).max()
    scale = differences["trl"].abs().groupby(keys, sort=False).max()
    return cast("pd.Series[float]", away / scale).fillna(np.inf)


def check(frames: Frames) -> list[Verdict]:
    away, numbers, good = relative(frames["differences"]), [], {}
    for (loss, optimizer), own in away.groupby(["loss", "optimizer"], sort=False):
        what = f"{NAMES[str(loss)]}, {optimizer}"
        good[what] = bool((own <= TOLERANCE).all())
        for quantity, those in own.groupby("quantity", sort=False):
            numbers.append(Number(f"largest relative difference, {quantity}, {what}", float(those.max()), expected=0.0))
    margins = frames["differences"].query("quantity == 'rewards/margins'")
    updates = int(margins["update"].max()) + 1
    for (loss, optimizer), last in margins[margins["update"] == updates - 1].groupby(["loss", "optimizer"], sort=False):
        what = f"TRL's reward margin at the last update, mean of seeds, {NAMES[str(loss)]}, {optimizer}"
        numbers.append(Number(what, float(last["trl"].mean())))
    seconds = frames["seconds"]
    ratio = seconds["trl"] / seconds["ours"]
    for optimizer, those in ratio.groupby(seconds["optimizer"], sort=False):
        what = f"seconds an update, TRL's over those of one run of ours alone, {optimizer} (no claim)"
        numbers.append(Number.mean(what, those))
    where = [what for what, yes in good.items() if yes]
    said = (
        f"In {len(seconds)} runs of {updates} updates the largest difference is {away.max():.1e} "
        f"of TRL's largest value. An update of TRL's takes {ratio.mean():.1f} times as long as one of a run of ours by "
        "itself, both with one thread."
    )
    if len(where) == len(good):
        return [Verdict("C15", "holds", said, tuple(numbers))]
    outcome: Outcome = "holds under conditions" if where else "refuted"
    return [Verdict("C15", outcome, f"Within it: {'; '.join(where) or 'nothing'}. {said}", tuple(numbers))]


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {"differences": lambda: _draw(frames["differences"])}


def _draw(differences: pd.DataFrame) -> Figure:
    """Relative difference against update, the largest over seeds."""
    settings = list(dict.fromkeys(zip(differences["loss"], differences["optimizer"], strict=True)))
    keys = [
        Line2D([], [], color=LOOKS[i].colour, marker=LOOKS[i].marker, linewidth=d.WIDTH, label=name, **d.MARKER)
        for i, name in enumerate(QUANTITIES)
    ] + [Line2D([], [], color="black", linewidth=0.8, linestyle=(0, (4, 2.5)), label="tolerance")]
    seeds = differences["seed"].nunique()
    note = (
        f"Largest difference over {seeds} seed{'s' if seeds > 1 else ''} between our run and TRL's, over the largest "
        "value in TRL's run. Float32; what is exactly equal has no point."
    )
    titles = [f"{NAMES[loss]}, {optimizer}" for loss, optimizer in settings]
    with sheet(titles, "update", [Panel("relative difference", 22.0)], [keys], note) as on:
        for ax, setting in zip(on.axes, settings, strict=True):
            own = differences[(differences["loss"] == setting[0]) & (differences["optimizer"] == setting[1])]
            ax.set_yscale("log")
            ax.axhline(TOLERANCE, color="black", linewidth=0.8, linestyle=(0, (4, 2.5)))
            for i, name in enumerate(QUANTITIES):
                those = own[own["quantity"] == name]
                scale = those["trl"].abs().groupby(those["seed"]).transform("max")
                most = ((those["ours"] - those["trl"]).abs() / scale).groupby(those["update"]).max()
                most = most[most > 0]
                marks = {**d.MARKER, "markevery": (2 * i, max(len(most) // 6, 1))}
                ax.plot(
                    most.index, most, color=LOOKS[i].colour, marker=LOOKS[i].marker, linewidth=d.WIDTH * 0.6, **marks
                )
            ax.set_ylim(1e-9, 1e-2)
    return on.figure
