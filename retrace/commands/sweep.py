"""Run a sweep of params.yaml: see `retrace.sweeps`."""

import time
from pathlib import Path

from retrace.checks import check_all
from retrace.pipeline.artifacts import DATASET, read_json, split_path
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import load
from retrace.sweeps.results import Row, draw, rows_of, write_table, written
from retrace.sweeps.running import Result, make
from retrace.sweeps.trials import Sweep, sweep_of

TABLES = Path("metrics/sweeps")
NEEDED = (DATASET, *map(split_path, ("train", "validation", "test")))


def main(name: str) -> None:
    """Run a sweep of params.yaml, write metrics/sweeps/<sweep>.csv and .png, and publish it."""
    params = load()
    check_all(params)
    sweep = sweep_of(params, name)
    if missing := [path for path in NEEDED if not path.exists()]:
        raise Refusal(f"{missing[0]} is missing; `dvc repro split` makes it")
    started = time.time()
    results, before = make(sweep, params, name=name)
    rows = rows_of(sweep, results)
    table, picture = TABLES / f"{name}.csv", TABLES / f"{name}.png"
    write_table(table, rows)
    title = f"{name} ({read_json(DATASET)['name']}, {len(rows)} trials)"
    keys, spaces = list(sweep.trials[0].values), [trial.spaces for trial in sweep.trials]
    draw(picture, rows, keys, sweep.figure, title=title, spaces=spaces)
    refused = sum(bool(row["refused"]) for row in rows)
    print(
        f"{name}: {len(rows)} trials, {before} of them done before, {refused} refused, "
        f"{time.time() - started:.1f} s; {table}, {picture}"
    )
    publish(name, sweep, results, rows, files=[table, picture])


def publish(
    name: str, sweep: Sweep, results: list[Result], rows: list[Row], *, files: list[Path]
) -> None:
    """Log the sweep to MLflow: the process that was started does, and no other."""
    from retrace.tracking.runs import publish_sweep

    trials = []
    for trial, result, row in zip(sweep.trials, results, rows, strict=True):
        numbers = row.keys() - trial.values.keys()
        trials.append(
            {
                "values": {key: written(value) for key, value in trial.values.items()},
                "metrics": {k: float(row[k]) for k in numbers if isinstance(row[k], int | float)},
                **{key: result[key] for key in ("trial", "started", "seconds", "refused")},
            }
        )
    publish_sweep(name, trials, files=files)


if __name__ == "__main__":
    run(main, name="sweep")
