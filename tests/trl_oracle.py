"""TRL's own losses, called on log-probs or logits we choose: independent implementations to compare with.

TRL's trainers mix the model's forward pass with the loss. The model here is a stub that hands over what it is given, so
that everything after it is TRL's code, unchanged: its methods are called on a stand-in for the trainer.
"""

import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # CPO and ORPO live in trl.experimental, which warns


def _accelerator() -> SimpleNamespace:
    return SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)


def _outputs(flat: Tensor) -> SimpleNamespace:
    """What TRL's fused LM head gives: token log-probs [rows, T], and quantities only its metrics use."""
    nothing = torch.zeros_like(flat)
    return SimpleNamespace(
        log_probs=flat, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), log_sum_sq_probs=nothing
    )


def trl_loss(
    token_logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    loss_type: str,
    beta: float,
    log_sum_sq_probs: Tensor | None = None,
    ref_token_logps: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, dict[str, float]]:
    """TRL's batch loss and the metrics it logs.

    Args:
        token_logps: [B, 2, T], 0 where padded; ref_logps: [B, 2] summed.
        mask: [B, 2, T].
        ref_token_logps: [B, 2, T]; given, TRL sums (and for ld_alpha weights) them itself, and `ref_logps` is not used.
    """
    from trl import DPOTrainer

    flat_mask = torch.cat([mask[:, 0], mask[:, 1]]).long()
    flat = torch.cat([token_logps[:, 0], token_logps[:, 1]])
    rows, width = flat.shape
    prompt = torch.zeros(rows, 1, dtype=torch.long)  # one prompt token, so that TRL's shift finds T predictions
    outputs = _outputs(flat)
    if log_sum_sq_probs is not None:
        outputs.log_sum_sq_probs = torch.cat([log_sum_sq_probs[:, 0], log_sum_sq_probs[:, 1]])
    trainer = SimpleNamespace(
        model=torch.nn.Identity(),
        accelerator=_accelerator(),
        args=SimpleNamespace(discopop_tau=settings.pop("discopop_tau", 0.05), gradient_checkpointing_kwargs=None),
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=settings.pop("label_smoothing", 0.0),
        f_divergence_type=settings.pop("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=settings.pop("f_alpha_divergence_coef", 0.5),
        use_weighting=settings.pop("use_weighting", False),
        ld_alpha=settings.pop("ld_alpha", None),
        precompute_ref_logps=ref_token_logps is None,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    assert not settings, f"unknown settings {settings}"
    if ref_token_logps is not None:
        trainer.model.is_gradient_checkpointing = False
        ref_outputs = _outputs(torch.cat([ref_token_logps[:, 0], ref_token_logps[:, 1]]))
        trainer.ref_model = lambda **_: ref_outputs
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


def trl_kto(
    token_logps: Tensor,
    ref_logps: Tensor,
    kl_logps: Tensor,
    ref_kl_logps: Tensor,
    loss_type: str,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """KTOTrainer's batch loss of B chosen and B rejected responses.

    Args:
        token_logps: [B, 2, T], 0 where padded; ref_logps: [B, 2] summed.
        kl_logps, ref_kl_logps: summed log-probs of the responses KTO estimates its reference point z from.
    """
    from trl import KTOTrainer

    flat = torch.cat([token_logps[:, 0], token_logps[:, 1]])
    rows, width = flat.shape
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=_accelerator(),
        loss_type=loss_type,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        calculate_KL=loss_type == "kto",
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _compute_kl_logps=lambda *_: kl_logps,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros(rows, width + 1, dtype=torch.long),
        "attention_mask": torch.ones(rows, width + 1, dtype=torch.long),
        "completion_mask": torch.ones(rows, width + 1, dtype=torch.long),
        "label": torch.arange(rows) < rows // 2,
        "ref_logps": torch.cat([ref_logps[:, 0], ref_logps[:, 1]]),
        "ref_KL_logps": ref_kl_logps,
    }
    loss: Tensor = KTOTrainer._compute_loss(trainer, lambda **_: _outputs(flat), inputs, return_outputs=False)
    return loss


def trl_reference_free(
    trainer: str, logits: Tensor, tokens: Tensor, mask: Tensor, beta: float, **settings: Any
) -> Tensor:
    """The batch loss of CPOTrainer (`cpo`, `simpo`) or ORPOTrainer (`orpo`), from logits.

    Args:
        logits: [B, 2, T, V]; tokens: [B, 2, T]; mask: [B, 2, T]. The prompt is one token.
    """
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    made: Any = ORPOTrainer if trainer == "orpo" else CPOTrainer
    stand_in = SimpleNamespace(
        accelerator=_accelerator(),
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        beta=beta,
        **{"loss_type": "sigmoid", "cpo_alpha": 0.0, "simpo_gamma": 0.0, "label_smoothing": 0.0, "alpha": 0.0}
        | settings,
        pad_token_id=0,
        padding_value=0,
        concatenated_inputs=made.concatenated_inputs,
        get_batch_logps=made.get_batch_logps,
    )
    for method in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(made, method):
            setattr(stand_in, method, getattr(made, method).__get__(stand_in))
    prompt = torch.zeros(len(tokens), 1, dtype=torch.long)
    batch = {}
    for k, side in enumerate(("chosen", "rejected")):
        batch[f"{side}_input_ids"] = torch.cat([prompt, tokens[:, k] * mask[:, k]], 1)
        batch[f"{side}_attention_mask"] = torch.cat([prompt + 1, mask[:, k].long()], 1)
        batch[f"{side}_labels"] = torch.cat([prompt - 100, tokens[:, k].masked_fill(~mask[:, k], -100)], 1)
    flat = torch.cat([logits[:, 0], logits[:, 1]])
    outputs = SimpleNamespace(logits=torch.cat([flat, torch.zeros_like(flat[:, :1])], 1))
    loss: Tensor = made.get_batch_loss_metrics(stand_in, lambda *_, **__: outputs, batch)[0]
    return loss


def trl_cpo_loss(chosen: Tensor, rejected: Tensor, loss_type: str, beta: float, label_smoothing: float) -> Tensor:
    """CPOTrainer's preference loss, [B], as a function of whatever stands for the log-probs."""
    from trl.experimental.cpo import CPOTrainer

    stand_in = SimpleNamespace(
        accelerator=_accelerator(), alpha=0.0, loss_type=loss_type, beta=beta, label_smoothing=label_smoothing
    )
    losses: Tensor = CPOTrainer.cpo_loss(stand_in, chosen, rejected)[0]
    return losses
