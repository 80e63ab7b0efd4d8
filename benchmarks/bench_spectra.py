"""Singular values of the layers of the pipeline's margin networks: what training leaves in them.

A first layer in the span of n images has n singular values, as far as they rise above the rounding
of float32; a collapsed second layer has two; a network as it was drawn has as many as it has rows
or columns.

Draws docs/pictures/training_data_spectra.png. A few seconds; needs the trained networks.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import print_table, write_result
from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint, written_whole
from retrace.pipeline.command import run
from retrace.report.pictures import COLOURS

PICTURE = Path("docs/pictures/training_data_spectra.png")
NETWORKS = {
    "margin_untrained": "as drawn",
    "margin_random": "100 images, random labels",
    "margin_mlp": "500 images",
    "margin_100": "100 images",
    "margin_20": "20 images",
}
LAYERS = 2  # the hidden ones
SHARES = (1e-3, 1e-4, 1e-5, 1e-6)  # of the largest singular value: ranks are counted at these
FLOOR = 1e-9  # of the picture


def spectra(name: str) -> list[np.ndarray]:
    """Singular values of each hidden layer, largest first, as shares of the largest."""
    network, _ = load_checkpoint(checkpoint_path(name))
    found = []
    for layer in range(LAYERS):
        weight = network.get_parameter(f"layers.{layer}.weight").double()
        if layer == 0:  # the attack's matrix: the bias belongs to the images' constant coordinate
            bias = network.get_parameter("layers.0.bias").double()
            weight = torch.cat([weight, bias.unsqueeze(1)], dim=1)
        values = torch.linalg.svdvals(weight)
        found.append((values / values[0]).numpy())
    return found


def draw(curves: dict[str, list[np.ndarray]]) -> None:
    """A panel a layer, a curve a network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, LAYERS, figsize=(9, 3.6), layout="constrained", sharey=True)
    for layer, axes in enumerate(panels):
        for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
            places = np.arange(1, len(values[layer]) + 1)
            axes.loglog(places, values[layer], color=colour, label=f"{name}: {NETWORKS[name]}")
        axes.axhline(np.finfo(np.float32).eps, color="#999999", linestyle="dashed", linewidth=0.8)
        axes.set(title=f"layer {layer + 1}", xlabel="singular value, largest first")
        axes.set_ylim(FLOOR, 2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of the largest (dashed: one step of float32)", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3, fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    pyplot.close(figure)
    print(f"written: {PICTURE}")


def main() -> None:
    """Draw the spectra of the margin networks' hidden layers and print their ranks."""
    curves = {name: spectra(name) for name in NETWORKS}
    ranks = {
        name: {
            f"layer {layer + 1}": {f"{share:g}": int((v > share).sum()) for share in SHARES}
            for layer, v in enumerate(values)
        }
        for name, values in curves.items()
    }
    print_table(
        "Singular values above a share of the largest",
        ["network", "layer", *(f"{share:g}" for share in SHARES)],
        [
            [name, layer, *counts.values()]
            for name, layers in ranks.items()
            for layer, counts in layers.items()
        ],
    )
    draw(curves)
    write_result("spectra", {"ranks": ranks})


if __name__ == "__main__":
    run(main)
