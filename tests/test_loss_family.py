"""What every loss promises: TRL's numbers where TRL has it, numbers worked out by hand where not, and its stated facts.

The facts are checked for every file of conf/loss, so for a new one too.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from src.config import Choice
from src.losses.base import Facts, PairLogRatios, facts_of
from src.losses.stacked import StackLoss
from tests.conftest import CONF, TOY
from tests.trl_oracle import trl_cpo_loss, trl_kto, trl_loss, trl_reference_free

NAMES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
BATCHES, PAIRS, WIDTH, VOCABULARY = 1000, 5, 7, 4
TINY = 1e-300  # a hinge is often exactly 0


@pytest.fixture(scope="module")
def losses(convert) -> dict[str, Choice]:
    """Every file of conf/loss."""
    return {name: convert(f"loss={name}").loss for name in NAMES}


def tensors(params: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """Numbers become one [1, 1] tensor, as in a stack of one run."""
    made = {}
    for key, value in params.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        made[key] = torch.full((1, 1), value, dtype=like.dtype) if number else value
    return made


def evaluate(loss: Choice, pairs: PairLogRatios, **changed: Any) -> Tensor:
    value: Tensor = loss.function(pairs, **tensors({**loss.params, **changed}, pairs.logps))
    return value


# ---- A. The same numbers as TRL, in value and gradient


@dataclass
class Sample:
    """R batches of N lists of K responses; everything a loss may ask for, and consistent.

    logits: [R, N, K, T, V], the leaf. tokens, mask: [R, N, K, T].
    """

    logits: Tensor
    ref_logits: Tensor
    tokens: Tensor
    mask: Tensor

    @staticmethod
    def of(seed: int, runs: int, size: int = 2, dtype: torch.dtype = torch.float64, drift: float = 1.0) -> "Sample":
        g = torch.Generator().manual_seed(seed)
        shape = (runs, PAIRS, size, WIDTH)
        ref_logits = 2 * torch.randn(*shape, VOCABULARY, generator=g, dtype=torch.float64)
        logits = ref_logits + drift * torch.randn(*shape, VOCABULARY, generator=g, dtype=torch.float64)
        tokens = torch.randint(VOCABULARY, shape, generator=g)
        mask = torch.arange(WIDTH) < torch.randint(1, WIDTH + 1, (*shape[:-1], 1), generator=g)
        return Sample(logits.to(dtype).requires_grad_(), ref_logits.to(dtype), tokens, mask)

    def pairs(self) -> PairLogRatios:
        log_pi, ref_log_pi = self.logits.log_softmax(-1), self.ref_logits.log_softmax(-1)
        token, ref_token = (x.gather(-1, self.tokens[..., None])[..., 0] * self.mask for x in (log_pi, ref_log_pi))
        return PairLogRatios(
            token.sum(-1), ref_token.sum(-1), self.mask.sum(-1), None, token, ref_token, self.mask, log_pi, ref_log_pi
        )


def log_uniform(seed: int, low: float, high: float) -> list[float]:
    u = torch.rand(BATCHES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [float(x) for x in low * (high / low) ** u]


def uniform(seed: int, low: float, high: float) -> list[float]:
    u = torch.rand(BATCHES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [float(x) for x in low + (high - low) * u]


def assert_same(sample: Sample, ours: Tensor, theirs: Callable[..., Tensor]) -> None:
    """Batch for batch, the loss to 1e-6 of itself, its gradient to 1e-6 of the batch's largest component.

    ours: [R], as a function of sample.logits. theirs(r, pairs of batch r): TRL's loss.
    """
    grad = torch.autograd.grad(ours.sum(), sample.logits)[0]
    again = dataclasses.replace(sample, logits=sample.logits.detach().requires_grad_())
    pairs = again.pairs()
    # One backward through all: unbind, since a thousand selects would each fill the whole gradient.
    parts = {f.name: v.unbind(0) for f in dataclasses.fields(pairs) if (v := getattr(pairs, f.name)) is not None}
    logits = again.logits.unbind(0)
    values = torch.stack(
        [theirs(r, logits[r], **{name: part[r] for name, part in parts.items()}) for r in range(BATCHES)]
    )
    their_grad = torch.autograd.grad(values.sum(), again.logits)[0]
    value_error = ((ours - values).abs() / values.abs().clamp(min=TINY)).max().item()
    largest = their_grad.abs().amax((1, 2, 3, 4), keepdim=True).clamp(min=TINY)
    gradient_error = ((grad - their_grad).abs() / largest).max().item()
    print(f"worst error: value {value_error:.1e}, gradient {gradient_error:.1e}")  # pytest -rP shows it
    assert value_error < 1e-6
    assert gradient_error < 1e-6


@dataclass(frozen=True)
class Case:
    """ours: the loss and its parameters, each a number or one a batch; theirs: DPOTrainer's name and settings."""

    ours: str
    theirs: str
    ours_with: dict[str, Any] = field(default_factory=dict)
    theirs_with: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    drift: float = 1.0


