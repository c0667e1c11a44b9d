"""What is measured now and then while training: held-out pairs, pairs followed one by one, the policy's own answers.

Nothing here changes training. Shapes: R runs, P pairs for training, H held-out pairs, K responses, T response tokens.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.config import EarlyStop, Evaluation, RunConfig
from src.data.pairs import Ids, PairData
from src.errors import BadInput
from src.kl import k1, k3
from src.logprobs import ReferenceLogps, pair_log_ratios
from src.losses.base import facts_of
from src.losses.stacked import StackLoss
from src.metrics import metrics_of
from src.policy.base import Policy, TokenLogps
from src.reference import logps_of

REWARD = "eval/rewards/margins"
KL = ("eval/kl_k3", "eval/k3_on_data")  # the first that there is


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of one run, as docs/run-directory.md describes its files.

    metrics: columns of one row. probes: columns, none where there is no reference. answers: rows.
    """

    metrics: Mapping[str, np.ndarray]
    probes: Mapping[str, np.ndarray]
    answers: Sequence[Mapping[str, Any]]


Keep = Callable[[int, Evaluated], None]


def check_evaluation(run: RunConfig, pairs: PairData) -> None:
    """Raises BadInput for an evaluation that these data, this model or this objective do not allow."""
    wanted, stop = run.evaluation, run.early_stop
    if stop.on:
        given = f"early_stop.patience={stop.patience}"
        if not wanted.on or not wanted.pairs:
            raise BadInput(f"{given} looks at held-out pairs: give evaluation.every and evaluation.pairs above 0")
        if run.objective != "preference" or not needs_reference(run):
            raise BadInput(f"{given} needs rewards and a KL: objective=preference and reference=always")
    if not wanted.on:
        return
    for name in ("pairs", "samples"):
        given = f"evaluation.{name}={getattr(wanted, name)}"
        if not getattr(wanted, name):
            continue
        if pairs.held_out is None:
            raise BadInput(f"{given} needs held-out pairs: give data.holdout a share of them, or {given[:-1]}0")
        if run.model.params.get("per_prompt"):
            raise BadInput(f"{given}: with model.per_prompt=true a held-out prompt has no table that was trained")
    if wanted.samples and (run.objective == "reward_model" or run.logps != "sequence"):
        cause = f"objective={run.objective}" if run.objective == "reward_model" else f"logps={run.logps}"
        raise BadInput(f"evaluation.samples={wanted.samples} needs a policy that answers, which {cause} is not")


def needs_reference(run: RunConfig) -> bool:
    """Is the run, a policy's, to be compared with a reference?"""
    if run.objective != "preference":
        return False
    return run.reference == "always" or bool(run.kl_coef) or facts_of(run.loss).reference


def held_out_rows(pairs: PairData, evaluation: Evaluation) -> list[int]:
    """Which of the held-out pairs are evaluated: so many, evenly spaced."""
    there = len(pairs.held_out) if evaluation.on and pairs.held_out is not None else 0
    return _spaced(there, evaluation.pairs)


def evaluated_pairs(data: Sequence[PairData], evaluation: Evaluation) -> list[PairData] | None:
    """Each run's held-out pairs that are evaluated; None where there are none. Runs that share data share them."""
    if not held_out_rows(data[0], evaluation):
        return None
    made: dict[int, PairData] = {}
    for pairs in data:
        if id(pairs) not in made:
            assert pairs.held_out is not None
            made[id(pairs)] = pairs.held_out.take(held_out_rows(pairs, evaluation))
    return [made[id(pairs)] for pairs in data]


def with_held_out(data: Sequence[PairData], held: Sequence[PairData] | None) -> list[PairData]:
    """Each run's pairs for training, and behind them those it is evaluated on: what a policy is built for."""
    if held is None:
        return list(data)
    made: dict[int, PairData] = {}
    for pairs, others in zip(data, held, strict=True):
        if id(pairs) not in made:
            made[id(pairs)] = PairData(
                pairs.prompts + others.prompts,
                pairs.responses + others.responses,
                pairs.scores + others.scores,
                tuple(dict.fromkeys(pairs.candidates + others.candidates)),
            )
    return [made[id(pairs)] for pairs in data]


