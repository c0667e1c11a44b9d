"""The training loop. There is only this one: one run is a stack of one.

Shapes: R runs, P pairs of the data, B pairs of a batch, N losses of a batch, T response tokens.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from src import distributed
from src.checkpoint import Checkpoints, Snapshot
from src.config import Evaluation, RunConfig
from src.data.pairs import PairData
from src.data.sampling import batches
from src.errors import BadInput
from src.evaluation import Evaluator, Keep, check_evaluation, evaluated_pairs, needs_reference, with_held_out
from src.gate import step0_failures
from src.logprobs import ReferenceLogps, pair_log_ratios
from src.losses.base import facts_of
from src.losses.penalty import StackPenalty
from src.losses.stacked import StackLoss
from src.metrics import step_metrics
from src.optim import StackOptimizer
from src.policy.base import Build, Policy, TokenLogps
from src.recording import Emit, Recorder
from src.reference import References, joined
from src.store import State

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
OnStep = Callable[[int, Callable[[], Tensor]], None]
Stop = Callable[[], bool]


@dataclass
class Outcome:
    """How one run of the stack ended. `step` is where one stopped that did not make all its updates."""

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
    references: References | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
    keep: Keep | None = None,
) -> tuple[list[Outcome], Policy]:
    """Train R runs together; each is what it would be alone.

    Args:
        runs: configurations that `src.stacking` found compatible.
        data: each run's pairs.
        emit: receives every run's history in columns, as it grows.
        on_step: called after each update with the step, and with what gives the margins [R] when called.
        references: where reference log-probs are looked up and kept.
        checkpoints: where to go on from, if there is something, and where to write now and then.
        stop: asked after each update; when it says yes, a checkpoint is written and KeyboardInterrupt raised.
        keep: receives every run's evaluations; None: there are none.

    Returns:
        Each run's outcome, and the policy after its last update.
    """
    shared = runs[0]
    check_data(runs, data)
    evaluation = shared.evaluation if keep is not None else Evaluation()
    held = evaluated_pairs(data, evaluation)
    whole = with_held_out(data, held)
    penalty = StackPenalty([run.kl_coef for run in runs], [run.kl_form for run in runs], device)
    vocabulary = penalty.vocabulary or any(facts_of(run.loss).vocabulary for run in runs)
    parts = [data] if held is None else [data, held]
    policy, reference = _policy_and_reference(runs, whole, parts, device, references or References(), vocabulary)
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
    evaluator = None
    if keep is not None and evaluation.on:
        evaluator = Evaluator(runs, data, whole, policy, reference, loss_of, device, keep)
    first = 0
    if checkpoints is not None and (snapshot := checkpoints.load()) is not None:
        first = snapshot.step
        outcomes = _restore(snapshot, policy, optimizer, tokens_seen, pairs_seen)
        order = [islice(indices, first, None) for indices in order]
        if evaluator is not None:
            evaluator.load(snapshot.facts["evaluations"])
    measure = partial(step_metrics, beta_R=beta, objective=shared.objective, exact=policy.exact_metrics)
    recorder = Recorder(len(runs), emit, first, measure)
    for run, outcome in enumerate(outcomes):
        if not outcome.going:
            recorder.close_run(run, outcome.steps_done)
    ended_early = _Ended(policy, [r for r, outcome in enumerate(outcomes) if outcome.state == "finished"])

    drawn_before: np.ndarray | None = None
    with recorder:  # flushes at the end, whatever ends it
        for step in range(first, shared.steps):
            if evaluator is not None and evaluator.due(step):
                recorder.flush()  # a mirror takes no row of a step that is past
                for run, reason in evaluator(step, _going(outcomes)).items():
                    outcomes[run] = Outcome("finished", step, step, reason)
                    recorder.close_run(run, step)
                    ended_early.add(run)
                if not _going(outcomes):
                    break
            drawn = np.stack([next(indices) for indices in order])
            known_batch = drawn_before is not None and np.array_equal(drawn, drawn_before)
            if not known_batch:  # one pair, or full batches: what is looked up by index is looked up once
                drawn_before, index_RB = drawn, torch.from_numpy(drawn).to(device)
            logps = policy.token_logps(index_RB, vocabulary, step)
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
            optimizer.backward(loss_R.sum())
            distributed.sum_gradients(policy.parameters())
            optimizer.unscale()
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
            finite = math.isfinite(float((raw["loss"] + norms_R).sum()))  # one number to wait for, not two of each run
            if not finite and not optimizer.overflowed(norms_R):
                for run in torch.nonzero(~(torch.isfinite(raw["loss"]) & torch.isfinite(norms_R))).flatten().tolist():
                    # Its weights go on as NaN and are not read again: the others must not feel that it left.
                    if outcomes[run].going:
                        what = "gradient" if torch.isfinite(raw["loss"][run]) else "loss"
                        outcomes[run] = Outcome("diverged", step + 1, step, f"the {what} is not finite at step {step}")
                        recorder.close_run(run, step + 1)
            if not _going(outcomes):
                break
            optimizer.clip(norms_R)
            optimizer.step()
            ended_early.put_back()
            if recorder.due:
                recorder.flush()
            if on_step is not None:
                on_step(step, partial(_margins, logps, ref, shared))
            stopping = distributed.anyone(stop is not None and stop())
            if checkpoints is not None and (stopping or checkpoints.due(step + 1)):
                recorder.flush()  # a checkpoint never stands on rows that are not on disk
                snapshot = _snapshot(step + 1, policy, optimizer, outcomes, tokens_seen, pairs_seen)
                if evaluator is not None:
                    snapshot = replace(snapshot, facts={**snapshot.facts, "evaluations": evaluator.state()})
                checkpoints.save(snapshot)
            if stopping:
                raise KeyboardInterrupt
        if evaluator is not None and (going := _going(outcomes)):
            recorder.flush()
            evaluator(shared.steps, going)

    for run, outcome in enumerate(outcomes):
        if outcome.going:
            outcomes[run] = Outcome("finished", shared.steps)
    return outcomes, policy


def _going(outcomes: Iterable[Outcome]) -> list[int]:
    return [run for run, outcome in enumerate(outcomes) if outcome.going]


class _Ended:
    """The weights of runs that ended before their stack. The others' updates pass over them too; these undo it."""

    def __init__(self, policy: Policy, runs: Iterable[int]) -> None:
        self._runs, self._parameters = policy.runs, policy.parameters()
        self._weights: dict[int, list[Tensor]] = {}
        for run in runs:
            self.add(run)

    def add(self, run: int) -> None:
        self._weights[run] = [part.clone() for part in self._of(run)]

    def put_back(self) -> None:
        for run, weights in self._weights.items():
            for part, kept in zip(self._of(run), weights, strict=True):
                part.copy_(kept)

    def _of(self, run: int) -> list[Tensor]:
        return [p.detach().view(self._runs, -1)[run] if self._runs > 1 else p.detach() for p in self._parameters]


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


