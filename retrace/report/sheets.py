"""Tables, curves and pictures of all runs, for people, `dvc plots` and the README."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retrace.measures import identification, uncertainty
from retrace.measures.identification import THRESHOLDS
from retrace.pipeline.artifacts import (
    BASELINES,
    DATASET,
    checkpoint_path,
    history_path,
    load_checkpoint,
    metrics_path,
    observed_path,
    read_arrays,
    read_json,
    read_split,
    reconstruction_path,
    written_whole,
)
from retrace.pipeline.command import run
from retrace.pipeline.params import Params, load
from retrace.problems.decoder_inversion import score as decoder_inversion
from retrace.problems.network_inversion import score as network_inversion
from retrace.report.pictures import COLOURS, completed, scale_of, sheet, split_rows, stacked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path("metrics/report")
TABLE = FOLDER / "table.md"
COLUMNS = 10  # images in a picture
PAIRS = 30  # candidates and training images in a picture
Scores = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV, the keys of all rows in its head; a cell without a value is empty."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
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
        estimate = read_arrays(reconstruction_path(name), only=("estimate",))["estimate"][:COLUMNS]
        rows[f"{name.removeprefix('autoencoding-')} ({scores['code_size']})"] = estimate
    return sheet(rows, title=title, scale=2)


def imputation_picture(
    estimates: Mapping[str, NDArray[Any]],
    truth: NDArray[Any],
    *,
    mask: int,
    observed: NDArray[Any],
    title: str,
) -> Image.Image:
    """The first test images under one mask and what each method makes of them.

    Parameters
    ----------
    estimates : dict of (masks, at most `COLUMNS`, 28, 28)
        By the short name of the run.
    truth : (n, 28, 28)
    mask : int
        Its position.
    observed : (masks, n, 28, 28)
        NaN where a pixel is missing.
    title : str
    """
    given = observed[mask, :COLUMNS]
    rows = {"original": truth[:COLUMNS], "given": given}
    rows |= {name: completed(estimate[mask], given) for name, estimate in estimates.items()}
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


def code_size_figure(
    runs: Mapping[str, Scores], pca_mse: Sequence[float], *, title: str = ""
) -> "Figure":
    """MSE against code size: PCA as a curve, each network as a point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    sizes = range(1, 257)
    axes.plot(sizes, [pca_mse[size] for size in sizes], color="#777777", label="PCA")
    for i, (name, scores) in enumerate(runs.items()):
        label, style = name.removeprefix("autoencoding-"), "osDv^P*X"[i % 8]
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(
            scores["code_size"], scores["mse"], style, color=colour, markersize=8, label=label
        )
    axes.set(xscale="log", yscale="log", xlabel="values in the code", ylabel="MSE, test images")
    axes.set_title(title)
    axes.legend(frameon=False)
    return figure


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a chart as a PNG and close it."""
    from matplotlib import pyplot

    with written_whole(path) as temporary:
        # No date and no version in the file: the same numbers give the same bytes.
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def null_size(scores: Scores) -> int:
    """How many held-out images were matched: n where the scores, of earlier code, do not say it."""
    return int(scores["null_n" if "null_n" in scores else "n"])


def training_data_table(runs: Mapping[str, Scores]) -> str:
    """Every attack on training images, by the size of the training set, the best of each first."""
    rows = []
    order = sorted(runs.items(), key=lambda item: (item[1]["n"], -item[1]["identified"]))
    for name, scores in order:
        precision = scores["precision_at"].get("100")
        null = null_size(scores)
        rows.append(
            [
                f"`{name.removeprefix('training_data-')}`",
                scores["method"],
                f"`{scores['network']}`",
                str(scores["n"]),
                f"{null:,}",
                f"{scores['identified']} ({scores['threshold']:.3f})",
                *(
                    f"{scores['matched'][b]} / {scores['null_matched'][b]} "
                    f"({scores['null_matched'][b] / null:.1%})"
                    for b in THRESHOLDS
                ),
                "" if precision is None else f"{precision:.2f}",
                f"{scores['median_mse']:.4f}" if "median_mse" in scores else "",
                f"{scores['training_seconds']:.0f}",
                f"{scores['seconds']:.0f}",
            ]
        )
    head = ["run", "method", "network", "n", "held-out", "identified (threshold)"]
    head += [f"NCC > {bar}" for bar in THRESHOLDS]
    head += ["precision of the first 100", "median MSE", "training, s", "attack, s"]
    return markdown(head, rows)


def colours_table(runs: Mapping[str, Scores]) -> str:
    """Attacks on networks trained on images of one colour."""
    rows = [
        [
            f"`{name.removeprefix('training_data-')}`",
            scores["method"],
            f"`{scores['network']}`",
            str(scores["candidates"]),
            f"{scores['colours_recovered']} / {scores['n']}",
            f"{scores['colour_error']:.3f}",
            f"{scores['colour_precision']:.2f}" if "colour_precision" in scores else "",
            f"{scores['training_seconds']:.0f}",
            f"{scores['seconds']:.0f}",
        ]
        for name, scores in runs.items()
    ]
    head = ("run", "method", "network", "candidates", "colours recovered", "largest colour error")
    return markdown((*head, "precision", "training, s", "attack, s"), rows)


def training_data_rows(runs: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Scores of each attack in one row, nested keys joined by an underscore."""
    flat = []
    for name, scores in runs.items():
        row: dict[str, Any] = {"run": name.removeprefix("training_data-")}
        for key, value in scores.items():
            nested = value if isinstance(value, dict) else {"": value}
            row |= {f"{key}_{part}".rstrip("_"): number for part, number in nested.items()}
        flat.append(row)
    return flat


