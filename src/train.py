"""The training loop. There is only this one: one run is a stack of one.

Shapes: R runs, P pairs of the data, B pairs of a batch, N losses of a batch, T response tokens.
"""

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from src.checkpoint import Checkpoints, Snapshot
from src.config import RunConfig
from src.data.pairs import PairData
from src.data.sampling import batches
from src.errors import BadInput
from src.gate import step0_failures
from src.logprobs import ReferenceLogps, pair_log_ratios
from src.losses.base import facts_of
from src.losses.penalty import StackPenalty
from src.losses.stacked import StackLoss
from src.metrics import step_metrics
from src.optim import StackOptimizer
from src.policy.base import Build, Policy, TokenLogps
from src.recording import Emit, Recorder
from src.reference import reference_logps
from src.store import State

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
OnStep = Callable[[int, Callable[[], Tensor]], None]
Stop = Callable[[], bool]


@dataclass
class Outcome:
    """How one run of the stack ended. `step` is where a diverged or failed run stopped."""

    state: State = "running"
    steps_done: int = 0
    step: int | None = None
    reason: str | None = None

    @property
    def going(self) -> bool:
        return self.state == "running"


def train_stack(
    runs: Sequence[RunConfig],
    data: Sequence[PairData],
    emit: Emit,
    device: torch.device,
    on_step: OnStep | None = None,
    references: MutableMapping[Any, ReferenceLogps] | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
) -> tuple[list[Outcome], Policy]:
    """Train R runs together; each is what it would be alone.

    Args:
        runs: configurations that `src.stacking` found compatible.
        data: each run's pairs.
        emit: receives every run's history in columns, as it grows.
        on_step: called after each update with the step, and with what gives the margins [R] when called.
        references: reference log-probs of stacks trained before, to share and to add to.
        checkpoints: where to go on from, if there is something, and where to write now and then.
        stop: asked after each update; when it says yes, a checkpoint is written and KeyboardInterrupt raised.

    Returns:
        Each run's outcome, and the policy after its last update.
    """
    shared = runs[0]
    check_ranks(runs, data)
    penalty = StackPenalty([run.kl_coef for run in runs], [run.kl_form for run in runs], device)
    vocabulary = penalty.vocabulary or any(facts_of(run.loss).vocabulary for run in runs)
    known = {} if references is None else references
    policy, reference = _policy_and_reference(runs, data, device, known, vocabulary)
    loss_dtype = torch.float64 if shared.dtype == "float64" else torch.float32
    loss_of = StackLoss([run.loss for run in runs], device, loss_dtype)
    optimizer = StackOptimizer(policy, runs)
    beta = torch.tensor([run.beta for run in runs], device=device, dtype=torch.float64)
    row_lengths_RP = torch.tensor(np.stack([pairs.row_lengths for pairs in data]), device=device)
    tokens_RP = torch.tensor(np.stack([pairs.lengths.sum(axis=1) for pairs in data]), device=device)
    scores_RPK = torch.tensor([p.scores for p in data], device=device, dtype=loss_dtype) if data[0].scores else None
    order = [batches(len(p), r.batch_size, r.sampling, r.seed) for r, p in zip(runs, data, strict=True)]
    outcomes = [Outcome() for _ in runs]
    run_R1 = torch.arange(len(runs), device=device)[:, None]
    tokens_seen, pairs_seen = (torch.zeros(len(runs), device=device, dtype=torch.float64) for _ in range(2))
    first = 0
    if checkpoints is not None and (snapshot := checkpoints.load()) is not None:
        first = snapshot.step
        outcomes = _restore(snapshot, policy, optimizer, tokens_seen, pairs_seen)
        order = [islice(indices, first, None) for indices in order]
    measure = partial(step_metrics, beta_R=beta, objective=shared.objective, exact=policy.exact_metrics)
    recorder = Recorder(len(runs), emit, first, measure)
    for run, outcome in enumerate(outcomes):
        if not outcome.going:
            recorder.close_run(run, outcome.steps_done)

    drawn_before: np.ndarray | None = None
    with recorder:  # flushes at the end, whatever ends it
        for step in range(first, shared.steps):
            drawn = np.stack([next(indices) for indices in order])
            known_batch = drawn_before is not None and np.array_equal(drawn, drawn_before)
            if not known_batch:  # one pair, or full batches: what is looked up by index is looked up once
                drawn_before, index_RB = drawn, torch.from_numpy(drawn).to(device)
            logps = policy.token_logps(index_RB, vocabulary)
            if not known_batch:
                ref = _reference_of(reference, shared, index_RB, logps)
                scores = None if scores_RPK is None else scores_RPK[run_R1, index_RB]
                row_lengths_RB = row_lengths_RP.gather(1, index_RB)
                tokens_R = tokens_RP.gather(1, index_RB).sum(-1)
            pairs, weights_RN = pair_log_ratios(logps, ref, row_lengths_RB, shared.logps, scores)
            kl_penalty_R = penalty(pairs)
            loss_R = (weights_RN * loss_of(pairs)).sum(-1) + kl_penalty_R
            if step == 0 and reference is not None:
                for run, reason in step0_failures(runs, pairs.log_ratios, logps.values, loss_R, weights_RN).items():
                    outcomes[run] = Outcome("failed", 0, 0, reason)
                    recorder.close_run(run, 0)

            optimizer.zero_grad()
            loss_R.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.schedule(step)
            norms_R = optimizer.grad_norms()
            tokens_seen += tokens_R
            pairs_seen += drawn.shape[1]
            raw = {
                "loss": loss_R.detach(),
                "kl_penalty": kl_penalty_R.detach(),
                "grad_norm": norms_R,
                "lr": optimizer.lrs,
                "tokens": tokens_seen,
                "pairs": pairs_seen,
                "token_logps": logps.values.detach(),
                "mask": logps.mask.expand_as(logps.values),
                **({} if ref is None else {"ref_token_logps": ref.values}),
                **policy.watched(),
            }
            recorder.add(raw)
            if not math.isfinite(float((raw["loss"] + norms_R).sum())):  # one number to wait for, not two of each run
                for run in torch.nonzero(~(torch.isfinite(raw["loss"]) & torch.isfinite(norms_R))).flatten().tolist():
                    # Its weights go on as NaN and are not read again: the others must not feel that it left.
                    if outcomes[run].going:
                        what = "gradient" if torch.isfinite(raw["loss"][run]) else "loss"
                        outcomes[run] = Outcome("diverged", step + 1, step, f"the {what} is not finite at step {step}")
                        recorder.close_run(run, step + 1)
            if not any(outcome.going for outcome in outcomes):
                break
            optimizer.clip(norms_R)
            optimizer.step()
            if recorder.due:
                recorder.flush()
            if on_step is not None:
                on_step(step, partial(_margins, logps, ref, shared))
            stopping = stop is not None and stop()
            if checkpoints is not None and (stopping or checkpoints.due(step + 1)):
                recorder.flush()  # a checkpoint never stands on rows that are not on disk
                checkpoints.save(_snapshot(step + 1, policy, optimizer, outcomes, tokens_seen, pairs_seen))
            if stopping:
                raise KeyboardInterrupt

    for run, outcome in enumerate(outcomes):
        if outcome.going:
            outcomes[run] = Outcome("finished", shared.steps)
    return outcomes, policy


