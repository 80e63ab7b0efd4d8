"""A process that has imported what stages need, and from which they are forked: a second less each.

`retrace run` and `retrace demo` start one and name its socket in RETRACE_WARM. ``python -m
stages.X`` (and ``retrace.commands.X``) then hands its arguments, environment, working folder and
streams to it and waits for the exit code. Without that variable, or where nobody listens, a stage
starts as always.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

VARIABLE = "RETRACE_WARM"
# Imported, and not used before a fork: a thread of torch's would not live on in the fork.
PRELOADED = (
    *("numpy", "scipy.linalg", "torch", "tqdm", "PIL.Image", "matplotlib.pyplot", "jinja2"),
    *("retrace.execution.reconstruction", "retrace.training", "retrace.measures.uncertainty"),
    *("retrace.data.download", "retrace.report.pictures", "retrace.problems"),
)
STALE = b"stale"  # the answer once code has changed: who calls starts by itself
LONGEST = 2**20  # bytes of what a stage hands over


def hand_over() -> None:
    """Let the warm process be this ``python -m stages.X``, and exit as it does; go on here where
    there is none."""
    path = os.environ.get(VARIABLE, "")
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:
            return
        wanted = {"words": sys.orig_argv, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109
        message = json.dumps(wanted).encode()
        socket.send_fds(connection, [len(message).to_bytes(4)], [0, 1, 2])
        connection.sendall(message)
        # Ctrl-C is for the stage, whose line and exit code are waited for.
        signal.signal(signal.SIGINT, lambda *_: connection.send(b"i"))
        answer = connection.recv(len(STALE))
    if answer == STALE:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return
    os._exit(int.from_bytes(answer) if answer else 1)


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start a warm process of the code in a folder; give the variable that names it. It ends with
    the block, or with this process."""
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/stages"
        command = [sys.executable, "-c", f"from retrace.warm import serve; serve({path!r})"]
        with subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin and process.stdout
            try:
                listens = process.stdout.readline() == b"ready\n"
                yield {VARIABLE: path} if listens else {}
            finally:
                process.kill()  # also while it still imports; no stage is at work any more


def serve(path: str) -> None:
    """Fork a stage for each that calls, one after the other, until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the stage
    sys.path.insert(0, "")  # as of python -m: the folder that a stage runs in
    begun = time.time()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(1, b"ready\n")  # who calls meanwhile waits
        for name in PRELOADED:
            import_module(name)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                child = os.fork()
                if not child:
                    listener.close()
                    _be(connection, begun)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                try:
                    connection.sendall((code % 256).to_bytes(4))
                except OSError:  # nobody waits any more
                    continue


def changed_since(moment: float) -> bool:
    """Whether a file of ours that is imported here was changed, or is gone, after a moment: DVC
    will write the new one's hash beside what a stage makes."""
    files = [
        Path(module.__file__)
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "retrace" and module.__file__
    ]
    return any(not file.exists() or file.stat().st_mtime > moment for file in files)


def _be(connection: socket.socket, begun: float) -> NoReturn:
    """Be the stage that called, unless code has changed since this process begun."""
    import runpy
    import warnings

    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    message = b""
    while len(message) < int.from_bytes(head):
        message += connection.recv(LONGEST)
    if changed_since(begun):
        connection.sendall(STALE)
        os._exit(0)
    wanted: dict[str, Any] = json.loads(message)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        os.dup2(streams[number], number)
        os.close(streams[number])
        # Anew: what Python knows of the stream that was there, a file or a pipe, does not hold.
        old = getattr(sys, name)
        new = open(number, mode, 1, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    os.setpgid(0, 0)  # Ctrl-C comes from who called alone, not from the terminal too
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def end() -> None:
        while connection.recv(1):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGKILL)  # who called was killed

    threading.Thread(target=end, daemon=True).start()
    sys.argv = wanted["words"][wanted["words"].index("-m") + 1 :]
    code: Any = 0
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end_of_stage:
        code = end_of_stage.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    for text in (sys.stdout, sys.stderr):
        text.flush()
    os._exit(code if isinstance(code, int) else 1)
