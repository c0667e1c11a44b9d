"""Group-relative policy optimisation on one prompt, with any form of KL, for many runs in one tensor.

Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), Eq. 3 to 5, on-policy: one update a group, so that every probability
ratio is 1 and clipping never acts. Advantages are the reward less the mean of the group's other rewards, and are not
divided by the group's standard deviation (Liu et al. 2025, arXiv 2503.20783): the expected gradient is then that of
the regularised objective itself, whose optimum is known. Ties within a group leave no gradient but that of the KL.

A reward is the sum of what its tokens are worth. With a KL per token, averaged as the policy gradient is, the objective
is E[reward] - kl_coef KL(answers), and under the reverse KL its optimum is ref exp(reward/kl_coef)/Z.

Shapes: R = M S runs, M settings by S seeds, seeds last; N answers of a group; T tokens of an answer; V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from src import kl
from src.losses.base import PairLogRatios
from src.losses.penalty import Form, StackPenalty
from src.policy.llama_kernel import Layout, LlamaKernel
from src.policy.parameters import ParameterStack
from src.policy.tiny_llama import TinyLlama, fuse

IN_LOSS = ("k1", "k2", "k3", "reverse", "forward", "js")
IN_REWARD: dict[str, kl.Estimator] = {"k1 in reward": kl.k1, "k3 in reward": kl.k3}
FORMS = (*IN_LOSS, *IN_REWARD)
# Near the reference JS is a quarter of either KL (Lin 1991): four times the coefficient makes them alike there.
SCALE = {"js": 4.0}


@dataclass(frozen=True)
class Setting:
    lr: float
    form: str  # one of FORMS
    kl_coef: float


def grid(lrs: Sequence[float], forms: Sequence[str], kl_coefs: Sequence[float]) -> list[Setting]:
    """Every combination; settings of one rate stand together, as `train` needs them."""
    return [Setting(*each) for each in product(lrs, forms, kl_coefs)]


class Policy(Protocol):
    """R policies, equal to their references at the start. `parameter`: [R, …]."""

    parameter: nn.Parameter

    def draw(self, uniform_RNT: Tensor) -> Tensor:
        """Answers [R, N, T] of the policies, from numbers uniform on [0, 1): equal ones draw alike."""
        ...

    def log_pi(self, tokens_RNT: Tensor) -> tuple[Tensor, Tensor]:
        """The policies' and the references' next-token distributions along these answers, [R, N, T, V]."""
        ...


class Table:
    """A softmax over V actions; an answer is one of them. ref_log_pi: [S, V] log-probs."""

    def __init__(self, ref_log_pi: Tensor, settings: int) -> None:
        self._ref = ref_log_pi.repeat(settings, 1)
        self.parameter = nn.Parameter(self._ref.clone())

    def draw(self, uniform_RNT: Tensor) -> Tensor:
        return pick(self.parameter.detach().log_softmax(-1)[:, None, None], uniform_RNT)

    def log_pi(self, tokens_RNT: Tensor) -> tuple[Tensor, Tensor]:
        whole = (*tokens_RNT.shape, self._ref.shape[-1])
        log_pi = self.parameter.log_softmax(-1)
        return log_pi[:, None, None].expand(whole), self._ref[:, None, None].expand(whole)


class Llamas:
    """Toy Llamas that answer one prompt in T tokens. specs: one a seed.

    What a reference says after every possible beginning is computed once. Beginnings are numbered as in a heap: the
    empty one is 0, and beginning i followed by token v is V i + 1 + v.
    """

    def __init__(self, specs: Sequence[TinyLlama], prompt: Sequence[int], tokens: int, settings: int) -> None:
        self._spec, self._prompt, self._tokens = specs[0], torch.tensor(prompt), tokens
        weights = [fuse(spec._weights("reference"), spec) for spec in specs]
        self._stack = self._stacked(weights * settings)
        self.parameter = self._stack.parameter
        self._whole = self._kernel(self._stack, tokens - 1, len(prompt) - 1)
        self._next = [self._kernel(self._stack, t, len(prompt) + t - 1) for t in range(tokens)]
        self.reference = self._all_beginnings(self._stacked(weights))  # [S, beginnings, V]
        self._seed = torch.arange(len(specs)).repeat(settings)[:, None, None]

    def draw(self, uniform_RNT: Tensor) -> Tensor:
        answers = torch.empty(uniform_RNT.shape, dtype=torch.int64)
        with torch.no_grad():
            for t, kernel in enumerate(self._next):
                log_pi = kernel.logits(self._ids(answers[..., :t]), kernel.bias(None)).log_softmax(-1)
                answers[..., t : t + 1] = pick(log_pi, uniform_RNT[..., t : t + 1])
        return answers

    def log_pi(self, tokens_RNT: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._whole.logits(self._ids(tokens_RNT[..., :-1]), self._whole.bias(None))
        return logits.log_softmax(-1), self.reference[self._seed, beginnings(tokens_RNT, self._spec.vocab_size)]

    def _stacked(self, weights: Sequence[dict[str, Tensor]]) -> ParameterStack:
        return ParameterStack([*weights], torch.device("cpu"), torch.float32, self._spec.hidden_size)

    def _kernel(self, stack: ParameterStack, response: int, first: int) -> LlamaKernel:
        spec, layout = self._spec, Layout(len(self._prompt), 1, response, first)
        return LlamaKernel(
            stack, spec.num_hidden_layers, spec.num_key_value_heads, spec.rms_norm_eps, spec.rope_theta, layout
        )

    def _ids(self, answers: Tensor) -> Tensor:
        return torch.cat([self._prompt.expand(*answers.shape[:2], -1), answers], -1)

    def _all_beginnings(self, stack: ParameterStack) -> Tensor:
        vocabulary = range(self._spec.vocab_size)
        # The last token of an answer is the beginning of nothing.
        answers = torch.tensor([*product(vocabulary, repeat=self._tokens - 1)]).expand(stack.runs, -1, -1)
        kernel = self._kernel(stack, self._tokens - 1, len(self._prompt) - 1)
        with torch.no_grad():
            log_pi = kernel.logits(self._ids(answers), kernel.bias(None)).log_softmax(-1)
        numbers = beginnings(torch.cat([answers, answers[..., :1]], -1), self._spec.vocab_size)
        table = torch.empty(stack.runs, int(numbers.max()) + 1, self._spec.vocab_size)
        table[:, numbers[0]] = log_pi
        return table


def beginnings(tokens_RNT: Tensor, vocabulary: int) -> Tensor:
    """The heap number of what precedes each token, [R, N, T]."""
    numbers = [torch.zeros_like(tokens_RNT[..., 0])]
    for t in range(tokens_RNT.shape[-1] - 1):
        numbers.append(vocabulary * numbers[-1] + 1 + tokens_RNT[..., t])
    return torch.stack(numbers, -1)


def answer_log_probs(reference: Tensor, tokens: int) -> Tensor:
    """[S, beginnings, V] log-probs of a heap -> those of every answer, [S, V^T], the last token running fastest."""
    seeds, _, vocabulary = reference.shape
    total, first = reference.new_zeros(seeds, 1), 0
    for t in range(tokens):
        level = reference[:, first : first + vocabulary**t]
        total, first = (total[..., None] + level).flatten(1), first + vocabulary**t
    return total


def pick(log_pi: Tensor, uniform: Tensor) -> Tensor:
    """Outcomes by inverse transform: distributions [..., V], leading dimensions broadcast, -> the shape of uniform."""
    below = log_pi.exp().cumsum(-1) <= uniform[..., None]
    return below.sum(-1).clamp(max=log_pi.shape[-1] - 1)


def advantages(rewards_RN: Tensor) -> Tensor:
    """Each reward less the mean of its group's others: reward - mean of all, times N/(N - 1). 0 where all are equal."""
    n = rewards_RN.shape[-1]
    return (rewards_RN - rewards_RN.mean(-1, keepdim=True)) * (n / (n - 1))


