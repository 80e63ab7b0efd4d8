"""Publish to MLflow what dvc.lock says has been made: one run for each network and each
reconstruction. Publishing twice adds nothing; into an empty store it rebuilds everything.

A stage that was skipped or restored from the cache never executes, so stages do not log by
themselves. Each run carries a fingerprint, a hash over its entry in dvc.lock and the entries of
all its ancestors; a finished run with that fingerprint is kept, otherwise one is made and its
history replayed from the files.
"""

import hashlib
import json
import logging
import os
import sqlite3
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock
from tqdm import tqdm

from stages.artifacts import (
    DATASET,
    checkpoint_path,
    history_path,
    load_checkpoint,
    metrics_path,
    observed_path,
    read_arrays,
    read_json,
    read_split,
    reconstruction_path,
    timing_path,
)
from stages.command import Refusal, run
from stages.networks.gaussian import Network as Gaussian
from stages.pictures import completed, mosaic

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that does not answer should be reported within seconds: the results are safe, and
# `make track` publishes them later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

LOCK = Path("dvc.lock")
# Gates the pipeline with the whole params.yaml for its parameter and the same bytes for its
# output: as an ancestor it would give every run a new fingerprint whenever any number changes.
GATE = "check"
FINGERPRINT = "retrace.fingerprint"
NETWORKS = "networks"  # the experiment of the trained networks; the others are named by problem
SHOWN = 4  # images in a picture
METRICS_A_CALL = 1000  # what MLflow takes at once
ITERATIONS_MASK = "bottom"
# Read once: MLflow's own functions write into the environment.
SERVER = os.environ.get("MLFLOW_TRACKING_URI")
# One for each run of an experiment, in order (Tol's muted and bright schemes, which colour-blind
# eyes tell apart): MLflow's own colours collide.
COLOURS = [
    *("#4477aa", "#cc6677", "#ddcc77", "#117733", "#332288", "#aa4499"),
    *("#44aa99", "#999933", "#882255", "#66ccee", "#ee7733", "#bbbbbb"),
]
# Not for charts: bounds of intervals and identities, which the attached metrics file holds.
NOT_CHARTED = ("_low", "_high", "seed", "n", "code_size", "pca_mse")

Stage = dict[str, Any]


def read_lock() -> dict[str, Stage]:
    """The stages of dvc.lock by name."""
    if not LOCK.exists():
        raise Refusal(f"{LOCK} is missing; run `dvc repro` first")
    stages: dict[str, Stage] = yaml.load(LOCK.read_text(encoding="utf-8"), yaml.CSafeLoader)[
        "stages"
    ]
    return stages


def fingerprints(stages: Mapping[str, Stage]) -> dict[str, str]:
    """A hash for each stage over its own entry in dvc.lock and those of all its ancestors."""
    makers = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs", [])}
    known: dict[str, str] = {}

    def fingerprint(name: str) -> str:
        if name not in known:
            inputs = {makers.get(dep["path"]) for dep in stages[name].get("deps", [])}
            ancestors = sorted(fingerprint(i) for i in inputs if i not in (None, GATE))
            text = json.dumps([stages[name], ancestors], sort_keys=True)
            known[name] = hashlib.sha256(text.encode()).hexdigest()
        return known[name]

    return {name: fingerprint(name) for name in stages}


def root() -> Path:
    """The folder that holds the default store: the repository, also from a temporary workspace
    of `dvc exp run --temp`."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


@contextmanager
def store() -> Iterator[MlflowClient]:
    """Open the store named by MLFLOW_TRACKING_URI, or the SQLite file beside dvc.yaml.

    One process at a time: two that create the SQLite file at once break it, and two that publish
    at once would double the runs.

    Raises
    ------
    Refusal
        When the store does not answer.
    """
    uri = SERVER or f"sqlite:///{root() / 'mlflow.db'}"
    # MLflow logs each migration of a new database, and each retry with a stack trace.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    (root() / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    with FileLock(root() / ".dvc" / "tmp" / "track.lock"):
        try:
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            if uri.startswith("sqlite:///"):
                with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
                    database.execute("PRAGMA journal_mode=WAL")  # readers beside a writer
            yield client
        except (MlflowException, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise Refusal(
                f"the tracking store {uri} failed ({reason[:200]}); all results are safe, and "
                "`make track` publishes them when it is back"
            ) from None


def experiment(client: MlflowClient, name: str) -> str:
    """Identifier of an experiment, made if it is not there."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A server knows where its artifacts belong; the default store keeps them beside itself.
    location = None if SERVER else (root() / "mlruns" / name).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def metric(key: str, value: float, *, at: float, step: int = 0) -> Metric:
    """A metric at a time given in seconds since 1970."""
    return Metric(key, float(value), int(at * 1000), step)


