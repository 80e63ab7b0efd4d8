"""Choose the settings of `combined` on validation images: one changed at a time, a line each.

Prints the MSE over missing pixels as a ratio to ridge, and the SSIM of the completed images. No
test image is read. The defaults of `combined` were chosen from this table.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrace.data.masks import missing_pixels
from retrace.measures import quality
from retrace.methods.imputation import combined, ridge
from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint, read_split
from retrace.pipeline.params import Params, load

SEED = 100  # of the random masks, which are not those of the test images
MASKS = ("band", "bottom", "centre", "random_50", "random_90")
CANDIDATES: list[dict[str, Any]] = [
    {},
    {"likelihood_blocks": 0.7},
    {"likelihood_blocks": 1.5},
    {"likelihood_scattered": 2.5},
    {"likelihood_scattered": 8.0},
    {"residual_penalty": 0.001},
    {"residual_penalty": 0.01},
    {"mixture_penalty": 0.001},
    {"mixture_blocks": 0.3, "mixture_scattered": 0.3},
    {"mixture_blocks": 0.5, "mixture_scattered": 0.5},
    {"threshold_blocks": 0.0, "threshold_scattered": 0.0},
    {"threshold_blocks": 0.2, "threshold_scattered": 0.2},
    {"threshold_blocks": 0.3, "threshold_scattered": 0.3},
    {"starts": 3},
    {"search_steps": 25},
    {"samples": 50},
]


def validation(
    params: Params, *, masks: Sequence[str], count: int
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The first validation images (n, 28, 28); by mask, what is observed of them, and ridge's
    estimate."""
    gaussian, _ = load_checkpoint(checkpoint_path("gaussian"))
    images = read_split("validation")[0][:count]
    observed, linear = {}, {}
    for mask in masks:
        hidden = missing_pixels(params.masks.patterns[mask], count=len(images), seed=SEED)
        observed[mask] = torch.where(torch.from_numpy(hidden), torch.nan, images)
        linear[mask] = ridge.reconstruct(gaussian, observed[mask])
    return images, observed, linear


def cell(estimate: Tensor, truth: Tensor, observed: Tensor, *, linear: Tensor) -> str:
    """MSE over missing pixels as a ratio to that of `linear`, and SSIM of the completed images."""
    missing = observed.isnan()
    whole = torch.where(missing, estimate, truth)
    ours, theirs = (quality.mse(x, truth, where=missing).mean() for x in (whole, linear))
    return f"{ours / theirs:.3f} / {quality.ssim(whole, truth).mean():.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=int, default=300, help="of the validation set, the first")
    parser.add_argument("--masks", nargs="+", default=MASKS, choices=MASKS)
    parser.add_argument("--keys", nargs="+", help="only candidates that change one of these")
    given = parser.parse_args()
    torch.set_num_threads(1)
    params = load()
    settings = params.runs["imputation-combined"].settings
    prior, _ = load_checkpoint(checkpoint_path(params.runs["imputation-combined"].network))
    images, observed, linear = validation(params, masks=given.masks, count=given.images)
    print("| change | " + " | ".join(given.masks) + " | CPU seconds |")
    print("| --- |" + " ---: |" * (len(given.masks) + 1))
    for change in CANDIDATES:
        if change and given.keys and not set(given.keys) & set(change):
            continue
        started, cells = time.process_time(), []
        for mask in given.masks:
            estimate = combined.reconstruct(
                prior,  # type: ignore[arg-type]
                observed[mask],
                **{**settings, **change},
            )
            cells.append(cell(estimate, images, observed[mask], linear=linear[mask]))
        shown = ", ".join(f"{key} {value}" for key, value in change.items()) or "none"
        seconds = time.process_time() - started
        print(f"| {shown} | " + " | ".join(cells) + f" | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