def check_data(runs: Sequence[RunConfig], data: Sequence[PairData]) -> None:
    """Raises BadInput where a pairwise loss would leave out the middle of a ranking without a word, or where there is
    nothing to evaluate.
    """
    for run, pairs in zip(runs, data, strict=True):
        check_evaluation(run, pairs)
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
    parts: Sequence[Sequence[PairData]],
    device: torch.device,
    references: References,
    vocabulary: bool,
) -> tuple[Policy, ReferenceLogps | None]:
    """The policies before their first update, and the reference's log-probs of all data, if anything needs them.

    parts: the data again, in pieces that other runs may have in common with these.
    """
    specs = [run.model.build() for run in runs]
    model, build = type(specs[0]), how_to_build(runs, device)
    policy: Policy = model.stack(specs, data, build)
    if not any(map(needs_reference, runs)):
        return policy, None
    digest = None if vocabulary else policy.weights_digest()
    if digest is not None:
        return policy, joined([references.of_weights(digest, policy, part, build) for part in parts], dim=1)
    models = tuple(repr(sorted(run.model.plain().items())) for run in runs)

    def start() -> Policy:
        return policy if specs[0].init == "copy" else model.stack(specs, data, replace(build, role="reference"))

    return policy, references.of_stack(models, start, parts, build, vocabulary)


def how_to_build(runs: Sequence[RunConfig], device: torch.device) -> Build:
    """For runs that `src.stacking` found compatible.

    Raises:
        BadInput: an adapter is to be saved and the package that writes it is not there.
    """
    run = runs[0]
    role: Literal["policy", "reward_model"] = "reward_model" if run.objective == "reward_model" else "policy"
    adapters = [run.adapter.build() for run in runs]
    if run.save and adapters[0] and adapters[0].keep == "adapter" and find_spec("peft") is None:
        raise BadInput("save=true with an adapter needs peft: pip install 'margincall[lora]', or adapter.keep=merged")
    return Build(
        device, DTYPES[run.dtype], run.logps != "notebook_per_token", role, run.compute.build(),
        DTYPES[run.autocast] if run.autocast else None, tuple(adapter for adapter in adapters if adapter),
    )  # fmt: skip
