"""A Llama with the run dimension in front of every weight, in plain torch.

The same function as transformers' LlamaForCausalLM (a test holds them together), but R runs in one batched product,
float64 all the way through when asked for, and no import of transformers.

Shapes: R runs, N rows of a batch (K a prompt), S positions, D hidden, H heads, V vocabulary, T response tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention, silu

from src.data.pairs import PairData
from src.errors import BadInput
from src.policy.base import Build, TokenLogps, pad_ids
from src.policy.parameters import ParameterStack

Size = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class TinyLlama:
    """Configuration, in transformers' names; see conf/model/tiny_llama.yaml."""

    block: ClassVar[int] = 8  # more runs than this leave a CPU's cache
    threads: ClassVar[int | None] = 1  # its products are too small to split; two threads that share a core crawl

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    rms_norm_eps: Annotated[float, Gt(0)]
    rope_theta: Annotated[float, Gt(0)]
    initializer_range: Annotated[float, Gt(0)]
    init: Literal["copy", "independent"]
    path: str | None
    seed: Annotated[int, Ge(0)]

    @classmethod
    def stack(cls, specs: Sequence["TinyLlama"], data: Sequence[PairData], build: Build) -> "TinyLlamaPolicy":
        """As `ModelSpec.stack`."""
        own = specs[0].init == "independent" and build.role != "reference"
        weights = [spec._weights("policy" if own else "reference") for spec in specs]
        if build.role == "reward_model":
            weights = [w | spec._scalar_head() for w, spec in zip(weights, specs, strict=True)]
        return TinyLlamaPolicy(specs[0], weights, data, build)

    def tokenizer(self) -> Any:
        raise BadInput("model=tiny_llama has no tokenizer: text data need model=pretrained or model=smollm2")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's shape by transformers' name, in transformers' [out, in] layout."""
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise BadInput(
                f"model.num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size} "
                f"and be a multiple of num_key_value_heads={self.num_key_value_heads}"
            )
        d, i = self.hidden_size, self.intermediate_size
        kv = d // self.num_attention_heads * self.num_key_value_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, d)}
        for layer in range(self.num_hidden_layers):
            of_layer = {
                "input_layernorm": (d,),
                "self_attn.q_proj": (d, d),
                "self_attn.k_proj": (kv, d),
                "self_attn.v_proj": (kv, d),
                "self_attn.o_proj": (d, d),
                "post_attention_layernorm": (d,),
                "mlp.gate_proj": (i, d),
                "mlp.up_proj": (i, d),
                "mlp.down_proj": (d, i),
            }
            shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
        return shapes | {"model.norm.weight": (d,), "lm_head.weight": (self.vocab_size, d)}

    def _scalar_head(self) -> dict[str, Tensor]:
        """transformers' LlamaForSequenceClassification with one label."""
        generator = torch.Generator().manual_seed(2 * self.seed)
        return {"score.weight": self.initializer_range * torch.randn(1, self.hidden_size, generator=generator)}

    def _weights(self, role: Literal["reference", "policy"]) -> dict[str, Tensor]:
        """Norms at 1, all else N(0, initializer_range^2) as in transformers; each role has its own random stream."""
        if self.path is not None and role == "reference":
            return self._load(Path(self.path))
        generator = torch.Generator().manual_seed(2 * self.seed + (role == "policy"))
        return {
            name: torch.ones(shape)
            if "norm" in name
            else self.initializer_range * torch.randn(shape, generator=generator)
            for name, shape in self.shapes().items()
        }

    def _load(self, folder: Path) -> dict[str, Tensor]:
        file = folder / "model.safetensors"
        if not file.is_file():
            raise BadInput(f"model.path={folder}: no model.safetensors there")
        weights = load_file(file)
        found = {name: tuple(w.shape) for name, w in weights.items()}
        if found != self.shapes():
            wrong = sorted(k for k in found.keys() | self.shapes().keys() if found.get(k) != self.shapes().get(k))
            raise BadInput(
                f"model.path={folder}: {wrong[0]} is {found.get(wrong[0])}, this configuration needs "
                f"{self.shapes().get(wrong[0])} ({len(wrong)} such weights)"
            )
        return weights

    def hf_config(self) -> dict[str, Any]:
        """transformers' config.json for the same model."""
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps", "initializer_range")  # fmt: skip
        return {name: getattr(self, name) for name in names} | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": False,
        }


