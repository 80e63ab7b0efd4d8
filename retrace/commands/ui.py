"""MLflow's UI on a store of this pipeline."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from retrace.pipeline.command import Refusal, run

HOST = "127.0.0.1"
SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def check_port(port: int) -> None:
    """Refuse a port that cannot be listened on: MLflow ends with tracebacks, and says 0."""
    if not 1 <= port <= 65535:
        raise Refusal(f"--port {port}: allowed are 1 to 65535")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as MLflow's server does
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise Refusal(f"--port {port}: {error.strerror}; choose another") from None


def main(store: Path, port: int) -> None:
    """Show the runs of a store in MLflow's UI, on this machine, until Ctrl-C."""
    if not (store / "mlflow.db").is_file():
        raise Refusal(
            f"{store / 'mlflow.db'} is missing; `make track` makes it (of the demo: `make track "
            "STORE=demo`)"
        )
    check_port(port)
    with tempfile.TemporaryDirectory() as folder:
        # By a link, since MLflow does not start from a path that holds a %.
        link = Path(folder, "environment")
        link.symlink_to(Path(sys.executable).parents[1])
        python = str(link / "bin" / Path(sys.executable).name)
        place = ("--host", HOST, "--port", str(port), "--workers", "1")
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
            process_group=0,  # Ctrl-C, which it answers with tracebacks, is for this process
        )
        try:
            with suppress(KeyboardInterrupt):
                sys.exit(server.wait())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, default=Path(), help="the folder of an mlflow.db (default: .)"
    )
    parser.add_argument("--port", type=int, default=5000, help="on localhost (default: 5000)")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server ends with this process
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    run(main, arguments=arguments)