def training_data_picture(
    estimate: NDArray[Any], truth: identification.Truth, *, threshold: float, title: str
) -> Image.Image | None:
    """Candidates above the training images that they match, as the attack ranks them.

    Above each its NCC, of coloured images the difference in colour. The identified ones, or the
    first candidates and what each resembles most, where there are none.

    Parameters
    ----------
    estimate : (K, h, w) or (K, 3, h, w)
    truth : Truth
    threshold : float
        Above which a match counts as identified.
    title : str

    Returns
    -------
    PIL image, or None without candidates
    """
    pairs = identification.shown_pairs(
        torch.from_numpy(estimate), truth, threshold=threshold, count=PAIRS
    )
    if not len(pairs.values):
        return None
    candidates = estimate[pairs.candidates.numpy()]
    originals = truth.images.numpy()[pairs.images.numpy()].reshape(candidates.shape)
    captions = [f"{value:.3f}" for value in pairs.values.tolist()]
    strips = zip(*(split_rows(x, columns=COLUMNS) for x in (candidates, originals)), strict=True)
    return stacked(
        [
            sheet(
                {"candidate": found, "training image": original},
                title=title if i == 0 else "",
                columns=(captions[i * COLUMNS :] + [""] * COLUMNS)[:COLUMNS],
                scale=scale_of(estimate),
            )
            for i, (found, original) in enumerate(strips)
        ]
    )


def training_data_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str
) -> "Figure":
    """Matches against the threshold: training images solid, held-out images dashed.

    Parameters
    ----------
    curves : dict of (matched, null_matched)
        By run: see `threshold_curve`.
    title : str
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure, axes = pyplot.subplots(figsize=(7.2, 4), layout="constrained")
    handles = []
    for i, (name, (matched, null_matched)) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        handles += axes.plot(identification.GRID, matched, color=colour, label=name)
        axes.plot(identification.GRID, null_matched, color=colour, linestyle="dashed")
    handles.append(Line2D([], [], color="#777777", label="training images"))
    handles.append(Line2D([], [], color="#777777", linestyle="dashed", label="held-out images"))
    axes.set(xlim=(0.5, 1), xlabel="correlation (NCC) above")
    axes.set_ylabel("share of images matched one to one")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    figure.legend(handles=handles, frameon=False, loc="outside right upper")
    return figure


def threshold_curve(
    matched: identification.Matching, null: identification.Matching
) -> tuple[list[float], list[float]]:
    """The share of the training and of the held-out images that is matched above each threshold of
    `identification.GRID`."""
    shares = [
        [count / len(values) for count in identification.counts_above(values, identification.GRID)]
        for values in (matched.values, null.values)
    ]
    return shares[0], shares[1]


def training_rows(params: Params) -> list[dict[str, Any]]:
    """Validation MSE of every autoencoder by epoch."""
    histories = {name: read_json(history_path(name))["epochs"] for name in params.networks}
    return [
        {"network": name, "epoch": int(e["epoch"]), "validation_mse": e["validation_mse"]}
        for name, epochs in histories.items()
        if epochs and "training_loss" in epochs[0] and "validation_mse" in epochs[0]
        for e in epochs
    ]


def report_autoencoding(
    runs: Mapping[str, Scores], truth: NDArray[Any], *, pca_mse: Sequence[float], dataset: str
) -> list[str]:
    """Draw the autoencoders; give the parts of the table's text."""
    write_picture(FOLDER / "autoencoding.png", autoencoding_picture(runs, truth, title=dataset))
    figure = code_size_figure(runs, pca_mse, title=f"What the bottleneck costs ({dataset})")
    write_figure(FOLDER / "code_size.png", figure)
    return ["### Autoencoding: all test images", autoencoding_table(runs)]


