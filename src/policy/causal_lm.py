"""Log-probs of responses under a transformers model: rows in, one number a response token out.

Legend: R runs with B prompts of K responses each, T response tokens, V vocabulary; N rows of C columns and M positions
at which a response token is predicted (`src.policy.packing`).
"""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from src.compute import Compute
from src.data.pairs import Ids
from src.policy.adapters import Lanes
from src.policy.attention import BY_SEGMENT, Kind, inputs_for, register
from src.policy.base import TokenLogps, pad_ids
from src.policy.packing import Layout, Ranked, lay_out, micro_batches, segments_of

# Architectures whose log-probs in shared rows are tested to be those of one response at a time, and whose logits are
# the output layer applied to the last hidden state; others get a padded row for each response and their own forward.
PACKABLE = frozenset({"gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"})


class CausalLM:
    """A model and the way its input is laid out. The model is in eval mode: its own dropout is off."""

    def __init__(
        self, model: Any, compute: Compute, lanes: Lanes, *, shifted: bool = True, autocast: torch.dtype | None = None
    ) -> None:
        self.model, self._lanes = model.eval(), lanes
        self._compute, self._shifted, self._autocast = compute, shifted, autocast
        self._exact = _is_exact(model.config)
        self._share, self._pack = compute.share_prompts and self._exact, compute.pack and self._exact
        self._late_head = compute.response_head and self._exact
        self._kind: Kind = "segments" if compute.attention == "auto" else compute.attention
        own = model.config._attn_implementation
        # A model that was computed with before stands on what was asked of it then.
        self._own_implementation = "sdpa" if own in (BY_SEGMENT, "flex_attention") else own
        self._accepts = set(inspect.signature(model.forward).parameters)
        if compute.checkpoint_activations:
            _checkpoint_layers(model)

    @property
    def notes(self) -> list[str]:
        """What was asked for and cannot be had of this model."""
        if self._exact or not (self._compute.share_prompts or self._compute.pack):
            return []
        kind = self.model.config.model_type
        return [
            f"{kind} is not known to keep its log-probs when prompts are shared and rows packed: every response gets a "
            "padded row of its own"
        ]

    def token_logps(
        self, runs: Sequence[Sequence[Ranked]], vocabulary: bool = False, noise: tuple[int, ...] | None = None
    ) -> TokenLogps:
        """log pi of the response tokens of R batches.

        Args:
            noise: what dropout depends on; None: no dropout.

        Returns:
            values [R, B, K, T], and log_pi [R, B, K, T, V] where asked for: at least float32.
        """
        mask = response_mask(runs).to(self.model.device)
        _, batch, ranks, width = mask.shape
        segments = [segments_of(run, share_prompts=self._share) for run in runs]
        parts = list(micro_batches(segments, self._compute.max_tokens, pack=self._pack, shifted=self._shifted))
        flat, whole, places = [], [], []
        for number, part in enumerate(parts):
            layout = lay_out(part, width, ranks, batch, pack=self._pack, shifted=self._shifted)
            arguments = (layout, vocabulary, None if noise is None else (*noise, number))
            if len(parts) > 1 and torch.is_grad_enabled():
                logps, log_pi = checkpoint(self._pass, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                logps, log_pi = self._pass(*arguments)
            flat.append(logps)
            places.append(layout.place_M.to(logps.device))
            whole += [] if log_pi is None else [log_pi]
        place = torch.cat(places)
        values = _put(torch.cat(flat), place, mask)
        return TokenLogps(values, mask, _put(torch.cat(whole), place, mask) if vocabulary else None)

    def _pass(self, layout: Layout, vocabulary: bool, noise: tuple[int, ...] | None) -> tuple[Tensor, Tensor | None]:
        """log pi(target) at the M positions, and the whole distributions [M, V] if asked for."""
        # It stays: layers that are computed again for the backward pass read it then.
        self._lanes.noise = noise
        device = self.model.device
        cast = nullcontext() if self._autocast is None else torch.autocast(device.type, self._autocast)
        with cast:
            states_MD = self._states(layout)
            targets_M = layout.targets_M.to(device)
            chunk = self._compute.logits_chunk
            again = chunk is not None and torch.is_grad_enabled()
            logps = [
                checkpoint(self._logps, *piece, use_reentrant=False, preserve_rng_state=False)
                if again
                else self._logps(*piece)
                for piece in zip(*(torch.split(x, chunk or len(x)) for x in (states_MD, targets_M)), strict=True)
            ]
            whole = _exactly(self._logits(states_MD)).log_softmax(-1) if vocabulary else None
        return torch.cat(logps), whole

    def _states(self, layout: Layout) -> Tensor:
        """What `_logits` makes logits of, at the M positions: the last hidden states, or the logits themselves."""
        model, device = self.model, self.model.device
        inputs: dict[str, Any] = {"attention_mask": layout.filled_NC.to(device)}
        implementation = self._own_implementation
        if self._share or self._pack:
            inputs = dict(inputs_for(self._kind, layout, device, self._autocast or model.dtype))
            implementation = {"segments": BY_SEGMENT, "flex": "flex_attention"}.get(self._kind, implementation)
        if model.config._attn_implementation != implementation:
            register()
            model.set_attn_implementation(implementation)
        optional = {"position_ids": layout.positions_NC.to(device), "use_cache": False}
        inputs |= {key: value for key, value in optional.items() if key in self._accepts}
        source_M = layout.source_M.to(device)
        if self._late_head:
            hidden: Tensor = model.base_model(layout.ids_NC.to(device), **inputs).last_hidden_state
            return hidden.flatten(0, 1)[source_M]
        row_M, column_M = source_M // layout.ids_NC.shape[1], source_M % layout.ids_NC.shape[1]
        if self._compute.response_head and "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"], column_M = torch.unique(column_M, return_inverse=True)
        logits: Tensor = model(layout.ids_NC.to(device), **inputs).logits
        return logits[row_M, column_M]

    def _logits(self, states: Tensor) -> Tensor:
        # The vocabulary is the widest layer by far: it is kept off the prompt.
        logits: Tensor = self.model.get_output_embeddings()(states) if self._late_head else states
        return logits

    def _logps(self, states: Tensor, targets: Tensor) -> Tensor:
        return -F.cross_entropy(_exactly(self._logits(states)), targets, reduction="none")

    def sample(self, prompts: Sequence[Ids], max_new_tokens: int, temperature: float, seed: int) -> list[Ids]:
        """Answers drawn from the model's whole distribution at `temperature`, the token that ends them included."""
        from transformers import GenerationConfig

        model, device = self.model, self.model.device
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        ids_NC, filled_NC = (x.flip(1).to(device) for x in pad_ids([prompt[::-1] for prompt in prompts]))
        # A configuration of our own: a model's may bring a repetition penalty or a nucleus, and then what is drawn does
        # not follow the probabilities that are compared.
        plainly = GenerationConfig(
            do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens,
            eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0,
        )  # fmt: skip
        before, model.generation_config = model.generation_config, plainly
        model.set_attn_implementation(self._own_implementation)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(seed)
                drawn = model.generate(ids_NC, attention_mask=filled_NC.long())[:, ids_NC.shape[1] :].tolist()
        finally:
            model.generation_config = before
        stops = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in drawn]
        return [tuple(row[:stop]) for row, stop in zip(drawn, stops, strict=True)]


