"""The smallest model in which pi(chosen) can fall: softmax(W h), W and h both trained, one pair of single tokens.

Razin et al. 2024 (arXiv 2410.08847) study such unconstrained features. Tokens: 0 chosen, 1 rejected, 2 a bystander.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.losses.base import PairLogRatios

Array = npt.NDArray[np.float64]
W0 = ((4.0, 0.0), (4.0, -1.0), (4.0, 4.0))  # [V, D] unembeddings; with H0 all logits are 2, so the start is uniform
H0 = (0.5, 0.0)  # [D] the features, which real models compute


def descend(
    loss: Callable[..., Tensor], beta: float, lr: float, steps: int, *, frozen: bool = False
) -> tuple[Array, Array]:
    """Gradient descent from W0, H0: probabilities [steps + 1, V] and losses [steps + 1]. frozen: h is not trained."""
    W = torch.tensor(W0, dtype=torch.float64, requires_grad=True)
    h = torch.tensor(H0, dtype=torch.float64, requires_grad=not frozen)
    trained = [W] if frozen else [W, h]
    hyper: dict[str, Any] = {"beta": torch.tensor([[beta]], dtype=torch.float64)}
    ref = (W @ h).log_softmax(-1)[None, None, :2].detach()  # [R, N, K], all 1 but K
    lengths = torch.ones_like(ref, dtype=torch.int64)
    probabilities, losses = np.empty((steps + 1, len(W0))), np.empty(steps + 1)
    for t in range(steps + 1):
        log_pi = (W @ h).log_softmax(-1)
        value = loss(PairLogRatios(log_pi[None, None, :2], ref, lengths), **hyper).sum()
        probabilities[t], losses[t] = log_pi.detach().exp().numpy(), float(value.detach())
        gradients = torch.autograd.grad(value, trained)
        with torch.no_grad():
            for weight, gradient in zip(trained, gradients, strict=True):
                weight -= lr * gradient
    return probabilities, losses