def report_imputation(
    runs: Mapping[str, Scores], truth: NDArray[Any], params: Params, *, dataset: str
) -> list[str]:
    """Draw the completions, list the scores; give the parts of the table's text."""
    observations = read_arrays(observed_path("imputation"))
    masks, observed = observations["masks"].tolist(), observations["observed"]
    bottom = masks.index("bottom") if "bottom" in masks else 0
    firsts: dict[str, NDArray[Any]] = {}
    for name, scores in runs.items():
        short, settings = name.removeprefix("imputation-"), params.runs[name].settings
        arrays = read_arrays(reconstruction_path(name))
        firsts[short] = arrays["estimate"][:, :COLUMNS].copy()  # a view would keep all in memory
        title = f"{dataset}, {short}"
        if "snapshots" in arrays:
            picture = iterations_picture(arrays, truth, mask=bottom, observed=observed, title=title)
            write_picture(FOLDER / f"iterations_{short}.png", picture)
        if (settings.get("objective"), settings.get("answer")) == ("known", "input"):
            network, _ = load_checkpoint(checkpoint_path(scores["network"]))
            picture = false_minima_picture(
                network, arrays["estimate"][bottom], truth, observed[bottom], title=title
            )
            write_picture(FOLDER / f"false_minima_{short}.png", picture)
    for i, mask in enumerate(masks):
        picture = imputation_picture(
            firsts, truth, mask=i, observed=observed, title=f"{dataset}, {mask}"
        )
        write_picture(FOLDER / f"imputation_{mask}.png", picture)
    write_rows(
        FOLDER / "imputation.csv",
        [
            {"run": name.removeprefix("imputation-"), "mask": mask, **s["masks"][mask]}
            for name, s in runs.items()
            for mask in masks
        ],
    )
    stochastic = {name: s for name, s in runs.items() if "crps" in s["masks"][masks[0]]}
    return [
        f"### Imputation: MSE over the missing pixels, first {len(truth)} test images",
        imputation_table(runs, masks),
        *(
            report_uncertainty(stochastic, truth, observations, dataset=dataset)
            if stochastic
            else []
        ),
    ]


@torch.no_grad()
def false_minima_picture(
    network: torch.nn.Module,
    optimised: NDArray[Any],
    truth: NDArray[Any],
    observed: NDArray[Any],
    *,
    title: str,
) -> Image.Image:
    """Inputs that an autoencoder f explains better than the truth, and the share of them.

    The loss is the mean (f(x) - x)² over known pixels, above each column in thousandths: the
    truth's, and that of the optimised input. The columns are the first images where the latter is
    lower.

    Parameters
    ----------
    network : Module
        f, (B, 28, 28) to (B, 28, 28).
    optimised, truth, observed : (n, 28, 28)
        Observed is NaN where a pixel is missing.
    title : str
    """
    inputs = {"truth": truth, "optimised": completed(optimised, observed)}
    outputs, losses = {}, {}
    known = ~np.isnan(observed)
    for name, images in inputs.items():
        outputs[name] = network(torch.from_numpy(images.astype(np.float32))).numpy()
        errors = np.where(known, outputs[name] - images, 0.0)
        losses[name] = (errors**2).sum(axis=(1, 2)) / known.sum(axis=(1, 2))
    lower = losses["optimised"] < losses["truth"]
    shown = np.flatnonzero(lower)[:COLUMNS]
    shown = shown if len(shown) else np.arange(min(COLUMNS, len(truth)))
    columns = [
        f"{1000 * losses['truth'][i]:.1f}/{1000 * losses['optimised'][i]:.1f}" for i in shown
    ]
    rows = {"given": observed[shown]}
    for name, images in inputs.items():
        rows[f"{name} x"] = images[shown]
        rows[f"f({name} x)"] = outputs[name][shown]
    title = f"{title}: the loss is below the truth's in {lower.mean():.1%} of {len(truth)} images"
    return sheet(rows, title=title, columns=columns, scale=2)


