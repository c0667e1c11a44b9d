"""Learning-rate schedules: the factor on lr for update `step` (from 0) of `total`."""

import math
from typing import Annotated

from annotated_types import Ge

Steps = Annotated[int, Ge(0)]


def constant(step: int, total: int) -> float:
    return 1.0


def linear(step: int, total: int, *, warmup_steps: Steps) -> float:
    return _warmup(step, warmup_steps) * (1 - _progress(step, total, warmup_steps))


def cosine(step: int, total: int, *, warmup_steps: Steps) -> float:
    return _warmup(step, warmup_steps) * 0.5 * (1 + math.cos(math.pi * _progress(step, total, warmup_steps)))


def _warmup(step: int, warmup: int) -> float:
    """Rises in equal parts and is 1 from update `warmup` on; the first update is not wasted on lr = 0."""
    return min(1.0, (step + 1) / (warmup + 1))


def _progress(step: int, total: int, warmup: int) -> float:
    """0 at the end of warm-up; 1 would be one update after the last."""
    return max(0.0, (step - warmup) / max(1, total - warmup))
