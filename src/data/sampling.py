"""Which pairs each update sees: a function of the run's own seed, never of what else is in the stack."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

Sampling = Literal["shuffle", "replacement", "sequential"]


def batches(pairs: int, batch_size: int | Literal["full"], sampling: Sampling, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of pair indices, int64 [B].

    shuffle: every epoch is a new permutation, and a batch may straddle two epochs, so none is short.
    replacement: independent uniform draws. sequential: in order, over and over. With batch_size `full` every batch is
    the data in order.
    """
    if batch_size == "full":
        while True:
            yield np.arange(pairs)
    generator = np.random.default_rng(seed)
    queue = np.empty(0, dtype=np.int64)
    while True:
        if sampling == "replacement":
            yield generator.integers(pairs, size=batch_size)
            continue
        while len(queue) < batch_size:
            queue = np.concatenate([queue, generator.permutation(pairs) if sampling == "shuffle" else np.arange(pairs)])
        yield queue[:batch_size]
        queue = queue[batch_size:]