def report_uncertainty(
    runs: Mapping[str, Scores],
    truth: NDArray[Any],
    observations: Mapping[str, Any],
    *,
    dataset: str,
) -> list[str]:
    """Draw samples, ambiguous images and calibration; give the parts of the table's text."""
    masks: list[str] = observations["masks"].tolist()
    mask = "bottom" if "bottom" in masks else masks[0]
    index = masks.index(mask)
    observed = observations["observed"][index]
    classifier, _ = load_checkpoint(checkpoint_path("classifier"))
    coverages, rows = {}, []
    for name, scores in runs.items():
        short = name.removeprefix("imputation-")
        kept = ("estimate", "deviation", "samples")
        stored = read_arrays(reconstruction_path(name), only=kept)
        arrays = {key: value[index] for key, value in stored.items()}
        samples = torch.from_numpy(arrays["samples"])
        drawn = uncertainty.completions(samples, torch.from_numpy(observed))
        read = uncertainty.read_digits(drawn, classifier)
        unsure = uncertainty.ambiguous(read)
        # The digits that the classifier reads in the samples, in order.
        digits = read[unsure, : uncertainty.SAMPLES_SHOWN].tolist()
        for file, images, columns in (
            ("samples", list(range(min(COLUMNS, len(truth)))), None),
            ("ambiguous", unsure.tolist(), ["".join(map(str, labels)) for labels in digits]),
        ):
            picture = uncertainty.samples_picture(
                arrays,
                truth,
                observed,
                images=images,
                title=f"{dataset}, {short}, {mask}",
                columns=columns,
            )
            write_picture(FOLDER / f"{file}_{short}.png", picture)
        over_all, over_open = (
            [mean_over_masks(scores, f"{kind}_{interval}") for interval in uncertainty.INTERVALS]
            for kind in ("coverage", "open_coverage")
        )
        coverages[short] = over_all, over_open
        rows.append(
            [
                f"`{short}`",
                *(f"{share:.0%}" for share in [*over_all, *over_open]),
                f"{mean_over_masks(scores, 'open_share'):.0%}",
                *(
                    f"{mean_over_masks(scores, key):.4f}"
                    for key in ("crps", "mse", "sample_mse", "best_mse")
                ),
                *(
                    f"{mean_over_masks(scores, k):.2f}"
                    for k in ("sample_agreement", "label_entropy")
                ),
            ]
        )
    figure = uncertainty.calibration_figure(
        coverages, title=f"Intervals for missing pixels ({dataset})"
    )
    write_figure(FOLDER / "calibration.png", figure)
    head = ["run", *(f"{name} %" for name in uncertainty.INTERVALS)]
    head += [f"{name} %, open" for name in uncertainty.INTERVALS]
    head += ["open", "CRPS", "MSE of the mean", "of a sample", "of the best sample"]
    return [
        "### Imputation: what the samples are worth, means over masks",
        "Shares of missing pixels within the intervals, of all and of open ones, whose "
        "deviation is above 0.05. Right: the share of samples that the classifier reads as the "
        "true digit, and the entropy of what it reads, in bits.",
        markdown((*head, "right", "entropy"), rows),
    ]


def report_training_data(runs: Mapping[str, Scores], params: Params, *, dataset: str) -> list[str]:
    """Draw the candidates and their matches, list the scores; give the parts of the table's text.

    Coloured images have a table of their own and no curve: all shades of a colour correlate.
    """
    split = read_split("train")
    curves = {}
    truths: dict[str, identification.Truth] = {}
    for name, scores in runs.items():
        short, network = name.removeprefix("training_data-"), scores["network"]
        training = params.networks[network].training
        if network not in truths:  # one at a time: the held-out images are many
            where = f"networks.{network}.training"
            truths = {network: identification.truth_of(split, training, where=where)}
        truth = truths[network]
        estimate = read_arrays(reconstruction_path(name), only=("estimate",))["estimate"]
        found, verb = scores["identified"], "identified"
        if truth.coloured:
            found, verb = scores["colours_recovered"], "recovered"
        title = f"{dataset}, {short}: {found} of {scores['n']} {verb}"
        title += "" if found else "; the first candidates and what each resembles most"
        picture = training_data_picture(estimate, truth, threshold=scores["threshold"], title=title)
        if picture is not None:
            write_picture(FOLDER / f"training_data_{short}.png", picture)
        if not truth.coloured:
            matchings = identification.matchings(torch.from_numpy(estimate), truth)
            curves[f"{short} ({scores['n']})"] = threshold_curve(*matchings)
    write_rows(FOLDER / "training_data.csv", training_data_rows(runs))
    coloured = {n: s for n, s in runs.items() if "colour_error" in s}
    digits = {n: s for n, s in runs.items() if n not in coloured}
    parts = []
    if digits:
        figure = training_data_figure(curves, title=f"Training images found ({dataset})")
        write_figure(FOLDER / "training_data_curve.png", figure)
        parts += [
            "### Training data: images that the weights give away",
            "Candidates are matched one to one with the n training images, and with the held-out "
            "images of the same classes, n at a time (behind the slash), by normalised "
            "cross-correlation, the mean image subtracted. Identified: above the threshold that at "
            "most 1 % of the held-out images exceed. Near-duplicates of training images are taken "
            "out of the held-out ones.",
            training_data_table(digits),
        ]
    if coloured:
        parts += [
            "### Training data: images of one colour",
            "Recovered: a candidate has the image's mean colour within 0.02 in every channel "
            "(images of one colour are copies, of which the weights keep one). Precision: the "
            "share of candidates that have some training image's colour.",
            colours_table(coloured),
        ]
    return parts


