"""How well a score tells members of a training set from other images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.95  # of intervals
# False-positive rates that may be allowed, by the ends of their keys in a metrics file, in percent.
ALLOWED = {"0": 0.0, "0.1": 0.001, "1": 0.01}


def threshold(held_out: Tensor, allowed: float) -> float:
    """The score that at most so large a share of the held-out images' (m,) exceeds: one of them."""
    order = held_out.double().sort(descending=True).values
    return float(order[int(allowed * len(order))])


def told(members: Tensor, held_out: Tensor) -> dict[str, Tensor]:
    """Of each member (n,), by its score and those of the held-out images (m,), float64:

    ``tpr_<percent>``, 1 where it exceeds all but so many held-out images, so that the mean is the
    true-positive rate; and ``auc``, the share of the held-out images below it (of equal ones half),
    whose mean is the area under the ROC curve.
    """
    found = {
        f"tpr_{name}": (members.double() > threshold(held_out, allowed)).double()
        for name, allowed in ALLOWED.items()
    }
    order = held_out.double().sort().values
    below = torch.searchsorted(order, members.double(), right=False)
    equal = torch.searchsorted(order, members.double(), right=True)
    return {**found, "auc": (below + equal).double() / (2 * len(order))}


def interval(rates: Sequence[float], count: int) -> tuple[list[float], list[float]]:
    """Ends of the 95 % intervals of rates among so many (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv  # here: it takes 0.2 s

    hits = np.asarray(rates) * count
    low = betaincinv(hits, count - hits + 1, (1 - LEVEL) / 2)
    high = betaincinv(hits + 1, count - hits, (1 + LEVEL) / 2)
    # The distributions degenerate where none or all are hit.
    return np.where(hits < 0.5, 0.0, low).tolist(), np.where(hits > count - 0.5, 1.0, high).tolist()


def roc(members: Tensor, held_out: Tensor) -> tuple[list[float], list[float]]:
    """The false-positive and the true-positive rate at every threshold."""
    from sklearn.metrics import roc_curve  # here: it takes 0.4 s

    labels = torch.cat([torch.ones(len(members)), torch.zeros(len(held_out))])
    false, true, _ = roc_curve(labels.numpy(), torch.cat([members, held_out]).double().numpy())
    return false.tolist(), true.tolist()