class Objective:
    """The loss of R runs, each with its own form of KL and coefficient."""

    def __init__(self, runs: Sequence[Setting]) -> None:
        in_loss = [run.form in IN_LOSS for run in runs]
        self._penalty = StackPenalty(
            [
                SCALE.get(run.form, 1.0) * run.kl_coef if inside else 0.0
                for run, inside in zip(runs, in_loss, strict=True)
            ],
            [cast(Form, run.form if inside else "k1") for run, inside in zip(runs, in_loss, strict=True)],
            torch.device("cpu"),
        )
        self._in_reward = [
            (estimator, torch.tensor([r for r, run in enumerate(runs) if run.form == form], dtype=torch.int64))
            for form, estimator in IN_REWARD.items()
        ]
        self._coefficient = torch.tensor([run.kl_coef for run in runs], dtype=torch.float64)[:, None]

    def __call__(self, tokens_RNT: Tensor, rewards_RN: Tensor, log_pi: Tensor, ref_log_pi: Tensor) -> Tensor:
        """[R], to be minimised: the mean over a group's tokens of -advantage log pi and of kl_coef times the KL."""
        at = tokens_RNT[..., None]
        logps, ref_logps = (x.gather(-1, at)[..., 0] for x in (log_pi, ref_log_pi))
        rewards = rewards_RN.clone()
        for estimator, runs in self._in_reward:
            k = estimator((logps[runs] - ref_logps[runs]).detach()).sum(-1)
            rewards[runs] -= self._coefficient[runs].to(k.dtype) * k
        gain = (advantages(rewards)[..., None] * logps).mean((1, 2))
        one = [x[:, :, None] for x in (logps, ref_logps, log_pi, ref_log_pi)]
        group = PairLogRatios(
            logps=one[0].sum(-1), ref_logps=one[1].sum(-1), lengths=torch.ones_like(one[0].sum(-1)),
            token_logps=one[0], ref_token_logps=one[1], mask=torch.ones_like(one[0], dtype=torch.bool),
            log_pi=one[2], ref_log_pi=one[3],
        )  # fmt: skip
        return self._penalty(group) - gain


