"""Which runs train together."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from src.data.pairs import PairData, keep_usable
from src.launching.loading import load_data
from src.stacking import plan_stacks
from tests.conftest import TOY
from tests.stacks import SMALL_LLAMA, configs


def stacks_of(*runs: str, common: str = " ".join(TOY)) -> list[list[int]]:
    made = configs(*(f"{common} {run}" for run in runs))
    return plan_stacks(made, load_data(made))


def pairs(*lengths: int) -> PairData:
    """One pair for each length, of prompt and responses alike."""
    return keep_usable([(ids, ids, (*ids[1:], 31)) for ids in (tuple(range(n)) for n in lengths)], "test")


@pytest.mark.parametrize(
    "other",
    ["loss=ipo", "beta=0.5", "lr=0.1", "seed=7", "optimizer=adam", "scheduler=linear", "sampling=replacement",
     "max_grad_norm=1.0", "save=true"],
)  # fmt: skip
def test_runs_may_share_a_stack_whatever_loss_optimizer_schedule_and_seed_they_have(other):
    (stack,) = stacks_of("loss=dpo", other)
    assert sorted(stack) == [0, 1]


@pytest.mark.parametrize(
    "other",
    ["steps=6", "batch_size=2", "batch_size=full", "dtype=float64", "logps=notebook_per_token", "model.actions=5",
     "model.init=independent", "data.prompts=2", "compute=cuda"],
)  # fmt: skip
def test_runs_of_other_shapes_or_other_arithmetic_do_not(other):
    assert stacks_of("loss=dpo", other) == [[0], [1]]


@pytest.mark.parametrize(
    ("other", "together"),
    [(pairs(3, 2), True), (pairs(3), False), (pairs(4, 2), False), (pairs(3, 3), False), (pairs(3, 2, 1), False)],
)
def test_data_may_differ_within_a_stack_if_their_tensors_have_the_same_shapes(other, together):
    made = configs(*[" ".join([*SMALL_LLAMA, "tracking=none"])] * 2)
    assert len(plan_stacks(made, [pairs(2, 3), other])) == (1 if together else 2)


@pytest.mark.parametrize(("runs", "sizes"), [(3, [3]), (4, [4]), (5, [2, 3]), (9, [3, 3, 3]), (10, [3, 3, 4])])
def test_blocks_hold_at_most_stack_size_runs_and_are_of_even_size(runs, sizes):
    stacks = stacks_of(*(f"seed={seed} compute.stack_size=4" for seed in range(runs)))
    assert sorted(map(len, stacks)) == sizes


def test_every_run_is_in_exactly_one_stack():
    cells = [f"seed={seed} steps={steps} compute.stack_size=2" for seed in range(3) for steps in (5, 6, 5)]
    stacks = stacks_of(*cells)
    assert sorted(i for stack in stacks for i in stack) == list(range(9))
    assert all(len({cells[i].split()[1] for i in stack}) == 1 for stack in stacks)


def test_within_a_stack_runs_with_the_same_optimizer_are_neighbours():
    optimizers = ["sgd", "adam", "sgd", "adam", "rmsprop", "sgd"]
    (stack,) = stacks_of(*(f"optimizer={o} seed={i}" for i, o in enumerate(optimizers)))
    order = [optimizers[i] for i in stack]
    changes = sum(a != b for a, b in pairwise(order))
    assert changes == len(set(optimizers)) - 1


def test_nothing_to_train_needs_no_stack():
    data: Sequence[PairData] = []
    assert plan_stacks([], data) == []