BETA = log_uniform(0, 0.01, 2)
SMOOTHING = [np.float64(x) for x in uniform(1, 0.001, 0.45)]  # torch.tensor of a plain float, as in TRL, is float32
TAU = log_uniform(2, 0.02, 2)
ALPHA = uniform(3, 0.0, 1.0)
LARGE_ALPHA = uniform(7, 0.5, 2.0)
DPO_TRAINER = [
    Case("dpo", "sigmoid"),
    Case("hinge", "hinge"),
    Case("ipo_avg", "ipo"),
    Case("exo", "exo_pair", {"epsilon": SMOOTHING}, {"label_smoothing": SMOOTHING}),
    Case("nca", "nca_pair"),
    Case("robust", "robust", {"epsilon": SMOOTHING}, {"label_smoothing": SMOOTHING}),
    Case("bco", "bco_pair", {"delta": 0.0}),
    Case("sppo_hard", "sppo_hard"),
    Case("aot", "aot", {"epsilon": SMOOTHING}, {"label_smoothing": SMOOTHING}),
    Case("aot_unpaired", "aot_unpaired", {"epsilon": SMOOTHING}, {"label_smoothing": SMOOTHING}),
    Case("apo_zero", "apo_zero"),
    Case("apo_down", "apo_down"),
    Case("discopop", "discopop", {"tau": TAU}, {"discopop_tau": TAU}),
    Case("sft", "sft"),
    Case("sigmoid_norm", "sigmoid_norm"),
    Case("f_dpo", "sigmoid", {"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    Case("f_dpo", "sigmoid", {"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    # TRL has this one in 16 and 32 bits only and computes e^x - 1 as it stands: small log-ratios and no small alpha, so
    # that its rounding stays below 1e-6.
    Case(
        "f_dpo_alpha", "sigmoid", {"alpha": LARGE_ALPHA},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": [1 - alpha for alpha in LARGE_ALPHA]},
        torch.float32, 0.2,
    ),
    Case("wpo", "sigmoid", {}, {"use_weighting": True}),
    Case("ld_dpo", "sigmoid", {"alpha": ALPHA}, {"ld_alpha": ALPHA}),
]  # fmt: skip


def of_batch(settings: Mapping[str, Any], r: int) -> dict[str, Any]:
    return {key: value[r] if isinstance(value, list) else value for key, value in settings.items()}


def stacked(settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A number a batch becomes [R, 1]."""
    made = {}
    for key, value in settings.items():
        every = value if isinstance(value, list) else [value] * BATCHES
        made[key] = value if isinstance(value, str) else torch.tensor(every, dtype=dtype)[:, None]
    return made


@pytest.mark.parametrize("case", DPO_TRAINER, ids=lambda c: "-".join([c.ours, *map(str, c.theirs_with)]))
def test_a_thousand_batches_equal_trls_dpo_trainer(losses, case):
    sample = Sample.of(len(case.ours), BATCHES, dtype=case.dtype, drift=case.drift)
    takes_beta = {"beta": BETA} if "beta" in losses[case.ours].params else {}
    ours = losses[case.ours].function(sample.pairs(), **stacked({**takes_beta, **case.ours_with}, case.dtype)).mean(-1)

    def theirs(r: int, logits: Tensor, token_logps, ref_token_logps, ref_logps, mask, log_pi, **_) -> Tensor:
        settings = of_batch(case.theirs_with, r)
        if settings.get("use_weighting"):
            settings["log_sum_sq_probs"] = torch.logsumexp(2 * log_pi, -1)
        if "ld_alpha" in settings:
            settings["ref_token_logps"] = ref_token_logps
        return trl_loss(token_logps, ref_logps, mask, case.theirs, BETA[r], **settings)[0]

    assert_same(sample, ours, theirs)


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_a_thousand_batches_equal_trls_kto_trainer(losses, loss_type):
    """TRL's mean is over responses, ours over pairs: twice as large. z comes from the responses given to both here."""
    sample, pairs = (s := Sample.of(11, BATCHES)), s.pairs()
    chosen, rejected = uniform(4, 0.5, 2), uniform(5, 0.5, 2)
    if loss_type == "kto":
        hyper = stacked({"beta": BETA, "lambda_chosen": chosen, "lambda_rejected": rejected}, torch.float64)
        ours = losses["kto"].function(pairs, **hyper).mean(-1)
    else:
        chosen = rejected = [1.0] * BATCHES
        ours = losses["apo_zero"].function(pairs, **stacked({"beta": BETA}, torch.float64)).mean(-1)

    def theirs(r: int, logits: Tensor, token_logps, logps, ref_logps, **_) -> Tensor:
        z_from = logps.detach().flatten(), ref_logps.flatten()
        return 2 * trl_kto(token_logps, ref_logps, *z_from, loss_type, BETA[r], chosen[r], rejected[r])

    assert_same(sample, ours, theirs)


@pytest.mark.parametrize("name", ["cpo", "simpo", "orpo"])
def test_a_thousand_batches_equal_trls_trainers_without_reference(losses, name):
    sample = Sample.of(12, BATCHES)
    weight = uniform(6, 0.0, 2.0)
    if name == "orpo":
        # TRL averages the likelihood over the batch's tokens, ours over its responses: the same for equal lengths.
        sample.mask[:, :, 0] = sample.mask[:, :1, 0]
    ours_with, theirs_with = {
        "cpo": ({"beta": BETA, "alpha": weight}, {"cpo_alpha": weight}),
        "simpo": ({"beta": BETA, "gamma": weight}, {"loss_type": "simpo", "simpo_gamma": weight}),
        "orpo": ({"nll_weight": 1.0, "odds_weight": BETA}, {}),
    }[name]
    ours = losses[name].function(sample.pairs(), **stacked(ours_with, torch.float64)).mean(-1)

    def theirs(r: int, logits: Tensor, mask, **_) -> Tensor:
        return trl_reference_free(name, logits, sample.tokens[r], mask, BETA[r], **of_batch(theirs_with, r))

    assert_same(sample, ours, theirs)


@pytest.mark.parametrize(("name", "loss_type"), [("cdpo", "sigmoid"), ("ipo", "ipo")])
def test_a_thousand_batches_equal_trls_cpo_loss_of_log_ratios(losses, name, loss_type):
    """TRL 1.16's DPO ignores label smoothing, and its IPO divides by length; its CPO does neither."""
    sample = Sample.of(13, BATCHES)
    epsilon = {"epsilon": SMOOTHING} if name == "cdpo" else {}
    ours = losses[name].function(sample.pairs(), **stacked({"beta": BETA} | epsilon, torch.float64)).mean(-1)

    def theirs(r: int, logits: Tensor, logps, ref_logps, **_) -> Tensor:
        a, b = (logps - ref_logps).unbind(-1)
        return trl_cpo_loss(a, b, loss_type, BETA[r], SMOOTHING[r] if epsilon else 0.0).mean()

    assert_same(sample, ours, theirs)


def test_defaults_are_trls_where_trl_has_the_parameter(losses):
    from trl import DPOConfig, KTOConfig
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    dpo, kto, cpo, orpo = (
        {f.name: f.default for f in dataclasses.fields(config)}
        for config in (DPOConfig, KTOConfig, CPOConfig, ORPOConfig)
    )
    params = {name: loss.params for name, loss in losses.items()}
    assert params["dpo"]["beta"] == dpo["beta"] == kto["beta"] == cpo["beta"]
    assert params["discopop"]["tau"] == dpo["discopop_tau"]
    assert params["f_dpo_alpha"]["alpha"] == 1 - dpo["f_alpha_divergence_coef"]
    assert params["aot"]["epsilon"] == params["aot_unpaired"]["epsilon"] == dpo["label_smoothing"]
    assert params["kto"]["lambda_chosen"] == kto["desirable_weight"]
    assert params["kto"]["lambda_rejected"] == kto["undesirable_weight"]
    assert (params["cpo"]["alpha"], params["simpo"]["gamma"]) == (cpo["cpo_alpha"], cpo["simpo_gamma"])
    assert params["orpo"]["odds_weight"] == orpo["beta"]


# Where TRL does something else on purpose, and so do we.


@pytest.fixture
def one_batch() -> tuple[Sample, PairLogRatios]:
    sample = Sample.of(21, 1)
    return sample, sample.pairs()


def first(pairs: PairLogRatios, name: str) -> Tensor:
    value: Tensor = getattr(pairs, name)[0].detach()
    return value


def test_trls_dpo_ignores_label_smoothing_and_cdpo_does_not(losses, one_batch):
    _, pairs = one_batch
    args = first(pairs, "token_logps"), first(pairs, "ref_logps"), pairs.mask[0], "sigmoid", 0.5
    assert trl_loss(*args, label_smoothing=0.2)[0] == trl_loss(*args)[0]
    plain = evaluate(losses["dpo"], pairs, beta=0.5)
    smooth = evaluate(losses["cdpo"], pairs, beta=0.5, epsilon=0.2)
    torch.testing.assert_close(smooth, plain + 0.2 * 0.5 * pairs.h, rtol=1e-12, atol=1e-12)  # l(-u) = l(u) + u


def test_ipo_sums_where_trl_averages(losses, one_batch):
    """Azar et al.'s Eq. 17 has log-probs of whole responses; TRL's `ipo` is `loss=ipo_avg`."""
    _, pairs = one_batch
    ours = evaluate(losses["ipo"], pairs, beta=0.5).mean()
    theirs, _ = trl_loss(first(pairs, "token_logps"), first(pairs, "ref_logps"), pairs.mask[0], "ipo", 0.5)
    torch.testing.assert_close(ours, ((pairs.h - 1) ** 2).mean())
    assert abs(ours - theirs) > 0.1
    torch.testing.assert_close(evaluate(losses["ipo_avg"], pairs, beta=0.5).mean(), theirs)


def test_ktos_z_is_of_the_batchs_own_responses_and_trls_of_mismatched_ones(losses, one_batch):
    """With responses of other prompts TRL's z is usually 0, ours follows the policy: a pair loss has no others."""
    _, pairs = one_batch
    token_logps, logps, ref = (first(pairs, name) for name in ("token_logps", "logps", "ref_logps"))
    raised = PairLogRatios(pairs.logps + 5, pairs.ref_logps, pairs.lengths)  # z > 0
    ours = evaluate(losses["kto"], raised, beta=0.5, lambda_chosen=3.0).mean()
    up = token_logps.clone()
    up[..., 0] += 5
    own = trl_kto(up, ref, (logps + 5).flatten(), ref.flatten(), "kto", 0.5, 3.0, 1.0)
    mismatched = trl_kto(up, ref, ref.flatten() - 1, ref.flatten(), "kto", 0.5, 3.0, 1.0)  # z clamped to 0
    torch.testing.assert_close(ours, 2 * own)
    assert abs(ours - 2 * mismatched) > 0.1


def test_orpos_likelihood_is_a_mean_over_responses_and_trls_over_all_tokens(losses, one_batch):
    """Hong et al.'s Eq. 6 averages over the examples. TRL counts the prompt's tokens too, but for the first."""
    sample, pairs = one_batch
    ours = evaluate(losses["orpo"], pairs, odds_weight=0.1).mean()
    theirs = trl_reference_free("orpo", sample.logits[0], sample.tokens[0], sample.mask[0], 0.1)
    chosen, lengths = pairs.logps[..., 0], pairs.lengths[..., 0]
    swapped = ours + (chosen / lengths).mean() - chosen.sum() / lengths.sum()
    torch.testing.assert_close(theirs, swapped, rtol=1e-6, atol=0)
    assert abs(ours - theirs) > 1e-3


def test_beyond_e80_trls_alpha_divergence_is_clamped_and_ours_goes_on_to_the_dtypes_end(losses):
    logps = torch.tensor([[[-200.0, 0.0]]], requires_grad=True)
    pairs = PairLogRatios(logps, torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
    ours = evaluate(losses["f_dpo_alpha"], pairs, beta=1.0, alpha=0.42).sum()  # e^84/.42
    ours.backward()
    flat = torch.tensor([[[-200.0], [0.0]]], requires_grad=True)
    args = torch.zeros(1, 2), torch.ones(1, 2, 1, dtype=torch.bool), "sigmoid", 1.0
    theirs, _ = trl_loss(flat, *args, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.58)
    theirs.backward()
    assert ours.item() == pytest.approx(math.exp(84) / 0.42, rel=1e-4)
    assert logps.grad[0, 0, 0] < -1e30  # and still pulls back
    assert theirs.item() == pytest.approx(math.exp(80) / 0.42, rel=1e-4)
    assert flat.grad[0, 0, 0] == 0


# ---- B. Numbers worked out by hand, for what TRL lacks

LOG2, LOG3 = math.log(2), math.log(3)


def s(x: float) -> float:
    """sigma"""
    return 1 / (1 + math.exp(-x))


def ell(x: float) -> float:
    """-log sigma"""
    return math.log1p(math.exp(-x))


@dataclass(frozen=True)
class Hand:
    """One list. x: log-ratios, best first; logps default to them, so that the reference is 0. slopes: dL/dlogps."""

    loss: str
    params: dict[str, float]
    x: tuple[float, ...]
    value: float
    slopes: tuple[float, ...]
    logps: tuple[float, ...] | None = None
    lengths: tuple[int, ...] | None = None
    scores: tuple[float, ...] | None = None


W12, W13, W23 = (
    (2 - math.sqrt(2)) * (1 / LOG2 - 1 / LOG3),
    1 / (2 * LOG2),
    (math.sqrt(2) - 1) * (1 / LOG3 - 1 / (2 * LOG2)),
)
PHI_1, DENSITY_1 = 0.8413447460685429, 0.24197072451914337  # the normal distribution's tables

BY_HAND = [
    # (1 - e) l(u) + e l(-u), slope beta (sigma(u) - (1 - e)): at u = log 3, sigma = 3/4 = 1 - e is the optimum.
    Hand("cdpo", {"beta": 1.0, "epsilon": 0.25}, (LOG3, 0), 0.75 * math.log(4 / 3) + 0.25 * math.log(4), (0, 0)),
    Hand("cdpo", {"beta": 2.0, "epsilon": 0.25}, (1, 1), LOG2, (-0.5, 0.5)),
    # e^-u, slope -beta e^-u; u = 1.
    Hand("exp", {"beta": 0.5}, (2, 0), math.exp(-1), (-0.5 * math.exp(-1), 0.5 * math.exp(-1))),
    # -log Phi(u), slope -beta phi(u)/Phi(u); phi(0)/Phi(0) = 2/sqrt(2 pi).
    Hand("probit", {"beta": 0.5}, (1, 1), LOG2, (-1 / math.sqrt(2 * math.pi), 1 / math.sqrt(2 * math.pi))),
    Hand("probit", {"beta": 0.5}, (2, 0), -math.log(PHI_1), (-0.5 * DENSITY_1 / PHI_1, 0.5 * DENSITY_1 / PHI_1)),
    # (gap - u)^2, slope -2 beta (gap - u): gap 3 of the parameter, then 5 - 1 of the data; u = 1.
    Hand("distill", {"beta": 0.5, "score_gap": 3.0}, (2, 0), 4, (-2, 2)),
    Hand("distill", {"beta": 0.5, "score_gap": 3.0}, (2, 0), 9, (-3, 3), scores=(5, 1)),
    # z = mean(log 9, 0) = log 3: both sides have sigma(log 3) = 3/4, slope sigma' = 3/16.
    Hand("kto", {"beta": 1.0, "lambda_chosen": 1.0, "lambda_rejected": 2.0}, (2 * LOG3, 0), 0.75, (-3 / 16, 3 / 8)),
    # z = max(0, -log 3) = 0: 1 - sigma(-log 3) = 3/4 and 2 (1 - sigma(log 3)) = 1/2.
    Hand("kto", {"beta": 1.0, "lambda_chosen": 1.0, "lambda_rejected": 2.0}, (-LOG3, -LOG3), 1.25, (-3 / 16, 3 / 8)),
    # l(A - d) + l(d - B), d = A = log 3, B = 0: l(0) + l(log 3).
    Hand("bco", {"beta": 1.0, "delta": LOG3}, (LOG3, 0), LOG2 + math.log(4 / 3), (-0.5, 0.25)),
    # goal 1/(2 beta) = 1: l(3) + (1^2 + 0^2)/2.
    Hand("cal_dpo", {"beta": 0.5}, (2, -1), ell(3) + 0.5, (1 - s(-3), s(-3))),
    # a < 0: the argument is h + 2 a = 1, whose slope in a is 3. a > 0: DPO.
    Hand("dpop", {"beta": 1.0, "penalty": 2.0}, (-1, -4), ell(1), (-3 * s(-1), s(-1))),
    Hand("dpop", {"beta": 1.0, "penalty": 2.0}, (1, -1), ell(2), (-s(-2), s(-2))),
    # 2 (-3/3 - -8/4) - 1/2 = 3/2.
    Hand(
        "simpo", {"beta": 2.0, "gamma": 0.5}, (0, 0), ell(1.5), (-2 / 3 * s(-1.5), 2 / 4 * s(-1.5)), (-3, -8), (3, 4)
    ),
    # l((-3 + 8)/2) + 1/2 * 3/3.
    Hand(
        "cpo", {"beta": 0.5, "alpha": 0.5}, (0, 0), ell(2.5) + 0.5,
        (-s(-2.5) / 2 - 1 / 6, s(-2.5) / 2), (-3, -8), (3, 4),
    ),
    # 0.8 + 0.1 (3 - 1) = 1: a longer chosen response needs less margin.
    Hand("r_dpo", {"beta": 1.0, "alpha": 0.1}, (0.8, 0), ell(1), (-s(-1), s(-1)), None, (3, 1)),
    # phi(t) = t + log t: 2 + log 2 - 1 = log 2 e, so l = log(1 + 1/(2 e)); phi's slope in log t is t + 1: 3 and 2.
    Hand(
        "chi_po", {"beta": 1.0, "r_max": 2.0}, (LOG2, 0), math.log1p(1 / (2 * math.e)),
        (-3 / (1 + 2 * math.e), 2 / (1 + 2 * math.e)),
    ),
    Hand("chi_po", {"beta": 1.0, "r_max": 2.0}, (0, 0), LOG2, (-1, 1)),
    Hand("chi_po", {"beta": 1.0, "r_max": 2.0}, (3, 0), ell(4), (0, 0)),  # e^3 - 1 + 3 > 4: clipped
    # Forward KL: f' = 1 - 1/t: 2 (1/2 - 0) = 1; f''s slope in log t is 1/t: 1/2 and 1.
    Hand("f_dpo", {"beta": 2.0}, (LOG2, 0), ell(1), (-s(-1), 2 * s(-1))),
    # alpha = 2: (1 - 1/4)/2 - 0 = 3/8, slopes 1/t^2.
    Hand("f_dpo_alpha", {"beta": 1.0, "alpha": 2.0}, (LOG2, 0), ell(3 / 8), (-s(-3 / 8) / 4, s(-3 / 8))),
    # l(1) + 1/2 * 3/3.
    Hand("rpo", {"beta": 1.0, "alpha": 0.5}, (1, 0), ell(1) + 0.5, (-s(-1) - 1 / 6, s(-1)), (-3, -4), (3, 2)),
    # max(0, 1 - 1/2) + 3/10, and beyond the margin the likelihood alone.
    Hand("slic_hf", {"delta": 1.0, "nll_weight": 0.1}, (0, 0), 0.8, (-1.1, 1), (-3, -3.5)),
    Hand("slic_hf", {"delta": 1.0, "nll_weight": 0.1}, (0, 0), 0.1, (-0.1, 0), (-1, -3)),
    # Per token 1/2 and 1/4: odds 1 and 1/3, l(log 3). d log odds/d log p = 1/(1 - p): 2 and 4/3; the first response has
    # two tokens.
    Hand(
        "orpo", {"nll_weight": 1.0, "odds_weight": 0.1}, (0, 0), LOG2 + 0.1 * math.log(4 / 3),
        ((-1 - 0.1 * 2 / 4) / 2, 0.1 * (4 / 3) / 4), (-2 * LOG2, -2 * LOG2), (2, 1),
    ),
    # l(1) + 0.1 * 3/3.
    Hand("mix", {}, (10, 0), ell(1) + 0.1, (-0.1 * s(-1) - 0.1 / 3, 0.1 * s(-1)), (-3, -4), (3, 2)),
    # e^s = 4, 2, 1: differences log 2, log 4, log 2; l = log(3/2), log(5/4), log(3/2); slopes 1/3, 1/5, 1/3.
    Hand(
        "pair_logistic", {"beta": 1.0}, (2 * LOG2, LOG2, 0), (2 * math.log(1.5) + math.log(1.25)) / 3,
        (-8 / 45, 0, 8 / 45),
    ),
    # Differences 1/4, 3/4, 1/2, all inside the margin: 3/4 + 1/4 + 1/2 over 3.
    Hand("pair_hinge", {"beta": 1.0}, (0.75, 0.5, 0), 0.5, (-2 / 3, 0, 2 / 3)),
    # P = 4/7 * 2/3; slopes -(1 - 4/7), 2/7 - (1 - 2/3), 1/7 + 1/3.
    Hand("list_mle", {"beta": 1.0}, (2 * LOG2, LOG2, 0), math.log(21 / 8), (-3 / 7, -1 / 21, 10 / 21)),
    Hand("list_softmax", {"beta": 1.0}, (2 * LOG2, LOG2, 0), math.log(7 / 4), (-3 / 7, 2 / 7, 1 / 7)),
    # Gains 1, sqrt 2 - 1, 0; discounts 1/log 2, 1/log 3, 1/log 4; W: the products of their differences.
    Hand(
        "lambda_loss", {"beta": 1.0}, (2 * LOG2, LOG2, 0),
        W12 * math.log(1.5) + W13 * math.log(1.25) + W23 * math.log(1.5),
        (-W12 / 3 - W13 / 5, W12 / 3 - W23 / 3, W13 / 5 + W23 / 3),
    ),
    # K = 2 in the wrong order: the weight is the same, |1 - 0| |1/log 2 - 1/log 3|.
    Hand(
        "lambda_loss", {"beta": 1.0}, (0, LOG2), (1 / LOG2 - 1 / LOG3) * LOG3,
        (-(1 / LOG2 - 1 / LOG3) * 2 / 3, (1 / LOG2 - 1 / LOG3) * 2 / 3),
    ),
]  # fmt: skip


@pytest.mark.parametrize("hand", BY_HAND, ids=lambda h: f"{h.loss}{h.x}")
def test_value_and_gradient_are_those_derived_by_hand(losses, hand):
    x = torch.tensor([[hand.x]], dtype=torch.float64)
    logps = torch.tensor([[hand.logps or hand.x]], dtype=torch.float64).requires_grad_()
    lengths = torch.tensor([[hand.lengths or [1] * len(hand.x)]])
    scores = torch.tensor([[hand.scores]], dtype=torch.float64) if hand.scores else None
    value = evaluate(losses[hand.loss], PairLogRatios(logps, logps.detach() - x, lengths, scores), **hand.params)
    value.sum().backward()
    assert value.tolist() == [[pytest.approx(hand.value, rel=1e-12, abs=1e-15)]]
    assert logps.grad[0, 0].tolist() == pytest.approx(hand.slopes, rel=1e-12, abs=1e-15)


def test_beta_dpo_by_hand(losses):
    """h = 1, 1, 1, 1, 11, mean 3: beta 0.1 (1 + 0.5 * 3) = 1/4; the fifth, farthest from the mean, is left out."""
    logps = torch.tensor([[[1.0, 0], [1, 0], [11, 0], [1, 0], [1, 0]]], dtype=torch.float64).requires_grad_()
    pairs = PairLogRatios(logps, torch.zeros_like(logps), torch.ones(1, 5, 2))
    value = evaluate(losses["beta_dpo"], pairs, beta=0.1, alpha=0.5, rho=0.2, mean_margin=0.0)
    value.sum().backward()
    kept, slope = 1.25 * ell(0.25), 1.25 * 0.25 * s(-0.25)
    assert value[0].tolist() == pytest.approx([kept, kept, 0, kept, kept], rel=1e-12)
    assert logps.grad[0, :, 0].tolist() == pytest.approx([-slope, -slope, 0, -slope, -slope], rel=1e-12)
    assert logps.grad[0, :, 1].tolist() == pytest.approx([slope, slope, 0, slope, slope], rel=1e-12)


@pytest.mark.parametrize(("name", "alpha"), [("tdpo1", None), ("tdpo2", 0.5)])
def test_tdpo_by_hand(losses, name, alpha):
    """One token each. Reference (1/2, 1/2) in both contexts; policy too in the chosen one's, (3/4, 1/4) in the other.

    The rejected token is the second: a = 0, b = -log 2, h = log 2. SeqKL_w = 0, SeqKL_l = log(2/3)/2 + log(2)/2 =
    log(4/3)/2. Version 1: x = log 2 - log(4/3)/2 = log(3)/2, sigma(-x) = 1/(1 + sqrt 3). Version 2 weighs it by alpha.
    dSeqKL/dlog pi_v = -ref_v = -1/2.
    """
    log_pi = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64).log()[None, None, :, None].requires_grad_()
    ref = torch.full_like(log_pi, -LOG2)
    mask = torch.ones(1, 1, 2, 1, dtype=torch.bool)
    logps = torch.tensor([[[-LOG2, -2 * LOG2]]], dtype=torch.float64).requires_grad_()
    ref_logps = torch.full_like(logps, -LOG2)
    pairs = PairLogRatios(
        logps, ref_logps, mask.sum(-1), None, logps[..., None], ref_logps[..., None], mask, log_pi, ref
    )
    value = evaluate(losses[name], pairs, beta=1.0, **({} if alpha is None else {"alpha": alpha}))
    value.sum().backward()
    x = LOG3 / 2 if alpha is None else LOG2 - alpha * math.log(4 / 3) / 2
    weight = 1 / (1 + math.sqrt(3)) if alpha is None else s(-x)
    assert value.item() == pytest.approx(math.log1p(math.exp(-x)), rel=1e-12)
    assert logps.grad[0, 0].tolist() == pytest.approx([-weight, weight], rel=1e-12)
    chosen, rejected = log_pi.grad[0, 0, :, 0].tolist()
    half = weight * (alpha or 1.0) / 2
    assert rejected == pytest.approx([-half, -half], rel=1e-12)
    assert chosen == (pytest.approx([half, half], rel=1e-12) if alpha is None else [0, 0])  # version 2 stops it


@pytest.mark.parametrize(
    ("listwise", "pairwise", "factor"),
    [
        ("pair_logistic", "dpo", 1.0),
        ("list_mle", "dpo", 1.0),
        ("list_softmax", "dpo", 1.0),
        ("pair_hinge", "hinge", 1.0),
        ("lambda_loss", "dpo", 1 / LOG2 - 1 / LOG3),
    ],
)
def test_a_list_of_two_is_a_pair(losses, listwise, pairwise, factor):
    pairs = Sample.of(31, 50).pairs()
    ours, expected = (evaluate(losses[name], pairs, beta=0.7) for name in (listwise, pairwise))
    torch.testing.assert_close(ours, factor * expected, rtol=1e-12, atol=0)


# ---- C. The facts stated beside each loss

DEFAULTS = {  # as published, or as TRL has them
    "aot": {"epsilon": 0.0},
    "aot_unpaired": {"epsilon": 0.0},
    "bco": {"delta": 0.0},
    "beta_dpo": {"alpha": 0.6, "rho": 0.2, "mean_margin": 0.0},
    "cdpo": {"epsilon": 0.1},
    "chi_po": {"r_max": 2.0},
    "cpo": {"alpha": 1.0},
    "discopop": {"tau": 0.05},
    "distill": {"score_gap": 1.0},
    "dpop": {"penalty": 50.0},
    "exo": {"epsilon": 1e-3},
    "f_dpo": {"divergence": "forward_kl"},
    "f_dpo_alpha": {"alpha": 0.5},
    "kto": {"lambda_chosen": 1.0, "lambda_rejected": 1.0},
    "ld_dpo": {"alpha": 0.5},
    "orpo": {"nll_weight": 1.0, "odds_weight": 0.1},
    "r_dpo": {"alpha": 0.1},
    "robust": {"epsilon": 0.1},
    "rpo": {"alpha": 1.0},
    "simpo": {"gamma": 0.5},
    "slic_hf": {"delta": 1.0, "nll_weight": 0.1},
    "tdpo2": {"alpha": 0.5},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_default_hyper_parameters(losses, name):
    assert {key: value for key, value in losses[name].params.items() if key != "beta"} == DEFAULTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_beta_is_one_key_for_all(losses, compose, name):
    if "beta" in losses[name].params:
        assert compose(f"loss={name}", "beta=0.7").loss.beta == 0.7


def variants(loss: Choice) -> list[dict[str, Any]]:
    """The default parameters, and two more sets of every number."""
    found = [dict(loss.params)]
    for factor in (0.5, 1.5):
        numbers = {key: value for key, value in loss.params.items() if isinstance(value, float)}
        found.append({**loss.params, **{key: value * factor or 0.2 * factor for key, value in numbers.items()}})
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_start_is_the_loss_where_policy_and_reference_are_equal(losses, name):
    loss = losses[name]
    known = facts_of(loss)
    if known.start is None:
        pytest.skip("depends on the model")
    for size in (2, 3) if known.lists else (2,):
        sample = Sample.of(41, 3, size)
        pairs = replace(sample, logits=sample.ref_logits).pairs()
        for params in variants(loss):
            value = evaluate(loss, pairs, **params).mean(-1)
            torch.testing.assert_close(value, torch.full_like(value, known.start(**params)), rtol=1e-12, atol=0)


def one_pair(a: float, b: float) -> PairLogRatios:
    """One pair of one-token responses whose log-ratios are a and b; `logps` is the leaf."""
    ref = torch.tensor([[[-3.0, -4.0]]], dtype=torch.float64)
    logps = (ref + torch.tensor([a, b], dtype=torch.float64)).requires_grad_()
    mask = torch.ones(1, 1, 2, 1, dtype=torch.bool)
    whole = torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64).log().expand(1, 1, 2, 1, 3)
    return PairLogRatios(logps, ref, mask.sum(-1), None, logps[..., None], ref[..., None], mask, whole, whole)


def slopes(loss: Choice, params: Mapping[str, Any], a: float, b: float) -> tuple[float, float, float]:
    """The loss of one pair, and its slopes in a and in b."""
    pairs = one_pair(a, b)
    value = evaluate(loss, pairs, **params).sum()
    (gradient,) = torch.autograd.grad(value, pairs.logps)
    return value.item(), *gradient[0, 0].tolist()


def slope_in_h(loss: Choice, params: Mapping[str, Any], h: float) -> float:
    """dL/dh along a = -b = h/2."""
    _, in_a, in_b = slopes(loss, params, h / 2, -h / 2)
    return (in_a - in_b) / 2


@pytest.mark.parametrize("name", NAMES)
def test_a_finite_optimum_is_where_the_loss_of_one_pair_is_least(losses, name):
    loss, known = losses[name], facts_of(losses[name])
    if known.optimum is None or not math.isfinite(known.optimum(**loss.params)):
        pytest.skip("states no finite optimum")
    for params in variants(loss):
        h = known.optimum(**params)
        scale = abs(slope_in_h(loss, params, 0.0))
        below, at, above = (slope_in_h(loss, params, x) for x in (h * (1 - 1e-3), h, h * (1 + 1e-3)))
        assert below < 0 <= above
        if above > 0:  # a hinge is flat from its optimum on
            assert abs(at) < 1e-12 * scale
            assert brentq(
                lambda x, p=params: slope_in_h(loss, p, x), 0, 3 * h, xtol=1e-13, rtol=1e-14
            ) == pytest.approx(h, rel=1e-9)
            # Both sides, not only their difference: the pair rests there.
            assert slopes(loss, params, h / 2, -h / 2)[1:] == pytest.approx((0, 0), abs=1e-12 * scale)
        else:
            assert slope_in_h(loss, params, 3 * h) == 0


# Along a = -b these turn, for the chosen response has an end of its own: NCA's A stops at log 2 (on this path, where b
# pulls too, at log 3), APO-down lowers it. What grows without end is the fall of the rejected response.
TURNS = {"nca": lambda beta: 2 * LOG3 / beta, "apo_down": lambda beta: brentq(_apo_down_slope, 0.1, 10) / beta}


def _apo_down_slope(u: float) -> float:
    return s(u / 2) * s(-u / 2) / 2 - s(u) * s(-u)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_finite_optimum_a_larger_margin_is_always_better(losses, name):
    """Up to h = 600/beta, where the slope of the logistic loss is 1e-261."""
    loss, known = losses[name], facts_of(losses[name])
    if known.optimum is None or math.isfinite(known.optimum(**loss.params)):
        pytest.skip("states no infinite optimum")
    for params in variants(loss):
        grid = [h / params.get("beta", 1.0) for h in (0, 1e-3, 0.1, 1, 3, 10, 30, 100, 300, 600)]
        for h in grid:
            value, _, in_b = slopes(loss, params, 0.0, -h)
            assert in_b > 0 or value < 1e-290, f"b = {-h}"  # the rejected response is always pushed down
            if name not in TURNS:
                value = slopes(loss, params, h / 2, -h / 2)[0]
                assert slope_in_h(loss, params, h) < 0 or abs(value) < 1e-290, f"h = {h}"
        if name in TURNS:
            turn = TURNS[name](params["beta"])
            assert slope_in_h(loss, params, turn * 0.999) < 0 < slope_in_h(loss, params, turn * 1.001)


def test_discopop_goes_to_a_local_minimum_below_the_start(losses):
    """So it states no optimum: u/tau = -2.37140 from u = 0, and beyond the maximum at 1.44012 towards infinity."""
    loss = losses["discopop"]
    assert facts_of(loss).optimum is None
    unit = loss.params["tau"] / loss.params["beta"]
    roots = [brentq(lambda x: slope_in_h(loss, loss.params, x * unit), *ends) for ends in ((-5, -1), (0.5, 3))]
    assert roots == pytest.approx([-2.37140, 1.44012], abs=1e-5)
    assert slope_in_h(loss, loss.params, 0.0) > 0


def leaves(pairs: PairLogRatios) -> dict[str, Tensor]:
    """The fields that can carry a gradient, as leaves."""
    names = ("logps", "token_logps", "log_pi")
    return {name: getattr(pairs, name).detach().requires_grad_() for name in names if getattr(pairs, name) is not None}


def gradients(loss: Choice, pairs: PairLogRatios) -> tuple[Tensor, list[Tensor | None]]:
    at = leaves(pairs)
    value = evaluate(loss, replace(pairs, **at))
    return value.detach(), list(torch.autograd.grad(value.sum(), list(at.values()), allow_unused=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_without_reference_does_not_look_at_it(losses, name):
    pairs = Sample.of(51, 2).pairs()
    nan = {f: torch.full_like(getattr(pairs, f), torch.nan) for f in ("ref_logps", "ref_token_logps", "ref_log_pi")}
    value, gradient = gradients(losses[name], pairs)
    blind, blind_gradient = gradients(losses[name], replace(pairs, **nan))
    if facts_of(losses[name]).reference:
        assert torch.isnan(blind).any()
    else:
        torch.testing.assert_close(blind, value, rtol=0, atol=0)
        torch.testing.assert_close(blind_gradient[0], gradient[0], rtol=0, atol=0)


TOKENS = ("token_logps", "ref_token_logps", "mask")
WHOLE = ("log_pi", "ref_log_pi")


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_gets_by_without_the_fields_it_does_not_ask_for_and_needs_those_it_does(losses, name):
    pairs, known = Sample.of(52, 2).pairs(), facts_of(losses[name])
    missing = (() if known.tokens else TOKENS) + (() if known.vocabulary else WHOLE)
    bare = replace(pairs, **dict.fromkeys(missing))
    assert torch.equal(evaluate(losses[name], bare), evaluate(losses[name], pairs))
    for asked, fields in ((known.tokens, TOKENS), (known.vocabulary, WHOLE)):
        if asked:
            with pytest.raises((AssertionError, TypeError, AttributeError)):
                evaluate(losses[name], replace(pairs, **dict.fromkeys(fields)))


def test_a_mix_asks_for_what_its_terms_ask_for(convert):
    mixed = convert("loss=mix", "loss@loss.terms.a=tdpo2", "loss@loss.terms.b=sft").loss
    assert facts_of(mixed) == Facts(tokens=True, vocabulary=True)
    free = convert("loss=mix", "loss@loss.terms.a=simpo", "loss@loss.terms.b=sft").loss
    assert facts_of(free) == Facts(reference=False)


@pytest.mark.parametrize("name", NAMES)
def test_each_run_of_a_stack_has_its_own_hyper_parameters(losses, name):
    runs = [replace(losses[name], params=params) for params in variants(losses[name])]
    for order in (runs, [*reversed(runs)], [runs[1], losses["dpo"], runs[0]]):
        pairs = Sample.of(53, 3).pairs()
        together = StackLoss(order, torch.device("cpu"), torch.float64)(pairs)
        for r, run in enumerate(order):
            alone = evaluate(run, pairs.of_runs(torch.tensor([r])))
            torch.testing.assert_close(together[r], alone[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_padding_has_no_say_and_no_gradient(losses, name):
    sample = Sample.of(54, 2)
    pairs = sample.pairs()
    outside = ~sample.mask
    noise = {"token_logps": 7.0 * outside, "ref_token_logps": -5.0 * outside}
    noise |= {"log_pi": 3.0 * outside[..., None], "ref_log_pi": -2.0 * outside[..., None]}
    noisy = replace(pairs, **{key: getattr(pairs, key).detach() + extra for key, extra in noise.items()})
    torch.testing.assert_close(evaluate(losses[name], noisy), evaluate(losses[name], pairs), rtol=1e-13, atol=0)
    for gradient in gradients(losses[name], noisy)[1][1:]:
        if gradient is not None:
            assert (gradient[outside] == 0).all()
    (through,) = torch.autograd.grad(evaluate(losses[name], pairs).sum(), sample.logits)
    assert (through[outside] == 0).all()
    assert (through[sample.mask] != 0).any()


# ---- E. A new loss is one function, one file of conf/loss and one row of test_loss_precision.EQUATIONS

NEW_FUNCTION = """
import math
from torch import Tensor
from src.losses.base import PairLogRatios, Positive, facts

@facts(start=lambda beta, power: {start}, optimum=lambda beta, power: 1 / beta)
def quartic(pairs: PairLogRatios, *, beta: Positive, power: Positive) -> Tensor:
    return (1 - beta * pairs.h).abs() ** power
"""
NEW_FILE = """# A loss nobody has published.
_target_: new_losses.quartic
name: quartic
beta: ${beta}
power: 4.0
"""


@pytest.fixture
def with_new_loss(tmp_path, cli) -> Callable[..., Any]:
    """`python -m src.run` beside a module new_losses.py and a folder more/loss, neither of them in the repository."""

    def run(*arguments: str, start: str = "1.0") -> Any:
        (tmp_path / "new_losses.py").write_text(NEW_FUNCTION.format(start=start))
        (tmp_path / "more" / "loss").mkdir(parents=True, exist_ok=True)
        (tmp_path / "more" / "loss" / "quartic.yaml").write_text(NEW_FILE)
        path = f"{CONF.parent}:{tmp_path}"
        search = f"hydra.searchpath=[file://{tmp_path}/more]"
        return cli(*arguments, *TOY[:-1], "steps=2", search, cwd=tmp_path, PYTHONPATH=path)

    return run


def statuses(folder) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/status.json"))]


def test_a_new_loss_is_a_function_and_a_file(with_new_loss, tmp_path):
    done = with_new_loss("-m", "loss=quartic,dpo", "loss.beta=0.1,0.5", "sweep=s")
    assert done.returncode == 0, done.stderr
    found = statuses(tmp_path / "outputs" / "s")
    assert [(status["state"], status["steps_done"]) for status in found] == [("finished", 2)] * 4


def test_its_parameters_and_its_stated_start_are_checked_like_any_others(with_new_loss, tmp_path):
    done = with_new_loss("loss=quartic", "loss.power=-1")
    assert done.returncode != 0
    assert "loss.power=-1" in done.stderr
    done = with_new_loss("loss=quartic", "sweep=t", start="2.0")
    assert done.returncode != 0
    assert "must start at 2" in done.stdout + done.stderr
