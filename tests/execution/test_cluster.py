"""A real Ray cluster of two nodes on this machine, and what happens when parts of it are killed.

These take minutes: `make cluster` runs them, `make test` does not.
"""

import csv
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from conftest import TINY, write_params

from retrace.commands import sweep
from retrace.data.masks import missing_pixels
from retrace.execution import engine, shards
from retrace.networks import dense
from retrace.pipeline.artifacts import save_checkpoint, write_arrays, write_json
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import RandomPixels
from stages import reconstruct

if os.environ.get("RETRACE_CLUSTER") != "1":
    pytest.skip("takes minutes; `make cluster` runs it", allow_module_level=True)
pytest.importorskip("ray", reason="ray is not installed: pip install .[cluster]")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A head node with one core."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # 15 on a busy machine takes for ever
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        yield cluster
        cluster.shutdown()


@pytest.fixture
def cluster(head: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator["Killer"]:
    """The head node and another one with two cores, named by RAY_ADDRESS."""
    node = head.add_node(num_cpus=2)
    monkeypatch.setenv("RETRACE_ENGINE", "ray")
    monkeypatch.setenv("RETRACE_WORKERS", "1")
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    killer = Killer(head, node, monkeypatch)
    yield killer
    if not killer.node_killed:
        head.remove_node(node)


class Killer:
    """Kills a worker at work after the first result, and the second node after the third."""

    def __init__(self, head: Any, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.head, self.node = head, node
        self.killed: list[int] = []
        self.node_killed = False
        self.results = 0
        self.original = engine.run
        monkeypatch.setattr(engine, "run", self.run)

    def run(
        self, function: Callable[[Any], Any], tasks: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        for position, result in self.original(function, tasks):
            self.results += 1
            if self.results == 1:
                self.kill_worker()
            elif self.results == 3:
                self.head.remove_node(self.node, allow_graceful=False)
                self.node_killed = True
            yield position, result

    def kill_worker(self) -> None:
        """Kill one process of this cluster that runs a task."""
        while not self.killed:
            for process in psutil.Process().children(recursive=True):
                if self.busy(process):
                    time.sleep(0.5)  # to be in the middle of it
                    if self.busy(process):
                        process.kill()
                        self.killed.append(process.pid)
                        break
            time.sleep(0.01)

    @staticmethod
    def busy(process: Any) -> bool:
        try:
            return bool(process.name().startswith("ray::_call"))
        except psutil.NoSuchProcess:
            return False


def slow_square(task: tuple[int, str]) -> tuple[int, str]:
    """The square, where it was computed, and a line for each time that it was begun."""
    import ray

    number, folder = task
    node = ray.get_runtime_context().get_node_id()
    with Path(folder, f"{number}.txt").open("a") as file:
        file.write(f"{node}\n")
    time.sleep(2)
    return number**2, node


def test_a_worker_and_a_node_are_killed_and_every_result_comes_once(
    cluster: Killer, tmp_path: Path
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no tests
    results = list(engine.run(slow_square, [(i, str(tmp_path)) for i in range(14)]))
    assert cluster.killed and cluster.node_killed
    assert sorted(position for position, _ in results) == list(range(14))
    assert all(value == position**2 for position, (value, _) in results)
    assert len({node for _, (_, node) in results}) == 2  # both had work
    begun = [len(path.read_text().split()) for path in tmp_path.glob("*.txt")]
    assert len(begun) == 14 and sum(begun) >= 16  # some more than once: Ray tried again


def test_shards_on_a_broken_cluster_give_the_bytes_of_one_process(
    cluster: Killer, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "SIZE", 100)
    arguments: dict[str, Any] = {"widths": [200, 24], "gain": 1.0, "dropout": 0.0}
    network = dense.Network(**arguments)
    save_checkpoint(
        network, name="ffnn", architecture="dense", arguments=arguments, dataset="digits"
    )
    some = images[:1000]
    mask = missing_pixels(RandomPixels(kind="random", share=0.5), count=1000, seed=0)
    masked = np.where(mask, np.nan, some.numpy())[None]
    given = {"observed": masked, "dataset": np.array("digits"), "each": np.array(True)}
    write_arrays(Path("data/observed/imputation.npz"), given)
    settings = {**TINY["runs"]["imputation-known"]["settings"], "steps": 150, "restarts": 3}
    entry = {**TINY["runs"]["imputation-known"], "settings": settings}
    write_params(tmp_path, {**TINY, "runs": {"imputation-known": entry}})
    file = Path("data/reconstructions/imputation/imputation-known.npz")
    monkeypatch.setattr(shards, "STARTING", float("inf"))
    reconstruct.main("imputation-known")
    expected = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(shards, "STARTING", 0.0)
    reconstruct.main("imputation-known")
    assert cluster.killed and cluster.node_killed and cluster.results == 9
    assert file.read_bytes() == expected


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def test_a_sweep_on_a_broken_cluster_loses_and_doubles_no_trial(
    cluster: Killer,
    digit_splits: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "publish", lambda *args, **more: None)
    for part, arrays in digit_splits.items():
        write_arrays(Path(f"data/{part}.npz"), {**arrays, "dataset": np.array("digits")})
    write_json(Path("data/dataset.json"), {"name": "digits", "sha256": {"train": "1"}})
    settings = "runs.imputation-known.settings"
    small = {
        "runs": ["imputation-known"],
        "search": "grid",
        "vary": [{f"{settings}.steps": [20, 30, 40], f"{settings}.restarts": [10, 20]}],
        "figure": {"metric": "mse"},
    }
    write_params(tmp_path, {**TINY, "sweeps": {"small": small}})
    sweep.main("small")
    assert cluster.killed and cluster.node_killed
    found = rows_of(Path("metrics/sweeps/small.csv"))
    assert len({row["trial"] for row in found}) == 6 and not any(row["refused"] for row in found)
    trials = {path.stem for path in Path("data/sweeps/trials").iterdir()}
    assert trials == {row["trial"] for row in found}
    # The same trials in this process alone give the same table.
    monkeypatch.setattr(
        engine, "run", lambda function, tasks: [(i, function(task)) for i, task in enumerate(tasks)]
    )
    shutil.rmtree("data/sweeps")
    sweep.main("small")
    assert rows_of(Path("metrics/sweeps/small.csv")) == found


def test_workers_run_the_code_that_is_here(cluster: Killer) -> None:
    """Digests of a module there and here, whatever version is installed beside it."""
    module = "__import__('retrace.execution.shards').execution.shards"
    expression = f"__import__('inspect').getsource({module})"
    ((_, source),) = cluster.original(eval, [expression])  # nothing is killed
    assert source == Path(shards.__file__).read_text(encoding="utf-8")


def test_ray_is_started_here_where_no_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRACE_ENGINE", "ray")
    monkeypatch.setenv("RETRACE_WORKERS", "2")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert sorted(engine.run(math.factorial, [3, 4])) == [(0, 6), (1, 24)]
    with pytest.raises(ValueError, match="negative"):
        list(engine.run(math.factorial, [-1]))


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRACE_ENGINE", "ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(Refusal, match=r"^no Ray cluster at 127\.0\.0\.1:1 \(.*refused"):
        list(engine.run(math.factorial, [3]))
