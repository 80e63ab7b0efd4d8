"""Which architectures a method can work with, so that a wrong one is refused before anything runs.

A method or an architecture that is not named here, such as one's own, is not checked.
"""

WITH_MEAN = ("convolutional", "dense", "masked", "prior")  # images to images, and their mean
OF_IMAGES = ("convolutional", "dense", "denoiser", "gallery", "masked", "prior", "vae")
LAYERED = ("classifier", "convolutional", "dense", "denoiser", "lstm", "margin", "masked", "mlp")

TAKES: dict[str, dict[str, tuple[str, ...]]] = {
    "autoencoding": {"one_pass": OF_IMAGES},
    "imputation": {
        "backpropagation": WITH_MEAN,
        "backpropagation_prior": ("prior",),
        "combined": ("prior",),
        "denoising_score": ("denoiser",),
        "fill": ("gaussian", *WITH_MEAN),
        "knn": ("gallery",),
        "latent_search": ("prior",),
        "masked": ("masked",),
        "mixture": ("prior",),
        "one_pass": WITH_MEAN,
        "posterior": ("prior",),
        "ridge": ("gaussian", "prior"),
    },
    "training_data": {
        **dict.fromkeys(("kkt", "row_differences", "sparse_span"), ("margin",)),
        **dict.fromkeys(("public_images", "vertices"), ("margin", "mlp")),
    },
    "membership": dict.fromkeys(("loss", "stationarity"), ("mlp",)),
    "network_inversion": {
        "affine": ("regression",),
        "class_target": ("classifier", "lstm"),
        "hidden_unit": (*LAYERED, "prior", "vae"),
        "lstm_gate": ("lstm",),
    },
    "decoder_inversion": dict.fromkeys(
        ("bounded", "encoder", "gauss_newton", "gradient", "layerwise"), ("vae",)
    ),
}
KNOWN = {name for methods in TAKES.values() for names in methods.values() for name in names}


def objection(problem: str, method: str, architecture: str) -> str | None:
    """What is wrong with an architecture for a method, if anything is."""
    taken = TAKES.get(problem, {}).get(method)
    if taken is None or architecture in taken or architecture not in KNOWN:
        return None
    return f"architecture {architecture}; method {method} takes {', '.join(taken)}"
