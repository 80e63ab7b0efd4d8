"""What a sweep of params.yaml accepts, and the trials that it stands for.

A trial is a small params.yaml: the runs of the sweep, what these need, and some keys changed. It is
checked as params.yaml is.
"""

import itertools
import math
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, model_validator

from retrace.checks import check_networks, check_problems, check_runs
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import Name, Params, Part, bind, refuse, shown
from retrace.problems import names, needed, part
from retrace.types import Seed

MOST = 10_000  # trials of one sweep
VARYING = ("seed", "validation")  # of `data`; another dataset is another repository


class Range(Part):
    """Numbers from low to high; whole ones where both ends are. A grid takes so many `points`."""

    low: int | float
    high: int | float
    scale: Literal["linear", "log"]
    points: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def ordered(self) -> "Range":
        if not self.low < self.high:
            raise ValueError("low must lie below high")
        if self.scale == "log" and self.low <= 0:
            raise ValueError("low must be positive where the scale is log")
        return self

    def at(self, share: float) -> int | float:
        """The number at a share of the way from low to high."""
        if self.scale == "log":
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + share * (high - low))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if isinstance(self.low, int) and isinstance(self.high, int) else value


class Figure(Part):
    """A metric against a key, a line, column and row for each value of others.

    With several keys a panel for each, of the trials of those spaces of `vary` that begin with it:
    a space is about its first key, and what goes with it. With none, a panel for each key that
    varies, of the trials of the spaces that name it. Several metrics are a line each. What there
    are several of has captions.
    """

    metric: str | dict[str, str]
    x: str | dict[str, str] | None = None
    lines: str | None = None
    columns: str | None = None
    rows: str | None = None

    @model_validator(mode="after")
    def apart(self) -> "Figure":
        if self.lines and len(self.metrics) > 1:
            raise ValueError("lines and several metrics exclude each other")
        if (self.columns or self.rows) and not isinstance(self.x, str):
            raise ValueError("columns and rows need one key as x")
        return self

    @property
    def metrics(self) -> dict[str, str]:
        """Captions by metric."""
        return {self.metric: self.metric} if isinstance(self.metric, str) else self.metric


Space = Annotated[dict[str, Any], Field(min_length=1)]  # lists of values, or ranges
Choices = dict[str, list[Any] | Range]


class Trial(NamedTuple):
    """Parameters of a trial, small, every value written out; those of the keys that vary; and of
    each space that it is in the keys."""

    params: Params
    values: dict[str, Any]
    spaces: frozenset[tuple[str, ...]]


class Sweep(NamedTuple):
    """The runs that are asked for; the trials, in order and none twice; the figure."""

    runs: list[str]
    trials: list[Trial]
    figure: Figure


def check_sweeps(params: Params) -> None:
    """Check every trial of every sweep as params.yaml itself; refused on the first thing that is
    wrong."""
    for name in params.sweeps:
        sweep_of(params, name)


def sweep_of(params: Params, name: str) -> Sweep:
    """The sweep of that name; refused where there is none, or something in it is wrong."""
    if name not in params.sweeps:
        allowed = ", ".join(params.sweeps) or "none: params.yaml has no sweeps"
        raise Refusal(f"sweeps.{name}: unknown; allowed are {allowed}")
    where = f"sweeps.{name}"
    return expand(params, where, **bind(expand, params.sweeps[name], where=where))


