"""Several processes for one run, as `torchrun` starts them: `torchrun --nproc-per-node 2 -m src.run model=smollm2 …`.

The first process does everything a single one does. The others follow: they are told what to train, hold the same
weights and compute their share of every batch. Log-probs are put together before the loss sees them, so that a loss
over a whole batch is that of one process, whatever it does with the batch.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes there are; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device(kind: str) -> torch.device:
    """This process's own."""
    if kind == "cuda" and size() > 1:
        return torch.device(kind, int(os.environ["LOCAL_RANK"]))
    return torch.device(kind)


def tell(work: Any) -> None:
    """Say to the other processes what comes next; None: nothing. Does nothing where there are none."""
    if size() > 1:
        _join()
        dist.broadcast_object_list([work])


def told() -> Any:
    """What the first process says next."""
    _join()
    heard: list[Any] = [None]
    dist.broadcast_object_list(heard)
    return heard[0]


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def anyone(yes: bool) -> bool:
    """Does one of the processes say yes? All get the same answer."""
    if size() == 1:
        return yes
    said = torch.tensor([float(yes)])
    dist.all_reduce(said, group=_cpu())
    return bool(said > 0)


def share(items: int) -> list[int]:
    """The places of a batch that are this process's. A process without any gets the first, whose result `put_together`
    then takes from another."""
    return list(range(rank(), items, size())) or [0]


def put_together(own: Tensor, places: Sequence[int], shape: Sequence[int]) -> Tensor:
    """[R, b, K, T, ...] of every process at their places in `shape`, [R, B, K, T]; a gradient flows to our own."""
    whole = own.new_zeros(*shape, *own.shape[4:])
    if rank() < shape[1]:
        whole[:, places, :, : own.shape[3]] = own
    else:
        whole = whole + 0 * own.sum()  # its weights get a gradient too, of zeros
    summed: Tensor = _Sum.apply(whole)  # type: ignore[no-untyped-call]
    return summed


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Every process then has the gradient of the whole batch."""
    if size() > 1:
        for p in parameters:
            if p.grad is not None:
                dist.all_reduce(p.grad)


class _Sum(torch.autograd.Function):
    """The sum over processes. All compute the same loss from it, so each one's gradient is whole already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


_GROUPS: list[Any] = []


def _join() -> None:
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()


def _cpu() -> Any:
    """A group for decisions, which need no device."""
    if not _GROUPS:
        _GROUPS.append(dist.new_group(backend="gloo"))
    return _GROUPS[0]
