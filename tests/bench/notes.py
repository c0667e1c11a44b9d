"""The loop of the course notes that this project grew from, as they wrote it: the baseline.

Two transformers models, the policy and a frozen reference; four forward passes a step (policy and reference, chosen and
rejected), the loss, backward, one torch.optim step, and three numbers read out with `.item()`. Two things are not as
there: the published form of the loss (shifted by one, summed over the response), which both sides train, and no
key-value cache, which the notes left on and which only costs time.

As a program it trains several runs one after another, each with a W&B run of its own:
`python -m tests.bench.notes FOLDER RUNS STEPS THREADS`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT, CHOSEN, REJECTED = (5, 8, 9, 10, 5, 3), (16, 29, 18, 17), (26, 14, 31, 0)
SIZES = {
    "vocab_size": 32, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.0),
}  # fmt: skip
LR = 5e-5
WARM_UP = 10  # steps that are not counted

Row = dict[str, float]


def random_model(seed: int = 42) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES, use_cache=False))


def frozen_copy(model: LlamaForCausalLM) -> LlamaForCausalLM:
    copy = LlamaForCausalLM(model.config).to(model.device, model.dtype)
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False).eval()


def loss_of(name: str, beta: float, margin: Tensor) -> Tensor:
    return -logsigmoid(beta * margin) if name == "dpo" else (margin - 1 / (2 * beta)) ** 2


def train(
    model: LlamaForCausalLM, steps: int, optimizer: str = "sgd", loss: str = "dpo", beta: float = 0.1, lr: float = LR
) -> Iterator[Row]:
    """One row a step: the loss, pi of the last rejected token, sigma(beta h)."""
    reference = frozen_copy(model)
    updates = OPTIMIZERS[optimizer](model.parameters(), lr=lr)
    rows = [torch.tensor([PROMPT + response], device=model.device) for response in (CHOSEN, REJECTED)]
    attention = torch.ones_like(rows[0])
    labels = torch.zeros_like(rows[0])
    labels[:, len(PROMPT) :] = 1  # the response

    def token_logps(llama: LlamaForCausalLM, ids: Tensor) -> Tensor:
        logits = llama(input_ids=ids, attention_mask=attention).logits
        logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return logps * labels[:, 1:]

    for _ in range(steps):
        chosen, rejected = token_logps(model, rows[0]), token_logps(model, rows[1])
        with torch.no_grad():
            ref_chosen, ref_rejected = token_logps(reference, rows[0]), token_logps(reference, rows[1])
        margin = (chosen - ref_chosen).sum() - (rejected - ref_rejected).sum()
        value = loss_of(loss, beta, margin)
        updates.zero_grad()
        value.backward()
        updates.step()
        yield {
            "loss": value.item(),
            "pi_rejected": rejected[0, -1].exp().item(),
            "preference": torch.sigmoid(beta * margin).item(),
        }


def steps_per_second(optimizer: str, steps: int, device: str = "cpu") -> float:
    """Of one run, after warm-up."""
    loop = train(random_model().to(device), WARM_UP + steps, optimizer)
    for _ in range(WARM_UP):
        next(loop)
    start = time.perf_counter()
    for _ in loop:
        pass
    return steps / (time.perf_counter() - start)


def with_wandb(folder: Path, runs: int, steps: int) -> None:
    """Runs one after another, DPO and IPO in turn, each logged to W&B offline every step."""
    import wandb

    for r in range(runs):
        loss = ("dpo", "ipo")[r % 2]
        run: Any = wandb.init(project="notes", dir=str(folder), mode="offline", name=f"{loss}-{r}")
        for row in train(random_model(r), steps, loss=loss):
            run.log(row)
        run.finish()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    with_wandb(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
