"""The toy Llama on written pairs: maximum likelihood first, then a preference loss; and the CHES scores of pairs."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from experiments.study import ROOT
from src.config import RunConfig, run_config
from src.data.pairs import Ids, PairData
from src.policy.base import Build
from src.train import train_stack

Array = npt.NDArray[np.float64]
CPU = torch.device("cpu")
MODEL = "model.hidden_size=64 model.intermediate_size=128 tracking=none"
VOCABULARY = 32
COLUMNS = ("loss", "log_ratios/chosen", "log_ratios/rejected", "log_pi/chosen")
History = Mapping[str, Array]


def configured(overrides: str) -> RunConfig:
    """One run of the toy Llama; overrides as on the command line."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return run_config(compose("config", overrides=[*MODEL.split(), *overrides.split()]))[0]


def with_seed(run: RunConfig, seed: int, path: Path | None = None) -> RunConfig:
    """The same run of another model: its weights drawn from `seed`, or those in the folder `path`."""
    own = dict(run.model.params) | {"seed": seed} | ({"path": str(path)} if path else {})
    return replace(run, seed=seed, model=replace(run.model, params=own))


def trained(runs: Sequence[RunConfig], data: Sequence[PairData]) -> list[History]:
    """The histories of runs that are trained together: `COLUMNS`, each [steps]."""
    parts: dict[int, list[Mapping[str, Array]]] = {}
    train_stack(runs, data, lambda run, columns: parts.setdefault(run, []).append(columns), CPU)
    return [{name: np.concatenate([part[name] for part in parts[run]]) for name in COLUMNS} for run in range(len(runs))]


def after_likelihood(
    sft: RunConfig, losses: Sequence[RunConfig], pairs: Sequence[PairData], seeds: Sequence[int]
) -> list[list[History]]:
    """Model i, of seeds[i], learns both responses of pairs[i] by maximum likelihood; then each loss trains it on the
    pair, with that model as the reference: [models][losses]. Pairs must have the same shape.
    """
    both = [PairData(pair.prompts * 2, tuple((response,) for response in pair.responses[0])) for pair in pairs]
    with tempfile.TemporaryDirectory() as folder:
        _, policy = train_stack([with_seed(sft, seed) for seed in seeds], both, lambda *_: None, CPU)
        folders = [Path(folder) / str(i) for i in range(len(seeds))]
        for i, to in enumerate(folders):
            policy.save(i, to)
        runs = [with_seed(loss, seed, to) for loss in losses for seed, to in zip(seeds, folders, strict=True)]
        found = trained(runs, [*pairs] * len(losses))
    return [found[i :: len(seeds)] for i in range(len(seeds))]


def random_pair(generator: np.random.Generator, chosen: int, rejected: int, shared: float) -> PairData:
    """Uniform tokens; responses of so many, equal in each place with probability `shared`. They are never the same."""
    prompt = tuple(generator.integers(VOCABULARY, size=4).tolist())
    longest = max(chosen, rejected)
    while True:
        first = generator.integers(VOCABULARY, size=longest)
        second = np.where(generator.random(longest) < shared, first, generator.integers(VOCABULARY, size=longest))
        one, other = tuple(first[:chosen].tolist()), tuple(second[:rejected].tolist())
        if one != other:
            return PairData((prompt,), ((one, other),))


def ches(sums_chosen: Array, sums_rejected: Array) -> float:
    """CHES = <S+, S-> - |S+|^2, S the sum of the last hidden states from which a response's tokens are predicted.

    Razin et al. 2024 (arXiv 2410.08847). [D], [D]. Large: the rejected response pulls chosen down with it.
    """
    return float(sums_chosen @ sums_rejected - sums_chosen @ sums_chosen)


def hidden_sums(run: RunConfig, pairs: Sequence[PairData]) -> list[tuple[Array, Array]]:
    """S [D] of chosen and of rejected, for the run's untrained model, by transformers' Llama with its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = run.model.build()
    with tempfile.TemporaryDirectory() as folder:
        spec.stack([spec], pairs[:1], Build(CPU, torch.float32)).save(0, Path(folder) / "model")
        model: Any = LlamaForCausalLM(LlamaConfig.from_pretrained(Path(folder) / "model"))
        model.load_state_dict(load_file(Path(folder) / "model" / "model.safetensors"))

    def summed(prompt: Ids, response: Ids) -> Array:
        with torch.no_grad():
            states = model.model(torch.tensor([prompt + response])).last_hidden_state[0]
        # The last of the prompt predicts the first token; the last token predicts nothing.
        return np.asarray(states[len(prompt) - 1 : len(prompt) + len(response) - 1].sum(0).double())

    return [(summed(pair.prompts[0], pair.chosen[0]), summed(pair.prompts[0], pair.rejected[0])) for pair in pairs]
