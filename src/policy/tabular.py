"""A softmax over K actions: the smallest policy, where everything is known exactly.

Shapes: R runs, X tables (one, or one a prompt), K actions, P pairs, B pairs of a batch, N ranked responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Gt
from safetensors.torch import save_file
from torch import Tensor, nn

from src.data.pairs import Ids, PairData
from src.errors import BadInput
from src.policy.base import Build, TokenLogps, refuse_what_others_have

MAX_LOGGED_CELLS = 64  # a larger table's distribution is summarised by its KL and entropy, not logged cell by cell


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """Configuration of a tabular policy; see conf/model/tabular.yaml."""

    block: ClassVar[int] = 256
    threads: ClassVar[int | None] = 1

    actions: Annotated[int, Ge(2)]
    ref_probs: list[Annotated[float, Gt(0)]] | None
    per_prompt: bool
    init: Literal["copy", "independent"]
    init_std: Annotated[float, Ge(0)]
    seed: Annotated[int, Ge(0)]

    @classmethod
    def stack(cls, specs: Sequence["Tabular"], data: Sequence[PairData], build: Build) -> "TabularPolicy":
        """As `ModelSpec.stack`."""
        refuse_what_others_have(build, "tabular")
        if not build.shifted:
            raise BadInput("model=tabular has no token positions: use logps=sequence")
        tables = [spec._table(pairs, build.role) for spec, pairs in zip(specs, data, strict=True)]
        references = [spec._reference_logits(len(table)) for spec, table in zip(specs, tables, strict=True)]
        spaces = [_Space.of(spec, pairs) for spec, pairs in zip(specs, data, strict=True)]
        cells = [space.cells(pairs) for space, pairs in zip(spaces, data, strict=True)]
        return TabularPolicy(tables, references, cells, spaces, build)

    def tokenizer(self) -> Any:
        raise BadInput("model=tabular has no tokenizer: text data need model=pretrained or model=smollm2")

    def _table(self, pairs: PairData, role: str) -> Tensor:
        """Where training starts, [X, K]: logits, or a reward model's rewards."""
        tables = len(set(pairs.prompts)) if self.per_prompt else 1
        if role == "reward_model":
            return torch.zeros(tables, self.actions, dtype=torch.float64)
        return (
            self._random(tables) if self.init == "independent" and role == "policy" else self._reference_logits(tables)
        )

    def _reference_logits(self, tables: int) -> Tensor:
        if self.ref_probs is None:
            return torch.zeros(tables, self.actions, dtype=torch.float64)
        probs = torch.tensor(self.ref_probs, dtype=torch.float64)
        if len(probs) != self.actions or abs(float(probs.sum()) - 1) > 1e-9:
            raise BadInput(
                f"model.ref_probs={self.ref_probs} must be model.actions={self.actions} numbers that sum to 1"
            )
        return probs.log().expand(tables, -1)

    def _random(self, tables: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return self.init_std * torch.randn(tables, self.actions, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class _Space:
    """Which response an action is, and which table a prompt has; None: all prompts have the one."""

    responses: tuple[Ids, ...]
    prompts: tuple[Ids, ...] | None

    @classmethod
    def of(cls, spec: Tabular, pairs: PairData) -> Self:
        unseen = spec.actions - len(pairs.candidates)
        if unseen < 0:
            distinct = len(pairs.candidates)
            raise BadInput(f"model.actions={spec.actions} is too few: the data have {distinct} distinct responses")
        first = 1 + max(max(ids) for ids in pairs.candidates)  # actions that no response stands for are ids beyond all
        responses = (*pairs.candidates, *((first + k,) for k in range(unseen)))
        return cls(responses, tuple(dict.fromkeys(pairs.prompts)) if spec.per_prompt else None)

    def tables(self, prompts: Sequence[Ids]) -> list[int]:
        if self.prompts is None:
            return [0] * len(prompts)
        table = {ids: x for x, ids in enumerate(self.prompts)}
        return [table[ids] for ids in prompts]

    def cells(self, pairs: PairData) -> Tensor:
        """Table and ranked actions of every prompt, [P, 1 + N]."""
        action = {ids: k for k, ids in enumerate(self.responses)}
        rows = zip(self.tables(pairs.prompts), pairs.responses, strict=True)
        return torch.tensor([[x, *(action[y] for y in ranked)] for x, ranked in rows])


class TabularPolicy:
    """logits [R, X, K]; a response is one token. As a reward model, a table of rewards instead."""

    notes: Sequence[str] = ()

    def __init__(
        self,
        logits: list[Tensor],
        reference: list[Tensor],
        cells: list[Tensor],
        spaces: Sequence[_Space],
        build: Build,
    ) -> None:
        self.runs = len(logits)
        self._scalar = build.role == "reward_model"
        device = build.device
        self._logits = nn.Parameter(torch.stack(logits).to(device, build.dtype))
        self._ref_log_pi = torch.stack(reference).to(device=device, dtype=torch.float64).log_softmax(-1)
        self._cells = torch.stack(cells).to(device)  # [R, P, 1 + N]
        self._spaces = spaces
        self._run = torch.arange(self.runs, device=device)[:, None]
        self._mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)

    def parameters(self) -> Sequence[Tensor]:
        return [self._logits]

    def token_logps(self, index_RB: Tensor, vocabulary: bool = False, step: int | None = None) -> TokenLogps:
        cells = self._cells[self._run, index_RB]
        table = self._logits
        log_pi_RXK = table if self._scalar else table.log_softmax(-1)
        values = log_pi_RXK[self._run[:, :, None], cells[..., :1], cells[..., 1:]]
        whole = (
            log_pi_RXK[self._run, cells[..., 0]][:, :, None, None].expand(*values.shape, 1, -1) if vocabulary else None
        )
        return TokenLogps(values[..., None], self._mask.expand(*values.shape, 1), whole)

    def watched(self) -> dict[str, Tensor]:
        return {} if self._scalar else {"table": self._logits.detach()}

    def exact_metrics(self, watched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exact KL(policy, reference) and entropy, mean over tables, and the distribution itself, in nats."""
        if self._scalar:
            return {}
        log_pi = watched["table"].double().log_softmax(-1)  # [..., R, X, K]
        metrics = {
            "exact/kl": (log_pi.exp() * (log_pi - self._ref_log_pi)).sum(-1).mean(-1),
            "exact/entropy": -(log_pi.exp() * log_pi).sum(-1).mean(-1),
        }
        if self._ref_log_pi[0].numel() <= MAX_LOGGED_CELLS:
            for x in range(log_pi.shape[-2]):
                for k in range(log_pi.shape[-1]):
                    metrics[f"log_pi/{x}/{k}"] = log_pi[..., x, k]
        return metrics

    def weights_digest(self) -> None:
        return None

    def sample(self, run: int, prompts: Sequence[Ids], max_new_tokens: int, temperature: float, seed: int) -> list[Ids]:
        """As `Policy.sample`: an action for each prompt."""
        generator, space = torch.Generator().manual_seed(seed), self._spaces[run]
        log_pi = self._logits.detach()[run, space.tables(prompts)].double().cpu().log_softmax(-1)
        actions = torch.multinomial((log_pi / temperature).softmax(-1), 1, generator=generator)[:, 0]
        return [space.responses[action] for action in actions.tolist()]

    def rescore(self, run: int, data: PairData, reference: bool = False) -> TokenLogps:
        table = self._ref_log_pi if reference else self._logits.detach().log_softmax(-1)
        cells = self._spaces[run].cells(data).to(table.device)
        values = table[run, cells[:, :1], cells[:, 1:]][None, ..., None]
        return TokenLogps(values, self._mask.expand_as(values))

    def save(self, run: int, folder: Path) -> None:
        folder.mkdir()
        save_file({"logits": self._logits.detach()[run].cpu()}, folder / "model.safetensors")
