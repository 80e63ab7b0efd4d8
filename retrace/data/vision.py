"""torchvision's datasets, importable also where its compiled operators cannot be loaded."""

import sys
from importlib import import_module
from typing import Any

from torch.library import Library

# Lives as long as the process: what it declares goes with it.
_declarations: list[Library] = []


def _import_datasets() -> Any:
    try:
        return import_module("torchvision.datasets")
    except RuntimeError as error:
        # A CUDA build of torchvision beside a CPU build of torch, which some package mirrors
        # serve, loads no operators, and then its import fails on "operator torchvision::nms does
        # not exist". The datasets need none of them: declaring two is enough. An ordinary install
        # never comes here.
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declarations.append(library)
    return import_module("torchvision.datasets")


datasets = _import_datasets()
