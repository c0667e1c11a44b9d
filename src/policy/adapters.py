"""LoRA (Hu et al. 2021, arXiv 2106.09685) for R runs at once over one frozen model.

y = W x + (alpha / r) B A x, equation 3 there, with A and B of every run: one pair of batched products a layer. One run
is a stack of one. The numbers, initial values and files are those of PEFT, which a test compares.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Interval
from safetensors.torch import save_file
from torch import Tensor, nn

from src.errors import BadInput

PARTS = ("lora_A", "lora_B")
ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head


def none() -> None:
    """No adapter: every weight is trained."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """One run's adapter.

    targets: names of the layers it is added to (the last part of them), or `all-linear`.
    quantize: nf4: the frozen weights as 4-bit NormalFloat with double quantisation (Dettmers et al. 2023, QLoRA,
        arXiv 2305.14314), by bitsandbytes, products in bfloat16.
    keep: what `save=true` writes: the adapter alone, in PEFT's format, or the whole model with it added in.
    """

    r: Annotated[int, Ge(1)]
    alpha: Annotated[int, Ge(1)]
    dropout: Annotated[float, Interval(ge=0, lt=1)]
    targets: tuple[str, ...] | Literal["all-linear"]
    quantize: Literal["nf4"] | None
    keep: Literal["adapter", "merged"]
    seed: int

    block: ClassVar[int] = 4  # runs of a stack: adapters are small, but every run has activations of its own

    def __post_init__(self) -> None:
        if not isinstance(self.targets, str):  # a list in a YAML
            object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def scale(self) -> float:
        return self.alpha / self.r


@dataclass
class Lanes:
    """What all adapters of a model have to know of the pass they are in.

    only: the one run whose adapter counts, for rows that are all its own; None: equal shares of the rows to every run.
    off: the model without adapters. noise: what dropout's masks depend on, beside run and layer; None: no dropout.
    """

    seeds: tuple[int, ...]
    only: int | None = None
    off: bool = False
    noise: tuple[int, ...] | None = None


class StackedLora(nn.Module):
    """A linear layer with R adapters: [R n, C, in] to [R n, C, out], n rows of each run in a row."""

    def __init__(self, base: nn.Linear, specs: Sequence[Lora], number: int, lanes: Lanes, dtype: torch.dtype) -> None:
        super().__init__()
        out_features, in_features, device = base.out_features, base.in_features, base.weight.device
        self.base, self._lanes, self._number = base, lanes, number
        self._scale, self._dropout = specs[0].scale, specs[0].dropout
        starts = []
        for spec in specs:
            # Kaiming's bound for a = sqrt(5), as in PEFT and nn.Linear. A layer has a generator of its own: which other
            # layers have adapters does not matter.
            generator = torch.Generator().manual_seed(_mixed(spec.seed, number))
            bound = 1 / math.sqrt(in_features)
            starts.append((torch.rand(spec.r, in_features, generator=generator, dtype=torch.float64) * 2 - 1) * bound)
        self.lora_A = nn.Parameter(torch.stack(starts).to(device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(len(specs), out_features, specs[0].r, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        lanes = self._lanes
        if lanes.off:
            return y
        runs = range(len(lanes.seeds)) if lanes.only is None else [lanes.only]
        a, b = (w if lanes.only is None else w[lanes.only : lanes.only + 1] for w in (self.lora_A, self.lora_B))
        x_RCd = x.reshape(len(runs), -1, x.shape[-1]).to(a.dtype)
        if lanes.noise is not None and self._dropout:
            x_RCd = self._drop(x_RCd, [lanes.seeds[r] for r in runs], lanes.noise)
        added = torch.bmm(torch.bmm(x_RCd, a.mT), b.mT).view_as(y)
        return y + (added * self._scale).to(y.dtype)

    def _drop(self, x_RCd: Tensor, seeds: Sequence[int], noise: tuple[int, ...]) -> Tensor:
        """Dropout whose mask is a function of run, update and layer: the same beside other runs and computed again.

        That holds for rows without padding between a run's own columns. Where every response has a padded row, the mask
        depends on the width of the rows, and so on the other runs.
        """
        size = x_RCd[0].numel()
        zeros = [
            r * size + _dropped(size, self._dropout, _mixed(seed, *noise, self._number)) for r, seed in enumerate(seeds)
        ]
        places, scale = torch.cat(zeros).to(x_RCd.device), 1 / (1 - self._dropout)
        dropped: Tensor = _Dropout.apply(x_RCd, places, scale)  # type: ignore[no-untyped-call]
        return dropped

    def merged(self, run: int) -> Tensor:
        """The layer's weight with one run's adapter added in, [out, in]."""
        a, b = self.lora_A[run].detach(), self.lora_B[run].detach()
        weight: Tensor = self.base.weight.detach()
        return (weight.to(a.dtype) + self._scale * (b @ a)).to(weight.dtype)


class _Dropout(torch.autograd.Function):
    """0 at the given places of the flattened input, `scale` times it elsewhere. Remembers the places, not a mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(places)
        ctx.scale = scale
        return (x * scale).reshape(-1).index_fill_(0, places, 0).view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return (gradient * ctx.scale).reshape(-1).index_fill_(0, places, 0).view_as(gradient), None, None


