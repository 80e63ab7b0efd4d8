"""Tables, curves and pictures of all runs, for people, `dvc plots` and the README."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.artifacts import (
    BASELINES,
    DATASET,
    history_path,
    metrics_path,
    observed_path,
    read_arrays,
    read_json,
    read_split,
    reconstruction_path,
    written_whole,
)
from stages.command import run
from stages.params import Params, load
from stages.pictures import completed, sheet

FOLDER = Path("metrics/report")
TABLE = FOLDER / "table.md"
COLUMNS = 10  # images in a picture
Scores = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV, the keys of the first row in its head."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_picture(path: Path, picture: Image.Image) -> None:
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    rule = ["---", *["---:" for _ in head[1:]]]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *rows])


def autoencoding_table(runs: Mapping[str, Scores]) -> str:
    """Every autoencoder on all test images, beside PCA with the same code size."""
    rows = []
    for name, scores in runs.items():
        rows.append(
            [
                f"`{name.removeprefix('autoencoding-')}`",
                str(scores["code_size"]),
                f"{scores['mse']:.4f}",
                f"{scores['mse_low']:.4f} to {scores['mse_high']:.4f}",
                f"{scores['pca_mse']:.4f}",
                f"{scores['mse_over_pca']:.2f}",
                f"{scores['psnr']:.1f}",
                f"{scores['ssim']:.3f}",
            ]
        )
    head = ("network", "code", "MSE", "95 % interval", "PCA's MSE", "ratio", "PSNR, dB", "SSIM")
    return markdown(head, rows)


def imputation_table(runs: Mapping[str, Scores], masks: Sequence[str]) -> str:
    """MSE over missing pixels by mask, best in bold, and means over masks."""
    best = {m: min(scores["masks"][m]["mse"] for scores in runs.values()) for m in masks}
    rows = []
    for name, scores in sorted(runs.items(), key=lambda item: mean_over_masks(item[1], "mse")):
        cells = []
        for mask in masks:
            value = scores["masks"][mask]["mse"]
            cells.append(f"**{value:.3f}**" if value == best[mask] else f"{value:.3f}")
        means = [mean_over_masks(scores, key) for key in ("mse_over_ridge", "ssim", "agreement")]
        rows.append(
            [
                f"`{name.removeprefix('imputation-')}`",
                *cells,
                *(f"{mean:.2f}" for mean in means),
                f"{scores['seconds']:.0f}",
            ]
        )
    return markdown(("run", *masks, "÷ ridge", "SSIM", "agreement", "seconds"), rows)


def mean_over_masks(scores: Scores, key: str) -> float:
    """Mean of a score over the masks of a run."""
    return float(np.mean([mask[key] for mask in scores["masks"].values()]))


def autoencoding_picture(
    runs: Mapping[str, Scores], truth: NDArray[Any], *, title: str
) -> Image.Image:
    """The first test images and what each autoencoder makes of them."""
    rows = {"original": truth[:COLUMNS]}
    for name, scores in runs.items():
        estimate = read_arrays(reconstruction_path(name))["estimate"][:COLUMNS]
        rows[f"{name.removeprefix('autoencoding-')} ({scores['code_size']})"] = estimate
    return sheet(rows, title=title, scale=2)


def imputation_picture(
    runs: Mapping[str, Scores],
    truth: NDArray[Any],
    *,
    mask: int,
    observed: NDArray[Any],
    title: str,
) -> Image.Image:
    """The first test images under one mask and what each method makes of them."""
    given = observed[mask, :COLUMNS]
    rows = {"original": truth[:COLUMNS], "given": given}
    for name in runs:
        estimate = read_arrays(reconstruction_path(name))["estimate"][mask, :COLUMNS]
        rows[name.removeprefix("imputation-")] = completed(estimate, given)
    return sheet(rows, title=title, scale=2)


def iterations_picture(
    arrays: Mapping[str, Any],
    truth: NDArray[Any],
    *,
    mask: int,
    observed: NDArray[Any],
    title: str,
) -> Image.Image:
    """Original, masked, and the estimate after 1, 3, 10, … steps, an image a row."""
    count = arrays["snapshots"].shape[2]
    given = observed[mask, :count]
    frames = [completed(snapshot[mask], given) for snapshot in arrays["snapshots"]]
    columns = np.stack([truth[:count], given, *frames], axis=1)  # (count, 2 + S, 28, 28)
    captions = ["original", "given", *(f"step {step}" for step in arrays["snapshot_steps"])]
    rows = {str(i + 1): row for i, row in enumerate(columns)}
    return sheet(rows, title=title, columns=captions, scale=3)


def code_size_chart(
    path: Path, runs: Mapping[str, Scores], pca_mse: Sequence[float], *, dataset: str
) -> None:
    """MSE against code size: PCA as a curve, each network as a point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    sizes = range(1, 257)
    axes.plot(sizes, [pca_mse[size] for size in sizes], color="#777777", label="PCA")
    for (name, scores), marker in zip(runs.items(), "osDv^P*X", strict=False):
        label = name.removeprefix("autoencoding-")
        axes.plot(scores["code_size"], scores["mse"], marker, markersize=8, label=label)
    axes.set(xscale="log", yscale="log", xlabel="values in the code", ylabel="MSE, test images")
    axes.set_title(f"What the bottleneck costs ({dataset})")
    axes.legend(frameon=False)
    with written_whole(path) as temporary:
        # No date and no version in the file: the same numbers give the same bytes.
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def training_rows(params: Params) -> list[dict[str, Any]]:
    """Validation MSE of every autoencoder by epoch."""
    histories = {name: read_json(history_path(name))["epochs"] for name in params.networks}
    return [
        {"network": name, "epoch": int(e["epoch"]), "validation_mse": e["validation_mse"]}
        for name, epochs in histories.items()
        if "training_loss" in epochs[0] and "validation_mse" in epochs[0]
        for e in epochs
    ]


