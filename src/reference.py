"""Reference log-probs: computed once, before the first update; those of large models are kept on disk."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from src.data.pairs import PairData
from src.logprobs import ReferenceLogps
from src.policy.base import Build, Policy, TokenLogps

CHUNK = 16  # prompts a forward pass; bounds memory, changes nothing else
FORMAT = 1  # of the files

log = logging.getLogger("src.reference")


class References:
    """The reference log-probs of the stacks that one process trains, one after another.

    Of policies that give a digest of their weights they are files too, named by a hash of all they follow from: runs
    and sweeps that share an output folder compute them once. What is known by another name (a beta, a path) is not
    looked at, and a file that is not what it should be is computed anew.

    Args:
        folder: where the files are; None: nowhere.
        memory: what was computed or read before, to share and to add to.
    """

    def __init__(self, folder: Path | None = None, memory: MutableMapping[Any, ReferenceLogps] | None = None) -> None:
        self._folder = folder
        self._memory: MutableMapping[Any, ReferenceLogps] = {} if memory is None else memory

    def of_stack(
        self,
        models: object,
        reference: Callable[[], Policy],
        parts: Sequence[Sequence[PairData]],
        build: Build,
        vocabulary: bool,
    ) -> ReferenceLogps:
        """What the references of a stack give every response of each run's pairs; never on disk.

        Args:
            models: tells references apart, together with the other arguments.
            reference: makes them, for all of each run's data.
            parts: these data. Each part is computed as it would be without the others.
            vocabulary: keep the whole next-token distributions too: 4 V bytes for each token of the data.
        """
        key = models, tuple(pairs.fingerprint for part in parts for pairs in part), vocabulary, build
        if key not in self._memory:
            policy, ends = reference(), list(accumulate(len(part[0]) for part in parts))
            rows = [range(end - len(part[0]), end) for end, part in zip(ends, parts, strict=True)]
            self._memory[key] = joined([logps_of(policy, each, build.device, vocabulary) for each in rows], dim=1)
        return self._memory[key]

    def of_weights(self, digest: str, policy: Policy, data: Sequence[PairData], build: Build) -> ReferenceLogps:
        """The same where every run's reference has the weights of this digest; for any data, by way of the disk."""
        keys = []
        for run, pairs in enumerate(data):
            facts = _facts(digest, pairs, build)
            key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
            keys.append(key)
            if key not in self._memory:
                mask = _mask_of(pairs)
                flat = self._kept(key, facts, int(mask.sum()), policy, run, pairs)
                values = torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat)
                self._memory[key] = ReferenceLogps(values[None].to(build.device), mask[None].to(build.device))
        of_runs = [self._memory[key] for key in keys]
        if len(set(keys)) == 1:
            whole = (len(data), -1, -1, -1)
            return ReferenceLogps(of_runs[0].values.expand(whole), of_runs[0].mask.expand(whole))
        return joined(of_runs, dim=0)

    def _kept(
        self, key: str, facts: Mapping[str, str], tokens: int, policy: Policy, run: int, pairs: PairData
    ) -> Tensor:
        """Read or computed: a number for each response token, in the order prompt, response, token."""
        if self._folder is None:
            return _computed(policy, run, pairs)
        file = self._folder / f"{key[:32]}.safetensors"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            held = FileLock(file.with_suffix(".lock")).acquire()  # another process may be computing the same
        except OSError as error:
            log.warning("reference log-probs are not kept: %s", error)
            return _computed(policy, run, pairs)
        with held:
            flat = _read(file, facts, tokens)
            if flat is None:
                flat = _computed(policy, run, pairs)
                _write(file, facts, flat)
            return flat


def _facts(digest: str, pairs: PairData, build: Build) -> dict[str, str]:
    """All that the numbers follow from. Ids and lengths are those after truncation and say where responses begin."""
    return {
        "format": str(FORMAT),
        "weights": digest,
        "tokens": pairs.fingerprint,
        "responses": str(pairs.ranks),
        "shifted": str(build.shifted),
        "dtype": str(build.dtype),
        "autocast": str(build.autocast),
        "device": build.device.type,
    }


def _mask_of(pairs: PairData) -> Tensor:
    """True on response tokens, [P, K, T]."""
    lengths = torch.from_numpy(pairs.lengths)
    return torch.arange(int(lengths.max())) < lengths[..., None]


@torch.no_grad()
def _computed(policy: Policy, run: int, pairs: PairData) -> Tensor:
    flat = []
    for start in range(0, len(pairs), CHUNK):
        logps = policy.rescore(run, pairs.take(range(start, min(start + CHUNK, len(pairs)))), reference=True)
        flat.append(logps.values[logps.mask.expand_as(logps.values)].cpu())
    return torch.cat(flat)


def _read(file: Path, facts: Mapping[str, str], tokens: int) -> Tensor | None:
    """None where there is no such file, or not what it says it is."""
    try:
        with safe_open(file, framework="pt") as opened:
            said: Mapping[str, str] = opened.metadata() or {}
            flat: Tensor = opened.get_tensor("logps")
        if {name: said.get(name) for name in facts} != facts:
            wrong = "it is of something else"
        elif flat.shape != (tokens,):
            wrong = f"it has shape {tuple(flat.shape)} for {tokens} response tokens"
        elif said.get("sha256") != _sha256(flat):
            wrong = "its numbers are not those that were written"
        else:
            return flat
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        wrong = " ".join(str(error).split())
    log.warning("%s is computed again: %s", file, wrong)
    return None


def _write(file: Path, facts: Mapping[str, str], flat: Tensor) -> None:
    """Under a temporary name, then renamed; nothing where the disk does not take it, or the numbers are of no use."""
    if not bool(flat.isfinite().all()):
        return
    temporary = file.with_name(f".{file.stem}.{os.getpid()}")
    try:
        save_file({"logps": flat}, temporary, metadata={**facts, "sha256": _sha256(flat)})
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        log.warning("reference log-probs are not kept: %s", " ".join(str(error).split()))


def _sha256(flat: Tensor) -> str:
    return hashlib.sha256(flat.contiguous().numpy().tobytes()).hexdigest()


@torch.no_grad()
def logps_of(policy: Policy, rows: Sequence[int], device: torch.device, vocabulary: bool = False) -> ReferenceLogps:
    """What `policy` gives the responses of these rows of each run's data as it stands, a few at a time: [R, P, K, T].

    vocabulary: keep the whole next-token distributions too, [R, P, K, T, V].
    """
    chunks: list[TokenLogps] = []
    for start in range(0, len(rows), CHUNK):
        index = torch.tensor(rows[start : start + CHUNK], device=device)
        chunks.append(policy.token_logps(index.expand(policy.runs, -1), vocabulary))
    return joined([ReferenceLogps(c.values, c.mask.expand_as(c.values), c.log_pi) for c in chunks], dim=1)


def joined(parts: Sequence[ReferenceLogps], dim: int) -> ReferenceLogps:
    """Side by side in `dim` (0: runs, 1: prompts), padded to the widest of them."""
    width = max(part.values.shape[-1] for part in parts)

    def join(tensors: list[Tensor], trailing: int = 0) -> Tensor:
        """Pad the token dimension, which `trailing` others follow, to a common width."""
        padding = [0] * 2 * trailing
        return torch.cat([pad(x, (*padding, 0, width - x.shape[-1 - trailing])) for x in tensors], dim)

    whole = [part.log_pi for part in parts if part.log_pi is not None]
    return ReferenceLogps(
        join([part.values for part in parts]),
        join([part.mask for part in parts]),
        join(whole, trailing=1) if whole else None,
    )
