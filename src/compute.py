"""Where and how a sweep is computed. Nothing here changes a result by more than rounding."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from src import distributed
from src.errors import BadInput

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """device, threads, stack_size: of all models. The rest is for `model=pretrained` and `smollm2`:

    share_prompts: a prompt is computed once for all its responses, where that is exact for the model.
    pack: a batch's prompts and responses lie in one row without padding, where that is exact for the model.
    attention: segments (each prompt and its responses by themselves), dense (one mask a row), flex (FlexAttention with
        a block mask; CUDA); auto: segments.
    response_head: the output layer is applied where a response token is predicted, not at every position.
    logits_chunk: positions whose logits exist at once; null: all.
    max_tokens: positions computed at once; null: the whole batch. A batch with more is computed in parts, the forward
        pass once more for the backward pass; the gradient is the whole batch's for every loss.
    checkpoint_activations: keep each layer's input only, and compute the rest again for the backward pass.
    """

    device: Literal["cpu", "cuda"]
    threads: Count | None = None
    stack_size: Count | None = None
    share_prompts: bool = True
    pack: bool = True
    attention: Literal["auto", "segments", "dense", "flex"] = "auto"
    response_head: bool = True
    logits_chunk: Count | None = 128
    max_tokens: Count | None = None
    checkpoint_activations: bool = False

    def prepare(self) -> torch.device:
        """Give the device.

        Raises:
            BadInput: CUDA asked for and not there.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("compute=cuda: torch sees no CUDA device here; use compute=cpu")
        if self.device == "cpu" and self.attention == "flex":
            raise BadInput("compute.attention=flex needs compute=cuda: FlexAttention has no gradient on a CPU")
        return distributed.device(self.device)

    def notes(self, *products: str | None) -> list[str]:
        """What is to be said about types that products are to be made in."""
        has = {
            "bfloat16": torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
            "float16": torch.cpu._is_amx_fp16_supported(),
        }
        return [
            f"this processor has no {kind} arithmetic: expect it to be many times slower than float32"
            for kind in dict.fromkeys(products)
            if self.device == "cpu" and not has.get(kind or "", True)
        ]

    def use_threads(self, suits_model: int | None) -> None:
        """Apply `threads`, by default what suits the model (None: one thread a core)."""
        torch.set_num_threads(self.threads or suits_model or len(os.sched_getaffinity(0)))
