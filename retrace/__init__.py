"""What went in? Reconstruct the inputs of trained neural networks.

- `complete`: fill the missing pixels of images.
- `audit`: how many of some images can be identified from a classifier's weights.
- `load`: a network, by its name or its path.
- ``retrace.methods.<problem>.<method>.reconstruct``: every method on its own, on one's own tensors.
- ``retrace.networks.<architecture>.Network``: what they work with, and how it is trained.
- ``retrace.measures``: how good an answer is.

Nothing heavy is imported before it is used. Wrong arguments raise `BadInput`, a ValueError; files
that cannot be used raise `Refusal`.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when torch is imported. OpenMP's threads wait for the next small matrix by spinning: for as
# long as they do by default, two processes on the same cores take up to 15 times as long; not at
# all, small networks alone on theirs take up to 8 times as long. This is about 10 microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

if TYPE_CHECKING:
    from torch import nn

    from retrace.pipeline.command import Refusal
    from retrace.problems.imputation.complete import Completion, complete
    from retrace.problems.training_data.audit import Audit, audit
    from retrace.types import BadInput
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'retrace' has no attribute {name!r}")
        return getattr(import_module(f"retrace.{_HOMES[name]}"), name)


__version__ = "0.1.0"
__all__ = ["Audit", "BadInput", "Completion", "Refusal", "audit", "complete", "load"]

_HOMES = {
    "complete": "problems.imputation.complete",
    "Completion": "problems.imputation.complete",
    "audit": "problems.training_data.audit",
    "Audit": "problems.training_data.audit",
    "BadInput": "types",
    "Refusal": "pipeline.command",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(network: str | Path) -> "nn.Module":
    """A trained network, in evaluation mode, its weights fixed.

    Parameters
    ----------
    network : str or Path
        Name of a network of params.yaml, whose checkpoint lies in models/ here; or the path of a
        checkpoint, with its suffix ``.safetensors``.

    Raises
    ------
    Refusal
        When there is no such file, or it is no whole checkpoint of this library.
    """
    from retrace.pipeline.artifacts import checkpoint_path, load_checkpoint  # imports torch
    from retrace.pipeline.command import Refusal

    path = Path(network)
    if path.suffix not in ("", ".safetensors"):  # what is no checkpoint at all
        raise Refusal(f"{path}: a name, or a path that ends in .safetensors, is needed")
    return load_checkpoint(path if path.suffix else checkpoint_path(str(path)))[0]