class TinyLlamaPolicy:
    """R Llamas and the rows of their data, ready to be indexed."""

    def __init__(
        self,
        spec: TinyLlama,
        weights: list[dict[str, Tensor]],
        data: Sequence[PairData],
        build: Build,
    ) -> None:
        device, dtype, shifted = build.device, build.dtype, build.shifted
        self.runs = len(weights)
        self.spec = spec
        self._weights = ParameterStack.of([_transposed(w) for w in weights], device, dtype)
        self._run = torch.arange(self.runs, device=device)[:, None]
        self._head = "score" if "score.weight" in self._weights else "lm_head"
        rows = _Rows.of(data, spec, shifted, device)
        self._ids, self._source, self._target, self._mask = rows.ids, rows.source, rows.target, rows.mask
        self._row_ends = rows.source[..., 0] + int(shifted) + rows.mask.sum(-1) - 1  # position of the last token
        self._cos, self._sin = _rope_tables(spec, self._ids.shape[-1], device, dtype)

    def parameters(self) -> Sequence[Tensor]:
        return list(self._weights.values())

    def exact_metrics(self) -> dict[str, Tensor]:
        return {}

    def token_logps(self, index_RB: Tensor, vocabulary: bool = False) -> TokenLogps:
        runs = index_RB.shape[0]
        ids_RNS = self._ids[self._run, index_RB].flatten(1, 2)
        source_RNT = self._source[self._run, index_RB].flatten(1, 2)
        if self._head == "score":
            return self._rewards(ids_RNS, index_RB)
        target_RNT = self._target[self._run, index_RB].flatten(1, 2)
        mask = self._mask[self._run, index_RB]
        logits_RMV = self.logits(ids_RNS, source_RNT)
        if logits_RMV.dtype != torch.float64:
            logits_RMV = logits_RMV.float()
        log_pi_RMV = logits_RMV.log_softmax(-1)
        values = log_pi_RMV.gather(-1, target_RNT.reshape(runs, -1, 1)).view(mask.shape)
        whole = log_pi_RMV.view(*mask.shape, -1) if vocabulary else None
        return TokenLogps(values.masked_fill(~mask, 0), mask, whole)

    def _rewards(self, ids_RNS: Tensor, index_RB: Tensor) -> TokenLogps:
        """A reward model's output at the last token of each response, as if it were the response's log-prob."""
        last_RBK = self._row_ends[self._run, index_RB]
        rewards = self.logits(ids_RNS, last_RBK.flatten(1, 2)[..., None]).view(*last_RBK.shape, 1)
        return TokenLogps(rewards, torch.ones_like(rewards, dtype=torch.bool))

    def logits(self, ids_RNS: Tensor, positions_RNT: Tensor) -> Tensor:
        """Next-token logits [R, N*T, V] at the given positions of right-padded rows; a reward model's, with V = 1."""
        w, spec = self._weights, self.spec
        runs, rows, length = ids_RNS.shape
        table = w["model.embed_tokens.weight"]
        offsets = self._run[:, :, None] * spec.vocab_size
        x = embedding(ids_RNS + offsets, table.view(-1, spec.hidden_size)).view(runs, rows * length, -1)
        for layer in range(spec.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            x = x + self._attention(prefix + "self_attn.", self._norm(x, prefix + "input_layernorm"), rows)
            y = self._norm(x, prefix + "post_attention_layernorm")
            gated = silu(self._linear(y, prefix + "mlp.gate_proj")) * self._linear(y, prefix + "mlp.up_proj")
            x = x + self._linear(gated, prefix + "mlp.down_proj")
        # Only response positions go through the last norm and the head.
        flat = (positions_RNT + length * torch.arange(rows, device=x.device)[None, :, None]).flatten(1)
        x = x.gather(1, flat[..., None].expand(-1, -1, spec.hidden_size))
        return self._linear(self._norm(x, "model.norm"), self._head)

    def _linear(self, x_RMI: Tensor, name: str) -> Tensor:
        return torch.bmm(x_RMI, self._weights[f"{name}.weight"])

    def _norm(self, x_RMD: Tensor, name: str) -> Tensor:
        """RMSNorm. Zhang & Sennrich 2019, arXiv 1910.07467."""
        scale = torch.rsqrt(x_RMD.square().mean(-1, keepdim=True) + self.spec.rms_norm_eps)
        return x_RMD * scale * self._weights[f"{name}.weight"][:, None]

    def _attention(self, prefix: str, x_RMD: Tensor, rows: int) -> Tensor:
        heads, kv_heads = self.spec.num_attention_heads, self.spec.num_key_value_heads
        runs, length = x_RMD.shape[0], x_RMD.shape[1] // rows

        def split(name: str, n: int) -> Tensor:
            return self._linear(x_RMD, prefix + name).view(runs * rows, length, n, -1).transpose(1, 2)

        q, k = self._rotate(split("q_proj", heads)), self._rotate(split("k_proj", kv_heads))
        # Padding is on the right, where a causal mask already keeps every real token from seeing it.
        out = scaled_dot_product_attention(
            q, k, split("v_proj", kv_heads), is_causal=True, enable_gqa=heads != kv_heads
        )
        return self._linear(out.transpose(1, 2).reshape(runs, rows * length, -1), prefix + "o_proj")

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotary positions. Su et al. 2021, arXiv 2104.09864, in the half-split layout of transformers."""
        length = x.shape[-2]
        first, second = x.chunk(2, dim=-1)
        return x * self._cos[:length] + torch.cat((-second, first), dim=-1) * self._sin[:length]

    def save(self, run: int, folder: Path) -> None:
        """Write one run as a folder that transformers' `from_pretrained` opens."""
        folder.mkdir()
        save_file(_transposed(self._weights.of_run(run)), folder / "model.safetensors", metadata={"format": "pt"})
        config = self.spec.hf_config()
        if self._head == "score":
            config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "pad_token_id": 0}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _transposed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Between transformers' [out, in] matrices and ours, [in, out]; its own inverse.

    In x @ W the gradient of W comes out of the product contiguous in [in, out]. Kept the other way round, autograd
    copies every weight's gradient each step, which was 40 % of a step's time.
    """
    return {name: w.T.contiguous() if w.dim() == 2 and "embed_tokens" not in name else w for name, w in weights.items()}


@dataclass(frozen=True)
class _Rows:
    """ids [R, P, K, S]; source, target, mask of each response token [R, P, K, T]. Shared data are broadcast over R."""

    ids: Tensor
    source: Tensor
    target: Tensor
    mask: Tensor

    @classmethod
    def of(cls, data: Sequence[PairData], spec: TinyLlama, shifted: bool, device: torch.device) -> "_Rows":
        shared = all(pairs is data[0] for pairs in data)
        per_run = [cls._of_one(pairs, spec, shifted) for pairs in (data[:1] if shared else data)]

        def join(tensors: list[Tensor]) -> Tensor:
            stacked = torch.stack(tensors).to(device)
            return stacked.expand(len(data), *stacked.shape[1:])

        return cls(*(join(list(group)) for group in zip(*per_run, strict=True)))

    @staticmethod
    def _of_one(pairs: PairData, spec: TinyLlama, shifted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prompts = [prompt for prompt in pairs.prompts for _ in range(pairs.ranks)]
        responses = [ids for ranked in pairs.responses for ids in ranked]
        highest = max(max(ids, default=0) for ids in (*prompts, *responses))
        if highest >= spec.vocab_size:
            raise BadInput(f"model.vocab_size={spec.vocab_size} is too small: the data use token id {highest}")
        if shifted and any(not prompt for prompt in prompts):
            raise BadInput("a prompt is empty: the first response token has nothing to be predicted from")
        ids, _ = pad_ids([p + r for p, r in zip(prompts, responses, strict=True)])
        target, mask = pad_ids(responses)
        first = torch.tensor([len(prompt) for prompt in prompts])[:, None] - int(shifted)
        source = (first + torch.arange(target.shape[1])).clamp(max=ids.shape[1] - 1)
        shape = (len(pairs), pairs.ranks, -1)
        return ids.view(shape), source.view(shape), target.view(shape), mask.view(shape)


def _rope_tables(spec: TinyLlama, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, [S, head_dim]; float64 where the model is, float32 otherwise."""
    head_dim = spec.hidden_size // spec.num_attention_heads
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    inverse = spec.rope_theta ** -(torch.arange(0, head_dim, 2, dtype=exact) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=exact), inverse).repeat(1, 2)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)
