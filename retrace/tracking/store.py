"""The MLflow store: opened, followed where it moves, and a run in it made once.

MLflow reads its environment when it is imported, which no other module of ours does.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock

from retrace.pipeline.command import Refusal

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # not 15 lines where no Git is installed
# A server that does not answer should be reported within seconds: the results are safe, and
# `make track` publishes them later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as migrations
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

MLRUNS = "mlruns"  # the folder of artifacts beside an SQLite store, as MLflow calls it
FINGERPRINT = "retrace.fingerprint"
ARTIFACTS = "retrace.artifacts"  # tag of a finished run: what its artifacts are called
# Where MLflow keeps absolute addresses of artifacts.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
# Read once: MLflow's own functions write into the environment.
SERVER = os.environ.get("MLFLOW_TRACKING_URI")

# MLflow gives Alembic the folder of its migrations as it is, where a % begins an interpolation.
MLFLOW_FOLDER = migrations._get_package_dir()
migrations._get_package_dir = lambda: MLFLOW_FOLDER.replace("%", "%%")


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
    """Open the store named by MLFLOW_TRACKING_URI, or the SQLite file beside dvc.yaml; refused
    where it does not answer.

    One process at a time: two that create the SQLite file at once break it, and two that publish
    at once would double the runs.
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
            if isinstance(error, OSError) and is_ours(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Refusal(
                f"the tracking store {uri} failed ({reason[:200]}); all results are safe, and "
                "`make track` publishes them when it works again"
            ) from None


def is_ours(error: OSError) -> bool:
    """Whether it is of a file that is to be published: the path of such a file is relative, those
    of the store's are not; an error of a copy has both."""
    name = error.filename
    return isinstance(name, str) and not Path(name).is_absolute() and error.filename2 is None


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
