"""Each run's own loss on its own rows of the stack."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from src.config import Choice
from src.losses.base import PairLogRatios, facts_of


class StackLoss:
    """R losses, evaluated once for each distinct function.

    Rows are grouped rather than selected with torch.where, which would leak NaN from the branch that was not taken
    into the gradient.
    """

    def __init__(self, losses: Sequence[Choice], device: torch.device, dtype: torch.dtype) -> None:
        members: dict[tuple[str, str], list[int]] = defaultdict(list)
        for run, loss in enumerate(losses):
            switches = repr([(k, v) for k, v in sorted(loss.params.items()) if not _is_number(v)])
            members[loss.target, switches].append(run)
        self._groups = []
        for runs in members.values():
            first = losses[runs[0]]
            hyper = {
                key: torch.tensor([[losses[r].params[key]] for r in runs], device=device, dtype=dtype)
                if _is_number(value)
                else value
                for key, value in first.params.items()
            }
            self._groups.append((first.function, _Members(runs, device), _asked_for(first), hyper))
        order = torch.tensor([run for runs in members.values() for run in runs], device=device)
        in_order = bool((order.diff() > 0).all())
        self._back = None if in_order else torch.argsort(order)

    def __call__(self, pairs: PairLogRatios) -> Tensor:
        """Loss of every list, [R, N]."""
        if len(self._groups) == 1:
            function, _, _, hyper = self._groups[0]
            loss: Tensor = function(pairs, **hyper)
            return loss
        parts = [function(members.of(pairs, names), **hyper) for function, members, names, hyper in self._groups]
        return torch.cat(parts) if self._back is None else torch.cat(parts)[self._back]


class _Members:
    """The rows of some runs: a slice, which costs nothing, where they are neighbours."""

    def __init__(self, runs: list[int], device: torch.device) -> None:
        self._slice = slice(runs[0], runs[-1] + 1) if runs == list(range(runs[0], runs[-1] + 1)) else None
        self._index = torch.tensor(runs, device=device)

    def of(self, pairs: PairLogRatios, names: Sequence[str]) -> PairLogRatios:
        """The fields `names` of these runs; the others are left out."""
        rows = self._index if self._slice is None else self._slice
        given = {name: getattr(pairs, name) for name in names}
        picked: dict[str, Any] = {name: None if x is None else x[rows] for name, x in given.items()}
        return PairLogRatios(**picked)


def _asked_for(loss: Choice) -> tuple[str, ...]:
    """The fields of PairLogRatios that a loss reads: picking rows of the others would cost as much as the loss."""
    if not hasattr(loss.function, "facts"):
        return tuple(field.name for field in fields(PairLogRatios))
    known = facts_of(loss)
    tokens = ("token_logps", "ref_token_logps", "mask") if known.tokens else ()
    vocabulary = ("log_pi", "ref_log_pi", "mask") if known.vocabulary else ()
    return tuple(dict.fromkeys(("logps", "ref_logps", "lengths", "scores", *tokens, *vocabulary)))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