def main() -> None:
    """Write the tables, curves and pictures of all runs to metrics/report/."""
    params = load()
    dataset = read_json(DATASET)["name"]
    truth = read_split("test")[0][: params.masks.images].numpy()
    scores = {name: read_json(metrics_path(name)) for name in params.runs}
    autoencoding = {n: s for n, s in scores.items() if s["problem"] == "autoencoding"}
    imputation = {n: s for n, s in scores.items() if s["problem"] == "imputation"}
    baselines = read_json(BASELINES)
    right = f"{baselines['classifier_accuracy']:.2%}"
    parts = [
        f"Dataset: **{dataset}**. The classifier behind `agreement` is right on {right} of the "
        "test images."
    ]
    if autoencoding:
        parts += ["### Autoencoding: all test images", autoencoding_table(autoencoding)]
        write_picture(
            FOLDER / "autoencoding.png", autoencoding_picture(autoencoding, truth, title=dataset)
        )
        code_size_chart(
            FOLDER / "code_size.png", autoencoding, baselines["pca_mse"], dataset=dataset
        )
    if imputation:
        observations = read_arrays(observed_path("imputation"))
        masks, observed = observations["masks"].tolist(), observations["observed"]
        parts += [
            f"### Imputation: MSE over the missing pixels, first {len(truth)} test images",
            imputation_table(imputation, masks),
        ]
        for mask in masks:
            picture = imputation_picture(
                imputation,
                truth,
                mask=masks.index(mask),
                observed=observed,
                title=f"{dataset}, {mask}",
            )
            write_picture(FOLDER / f"imputation_{mask}.png", picture)
        for name in imputation:
            arrays = read_arrays(reconstruction_path(name))
            if "snapshots" in arrays:
                short = name.removeprefix("imputation-")
                picture = iterations_picture(
                    arrays,
                    truth,
                    mask=masks.index("bottom") if "bottom" in masks else 0,
                    observed=observed,
                    title=f"{dataset}, {short}",
                )
                write_picture(FOLDER / f"iterations_{short}.png", picture)
        write_rows(
            FOLDER / "imputation.csv",
            [
                {"run": name.removeprefix("imputation-"), "mask": mask, **s["masks"][mask]}
                for name, s in imputation.items()
                for mask in masks
            ],
        )
    write_rows(FOLDER / "training.csv", training_rows(params))
    write_text(TABLE, "\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    run(main)
