"""Publish to MLflow what dvc.lock says has been made: one run for each network and each
reconstruction. Publishing twice adds nothing; into an empty store it rebuilds everything.

A stage that was skipped or restored from the cache never executes, so stages do not log by
themselves. Each run carries a fingerprint, a hash over its entry in dvc.lock and the entries of
all its ancestors; a finished run with that fingerprint whose artifacts can be found is kept,
otherwise one is made and its history replayed from the files.
"""

import hashlib
import json
import logging
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock
from tqdm import tqdm

from retrace.measures import identification
from retrace.networks.gaussian import Network as Gaussian
from retrace.networks.margin import Network as Margin
from retrace.networks.regression import Network as Regression
from retrace.pipeline.artifacts import (
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
from retrace.pipeline.command import Refusal, run
from retrace.problems.decoder_inversion import score as decoder_inversion
from retrace.problems.network_inversion import score as network_inversion
from retrace.report.pictures import COLOURS, completed, mosaic, scale_of, split_rows
from retrace.tracking.git import git

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # not 15 lines where no Git is installed
# A server that does not answer should be reported within seconds: the results are safe, and
# `make track` publishes them later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as migrations
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

LOCK = Path("dvc.lock")
# Gates the pipeline with the whole params.yaml for its parameter and the same bytes for its
# output: as an ancestor it would give every run a new fingerprint whenever any number changes.
GATE = "check"
MLRUNS = "mlruns"  # the folder of artifacts beside an SQLite store, as MLflow calls it
FINGERPRINT = "retrace.fingerprint"
ARTIFACTS = "retrace.artifacts"  # tag of a finished run: what its artifacts are called
# Where MLflow keeps absolute addresses of artifacts.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
SWEEPS = "sweeps"  # the experiment of sweeps and their trials
SWEEP = "retrace.sweep"  # tag of a trial: the fingerprint of its sweep
MOST_TRIALS = 10_000
NETWORKS = "networks"  # the experiment of the trained networks; the others are named by problem
SHOWN = 4  # images in a row of a picture
SHOWN_UNITS = 16  # of a first layer
SHOWN_LOSSES = 1000  # at most so many losses of a group along the iterations, evenly spaced
METRICS_A_CALL = 1000  # what MLflow takes at once
ITERATIONS_MASK = "bottom"
# Read once: MLflow's own functions write into the environment.
SERVER = os.environ.get("MLFLOW_TRACKING_URI")
# Not for charts: bounds of intervals and identities, which the attached metrics file holds.
BOUNDS = ("_low", "_high")
IDENTITIES = ("seed", "n", "code_size", "pca_mse")

Stage = dict[str, Any]

# MLflow gives Alembic the folder of its migrations as it is, where a % begins an interpolation.
MLFLOW_FOLDER = migrations._get_package_dir()
migrations._get_package_dir = lambda: MLFLOW_FOLDER.replace("%", "%%")


def read_lock() -> dict[str, Stage]:
    """The stages of dvc.lock by name."""
    if not LOCK.exists():
        raise Refusal(f"{LOCK} is missing; run `dvc repro` first")
    try:
        stages: Any = yaml.load(LOCK.read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        stages = None
    if not isinstance(stages, dict):
        raise Refusal(f"{LOCK} is broken; `python -m stages.mend` mends it")
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


def database_of(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    url = make_url(uri) if uri.startswith("sqlite:") else None
    return Path(url.database) if url and url.database else None


def artifacts_of(database: Path) -> Path:
    """The folder of an SQLite store's artifacts, beside it."""
    return database.resolve().parent / MLRUNS


def create(path: Path) -> None:
    """Make an SQLite store where there is none, whole or not at all: SQLite commits each step of
    MLflow's migrations, and MLflow cannot go on from the middle of one.

    The log that a killed process left of a store since deleted would be replayed into the new one.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if path.is_dir():
        raise Refusal(f"{path} is a folder; the tracking store is a file there")
    if path.exists() and path.stat().st_size:
        return
    part = path.with_name(f"{path.name}.part")
    try:
        for left in path.parent.glob(f"{part.name}*"):  # of a process that was killed; we are alone
            left.unlink()
        made = SqlAlchemyStore(f"sqlite:///{part}", artifacts_of(path).as_uri())
        made.engine.dispose()
        for end in ("-wal", "-shm", "-journal"):
            path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
        part.replace(path)
    finally:
        for left in path.parent.glob(f"{part.name}*"):
            left.unlink()


def follow(path: Path) -> None:
    """Let the addresses of artifacts follow an SQLite store that was moved, renamed or copied
    together with the folder of its artifacts: MLflow stores them absolute."""
    here = artifacts_of(path).as_uri()
    with closing(sqlite3.connect(path)) as database, database:
        experiments = database.execute("SELECT artifact_location, name FROM experiments").fetchall()
        before = {
            address.removesuffix(f"/{name}")
            for address, name in experiments
            if address and address.endswith(f"/{MLRUNS}/{name}")  # as `experiment` makes them
        }
        for there in before - {here}:
            for table, column in ADDRESSES:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608
                    f" WHERE substr({column}, 1, ?) = ?",
                    (here, len(there) + 1, len(there) + 1, f"{there}/"),
                )


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
    # Relative, so that no character of the repository's own path has a meaning in the URI.
    uri = SERVER or f"sqlite:///{os.path.relpath(root() / 'mlflow.db')}"
    # MLflow logs each migration of a new database, and each retry with a stack trace.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    (root() / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    with FileLock(root() / ".dvc" / "tmp" / "track.lock"):
        try:
            database = database_of(uri)
            if database:
                create(database)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            if database:
                with closing(sqlite3.connect(database)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # readers beside a writer
                follow(database)
            yield client
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise Refusal(
                f"the tracking store {uri} failed ({reason[:200]}); all results are safe, and "
                "`make track` publishes them when it works again"
            ) from None


def experiment(client: MlflowClient, name: str) -> str:
    """Identifier of an experiment, made if it is not there, restored if it was deleted: MLflow
    keeps the name of a deleted one taken."""
    found = client.get_experiment_by_name(name)
    if found is None:
        database = database_of(client.tracking_uri)
        # A server knows where its artifacts belong; a file keeps them beside itself.
        location = (artifacts_of(database) / name).as_uri() if database else None
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == LifecycleStage.DELETED:
        client.restore_experiment(found.experiment_id)
        print(f"MLflow: the experiment {name} had been deleted and is restored")
    return str(found.experiment_id)


def models_of(run: Run) -> list[str]:
    """Identifiers of the models that a run logged."""
    return [output.model_id for output in run.outputs.model_outputs] if run.outputs else []


def is_there(client: MlflowClient, run: Run) -> bool:
    """Whether a run is finished and the store can find its artifacts and models.

    One listing for a run and for each model: what lies deeper in their folders is not looked at.
    """
    if run.info.status != "FINISHED":
        return False
    found = {file.path for file in client.list_artifacts(run.info.run_id)}
    # Older runs do not say what they had: they had something.
    try:
        wanted = set(json.loads(run.data.tags.get(ARTIFACTS, "[]")))
    except (ValueError, TypeError):  # edited by someone
        return False
    if not found or not wanted <= found:
        return False
    try:
        return all(map(client.list_logged_model_artifacts, models_of(run)))
    except MlflowException as error:  # a model was deleted
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


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


def params_of(stage: Stage, section: str) -> dict[str, Any]:
    """Parameters that DVC recorded for a stage, without the path of its own section, which is in
    "networks" or "runs"."""
    recorded = stage.get("params", {}).get("params.yaml", {})
    flat: dict[str, Any] = {}
    for path, values in recorded.items():
        if path.split(".")[0] == section:
            flat |= flatten(values)
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

    Yields the run's identifier, or None where a run with this fingerprint is there.
    """
    where = experiment(client, experiment_name)
    same = client.search_runs([where], f"tags.`{FINGERPRINT}` = '{fingerprint}'")
    if any(is_there(client, run) for run in same):
        yield None
        return
    for broken in same:  # its artifacts were lost, or a former process was killed
        for model in models_of(broken):
            client.delete_logged_model(model)
        client.delete_run(broken.info.run_id)
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
    artifacts = sorted(file.path for file in client.list_artifacts(created.info.run_id))
    client.set_tag(created.info.run_id, ARTIFACTS, json.dumps(artifacts))
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
    client: MlflowClient,
    run_id: str,
    *,
    name: str,
    stages: Mapping[str, Stage],
    dataset: Mapping[str, Any],
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
    network, _ = load_checkpoint(checkpoint_path(name))
    if isinstance(network, Margin):
        # A low rank is what makes the training images readable: the layer is spanned by them.
        spectrum = torch.linalg.svdvals(first_layer(network)).tolist()
        metrics += [
            metric("first_layer/singular_value", value, at=ended, step=i)
            for i, value in enumerate(spectrum)
        ]
    params = params_of(stages[f"train@{name}"], "networks")
    log(
        client,
        run_id,
        params={**params, "parameters": history["parameters"]},
        metrics=metrics,
    )
    log_dataset(client, run_id, dataset)
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
    client: MlflowClient,
    run_id: str,
    *,
    name: str,
    stages: Mapping[str, Stage],
    dataset: Mapping[str, Any],
) -> None:
    """Parameters, scores, losses by iteration, and the same pictures for every method."""
    scores = read_json(metrics_path(name))
    arrays = read_arrays(reconstruction_path(name))
    timing = read_json(timing_path(name))
    started, seconds = timing["started"], timing["seconds"]
    metrics = [metric(key, value, at=started + seconds) for key, value in charted(scores).items()]
    attacked = scores["problem"] == "training_data"
    # Of the other problems, the observations say which groups of images there are, in order.
    observations = {} if attacked else read_arrays(observed_path(scores["problem"]))
    if "loss" in arrays:
        total = len(arrays["loss"])
        names = [key for key in ("masks", "groups") if key in observations]
        groups = [f"{group}/" for key in names for group in observations[key].tolist()] or [""]
        metrics += [
            metric(f"{group}loss", value, at=started + seconds * (step + 1) / total, step=step)
            for step in sorted({*range(0, total, -(-total // SHOWN_LOSSES) or 1), total - 1})
            for group, value in zip(groups, arrays["loss"][step], strict=True)
        ]
    code_size = {key: scores[key] for key in ("code_size",) if key in scores}
    stage, network = stages[f"score@{name}"], scores["network"]
    params = {**params_of(stage, "runs"), **code_size, "images": scores["n"]}
    if attacked:
        training = training_of(stages, network)
        params |= {f"training.{key}": training[key] for key in identification.CHOICE}
        originals = identification.truth_of(
            read_split("train"), training, where=f"networks.{network}.training", null=False
        )
        pictures = training_data_pictures(arrays, originals, threshold=scores["threshold"])
    elif scores["problem"] == network_inversion.PROBLEM:
        settings = stage["params"]["params.yaml"][f"runs.{name}"]["settings"]
        trained, _ = load_checkpoint(checkpoint_path(network))
        pictures = network_inversion.tracked_pictures(
            (trained, arrays, scores["method"], settings), count=SHOWN
        )
    elif scores["problem"] == "decoder_inversion":
        decoder = load_checkpoint(checkpoint_path(network))[0].double()
        pictures = decoder_inversion.pictures(arrays, observations, decoder)
    else:
        truth = read_split("test")[0][:SHOWN].numpy()
        pictures = reconstruction_pictures(arrays, observations, truth)
    log(client, run_id, params=params, metrics=metrics)
    log_dataset(client, run_id, dataset)
    client.log_artifact(run_id, str(metrics_path(name)), "metrics")
    client.log_artifact(run_id, str(checkpoint_path(network)), "checkpoint")
    for key, step, picture in pictures:
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


def training_of(stages: Mapping[str, Stage], network: str) -> dict[str, Any]:
    """The ``training`` section that a network was trained with, from dvc.lock: params.yaml may have
    been edited since."""
    recorded = stages[f"train@{network}"]["params"]["params.yaml"]
    training: dict[str, Any] = recorded[f"networks.{network}"]["training"]
    return training


def training_data_pictures(
    arrays: Mapping[str, Any], truth: identification.Truth, *, threshold: float
) -> Iterator[tuple[str, int, Any]]:
    """Pictures of candidates for training images, with their key and step.

    Of two rows each, four candidates and below them the training images that they match: the
    identified ones or, where there are none, the first and what each resembles most. Along the
    iterations, some candidates alone. Nothing where an attack found no candidate.
    """
    estimate = arrays["estimate"]
    scale = scale_of(estimate)
    candidates = torch.from_numpy(estimate)
    pairs = identification.shown_pairs(candidates, truth, threshold=threshold, count=2 * SHOWN)
    if len(pairs.values):
        found = estimate[pairs.candidates.numpy()]
        originals = truth.images.numpy()[pairs.images.numpy()].reshape(found.shape)
        strips = zip(*(split_rows(x, columns=SHOWN) for x in (found, originals)), strict=True)
        yield "identified", 0, mosaic([row for strip in strips for row in strip], scale=scale)
    steps = arrays["snapshot_steps"].tolist() if "snapshots" in arrays else []
    for step, snapshot in zip(steps, arrays.get("snapshots", []), strict=True):
        if len(snapshot[0]):
            rows = split_rows(snapshot[0], columns=SHOWN)
            yield "candidates", step, mosaic(rows, scale=scale)


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


def publish_sweep(name: str, trials: list[dict[str, Any]], *, files: list[Path]) -> None:
    """Publish a sweep as one run with a child for each trial, once: the same trials add nothing.

    Parameters
    ----------
    name : str
    trials : list of dict
        ``trial``, its hash; ``values`` that vary; ``metrics``; ``started``, ``seconds``, and
        ``refused``, the line of a trial that was refused, or None.
    files : list of Path
        The table and the picture.
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
                    # Older files do not say.
                    "device": timing.get("device", "cpu"),
                    "matmul_precision": timing.get("matmul_precision", "not recorded"),
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
                publish(client, run_id, name=name, stages=stages, dataset=dataset)
                added += 1
    kept = len(wanted) - added
    print(f"MLflow: {added} runs published, {kept} were there ({time.time() - begun:.1f} s)")


if __name__ == "__main__":
    run(main)
