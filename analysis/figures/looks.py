"""How a curve looks: a colour and a marker for its loss, the same in every figure, and a shade for its beta."""

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import seaborn as sns

from analysis.statistics import Curve
from analysis.sweep import REWARD_MODEL

RGB = tuple[float, float, float]


class Look(NamedTuple):
    """A colour safe for colour-blind readers, and a marker where colour is lost."""

    colour: RGB
    marker: str


# Every loss of conf/loss/, as it is called in a figure. Its place in this list is its look: new ones go at the end.
# The first seven, those compared most, have a colour each.
NAMES = {
    "dpo": "DPO", "ipo": "IPO", "kto": "KTO", "simpo": "SimPO", "cdpo": "cDPO", "hinge": "hinge", "orpo": "ORPO",
    "robust": "robust DPO", "ipo_avg": "IPO avg", "slic_hf": "SLiC-HF", "exp": "exponential", "probit": "probit",
    "distill": "distilled DPO", "exo": "EXO", "nca": "NCA", "bco": "BCO", "apo_zero": "APO zero",
    "apo_down": "APO down", "sppo_hard": "SPPO hard", "cal_dpo": "Cal-DPO", "dpop": "DPOP", "cpo": "CPO",
    "r_dpo": "R-DPO", "sigmoid_norm": "sigmoid norm", "ld_dpo": "LD-DPO", "f_dpo": "f-DPO", "chi_po": "χPO",
    "wpo": "WPO", "beta_dpo": "β-DPO", "discopop": "DiscoPOP", "aot": "AOT", "aot_unpaired": "AOT unpaired",
    "tdpo1": "TDPO1", "tdpo2": "TDPO2", "rpo": "RPO", "sft": "SFT", "mix": "mix",
    "pair_logistic": "pair logistic", "list_mle": "ListMLE", "list_softmax": "list softmax",
    "lambda_loss": "LambdaLoss", "pair_hinge": "pair hinge", "f_dpo_alpha": "α-f-DPO",
}  # fmt: skip

# seaborn's palette without its pink, grey and yellow, which are too pale to be lightened for a beta. Neighbours in the
# list differ in both colour and marker; 7 and 9 have no common factor, so each of the 63 pairs comes once.
COLOURS: list[RGB] = [sns.color_palette("colorblind")[i] for i in (3, 0, 2, 4, 1, 9, 5)]
MARKERS = "os^DvPX<>"
LOOKS = [
    Look(COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
    for i in range(len(COLOURS) * len(MARKERS))
]


def of_losses(losses: Iterable[str]) -> dict[str, Look]:
    """The looks of the losses of one figure.

    One that is not in `NAMES` takes a look that none there has, by its name; where two of a figure would get the same,
    the second in the alphabet takes the next one that is free.
    """
    known = list(NAMES)
    spare = LOOKS[len(known) :]
    taken: dict[str, Look] = {}
    for loss in sorted({*losses} - {*known}):
        first = zlib.crc32(loss.encode())
        turns = [spare[(first + turn) % len(spare)] for turn in range(len(spare))]
        taken[loss] = next((look for look in turns if look not in taken.values()), turns[0])
    return {loss: LOOKS[known.index(loss)] if loss in NAMES else taken[loss] for loss in losses}


def of_curves(found: Sequence[Curve]) -> dict[tuple[str, float], Look]:
    """(loss, beta) -> the look of its loss, lighter the greater beta is among the betas of that loss."""
    betas = {curve.loss: sorted({other.beta for other in found if other.loss == curve.loss}) for curve in found}
    base = of_losses(betas)
    return {
        (loss, beta): Look(shade(base[loss].colour, i, len(those)), base[loss].marker)
        for loss, those in betas.items()
        for i, beta in enumerate(those)
    }


def shade(colour: RGB, position: int, of: int) -> RGB:
    """The colour mixed with white: the first (smallest beta) of `of` stays pure, the last is lightest."""
    white = 0.55 * position / max(of - 1, 1)
    red, green, blue = (c + (1 - c) * white for c in colour)
    return red, green, blue


def trained_name(loss: str, objective: str) -> str:
    """DPO, or where it is not a policy that is trained, DPO reward model."""
    return loss_name(loss) + (" reward model" if objective == REWARD_MODEL else "")


def loss_name(loss: str) -> str:
    """`slic_hf` -> SLiC-HF; a name that is not known stays as it is."""
    return NAMES.get(loss, loss)
