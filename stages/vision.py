"""torchvision's datasets, importable also where its compiled operators cannot be loaded."""

import importlib.util
import sys

import torch
from torch.library import Library

if importlib.util.find_spec("torchvision") and "torchvision" not in sys.modules:
    # A CUDA build of torchvision beside a CPU build of torch (what some package mirrors serve)
    # loads no operators, and then its import fails on "operator torchvision::nms does not exist".
    # The datasets need none of them: declaring the two is enough. An ordinary install skips this.
    try:
        pass
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        declarations = Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                declarations.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )

from torchvision import datasets

__all__ = ["datasets"]
