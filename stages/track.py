"""Publish to MLflow."""

import time

from retrace.pipeline.command import run
from retrace.tracking.runs import publish


def main() -> None:
    """Publish networks and reconstructions of dvc.lock to MLflow (MLFLOW_TRACKING_URI, or the
    SQLite file beside dvc.yaml); runs that are there already are kept."""
    begun = time.time()
    added, kept = publish()
    print(f"MLflow: {added} runs published, {kept} were there ({time.time() - begun:.1f} s)")


if __name__ == "__main__":
    run(main)
