"""How good completed images are, beside ridge regression on the same images and masks."""

from typing import Any

import numpy as np
import torch

from retrace.measures import quality, uncertainty
from retrace.pipeline.artifacts import reconstruction_path
from retrace.pipeline.command import Refusal
from retrace.problems import BaseScorer, Run, Scores

HEADLINE = ("mse", "psnr", "ssim", "mse_over_ridge", "known_residual", "agreement")
JUDGES = ("classifier",)
BASELINE = "ridge"


class Scorer(BaseScorer):
    """Scores under each mask; of a run with samples also what those are worth.

    ``mse`` and ``psnr`` over missing pixels only; ``ssim`` and ``agreement`` of the completed
    image, the known pixels pasted in; ``known_residual`` is the MSE on the known pixels before
    they are pasted; ``agreement`` is the share of completed images that the classifier labels as
    it labels the original; ``mse_over_ridge`` compares with ridge regression on the same images
    and mask.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        ground = self.ground
        self.observed = torch.from_numpy(ground.given["observed"])  # (masks, n, 28, 28)
        self.masks: list[str] = ground.given["masks"].tolist()
        self.truth, self.labels = (
            torch.from_numpy(ground.truth[key]) for key in ("images", "labels")
        )
        self.classifier = ground.network("classifier")
        self.truth_labels = quality.labels_of(self.classifier, self.truth)
        right = quality.labels_of(self.classifier, ground.split("test")[0])
        accuracy = (right == ground.split("test")[1]).double().mean().item()
        self.baselines = {"classifier_accuracy": accuracy}
        ridge = [name for name, record in self.records.items() if record["method"] == BASELINE]
        if ridge:
            path = reconstruction_path(ground.problem, ridge[0])
            estimate = torch.from_numpy(ground.read(path)["estimate"])
            self.baselines["ridge_mse"] = {
                mask: float(quality.mse(found.clamp(0, 1), self.truth, where=seen.isnan()).mean())
                for mask, found, seen in zip(self.masks, estimate, self.observed, strict=True)
            }

    def __call__(self, run: Run) -> tuple[Scores, Scores]:
        estimate = torch.from_numpy(run.arrays["estimate"])
        if estimate.shape != self.observed.shape:
            raise Refusal(
                f"{run.name}: estimate has shape {tuple(estimate.shape)}; "
                f"{tuple(self.observed.shape)} is expected"
            )
        masks = {mask: self._of_mask(run, i) for i, mask in enumerate(self.masks)}
        # The mean over masks, for `dvc metrics show`: a table that fits on a screen.
        headline = {
            key: float(np.mean([mask[key] for mask in masks.values()]))
            for key in HEADLINE
            if all(key in mask for mask in masks.values())
        }
        return {"n": len(self.truth), "masks": masks}, headline

    def _of_mask(self, run: Run, i: int) -> Scores:
        estimate, observed = torch.from_numpy(run.arrays["estimate"][i]), self.observed[i]
        missing = observed.isnan()
        completed = torch.where(missing, estimate.clamp(0, 1), observed)
        labels = quality.labels_of(self.classifier, completed)
        measures = {
            "mse": quality.mse(completed, self.truth, where=missing),
            "ssim": quality.ssim(completed, self.truth),
            "known_residual": quality.mse(estimate, self.truth, where=~missing),
            "agreement": (labels == self.truth_labels).double(),
        }
        scores: Scores = {**quality.with_psnr(self.means(measures))}
        if "ridge_mse" in self.baselines:
            scores["mse_over_ridge"] = scores["mse"] / self.baselines["ridge_mse"][self.masks[i]]
        if all(key in run.arrays for key in uncertainty.ARRAYS):
            scores |= uncertainty.score(
                *(torch.from_numpy(run.arrays[key][i]) for key in uncertainty.ARRAYS),
                truth=self.truth,
                observed=observed,
                labels=self.labels,
                classifier=self.classifier,
                means=self.means,
            )
        return scores
