"""Every architecture and every method, small: seconds of work for all of them together."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_params
from numpy.typing import NDArray

from retrace.pipeline.artifacts import observed_path, split_path, write_arrays

TRAINING, VALIDATION, IMAGES = 120, 40, 6  # images, the last under each mask
SGD: dict[str, Any] = {"epochs": 2, "batch_size": 32, "learning_rate": 0.005, "seed": 0}
ADAM: dict[str, Any] = {**SGD, "schedule": "cosine", "grace": 2}
# Enough for a validation error that is no collapse.
LONGER = {**ADAM, "epochs": 8, "batch_size": 8, "learning_rate": 0.02, "grace": 8}


def network(architecture: str, arguments: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {"architecture": architecture, "arguments": arguments, "training": training}


def margin(*widths: int, method: str = "normalised", **training: Any) -> dict[str, Any]:
    return network(
        "margin",
        {"shape": [28, 28], "widths": list(widths), "first_deviation": 0.01},
        **{
            **{"examples": "parity", "labels": "random", "per_class": 6, "offset": 0, "steps": 30},
            **{"learning_rate": 0.05, "decay": 0.05, "margin": 5.0, "sharpening": 2.0},
            **{"weight_decay": 0.001, "report_every": 15, "seed": 0, "method": method},
            **training,
        },
    )


def autoencoder(decoder: str) -> dict[str, Any]:
    arguments = {"decoder": decoder, "channels": [4, 4], "code_channels": 2}
    return network("convolutional", arguments, **LONGER)


def regression(activation: str, *, inputs: int, outputs: int, **training: Any) -> dict[str, Any]:
    points = {"points": 40, "span": 1.0, "slope": 1.0, "offset": 0.5, "noise": 0.1, "rank": 0}
    arguments = {"inputs": inputs, "outputs": outputs, "activation": activation}
    return network("regression", arguments, **{**points, **training}, seed=0)


NETWORKS: dict[str, dict[str, Any]] = {
    "gaussian": network("gaussian", {}),
    "gallery": network("gallery", {"count": 50}),
    "classifier": network(
        "classifier", {"channels": [3, 3], "hidden": 8, "dropout": 0.0, "classes": 10}, **ADAM
    ),
    "dense": network("dense", {"widths": [32], "gain": 1.0, "dropout": 0.0}, **LONGER),
    "transposed": autoencoder("transposed"),
    "upsampled": autoencoder("upsampled"),
    "denoiser": network(
        "denoiser",
        {"axes": 10, "width": 16, "blocks": 1},
        **{**SGD, "schedule": "constant", "noise_median": 0.6, "noise_spread": 1.0},
    ),
    "lstm": network("lstm", {"hidden": 6, "classes": 10}, **ADAM),
    "margin": margin(16, 16),
    "margin_wide": margin(320, 16, per_class=50, steps=40),
    "margin_decay": margin(16, 16, method="weight_decay"),
    "margin_untrained": margin(820, 8, steps=0),
    "masked": network("masked", {"widths": [24], "dropout": 0.0}, **ADAM),
    "linear": regression("identity", inputs=5, outputs=3, rank=2),
    "sigmoid": regression("sigmoid", inputs=1, outputs=1),
    "vae": network(
        "vae",
        {"code_size": 3, "widths": [16, 8], "weighting": "elbo", "divergence_weight": 1.0},
        **ADAM,
    ),
    "prior": network(
        "prior",
        {"code_size": 4, "widths": [24, 16], "components": 2, "axes": 6},
        **SGD,
        **{"schedule": "cosine", "mixture_iterations": 3, "mixture_images": 100},
    ),
}

BACKPROPAGATION: dict[str, Any] = {
    **{"objective": "known", "start": "mean", "answer": "output"},
    **{"steps": 3, "learning_rate": 0.1, "restarts": 1, "seed": 0},
}
BETA = {"likelihood_blocks": 1.0, "likelihood_scattered": 5.0}
SEARCH: dict[str, Any] = {**BETA, "learning_rate": 0.15, "seed": 0}
POSTERIOR: dict[str, Any] = {
    **{**SEARCH, "sampler": "importance", "noise": "gaussian", "penalty": 0.003, "starts": 2},
    **{"search_steps": 3, "samples": 6, "completions": 2},
}
SPAN: dict[str, Any] = {
    **{"candidates": 20, "starts": 40, "public_starts": 0, "objectives": 20, "neighbours": 4},
    **{"rounds": 2, "passes": 1, "iterations": 5, "penalty": 0.2, "faint": 0.1, "trusted": 0.9},
    **{"seed": 0, "deflation": 10.0},
}
KKT: dict[str, Any] = {
    **{"candidates": 10, "deviation": 0.01, "learning_rate": 0.05, "multiplier_rate": 0.001},
    **{"multiplier_minimum": 0.1, "sharpness": 20.0, "steps": 5, "trials": 2, "search_steps": 2},
    **{"bounds": "published", "seed": 0},
}
AFFINE: dict[str, Any] = {
    **{"wanted": [[-1.0, 0.0, 1.0]], "more": 3, "start": 0.5, "solver": "closed_form"},
    **{"loss": "output", "steps": 5, "learning_rate": 0.01, "seed": 0},
}
ONE = {"wanted": [0.3, 0.7], "more": 3, "start": 3.0}
UNIT: dict[str, Any] = {
    **{"layer": "layers.0", "units": [0, 3], "images": 3, "levels": [1.0], "solver": "exact"},
    **{"steps": 5, "learning_rate": 0.05},
}
CLASS: dict[str, Any] = {
    **{"goal": "nearest", "images": 2, "probability": 0.5, "prior": 0.0},
    **{"steps": 5, "learning_rate": 0.05},
}
GATE: dict[str, Any] = {
    **{"change": "row", "units": [0, 2], "row": 14, "images": 3, "gate": 0.4},
    **{"sharpness": 2.0, "steps": 4},
}
LAYERWISE: dict[str, Any] = {
    **{"precision": "float64", "output_clamp": 0.0, "hidden_clamp": 0.0, "weights": "none"},
}

# method, network and settings of each run, by problem
RUNS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "autoencoding": [("one_pass", name, {}) for name in ("dense", "transposed", "upsampled")],
    "imputation": [
        ("fill", "gaussian", {"value": "zero"}),
        ("fill", "gaussian", {"value": "mean"}),
        ("ridge", "gaussian", {"penalty": 0.001}),
        ("one_pass", "dense", {"start": "zero"}),
        ("one_pass", "transposed", {"start": "mean"}),
        ("backpropagation", "dense", {**BACKPROPAGATION, "restarts": 2, "start": "noise"}),
        ("backpropagation", "dense", {**BACKPROPAGATION, "objective": "whole", "answer": "input"}),
        ("backpropagation", "dense", {**BACKPROPAGATION, "objective": "masked_target"}),
        ("biharmonic", "gaussian", {}),
        ("knn", "gallery", {"neighbours": 3}),
        ("mixture", "prior", {"penalty": 0.001}),
        (
            "backpropagation_prior",
            "prior",
            {
                **{**BETA, "start_penalty": 0.001, "residual_penalty": 0.003},
                **{"answer": "corrected", "steps": 3, "learning_rate": 0.02},
            },
        ),
        *[
            (
                "latent_search",
                "prior",
                {**SEARCH, "start_penalty": 0.001, "restarts": 2, "steps": 3, "answer": answer},
            )
            for answer in ("best", "average")
        ],
        ("posterior", "prior", POSTERIOR),
        ("posterior", "prior", {**POSTERIOR, "sampler": "pseudo_gibbs", "noise": "none"}),
        (
            "denoising_score",
            "denoiser",
            {
                **{"highest_noise": 1.0, "lowest_noise": 0.3, "levels": 2, "penalty": 0.001},
                **{"samples": 2, "completions": 1, "seed": 0},
            },
        ),
        (
            "combined",
            "prior",
            {
                **{**SEARCH, "starts": 2, "search_steps": 3, "samples": 6},
                **{"residual_penalty": 0.001, "mixture_penalty": 0.001, "mixture_blocks": 0.5},
                **{"mixture_scattered": 0.4, "threshold_blocks": 0.1, "threshold_scattered": 0.2},
            },
        ),
        ("masked", "masked", {}),
    ],
    "training_data": [
        ("sparse_span", "margin", {**SPAN, "public_starts": 5}),
        ("sparse_span", "margin_wide", SPAN),
        ("sparse_span", "margin_untrained", SPAN),
        ("row_differences", "margin", {"candidates": 10, "neighbours": 4, "duplicate": 0.9}),
        ("kkt", "margin", KKT),
        ("kkt", "margin", {**KKT, "bounds": "pixels", "trials": 1}),
        ("public_images", "margin", {"candidates": 3, "show": "mean"}),
        ("public_images", "margin", {"candidates": 3, "show": "images"}),
    ],
    "network_inversion": [
        ("affine", "linear", AFFINE),
        ("affine", "sigmoid", {**AFFINE, **ONE, "solver": "gradient", "loss": "logit"}),
        ("affine", "sigmoid", {**AFFINE, **ONE, "solver": "gauss_newton"}),
        ("hidden_unit", "margin", UNIT),
        ("hidden_unit", "classifier", {**UNIT, "layer": "layers.3", "solver": "gradient"}),
        ("class_target", "classifier", CLASS),
        ("class_target", "classifier", {**CLASS, "goal": "preferred", "prior": 0.1}),
        ("class_target", "classifier", {**CLASS, "goal": "range", "prior": 1.0}),
        ("lstm_gate", "lstm", GATE),
        ("lstm_gate", "lstm", {**GATE, "change": "image"}),
    ],
    "decoder_inversion": [
        ("encoder", "vae", {}),
        ("layerwise", "vae", LAYERWISE),
        ("layerwise", "vae", {**LAYERWISE, "precision": "float32", "weights": "relative"}),
        (
            "bounded",
            "vae",
            {
                **{"precision": "float64", "output_clamp": 0.01, "hidden_clamp": 0.01},
                **{"iterations": 5},
            },
        ),
        (
            "gauss_newton",
            "vae",
            {
                **{"penalty": 0.001, "starts": 4, "bank": 20, "screening": 2, "rounds": 2},
                **{"iterations": 4, "tolerance": 0.000001, "seed": 0},
            },
        ),
        (
            "gradient",
            "vae",
            {
                **{"precision": "float32", "penalty": 0.0, "steps": 3, "learning_rate": 0.1},
                **{"restarts": 2, "seed": 0},
            },
        ),
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
        "network_inversion": {"observed": images, "code": np.zeros(3, np.float32) + 0.1, **decoder},
        "decoder_inversion": {"observed": images.astype(np.float64)[None]},
    }
    for problem, arrays in observed.items():
        each = np.array(problem not in ("training_data", "network_inversion"))
        write_arrays(
            observed_path(problem), {**arrays, "each": each, "dataset": np.array("digits")}
        )
