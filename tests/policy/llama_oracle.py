"""A Llama as plain as can be: one sequence at a time, autograd, transformers' names and [out, in] matrices."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import silu

from src.policy.tiny_llama import TinyLlama

Weights = Mapping[str, Tensor]


def token_log_pi(
    w: Weights, spec: TinyLlama, prompt: tuple[int, ...], response: tuple[int, ...], shifted: bool
) -> Tensor:
    """The distribution [T, V] that each response token is read from, in nats."""
    logits = hidden(w, spec, (*prompt, *response)) @ w["lm_head.weight"].T
    first = len(prompt) - int(shifted)
    return logits[first : first + len(response)].log_softmax(-1)


def hidden(w: Weights, spec: TinyLlama, ids: tuple[int, ...]) -> Tensor:
    """Last hidden states [S, D] after the last norm."""
    heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
    size = spec.hidden_size // heads
    length = len(ids)
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + spec.rms_norm_eps).sqrt() * weight

    def rotated(x: Tensor) -> Tensor:
        """x [S, size]: dimensions i and i + size/2 turn by position times theta^(-2i / size)."""
        inverse = spec.rope_theta ** -(torch.arange(0, size, 2, dtype=x.dtype) / size)
        angle = torch.arange(length, dtype=x.dtype)[:, None] * inverse
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(spec.num_hidden_layers):
        of = {name.removeprefix(p): v for name, v in w.items() if name.startswith(p := f"model.layers.{layer}.")}
        y = norm(x, of["input_layernorm.weight"])
        q, k, v = (y @ of[f"self_attn.{name}_proj.weight"].T for name in "qkv")
        mixed = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            mine, theirs = slice(head * size, (head + 1) * size), slice(shared * size, (shared + 1) * size)
            scores = rotated(q[:, mine]) @ rotated(k[:, theirs]).T / size**0.5
            mixed.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, theirs])
        x = x + torch.cat(mixed, -1) @ of["self_attn.o_proj.weight"].T
        y = norm(x, of["post_attention_layernorm.weight"])
        gated = silu(y @ of["mlp.gate_proj.weight"].T) * (y @ of["mlp.up_proj.weight"].T)
        x = x + gated @ of["mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"])
