"""Which runs may train together: pure functions of configurations and data."""

from collections import defaultdict
from collections.abc import Sequence

from src.config import RunConfig
from src.data.pairs import PairData
from src.evaluation import evaluated_pairs


def stack_key(run: RunConfig, pairs: PairData) -> dict[str, object]:
    """Runs with equal keys have the same tensor shapes and the same steps; all else may differ within a stack."""
    model = {f"model.{key}": value for key, value in run.model.plain().items() if key != "seed"}
    adapter = {f"adapter.{key}": value for key, value in run.adapter.plain().items() if key != "seed"}
    held = evaluated_pairs([pairs], run.evaluation)
    return {
        **model,
        **adapter,
        "the shape of the data": _shape(pairs),
        "evaluation": run.evaluation if run.evaluation.on else None,
        "the shape of the held-out data": None if held is None else _shape(held[0]),
        "steps": run.steps,
        "batch_size": run.batch_size,
        "logps": run.logps,
        "dtype": run.dtype,
        "autocast": run.autocast,
        "reference": run.reference,
        "objective": run.objective,
        "compute.device": run.compute.params["device"],
    }


def _shape(pairs: PairData) -> tuple[int, ...]:
    longest = int(pairs.row_lengths.max()), int(pairs.lengths.max())
    return len(pairs), len(set(pairs.prompts)), pairs.ranks, *longest, bool(pairs.scores)


def plan_stacks(runs: Sequence[RunConfig], data: Sequence[PairData], processes: int = 1) -> list[list[int]]:
    """Split runs into stacks, as positions in `runs`.

    Within a stack, runs with the same optimizer and schedule are neighbours, so that one torch.optim instance serves
    them. A stack is no larger than `compute.stack_size`, by default the model's own block; blocks are of even size,
    since a last stack of one run costs nearly as much as a full one, and as many as give each of `processes` its share.
    """
    stacks = []
    for members in _compatible(runs, data).values():
        size = _stack_size(runs[members[0]])
        members.sort(key=lambda i: (repr(runs[i].optimizer.plain()), repr(runs[i].scheduler.plain()), i))
        blocks = -(-len(members) // size)
        blocks = min(-(-blocks // processes) * processes, len(members))
        for b in range(blocks):
            stacks.append(members[b * len(members) // blocks : (b + 1) * len(members) // blocks])
    return stacks


def say_groups(runs: Sequence[RunConfig], data: Sequence[PairData]) -> list[str]:
    """Why these runs cannot all share a stack, in one line; nothing where they can."""
    groups = _compatible(runs, data)
    if len(groups) < 2:
        return []
    keys = [stack_key(runs[members[0]], data[members[0]]) for members in groups.values()]
    names = [
        name for name in dict.fromkeys(n for key in keys for n in key) if len({repr(k.get(name)) for k in keys}) > 1
    ]
    return [f"{len(groups)} groups of runs cannot share a stack: they differ in {', '.join(names)}"]


def _compatible(runs: Sequence[RunConfig], data: Sequence[PairData]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, (run, pairs) in enumerate(zip(runs, data, strict=True)):
        groups[repr(stack_key(run, pairs))].append(i)
    return groups


def _stack_size(run: RunConfig) -> int:
    adapter = run.adapter.build()
    block = int(adapter.block if adapter else run.model.build().block)
    # A gradient scaler skips an update that overflowed, and it knows one run only.
    return 1 if block == 1 or run.autocast == "float16" else run.compute.params["stack_size"] or block
