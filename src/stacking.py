"""Which runs may train together: pure functions of configurations and data."""

from collections import defaultdict
from collections.abc import Sequence

from src.config import RunConfig
from src.data.pairs import PairData


def stack_key(run: RunConfig, pairs: PairData) -> tuple[object, ...]:
    """Runs with equal keys have the same tensor shapes and the same steps; all else may differ within a stack."""
    model = {key: value for key, value in run.model.plain().items() if key != "seed"}
    longest = int(pairs.row_lengths.max()), int(pairs.lengths.max())
    shape = (len(pairs), len(set(pairs.prompts)), pairs.ranks, *longest, bool(pairs.scores))
    device = run.compute.params["device"]
    return (
        repr(sorted(model.items())),
        shape,
        run.steps,
        run.batch_size,
        run.logps,
        run.dtype,
        run.reference,
        run.objective,
        device,
    )


def plan_stacks(runs: Sequence[RunConfig], data: Sequence[PairData]) -> list[list[int]]:
    """Split runs into stacks, as positions in `runs`.

    Within a stack, runs with the same optimizer and schedule are neighbours, so that one torch.optim instance serves
    them. A stack is no larger than `compute.stack_size`, by default the model's own block; blocks are of even size,
    since a last stack of one run costs nearly as much as a full one.
    """
    compatible: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, (run, pairs) in enumerate(zip(runs, data, strict=True)):
        compatible[stack_key(run, pairs)].append(i)
    stacks = []
    for members in compatible.values():
        size = _stack_size(runs[members[0]])
        members.sort(key=lambda i: (repr(runs[i].optimizer.plain()), repr(runs[i].scheduler.plain()), i))
        blocks = -(-len(members) // size)
        for b in range(blocks):
            stacks.append(members[b * len(members) // blocks : (b + 1) * len(members) // blocks])
    return stacks


def _stack_size(run: RunConfig) -> int:
    block = int(run.model.build().block)
    return 1 if block == 1 else run.compute.params["stack_size"] or block
