"""`dvc` commands whose stages are forked from a process that has imported everything.

Nine tenths of a tiny `dvc repro` are imports, during which a kill can harm nothing. Here they are
paid once, so that kills at random moments fall where files are written. Stages also get a clock of
their own, so that every file, those with times too, is the same byte for byte.

Reads lines of JSON from standard input, `{"command": ..., "cwd": ..., "log": ...}`; runs the
command, `dvc ...` or `python -m stages...`, in a session of its own, prints its process group and,
when it has ended, its exit code (negative: the signal that killed it).
"""

import importlib
import itertools
import json
import logging
import os
import runpy
import shlex
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
PRELOADED = (
    "dvc.cli",
    "dvc.commands.repro",
    "dvc.repo.reproduce",
    "dvc.stage.cache",
    "dvc.stage.run",
    "dvc_data.index",
    "dvc_data.hashfile.build",
    "dvc_data.hashfile.checkout",
    "matplotlib.pyplot",
    "mlflow.pytorch",
    "mlflow.store.tracking.sqlalchemy_store",
    "skimage.metrics",
    "skimage.transform",
    "sklearn.datasets",
    "scipy.optimize",
)


def clock() -> types.ModuleType:
    """The module `time`, whose time() counts its calls from one fixed second on."""
    fake = types.ModuleType("time")
    fake.__dict__.update(time.__dict__)
    ticks = itertools.count(1_700_000_000)
    fake.time = lambda: float(next(ticks))  # type: ignore[attr-defined]
    return fake


def stage(command: str, environment: dict[str, str], cwd: str) -> NoReturn:
    """Be `python -m stages.NAME ...`, without the imports, and exit as it would."""
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"], command
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = words[2:]
    fake = clock()
    sys.modules["time"] = fake
    for name, module in list(sys.modules.items()):
        if name.startswith(("retrace.", "stages.")) and hasattr(module, "time"):
            module.time = fake  # type: ignore[attr-defined]
    # Memory is like time: never the same twice.
    sys.modules["retrace.execution.shards"].peak_memory = lambda: 0  # type: ignore[attr-defined]
    code: Any = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a module that is run and was imported, too
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def forked(executable: str, cmd: str, **keywords: Any) -> None:
    """In place of `dvc.stage.run._run`: the same, by a fork."""
    from dvc.stage.exceptions import StageCmdFailedError

    sys.stdout.flush()
    child = os.fork()
    if not child:
        stage(cmd, keywords["env"], keywords["cwd"])
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise StageCmdFailedError(cmd, code)


def command(words: list[str], cwd: str, log: str) -> NoReturn:
    """Be a command in a session of its own, which one signal to its group ends."""
    os.setsid()
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(cwd)
    if words[0] == "python":
        stage(shlex.join(words), dict(os.environ), cwd)
    import dvc.stage.run
    from dvc.cli import main

    logging.getLogger("dvc").propagate = False  # or each line comes twice: a library has a handler
    dvc.stage.run._run = forked
    sys.argv = words
    code = main(words[1:])
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("ignore")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name in PRELOADED:
        importlib.import_module(name)
    for path in sorted([*(ROOT / "retrace").rglob("*.py"), *(ROOT / "stages").glob("*.py")]):
        if path.name not in ("__init__.py", "__main__.py"):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    import torch

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if not child:
            command(wanted["command"], wanted["cwd"], wanted["log"])
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
