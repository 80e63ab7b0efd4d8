"""Sources of the raw files: the user's own first, corrupt ones refused, a clear end."""

import errno
import gzip
import hashlib
import http.server
import shutil
import socketserver
import struct
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from conftest import MNIST, TINY, write_params

from retrace.data import download, split
from retrace.data.vision import datasets
from retrace.pipeline.artifacts import DATASET, read_arrays, read_json, split_path
from retrace.pipeline.command import Refusal, one_line
from stages import download as fetching
from stages import split as splitting

SIZES = {"train": 40, "t10k": 10}


def idx(array: "np.ndarray[Any, Any]") -> bytes:
    """An array in the format of the MNIST files (type 8 is unsigned byte)."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small files, for which torchvision's MNIST now expects the sums; its
    own mirrors lead nowhere."""
    folder = tmp_path / "published"
    folder.mkdir()
    rng = np.random.default_rng(0)
    resources = []
    for part, size in SIZES.items():
        arrays = {
            "images-idx3": rng.integers(0, 256, (size, 28, 28)),
            "labels-idx1": rng.integers(0, 10, size),
        }
        for kind, array in arrays.items():
            name = f"{part}-{kind}-ubyte.gz"
            (folder / name).write_bytes(idx(array))
            md5 = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
            resources.append((name, md5))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def choose(folder: Path, **data: Any) -> None:
    write_params(folder, {**TINY, "data": {**TINY["data"], **data}})


