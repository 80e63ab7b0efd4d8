"""Where independent tasks run: in processes of this machine, or on a Ray cluster.

Neither the engine nor the number of workers is a parameter: both come from the environment, and no
result and no hash depends on them.

- ``RETRACE_ENGINE``: ``local`` (the default) or ``ray``, an optional extra;
- ``RETRACE_WORKERS``: processes of this machine, by default one for each core. A cluster has a size
  of its own;
- ``RAY_ADDRESS``: the cluster; without it, Ray is started on this machine for the time of the run;
- ``RETRACE_GPUS``: GPUs that a task takes on the cluster, fractions allowed, by default 0.

Scheduling and retries are the engine's own.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from retrace.pipeline.command import Refusal

REACHED = 10  # seconds for a cluster to answer
RETRIES = 5  # of a task whose worker or node died, by Ray
Task = TypeVar("Task")
Result = TypeVar("Result")


def workers() -> int:
    """Processes that may work at a time: RETRACE_WORKERS, or the cores that this one may use."""
    text = os.environ.get("RETRACE_WORKERS")
    if text is None:
        return len(os.sched_getaffinity(0))
    if not text.isdecimal() or int(text) == 0:
        raise Refusal(f"RETRACE_WORKERS = {text!r:.80}: a whole number, at least 1, is expected")
    return int(text)


def name() -> str:
    """The engine: RETRACE_ENGINE, or local."""
    chosen = os.environ.get("RETRACE_ENGINE", "local")
    if chosen not in ENGINES:
        raise Refusal(f"RETRACE_ENGINE = {chosen!r:.80}: allowed are {', '.join(ENGINES)}")
    return chosen


def parallel() -> bool:
    """Whether there is more than one process to work."""
    return workers() > 1 or name() != "local"


def gpus() -> float:
    """GPUs that one task takes: RETRACE_GPUS, or 0."""
    text = os.environ.get("RETRACE_GPUS", "0")
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not (0 <= share < 1 or share.is_integer()) or share < 0:
        raise Refusal(
            f"RETRACE_GPUS = {text!r:.80}: a fraction below 1, or a whole number, is expected"
        )
    return share


def run(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
    """Call a function on each task and yield each task's position with its result, as they come.

    The function is one of a module, since workers import it; an exception of it is raised here.
    Tasks are of what can be pickled: arrays, not tensors, which processes would share as files.
    Refused on a bad value of a variable above, when Ray is wanted but not installed or its cluster
    does not answer, and when a process of the local engine died.
    """
    return ENGINES[name()](function, tasks)


def _local(
    function: Callable[[Task], Result], tasks: Sequence[Task]
) -> Iterator[tuple[int, Result]]:
    others = set(multiprocessing.active_children())
    # Not forked: a copy of a process that has threads, as torch makes them, may hang.
    pool = ProcessPoolExecutor(
        max(1, min(workers(), len(tasks))),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        positions = {pool.submit(function, task): i for i, task in enumerate(tasks)}
        for future in as_completed(positions):
            # Popped, so that what was taken is not kept here too.
            yield positions.pop(future), future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise Refusal(
            "a worker process died, perhaps for want of memory; nothing half-written was kept. "
            "Run it again, with fewer RETRACE_WORKERS"
        ) from None
    finally:
        # After an error or Ctrl-C nobody wants what still runs.
        pool.shutdown(wait=False, cancel_futures=True)
        left = set(multiprocessing.active_children()) - others
        for process in left:
            process.terminate()
        for process in left:
            process.join()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends its workers, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _reach(address: str) -> None:
    """Fail within seconds where nobody answers; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=REACHED).close()


def _call(function: Callable[[Task], Result], task: Task) -> Result:
    return function(task)


def _ray(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
    try:
        import ray
    except ModuleNotFoundError:
        raise Refusal(
            "RETRACE_ENGINE = 'ray', which is not installed; `pip install .[cluster]` does it"
        ) from None
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"address": address}
    if not address:
        settings = {"address": "local", "num_cpus": workers(), "include_dashboard": False}
    share = gpus()
    try:
        if address:
            _reach(address)
        # This code goes along, whatever is installed there.
        code = {"py_modules": [str(Path(__file__).parents[1])]}
        ray.init(**settings, runtime_env=code, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"no Ray cluster at {address or 'this machine'} ({reason[:200]})") from None
    try:
        # A task that raised is not tried again, one whose worker or node died is.
        remote: Any = ray.remote(num_cpus=1, num_gpus=share, max_retries=RETRIES)(_call)
        positions = {remote.remote(function, task): i for i, task in enumerate(tasks)}
        while positions:
            done, _ = ray.wait(list(positions))
            for reference in done:
                position = positions.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    reason = " ".join(str(error).split())
                    raise Refusal(f"the Ray cluster lost a task ({reason[:200]})") from None
                yield position, result
    finally:
        ray.shutdown()


ENGINES = {"local": _local, "ray": _ray}
