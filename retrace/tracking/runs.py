"""Publish to MLflow what dvc.lock says has been made: one run for each network and each
reconstruction. Publishing twice adds nothing; into an empty store it rebuilds everything.

A stage that was skipped or restored from the cache never executes, so stages do not log by
themselves. Each run carries a fingerprint: of a network, a hash over its entry in dvc.lock and the
entries of all its ancestors; of a reconstruction also over its scores. A finished run with that
fingerprint whose artifacts can be found is kept, otherwise one is made and its history replayed
from the files.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from tqdm import tqdm

from retrace.git import git
from retrace.networks.gaussian import Network as Gaussian
from retrace.networks.margin import Network as Margin
from retrace.networks.regression import Network as Regression
from retrace.pipeline.artifacts import (
    DATASET,
    checkpoint_path,
    history_path,
    load_checkpoint,
    metrics_path,
    read_arrays,
    read_json,
    read_split,
    reconstruction_path,
    record_path,
)
from retrace.pipeline.command import Refusal
from retrace.problems import Ground
from retrace.problems import Run as Reconstruction
from retrace.problems.sections import show_of
from retrace.report.pictures import COLOURS, mosaic, scale_of, split_rows
from retrace.tracking.store import experiment, published, store

LOCK = Path("dvc.lock")
# Gates the pipeline with the whole params.yaml for its parameter and the same bytes for its
# output: as an ancestor it would give every run a new fingerprint whenever any number changes.
GATE = "check"
SWEEPS = "sweeps"  # the experiment of sweeps and their trials
SWEEP = "retrace.sweep"  # tag of a trial: the fingerprint of its sweep
MOST_TRIALS = 10_000
NETWORKS = "networks"  # the experiment of the trained networks; the others are named by problem
SHOWN = 4  # images in a row of a picture
SHOWN_UNITS = 16  # of a first layer
SHOWN_LOSSES = 1000  # at most so many losses of a group along the iterations, evenly spaced
METRICS_A_CALL = 1000  # what MLflow takes at once
# Not for charts: bounds of intervals and identities, which the attached metrics file holds.
BOUNDS = ("_low", "_high")
IDENTITIES = ("seed", "n", "code_size", "pca_mse")

Stage = dict[str, Any]
Record = dict[str, Any]


def read_lock() -> dict[str, Stage]:
    """The stages of dvc.lock by name."""
    if not LOCK.exists():
        raise Refusal(f"{LOCK} is missing; run `dvc repro` first")
    try:
        stages: Any = yaml.load(LOCK.read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        stages = None
    if not isinstance(stages, dict):
        raise Refusal(f"{LOCK} is broken; `retrace mend` mends it")
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


def publish_network(client: MlflowClient, run_id: str, name: str, record: Record) -> None:
    """Parameters, curves by epoch, checkpoint, loadable model and a picture of one network."""
    metrics = [
        metric(key, value, at=entry["timestamp"], step=int(entry["epoch"]))
        for entry in record["epochs"]
        for key, value in entry.items()
        if key not in ("timestamp", "epoch")
    ]
    ended = record["started"] + record["seconds"]
    metrics.append(metric("seconds", record["seconds"], at=ended))
    network, _ = load_checkpoint(checkpoint_path(name))
    if isinstance(network, Margin):
        # A low rank is what makes the training images readable: the layer is spanned by them.
        spectrum = torch.linalg.svdvals(first_layer(network)).tolist()
        metrics += [
            metric("first_layer/singular_value", value, at=ended, step=i)
            for i, value in enumerate(spectrum)
        ]
    kept = ("architecture", "arguments", "training", "precision", "parameters")
    log(client, run_id, params=flatten({key: record[key] for key in kept}), metrics=metrics)
    client.log_artifact(run_id, str(checkpoint_path(name)), "checkpoint")
    client.log_artifact(run_id, str(history_path(name)), "checkpoint")
    if isinstance(network, Gaussian | Regression):
        return  # a table of moments, or a line: it maps no image to anything
    images = read_split("validation")[0][:SHOWN]
    if isinstance(network, Margin):
        client.log_image(run_id, first_layer_picture(network), key="first_layer", step=0)
        if network.shape != images.shape[1:]:  # no such images are in the dataset: any will do
            images = torch.full((SHOWN, *network.shape), 0.5)
    output = network(images)
    log_model(client, run_id, network, images, output)
    if output.shape == images.shape:
        rows = [images, output, (output - images).abs()]
        picture = mosaic([row.numpy() for row in rows])
        client.log_image(run_id, picture, key="validation", step=0)


def first_layer(network: Margin) -> torch.Tensor:
    """Weights (units, d) of the first layer."""
    return network.get_parameter("layers.0.weight").detach()


def first_layer_picture(network: Margin) -> Any:
    """The units with the largest weights, each as an image whose middle grey is 0."""
    weights = first_layer(network)
    largest = weights.norm(dim=1).argsort(descending=True)[:SHOWN_UNITS]
    shown = weights[largest]
    shown = 0.5 + 0.5 * shown / shown.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    images = shown.unflatten(1, network.shape).numpy()
    return mosaic(split_rows(images, columns=SHOWN), scale=scale_of(images))


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
    client: MlflowClient, run_id: str, name: str, record: Record, *, ground: Ground
) -> None:
    """Parameters, scores, losses by iteration, and the problem's pictures."""
    problem = record["problem"]
    scores = read_json(metrics_path(problem, name))
    arrays = read_arrays(reconstruction_path(problem, name))
    started, seconds = record["started"], record["seconds"]
    metrics = [metric(key, value, at=started + seconds) for key, value in charted(scores).items()]
    if "loss" in arrays:
        total = len(arrays["loss"])
        # The observations say which groups there are, in order.
        names = [key for key in ("masks", "groups") if key in ground.given]
        groups = [f"{group}/" for key in names for group in ground.given[key].tolist()] or [""]
        metrics += [
            metric(f"{group}loss", value, at=started + seconds * (step + 1) / total, step=step)
            for step in sorted({*range(0, total, -(-total // SHOWN_LOSSES) or 1), total - 1})
            for group, value in zip(groups, arrays["loss"][step], strict=True)
        ]
    kept = ("method", "network", "precision", "settings")
    params = flatten({key: record[key] for key in kept}) | {"images": scores["n"]}
    params |= {key: scores[key] for key in ("code_size",) if key in scores}
    log(client, run_id, params=params, metrics=metrics)
    client.log_artifact(run_id, str(metrics_path(problem, name)), "metrics")
    client.log_artifact(run_id, str(checkpoint_path(record["network"])), "checkpoint")
    for key, step, picture in show_of(problem).pictures(
        Reconstruction(name, record, arrays), ground
    ):
        client.log_image(run_id, picture, key=key, step=step)


def charted(scores: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics file that are worth a chart, nested keys joined by slashes, so that
    charts are grouped by mask or by kind of count; the level ``masks`` is left out."""
    flat: dict[str, float] = {}
    for key, value in scores.items():
        if isinstance(value, Mapping):
            prefix = "" if key == "masks" else f"{key}/"
            flat |= {f"{prefix}{inner}": number for inner, number in charted(value).items()}
        elif isinstance(value, int | float) and not key.endswith(BOUNDS) and key not in IDENTITIES:
            flat[key] = value
    return flat


def publish_sweep(name: str, trials: list[dict[str, Any]], *, files: list[Path]) -> None:
    """Publish a sweep as one run with a child for each trial, once: the same trials add nothing.

    A trial has ``trial``, its hash; ``values`` that vary; ``metrics``; ``started``, ``seconds``,
    and ``refused``, the line of a trial that was refused, or None. The files are table and picture.
    """
    dataset, commit = read_json(DATASET), git_commit()
    text = json.dumps([name, [trial["trial"] for trial in trials]])
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    common = {"dataset": dataset["name"], "sweep": name, "mlflow.source.git.commit": commit}
    started = min(trial["started"] for trial in trials)
    ended = max(trial["started"] + trial["seconds"] for trial in trials)
    with (
        store() as client,
        published(
            client,
            experiment_name=SWEEPS,
            name=name,
            fingerprint=fingerprint,
            tags=common,
            started=started,
            seconds=ended - started,
        ) as parent,
    ):
        if parent is None:
            return
        # Of a parent whose publication was cut off; its children have no other.
        where = experiment(client, SWEEPS)
        for orphan in client.search_runs(
            [where], f"tags.`{SWEEP}` = '{fingerprint}'", max_results=MOST_TRIALS
        ):
            client.delete_run(orphan.info.run_id)
        for trial in tqdm(trials, desc="publish", unit="trial", disable=None):
            child = client.create_run(
                where,
                start_time=int(trial["started"] * 1000),
                run_name=trial["trial"],
                tags={**common, "mlflow.parentRunId": parent, SWEEP: fingerprint}
                | ({"refused": trial["refused"][:500]} if trial["refused"] else {}),
            ).info.run_id
            at = trial["started"] + trial["seconds"]
            metrics = [metric(key, value, at=at) for key, value in trial["metrics"].items()]
            log(client, child, params=trial["values"], metrics=metrics)
            status = "FAILED" if trial["refused"] else "FINISHED"
            client.set_terminated(child, status, end_time=int(at * 1000))
        log(client, parent, params={"trials": len(trials)}, metrics=[])
        log_dataset(client, parent, dataset)
        for path in files:
            client.log_artifact(parent, str(path))


def git_commit() -> str:
    """The commit that is checked out, or "unknown" where Git does not say."""
    try:
        return git("rev-parse", "--verify", "HEAD").decode().strip()
    except Refusal:
        return "unknown"


def published_names(stages: Mapping[str, Stage]) -> list[tuple[str, str, Record]]:
    """Kind of stage, name and record of every network and scored reconstruction of dvc.lock, but
    for those that params.yaml has no more: their files were removed, their entries stay."""
    found = []
    for stage, entry in stages.items():
        kind, _, name = stage.partition("@")
        if kind == "train" and history_path(name).exists():
            found.append((kind, name, read_json(history_path(name))))
        elif kind == "reconstruct":
            problem = Path(entry["outs"][0]["path"]).parent.name
            if metrics_path(problem, name).exists() and record_path(problem, name).exists():
                found.append((kind, name, read_json(record_path(problem, name))))
    return found


def publish() -> tuple[int, int]:
    """Publish what dvc.lock says; give how many runs were added, and how many were there. Refused
    where dvc.lock or a file of a run is missing or broken, or the store fails."""
    stages = read_lock()
    prints = fingerprints(stages)
    dataset, commit = read_json(DATASET), git_commit()
    wanted, added = published_names(stages), 0
    grounds: dict[str, Ground] = {}
    with store() as client:
        bar = tqdm(wanted, desc="publish", unit="run", disable=None)
        for position, (kind, name, record) in enumerate(bar):
            stage, fingerprint = f"{kind}@{name}", prints[f"{kind}@{name}"]
            if kind == "train":
                identity = {"problem": "training", "method": "training", "network": name}
                experiment_name = NETWORKS
            else:
                identity = {key: record[key] for key in ("problem", "method", "network")}
                experiment_name = record["problem"]
                scores = metrics_path(experiment_name, name).read_bytes()
                fingerprint = hashlib.sha256(fingerprint.encode() + scores).hexdigest()
            with published(
                client,
                experiment_name=experiment_name,
                name=name.removeprefix(f"{experiment_name}-"),
                fingerprint=fingerprint,
                tags={
                    **identity,
                    "dataset": dataset["name"],
                    "device": record["device"],
                    "matmul_precision": record["matmul_precision"],
                    "mlflow.source.git.commit": commit,
                    "mlflow.source.name": stages[stage]["cmd"],
                    "mlflow.runColor": COLOURS[position % len(COLOURS)],
                },
                started=record["started"],
                seconds=record["seconds"],
            ) as run_id:
                if run_id is None:
                    continue
                log_dataset(client, run_id, dataset)
                if kind == "train":
                    publish_network(client, run_id, name, record)
                else:
                    ground = grounds.setdefault(experiment_name, Ground(experiment_name))
                    publish_reconstruction(client, run_id, name, record, ground=ground)
                added += 1
    return added, len(wanted) - added