@dataclass(frozen=True)
class Record:
    """step [K]: updates made before; kl, reward [K, R]: KL(policy, reference) of whole answers (nats), mean reward.

    Of a table both are exact. Of Llamas they are means over the group of what each answer's beginnings make exact.
    """

    step: npt.NDArray[np.int64]
    kl: npt.NDArray[np.float64]
    reward: npt.NDArray[np.float64]


def train(
    policy: Policy,
    settings: Sequence[Setting],
    values_SV: Tensor,
    *,
    group: int,
    tokens: int,
    steps: int,
    every: int,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
) -> Record:
    """`steps` updates of all runs. values_SV: what a token is worth, by seed.

    Runs of one seed draw with the same random numbers, whatever their setting. One that is no longer finite stays so.
    optimizer: made of parameter groups, one for each rate.
    """
    seeds = len(values_SV)
    values = values_SV.repeat(len(settings), 1)
    objective = Objective([setting for setting in settings for _ in range(seeds)])
    rates = [setting.lr for setting in settings for _ in range(seeds)]
    groups = [
        {"params": [nn.Parameter(part)], "lr": lr}
        for lr, part in zip(dict.fromkeys(rates), _by_rate(policy.parameter.detach(), rates), strict=True)
    ]
    update = optimizer(groups)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for step in range(steps + 1):
        uniform = torch.rand(seeds, group, tokens, generator=generator, dtype=values.dtype).repeat(len(settings), 1, 1)
        answers = policy.draw(uniform)
        log_pi, ref_log_pi = policy.log_pi(answers)
        if step % every == 0:
            now = log_pi.detach()
            rows.append((
                step,
                kl.reverse_kl(now, ref_log_pi).sum(-1).mean(-1).double().numpy(),
                (now.exp() * values[:, None, None]).sum((-1, -2)).mean(-1).double().numpy(),
            ))  # fmt: skip
        if step == steps:
            break
        rewards = values[:, None].expand(-1, group, -1).gather(-1, answers).sum(-1)
        policy.parameter.grad = None
        objective(answers, rewards, log_pi, ref_log_pi).sum().backward()  # type: ignore[no-untyped-call]
        assert policy.parameter.grad is not None
        for own, part in zip(groups, _by_rate(policy.parameter.grad, rates), strict=True):
            own["params"][0].grad = part
        update.step()
    return Record(*(np.stack(column) for column in zip(*rows, strict=True)))


def _by_rate(stack: Tensor, rates: Sequence[float]) -> tuple[Tensor, ...]:
    """The runs of each rate. Raises ValueError where they do not stand together."""
    counts = {lr: rates.count(lr) for lr in dict.fromkeys(rates)}
    if [lr for lr, count in counts.items() for _ in range(count)] != list(rates):
        raise ValueError("settings of one rate must stand together")
    return torch.split(stack, list(counts.values()))