def report_network_inversion(
    runs: Mapping[str, Scores], params: Params, *, dataset: str
) -> list[str]:
    """Draw the inputs that were found, list the scores; give the parts of the table's text."""
    shown: dict[str, network_inversion.Run] = {}
    for name, scores in runs.items():
        network, _ = load_checkpoint(checkpoint_path(scores["network"]))
        arrays = read_arrays(reconstruction_path(name))
        entry = params.runs[name]
        short = name.removeprefix("network_inversion-")
        shown[short] = network, arrays, entry.method, entry.settings
    for name, picture in network_inversion.pictures(shown, dataset=dataset).items():
        write_picture(FOLDER / f"network_inversion_{name}.png", picture)
    return [
        "### Network inversion: inputs for wanted outputs",
        "Outputs are computed again from the input, in float64. Reached: within 1e-6 of the wanted "
        "value, relative to it, as a share of the targets that are not proved infeasible. "
        "Distance: Euclidean, from the start, of reached targets.",
        markdown(*network_inversion.table_rows(runs)),
    ]


def report_decoder_inversion(runs: Mapping[str, Scores], *, dataset: str) -> list[str]:
    """Draw what the codes decode to; give the parts of the table's text."""
    first = next(iter(runs.values()))
    network, _ = load_checkpoint(checkpoint_path(first["network"]))
    estimates = {
        name: read_arrays(reconstruction_path(name), only=("estimate",))["estimate"]
        for name in runs
    }
    picture = decoder_inversion.report_picture(
        estimates,
        read_arrays(observed_path("decoder_inversion")),
        network=network.double(),
        title=dataset,
    )
    write_picture(FOLDER / "decoder_inversion.png", picture)
    return [
        f"### Decoder inversion: the codes of {first['n']} outputs of the decoder",
        "Errors are ‖z − ẑ‖∞; the MSE is of G(ẑ) against G(z) before rounding. Solved: the same "
        "pixels within what the observation was rounded to.",
        markdown(*decoder_inversion.on_range_table(runs)),
        f"### Decoder inversion: {first['n']} test images, which no code produced",
        "Solved: within 1 % of the best objective from 45 starts, on the first images. Seconds are "
        "over images of both kinds.",
        markdown(*decoder_inversion.off_range_table(runs)),
    ]


def main() -> None:
    """Write the tables, curves and pictures of all runs to metrics/report/."""
    params = load()
    dataset = read_json(DATASET)["name"]
    truth = read_split("test")[0][: params.masks.images].numpy()
    scores = {name: read_json(metrics_path(name)) for name in params.runs}
    baselines = read_json(BASELINES)

    def of(problem: str) -> dict[str, Scores]:
        return {name: s for name, s in scores.items() if s["problem"] == problem}

    right = f"{baselines['classifier_accuracy']:.2%}"
    parts = [
        f"Dataset: **{dataset}**. The classifier behind `agreement` is right on {right} of the "
        "test images."
    ]
    if runs := of("autoencoding"):
        pca_mse = baselines["pca_mse"]
        parts += report_autoencoding(runs, truth, pca_mse=pca_mse, dataset=dataset)
    if runs := of("imputation"):
        parts += report_imputation(runs, truth, params, dataset=dataset)
    if runs := of("training_data"):
        parts += report_training_data(runs, params, dataset=dataset)
    if runs := of("network_inversion"):
        parts += report_network_inversion(runs, params, dataset=dataset)
    if runs := of("decoder_inversion"):
        parts += report_decoder_inversion(runs, dataset=dataset)
    write_rows(FOLDER / "training.csv", training_rows(params))
    write_text(TABLE, "\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    run(main)