def response_mask(runs: Sequence[Sequence[Ranked]]) -> Tensor:
    """True on response tokens, [R, B, K, T]."""
    lengths = torch.tensor([[[len(ids) for ids in ranked] for _, *ranked in run] for run in runs])
    return torch.arange(int(lengths.max())) < lengths[..., None]


def _put(flat: Tensor, place: Tensor, mask: Tensor) -> Tensor:
    """What belongs to response tokens, [M, ...], at its places of [R, B, K, T, ...]; 0 elsewhere."""
    empty = flat.new_zeros(mask.numel(), *flat.shape[1:])
    return empty.index_put((place,), flat).view(*mask.shape, *flat.shape[1:])


def _exactly(logits: Tensor) -> Tensor:
    """At least float32: a bfloat16 log-probability has two digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _is_exact(config: Any) -> bool:
    """Is what a token sees given by mask and positions alone, all the way back to the start?"""
    layers = getattr(config, "layer_types", None)
    whole = all(kind == "full_attention" for kind in layers) if layers else not getattr(config, "sliding_window", None)
    return config.model_type in PACKABLE and whole


def _checkpoint_layers(model: Any) -> None:
    """transformers does that in training mode only, which would switch dropout on: set the mode of the layers alone."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    # The name until transformers 5.20 and the one since.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "preserve_rng_state": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
