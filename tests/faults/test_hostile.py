"""Files and parameters made to do harm: each is one line of refusal, and nothing of it is run,
unpacked into memory, or written outside the workspace."""

import gzip
import io
import json
import pickle
import re
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import execute, write_params
from harness import fresh, tiny
from safetensors.torch import save

from retrace.checks import check_all
from retrace.data.download import fetch
from retrace.networks.dense import Network
from retrace.pipeline import artifacts
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import load

ARGUMENTS: dict[str, Any] = {"widths": [4], "gain": 1.0, "dropout": 0.0}
MEMORY = (
    3 * 2**30
)  # bytes of address space that reading a hostile file may take, libraries included


class Bomb:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def limited() -> Any:
    """Little memory: whatever believes an absurd size in a header fails here."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def whole() -> bytes:
    """A checkpoint as the pipeline writes it."""
    network = Network(**ARGUMENTS)
    header = {
        "architecture": "dense",
        "arguments": ARGUMENTS,
        "network": "ffnn",
        "dataset": "digits",
        "preprocessing": artifacts.PREPROCESSING,
    }
    return save(dict(network.state_dict()), metadata={artifacts.FORMAT: json.dumps(header)})


def with_header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The same with a changed safetensors header."""
    content = whole()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def tensor(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Change the entry of the first tensor in a safetensors header."""

    def change(header: dict[str, Any]) -> None:
        name = next(key for key in header if key != "__metadata__")
        header[name] = {**header[name], **values}

    return change


def ours(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Change entries of this pipeline's own header; `...` drops one."""

    def change(header: dict[str, Any]) -> None:
        own = json.loads(header["__metadata__"][artifacts.FORMAT]) | values
        kept = {key: value for key, value in own.items() if value is not ...}
        header["__metadata__"][artifacts.FORMAT] = json.dumps(kept)

    return change


def own_text(text: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header["__metadata__"][artifacts.FORMAT] = text

    return change


def torch_pickle() -> bytes:
    stream = io.BytesIO()
    torch.save({"weights": Bomb()}, stream)
    return stream.getvalue()


CHECKPOINTS: dict[str, bytes] = {
    "empty": b"",
    "pickle": pickle.dumps(Bomb()),
    "torch.save": torch_pickle(),
    "header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header of 2**64 - 1 bytes": b"\xff" * 8,
    "header of 200 MB that is not there": struct.pack("<Q", 200_000_000) + b"{}",
    "header longer than the file": struct.pack("<Q", 10**6) + whole()[8:],
    "header that is not JSON": struct.pack("<Q", 8) + b"not JSON",
    "header that is a list": with_header(lambda header: [1, 2]),
    "header nested 100,000 deep": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
    "no metadata": with_header(lambda h: {k: v for k, v in h.items() if k != "__metadata__"}),
    "tensor beyond the file": with_header(tensor(data_offsets=[0, 2**40])),
    "tensor with negative offsets": with_header(tensor(data_offsets=[-8, 8])),
    "tensor of absurd shape": with_header(tensor(shape=[2**40, 2**40])),
    "tensor whose shape overflows to 0": with_header(tensor(shape=[2**32, 2**32])),
    "tensor of an unknown type": with_header(tensor(dtype="F1024")),
    "tensor without a shape": with_header(lambda h: {**h, "x": {"dtype": "F32"}}),
    "our header is not JSON": with_header(own_text("{")),
    "our header is a number": with_header(own_text("3")),
    "our header is a list": with_header(own_text("[]")),
    "our header is null": with_header(own_text("null")),
    "our header lacks the architecture": with_header(ours(architecture=...)),
    "our header lacks the arguments": with_header(ours(arguments=...)),
    "our header lacks the preprocessing": with_header(ours(preprocessing=...)),
    "architecture out of the folder": with_header(ours(architecture="../../track")),
    "architecture that is a module": with_header(ours(architecture="__init__")),
    "architecture that is a list": with_header(ours(architecture=["dense"])),
    "arguments that are a list": with_header(ours(arguments=[1])),
    "absurd width": with_header(ours(arguments={**ARGUMENTS, "widths": [2**40]})),
    "negative width": with_header(ours(arguments={**ARGUMENTS, "widths": [-4]})),
    "a billion layers": with_header(ours(arguments={**ARGUMENTS, "widths": "4" * 10})),
    "unknown argument": with_header(ours(arguments={**ARGUMENTS, "hook": "os.system"})),
    "gain that is a text": with_header(ours(arguments={**ARGUMENTS, "gain": "<script>"})),
    "other preprocessing": with_header(ours(preprocessing={"scale": "1/127"})),
}


@pytest.mark.parametrize("content", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints(content: bytes, here: Path, limited: None) -> None:
    path = here / "models" / "ffnn.safetensors"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(Refusal) as refusal:
        artifacts.load_checkpoint(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
    assert str(refusal.value).startswith(str(path))
    assert not Path("exploded").exists()


def test_the_checkpoint_that_the_others_are_made_of_is_read(here: Path, limited: None) -> None:
    path = here / "ffnn.safetensors"
    path.write_bytes(whole())
    artifacts.load_checkpoint(path)
    path.write_bytes(with_header(lambda header: None))
    artifacts.load_checkpoint(path)


def zipped(name: str, content: bytes, *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def npy(shape: tuple[int, ...], *, descr: str = "<f4", data: bytes = b"") -> bytes:
    """An .npy that claims a shape and has some data."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + data


def with_lying_size(content: bytes, size: int) -> bytes:
    """A zip file whose directory and local header claim another unpacked size of the member."""
    start = content.rindex(b"PK\x01\x02") + 24
    local = content.index(b"PK\x03\x04") + 22
    field = struct.pack("<I", size)
    content = content[:start] + field + content[start + 4 :]
    return content[:local] + field + content[local + 4 :]


def object_arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, estimate=np.array([Bomb()], dtype=object))
    return stream.getvalue()


def bomb(members: int) -> bytes:
    """Members that unpack to 1 GiB of zeros each, and say so; made without packing as much."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)  # can be repeated
    data = packed * 2**6 + packer.flush()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i in range(members):
            member = zipfile.ZipInfo(f"a{i}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED
            member.CRC, member.compress_size, member.file_size = 0, len(data), 2**30
            member.header_offset = stream.tell()
            stream.write(member.FileHeader(False) + data)
            archive.filelist.append(member)
        archive.start_dir = stream.tell()
        archive._didModify = True  # type: ignore[attr-defined]
    return stream.getvalue()


ARRAYS: dict[str, bytes] = {
    "empty": b"",
    "pickle": pickle.dumps(Bomb()),
    "object arrays": object_arrays(),
    "pickle as a member": zipped("estimate.npy", pickle.dumps(Bomb())),
    "not an array": zipped("estimate.npy", b"<script>alert(1)</script>"),
    "absurd shape, no data": zipped("estimate.npy", npy((2**30, 2**30))),
    "large shape, no data": zipped("estimate.npy", npy((2**38,))),
    "negative shape": zipped("estimate.npy", npy((-1,), data=bytes(8))),
    "code in the header": zipped(
        "estimate.npy",
        b"\x93NUMPY\x01\x00\x30\x00" + b"__import__('pathlib').Path('exploded').touch()  ",
    ),
    "header of 4 GB": zipped("estimate.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"),
    "structured objects": zipped("estimate.npy", npy((1,), descr="|O", data=pickle.dumps(Bomb()))),
    "size that lies": with_lying_size(
        zipped("estimate.npy", npy((10**7,), data=bytes(4 * 10**7))), 16
    ),
    "cut off": zipped("estimate.npy", npy((100,), data=bytes(400)))[:150],
    "encrypted member": zipped("estimate.npy", npy((1,), data=bytes(4))).replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    ),
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS)
def test_arrays(content: bytes, here: Path, limited: None) -> None:
    path = here / "run.npz"
    path.write_bytes(content)
    with pytest.raises(Refusal) as refusal:
        artifacts.read_arrays(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
    assert not Path("exploded").exists()
    if content:
        with pytest.raises(Refusal, match=rf"^{re.escape(str(path))} is not a readable"):
            artifacts.read_arrays(path, only=("estimate",))
    path.unlink()  # it was closed, or Windows would say so


def test_a_decompression_bomb(here: Path, limited: None) -> None:
    """A thousandth on disk of what it unpacks to, and more than memory."""
    path = here / "run.npz"
    path.write_bytes(bomb(artifacts.LARGEST_ARRAYS // 2**30 + 1))
    assert path.stat().st_size < 10**7
    with pytest.raises(Refusal, match="bytes unpacked, at most"):
        artifacts.read_arrays(path)


def test_names_of_members_lead_nowhere(here: Path) -> None:
    """Arrays are read into memory by name: there is no path to be traversed."""
    inside = here / "workspace"
    inside.mkdir()
    path = inside / "run.npz"
    path.write_bytes(zipped("../../escaped.npy", npy((1,), data=bytes(4))))
    assert list(artifacts.read_arrays(path)) == ["../../escaped"]
    assert not list(here.rglob("escaped*"))


def test_a_dataset_archive_with_other_bytes_is_not_unpacked(here: Path) -> None:
    """The four files are known by their MD5 sums: a bomb or an archive that climbs out of its
    folder in their place is not even opened."""
    mirror = here / "mirror"
    mirror.mkdir()
    climbing = io.BytesIO()
    with tarfile.open(fileobj=climbing, mode="w:gz") as archive:
        member = tarfile.TarInfo("../../escaped")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    names = [
        f"{part}-{kind}-ubyte.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    for name, content in zip(
        names,
        (gzip.compress(bytes(10**8)), climbing.getvalue(), pickle.dumps(Bomb()), b""),
        strict=True,
    ):
        (mirror / name).write_bytes(content)
    with pytest.raises(Refusal, match="corrupt: its MD5 sum differs") as refusal:
        from retrace.data.vision import datasets

        original = datasets.MNIST.mirrors
        datasets.MNIST.mirrors = []
        try:
            fetch("mnist", here / "raw", mirrors=[str(mirror)])
        finally:
            datasets.MNIST.mirrors = original
    assert "\n" not in str(refusal.value)
    assert not list(here.rglob("escaped*")) and not Path("exploded").exists()
    assert sum(path.stat().st_size for path in (here / "raw").rglob("*") if path.is_file()) == 0


NAMES = (
    "../../escaped",
    "/escaped",
    "a/b",
    "..",
    "x; touch escaped",
    "x$(touch escaped)",
    "x`touch escaped`",
    "x\ntouch escaped",
    "-rf",
    "<script>alert(1)</script>",
    "x' onload='alert(1)",
    "${data.name}",
    "",
    "a" * 3 + "\x00",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_paths_commands_or_pages(name: str, here: Path) -> None:
    """Names stand in file names, in shell commands (dvc.yaml) and in the report."""
    for section in ("networks", "runs", "masks.patterns"):
        params = tiny()
        target: Any = params
        for key in section.split("."):
            target = target[key]
        target[name] = next(iter(target.values()))
        write_params(here, params)
        with pytest.raises(Refusal, match=section):
            check_all(load())
    for key in ("problem", "method", "network"):
        params = tiny()
        params["runs"]["imputation-mean"][key] = name
        write_params(here, params)
        with pytest.raises(Refusal, match=rf"runs\.imputation-mean\.{key}"):
            check_all(load())


def test_a_name_that_is_a_command_is_never_run(
    make_workspace: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = fresh(make_workspace, tmp_path / "workspace")
    params = tiny()
    params["networks"]["x; touch escaped"] = params["networks"]["gaussian"]
    write_params(folder, params)
    result = execute("dvc", "repro", cwd=folder, check=False)
    assert result.returncode and "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:pathlib.Path.touch [exploded]",
        "data: !!python/name:os.system",
        "!!python/object/new:os.system ['touch exploded']",
        "data: {name: !!binary aGVsbG8=}",
        "a: &a [*a]\ndata: *a",
    ],
)
def test_yaml_that_builds_objects(text: str, here: Path) -> None:
    Path("params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(Refusal) as refusal:
        load()
    assert "\n" not in str(refusal.value)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"data: \xff\xfe",
        b"data: " + b"[" * 5000 + b"]" * 5000,
        "\n".join(
            ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
            + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
            + ["data: *a11"]
        ).encode(),
    ],
    ids=["not UTF-8", "nested 5,000 deep", "aliases that unfold to 9**12 words"],
)
def test_yaml_that_breaks_readers(content: bytes, here: Path, limited: None) -> None:
    Path("params.yaml").write_bytes(content)
    with pytest.raises(Refusal) as refusal:
        load()
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600
