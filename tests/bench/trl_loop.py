"""TRL's DPOTrainer on the notes' pair and model, as lean as it goes.

The reference's log-probs are computed beforehand; there is no reporting, evaluation, checkpoint, clipping, gradient
checkpointing, mixed precision or progress bar. The data are as many copies of the pair as there are steps: with one
row, every step would be an epoch, and the trainer would be charged for starting a loader each time.
"""

import logging
import os
import tempfile
import time
import warnings
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from tests.bench.notes import CHOSEN, LR, PROMPT, REJECTED, WARM_UP, random_model

OPTIMIZERS = {"sgd": "sgd", "adamw": "adamw_torch"}


class _Watch(TrainerCallback):
    """When each step ended, and, where asked for, its loss."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(time.perf_counter())


def train(
    model: LlamaForCausalLM, steps: int, optimizer: str = "sgd", beta: float = 0.1, log: bool = False
) -> tuple[list[float], list[float]]:
    """The time at which each step ended, and with `log` each step's loss."""
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset  # token ids already; TRL would add an end-of-sequence token the pair does not have

    os.environ["TQDM_DISABLE"] = "1"
    disable_progress_bars()
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    watch = _Watch()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about settings, not about numbers
        pairs = {"prompt_ids": [PROMPT] * steps, "chosen_ids": [CHOSEN] * steps, "rejected_ids": [REJECTED] * steps}
        Dataset.from_dict(pairs).save_to_disk(f"{scratch}/pairs")  # TRL keeps the reference's log-probs beside it
        trainer = Trainer(
            model,
            args=DPOConfig(
                scratch, beta=beta, max_steps=steps, per_device_train_batch_size=1, learning_rate=LR,
                optim=OPTIMIZERS[optimizer], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0,
                precompute_ref_log_probs=True, precompute_ref_batch_size=256, gradient_checkpointing=False, bf16=False,
                report_to="none", logging_strategy="steps" if log else "no", logging_steps=1, logging_first_step=log,
                save_strategy="no", eval_strategy="no", disable_tqdm=True,
                use_cpu=model.device.type == "cpu", dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.load_from_disk(f"{scratch}/pairs"),
            processing_class=_tokenizer(),
            callbacks=[watch],
        )  # fmt: skip
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return watch.ended, losses


def steps_per_second(optimizer: str, steps: int, device: str = "cpu") -> float:
    """Of one run inside `train()`, after warm-up."""
    ended, _ = train(random_model().to(device), WARM_UP + steps, optimizer)
    return steps / (ended[-1] - ended[WARM_UP - 1])


def _tokenizer() -> PreTrainedTokenizerFast:
    """A word for each of the 32 tokens; TRL asks for one even where the data are ids."""
    from tokenizers import Tokenizer, models

    words = {f"t{k}": k for k in range(32)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), pad_token="t0", eos_token="t0"
    )
