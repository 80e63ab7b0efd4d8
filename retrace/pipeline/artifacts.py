"""Where artifacts lie and how they are written: whole or not at all, and never as a pickle."""

import csv
import fcntl
import hashlib
import inspect
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.overrides import TorchFunctionMode

from retrace.pipeline.command import Refusal
from retrace.types import Split

RAW = Path("data/raw")
DATASET = Path("data/dataset.json")
MASKS = Path("data/masks.npz")
FORMAT = "retrace-checkpoint-1"
FOLDERS = {"data", "metrics", "models"}  # the pipeline writes into no others
LARGEST_ARRAYS = 2**33  # bytes of an unpacked .npz; 10,000 images under 11 masks take 2**29
# Every network sees what the files hold, scaled; nothing else is subtracted or divided.
PREPROCESSING = {"scale": "1/255", "range": [0, 1], "shape": [28, 28]}


def split_path(split: str) -> Path:
    """Images and labels of "train", "validation" or "test"."""
    return Path(f"data/{split}.npz")


def checkpoint_path(network: str) -> Path:
    return Path(f"models/{network}.safetensors")


def history_path(network: str) -> Path:
    return Path(f"models/{network}.json")


def observed_path(problem: str) -> Path:
    return Path(f"data/observed/{problem}.npz")


def truth_path(problem: str) -> Path:
    """What `reconstruct` never opens."""
    return Path(f"data/truth/{problem}.npz")


def reconstruction_path(problem: str, run: str) -> Path:
    return Path(f"data/reconstructions/{problem}/{run}.npz")


def record_path(problem: str, run: str) -> Path:
    """How a reconstruction was made, and how long it took."""
    return Path(f"data/reconstructions/{problem}/{run}.json")


def interrupted_path(run: str) -> Path:
    """What an interrupted reconstruction keeps for its next start."""
    return Path(f"data/interrupted/{run}.npz")


def metrics_path(problem: str, run: str) -> Path:
    return Path(f"metrics/{problem}/{run}.json")


def baselines_path(problem: str) -> Path:
    """What the scores of a problem's runs are measured against."""
    return Path(f"metrics/{problem}/baselines.json")


def headline_path(problem: str, run: str) -> Path:
    return Path(f"metrics/headline/{problem}/{run}.json")


def made_here(path: Path) -> bool:
    """Whether a path is of the kind that the pipeline writes to, and not one of the user's own."""
    return bool(set(path.parts[:1]) & FOLDERS) and ".." not in path.parts


def _missing(path: Path) -> Refusal:
    advice = "; `dvc repro` makes it" if made_here(path) else ""
    return Refusal(f"{path} is missing{advice}")