class Evaluator:
    """Evaluates a stack. All runs in one pass; only their own answers are drawn run by run.

    Args:
        data: each run's pairs for training; `whole` has the evaluated held-out pairs behind them, and is what `policy`
            and `reference` know.
        keep: receives what was found of each run.
    """

    def __init__(
        self,
        runs: Sequence[RunConfig],
        data: Sequence[PairData],
        whole: Sequence[PairData],
        policy: Policy,
        reference: ReferenceLogps | None,
        loss_of: StackLoss,
        device: torch.device,
        keep: Keep,
    ) -> None:
        self._runs, self._data, self._whole, self._policy, self._keep = runs, data, whole, policy, keep
        self._wanted, self._device = runs[0].evaluation, device
        self._reference, self._loss_of = reference, loss_of
        self._beta = torch.tensor([run.beta for run in runs], device=device, dtype=torch.float64)
        self._held = range(len(data[0]), len(whole[0]))
        self._probes = range(min(len(data[0]), self._wanted.probes))
        self._decode = _decoder(runs[0]) if self._wanted.samples else None
        self._seen: list[list[tuple[float, float]]] = [[] for _ in runs]  # of each evaluation, reward and KL

    def due(self, step: int) -> bool:
        """Before update `step`?"""
        assert self._wanted.every is not None
        return step % self._wanted.every == 0

    @torch.no_grad()
    def __call__(self, step: int, going: Sequence[int]) -> dict[int, str]:
        """Evaluate the runs `going` after `step` updates; gives those that are to stop now, with the reason."""
        of_rows = [self._logps(rows) if rows else None for rows in (self._probes, self._held)]
        metrics = {} if of_rows[1] is None else self._metrics(*of_rows[1])
        stops = {}
        for run in going:
            own, answers = self._answers(run, step)
            values = {f"eval/{name}": float(x[run]) for name, x in metrics.items()} | own
            row = {"step": np.array([step])} | {name: np.array([value]) for name, value in values.items()}
            self._keep(run, Evaluated(row, self._trajectories(run, step, of_rows), answers))
            if self._runs[run].early_stop.on:
                self._seen[run].append((values[REWARD], next(values[name] for name in KL if name in values)))
                if has_settled(self._seen[run], self._runs[run].early_stop):
                    stops[run] = f"early stop at step {step}: the reward margin no longer rises and KL is steady"
        return stops

    def state(self) -> list[list[tuple[float, float]]]:
        """What `load` needs to go on, as JSON has it."""
        return self._seen

    def load(self, state: Sequence[Sequence[Sequence[float]]]) -> None:
        self._seen = [[(reward, kl) for reward, kl in of_run] for of_run in state]

    def _logps(self, rows: Sequence[int]) -> tuple[Tensor, TokenLogps, TokenLogps | None]:
        """Of these rows of `whole`: their index [R, B], log-probs, and the reference's (a reward model's is 0)."""
        found = logps_of(self._policy, rows, self._device)
        logps = TokenLogps(found.values, found.mask)
        index = torch.tensor(rows, device=self._device).expand(len(self._runs), -1)
        if self._runs[0].objective == "reward_model":
            return index, logps, TokenLogps(torch.zeros_like(logps.values), logps.mask)
        reference = self._reference
        return index, logps, None if reference is None else reference.of(index, logps.values.shape[-1])

    def _metrics(self, index: Tensor, logps: TokenLogps, ref: TokenLogps | None) -> dict[str, Tensor]:
        """Each [R]. No loss where one needs whole distributions: those of all held-out tokens would not fit."""
        run = self._runs[0]
        found = metrics_of(run.objective, logps, ref, self._beta)
        if any(facts_of(each.loss).vocabulary for each in self._runs):
            return found
        lengths = torch.tensor(np.stack([pairs.row_lengths for pairs in self._whole]), device=self._device)
        scores = None
        if self._whole[0].scores:
            every = torch.tensor([pairs.scores for pairs in self._whole], device=self._device)
            scores = every.to(logps.values.dtype).gather(1, index[..., None].expand(-1, -1, every.shape[-1]))
        pairs, weights_RN = pair_log_ratios(logps, ref, lengths.gather(1, index), run.logps, scores)
        return {"loss": (weights_RN * self._loss_of(pairs)).sum(-1), **found}

    def _trajectories(
        self, run: int, step: int, of_rows: Sequence[tuple[Tensor, TokenLogps, TokenLogps | None] | None]
    ) -> dict[str, np.ndarray]:
        """The log-ratios of each probe."""
        parts = []
        held_out = held_out_rows(self._data[run], self._wanted)
        for name, pair, found in zip(("train", "held_out"), (list(self._probes), held_out), of_rows, strict=True):
            if found is None or found[2] is None or self._runs[run].objective == "reward_model":
                continue
            ratio_BK = (found[1].values[run].double() - found[2].values[run].double()).sum(-1).cpu().numpy()
            parts.append({
                "step": np.full(len(pair), step),
                "set": np.full(len(pair), name),
                "pair": np.array(pair),
                "log_ratio_chosen": ratio_BK[:, 0],
                "log_ratio_rejected": ratio_BK[:, -1],
            })  # fmt: skip
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _answers(self, run: int, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics of the policy's own answers to held-out prompts, and the answers."""
        wanted, held_out = self._wanted, self._data[run].held_out
        if self._decode is None or held_out is None:
            return {}, []
        rows = _spaced(len(held_out), wanted.samples)
        prompts = tuple(held_out.prompts[i] for i in rows)
        seed = _seed(self._runs[run].seed, step)
        drawn = self._policy.sample(run, prompts, wanted.max_new_tokens, wanted.temperature, seed)
        data = PairData(prompts, tuple((ids,) for ids in drawn))
        ours, theirs = (self._policy.rescore(run, data, reference=reference) for reference in (False, True))
        found = {}
        for estimator in (k1, k3):
            per_token = estimator(ours.values[0, :, 0].double() - theirs.values[0, :, 0].double())
            found[estimator.__name__] = per_token.masked_fill(~ours.mask.expand_as(ours.values)[0, :, 0], 0).sum(-1)
        answers = [
            {
                "step": step, "pair": row, "prompt": self._decode(prompt), "answer": self._decode(ids),
                "tokens": len(ids), **{name: float(each[n]) for name, each in found.items()},
            }
            for n, (row, prompt, ids) in enumerate(zip(rows, prompts, drawn, strict=True))
        ]  # fmt: skip
        metrics: dict[str, float] = {}
        if wanted.temperature == 1:  # otherwise these are not the policy's own
            for name, each in found.items():
                metrics |= {f"eval/kl_{name}": float(each.mean())}
                metrics |= {f"eval/kl_{name}_se": float(each.std() / len(each) ** 0.5) if len(each) > 1 else np.nan}
        return metrics, answers


def has_settled(seen: Sequence[tuple[float, float]], early_stop: EarlyStop) -> bool:
    """Has the reward stopped rising, and is KL steady?

    None of the last `patience` rewards is above the best before them by more than `min_reward_gain`, and of the KLs
    from that time on the smallest and the largest differ by at most the share `kl_tolerance` of the largest.

    seen: reward and KL of each evaluation so far.
    """
    patience = early_stop.patience
    if patience is None or len(seen) <= patience:
        return False
    rewards, kls = zip(*seen, strict=True)
    flat = max(rewards[-patience:]) <= max(rewards[:-patience]) + early_stop.min_reward_gain
    last = kls[-patience - 1 :]
    steady = max(last) - min(last) <= early_stop.kl_tolerance * max(map(abs, last))
    return bool(flat and steady)


def _spaced(there: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `there`, at even distances; all where there are no more."""
    count = min(there, wanted)
    return [i * there // count for i in range(count)]


def _seed(run: int, step: int) -> int:
    """Of the answers after `step` updates: a run that goes on from a checkpoint draws the same."""
    return int.from_bytes(hashlib.sha256(f"{run} {step}".encode()).digest()[:7], "big")


def _decoder(run: RunConfig) -> Callable[[Ids], str]:
    """Ids as text; as numbers where the model has no tokenizer."""
    try:
        tokenizer = run.model.build().tokenizer()
    except BadInput:
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: str(tokenizer.decode(list(ids)))
