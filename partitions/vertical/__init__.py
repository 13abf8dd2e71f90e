"""Distribution of columns among parties, for vertical federated learning.

    shares.py       equal numbers of columns, or given columns      `vertical`
    importance.py   parties of unequal importance (alpha)           `vertical_importance`
    correlation.py  parties whose columns correlate (beta)          `vertical_correlation`

Party 0 is the active party: the server, with the labels. The clients 0..P-2 are the passive parties 1..P-1.
"""

from fl.data.column_correlation import icor, pcor, spearman
from fl.data.column_importance import alpha_of, importance_of, linear_shapley, shapley

from .correlation import beta_of, split_by_correlation
from .importance import importance_owners
from .shares import Vertical, equal_shares

__all__ = [
    "Vertical",
    "alpha_of",
    "beta_of",
    "equal_shares",
    "icor",
    "importance_of",
    "importance_owners",
    "linear_shapley",
    "pcor",
    "shapley",
    "spearman",
    "split_by_correlation",
]