def params_of(stage: Stage) -> dict[str, Any]:
    """Parameters that DVC recorded for a stage, without the path of its own section."""
    recorded = stage.get("params", {}).get("params.yaml", {})
    own = {k: v for k, v in recorded.items() if k.split(".")[0] in ("networks", "runs")}
    flat: dict[str, Any] = {}
    for section in own.values():
        flat |= flatten(section)
    return flat


@contextmanager
def published(
    client: MlflowClient,
    *,
    experiment_name: str,
    name: str,
    fingerprint: str,
    tags: Mapping[str, str],
    started: float,
    seconds: float,
) -> Iterator[str | None]:
    """Make a run, finish it when the block succeeds, remove it when the block fails.

    Yields the run's identifier, or None where a finished run with this fingerprint exists.
    """
    where = experiment(client, experiment_name)
    same = client.search_runs([where], f"tags.`{FINGERPRINT}` = '{fingerprint}'")
    if any(r.info.status == "FINISHED" for r in same):
        yield None
        return
    for unfinished in same:  # a former process was killed while it published
        client.delete_run(unfinished.info.run_id)
    created = client.create_run(
        where,
        start_time=int(started * 1000),
        run_name=name,
        tags={**tags, FINGERPRINT: fingerprint},
    )
    try:
        yield created.info.run_id
    except BaseException:
        client.delete_run(created.info.run_id)
        raise
    client.set_terminated(created.info.run_id, end_time=int((started + seconds) * 1000))


def log(
    client: MlflowClient, run_id: str, *, params: Mapping[str, Any], metrics: list[Metric]
) -> None:
    """Write parameters and metrics, in as many calls as MLflow wants."""
    client.log_batch(run_id, params=[Param(k, str(v)) for k, v in params.items()])
    for i in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[i : i + METRICS_A_CALL])


def log_dataset(client: MlflowClient, run_id: str, dataset: Mapping[str, Any]) -> None:
    """Link the run to the dataset by a digest over the sums of all its arrays."""
    text = json.dumps(dataset["sha256"], sort_keys=True)
    entity = Dataset(
        name=dataset["name"],
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        source_type="local",
        source=json.dumps(dataset["source"]),
        profile=json.dumps(dataset["sizes"]),
    )
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "all")])])


def publish_network(
    client: MlflowClient, run_id: str, *, name: str, stage: Stage, dataset: Mapping[str, Any]
) -> None:
    """Parameters, curves by epoch, checkpoint, loadable model and a picture of one network."""
    history = read_json(history_path(name))
    metrics = [
        metric(key, value, at=entry["timestamp"], step=int(entry["epoch"]))
        for entry in history["epochs"]
        for key, value in entry.items()
        if key not in ("timestamp", "epoch")
    ]
    ended = history["started"] + history["seconds"]
    metrics.append(metric("seconds", history["seconds"], at=ended))
    log(
        client,
        run_id,
        params={**params_of(stage), "parameters": history["parameters"]},
        metrics=metrics,
    )
    log_dataset(client, run_id, dataset)
    client.log_artifact(run_id, str(checkpoint_path(name)), "checkpoint")
    client.log_artifact(run_id, str(history_path(name)), "checkpoint")
    network, _ = load_checkpoint(checkpoint_path(name))
    images = read_split("validation")[0][:SHOWN]
    if isinstance(network, Gaussian):
        return  # a table of moments: it maps no image to anything
    output = network(images)
    log_model(client, run_id, network, images, output)
    if output.shape == images.shape:
        rows = [images, output, (output - images).abs()]
        picture = mosaic([row.numpy() for row in rows])
        client.log_image(run_id, picture, key="validation", step=0)


