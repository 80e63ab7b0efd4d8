"""What goes wrong while runs are published: what is the store's fault, and what is not."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrace.pipeline.command import Refusal
from retrace.tracking import store

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder with an empty store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("store"))
        patch.delenv("DVC_ROOT", raising=False)
        patch.setattr(store, "SERVER", None)
        yield


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(), "OSError"),
        (sqlite3.Error("one\ntwo"), "one"),
        (OSError(28, "No space left", "models/x.json", None, "/store/x.json"), ".*No space left.*"),
    ],
)
def test_an_error_is_told_in_a_line(error: Exception, told: str) -> None:
    with pytest.raises(Refusal, match=rf"mlflow\.db failed \({told}\); all re"), store.store():
        raise error


def test_a_file_that_cannot_be_published_is_no_fault_of_the_store() -> None:
    Path("here").touch()
    with store.store() as client:
        run = client.create_run(store.experiment(client, "x")).info.run_id
        client.log_artifact(run, "here")
    with pytest.raises(FileNotFoundError, match="models/gone"), store.store() as client:
        client.log_artifact(run, "models/gone")
    shutil.rmtree(store.MLRUNS)
    Path(store.MLRUNS).touch()  # a file in place of the folder
    with pytest.raises(Refusal, match="all results are safe"), store.store() as client:
        client.log_artifact(run, "here")
