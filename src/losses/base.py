"""What a loss is: a pure function of the stack's log-ratios, with one value of each hyper-parameter a run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Protocol, TypeVar, cast

from annotated_types import Gt
from torch import Tensor

# Hyper-parameters: [R, 1] tensors in the call, plain numbers in the configuration, where the range is checked.
Positive = Annotated[Tensor, Gt(0)]


@dataclass(frozen=True)
class PairLogRatios:
    """N pairs for each of R runs (N is the batch; with `logps=notebook_per_token`, its response tokens).

    logps, ref_logps: log pi(y given x) and log ref(y given x) of (chosen, rejected), [R, N, 2], in nats.
    lengths: response tokens each log-prob sums over, [R, N, 2].
    """

    logps: Tensor
    ref_logps: Tensor
    lengths: Tensor

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
        return self.log_ratios[..., 1]

    @property
    def h(self) -> Tensor:
        """Margin a - b, not scaled by beta, [R, N]."""
        return self.a - self.b

    def rows(self, runs: Tensor) -> "PairLogRatios":
        return PairLogRatios(self.logps[runs], self.ref_logps[runs], self.lengths[runs])


class Loss(Protocol):
    """Gives the loss of every pair, [R, N]; keyword arguments are its hyper-parameters."""

    def __call__(self, pairs: PairLogRatios, **hyper: Any) -> Tensor: ...


F = TypeVar("F", bound=Callable[..., Tensor])


def starts_at(value: Callable[..., float]) -> Callable[[F], F]:
    """State the loss of a policy that equals its reference, as a function of the hyper-parameters.

    Written down by hand beside the loss, not computed from it: the step-0 gate compares the two.
    """

    def mark(loss: F) -> F:
        loss.start = value  # type: ignore[attr-defined]
        return loss

    return mark


def start_of(loss: Callable[..., Tensor]) -> Callable[..., float] | None:
    """The stated starting value; None for a loss whose start depends on the model."""
    return cast(Callable[..., float] | None, getattr(loss, "start", None))
