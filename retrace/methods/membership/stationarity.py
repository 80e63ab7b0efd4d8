"""Membership by stationarity: the first layer holds columns of training images, not of others."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from retrace.methods._stationarity import RIDGE, Columns, chain_of, changed_rows
from retrace.types import Callback, ignore

LEAST = 1e-12  # residual below which float64 says nothing


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    ridge: Annotated[float, Field(gt=0, lt=1)] = RIDGE,
    callback: Callback = ignore,
) -> Tensor:
    """Say how near each image's column is to the column space of the first layer.

    No label is asked for, no other network, and no image that is known to be a member. The training
    has to have come near to a standstill, with weight decay; or the first layer from which it began
    is known: see retrace/methods/_stationarity.py.

    Parameters
    ----------
    network : Module
        A chain of linear layers: see `chain_of`.
    observed : (N, *shape)
        Images in [0, 1].
    ridge : float
        See `Columns`.
    callback : function
        Not called: nothing is iterated.

    Returns
    -------
    (N,) float32
        -log of the relative distance: the larger, the more likely a member.

    Raises
    ------
    BadInput
        When the network is not covered.
    """
    chain = chain_of(network)
    rows, duals = changed_rows(network, chain)
    residuals, _ = Columns(chain, rows, ridge=ridge).fit(observed.flatten(1), duals=duals)
    scores: Tensor = -residuals.clamp(min=LEAST).log().float()
    return scores
