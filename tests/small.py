"""Every architecture and every method, small: seconds of work for all of them together."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_params
from numpy.typing import NDArray

from retrace.pipeline.artifacts import observed_path, split_path, write_arrays

TRAINING, VALIDATION, IMAGES = 120, 40, 6  # images, the last under each mask
# Here too, no more than differs from the defaults.
SGD: dict[str, Any] = {"epochs": 2, "batch_size": 32, "learning_rate": 0.005}
ADAM: dict[str, Any] = {**SGD, "grace": 2}
# Enough for a validation error that is no collapse.
LONGER = {"epochs": 8, "batch_size": 8, "learning_rate": 0.02, "grace": 8}
CHANNELS = {"channels": [4, 4], "code_channels": 2}


def network(architecture: str, arguments: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {"architecture": architecture, "arguments": arguments, "training": training}


def margin(*widths: int, **training: Any) -> dict[str, Any]:
    short = {"labels": "random", "per_class": 6, "steps": 30, "decay": 0.05, "sharpening": 2.0}
    rest = {"weight_decay": 0.001, "report_every": 15}
    arguments = {"widths": list(widths), "first_deviation": 0.01}
    return network("margin", arguments, **{**short, **rest, **training})


def mlp(arguments: dict[str, Any], **training: Any) -> dict[str, Any]:
    short = {"per_class": 1, "steps": 40, "report_every": 20}
    return network("mlp", arguments, **{**short, **training})


def regression(arguments: dict[str, Any], **training: Any) -> dict[str, Any]:
    points = {"points": 40, "span": 1.0, "slope": 1.0, "offset": 0.5, "noise": 0.1}
    return network("regression", arguments, **points, **training)


NETWORKS: dict[str, dict[str, Any]] = {
    "gaussian": network("gaussian", {}),
    "gallery": network("gallery", {"count": 50}),
    "classifier": network("classifier", {"channels": [3, 3], "hidden": 8, "dropout": 0.0}, **ADAM),
    "dense": network("dense", {"widths": [32], "gain": 1.0}, **LONGER),
    "transposed": network("convolutional", CHANNELS, **LONGER),
    "upsampled": network("convolutional", {**CHANNELS, "decoder": "upsampled"}, **LONGER),
    "denoiser": network("denoiser", {"axes": 10, "width": 16}, **SGD, schedule="constant"),
    "lstm": network("lstm", {"hidden": 6}, **ADAM),
    "margin": margin(16, 16),
    "margin_wide": margin(320, 16, per_class=50, steps=40),
    "margin_decay": margin(16, 16, method="weight_decay"),
    "margin_untrained": margin(820, 8, steps=0),
    "mlp": mlp({"widths": [20, 12]}, batch_size=0, weight_decay=0.01, steps=200),
    "mlp_tuned": mlp(
        {"widths": [16], "activation": "gelu", "fine_tuned": True}, others=3, batch_size=4
    ),
    "mlp_adam": mlp({"widths": [16]}, optimiser="adamw", learning_rate=0.01, schedule="cosine"),
    "masked": network("masked", {"widths": [24], "dropout": 0.0}, **ADAM),
    "linear": regression({"inputs": 5, "outputs": 3}, rank=2),
    "sigmoid": regression({"activation": "sigmoid"}),
    "vae": network("vae", {"code_size": 3, "widths": [16, 8]}, **ADAM),
    "prior": network(
        "prior",
        {"code_size": 4, "widths": [24, 16], "components": 2, "axes": 6},
        **{**SGD, "mixture_iterations": 3, "mixture_images": 100},
    ),
}

BACKPROPAGATION: dict[str, Any] = {"steps": 3, "learning_rate": 0.1}
POSTERIOR: dict[str, Any] = {"starts": 2, "search_steps": 3, "samples": 6, "completions": 2}
SPAN: dict[str, Any] = {
    **{"candidates": 20, "starts": 40, "objectives": 20, "neighbours": 4, "rounds": 2},
    **{"passes": 1, "iterations": 5, "trusted": 0.9},
}
KKT: dict[str, Any] = {
    **{"candidates": 10, "deviation": 0.01, "learning_rate": 0.05, "multiplier_rate": 0.001},
    **{"multiplier_minimum": 0.1, "sharpness": 20.0, "steps": 5},
}
VERTICES = {"candidates": 10, "objectives": 10, "rounds": 2, "passes": 1, "iterations": 5}
SEARCH = {"trials": 2, "search_steps": 2}
AFFINE: dict[str, Any] = {"wanted": [[-1.0, 0.0, 1.0]], "more": 3, "start": 0.5}
STEPS = {"wanted": [0.3, 0.7], "more": 3, "start": 3.0, "steps": 5, "learning_rate": 0.01}
UNIT: dict[str, Any] = {"units": [0, 3], "images": 3, "levels": [1.0], "steps": 5}
CLASS: dict[str, Any] = {"images": 2, "probability": 0.5, "steps": 5}
GATE: dict[str, Any] = {"units": [0, 2], "images": 3, "gate": 0.4, "sharpness": 2.0, "steps": 4}

# method, network and settings of each run, by problem
RUNS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "autoencoding": [("one_pass", name, {}) for name in ("dense", "transposed", "upsampled")],
    "imputation": [
        ("fill", "gaussian", {"value": "zero"}),
        ("fill", "gaussian", {}),
        ("ridge", "gaussian", {"penalty": 0.001}),
        ("one_pass", "dense", {"start": "zero"}),
        ("one_pass", "transposed", {}),
        ("backpropagation", "dense", {**BACKPROPAGATION, "restarts": 2, "start": "noise"}),
        ("backpropagation", "dense", {**BACKPROPAGATION, "objective": "whole", "answer": "input"}),
        ("backpropagation", "dense", {**BACKPROPAGATION, "objective": "masked_target"}),
        ("biharmonic", "gaussian", {}),
        ("knn", "gallery", {"neighbours": 3}),
        ("mixture", "prior", {}),
        ("backpropagation_prior", "prior", {"start_penalty": 0.001, "steps": 3}),
        *[
            (
                "latent_search",
                "prior",
                {"start_penalty": 0.001, "restarts": 2, "steps": 3, **answer},
            )
            for answer in ({"answer": "best"}, {})
        ],
        ("posterior", "prior", POSTERIOR),
        ("posterior", "prior", {**POSTERIOR, "sampler": "pseudo_gibbs", "noise": "none"}),
        (
            "denoising_score",
            "denoiser",
            {
                **{"highest_noise": 1.0, "lowest_noise": 0.3, "levels": 2},
                **{"samples": 2, "completions": 1},
            },
        ),
        (
            "combined",
            "prior",
            {
                **{"starts": 2, "search_steps": 3, "samples": 6},
                **{"mixture_penalty": 0.001, "threshold_scattered": 0.2},
            },
        ),
        ("masked", "masked", {}),
    ],
    "training_data": [
        ("sparse_span", "margin", {**SPAN, "public_starts": 5}),
        ("sparse_span", "margin_wide", SPAN),
        ("sparse_span", "margin_untrained", SPAN),
        ("row_differences", "margin", {"candidates": 10, "neighbours": 4, "duplicate": 0.9}),
        ("kkt", "margin", {**KKT, **SEARCH}),
        ("kkt", "margin", {**KKT, "bounds": "pixels"}),
        ("public_images", "margin", {"candidates": 3}),
        ("public_images", "margin", {"candidates": 3, "show": "images"}),
        ("vertices", "mlp", VERTICES),
        ("vertices", "mlp_tuned", VERTICES),
    ],
    "membership": [
        ("stationarity", "mlp", {}),
        ("stationarity", "mlp_tuned", {"ridge": 1e-6}),
        ("loss", "mlp_adam", {}),
    ],
    "network_inversion": [
        ("affine", "linear", AFFINE),
        ("affine", "sigmoid", {**STEPS, "solver": "gradient", "loss": "logit"}),
        ("affine", "sigmoid", {**STEPS, "solver": "gauss_newton"}),
        ("hidden_unit", "margin", {**UNIT, "layer": "layers.0", "solver": "exact"}),
        ("hidden_unit", "classifier", {**UNIT, "layer": "layers.3"}),
        ("class_target", "classifier", {**CLASS, "prior": 0.0}),
        ("class_target", "classifier", {**CLASS, "goal": "preferred"}),
        ("class_target", "classifier", {**CLASS, "goal": "range", "prior": 1.0}),
        ("lstm_gate", "lstm", GATE),
        ("lstm_gate", "lstm", {**GATE, "change": "image"}),
    ],
    "decoder_inversion": [
        ("encoder", "vae", {}),
        ("layerwise", "vae", {"weights": "none"}),
        ("layerwise", "vae", {"precision": "float32"}),
        ("bounded", "vae", {"output_clamp": 0.01, "hidden_clamp": 0.01, "iterations": 5}),
        (
            "gauss_newton",
            "vae",
            {
                **{"penalty": 0.001, "bank": 20, "screening": 2, "rounds": 2},
                **{"iterations": 4, "tolerance": 0.000001},
            },
        ),
        ("gradient", "vae", {"steps": 3}),
    ],
}


def named_runs() -> dict[str, dict[str, Any]]:
    """`RUNS` as a section of params.yaml."""
    return {
        f"{problem}-{method}_{number}": {
            **{"problem": problem, "method": method, "network": of, "settings": settings}
        }
        for problem, runs in RUNS.items()
        for number, (method, of, settings) in enumerate(runs)
    }


def lay_out(
    folder: Path, splits: dict[str, dict[str, NDArray[Any]]], params: dict[str, Any]
) -> None:
    """Write what the stages train and reconstruct read, into the working directory.

    Parameters
    ----------
    folder : Path
        The working directory.
    splits
        Of scikit-learn's digits.
    params : dict
        What is not a network or a run.
    """
    content = {**copy.deepcopy(params), "networks": NETWORKS, "runs": named_runs(), "sweeps": {}}
    write_params(folder, content)
    for split, count in (("train", TRAINING), ("validation", VALIDATION)):
        arrays = {key: splits[split][key][:count] for key in ("images", "labels")}
        write_arrays(split_path(split), {**arrays, "dataset": np.array("digits")})
    images = splits["test"]["images"][:IMAGES].astype(np.float32) / 255
    block, random = images.copy(), images.copy()
    block[:, 14:] = np.nan
    random[np.random.default_rng(0).random(images.shape) < 0.5] = np.nan
    generator = np.random.default_rng(1)
    decoder = {
        f"decoder_{i}": generator.normal(size=shape).astype(np.float32)
        for i, shape in enumerate(((6, 3), (784, 6)))
    }
    observed: dict[str, dict[str, Any]] = {
        "autoencoding": {"observed": images},
        "imputation": {"observed": np.stack([block, random])},
        "training_data": {"observed": images},
        "membership": {
            "observed": images,
            "public": splits["validation"]["images"].astype(np.float32) / 255,
            "labels": splits["test"]["labels"][:IMAGES].astype(np.float32),
        },
        "network_inversion": {"observed": images, "code": np.zeros(3, np.float32) + 0.1, **decoder},
        "decoder_inversion": {"observed": images.astype(np.float64)[None]},
    }
    for problem, arrays in observed.items():
        each = np.array(problem in ("autoencoding", "imputation", "decoder_inversion"))
        write_arrays(
            observed_path(problem), {**arrays, "each": each, "dataset": np.array("digits")}
        )
