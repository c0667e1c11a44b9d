"""What the training loop asks of a policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from src import distributed
from src.compute import Compute
from src.data.pairs import Ids, PairData
from src.errors import BadInput
from src.policy.adapters import Lora


@dataclass(frozen=True)
class TokenLogps:
    """log pi of each response token given what precedes it, in nats.

    values: [R, B, K, T], 0 where padded; mask: True on response tokens, broadcastable to values' shape.
    log_pi: the whole next-token distributions [R, B, K, T, V], where they were asked for.
    """

    values: Tensor
    mask: Tensor
    log_pi: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Response lengths in tokens, [R, B, K] (or broadcastable to it)."""
        return self.mask.sum(-1)


class Policy(Protocol):
    """R policies of one shape, trained side by side.

    Every tensor of `parameters()` belongs to the R runs in equal, contiguous parts, run by run: reshaping it to
    [R, -1] must be a view. (With R = 1 any parameter qualifies.)
    """

    runs: int
    notes: Sequence[str]  # what was asked for and cannot be had of this model

    def parameters(self) -> Sequence[Tensor]: ...

    def token_logps(self, index_RB: Tensor, vocabulary: bool = False, step: int | None = None) -> TokenLogps:
        """Log-probs of the responses of prompts `index_RB` (int64 indices into each run's data).

        vocabulary: also keep the whole next-token distributions.
        step: the update these are for; None: not for training, so without dropout.
        """
        ...

    def weights_digest(self) -> str | None:
        """A hash of the weights of the reference, the same for all runs, by which its log-probs are kept on disk.

        None: they are not kept, since computing them again costs nothing. A policy that gives a digest starts as its
        reference.
        """
        ...

    def sample(self, run: int, prompts: Sequence[Ids], max_new_tokens: int, temperature: float, seed: int) -> list[Ids]:
        """Answers drawn from one run's own distribution, of one token at least.

        The end-of-sequence token is part of an answer where it was drawn. The same seed gives the same answers.
        """
        ...

    def rescore(self, run: int, data: PairData, reference: bool = False) -> TokenLogps:
        """Log-probs of any responses under one run's policy, or under its reference: values and mask [1, P, K, T].

        Without dropout and without gradients. K may be 1.
        """
        ...

    def watched(self) -> dict[str, Tensor]:
        """What `exact_metrics` will need of the present state, each [R, ...]."""
        ...

    def exact_metrics(self, watched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Quantities only an enumerable policy knows, each [..., R]; empty for language models.

        watched: what `watched` gave, with more dimensions in front.
        """
        ...

    def save(self, run: int, folder: Path) -> None:
        """Write one run's weights into `folder`."""
        ...


def pad_ids(rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-pad id lists with 0: ids [N, W] int64 and mask [N, W] bool."""
    width = width or max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = True
    return ids, mask


@dataclass(frozen=True)
class Build:
    """How policies are built.

    shifted: True for the published form, where the token at t is predicted from position t - 1. False gathers it from
        position t, as the source notebooks do; policies for which that has no meaning raise BadInput.
    role: "reference" is only asked of models whose init is "independent". A "reward_model"'s `token_logps` gives one
        number a response, its reward, with T = 1.
    compute, autocast, adapters: of `src.policy.pretrained` alone: how a pass is made, the type of its products (None:
        that of the weights), and the adapter of each run (empty: every weight is trained).
    """

    device: torch.device
    dtype: torch.dtype
    shifted: bool = True
    role: Literal["policy", "reference", "reward_model"] = "policy"
    compute: Compute = field(default_factory=partial(Compute, device="cpu"))
    autocast: torch.dtype | None = None
    adapters: tuple[Lora, ...] = ()


def refuse_what_others_have(build: Build, name: str) -> None:
    """Raise BadInput for what only pretrained models do."""
    for what, given in (
        ("adapter", build.adapters),
        ("autocast", build.autocast),
        ("torchrun", distributed.size() > 1),
    ):
        if given:
            raise BadInput(f"{what} needs model=pretrained or model=smollm2, not model={name}")


class ModelSpec(Protocol):
    """A choice of the `model` config group: a frozen dataclass, validated, that knows how to build R policies."""

    threads: ClassVar[int | None]  # CPU threads that suit it; None: torch's default
    init: str  # "copy": the policy starts as the reference; "independent": both are random

    @property
    def block(self) -> int:
        """How many runs at most train well together on a CPU."""
        ...

    @classmethod
    def stack(cls, specs: Sequence[Self], data: Sequence[PairData], build: Build) -> Policy:
        """Policies for the R runs of `specs`, which may differ only in their seed.

        Args:
            data: each run's pairs; the same object where runs share them.

        Raises:
            BadInput: the model does not fit its data, or cannot be built like that.
        """
        ...

    def tokenizer(self) -> Any:
        """The tokenizer text data are read with. Raises BadInput where the model has none."""
        ...