@pytest.fixture
def server(published: Path) -> Iterator[str]:
    handler = partial(QuietHandler, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def raw_files(folder: Path) -> set[str]:
    return {p.name for p in (folder / "data/raw/MNIST/raw").iterdir()}


def test_the_variable_wins_over_the_parameter(
    workspace: Path,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choose(workspace, name="mnist", mirror="http://127.0.0.1:9/nowhere")
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(published))
    fetching.main()
    assert f"mnist: from {published}" in capsys.readouterr().out
    assert "train-images-idx3-ubyte.gz" in raw_files(workspace)


def test_a_url_serves_as_a_mirror(
    workspace: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    choose(workspace, name="mnist", mirror=server)
    fetching.main()
    assert f"mnist: from {server}" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["corrupt", "truncated", "missing"])
def test_a_damaged_file_is_refused_and_fetched_anew(
    damage: str,
    workspace: Path,
    published: Path,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for file in published.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    victim = own / "t10k-images-idx3-ubyte.gz"
    whole = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(whole[:-9] if damage == "truncated" else whole[:-9] + bytes(9))
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(own))
    choose(workspace, name="mnist", mirror=server)
    fetching.main()
    printed = capsys.readouterr().out
    assert f"{victim.name} is {'missing' if damage == 'missing' else 'corrupt'}" in printed
    assert f"mnist: from {server}" in printed
    fetched = workspace / "data/raw/MNIST/raw" / victim.name
    assert fetched.read_bytes() == whole


def test_a_file_url_serves_as_a_mirror(
    workspace: Path, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published.rename(published.with_name("a b#é"))
    for url in (
        f"file://{quote(str(folder))}",
        f"FILE://localhost{quote(str(folder))}/",
        f"file:{quote(str(folder))}",
    ):
        choose(workspace, name="mnist", mirror=url)
        fetching.main()
        assert f"mnist: from {url}" in capsys.readouterr().out
        assert len(raw_files(workspace)) == 8
        shutil.rmtree(workspace / "data")


ANSWERS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "a broken chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\nabc",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc",
    "too short": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<html>no</html>",
    "a redirect to itself": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "a redirect to nowhere": b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
    "an odd status": b"HTTP/1.1 2000 Whatever\r\n\r\n",
    "a line that controls the terminal": b"HTTP/1.1 404 \x1b[2J\r\nContent-Length: 0\r\n\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 200,
}


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that answers everything with the same bytes and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(request.param)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{it.server_address[1]}/x"
        it.shutdown()


@pytest.mark.parametrize("answering", ANSWERS.values(), ids=ANSWERS, indirect=True)
def test_after_a_server_that_answers_wrongly_the_next_source_is_tried(
    workspace: Path,
    published: Path,
    answering: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    falls_back(answering, workspace, published, monkeypatch, capsys)


def falls_back(
    source: str,
    workspace: Path,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """One line on the source that fails, then the next one delivers; give the line."""
    monkeypatch.setenv(download.MIRROR_VARIABLE, source)
    choose(workspace, name="mnist", mirror=str(published))
    fetching.main()
    failed, took = capsys.readouterr().out.splitlines()
    assert (
        failed.startswith(f"{one_line(source)}: ")
        and failed.isprintable()
        and failed.endswith("; trying the next source")
    )
    assert took == f"mnist: from {published}"
    assert len(raw_files(workspace)) == 8  # four archives and what they hold
    assert [path.name for path in (workspace / "data").iterdir()] == ["raw"]
    return failed


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("http://127.0.0.1:9/a b", "control characters"),
        ("http://127.0.0.1:port/", "nonnumeric port"),
        ("http://127.0.0.1:99999999/", ""),
        ("http://[::1/", "Invalid IPv6 URL"),
        ("http://", "no host given"),
        ("http://.../", ""),
        ("http://\udce9/", ""),
        ("gopher://127.0.0.1/x", "unknown url type: gopher"),
        ("ftp://127.0.0.1:9/x", ""),
        ("data://x", ""),
        ("file://elsewhere/x", "not of elsewhere"),
        ("file:///nowhere", "train-images-idx3-ubyte.gz is missing"),
        ("~nobody-of-that-name/x", "home directory"),
        ("nowhere", "train-images-idx3-ubyte.gz is missing"),
        ("caf\udce9", "train-images-idx3-ubyte.gz is missing"),
        ("/dev/null", "train-images-idx3-ubyte.gz is missing"),
    ],
)
def test_after_a_source_that_is_none_the_next_one_is_tried(
    source: str,
    reason: str,
    workspace: Path,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert reason in falls_back(source, workspace, published, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("kind", "reason"), [("folder", "is no file"), ("unreadable", "Input/output error")]
)
def test_after_a_file_that_cannot_be_read_the_next_source_is_tried(
    kind: str,
    reason: str,
    workspace: Path,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    if kind == "folder":
        (own / "train-images-idx3-ubyte.gz").mkdir()
    else:  # nobody can read the memory at address 0
        (own / "train-images-idx3-ubyte.gz").symlink_to("/proc/self/mem")
    failed = falls_back(str(own), workspace, published, monkeypatch, capsys)
    assert "train-images-idx3-ubyte.gz" in failed and reason in failed


def test_a_full_disk_is_no_fault_of_the_source(
    workspace: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    choose(workspace, name="mnist", mirror=str(published))
    with pytest.raises(OSError, match="No space left"):
        fetching.main()
    assert not list((workspace / "data").iterdir())


def test_a_folder_of_a_user_that_there_is_not(workspace: Path) -> None:
    choose(workspace, name="folder", path="~nobody-of-that-name/x")
    with pytest.raises(Refusal, match=r"data\.path = .~nobody-of-that-name/x.: .*home directory"):
        fetching.main()


def test_with_no_source_the_old_files_stay_and_the_line_says_what_was_tried(
    workspace: Path, tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(workspace, name="mnist")
    old = workspace / "data/raw/MNIST/raw/kept"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(tmp_path / "empty"))
    with pytest.raises(Refusal) as refusal:
        fetching.main()
    text = str(refusal.value)
    for part in (str(tmp_path / "empty"), "http://127.0.0.1:9/", "RETRACE_DATA_MIRROR", "digits"):
        assert part in text
    assert "\n" not in text
    assert old.read_text() == "old"
    assert [p.name for p in (workspace / "data").iterdir()] == ["raw"]


def test_splits_are_seeded_disjoint_and_recorded(
    workspace: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(published))
    choose(workspace, name="mnist")
    fetching.main()
    splitting.main()
    description = read_json(DATASET)
    assert description["sizes"] == {"train": 32, "validation": 8, "test": 10}
    assert str(published) not in DATASET.read_text()
    parts = {part: read_arrays(split_path(part)) for part in description["sizes"]}
    for part, arrays in parts.items():
        digest = hashlib.sha256(arrays["images"].tobytes()).hexdigest()
        assert description["sha256"][f"{part}/images"] == digest
        assert arrays["dataset"] == "mnist"
    drawn = np.concatenate([parts["train"]["images"], parts["validation"]["images"]])
    assert len(np.unique(drawn.reshape(40, -1), axis=0)) == 40
    before = split_path("train").read_bytes()
    splitting.main()
    assert split_path("train").read_bytes() == before


def test_digits_look_like_mnist_and_say_that_they_are_not(
    workspace: Path, digit_splits: dict[str, Any]
) -> None:
    sizes = [len(part["images"]) for part in digit_splits.values()]
    assert sum(sizes) == 1797
    images = digit_splits["test"]["images"]
    assert images.dtype == np.uint8 and images.shape[1:] == (28, 28)
    assert images.max() == 255 and not images[:, :4].any()
    assert "not MNIST" in split.describe_source("digits")["changed"]


@pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST files do not lie beside the repository")
def test_mnist_itself_splits_into_48000_12000_10000(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.MIRROR_VARIABLE, str(MNIST))
    choose(workspace, name="mnist")
    fetching.main()
    training, test, _ = split.read_raw("mnist")
    parts = split.split(training, test, validation=0.2, seed=0)
    sizes = {part: len(arrays["images"]) for part, arrays in parts.items()}
    assert sizes == {"train": 48000, "validation": 12000, "test": 10000}
    assert test is not None and test[1][:5].tolist() == [7, 2, 1, 0, 4]
