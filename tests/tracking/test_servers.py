"""A team's servers, started by hand: PostgreSQL, MLflow on it, S3-compatible storage for both.

`make servers` runs these: they take minutes. Everything listens on the loopback alone. moto
stands in for the storage, in a process of its own.
"""

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import TINY, commit, environment, execute

ALL = len(TINY["networks"]) + len(TINY["runs"])
HERE = "127.0.0.1"
ARTIFACTS, CACHE = "mlflow-artifacts", "dvc-cache"  # buckets
PATIENCE = 600  # seconds in which a server has to come up before the test gives up on it
KEYS: dict[str, Any] = {
    "AWS_ACCESS_KEY_ID": "retrace",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": HERE,
    "no_proxy": HERE,
}

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("RETRACE_SERVERS"),
        reason="these take minutes: `make servers` runs them (RETRACE_SERVERS=1)",
    ),
    pytest.mark.xdist_group("servers"),
]


def need_packages(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the package {name} is not installed: pip install -e '.[servers]'")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def served(command: list[str], *, answers: Callable[[], bool], **options: Any) -> Iterator[None]:
    """Run a server until the block ends; its output is shown where it does not come up."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options) as it,
    ):
        try:
            end = time.monotonic() + PATIENCE
            while not answers():
                if it.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    pytest.fail(f"{command[0]}: {log.read()[-3000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield
        finally:
            it.terminate()
            it.wait()


def responds(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """The address of an S3-compatible server with two empty buckets."""
    need_packages("moto", "flask", "boto3", "dvc_s3")
    port = free_port()
    address = f"http://{HERE}:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", HERE, "-p", str(port)]
    with served(command, answers=lambda: responds(f"{address}/moto-api/"), env=environment()):
        for bucket in (ARTIFACTS, CACHE):
            s3(address, f"s3.create_bucket(Bucket={bucket!r})")
        yield address


def s3(address: str, script: str) -> str:
    """What a line of Python with a client `s3` prints."""
    start = f"import boto3, json; s3 = boto3.client('s3', endpoint_url={address!r}); "
    command = (sys.executable, "-W", "ignore", "-c", start + script)
    return execute(*command, cwd=Path.cwd(), **KEYS).stdout


class Database(NamedTuple):
    uri: str
    query: Callable[[str], str]


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """An empty PostgreSQL database, of an unprivileged user: PostgreSQL refuses to run as root."""
    need_packages("psycopg2")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[4]))
    if not folders or not (folders[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    programs = folders[-1]
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        entries = {entry.pw_name: entry for entry in pwd.getpwall()}
        entry = entries.get("postgres") or entries.get("nobody")
        if entry is None:
            pytest.skip("no user that PostgreSQL could run as: neither postgres nor nobody")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    password = secrets.token_hex(16)
    port = free_port()
    with ExitStack() as stack:
        # Not in pytest's own folder, which only root may enter, where it is root's.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retrace-postgres-")))
        if user:
            os.chown(folder, user["user"], user["group"])
        pwfile = folder / "password"
        pwfile.write_text(password)
        pwfile.chmod(0o644)
        data = folder / "data"
        initialise = [
            *(str(programs / "initdb"), "--pgdata", str(data), "--username", "retrace"),
            *("--auth", "scram-sha-256", "--pwfile", str(pwfile)),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ]
        subprocess.run(initialise, check=True, capture_output=True, cwd=folder, **user)
        server = [
            *(str(programs / "postgres"), "-D", str(data), "-h", HERE, "-p", str(port)),
            *("-k", str(folder), "-c", "fsync=off"),
        ]

        def psql(sql: str, name: str = "retrace") -> str:
            command = [
                *(str(programs / "psql"), "-h", HERE, "-p", str(port), "-U", "retrace"),
                *("-d", name, "-tA", "-c", sql),
            ]
            login = {**os.environ, "PGPASSWORD": password}
            done = subprocess.run(command, capture_output=True, text=True, env=login, check=False)
            return done.stdout.strip() if done.returncode == 0 else ""

        def answers() -> bool:
            return psql("SELECT 1", "postgres") == "1"

        stack.enter_context(served(server, answers=answers, cwd=folder, **user))
        psql("CREATE DATABASE retrace", "postgres")
        yield Database(f"postgresql+psycopg2://retrace:{password}@{HERE}:{port}/retrace", psql)


@pytest.fixture(scope="module")
def tracking(database: Database, storage: str) -> Iterator[str]:
    """The address of an MLflow server on both, as docs/servers/compose.yaml starts it."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", HERE, "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", database.uri),
        *("--artifacts-destination", f"s3://{ARTIFACTS}"),
    ]
    settings = {
        **environment(),
        **KEYS,
        "MLFLOW_S3_ENDPOINT_URL": storage,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    address = f"http://{HERE}:{port}"
    with served(command, answers=lambda: responds(f"{address}/health"), env=settings):
        yield address


@pytest.fixture(scope="module")
def finished(
    make_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A pipeline that has run, committed: dvc.lock and metrics are in Git, the rest is not."""
    folder = make_workspace(tmp_path_factory.mktemp("servers") / "first")
    execute("dvc", "repro", cwd=folder)
    commit(folder)
    return folder


def published(folder: Path, **extra: Any) -> tuple[int, int]:
    """Runs that a publication added, and that were there."""
    output = execute(sys.executable, "-m", "stages.track", cwd=folder, **extra).stdout
    found = re.search(r"(\d+) runs published, (\d+) were there", output)
    assert found, output
    return int(found[1]), int(found[2])


def test_a_publication_lands_in_the_database_and_in_the_bucket(
    finished: Path, tracking: str, database: Database, storage: str
) -> None:
    """Whoever publishes knows the server's address alone: no password, no key."""
    server = {"MLFLOW_TRACKING_URI": tracking, "NO_PROXY": HERE, "no_proxy": HERE}
    assert published(finished, **server) == (ALL, 0)
    assert published(finished, **server) == (0, ALL)
    assert database.query("SELECT count(*) FROM runs WHERE status = 'FINISHED'") == str(ALL)
    assert int(database.query("SELECT count(*) FROM metrics")) > ALL
    query = (
        "SELECT r.artifact_uri FROM runs r JOIN experiments e USING (experiment_id) "
        "WHERE e.name = 'networks' AND r.name = 'ffnn'"
    )
    # mlflow-artifacts:/1/<run>/artifacts: the server writes them into the bucket.
    key = database.query(query).partition(":/")[2] + "/checkpoint/ffnn.safetensors"
    script = f"print(s3.get_object(Bucket={ARTIFACTS!r}, Key={key!r})['Body'].read().hex())"
    stored = s3(storage, script).strip()
    assert stored == (finished / "models/ffnn.safetensors").read_bytes().hex()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_colleagues_fresh_clone_reruns_nothing(
    kind: str, finished: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = shutil.copytree(finished, tmp_path / "first", symlinks=True)
    if kind == "s3":
        address = request.getfixturevalue("storage")
        execute("dvc", "remote", "add", "--default", "team", f"s3://{CACHE}/retrace", cwd=first)
        execute("dvc", "remote", "modify", "team", "endpointurl", address, cwd=first)
    else:
        execute("dvc", "remote", "add", "--default", "team", str(tmp_path / "remote"), cwd=first)
    commit(first)
    execute("dvc", "push", "--run-cache", cwd=first, **KEYS)
    clone = tmp_path / "clone"
    execute("git", "clone", "--quiet", str(first), str(clone), cwd=tmp_path)
    assert not (clone / "models/ffnn.safetensors").exists()
    execute("dvc", "pull", "--run-cache", cwd=clone, **KEYS)
    assert "Running stage" not in execute("dvc", "repro", cwd=clone).stdout
    assert "up to date" in execute("dvc", "status", cwd=clone).stdout
    assert not execute("git", "status", "--short", cwd=clone).stdout
    for name in ("models/ffnn.safetensors", "data/reconstructions/imputation/imputation-known.npz"):
        assert (clone / name).read_bytes() == (first / name).read_bytes()
    # The tracking store is no output of the pipeline; whoever wants one of their own has it.
    assert published(clone) == (ALL, 0)