def expand(
    base: Params,
    where: str,
    *,
    runs: Annotated[list[Name], Field(min_length=1)],
    search: Literal["grid", "random"],
    vary: Annotated[list[Space], Field(min_length=1)],
    figure: Figure,
    fixed: dict[str, Any] = {},  # noqa: B006 (not changed)
    trials: Annotated[int, Field(ge=1, le=MOST)] | None = None,
    seed: Seed = 0,
) -> Sweep:
    """All trials of a sweep.

    Parameters
    ----------
    base : Params
        params.yaml.
    where : str
        The sweep's path in it, for messages.
    runs : list of str
        Runs that each trial makes and scores.
    search : "grid" or "random"
        All combinations, or random ones.
    vary : list of dict
        Spaces, searched one after the other; in each, keys of params.yaml as dotted paths with a
        list of values, or with a range ``{low, high, scale}``; of a grid also ``points``.
    fixed : dict
        Keys, as dotted paths, that all trials change to one value.
    trials : int
        Number of random trials in each space. More of them leave the first ones as they were.
    seed : int
        Of random trials.
    """
    if (search == "random") != (trials is not None):
        raise Refusal(
            f"params.yaml: {where}.trials = {trials}: a number is expected where search is random, "
            "and none where it is grid"
        )
    if unknown := [run for run in runs if run not in base.runs]:
        allowed = ", ".join(base.runs)
        raise Refusal(
            f"params.yaml: {where}.runs: {shown(unknown[0])} is unknown; allowed are {allowed}"
        )
    # Keys that params.yaml leaves to their defaults may vary too.
    whole = _whole(base).model_dump()
    for key in fixed:
        label = f"{where}.fixed.{key}"
        _check_key(whole, key, where=label)
        if any(key in space for space in vary):
            raise Refusal(f"params.yaml: {label}: this key is in vary too")
    spaces: list[Choices] = []
    for number, space in enumerate(vary):
        spaces.append({})
        for key, values in space.items():
            label = f"{where}.vary.{number}.{key}"
            _check_key(whole, key, where=label)
            spaces[-1][key] = _choices(values, where=label)
    keys = list(dict.fromkeys(key for space in spaces for key in space))
    drawn = Figure.model_validate(dict(figure))  # of what was checked, `bind` makes dictionaries
    _check_figure(drawn, keys, runs, where=f"{where}.figure")
    points = [
        point
        for number, space in enumerate(spaces)
        for point in (
            _grid(space, where=f"{where}.vary.{number}")
            if search == "grid"
            else _random(space, count=trials or 0, seed=[seed, number])
        )
    ]
    found: dict[str, Trial] = {}  # by all that matters, so that none comes twice
    plain = base.model_dump()
    for number, point in enumerate(points):
        try:
            params = _reduced(Params.model_validate(_changed(plain, fixed | point)), runs=runs)
        except (Refusal, ValidationError) as error:
            refusal = refuse(error, where="") if isinstance(error, ValidationError) else error
            reason = str(refusal).removeprefix("params.yaml: ")
            raise Refusal(f"params.yaml: {where}, trial {number}: {reason}") from None
        content = params.model_dump()
        values = {key: _lookup(content, key) for key in keys}
        trial = Trial(params, values, frozenset([tuple(point)]))
        one = found.setdefault(params.model_dump_json(), trial)
        found[params.model_dump_json()] = one._replace(spaces=one.spaces | trial.spaces)
    for key in keys:
        if all(trial.values[key] is None for trial in found.values()):
            raise Refusal(
                f"params.yaml: {where}.vary: {key} changes nothing that the runs of the sweep need"
            )
    return Sweep(runs, list(found.values()), drawn)


def _check_figure(figure: Figure, keys: list[str], runs: list[str], *, where: str) -> None:
    if not figure.metric:
        raise Refusal(
            f"params.yaml: {where}.metric = {shown(figure.metric)}: a metric, or several with "
            "captions, is expected"
        )
    for metric in figure.metrics:
        if len(runs) > 1 and metric.rpartition("/")[0] not in runs:
            raise Refusal(
                f"params.yaml: {where}.metric = {shown(metric)}: of several runs, RUN/METRIC is "
                f"expected; runs are {', '.join(runs)}"
            )
    for axis in ("x", "lines", "columns", "rows"):
        asked = getattr(figure, axis) or []
        unknown = [key for key in ([asked] if isinstance(asked, str) else asked) if key not in keys]
        if unknown:
            raise Refusal(
                f"params.yaml: {where}.{axis} = {shown(unknown[0])}: allowed are {', '.join(keys)}"
            )