def log_model(
    client: MlflowClient,
    run_id: str,
    network: torch.nn.Module,
    images: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """Store the network so that `mlflow.pytorch.load_model` gives it back."""
    import mlflow
    from mlflow.models import infer_signature

    mlflow.set_tracking_uri(client.tracking_uri)
    example = images.numpy()
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        warnings.simplefilter("ignore")
        mlflow.pytorch.log_model(
            network,
            name="model",
            input_example=example,
            signature=infer_signature(example, output.numpy()),
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        )


def publish_reconstruction(
    client: MlflowClient,
    run_id: str,
    *,
    name: str,
    stage: Stage,
    dataset: Mapping[str, Any],
) -> None:
    """Parameters, scores, losses by iteration, and the same pictures for every method."""
    scores = read_json(metrics_path(name))
    arrays = read_arrays(reconstruction_path(name))
    observations = read_arrays(observed_path(scores["problem"]))
    timing = read_json(timing_path(name))
    started, seconds = timing["started"], timing["seconds"]
    scalars = {k: v for k, v in scores.items() if isinstance(v, int | float)}
    groups = {"": scalars, **{f"{m}/": v for m, v in scores.get("masks", {}).items()}}
    metrics = [
        metric(f"{group}{key}", value, at=started + seconds)
        for group, values in groups.items()
        for key, value in values.items()
        if not key.endswith(NOT_CHARTED[:2]) and key not in NOT_CHARTED
    ]
    masks = observations["masks"].tolist() if "masks" in observations else []
    if "loss" in arrays:
        total = len(arrays["loss"])
        metrics += [
            metric(f"{mask}/loss", value, at=started + seconds * (step + 1) / total, step=step)
            for step, row in enumerate(arrays["loss"])
            for mask, value in zip(masks, row, strict=True)
        ]
    code_size = {key: scores[key] for key in ("code_size",) if key in scores}
    params = {**params_of(stage), **code_size, "images": scores["n"]}
    log(client, run_id, params=params, metrics=metrics)
    log_dataset(client, run_id, dataset)
    client.log_artifact(run_id, str(metrics_path(name)), "metrics")
    client.log_artifact(run_id, str(checkpoint_path(scores["network"])), "checkpoint")
    truth = read_split("test")[0][:SHOWN].numpy()
    for key, step, picture in reconstruction_pictures(arrays, observations, truth):
        client.log_image(run_id, picture, key=key, step=step)


def reconstruction_pictures(
    arrays: Mapping[str, Any], observations: Mapping[str, Any], truth: Any
) -> Iterator[tuple[str, int, Any]]:
    """Pictures of one reconstruction, the first test images in columns, with their key and step.

    For each mask the rows original, given, completed and error; of one mask also the completion
    along the iterations; without masks the rows original, output and error.
    """
    estimate, observed = arrays["estimate"], observations["observed"]
    if "masks" not in observations:
        output = estimate[:SHOWN]
        yield "reconstruction", 0, mosaic([truth, output, abs(output - truth)])
        return
    for i, mask in enumerate(observations["masks"].tolist()):
        given = observed[i, :SHOWN]

        def rows(found: Any, given: Any = given) -> list[Any]:
            full = completed(found[:SHOWN], given)
            return [truth, given, full, abs(full - truth)]

        yield f"{mask}/completed", 0, mosaic(rows(estimate[i]))
        if mask == ITERATIONS_MASK and "snapshots" in arrays:
            steps = arrays["snapshot_steps"].tolist()
            for step, snapshot in zip(steps, arrays["snapshots"], strict=True):
                yield f"{mask}/iterations", step, mosaic(rows(snapshot[i]))


def git_commit() -> str:
    """The commit that is checked out, or "unknown" outside a Git repository."""
    result = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


def main() -> None:
    """Publish networks and reconstructions of dvc.lock to MLflow (MLFLOW_TRACKING_URI, or the
    SQLite file beside dvc.yaml); runs that are there already are kept."""
    stages = read_lock()
    prints = fingerprints(stages)
    dataset = read_json(DATASET)
    commit = git_commit()
    wanted = [name for name in stages if name.split("@")[0] in ("train", "score")]
    added, begun = 0, time.time()
    with store() as client:
        bar = tqdm(wanted, desc="publish", unit="run", disable=None)
        for position, stage_name in enumerate(bar):
            kind, name = stage_name.split("@")
            if kind == "train":
                timing = read_json(history_path(name))
                identity = {"problem": "training", "method": "training", "network": name}
                experiment_name = NETWORKS
            else:
                timing = read_json(timing_path(name))
                scores = read_json(metrics_path(name))
                identity = {key: scores[key] for key in ("problem", "method", "network")}
                experiment_name = scores["problem"]
            with published(
                client,
                experiment_name=experiment_name,
                name=name.removeprefix(f"{experiment_name}-"),
                fingerprint=prints[stage_name],
                tags={
                    **identity,
                    "dataset": dataset["name"],
                    "mlflow.source.git.commit": commit,
                    "mlflow.source.name": stages[stage_name]["cmd"],
                    "mlflow.runColor": COLOURS[position % len(COLOURS)],
                },
                started=timing["started"],
                seconds=timing["seconds"],
            ) as run_id:
                if run_id is None:
                    continue
                publish = publish_network if kind == "train" else publish_reconstruction
                publish(client, run_id, name=name, stage=stages[stage_name], dataset=dataset)
                added += 1
    kept = len(wanted) - added
    print(f"MLflow: {added} runs published, {kept} were there ({time.time() - begun:.1f} s)")


if __name__ == "__main__":
    run(main)