def _snapshot(
    updates: int, policy: Policy, optimizer: StackOptimizer, outcomes: Sequence[Outcome], *seen: Tensor
) -> Snapshot:
    """What `_restore` needs. The data order is not in it: each run's seed gives it again."""
    tensors = {f"policy.{i}": p for i, p in enumerate(policy.parameters())}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state().items()}
    tensors |= {f"seen.{i}": value for i, value in enumerate(seen)}
    tensors["rng"] = torch.get_rng_state()
    rows = [updates if outcome.going else outcome.steps_done for outcome in outcomes]
    return Snapshot(updates, tensors, {"rows": rows, "outcomes": [asdict(outcome) for outcome in outcomes]})


def _restore(snapshot: Snapshot, policy: Policy, optimizer: StackOptimizer, *seen: Tensor) -> list[Outcome]:
    """Set everything to the snapshot's values, in place; gives the outcomes so far."""
    with torch.no_grad():
        for i, p in enumerate(policy.parameters()):
            p.copy_(snapshot.tensors[f"policy.{i}"])
        for i, value in enumerate(seen):
            value.copy_(snapshot.tensors[f"seen.{i}"])
    prefix = "optimizer."
    optimizer.load({k.removeprefix(prefix): v for k, v in snapshot.tensors.items() if k.startswith(prefix)})
    torch.set_rng_state(snapshot.tensors["rng"])
    return [Outcome(**outcome) for outcome in snapshot.facts["outcomes"]]


def _margins(logps: TokenLogps, ref: TokenLogps | None, run: RunConfig) -> Tensor:
    """Mean margin of the batch [R], in nats; NaN where there is none."""
    if ref is None or run.objective == "reward_model":
        return torch.full((len(logps.values),), torch.nan)
    ratio = (logps.values.detach() - ref.values).sum(-1)
    return (ratio[..., 0] - ratio[..., -1]).mean(-1)


def check_ranks(runs: Sequence[RunConfig], data: Sequence[PairData]) -> None:
    """Raises BadInput where a pairwise loss would leave out the middle of a ranking without a word."""
    for run, pairs in zip(runs, data, strict=True):
        if pairs.ranks > 2 and not facts_of(run.loss).lists:
            raise BadInput(
                f"loss={run.loss.name} takes pairs, and data={run.data.name} ranks {pairs.ranks} responses a prompt: "
                "use a listwise loss such as pair_logistic or list_mle"
            )


def _reference_of(
    reference: ReferenceLogps | None, run: RunConfig, index_RB: Tensor, logps: TokenLogps
) -> TokenLogps | None:
    """The batch's reference. A reward model's rewards are compared with none, which is a reference of 0."""
    if run.objective == "reward_model":
        return TokenLogps(torch.zeros_like(logps.values), logps.mask)
    return None if reference is None else reference.of(index_RB, logps.values.shape[-1])


def _policy_and_reference(
    runs: Sequence[RunConfig],
    data: Sequence[PairData],
    device: torch.device,
    references: MutableMapping[Any, ReferenceLogps],
    vocabulary: bool,
) -> tuple[Policy, ReferenceLogps | None]:
    """The policies before their first update, and the reference's log-probs of all data, if anything needs them."""
    specs = [run.model.build() for run in runs]
    model, build = type(specs[0]), how_to_build(runs[0], device)
    policy: Policy = model.stack(specs, data, build)
    if build.role == "reward_model":
        return policy, None
    if not any(run.reference == "always" or run.kl_coef or facts_of(run.loss).reference for run in runs):
        return policy, None
    models = tuple(repr(sorted(run.model.plain().items())) for run in runs)
    key = (models, tuple(pairs.fingerprint for pairs in data), vocabulary, build)
    if key not in references:
        start = policy if specs[0].init == "copy" else model.stack(specs, data, replace(build, role="reference"))
        references[key] = reference_logps(start, data, device, vocabulary)
    return policy, references[key]


def how_to_build(run: RunConfig, device: torch.device) -> Build:
    role: Literal["policy", "reward_model"] = "reward_model" if run.objective == "reward_model" else "policy"
    return Build(device, DTYPES[run.dtype], shifted=run.logps != "notebook_per_token", role=role)