BLOCK = 4096  # gaps drawn at once


def _dropped(size: int, p: float, seed: int) -> Tensor:
    """Which of `size` elements an independent draw with probability p each takes: the gaps between them are geometric.

    A hundred times fewer random numbers than one an element, for the usual p = 0.01. The draws do not depend on `size`:
    padding after a run's own columns changes nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    last = -1
    while last < size:
        uniform = torch.rand(BLOCK, generator=generator, dtype=torch.float64)
        gaps = torch.floor(torch.log1p(-uniform) / math.log1p(-p)).long() + 1
        found.append(last + gaps.cumsum(0))
        last = int(found[-1][-1])
    every = torch.cat(found)
    return every[every < size]


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**64
        mixed ^= mixed >> 29
    return mixed % 2**63


def add_adapters(model: nn.Module, specs: Sequence[Lora], lanes: Lanes) -> list[StackedLora]:
    """Freeze `model` and put adapters of R runs on its layers, in place.

    Raises:
        BadInput: a target that no linear layer is named like.
    """
    model.requires_grad_(False)
    linear = dict(_linear_layers(model))
    targets = specs[0].targets
    ends = {name.rpartition(".")[2] for name in linear}
    if targets == ALL_LINEAR:
        chosen = list(linear)
    else:
        for target in targets:
            if target not in ends:
                raise BadInput(
                    f"adapter.targets: no linear layer is named {target}; there are {', '.join(sorted(ends))}"
                )
        chosen = [name for name in linear if name.rpartition(".")[2] in targets]
    made = []
    for number, name in enumerate(chosen):
        parent, _, end = name.rpartition(".")
        weight = linear[name].weight
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.dtype.is_floating_point else torch.float32
        layer = StackedLora(linear[name], specs, number, lanes, dtype)
        setattr(model.get_submodule(parent), end, layer)
        made.append(layer)
    return made


def _linear_layers(model: nn.Module) -> Iterable[tuple[str, nn.Linear]]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    return ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head)


def quantize(model: nn.Module, device: torch.device) -> None:
    """Turn all linear layers but the head into NF4 with double quantisation, in place, and move the model to `device`.

    Raises:
        BadInput: bitsandbytes is not there, or there is no GPU for it.
    """
    if device.type != "cuda":
        raise BadInput("adapter.quantize=nf4 needs compute=cuda: 4-bit products are made on NVIDIA GPUs")
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise BadInput(
            "adapter.quantize=nf4 needs the package bitsandbytes: pip install 'margincall[qlora]'"
        ) from error
    for name, layer in list(_linear_layers(model)):
        parent, _, end = name.rpartition(".")
        quantized = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None,
            compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
        )  # fmt: skip
        quantized.weight = bnb.nn.Params4bit(
            layer.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
        quantized.bias = layer.bias
        setattr(model.get_submodule(parent), end, quantized)
    model.to(device)


def save_adapter(model: nn.Module, run: int, spec: Lora, folder: Path) -> None:
    """One run's adapter in PEFT's format: `peft.PeftModel.from_pretrained(base, folder)` reads it."""
    from peft import LoraConfig

    LoraConfig(
        r=spec.r, lora_alpha=spec.alpha, lora_dropout=spec.dropout, bias="none", task_type="CAUSAL_LM",
        target_modules=spec.targets if isinstance(spec.targets, str) else list(spec.targets),
        base_model_name_or_path=getattr(model, "name_or_path", None),
    ).save_pretrained(str(folder))  # fmt: skip
    tensors = {}
    for name, layer in model.named_modules():
        if isinstance(layer, StackedLora):
            for which in PARTS:
                tensors[f"base_model.model.{name}.{which}.weight"] = getattr(layer, which).detach()[run].cpu().clone()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def without_adapters(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model under its adapters, by the names it has without them."""
    own = {f"{name}.{which}" for name, m in model.named_modules() for which in PARTS if isinstance(m, StackedLora)}
    prefixes = {f"{name}.base.": f"{name}." for name, m in model.named_modules() if isinstance(m, StackedLora)}
    state = {}
    for name, value in model.state_dict().items():
        if name not in own:
            prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
            state[name if prefix is None else prefixes[prefix] + name.removeprefix(prefix)] = value
    return state


def merged_weights(model: nn.Module, run: int) -> Mapping[str, Tensor]:
    """The model's state with one run's adapter added in."""
    state = without_adapters(model)
    return state | {f"{name}.weight": m.merged(run) for name, m in model.named_modules() if isinstance(m, StackedLora)}