def _whole(params: Params) -> Params:
    """Parameters with the values that they leave to defaults."""
    whole = {
        "networks": check_networks(params.networks),
        "problems": check_problems(params),
        "runs": check_runs(params),
    }
    return params.model_copy(update={**whole, "sweeps": {}})


def _reduced(params: Params, *, runs: list[str]) -> Params:
    """Some runs and what they need, whole: their problems, the runs that these compare others with,
    and networks."""
    entries = {name: params.runs[name] for name in runs}
    asked = {entry.problem for entry in entries.values()} & set(names())
    problems = {name: entry for name, entry in params.problems.items() if name in asked}
    for problem in problems:
        baseline = part(problem, "score").BASELINE
        same = {name: entry for name, entry in params.runs.items() if entry.problem == problem}
        compared = [name for name, entry in same.items() if entry.method == baseline]
        if compared and not entries.keys() & set(compared):
            entries[compared[0]] = same[compared[0]]
    wanted = {entry.network for entry in entries.values()}
    for problem, entry in problems.items():
        wanted |= needed(problem, entry.source)
    networks = {name: entry for name, entry in params.networks.items() if name in wanted}
    update = {"runs": entries, "problems": problems, "networks": networks}
    return _whole(params.model_copy(update=update))


def _choices(values: Any, *, where: str) -> list[Any] | Range:
    if isinstance(values, list) and values:
        return values
    if not isinstance(values, dict):
        raise Refusal(
            f"params.yaml: {where} = {shown(values)}: a list of at least one value, or a range "
            "{low, high, scale}, is expected"
        )
    try:
        return Range.model_validate(values)
    except ValidationError as error:
        raise refuse(error, where=where) from None


def _grid(space: Choices, *, where: str) -> list[dict[str, Any]]:
    counts: list[int] = []
    for key, values in space.items():
        points = len(values) if isinstance(values, list) else values.points
        if points is None:
            raise Refusal(f"params.yaml: {where}.{key}: a grid needs points, the number of values")
        counts.append(points)
    if (count := math.prod(counts)) > MOST:
        raise Refusal(f"params.yaml: {where}: {count} trials; at most {MOST} are allowed")
    lists = [
        values if isinstance(values, list) else [values.at(i / (n - 1)) for i in range(n)]
        for values, n in zip(space.values(), counts, strict=True)
    ]
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*lists)]


def _random(space: Choices, *, count: int, seed: list[int]) -> list[dict[str, Any]]:
    def drawn(values: list[Any] | Range, generator: np.random.Generator) -> Any:
        if isinstance(values, Range):
            return values.at(generator.random())
        return values[generator.integers(len(values))]

    generators = (np.random.default_rng([*seed, i]) for i in range(count))
    return [{key: drawn(values, one) for key, values in space.items()} for one in generators]


def _lookup(content: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for key in path.split("."):
        if not isinstance(content, dict) or key not in content:
            return None
        content = content[key]
    return content


def _check_key(content: dict[str, Any], path: str, *, where: str) -> None:
    *parents, last = path.split(".")
    if path.partition(".")[0] == "data" and last not in VARYING:
        raise Refusal(f"params.yaml: {where}: of data, a sweep changes seed and validation only")
    inner = _lookup(content, ".".join(parents)) if parents else content
    if not isinstance(inner, dict) or last not in inner:
        raise Refusal(f"params.yaml: {where}: unknown key")


def _changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with the values at some dotted paths replaced."""
    result = dict(content)
    for path, value in changes.items():
        inner = result
        *parents, last = path.split(".")
        for key in parents:
            inner[key] = dict(inner[key])
            inner = inner[key]
        inner[last] = value
    return result
