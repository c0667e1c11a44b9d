"""What a loss is: a pure function of the stack's log-ratios, with one value of each hyper-parameter a run."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, TypeVar, cast

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn.functional import logsigmoid

from src.config import Choice

# Hyper-parameters: [R, 1] tensors in the call, plain numbers in the configuration, where the range is checked.
Positive = Annotated[Tensor, Gt(0)]
NonNegative = Annotated[Tensor, Ge(0)]
Real = Annotated[Tensor, None]
FlipRate = Annotated[Tensor, Interval(gt=0, lt=0.5)]  # share of labels believed to be wrong
MaybeFlipRate = Annotated[Tensor, Interval(ge=0, lt=0.5)]


@dataclass(frozen=True)
class PairLogRatios:
    """N lists of K ranked responses, best first, for each of R runs; a pair is K = 2.

    N is the batch; with `logps=notebook_per_token`, its response tokens.

    logps, ref_logps: log pi(y given x) and log ref(y given x), summed over the response, [R, N, K], in nats.
    lengths: response tokens each log-prob sums over, [R, N, K].
    scores: rewards of the responses from elsewhere, [R, N, K], where the data have them.
    token_logps, ref_token_logps: [R, N, K, T], and mask, True on response tokens: for losses that ask for tokens.
    log_pi, ref_log_pi: whole next-token distributions [R, N, K, T, V]: for losses that ask for the vocabulary.
    """

    logps: Tensor
    ref_logps: Tensor
    lengths: Tensor
    scores: Tensor | None = None
    token_logps: Tensor | None = None
    ref_token_logps: Tensor | None = None
    mask: Tensor | None = None
    log_pi: Tensor | None = None
    ref_log_pi: Tensor | None = None

    @cached_property
    def log_ratios(self) -> Tensor:
        return self.logps - self.ref_logps

    @property
    def a(self) -> Tensor:
        """Log-ratio of the chosen response, [R, N]."""
        return self.log_ratios[..., 0]

    @property
    def b(self) -> Tensor:
        """Log-ratio of the rejected response, [R, N]."""
        return self.log_ratios[..., -1]

    @property
    def h(self) -> Tensor:
        """Margin a - b, not scaled by beta, [R, N]."""
        return self.a - self.b

    def of_runs(self, runs: Tensor) -> "PairLogRatios":
        fields = {name: value[runs] for name, value in vars(self).items() if isinstance(value, Tensor)}
        fields.pop("log_ratios", None)
        return replace(self, **fields)


@dataclass(frozen=True)
class Facts:
    """What is known of a loss, written by hand beside it; tests and the step-0 gate hold the code to it.

    start: its value where policy and reference are equal, as a function of the hyper-parameters; None where that
        depends on the model.
    optimum: the margin h = a - b that minimises it for one pair whose label is certain, infinity where more is always
        better; None where the optimum is not a matter of h alone, or descent from the start does not lead there.
    lists: takes K > 2 responses. reference: uses ref_logps. tokens, vocabulary: uses those fields.
    """

    start: Callable[..., float] | None = None
    optimum: Callable[..., float] | None = None
    lists: bool = False
    reference: bool = True
    tokens: bool = False
    vocabulary: bool = False


F = TypeVar("F", bound=Callable[..., Tensor])


def facts(depends: Callable[..., Facts] | None = None, **known: Any) -> Callable[[F], F]:
    """Attach `Facts` to a loss; `depends` gives them from the parameters, for a loss made of others."""

    def attach(loss: F) -> F:
        loss.facts = depends or Facts(**known)  # type: ignore[attr-defined]
        return loss

    return attach


def facts_of(loss: Choice) -> Facts:
    """The facts of a configured loss. One that states none is taken to need the reference and nothing else."""
    known = getattr(loss.function, "facts", Facts())
    return known if isinstance(known, Facts) else cast(Facts, known(**loss.params))


def exp(x: Tensor, factor: Tensor) -> Tensor:
    """e^x that never overflows, nor does `factor` e^x (the value or the slope it becomes part of).

    A plain exp gives inf there, and inf - inf or 0 * inf turns a run that is merely bad into NaN.
    """
    return torch.exp(bounded(x, factor))


def bounded(x: Tensor, factor: Tensor) -> Tensor:
    """x up to where `factor` e^x is 1 % below the dtype's largest number (x = 88.7 or 709.8); that point, beyond.

    The slope stays 1, so that a run beyond is still pulled back.
    """
    limit = math.log(torch.finfo(x.dtype).max) - 0.01 - torch.log(factor).clamp(min=0)
    return torch.minimum(x, limit).detach() + (x - x.detach())


def expm1(x: Tensor) -> Tensor:
    """e^x - 1, precise near 0, with the slope e^x: torch's own, (e^x - 1) + 1, is 0 from x = -17 down in float32."""
    e = torch.exp(x)
    return torch.expm1(x).detach() + (e - e.detach())


def sigmoid(x: Tensor) -> Tensor:
    """sigma(x), with the slope sigma(x) sigma(-x): torch's own, y (1 - y), is 0 from x = 17 on in float32."""
    return logsigmoid(x).exp()
