"""Forward and backward of R Llamas in one `torch.autograd.Function`, both written out.

Autograd spent half of a small model's step on bookkeeping and on copying gradients. Here every weight's gradient is
the output of one batched product, written where it stays, and what the backward needs is kept and nothing else.

A row holds a prompt and its K responses: the prompt's positions, padded on the left, then each response's, padded on
the right. Responses see the prompt and themselves, not one another, so each is what it would be in a row of its own
while the prompt is computed once. Rotary attention depends on differences of positions alone: a prompt's last token
stands at the same position in every row, whatever its length, and every response starts right behind it.

Shapes: R runs, B rows of a batch, S columns of a row, C columns with logits, M = B S or B C, D hidden, E head
dimension, H key and value heads, G queries a head, F = H (G + 2) E, I intermediate, V vocabulary.

Equations: RMSNorm, Zhang & Sennrich 2019, arXiv 1910.07467; rotary positions, Su et al. 2021, arXiv 2104.09864;
SwiGLU, Shazeer 2020, arXiv 2002.05202. As put together in transformers' LlamaForCausalLM.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from src.policy.parameters import ParameterStack

Grads = Mapping[str, Tensor]

HIDDEN = -1e30  # the score of a padded prompt token: exp of it is exactly 0, and a row of nothing else is no NaN


@dataclass(frozen=True)
class Layout:
    """Columns of a row: `prompt` for the longest prompt, then `ranks` segments of `response` columns.

    first: the first column whose logits are needed; with the next-token shift, the prompt's last.
    """

    prompt: int
    ranks: int
    response: int
    first: int

    @property
    def columns(self) -> int:
        return self.prompt + self.ranks * self.response

    @property
    def positions(self) -> Tensor:
        """Rotary position of every column, [S]."""
        behind = self.prompt + torch.arange(self.response)
        return torch.cat([torch.arange(self.prompt), behind.repeat(self.ranks)])

    @property
    def visible(self) -> Tensor:
        """May column i attend to column j, padding aside? [S, S]"""
        segment = torch.cat(
            [torch.zeros(self.prompt), torch.arange(1, self.ranks + 1).repeat_interleave(self.response)]
        )
        same_or_prompt = (segment[:, None] == segment) | (segment == 0)
        return same_or_prompt & torch.ones(self.columns, self.columns, dtype=torch.bool).tril()


class LlamaKernel:
    """The function from R sets of weights to logits.

    Weights, by name and without the run dimension: `embed` [V, D]; of layer i `i.norm` [D], `i.qkv` [D, F], `i.o`
    [D, D], `i.mlp_norm` [D], `i.gate_up` [D, 2 I], `i.down` [I, D]; `norm` [D]; `head` [D, V]. The columns of `qkv`
    are grouped by key head, within a group the G queries, the key, the value; within queries and keys the two halves of
    a rotated pair stand side by side, so that a rotation is one complex product.
    """

    def __init__(
        self, weights: ParameterStack, layers: int, kv_heads: int, eps: float, theta: float, layout: Layout
    ) -> None:
        self.weights, self.layers, self.layout, self.runs = weights, layers, layout, weights.runs
        self._kv_heads = kv_heads
        embed, qkv = weights["embed"], weights["0.qkv"]
        dtype, device = embed.dtype, embed.device
        self._hidden = embed.shape[-1]
        groups = qkv.shape[-1] // kv_heads  # (G + 2) E
        heads = weights["0.o"].shape[1] // kv_heads  # G E
        self._head_dim = (groups - heads) // 2
        self._queries = heads // self._head_dim
        # Rotations and norms are computed in float32 at least: complex bfloat16 does not exist.
        self._exact = torch.float64 if dtype == torch.float64 else torch.float32
        self._kind: dict[str, Any] = {"dtype": self._exact, "device": device}
        self._eps = torch.tensor(eps, **self._kind)
        # Views of the weights that every step needs: norms as [R, 1, D], matrices transposed.
        self._rows = {name: view[:, None] for name, view in weights.items() if view.dim() == 2}
        self._transposed = {name: view.mT for name, view in weights.items() if view.dim() == 3}
        self._rotation = self._rotations(theta).to(device)
        self._back = self._rotation.conj().resolve_conj()
        visible = layout.visible
        self._mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf).to(device, dtype)
        rows_a_run = weights.parameter.shape[1] // self._hidden
        self._offsets = (torch.arange(self.runs, device=device) * rows_a_run)[:, None]  # `embed` stands first

    def _rotations(self, theta: float) -> Tensor:
        """Complex factors of queries, keys and values, [S, 1, G + 2, E / 2].

        Queries are scaled by 1/sqrt(E) on the way; values are multiplied by 1, which is cheaper than leaving them out.
        """
        inverse = theta ** -(torch.arange(0, self._head_dim, 2, dtype=self._exact) / self._head_dim)
        angle = torch.outer(self.layout.positions.to(self._exact), inverse)
        turn = torch.polar(torch.ones_like(angle), angle)
        parts = [turn * self._head_dim**-0.5] * self._queries + [turn, torch.ones_like(turn)]
        return torch.stack(parts, 1)[:, None]

    def bias(self, padding_RB: Tensor | None) -> list[Tensor]:
        """What is added to the attention scores of all layers but the last, and of the last, [R B H, G ., S].

        padding_RB: how many prompt columns of each row are padding; None where none is.
        """
        masks = [self._mask, self._mask[self.layout.first :]]
        if padding_RB is None:
            return [mask.repeat(self._queries, 1) for mask in masks]
        columns = torch.arange(self.layout.columns, device=padding_RB.device)
        hidden = HIDDEN * (columns < padding_RB[..., None]).to(self._mask.dtype)  # [R, B, S]
        hidden = hidden.reshape(-1, 1, 1, 1, self.layout.columns)
        return [
            (mask + hidden).expand(-1, self._kv_heads, self._queries, -1, -1).flatten(0, 1).flatten(1, 2)
            for mask in masks
        ]

    def logits(self, ids_RBS: Tensor, bias: list[Tensor]) -> Tensor:
        """Next-token logits of the columns from `layout.first` on, [R, B, C, V]."""
        flat: Tensor = _Logits.apply(self.weights.parameter, self, ids_RBS, bias)  # type: ignore[no-untyped-call]
        return flat.view(self.runs, ids_RBS.shape[1], -1, flat.shape[-1])

    def forward(self, ids_RBS: Tensor, bias: list[Tensor]) -> tuple[Tensor, list[Any]]:
        """Logits [R, B C, V], and what `backward` needs."""
        rows = ids_RBS.shape[1]
        at = (ids_RBS.flatten(1) + self._offsets).flatten()
        x = self.weights.parameter.detach().view(-1, self._hidden).index_select(0, at)
        x = x.view(self.runs, -1, self._hidden)
        kept = []
        for layer in range(self.layers):
            last = layer == self.layers - 1
            x, attention = self._attention(x, f"{layer}.", rows, bias[last], self.layout.first if last else 0)
            x, mlp = self._mlp(x, f"{layer}.")
            kept.append((attention, mlp))
        y, norm = self._norm(x, "norm")
        return torch.bmm(y, self.weights["head"]), [at, kept, y, norm]

    def backward(self, slope: Tensor, rows: int, saved: list[Any]) -> Tensor:
        """The gradient of all weights, laid out as `weights.parameter`, given the logits' [R, B C, V]."""
        at, kept, y, norm = saved
        flat, into = self.weights.gradient()
        torch.bmm(y.mT, slope, out=into["head"])
        dx = self._norm_back(torch.bmm(slope, self._transposed["head"]), norm, "norm", into)
        for layer in reversed(range(self.layers)):
            attention, mlp = kept[layer]
            first = self.layout.first if layer == self.layers - 1 else 0
            dx = self._mlp_back(dx, mlp, f"{layer}.", into)
            dx = self._attention_back(dx, attention, f"{layer}.", rows, first, into)
        into["embed"].zero_()
        flat.view(-1, self._hidden).index_add_(0, at, dx.view(-1, self._hidden))
        return flat

    def _norm(self, x: Tensor, name: str) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self._exact)
        scale = torch.addcmul(self._eps, size, size, value=1 / self._hidden).rsqrt_().to(x.dtype)
        unit = x * scale
        return unit * self._rows[name], (unit, scale)

    def _norm_back(
        self, dy: Tensor, norm: tuple[Tensor, Tensor], name: str, into: Grads, residual: Tensor | None = None
    ) -> Tensor:
        """Slope of the norm's input, plus that of the residual stream beside it."""
        unit, scale = norm
        product = dy * unit
        torch.sum(product, 1, out=into[name])
        # Not a batched product with the weight as its one column: that alone rounds differently in a stack of one.
        along = product.mul_(self._rows[name]).sum(-1, keepdim=True)
        dx = (dy * self._rows[name]).addcmul_(unit, along, value=-1 / self._hidden)
        return dx.mul_(scale) if residual is None else torch.addcmul(residual, dx, scale)

    def _turn(self, x: Tensor, by: Tensor, out: Tensor) -> None:
        """Write x times the complex factors `by`; both as [R B, S, H, G + 2, E], in any memory order."""
        pairs = [torch.view_as_complex(t.view(*t.shape[:-1], -1, 2)) for t in (x, out)]
        torch.mul(pairs[0], by, out=pairs[1])

    def _attention(self, x: Tensor, prefix: str, rows: int, bias: Tensor, first: int) -> tuple[Tensor, tuple[Any, ...]]:
        """Residual stream [R, B S, D] -> the same, [R, B C, D], of the columns from `first` on."""
        w, queries = self.weights, self._queries
        y, norm = self._norm(x, prefix + "norm")
        qkv = torch.bmm(y, w[prefix + "qkv"]).to(self._exact)
        batch, columns = self.runs * rows, self.layout.columns
        heads = torch.empty(batch, self._kv_heads, queries + 2, columns, self._head_dim, **self._kind)
        self._turn(qkv.view(batch, columns, self._kv_heads, queries + 2, -1), self._rotation, heads.movedim(3, 1))
        heads = heads.flatten(0, 1).to(x.dtype)
        q, k, v = heads[:, :queries, first:].flatten(1, 2), heads[:, queries], heads[:, queries + 1]
        weights = torch.baddbmm(bias, q, k.mT).softmax(-1)
        mixed = torch.bmm(weights, v).view(batch, self._kv_heads, queries, -1, self._head_dim)
        o = mixed.movedim(3, 1).reshape(self.runs, -1, self._hidden)
        if first:
            x = x.view(self.runs, rows, columns, -1)[:, :, first:].flatten(1, 2)
        return torch.baddbmm(x, o, w[prefix + "o"]), (y, norm, q, k, v, weights, o)

    def _attention_back(
        self, dx: Tensor, kept: tuple[Any, ...], prefix: str, rows: int, first: int, into: Grads
    ) -> Tensor:
        queries = self._queries
        batch, columns = self.runs * rows, self.layout.columns
        y, norm, q, k, v, weights, o = kept
        torch.bmm(o.mT, dx, out=into[prefix + "o"])
        do = torch.bmm(dx, self._transposed[prefix + "o"]).view(batch, columns - first, self._kv_heads, queries, -1)
        do = do.movedim(1, 3).reshape(q.shape)
        heads = torch.empty(
            batch * self._kv_heads, queries + 2, columns, self._head_dim, dtype=dx.dtype, device=dx.device
        )
        torch.bmm(weights.mT, do, out=heads[:, queries + 1])
        scores = torch._softmax_backward_data(torch.bmm(do, v.mT), weights, -1, weights.dtype)
        if first:
            heads[:, :queries, :first] = 0
            heads[:, :queries, first:] = torch.bmm(scores, k).view(len(k), queries, -1, self._head_dim)
        else:
            torch.bmm(scores, k, out=heads[:, :queries].flatten(1, 2))
        torch.bmm(scores.mT, q, out=heads[:, queries])
        turned = torch.empty(batch, columns, self._kv_heads, queries + 2, self._head_dim, **self._kind)
        heads = heads.to(self._exact).view(batch, self._kv_heads, *heads.shape[1:])
        self._turn(heads.movedim(3, 1), self._back, turned)
        qkv = turned.view(self.runs, rows * columns, -1).to(dx.dtype)
        torch.bmm(y.mT, qkv, out=into[prefix + "qkv"])
        if first:
            before = dx.new_zeros(self.runs, rows, first, self._hidden)
            dx = torch.cat([before, dx.view(self.runs, rows, columns - first, -1)], 2).flatten(1, 2)
        return self._norm_back(torch.bmm(qkv, self._transposed[prefix + "qkv"]), norm, prefix + "norm", into, dx)

    def _mlp(self, x: Tensor, prefix: str) -> tuple[Tensor, tuple[Any, ...]]:
        w = self.weights
        y, norm = self._norm(x, prefix + "mlp_norm")
        gate, up = torch.bmm(y, w[prefix + "gate_up"]).chunk(2, -1)
        passed = silu(gate)
        gated = passed * up
        return torch.baddbmm(x, gated, w[prefix + "down"]), (y, norm, gate, up, passed, gated)

    def _mlp_back(self, dx: Tensor, kept: tuple[Any, ...], prefix: str, into: Grads) -> Tensor:
        y, norm, gate, up, passed, gated = kept
        torch.bmm(gated.mT, dx, out=into[prefix + "down"])
        d_gated = torch.bmm(dx, self._transposed[prefix + "down"])
        both = torch.empty(*gate.shape[:2], 2 * gate.shape[2], dtype=dx.dtype, device=dx.device)
        d_gate, d_up = both.chunk(2, -1)
        torch.mul(d_gated, passed, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_gated.mul_(up), gate, grad_input=d_gate)
        torch.bmm(y.mT, both, out=into[prefix + "gate_up"])
        return self._norm_back(
            torch.bmm(both, self._transposed[prefix + "gate_up"]), norm, prefix + "mlp_norm", into, dx
        )


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, kernel: LlamaKernel, ids_RBS: Tensor, bias: list[Tensor]) -> Tensor:
        """`flat` is the kernel's own parameter, named so that autograd knows who wants the gradient."""
        logits, saved = kernel.forward(ids_RBS, bias)
        ctx.kernel, ctx.rows, ctx.saved = kernel, ids_RBS.shape[1], saved
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        saved, ctx.saved = ctx.saved, None  # freed as soon as it is used
        return ctx.kernel.backward(slope.contiguous(), ctx.rows, saved), None, None, None
