"""A Llama with the run dimension in front of every weight, in plain torch.

The same function as transformers' LlamaForCausalLM (a test holds them together), but R runs in one batched product,
float64 all the way through when asked for, and no import of transformers.

Shapes: R runs, P prompts, B of them in a batch, K responses of each, T tokens of a response, S columns of a row and C
of them with logits (`src.policy.llama_kernel.Layout`), D hidden, H key heads, E head dimension, V vocabulary.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.data.pairs import Ids, PairData
from src.errors import BadInput
from src.policy.base import Build, TokenLogps, pad_ids, refuse_what_others_have
from src.policy.llama_kernel import Layout, LlamaKernel
from src.policy.parameters import ParameterStack

Size = Annotated[int, Ge(1)]

LAYER_WEIGHTS = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TinyLlama:
    """Configuration, in transformers' names; see conf/model/tiny_llama.yaml."""

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

    @property
    def block(self) -> int:
        """32 MiB of weights, at least 8 and at most 32 runs: what trained fastest (docs/LOG.md has the table)."""
        return min(32, max(8, 2**25 // (4 * sum(math.prod(shape) for shape in self.shapes().values()))))

    @classmethod
    def stack(cls, specs: Sequence["TinyLlama"], data: Sequence[PairData], build: Build) -> "TinyLlamaPolicy":
        """As `ModelSpec.stack`."""
        refuse_what_others_have(build, "tiny_llama")
        own = specs[0].init == "independent" and build.role != "reference"
        weights = [spec._weights("policy" if own else "reference") for spec in specs]
        if build.role == "reward_model":
            weights = [w | spec._scalar_head() for w, spec in zip(weights, specs, strict=True)]
        return TinyLlamaPolicy(specs, weights, data, build)

    def tokenizer(self) -> Any:
        raise BadInput("model=tiny_llama has no tokenizer: text data need model=pretrained or model=smollm2")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def grouped_heads(self, kind: str) -> tuple[int, int, int]:
        """Key and value heads, heads of `kind` (q, k or v) that go with each, and their size."""
        of_each = self.num_attention_heads // self.num_key_value_heads if kind == "q" else 1
        return self.num_key_value_heads, of_each, self.head_dim

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's shape by transformers' name, in transformers' [out, in] layout."""
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise BadInput(
                f"model.num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size} "
                f"and be a multiple of num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise BadInput(
                f"model.hidden_size={self.hidden_size} over num_attention_heads={self.num_attention_heads} gives "
                f"{self.head_dim} numbers a head: rotary positions need an even number"
            )
        d, i = self.hidden_size, self.intermediate_size
        kv = self.head_dim * self.num_key_value_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, d)}
        for layer in range(self.num_hidden_layers):
            of_layer = ((d,), (d, d), (kv, d), (kv, d), (d, d), (d,), (i, d), (i, d), (d, i))
            names = (f"model.layers.{layer}.{name}.weight" for name in LAYER_WEIGHTS)
            shapes |= dict(zip(names, of_layer, strict=True))
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

    notes: Sequence[str] = ()

    def __init__(
        self,
        specs: Sequence[TinyLlama],
        weights: list[dict[str, Tensor]],
        data: Sequence[PairData],
        build: Build,
    ) -> None:
        self.runs, self.spec = len(weights), (spec := specs[0])
        self._specs, self._build = specs, build
        self._scalar = build.role == "reward_model"
        # A reward is read off a response's last token itself, as unshifted log-probs are off every token.
        shifted = build.shifted and not self._scalar
        rows = _Rows.of(data, spec, shifted, build.device)
        self._rows, self._layout = rows, rows.layout
        stack = ParameterStack([fuse(w, spec) for w in weights], build.device, build.dtype, spec.hidden_size)
        self._kernel = LlamaKernel(
            stack, spec.num_hidden_layers, spec.num_key_value_heads, spec.rms_norm_eps, spec.rope_theta, rows.layout
        )
        self._batch: tuple[Tensor, _Batch] | None = None
        self._run = torch.arange(self.runs, device=build.device)[:, None]

    def parameters(self) -> Sequence[Tensor]:
        return [self._kernel.weights.parameter]

    def watched(self) -> dict[str, Tensor]:
        return {}

    def exact_metrics(self, watched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def token_logps(self, index_RB: Tensor, vocabulary: bool = False, step: int | None = None) -> TokenLogps:
        batch = self._rows_of(index_RB)
        logits_RBCV = self._kernel.logits(batch.ids, batch.bias)
        if logits_RBCV.dtype != torch.float64:
            logits_RBCV = logits_RBCV.float()
        if self._scalar:
            rewards = logits_RBCV[..., 0].gather(-1, batch.ends)[..., None]
            return TokenLogps(rewards, torch.ones_like(rewards, dtype=torch.bool))
        log_pi_RBCV = logits_RBCV.log_softmax(-1)
        values = log_pi_RBCV.flatten(2).gather(-1, batch.targets).view(batch.mask.shape)
        if not batch.full:
            values = values.masked_fill(~batch.mask, 0)
        whole = None
        if vocabulary:
            whole = log_pi_RBCV.index_select(2, self._rows.sources.flatten()).view(*batch.mask.shape, -1)
        return TokenLogps(values, batch.mask, whole)

    def _rows_of(self, index_RB: Tensor) -> "_Batch":
        """The batch's rows; those of the batch before, where the caller hands over the same index again."""
        if self._batch is None or self._batch[0] is not index_RB:
            rows = self._rows
            ids, targets, mask, ends = (x[self._run, index_RB] for x in (rows.ids, rows.targets, rows.mask, rows.ends))
            padding = None if rows.padding is None else rows.padding[self._run, index_RB]
            batch = _Batch(ids, targets.flatten(2), mask, ends, self._kernel.bias(padding), bool(mask.all()))
            self._batch = index_RB, batch
        return self._batch[1]

    def weights_digest(self) -> None:
        return None

    @torch.no_grad()
    def sample(self, run: int, prompts: Sequence[Ids], max_new_tokens: int, temperature: float, seed: int) -> list[Ids]:
        """As `Policy.sample`; the model knows no end of sequence. Every token computes the whole row again."""
        generator = torch.Generator().manual_seed(seed)
        weights = self._weights_of(run)
        answers: list[Ids] = [()] * len(prompts)
        every = torch.arange(len(prompts), device=self._build.device)[None]
        for _ in range(max_new_tokens):
            seen = tuple((*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True))
            alone = TinyLlamaPolicy([self.spec], [weights], [PairData(seen, (((0,),),) * len(seen))], self._build)
            log_pi = alone.token_logps(every, vocabulary=True).log_pi
            assert log_pi is not None
            probs = (log_pi[0, :, 0, 0].double().cpu() / temperature).softmax(-1)
            drawn = torch.multinomial(probs, 1, generator=generator)[:, 0].tolist()
            answers = [(*answer, token) for answer, token in zip(answers, drawn, strict=True)]
        return answers

    @torch.no_grad()
    def rescore(self, run: int, data: PairData, reference: bool = False) -> TokenLogps:
        weights = self._specs[run]._weights("reference") if reference else self._weights_of(run)
        alone = TinyLlamaPolicy([self._specs[run]], [weights], [data], self._build)
        return alone.token_logps(torch.arange(len(data), device=self._build.device)[None])

    def _weights_of(self, run: int) -> dict[str, Tensor]:
        """In transformers' names."""
        return unfuse(self._kernel.weights.of_run(run), self.spec, "score" if self._scalar else "lm_head")

    def save(self, run: int, folder: Path) -> None:
        """Write one run as a folder that transformers' `from_pretrained` opens."""
        folder.mkdir()
        weights = self._weights_of(run)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = self.spec.hf_config()
        if self._scalar:
            config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "pad_token_id": 0}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def fuse(weights: Mapping[str, Tensor], spec: TinyLlama) -> dict[str, Tensor]:
    """From transformers' names and [out, in] matrices to those of `LlamaKernel`.

    x @ W needs [in, out] for W's gradient to come out of its product as it is stored.
    """
    fused = {"embed": weights["model.embed_tokens.weight"]}
    for layer in range(spec.num_hidden_layers):
        of = {name: weights[f"model.layers.{layer}.{name}.weight"] for name in LAYER_WEIGHTS}
        # [H, heads of the group, E, D]; E is the two halves that rotate into each other, and becomes pairs.
        q, k, v = (of[f"self_attn.{x}_proj"].reshape(*spec.grouped_heads(x), -1) for x in "qkv")
        q, k = (torch.stack(x.chunk(2, dim=2), 3).flatten(2, 3) for x in (q, k))
        fused |= {
            f"{layer}.norm": of["input_layernorm"],
            f"{layer}.qkv": torch.cat([q, k, v], 1).flatten(0, 2).T,
            f"{layer}.o": of["self_attn.o_proj"].T,
            f"{layer}.mlp_norm": of["post_attention_layernorm"],
            f"{layer}.gate_up": torch.cat([of["mlp.gate_proj"], of["mlp.up_proj"]]).T,
            f"{layer}.down": of["mlp.down_proj"].T,
        }
    head = weights["score.weight"] if "score.weight" in weights else weights["lm_head.weight"]
    return fused | {"norm": weights["model.norm.weight"], "head": head.T}


