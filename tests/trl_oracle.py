"""TRL's own DPO loss, called on log-probs we choose: an independent implementation to compare with.

`DPOTrainer._compute_loss` mixes the model's forward pass with the loss. The model here is a stub that hands over given
per-token log-probs, so that everything after it is TRL's code, unchanged.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def trl_loss(
    token_logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    loss_type: str,
    beta: float,
    log_sum_sq_probs: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, dict[str, float]]:
    """TRL's batch loss and the metrics it logs.

    Args:
        token_logps: [B, 2, T], 0 where padded; ref_logps: [B, 2] summed (for ld_alpha: already weighted).
        mask: [B, 2, T].
    """
    from trl import DPOTrainer

    flat_mask = torch.cat([mask[:, 0], mask[:, 1]]).long()
    flat = torch.cat([token_logps[:, 0], token_logps[:, 1]])
    rows, width = flat.shape
    prompt = torch.zeros(rows, 1, dtype=torch.long)  # one prompt token, so that TRL's shift finds T predictions
    nothing = torch.zeros_like(flat)
    outputs = SimpleNamespace(
        log_probs=flat, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), log_sum_sq_probs=nothing
    )
    if log_sum_sq_probs is not None:
        outputs.log_sum_sq_probs = torch.cat([log_sum_sq_probs[:, 0], log_sum_sq_probs[:, 1]])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(discopop_tau=settings.pop("discopop_tau", 0.05)),
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=settings.pop("label_smoothing", 0.0),
        f_divergence_type=settings.pop("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=settings.pop("f_alpha_divergence_coef", 0.5),
        use_weighting=settings.pop("use_weighting", False),
        ld_alpha=settings.pop("ld_alpha", None),
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    assert not settings, f"unknown settings {settings}"
    ids = torch.zeros(rows, width + 1, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([prompt + 1, flat_mask], 1),
        "completion_mask": torch.cat([prompt, flat_mask], 1),
        "ref_chosen_logps": ref_logps[:, 0],
        "ref_rejected_logps": ref_logps[:, 1],
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}
