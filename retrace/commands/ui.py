"""MLflow's UI on a store of this pipeline."""

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from retrace.pipeline.command import Refusal, run

SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def main(store: Path, port: int) -> None:
    """Show the runs of a store in MLflow's UI, on this machine, until Ctrl-C."""
    if not (store / "mlflow.db").is_file():
        raise Refusal(
            f"{store / 'mlflow.db'} is missing; `make track` makes it (of the demo: `make track "
            "STORE=demo`)"
        )
    with tempfile.TemporaryDirectory() as folder:
        # By a link, since MLflow does not start from a path that holds a %.
        link = Path(folder, "environment")
        link.symlink_to(Path(sys.executable).parents[1])
        python = str(link / "bin" / Path(sys.executable).name)
        place = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
        server = subprocess.Popen(
            [
                python,
                "-m",
                "mlflow",
                "server",
                *place,
                "--backend-store-uri",
                "sqlite:///mlflow.db",
            ],
            cwd=store,
            env={**os.environ, **SETTINGS},
        )
        with suppress(KeyboardInterrupt):
            sys.exit(server.wait())
        server.wait()  # the terminal interrupts the server, too


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, default=Path(), help="the folder of an mlflow.db (default: .)"
    )
    parser.add_argument("--port", type=int, default=5000, help="on localhost (default: 5000)")


if __name__ == "__main__":
    run(main, arguments=arguments)