def unfuse(fused: Mapping[str, Tensor], spec: TinyLlama, head: str) -> dict[str, Tensor]:
    """The inverse of `fuse`."""
    weights = {"model.embed_tokens.weight": fused["embed"]}
    for layer in range(spec.num_hidden_layers):
        groups = fused[f"{layer}.qkv"].T.reshape(spec.num_key_value_heads, -1, spec.head_dim, spec.hidden_size)
        q, k, v = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
        q, k = (torch.cat([x[:, :, ::2], x[:, :, 1::2]], 2) for x in (q, k))
        gate, up = fused[f"{layer}.gate_up"].T.chunk(2)
        of = {
            "input_layernorm": fused[f"{layer}.norm"],
            "self_attn.q_proj": q.flatten(0, 2),
            "self_attn.k_proj": k.flatten(0, 2),
            "self_attn.v_proj": v.flatten(0, 2),
            "self_attn.o_proj": fused[f"{layer}.o"].T,
            "post_attention_layernorm": fused[f"{layer}.mlp_norm"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": fused[f"{layer}.down"].T,
        }
        weights |= {f"model.layers.{layer}.{name}.weight": weight for name, weight in of.items()}
    weights |= {"model.norm.weight": fused["norm"], f"{head}.weight": fused["head"].T}
    return {name: weight.contiguous() for name, weight in weights.items()}


@dataclass(frozen=True)
class _Rows:
    """All P rows of each run, in the columns of `layout`; data that runs share are broadcast over R.

    Columns are counted among those with logits.
    ids [R, P, S]; sources [K, T]: the column that predicts each response token; targets [R, P, K, T]: where its logit
    stands in a row's C V; mask [R, P, K, T]; ends [R, P, K]: the column of each response's last token;
    padding [R, P]: columns before the prompt, None where no prompt has any.
    """

    layout: Layout
    sources: Tensor
    ids: Tensor
    targets: Tensor
    mask: Tensor
    ends: Tensor
    padding: Tensor | None

    @classmethod
    def of(cls, data: Sequence[PairData], spec: TinyLlama, shifted: bool, device: torch.device) -> "_Rows":
        shared = all(pairs is data[0] for pairs in data)
        different = data[:1] if shared else data
        prompt = max(len(ids) for pairs in different for ids in pairs.prompts)
        tokens = max(int(pairs.lengths.max()) for pairs in different)
        response = tokens - int(shifted)  # with the shift nothing follows a last token that it would have to predict
        layout = Layout(prompt, data[0].ranks, response, prompt - int(shifted))
        within = torch.arange(data[0].ranks)[:, None] * response + torch.arange(tokens)
        # With the shift, token 0 is predicted from the prompt's last column, token t from that of token t - 1.
        sources = within.masked_fill(torch.arange(tokens) == 0, 0) if shifted else within
        per_run = [cls._of_one(pairs, spec, layout, sources, shifted) for pairs in different]

        def join(tensors: tuple[Tensor, ...]) -> Tensor:
            stacked = torch.stack(tensors).to(device)
            return stacked.expand(len(data), *stacked.shape[1:])

        ids, targets, mask, ends, padding = (join(group) for group in zip(*per_run, strict=True))
        return cls(layout, sources.to(device), ids, targets, mask, ends, padding if bool(padding.any()) else None)

    @staticmethod
    def _of_one(
        pairs: PairData, spec: TinyLlama, layout: Layout, sources: Tensor, shifted: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        responses = [ids for ranked in pairs.responses for ids in ranked]
        highest = max(max(ids, default=0) for ids in (*pairs.prompts, *responses))
        if highest >= spec.vocab_size:
            raise BadInput(f"model.vocab_size={spec.vocab_size} is too small: the data use token id {highest}")
        if shifted and any(not prompt for prompt in pairs.prompts):
            raise BadInput("a prompt is empty: the first response token has nothing to be predicted from")
        target, mask = (x.view(len(pairs), *sources.shape) for x in pad_ids(responses, sources.shape[1]))
        padding = torch.tensor([layout.prompt - len(prompt) for prompt in pairs.prompts])
        prompts, _ = pad_ids(
            [(0,) * int(n) + tuple(ids) for n, ids in zip(padding, pairs.prompts, strict=True)], layout.prompt
        )
        ids = torch.cat([prompts, target[..., : layout.response].flatten(1)], 1)
        ends = sources[:, 0] + mask.sum(-1) - 1
        return ids, target + sources * spec.vocab_size, mask, ends, padding


@dataclass(frozen=True)
class _Batch:
    """Rows of a batch: as `_Rows`, with B for P and targets [R, B, K T]; `full`: no response is padded."""

    ids: Tensor
    targets: Tensor
    mask: Tensor
    ends: Tensor
    bias: list[Tensor]
    full: bool
