"""Bradley-Terry and Thurstone-Mosteller: scores from who beat whom.

    data = Comparisons.from_records([("A", "B", 7), ("B", "A", 3)])
    existence(data)             is there a finite estimate, and if not, which split forbids it?
    fit(data)                   the maximum-likelihood estimate, its standard errors and deviances
    descend(data, epochs=..)    gradient descent, in scores or in strengths, every epoch kept
    divergence(data)            where gradient descent goes when there is no finite estimate, and how fast

DPO in a bandit is this model with s = beta (log pi - log ref) (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7).
"""

from src.bradley_terry.comparisons import Comparisons, Existence, NoFiniteEstimate, existence
from src.bradley_terry.descent import Descent, descend
from src.bradley_terry.divergence import Divergence, divergence
from src.bradley_terry.likelihood import LINKS, nll
from src.bradley_terry.mle import Fit, fit

__all__ = [
    "LINKS",
    "Comparisons",
    "Descent",
    "Divergence",
    "Existence",
    "Fit",
    "NoFiniteEstimate",
    "descend",
    "divergence",
    "existence",
    "fit",
    "nll",
]
