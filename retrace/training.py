"""Train a network as its entry of params.yaml says."""

import time
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from retrace.networks._training import train
from retrace.pipeline.device import announce, computing_on, described, matmul_precision
from retrace.pipeline.params import NetworkEntry, bind, find, refused
from retrace.types import BadInput, Split


def train_network(
    name: str,
    entry: NetworkEntry,
    training: Split,
    validation: Split,
    *,
    device: torch.device,
    dataset: str,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network and train it: by epochs of Adam, or by its own `fit` where it has one.

    Gives the network and the record of its training, which goes beside the checkpoint: with all
    values of arguments and training, those too that the entry leaves to their defaults.

    Raises
    ------
    Refusal
        On a wrong value, or when the training fails; names the key.
    """
    where = f"networks.{name}"
    architecture = find("networks", entry.architecture, where=f"{where}.architecture").Network
    arguments = bind(architecture.__init__, entry.arguments, where=f"{where}.arguments")
    own = getattr(architecture, "fit", None)
    settings = bind(
        own or train, entry.training, where=f"{where}.training", given=() if own else ("progress",)
    )
    rounded = matmul_precision(device, entry.precision)
    announce(name, rounded, entry.precision)
    started = time.time()
    data = [(images.to(device), labels.to(device)) for images, labels in (training, validation)]
    torch.manual_seed(settings.get("seed", 0))
    total = settings.get("epochs", settings.get("steps", 1))
    try:
        network = architecture(**arguments).to(device)  # drawn before, by the processor
        with (
            tqdm(total=total, desc=name, unit="epoch", disable=None) as bar,
            computing_on(device, entry.precision),
        ):

            def progress(entry: dict[str, float]) -> None:
                shown = {k: f"{v:.4g}" for k, v in entry.items() if "_" in k}
                bar.set_postfix(dict(list(shown.items())[:4]))
                bar.update(entry["epoch"] - bar.n)

            if own:
                history = network.fit(data[0], data[1], progress, **settings)
            else:
                history = train(network, data[0], data[1], **settings, progress=progress)
    except BadInput as error:
        sections = {"arguments": arguments, "training": settings}
        raise refused(error, where=where, sections=sections) from None
    record = {
        "network": name,
        "dataset": dataset,
        "architecture": entry.architecture,
        "arguments": arguments,
        "training": settings,
        "precision": entry.precision,
        "started": started,
        "seconds": time.time() - started,
        "device": described(device),
        "matmul_precision": rounded,
        "parameters": sum(tensor.numel() for tensor in network.state_dict().values()),
        "epochs": history,
    }
    return network, record


def best_of(record: dict[str, Any]) -> str:
    """What a training ended with, in a line."""
    name, history = record["network"], record["epochs"]
    criterion = next((key for key in history[0] if key.startswith("validation_")), None)
    if criterion is None:  # trained on all of its set at once: the last state is kept
        last = history[-1]
        shown = {key: value for key, value in last.items() if key not in ("epoch", "timestamp")}
        return f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in shown.items())
    best = min(history, key=lambda entry: entry[criterion])
    return f"{name}: best epoch {best['epoch']:.0f}, {criterion} {best[criterion]:.5f}"
