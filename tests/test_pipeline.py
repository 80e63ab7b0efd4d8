"""The pipeline end to end, as a user runs it, in a temporary clone with tiny parameters."""

import copy
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, TINY, commit, environment, execute, write_params

# One process for all of these: they share a finished pipeline, which takes a minute to make.
pytestmark = pytest.mark.xdist_group("pipeline")

RAN = re.compile(r"Running stage '([^']+)'")
INTERVALS = {"mse", "mse_low", "mse_high", "ssim", "ssim_low", "ssim_high", "psnr", "psnr_low"}
ALL = len(TINY["networks"]) + len(TINY["runs"])  # runs in the store of a finished pipeline


@pytest.fixture
def workspace(
    finished: Path, tmp_path: Path, forking: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of the finished pipeline, its cache and store included, to do damage to."""
    for name, value in forking.items():
        monkeypatch.setenv(name, value)
    return shutil.copytree(finished, tmp_path / "copy", symlinks=True)


def ran(result: "subprocess.CompletedProcess[str]") -> list[str]:
    return RAN.findall(result.stdout)


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def changed(section: str, **values: Any) -> dict[str, Any]:
    """TINY with some values of a section, given by its path, changed."""
    params = copy.deepcopy(TINY)
    target = params
    for key in section.split("/"):
        target = target.setdefault(key, {})
    target.update(values)
    return params


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """Every run in the store of a workspace, read by a process of its own."""
    script = (
        "import json, mlflow;"
        "client = mlflow.MlflowClient('sqlite:///mlflow.db');"
        "ids = [e.experiment_id for e in client.search_experiments()];"
        "print(json.dumps([{'id': r.info.run_id, 'name': r.info.run_name,"
        " 'status': r.info.status, 'artifact_uri': r.info.artifact_uri,"
        " 'tags': r.data.tags, 'params': r.data.params,"
        " 'metrics': r.data.metrics,"
        " 'files': [f.path for f in client.list_artifacts(r.info.run_id)],"
        " 'images': [f.path for f in client.list_artifacts(r.info.run_id, 'images')],"
        " 'dataset': [d.dataset.name for d in r.inputs.dataset_inputs],"
        " 'models': len(r.outputs.model_outputs) if r.outputs else 0}"
        " for r in client.search_runs(ids)]))"
    )
    output = execute(sys.executable, "-W", "ignore", "-c", script, cwd=folder).stdout
    runs: list[dict[str, Any]] = json.loads(output.splitlines()[-1])
    return runs


def test_a_second_repro_runs_nothing_and_status_is_clean(finished: Path) -> None:
    before = digests(finished, "dvc.lock", "metrics/**/*.json")
    assert not ran(execute("dvc", "repro", cwd=finished))
    assert "up to date" in execute("dvc", "status", cwd=finished).stdout
    assert digests(finished, "dvc.lock", "metrics/**/*.json") == before
    assert not list(finished.rglob("*.part"))


def test_metrics_hold_what_the_contract_says(finished: Path) -> None:
    common = {"dataset", "problem", "method", "network", "n", "seed", "seconds"}
    scores = json.loads((finished / "metrics/autoencoding/autoencoding-ffnn.json").read_text())
    assert common | INTERVALS | {"mse_over_pca"} <= set(scores)
    assert scores["dataset"] == "digits" and scores["n"] == 257
    scores = json.loads((finished / "metrics/imputation/imputation-known.json").read_text())
    assert common <= set(scores) and set(scores["masks"]) == {"bottom", "random_50"}
    for mask in scores["masks"].values():
        expected = INTERVALS | {"mse_over_ridge", "known_residual", "agreement"}
        assert expected <= set(mask)
        assert mask["mse_low"] <= mask["mse"] <= mask["mse_high"]
    for run, members, candidates in (
        ("sparse_span", 8, range(1, 11)),
        ("kkt", 8, [10]),
        ("vertices", 10, range(1, 11)),
    ):
        scores = json.loads(
            (finished / f"metrics/training_data/training_data-{run}.json").read_text()
        )
        assert common | {"identified", "null_identified", "threshold", "matched"} <= set(scores)
        assert scores["n"] == members and scores["candidates"] in candidates
        assert scores["identified_low"] <= scores["identified"] <= scores["identified_high"]
    for run in ("stationarity", "loss"):
        scores = json.loads((finished / f"metrics/membership/membership-{run}.json").read_text())
        assert common | {"tpr_0", "tpr_1", "auc", "auc_low", "auc_high", "null_n"} <= set(scores)
        assert scores["n"] == 10 and 0 <= scores["auc"] <= 1 and 0 < scores["null_n"] <= 300
    scores = json.loads(
        (finished / "metrics/network_inversion/network_inversion-linear.json").read_text()
    )
    assert common | {"relative_error_max", "infeasible"} <= set(scores)
    assert scores["n"] == scores["feasible"] == 4 and scores["reached"] == 1


def test_scores_are_what_the_files_give(finished: Path) -> None:
    """MSE over the missing pixels alone, computed again from the files in three lines."""
    with np.load(finished / "data/reconstructions/imputation/imputation-mean.npz") as file:
        estimate = file["estimate"].astype(np.float64)
    with np.load(finished / "data/observed/imputation.npz") as file:
        observed, masks = file["observed"], file["masks"].tolist()
    with np.load(finished / "data/test.npz") as file:
        truth = file["images"][:12] / 255
    scores = json.loads((finished / "metrics/imputation/imputation-mean.json").read_text())["masks"]
    for i, mask in enumerate(masks):
        missing = np.isnan(observed[i])
        errors = ((estimate[i] - truth) ** 2)[missing]
        assert scores[mask]["mse"] == pytest.approx(errors.mean(), rel=1e-5)
        assert scores[mask]["known_residual"] == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(observed[i][~missing], truth[~missing], atol=1e-7)


def test_digits_are_labelled_everywhere(finished: Path) -> None:
    for path in [*finished.glob("data/*.npz"), *finished.glob("data/*/*.npz")]:
        with np.load(path) as file:
            assert file["dataset"] == "digits", path
    for path in [*finished.glob("metrics/**/*.json"), *finished.glob("models/*.json")]:
        assert json.loads(path.read_text())["dataset"] == "digits", path
    assert "digits" in (finished / "metrics/report/table.md").read_text()
    assert all(run["tags"]["dataset"] == "digits" for run in runs_of(finished))


def test_dvc_shows_metrics_that_fit_a_screen(finished: Path) -> None:
    shown = json.loads(execute("dvc", "metrics", "show", "--json", cwd=finished).stdout)
    files = shown[""]["data"]
    assert set(files) == {
        f"metrics/headline/{entry['problem']}/{run}.json" for run, entry in TINY["runs"].items()
    }
    assert all(len(entry["data"]) <= 14 for entry in files.values())


def test_the_same_parameters_give_the_same_bytes(workspace: Path) -> None:
    patterns = ("models/*.safetensors", "data/reconstructions/*/*.npz", "data/observed/*.npz")
    before = digests(workspace, *patterns)
    stages = ["masks", "train@ffnn", "observe@imputation", "reconstruct@imputation-known"]
    execute("dvc", "repro", "--force", "--single-item", *stages, cwd=workspace)
    assert digests(workspace, *patterns) == before


def test_only_what_depends_on_a_change_runs_and_back_comes_from_the_cache(
    workspace: Path,
) -> None:
    commit(workspace)
    settings = "runs/imputation-known/settings"
    write_params(workspace, changed(settings, steps=6))
    did = ran(execute("dvc", "repro", cwd=workspace))
    follows = ["reconstruct@imputation-known", "score@imputation", "report", "track"]
    assert did == ["check", *follows]
    write_params(workspace, TINY)
    again = ran(execute("dvc", "repro", cwd=workspace))
    # What DVC's run cache cannot hold runs again: stages with outputs that are neither cached nor
    # `metrics` (the JSON files in Git), and `track`, which has no output. It finds all runs there.
    assert set(again) <= {"check", "score@imputation", "report", "track"}
    assert "M" not in execute("git", "status", "--short", "metrics", cwd=workspace).stdout
    assert len(runs_of(workspace)) == ALL + 1


def test_one_run_for_each_network_and_reconstruction(finished: Path) -> None:
    runs = {run["name"]: run for run in runs_of(finished)}
    networks = {"gaussian", "classifier", "ffnn", "margin", "mlp", "linear", "vae"}
    assert set(runs) == networks | {
        *("ffnn", "mean", "ridge", "known", "sparse_span", "kkt", "vertices"),
        *("stationarity", "loss", "gauss_newton"),
    }
    everything = runs_of(finished)
    assert len(everything) == ALL and all(run["status"] == "FINISHED" for run in everything)
    for run in everything:
        assert {"dataset", "problem", "network", "method", "retrace.fingerprint"} <= set(
            run["tags"]
        )
        assert len(run["tags"]["mlflow.source.git.commit"]) == 40
        assert run["dataset"] == ["digits"]
        assert "checkpoint" in run["files"]
    assert runs["known"]["params"]["settings.steps"] == "5"
    assert {"bottom/mse", "random_50/ssim", "bottom/loss"} <= set(runs["known"]["metrics"])
    assert runs["classifier"]["models"] == 1
    for run in everything:
        if run["tags"]["problem"] == "imputation":
            # MLflow writes a key's slash as "#" or "~", and other things behind the key.
            for key in ("bottom.completed", "random_50.completed"):
                assert any(re.match(f"images/{key}", path) for path in run["images"])
            assert run["artifact_uri"].endswith(f"mlruns/imputation/{run['id']}/artifacts")


def test_publishing_again_adds_nothing_and_a_lost_store_is_rebuilt(workspace: Path) -> None:
    (workspace / "mlflow.db").unlink()
    shutil.rmtree(workspace / "mlruns")
    first = execute(sys.executable, "-m", "stages.track", cwd=workspace).stdout
    assert f"{ALL} runs published, 0 were there" in first
    before = sorted(run["id"] for run in runs_of(workspace))
    second = execute(sys.executable, "-m", "stages.track", cwd=workspace).stdout
    assert f"0 runs published, {ALL} were there" in second
    assert sorted(run["id"] for run in runs_of(workspace)) == before


def track(folder: Path) -> str:
    return execute(sys.executable, "-m", "stages.track", cwd=folder).stdout


def test_a_moved_project_keeps_its_runs_and_pictures(workspace: Path, tmp_path: Path) -> None:
    moved = workspace.rename(tmp_path / "C#, 50%20x what?now")
    assert f"0 runs published, {ALL} were there" in track(moved)
    runs = runs_of(moved)
    assert all(run["artifact_uri"].startswith(f"{(moved / 'mlruns').as_uri()}/") for run in runs)
    assert all("checkpoint" in run["files"] for run in runs)
    assert all(run["images"] for run in runs if run["tags"]["problem"] == "imputation")
    # A new run goes to the new place, the loadable model of a network too.
    client = "from mlflow import MlflowClient; c = MlflowClient('sqlite:///mlflow.db');"
    delete = (
        "[c.delete_run(r.info.run_id) for r in c.search_runs(['1']) if r.info.run_name == 'vae']"
    )
    execute(sys.executable, "-W", "ignore", "-c", client + delete, cwd=moved)
    assert f"1 runs published, {ALL - 1} were there" in track(moved)
    listed = (
        client + "found = c.search_logged_models(['1']);"
        "print(*[f.path for m in found for f in c.list_logged_model_artifacts(m.model_id)])"
    )
    paths = execute(sys.executable, "-W", "ignore", "-c", listed, cwd=moved).stdout.split()
    # That of the deleted run is still there.
    assert paths.count("MLmodel") == sum(run["models"] for run in runs) + 1 > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [moved.name]


def test_a_run_whose_artifacts_were_lost_is_made_anew(workspace: Path) -> None:
    track(workspace)  # the store lies elsewhere than where it was made
    runs = {run["name"]: run for run in runs_of(workspace) if run["tags"]["problem"] != "training"}
    runs_folder = workspace / "mlruns/imputation"
    shutil.rmtree(runs_folder / runs["mean"]["id"])
    shutil.rmtree(runs_folder / runs["known"]["id"] / "artifacts/images")
    assert f"2 runs published, {ALL - 2} were there" in track(workspace)
    after = runs_of(workspace)
    assert len(after) == ALL and all(run["files"] for run in after)
    assert not {runs["mean"]["id"], runs["known"]["id"]} & {run["id"] for run in after}
    shutil.rmtree(workspace / "mlruns/networks/models")
    networks = sum(run["models"] for run in after)
    assert f"{networks} runs published, {ALL - networks} were there" in track(workspace)
    shutil.rmtree(workspace / "mlruns")
    assert f"{ALL} runs published, 0 were there" in track(workspace)
    assert f"0 runs published, {ALL} were there" in track(workspace)
    assert len(runs_of(workspace)) == ALL


def test_what_was_deleted_in_mlflow_comes_back(workspace: Path) -> None:
    script = (
        "from mlflow import MlflowClient; c = MlflowClient('sqlite:///mlflow.db');"
        "e = c.get_experiment_by_name('imputation').experiment_id; c.delete_experiment(e);"
        "n = c.get_experiment_by_name('networks').experiment_id;"
        "runs = {r.info.run_name: r for r in c.search_runs([n])};"
        "c.delete_run(runs['gaussian'].info.run_id);"
        "c.delete_logged_model(runs['ffnn'].outputs.model_outputs[0].model_id)"
    )
    execute(sys.executable, "-W", "ignore", "-c", script, cwd=workspace)
    said = track(workspace)
    assert f"2 runs published, {ALL - 2} were there" in said
    assert said.count("the experiment imputation had been deleted and is restored") == 1
    assert f"0 runs published, {ALL} were there" in track(workspace)
    runs = runs_of(workspace)
    assert len(runs) == ALL
    assert {run["name"] for run in runs} >= {"mean", "known", "gaussian", "ffnn"}


def test_two_first_publishers_at_once(workspace: Path) -> None:
    (workspace / "mlflow.db").unlink()
    shutil.rmtree(workspace / "mlruns")
    command = [sys.executable, "-m", "stages.track"]
    processes = [
        subprocess.Popen(
            command,
            cwd=workspace,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    runs = runs_of(workspace)
    assert len(runs) == ALL and all(run["status"] == "FINISHED" for run in runs)


def test_a_killed_publisher_leaves_nothing_that_the_next_does_not_mend(workspace: Path) -> None:
    script = (
        "from mlflow import MlflowClient; c = MlflowClient('sqlite:///mlflow.db');"
        "e = c.get_experiment_by_name('imputation').experiment_id;"
        "r = c.search_runs([e])[0]; c.update_run(r.info.run_id, status='RUNNING')"
    )
    execute(sys.executable, "-W", "ignore", "-c", script, cwd=workspace)
    assert "1 runs published" in execute(sys.executable, "-m", "stages.track", cwd=workspace).stdout
    runs = runs_of(workspace)
    assert len(runs) == ALL and all(run["status"] == "FINISHED" for run in runs)


def test_an_unreachable_server_harms_no_result(workspace: Path) -> None:
    write_params(workspace, changed("runs/imputation-mean/settings", value="zero"))
    server = "http://127.0.0.1:9"
    result = execute("dvc", "repro", cwd=workspace, check=False, MLFLOW_TRACKING_URI=server)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("retrace:")]
    assert len(lines) == 1 and server in lines[0] and "make track" in lines[0]
    assert "Traceback" not in result.stderr
    headline = json.loads(
        (workspace / "metrics/headline/imputation/imputation-mean.json").read_text()
    )
    assert headline["mse"] > 0
    assert ran(execute("dvc", "repro", cwd=workspace)) == ["track"]
    assert len(runs_of(workspace)) == ALL + 1


def test_a_misspelt_key_stops_before_anything_runs(workspace: Path) -> None:
    before = digests(workspace, "models/*", "data/**/*.npz", "metrics/**/*.json", "dvc.lock")
    write_params(workspace, changed("networks/ffnn/training", epoks=3))
    result = execute("dvc", "repro", cwd=workspace, check=False)
    assert result.returncode != 0
    assert ran(result) == ["check"]
    assert "retrace: params.yaml: networks.ffnn.training.epoks: unknown key" in result.stderr
    assert "Traceback" not in result.stderr
    after = digests(workspace, "models/*", "data/**/*.npz", "metrics/**/*.json", "dvc.lock")
    assert after == before
    write_params(workspace, TINY)
    assert set(ran(execute("dvc", "repro", cwd=workspace))) <= {"check"}


def test_a_checkpoint_of_another_architecture_is_one_line(workspace: Path) -> None:
    path = workspace / "models/ffnn.safetensors"
    path.unlink()  # a link into the cache, perhaps
    shutil.copyfile(workspace / "models/classifier.safetensors", path)
    command = (sys.executable, "-m", "stages.reconstruct", "imputation-known")
    old = digests(workspace, "data/reconstructions/*/*")
    result = execute(*command, cwd=workspace, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("retrace: ") and "'classifier'" in result.stderr
    assert digests(workspace, "data/reconstructions/*/*") == old


def test_an_unknown_name_lists_what_there_is(finished: Path) -> None:
    for module, known in (
        ("train", "gaussian"),
        ("reconstruct", "imputation-known"),
        ("observe", "imputation"),
        ("score", "imputation"),
    ):
        result = execute(
            sys.executable, "-m", f"stages.{module}", "nonsense", cwd=finished, check=False
        )
        assert result.returncode == 2 and known in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "module",
    [path.stem for path in (ROOT / "stages").glob("*.py") if "__name__" in path.read_text()],
)
def test_every_stage_has_help(module: str, finished: Path) -> None:
    result = execute(sys.executable, "-m", f"stages.{module}", "--help", cwd=finished)
    assert f"python -m stages.{module}" in result.stdout
    assert len(result.stdout.split("\n")) > 4


def test_ctrl_c_leaves_nothing_half_written_and_the_next_repro_carries_on(
    workspace: Path,
) -> None:
    write_params(workspace, changed("networks/ffnn/training", epochs=100_000))
    # Whoever started the tests in the background may have had Ctrl-C ignored: undo that first.
    undo = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    start = "os.execv(sys.executable, [sys.executable, '-m', 'stages.train', 'ffnn'])"
    old = digests(workspace, "models/*")
    ours, theirs = os.openpty()  # on a terminal, of a width, a stage shows how far it is
    termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, "-c", undo + start]
    with subprocess.Popen(command, cwd=workspace, env=environment(), stderr=theirs) as process:
        os.close(theirs)
        shown = ""
        while not re.search(r"\b[1-9][\d.]*/100000", shown):  # it trains, and would for an hour
            shown += os.read(ours, 1000).decode()
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # how a terminal ends
            while more := os.read(ours, 1000):
                shown += more.decode()
    os.close(ours)
    assert process.returncode == 130
    last = shown.split("\n")[-2].strip()
    assert last == "retrace: interrupted; nothing half-written was kept. Run it again"
    assert digests(workspace, "models/*") == old
    assert not list(workspace.rglob("*.part"))
    write_params(workspace, TINY)
    assert not set(ran(execute("dvc", "repro", cwd=workspace))) - {"check", "track"}


def test_a_full_disk_is_one_line_and_the_old_result_stays(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RETRACE_WARM")  # what is mounted below is not mounted there
    inside = (
        "set -e; mkdir -p full; mount -t tmpfs -o size=64k none full;"
        "cp -r metrics/imputation full/; mount --bind full metrics;"
        "dd if=/dev/zero of=metrics/ballast bs=1k count=200 2>/dev/null || true;"
        f"{sys.executable} -m stages.score imputation; code=$?; ls -A metrics; exit $code"
    ).replace("set -e;", "")
    result = execute(
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        inside,
        cwd=workspace,
        check=False,
    )
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip(f"no mount namespace here: {result.stderr.strip()}")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("retrace: the disk is full")
    assert sorted(result.stdout.split()[-2:]) == ["ballast", "imputation"]


def test_what_params_yaml_has_no_more_leaves_no_trace_in_a_clone(
    workspace: Path, tmp_path: Path
) -> None:
    """Scores depend on whole folders: a file of a run that is gone would make them another one."""
    own = workspace / "models/own.safetensors"  # of the user, and not ours to remove
    own.write_bytes(b"mine")
    params = copy.deepcopy(TINY)
    del params["runs"]["imputation-mean"]
    del params["networks"]["margin"], params["problems"]["training_data"]
    for name in [name for name in params["runs"] if name.startswith("training_data")]:
        del params["runs"][name]
    write_params(workspace, params)
    did = ran(execute("dvc", "repro", cwd=workspace))
    assert "score@imputation" in did and not any(name.startswith("reconstruct") for name in did)
    assert not list(workspace.glob("data/*/*/imputation-mean.*")) and own.exists()
    assert not list(workspace.glob("metrics/**/imputation-mean.*"))
    assert not [*workspace.glob("metrics/**/*training_data*"), *workspace.glob("models/margin.*")]
    own.unlink()
    execute("dvc", "repro", cwd=workspace)
    commit(workspace)
    clone = tmp_path / "clone"
    execute("git", "clone", "--quiet", str(workspace), str(clone), cwd=tmp_path)
    shutil.copytree(workspace / ".dvc/cache", clone / ".dvc/cache")
    assert not ran(execute("dvc", "repro", cwd=clone))
