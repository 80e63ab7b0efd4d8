"""Choose the settings of `denoising_score` on validation images, one changed at a time.

Prints, over missing pixels, the MSE as a ratio to ridge and the share of open pixels inside the
50, 80 and 95 % intervals, and the SSIM of the completed images. No test image is read. The defaults
of `denoising_score` were chosen from this table. With ``--combined`` the last lines are `combined`,
and its average with `denoising_score`.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.tune_imputation import MASKS, cell, validation
from retrace.measures.uncertainty import INTERVALS, OPEN
from retrace.methods.imputation import combined, denoising_score
from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint
from retrace.pipeline.params import load

RUN = "imputation-denoising_score"
CANDIDATES: list[dict[str, Any]] = [
    {},
    {"levels": 6},
    {"levels": 10},
    {"levels": 16},
    {"highest_noise": 1.5},
    {"highest_noise": 3.0},
    {"lowest_noise": 0.1},
    {"lowest_noise": 0.3},
    {"penalty": 0.0003},
    {"penalty": 0.003},
    {"samples": 12},
    {"samples": 40},
]


def open_coverage(answer: dict[str, Tensor], truth: Tensor, observed: Tensor) -> str:
    """Per cent of the open pixels inside each interval; see `measures.uncertainty.score`."""
    is_open = observed.isnan() & (answer["deviation"] > OPEN)
    grey, quantiles = (truth * 255).round(), answer["quantiles"]
    shares = [
        (((quantiles[:, low] <= grey) & (grey <= quantiles[:, high]))[is_open]).double().mean()
        for low, high in INTERVALS.values()
    ]
    return ", ".join(f"{100 * share:.0f}" for share in shares)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=int, default=150, help="of the validation set, the first")
    parser.add_argument("--masks", nargs="+", default=MASKS, choices=MASKS)
    parser.add_argument(
        "--keys", nargs="*", help="only candidates that change one of these, if any"
    )
    parser.add_argument("--combined", action="store_true", help="and the average with `combined`")
    given = parser.parse_args()
    torch.set_num_threads(1)
    params = load()
    entry = params.runs[RUN]
    denoiser, _ = load_checkpoint(checkpoint_path(entry.network))
    images, observed, linear = validation(params, masks=given.masks, count=given.images)
    print("| change | " + " | ".join(given.masks) + " | CPU seconds for 1,000 images |")
    print("| --- |" + " ---: |" * (len(given.masks) + 1))

    def line(name: str, cells: list[str], seconds: float) -> None:
        each = 1000 * seconds / len(images) / len(given.masks)
        print(f"| {name} | " + " | ".join(cells) + f" | {each:.0f} |", flush=True)

    estimates: dict[str, Tensor] = {}  # of the first candidate, nothing changed
    for change in CANDIDATES:
        if change and given.keys is not None and not set(given.keys) & set(change):
            continue
        started, cells = time.process_time(), []
        for mask in given.masks:
            answer = denoising_score.reconstruct(
                denoiser,  # type: ignore[arg-type]
                observed[mask],
                **{**entry.settings, **change},
            )
            estimates.setdefault(mask, answer["estimate"])
            cells.append(
                cell(answer["estimate"], images, observed[mask], linear=linear[mask])
                + f" / {open_coverage(answer, images, observed[mask])}"
            )
        shown = ", ".join(f"{key} {value}" for key, value in change.items()) or "none"
        line(shown, cells, time.process_time() - started)
    if given.combined:
        best = params.runs["imputation-combined"]
        prior, _ = load_checkpoint(checkpoint_path(best.network))
        started, theirs = time.process_time(), {}
        for mask in given.masks:
            theirs[mask] = combined.reconstruct(
                prior,  # type: ignore[arg-type]
                observed[mask],
                **best.settings,
            )
        seconds = time.process_time() - started
        for share in (0.0, 0.3, 0.5, 0.7):
            mixed = {m: torch.lerp(theirs[m], estimates[m], share) for m in given.masks}
            cells = [cell(mixed[m], images, observed[m], linear=linear[m]) for m in given.masks]
            line(f"`combined`, {100 * share:.0f} % replaced by it", cells, seconds)


if __name__ == "__main__":
    main()
