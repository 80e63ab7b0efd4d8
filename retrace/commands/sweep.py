"""Run a sweep of params.yaml: each trial is a small pipeline of the same stages in its own folder.

What is made lies under the hash of everything that it is made of: parameters, code, data, and what
was made before it. So a trial that is done is not done again, in whichever sweep it turns up, an
interrupted sweep goes on where it was, and trials share the networks that they have in common.
"""

import csv
import hashlib
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from retrace.checks import check_all, check_sweeps
from retrace.commands.jobs import OUTCOME, Job, made_whole, refused_in, work
from retrace.commands.trials import JUDGES, Figure, Sweep, Trial, sweep_of
from retrace.execution import engine
from retrace.pipeline.artifacts import (
    DATASET,
    checkpoint_path,
    headline_path,
    history_path,
    read_json,
    split_path,
    write_json,
    written_whole,
)
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import PARAMS, Params, load, read_yaml

FOLDER = Path("data/sweeps")
NEUTRAL = ("stages/engine.py",)  # where a task runs changes no result
TABLES = Path("metrics/sweeps")
SPLITS = ("train", "validation", "test")
ABREAST = 3  # panels in a row
WIDE = 8  # ratio of the ends of an axis that is worth a logarithm
COUNTS, SHARE = ("identified", "matched_99"), "_share"
IDENTITY = ("dataset", "problem", "method", "network", "seed")  # of headlines, not in the table

Row = dict[str, Any]


def digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Code:
    """Digests of the code that a stage depends on, as dvc.yaml names it."""

    def __init__(self) -> None:
        self.stages = read_yaml(Path("dvc.yaml"))["stages"]
        self.known: dict[tuple[str, ...], str] = {}

    def of(self, stage: str, **item: str) -> str:
        """Of a stage, or of one with ``${item.…}`` filled in."""
        key = (stage, *item.values())
        if key not in self.known:
            names = self.stages[stage].get("do", self.stages[stage])["deps"]
            files: dict[str, str] = {}
            for name in names:
                for field, value in item.items():
                    name = name.replace(f"${{item.{field}}}", value)  # noqa: PLW2901
                if name.startswith("stages/") and name not in NEUTRAL:
                    path = Path(name)
                    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                        files[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
            self.known[key] = digest(files)
        return self.known[key]


class Plan:
    """The folders that a trial needs, from the data to its scores."""

    def __init__(self, base: Params) -> None:
        self.base = base
        self.code = Code()
        self.data = digest(read_json(DATASET)["sha256"])
        lock = Path("dvc.lock")
        self.lock = read_yaml(lock) if lock.exists() else {}
        self.in_step: dict[str, bool] = {}
        # Of one hash one job, in the order in which they have to be made.
        self.stages: tuple[dict[str, Job], ...] = ({}, {}, {}, {})

    def add(self, trial: Trial) -> Path:
        """Plan a trial and what it needs; give its folder."""
        params = trial.params
        files, data = self._data(params)
        networks: dict[str, str] = {}
        checkpoints: dict[str, dict[str, str]] = {}
        for name, entry in params.networks.items():
            code = self.code.of("train", architecture=entry.architecture)
            networks[name] = digest([name, entry.model_dump(), params.device, data, code])
            if data == self.data and self._is_in_step(name, params):
                folder = Path.cwd()
            else:
                links = {str(split_path(split)): files[str(split_path(split))] for split in SPLITS}
                folder = self._job(1, networks[name], params, links, [("train", name)])
            made = (checkpoint_path(name), history_path(name))
            checkpoints[name] = {str(path): str(folder / path) for path in made}
        links = dict(files)
        grounds: dict[str, str] = {}
        for problem in sorted({entry.problem for entry in params.runs.values()}):
            steps, matters, outs = self._ground(problem, params)
            judges = JUDGES.get(problem, ())
            needed = [networks[name] for name in judges]
            grounds[problem] = digest([problem, matters, data, needed])
            of_judges = [checkpoints[name] for name in judges]
            folder = self._job(
                2, grounds[problem], params, {**files, **_together(of_judges)}, steps
            )
            links |= {out: str(folder / out) for out in outs}
        links |= _together(checkpoints.values())
        runs = {name: entry.model_dump() for name, entry in params.runs.items()}
        code_of_runs = {
            name: [
                self.code.of("reconstruct", problem=entry.problem, network=entry.network),
                self.code.of("score", problem=entry.problem, network=entry.network),
            ]
            for name, entry in params.runs.items()
        }
        key = digest(
            [
                *(runs, code_of_runs, networks, grounds),
                *(params.scoring.model_dump(), params.device, data),
            ]
        )
        steps = [(stage, name) for name in runs for stage in ("reconstruct", "score")]
        return self._job(3, key, params, links, steps)

    def _job(
        self,
        stage: int,
        key: str,
        params: Params,
        links: dict[str, str],
        steps: list[tuple[str, str]],
    ) -> Path:
        kind = ("data", "networks", "grounds", "trials")[stage]
        folder = Path.cwd() / FOLDER / kind / key
        content = params.model_dump()
        self.stages[stage].setdefault(key, Job(str(folder), content, links, steps))
        return folder

    def _data(self, params: Params) -> tuple[dict[str, str], str]:
        """Splits by their path, and what identifies them: those here, or other ones."""
        folder, key = Path.cwd(), self.data
        if params.data != self.base.data:
            section = params.data.model_dump()
            key = digest([self.data, section, self.code.of("split")])
            raw = {"data/raw": str(Path.cwd() / "data/raw")}
            folder = self._job(0, key, params, raw, [("split", "")])
        paths = [DATASET, *map(split_path, SPLITS)]
        return {str(path): str(folder / path) for path in paths}, key

    def _ground(
        self, problem: str, params: Params
    ) -> tuple[list[tuple[str, str]], list[Any], list[str]]:
        """How the observations of a problem are made, with all that its scores are measured
        against; what of the parameters and the code matters to that; and the files it gives."""
        observed = f"data/observed/{problem}.npz"
        masks, scoring = params.masks.model_dump(), params.scoring.model_dump()
        if problem in ("imputation", "autoencoding"):
            steps = [("masks", ""), ("baselines", "")]
            steps += [("observe", problem)] if problem == "autoencoding" else []
            matters = [masks, scoring["ridge"]]
            outs = [observed, "metrics/baselines.json"]
        elif problem == "decoder_inversion":
            steps = [("observe", problem), ("optima", "")]
            matters = [masks["images"], params.data.seed, params.device]  # of the optima
            outs = [observed, "data/codes.npz", "data/optima.npz"]
        else:
            steps, matters, outs = [("observe", problem)], [], [observed]
        coded = {"observe": "observe_codes"} if problem == "decoder_inversion" else {}
        code = [self.code.of(coded.get(stage, stage)) for stage, _ in steps]
        return steps, [matters, code], outs

    def _is_in_step(self, name: str, params: Params) -> bool:
        """Whether models/ holds this network, trained as the trial wants it, from data and by code
        that are here: dvc.lock says."""
        entry = params.networks[name]
        if (entry, params.device) != (self.base.networks.get(name), self.base.device):
            return False
        if name not in self.in_step:
            locked = self.lock.get("stages", {}).get(f"train@{name}", {})
            recorded = locked.get("params", {}).get(PARAMS.name, {})
            # As params.yaml says it, which may leave defaults out.
            stated = entry.model_dump(exclude_defaults=True)
            wanted = {f"networks.{name}": stated, "device": params.device}
            self.in_step[name] = recorded == wanted and all(
                _is_file(Path(item["path"]), md5=item["md5"])
                for item in [*locked["deps"], *locked["outs"]]
            )
        return self.in_step[name]


def _is_file(path: Path, *, md5: str) -> bool:
    if not path.is_file():
        return False
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5


def _together(links: Sequence[Mapping[str, str]] | Any) -> dict[str, str]:
    return {path: target for one in links for path, target in one.items()}


def make(plan: Plan, *, name: str) -> None:
    """Make all folders that are not there, one kind after the other; what one refuses, all that
    need it refuse."""
    refused: dict[str, str] = {}  # folders, and why
    for kind, jobs in zip(("data", "networks", "observations", "trials"), plan.stages, strict=True):
        todo = []
        for job in jobs.values():
            folder = Path(job.folder)
            before = {
                str(Path(target).parents[i]) for target in job.links.values() for i in (0, 1, 2)
            }
            if (folder / OUTCOME).exists():
                if reason := refused_in(folder):
                    refused[job.folder] = reason
            elif lacking := before & refused.keys():
                refused[job.folder] = refused[min(lacking)]
                with made_whole(folder) as temporary:
                    outcome = {"started": time.time(), "seconds": 0.0}
                    write_json(temporary / OUTCOME, {**outcome, "refused": refused[job.folder]})
            else:
                todo.append(job)
        with tqdm(total=len(jobs), desc=f"{name}: {kind}", disable=None) as bar:
            bar.update(len(jobs) - len(todo))
            if todo:
                for position, reason in engine.run(work, todo):
                    if reason:
                        refused[todo[position].folder] = reason
                    bar.update()


def row_of(trial: Trial, folder: Path) -> Row:
    """What a trial gave: its hash, the values that vary, and the headlines of its runs."""
    outcome = read_json(folder / OUTCOME)
    row: Row = {"trial": folder.name, **trial.values}
    for name in trial.params.runs if outcome["refused"] is None else ():
        headline = read_json(folder / headline_path(name))
        metrics = {key: value for key, value in headline.items() if key not in IDENTITY}
        history = folder / history_path(trial.params.runs[name].network)
        metrics["training_seconds"] = read_json(history)["seconds"]
        for count in COUNTS:  # of sets that differ in size
            if count in metrics:
                metrics[f"{count}{SHARE}"] = metrics[count] / metrics["n"]
        prefix = f"{name}/" if len(trial.params.runs) > 1 else ""
        row |= {f"{prefix}{key}": value for key, value in metrics.items()}
    return row | {"refused": outcome["refused"] or ""}


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Of all rows: a refused trial lacks the metrics, and comes first as well as last."""
    names = dict.fromkeys(key for row in rows for key in row if key != "refused")
    return [*names, "refused"]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV; lists as JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: shown(value) for key, value in row.items()})
    with written_whole(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def shown(value: Any) -> Any:
    """A value of a table or a label."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list | dict) else value


def draw(
    path: Path, rows: Sequence[Row], keys: Sequence[str], figure: Figure, *, title: str
) -> None:
    """Draw the metric of all trials that were not refused.

    Raises
    ------
    Refusal
        When no trial has that metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = figure.metric
    rows = [row for row in rows if isinstance(row.get(metric), int | float)]
    if not rows:
        raise Refusal(f"sweep {title}: no trial has the metric {metric!r}; the table is written")
    if figure.x is None:
        against = [(key, "", rows) for key in keys]
        cells = [against[i : i + ABREAST] for i in range(0, len(keys), ABREAST)]
    else:
        ordinates, abscissae = (_values(rows, key) for key in (figure.rows, figure.columns))
        cells = [
            [
                (
                    figure.x,
                    ", ".join(
                        _label(k, v) for k, v in ((figure.rows, r), (figure.columns, c)) if k
                    ),
                    [
                        row
                        for row in rows
                        if _is(row, figure.rows, r) and _is(row, figure.columns, c)
                    ],
                )
                for c in abscissae
            ]
            for r in ordinates
        ]
    size = (4.2 * len(cells[0]), 0.4 + 3.2 * len(cells))
    drawing, grid = pyplot.subplots(
        len(cells),
        len(cells[0]),
        figsize=size,
        layout="constrained",
        squeeze=False,
        sharex=figure.x is not None,
        sharey=True,
    )
    for axes in grid.flat[sum(map(len, cells)) :]:
        axes.set_axis_off()
    for axes, (key, caption, of_cell) in zip(
        grid.flat, [cell for line in cells for cell in line], strict=False
    ):
        if not of_cell:  # not every combination has to be in the sweep
            axes.set_axis_off()
            continue
        _draw_cell(axes, of_cell, key, figure, values=_values(rows, key), of=rows)
        axes.set(xlabel=short(key), title=caption)
        axes.spines[["top", "right"]].set_visible(False)
    heights = [row[metric] for row in rows]
    if metric.endswith(SHARE):
        grid[0, 0].set_ylim(-0.04, 1.04)
    elif min(heights) > 0 and max(heights) / min(heights) >= WIDE:
        grid[0, 0].set_yscale("log")
    for line_of_axes in grid:
        line_of_axes[0].set_ylabel(metric)
    if figure.lines:
        handles: dict[str, Any] = {}
        for axes in grid.flat:
            lines, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, lines, strict=True))
        drawing.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=4,
            frameon=False,
        )
    drawing.suptitle(title)
    with written_whole(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(drawing)


def _draw_cell(
    axes: Any,
    rows: Sequence[Row],
    key: str,
    figure: Figure,
    *,
    values: Sequence[Any],
    of: Sequence[Row],
) -> None:
    """Draw some rows `of` all against one key, whose axis shows all its values."""
    metric, places = figure.metric, _places(values)
    for number, value in enumerate(_values(of, figure.lines)):
        points: dict[float, list[float]] = {}
        for row in rows:
            if _is(row, figure.lines, value):
                points.setdefault(places[_hashable(row[key])], []).append(row[metric])
        if not points:
            continue
        colour = f"C{number % 10}"  # of one value the same in every panel
        axes.plot(
            [place for place, heights in points.items() for _ in heights],
            [height for heights in points.values() for height in heights],
            "o",
            markersize=4,
            color=colour,
            label=_label(figure.lines, value) if figure.lines else None,
        )
        if figure.x is not None:  # through the means of what does not tell trials apart
            means = {place: sum(points[place]) / len(points[place]) for place in sorted(points)}
            axes.plot(list(means), list(means.values()), color=colour, linewidth=1)
    if isinstance(values[0], int | float) and values[0] > 0 and values[-1] / values[0] >= WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    if len(values) <= WIDE:
        axes.set_xticks(list(places.values()), [str(shown(value)) for value in values])
        axes.minorticks_off()


def short(key: str) -> str:
    """The end of a dotted path."""
    return key.rpartition(".")[2].replace("_", " ")


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _values(rows: Sequence[Row], key: str | None) -> list[Any]:
    """Values of a key, none twice: numbers by size, others as they come; without a key one None."""
    if key is None:
        return [None]
    values = list({_hashable(row[key]): row[key] for row in rows}.values())
    return sorted(values) if all(isinstance(v, int | float) for v in values) else values


def _places(values: Sequence[Any]) -> dict[Any, float]:
    """Where on an axis values stand: numbers as such, others side by side."""
    if all(isinstance(value, int | float) for value in values):
        return {value: float(value) for value in values}
    return {_hashable(value): float(i) for i, value in enumerate(values)}


def _label(key: str | None, value: Any) -> str:
    return f"{short(key or '')} {shown(value)}"


def _is(row: Row, key: str | None, value: Any) -> bool:
    return key is None or row[key] == value


def publish(
    name: str, sweep: Sweep, folders: Sequence[Path], rows: Sequence[Row], *, tables: list[Path]
) -> None:
    """Log the sweep to MLflow: the coordinator alone does."""
    from retrace.tracking import runs as track

    trials = []
    for trial, folder, row in zip(sweep.trials, folders, rows, strict=True):
        outcome = read_json(folder / OUTCOME)
        values = {key: shown(value) for key, value in trial.values.items()}
        metrics = {
            key: float(value)
            for key, value in row.items()
            if key not in trial.values and isinstance(value, int | float)
        }
        timing = {key: outcome[key] for key in ("started", "seconds", "refused")}
        trials.append({"trial": folder.name, "values": values, "metrics": metrics, **timing})
    track.publish_sweep(name, trials, files=tables)


def main(name: str) -> None:
    """Run a sweep of params.yaml, write metrics/sweeps/<sweep>.csv and .png, and publish it."""
    params = load()
    sweep = sweep_of(params, name)
    check_all(params)
    check_sweeps(params.model_copy(update={"sweeps": {name: params.sweeps[name]}}))
    missing = [path for path in (DATASET, *map(split_path, SPLITS)) if not path.exists()]
    if missing:
        raise Refusal(f"{missing[0]} is missing; `dvc repro split` makes it")
    FOLDER.mkdir(parents=True, exist_ok=True)
    started = time.time()
    try:
        with FileLock(FOLDER / "lock", timeout=0):
            for left in FOLDER.glob("*/.*.part"):  # of a sweep that was killed
                shutil.rmtree(left, ignore_errors=True)
            plan = Plan(params)
            folders = [plan.add(trial) for trial in sweep.trials]
            done = sum((folder / OUTCOME).exists() for folder in folders)
            make(plan, name=name)
    except Timeout:
        raise Refusal("another sweep is running here; start this one when it has ended") from None
    rows = [row_of(*each) for each in zip(sweep.trials, folders, strict=True)]
    table, picture = TABLES / f"{name}.csv", TABLES / f"{name}.png"
    write_table(table, rows)
    keys = list(sweep.trials[0].values)
    dataset = read_json(DATASET)["name"]
    draw(picture, rows, keys, sweep.figure, title=f"{name} ({dataset}, {len(rows)} trials)")
    refused = sum(bool(row["refused"]) for row in rows)
    print(
        f"{name}: {len(rows)} trials, {done} of them done before, {refused} refused, "
        f"{time.time() - started:.1f} s; {table}, {picture}"
    )
    publish(name, sweep, folders, rows, tables=[table, picture])


if __name__ == "__main__":
    run(main, name="sweep")