def _broken(path: Path, what: str) -> Refusal:
    advice = "; delete it, and `dvc repro` makes it again" if made_here(path) else ""
    return Refusal(f"{path} is {what}{advice}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it when the block succeeds, else remove it.

    What a killed writer of the same file left behind is removed: it holds no lock on it any more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600, which a shared cache cannot use
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


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


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except json.JSONDecodeError as error:
        raise _broken(path, f"not JSON ({error})") from None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed .npz; the same arrays give the same bytes."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, *, only: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz, or only some; object arrays (pickles) are refused, and so is what
    would unpack to more than `LARGEST_ARRAYS`."""
    try:
        # Opened here, since np.load does not close a file that turns out to be broken.
        with path.open("rb") as stream:
            with zipfile.ZipFile(stream) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > LARGEST_ARRAYS:
                raise ValueError(f"{size} bytes unpacked, at most {LARGEST_ARRAYS} are allowed")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in only or file.files}
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):  # np.load gives any other member as bytes
                    raise ValueError(f"{name} is not an array")
            return arrays
    except FileNotFoundError:
        raise _missing(path) from None
    except Exception as error:  # zip, zlib, EOF, header and pickle errors have no common base
        reason = " ".join(str(error).split())
        raise _broken(path, f"not a readable .npz ({reason})") from None


def read_split(split: str) -> Split:
    return as_tensors(read_arrays(split_path(split), only=("images", "labels")))


def as_tensors(split: Mapping[str, NDArray[Any]]) -> Split:
    """A split of uint8 arrays."""
    images = torch.from_numpy(split["images"]).to(torch.float32) / 255
    return images, torch.from_numpy(split["labels"]).to(torch.int64)


def dataset_of(path: Path) -> str:
    """Name of the dataset that an .npz belongs to: each of them carries it."""
    return str(read_arrays(path, only=("dataset",))["dataset"])


def save_checkpoint(
    network: nn.Module,
    *,
    name: str,
    architecture: str,
    arguments: Mapping[str, Any],
    dataset: str,
    path: Path | None = None,
) -> None:
    """Write weights as safetensors, with what is needed to build the network in the header; to
    models/, where no other path is given."""
    source = Path(inspect.getfile(type(network))).read_bytes()
    header = {
        # Whoever reads a checkpoint depends on the module that defines it: with the digest in
        # the file, DVC sees that through the file alone.
        "module_sha256": hashlib.sha256(source).hexdigest(),
        "network": name,
        "architecture": architecture,
        "arguments": arguments,
        "preprocessing": PREPROCESSING,
        "dataset": dataset,
    }
    # One entry, since safetensors writes several in an order that changes from run to run.
    metadata = {FORMAT: json.dumps(header, sort_keys=True)}
    tensors = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    with written_whole(path or checkpoint_path(name)) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))


class _NoValues(TorchFunctionMode):
    """Leaves out what only gives values: on the device "meta", which has none, torch would import
    its compiler for it, which takes a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return kwargs["tensor"]
        if func is torch.eye:
            func, args = torch.empty, (args[0], args[-1])
        return func(*args, **kwargs)


def unfilled(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network without memory of its own, to load weights into with ``assign=True``: absurd sizes
    in a header must not be allocated to be refused."""
    build = import_module(f"retrace.networks.{architecture}").Network
    with torch.device("meta"), _NoValues():
        network: nn.Module = build(**arguments)
    return network


def load_checkpoint(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a checkpoint describes, in evaluation mode, its weights fixed, and the
    header: ``network``, ``architecture``, ``arguments``, ``preprocessing`` and ``dataset``. Refused
    when the file is missing, truncated, a pickle, not one of ours, of an architecture that is not
    here, when its tensors do not fit that architecture, or are not finite."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise _missing(path) from None
    except (SafetensorError, OSError) as error:
        reason = f"({error}): truncated files and pickles are not read"
        raise _broken(path, f"not a whole safetensors file {reason}") from None
    if FORMAT not in metadata:
        raise Refusal(f"{path} lacks the header {FORMAT!r}: this pipeline did not write it")
    try:
        header: dict[str, Any] = json.loads(metadata[FORMAT])
        architecture, arguments = header["architecture"], header["arguments"]
        preprocessing = header["preprocessing"]
    except (ValueError, TypeError, KeyError) as error:
        raise Refusal(
            f"{path}: the header {FORMAT!r} is broken ({error!r:.80}); train it anew"
        ) from None
    known = sorted(file.stem for file in Path(__file__).parents[1].glob("networks/[!_]*.py"))
    if architecture not in known:
        raise Refusal(f"{path}: architecture {architecture!r:.80}; allowed are {', '.join(known)}")
    if preprocessing != PREPROCESSING:
        raise Refusal(f"{path}: preprocessing {preprocessing!r:.80}; allowed is {PREPROCESSING}")
    try:
        network = unfilled(architecture, arguments)
        network.load_state_dict(tensors, assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"{path} does not hold the architecture {architecture!r}: {reason}") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise Refusal(f"{path}: some weights are not finite; train it anew")
    return network.eval().requires_grad_(False), header
