"""Score the reconstructions of one problem against the truth."""

from functools import partial

from retrace.measures.quality import means_with_intervals
from retrace.pipeline.artifacts import (
    baselines_path,
    headline_path,
    metrics_path,
    read_arrays,
    read_json,
    reconstruction_path,
    record_path,
    write_json,
)
from retrace.pipeline.command import run
from retrace.pipeline.params import entry_of, load
from retrace.problems import Ground, Run, part

IDENTITY = ("dataset", "problem", "method", "network", "seconds")


def main(name: str) -> None:
    """Score every run of a problem into metrics/<problem>/<run>.json, and its headline into
    metrics/headline/<problem>/<run>.json."""
    params = load()
    entry_of(params.problems, name, section="problems")
    scoring = params.scoring
    means = partial(means_with_intervals, resamples=scoring.resamples, seed=scoring.seed)
    runs = sorted(key for key, entry in params.runs.items() if entry.problem == name)
    records = {run_name: read_json(record_path(name, run_name)) for run_name in runs}
    scorer = part(name, "score").Scorer(Ground(name), records, means)
    for run_name, record in records.items():
        arrays = read_arrays(reconstruction_path(name, run_name))
        scores, headline = scorer(Run(run_name, record, arrays))
        identity = {key: record[key] for key in IDENTITY}
        identity |= {"n": scores["n"], "seed": record["settings"].get("seed", 0)}
        settings = {"settings": record["settings"]}
        write_json(metrics_path(name, run_name), identity | settings | scores)
        write_json(headline_path(name, run_name), identity | headline)
        words = (
            f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in headline.items()
        )
        print(f"{run_name}: " + ", ".join(words))
    if scorer.baselines:
        dataset = next(iter(records.values()))["dataset"]
        write_json(baselines_path(name), {"dataset": dataset, **scorer.baselines})


if __name__ == "__main__":
    run(main, name="problem")
