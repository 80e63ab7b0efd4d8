"""Fetch the dataset."""

import os
import shutil
import socket
from pathlib import Path

import numpy as np

from retrace.data.download import (
    DIGITS,
    FOLDER,
    MIRROR_VARIABLE,
    TIMEOUT,
    digits,
    fetch,
    temporary_folder,
)
from retrace.data.folder import check_classes, read_folder
from retrace.pipeline.artifacts import RAW
from retrace.pipeline.command import Refusal, one_line, run
from retrace.pipeline.params import load


def main() -> None:
    """Fetch the dataset that data.name names into data/raw/ (RETRACE_DATA_MIRROR, a folder or a
    URL, comes first, then data.mirror, then torchvision's mirrors); a folder of one's own images is
    converted into it."""
    params = load()
    data = params.data
    socket.setdefaulttimeout(TIMEOUT)
    with temporary_folder(RAW) as name:
        folder = name / "raw"
        folder.mkdir()
        if data.name == "digits":
            np.savez_compressed(folder / DIGITS, allow_pickle=False, **digits())
            source = "scikit-learn"
        elif data.path is not None:
            try:
                path = Path(data.path).expanduser()
            except RuntimeError as error:  # ~ and a user that there is not
                raise Refusal(f"params.yaml: data.path = {data.path!r}: {error}") from None
            arrays = read_folder(path)
            check_classes(len(arrays["classes"]), params.networks)
            np.savez_compressed(folder / FOLDER, allow_pickle=False, **arrays)
            source = f"{data.path}, {len(arrays['images'])} images"
        else:
            mirrors = [m for m in (os.environ.get(MIRROR_VARIABLE), data.mirror) if m]
            source = fetch(data.name, folder, mirrors=mirrors)
        shutil.rmtree(RAW, ignore_errors=True)
        folder.replace(RAW)
    print(one_line(f"{data.name}: from {source}"))


if __name__ == "__main__":
    run(main)
