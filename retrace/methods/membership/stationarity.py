"""Membership by stationarity: layers hold rows and columns of training images, not of others."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retrace.methods._stationarity import RIDGE, Columns, chain_of, changed_rows, row_distances
from retrace.types import BadInput, Callback, ignore

LEAST = 1e-12  # distance below which float64 says nothing
STEADY = 1e-6  # deviation of the logarithms below which public images are all one

Tests = Literal["both", "rows", "columns"]


def reconstruct(
    network: nn.Module,
    observed: Tensor,
    *,
    beside: dict[str, Tensor],
    tests: Tests = "both",
    ridge: Annotated[float, Field(gt=0, lt=1)] = RIDGE,
    callback: Callback = ignore,
) -> Tensor:
    """Say how near to what the layers hold an image lies, as seen beside images that are public.

    No label is asked for, no other network, and no image that is known to be a member. Rows tell
    where they leave room: the first layer's of fewer images than pixels, later ones' of fewer
    images than units. Columns ask for weight decay and a training that has come near to a
    standstill. Of a fine-tuned network the first layer from which it began is known: see
    retrace/methods/_stationarity.py.

    Each distance is compared with those of the public images, in standard deviations of its
    logarithm, and the test by which an image stands out most decides: the smallest of several
    p-values (Tippett 1931), since an image may be missing from one test and clear in another.

    Parameters
    ----------
    network : Module
        A chain of linear layers: see `chain_of`.
    observed : (N, *shape)
        Images in [0, 1].
    beside : dict
        ``public`` (m, *shape), at least two images of the same kind that are no members.
    tests : "both", "rows" or "columns"
        Rows of all hidden layers; columns of the first.
    ridge : float
        See `Columns`.
    callback : function
        Not called: nothing is iterated.

    Returns
    -------
    (N,) float32
        Standard deviations by which an image lies nearer than public ones: the larger, the more
        likely a member.

    Raises
    ------
    BadInput
        When the network is not covered, images are of another size or not in [0, 1], there are too
        few public images, all at one distance, or no row space leaves room and only rows are asked
        for.
    """
    public = beside.get("public")
    if public is None or len(public) < 2:
        raise BadInput(
            "public: at least two images of the same kind that are no members are needed"
        )
    for name, images in (("observed", observed), ("public", public)):
        if not bool(((images >= 0) & (images <= 1)).all()):  # NaN neither
            raise BadInput(f"{name}: pixels are in [0, 1]; others are not allowed")
    if observed.shape[1:] != public.shape[1:]:
        raise BadInput(
            f"observed has images of shape {tuple(observed.shape[1:])}, public of "
            f"{tuple(public.shape[1:])}: the same is needed"
        )
    # At once: the layers are decomposed anew in each call.
    distances = distances_of(network, torch.cat([observed, public]), tests=tests, ridge=ridge)
    return standing_out(distances[: len(observed)], distances[len(observed) :])


def distances_of(
    network: nn.Module, images: Tensor, *, tests: Tests = "both", ridge: float = RIDGE
) -> Tensor:
    """Relative distances of images (m, *shape) in [0, 1], by test: (m, k) float64.

    Raises
    ------
    BadInput
        See `reconstruct`.
    """
    chain = chain_of(network)
    rows, duals = changed_rows(network, chain)
    flat = images.flatten(1)
    if flat.shape[1] != len(chain.mean):
        raise BadInput(
            f"images of shape {tuple(images.shape)} have {flat.shape[1]} pixels each; the network "
            f"takes {len(chain.mean)}"
        )
    found = []
    if tests != "rows":
        found.append(Columns(chain, rows, ridge=ridge).fit(flat, duals=duals)[0][:, None])
    if tests != "columns":
        found.append(row_distances(chain, rows, flat))
    distances = torch.cat(found, dim=1)
    if distances.shape[1] == 0:
        raise BadInput("tests = rows: the rows of all layers span whatever these can get")
    return distances


def standing_out(distances: Tensor, public: Tensor) -> Tensor:
    """By how many standard deviations images stand out, in the test where they do most, (m,)
    float32, by their distances (m, k) and those of public images (p, k).

    Raises
    ------
    BadInput
        When the public images are all at one distance, in every test.
    """
    logs, usual = (part.clamp(min=LEAST).log() for part in (distances, public))
    deviation = usual.std(dim=0)
    told = deviation > STEADY
    if not bool(told.any()):
        raise BadInput("public: all images lie at one distance; other images are needed")
    scores: Tensor = ((usual.mean(dim=0) - logs) / deviation)[:, told].amax(dim=1).float()
    return scores
