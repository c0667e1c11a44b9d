"""Each run's own loss on its own rows of the stack."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from src.config import Choice
from src.losses.base import PairLogRatios


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
            self._groups.append((first.function, torch.tensor(runs, device=device), hyper))
        order = torch.cat([runs for _, runs, _ in self._groups])
        self._back = torch.argsort(order)

    def __call__(self, pairs: PairLogRatios) -> Tensor:
        """Loss of every list, [R, N]."""
        if len(self._groups) == 1:
            function, _, hyper = self._groups[0]
            loss: Tensor = function(pairs, **hyper)
            return loss
        parts = [function(pairs.of_runs(runs), **hyper) for function, runs, hyper in self._groups]
        return torch.cat(parts)[self._back]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
