"""How many members of a training set a score finds, and how many other images it takes for some."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from retrace.measures import identification, membership
from retrace.pipeline.command import Refusal, WrongValue
from retrace.problems import BaseScorer, Ground, Run, Scores

JUDGES = ()
BASELINE = None


class Parts(NamedTuple):
    """Positions among the observed images."""

    members: Tensor  # (n,) int64, of the training set
    held_out: Tensor  # (m,), of images that the network never saw
    duplicates: int  # held-out images that nearly equal a member, which were left out


def parts_of(ground: Ground, network: str) -> Parts:
    """Members of a network's training set, and images that it never saw, neither before nor in
    fine-tuning.

    Raises
    ------
    WrongValue
        When the network has no training set of so many images of each class, or one that is not
        among the observed images.
    """
    record = ground.load(network)[1]
    training: dict[str, Any] = record["training"]
    where = f"params.yaml: networks.{network}.training"
    if not {"per_class", "offset", "others"} <= set(training):
        raise WrongValue(f"{where}: no training set is chosen there; an mlp has one")
    first = training["offset"]
    last = first + training["per_class"]
    ranks, held_out = (torch.from_numpy(ground.truth[key]) for key in ("ranks", "held_out"))
    known = int(ranks[~held_out].max()) + 1
    if last > known:
        raise WrongValue(
            f"{where}: offset + per_class = {last}: the first {known} images of each class are "
            "observed (problems.membership.settings.per_class)"
        )
    members = torch.nonzero(~held_out & (ranks >= first) & (ranks < last)).flatten()
    others = training["others"] if record["arguments"]["fine_tuned"] else 0
    never = torch.nonzero(held_out & (ranks >= last + others)).flatten()
    images = torch.from_numpy(ground.given["observed"])
    found = identification.near_duplicates(
        images[members].flatten(1), images[never].flatten(1), shape=tuple(images.shape[1:])
    )
    copies = found.of != identification.UNMATCHED
    if bool(copies.all()):
        raise WrongValue(f"{where}: no observed image is left that the network never saw")
    return Parts(members, never[~copies], int(copies.sum()))


class Scorer(BaseScorer):
    """True-positive rates at 0, 0.1 % and 1 % false positives, and the area under the ROC curve."""

    def __call__(self, run: Run) -> tuple[Scores, Scores]:
        parts = parts_of(self.ground, run.record["network"])
        estimate = torch.from_numpy(run.arrays["estimate"])
        count = len(self.ground.truth["ranks"])
        if estimate.shape != (count,):
            raise Refusal(
                f"{run.name}: estimate has shape {tuple(estimate.shape)}; ({count},) is expected"
            )
        scores = self.means(membership.told(estimate[parts.members], estimate[parts.held_out]))
        counts = {"null_n": len(parts.held_out), "null_duplicates": parts.duplicates}
        test_error = self.ground.load(run.record["network"])[1]["epochs"][-1]["test_error"]
        found = {"n": len(parts.members), **counts, "test_error": test_error, **scores}
        return found, {key: scores[key] for key in ("tpr_0", "tpr_1", "auc")}
