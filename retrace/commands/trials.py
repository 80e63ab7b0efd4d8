"""What a sweep of params.yaml accepts, and the trials that it stands for.

A trial is a small params.yaml: the runs of the sweep, the networks that these need, and some keys
changed. It is checked as params.yaml is.
"""

import itertools
import math
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from retrace.pipeline.command import Refusal
from retrace.pipeline.params import STRICT, Name, Params, bind, refuse, shown
from retrace.types import Seed

# Networks that score a problem, beside the one that is asked.
JUDGES = {
    "autoencoding": ("gaussian", "classifier"),
    "imputation": ("gaussian", "classifier"),
    "decoder_inversion": ("vae",),
}
MOST = 10_000  # trials of one sweep


class Range(BaseModel):
    """Numbers from low to high; whole ones where both ends are. A grid takes so many `points`."""

    model_config = STRICT
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
            value = math.exp(
                math.log(self.low) + share * (math.log(self.high) - math.log(self.low))
            )
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if isinstance(self.low, int) and isinstance(self.high, int) else value


class Figure(BaseModel):
    """A metric against a key, a line, column and row for each value of others; without x, against
    every key that varies, a point for each trial."""

    model_config = STRICT
    metric: str
    x: str | None = None
    lines: str | None = None
    columns: str | None = None
    rows: str | None = None


Space = Annotated[dict[str, Any], Field(min_length=1)]  # lists of values, or ranges


class Trial(NamedTuple):
    """Parameters of a trial, whole but small, and the values of the keys that vary."""

    params: Params
    values: dict[str, Any]


class Sweep(NamedTuple):
    """The trials, in order and none twice, and the figure of their results."""

    trials: list[Trial]
    figure: Figure


def sweep_of(params: Params, name: str) -> Sweep:
    """The sweep of that name.

    Raises
    ------
    Refusal
        When there is none of that name, or when something in it is wrong.
    """
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
    figure : Figure
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
    # Pydantic has made dictionaries of what it checked.
    drawn = Figure.model_validate(figure) if isinstance(figure, dict) else figure
    spaces = [
        {k: _choices(values, where=f"{where}.vary.{i}.{k}") for k, values in space.items()}
        for i, space in enumerate(vary)
    ]
    plain = base.model_dump() | {"sweeps": {}}
    for number, space in enumerate(spaces):
        for key in [*space, *fixed]:
            label = f"{where}.fixed.{key}" if key in fixed else f"{where}.vary.{number}.{key}"
            _checked_path(plain, key, where=label)
            if key in space and key in fixed:
                raise Refusal(f"params.yaml: {label}: this key is in vary too")
    if unknown := [run for run in runs if run not in base.runs]:
        allowed = ", ".join(base.runs)
        raise Refusal(
            f"params.yaml: {where}.runs: {shown(unknown[0])} is unknown; allowed are {allowed}"
        )
    keys = list(dict.fromkeys(key for space in spaces for key in space))
    for axis in ("x", "lines", "columns", "rows"):
        key = getattr(drawn, axis)
        if key is not None and key not in keys:
            allowed = ", ".join(keys)
            raise Refusal(
                f"params.yaml: {where}.figure.{axis} = {shown(key)}: allowed are {allowed}"
            )
    found: dict[str, Trial] = {}  # by all that matters, so that none comes twice
    for number, space in enumerate(spaces):
        values = (
            _grid(space, where=f"{where}.vary.{number}")
            if search == "grid"
            else _random(space, count=trials or 0, seed=[seed, number])
        )
        for one in values:
            trial = _trial(plain, {**fixed, **one}, runs=runs, where=where)
            found.setdefault(trial.params.model_dump_json(), trial)
    reduced = [trial.params.model_dump() for trial in found.values()]
    for key in keys:
        if all(_lookup(params, key) is None for params in reduced):
            raise Refusal(
                f"params.yaml: {where}.vary: {key} changes nothing that the runs of the sweep need"
            )
    located = [
        trial._replace(values={key: _lookup(params, key) for key in keys})
        for trial, params in zip(found.values(), reduced, strict=True)
    ]
    return Sweep(located, drawn)


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


def _grid(space: dict[str, list[Any] | Range], *, where: str) -> list[dict[str, Any]]:
    lists: list[list[Any]] = []
    for key, values in space.items():
        if isinstance(values, Range):
            if values.points is None:
                raise Refusal(
                    f"params.yaml: {where}.{key}: a grid needs points, the number of values"
                )
            last = values.points - 1
            values = [values.at(i / last) for i in range(values.points)]  # noqa: PLW2901
        lists.append(values)
    if (count := math.prod(map(len, lists))) > MOST:
        raise Refusal(f"params.yaml: {where}: {count} trials; at most {MOST} are allowed")
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*lists)]


def _random(
    space: dict[str, list[Any] | Range], *, count: int, seed: list[int]
) -> list[dict[str, Any]]:
    trials = []
    for i in range(count):
        generator = np.random.default_rng([*seed, i])
        trials.append(
            {
                key: values.at(generator.random())
                if isinstance(values, Range)
                else values[generator.integers(len(values))]
                for key, values in space.items()
            }
        )
    return trials


def _lookup(content: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for part in path.split("."):
        if not isinstance(content, dict) or part not in content:
            return None
        content = content[part]
    return content


def _checked_path(content: dict[str, Any], path: str, *, where: str) -> None:
    parts = path.split(".")
    if parts[0] == "data" and parts[-1] not in ("seed", "validation"):
        raise Refusal(f"params.yaml: {where}: of data, a sweep changes seed and validation only")
    inner: Any = content
    for part in parts:
        if not isinstance(inner, dict) or part not in inner:
            raise Refusal(f"params.yaml: {where}: unknown key")
        inner = inner[part]


def _changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with the values at some dotted paths replaced."""
    result = dict(content)
    for path, value in changes.items():
        inner = result
        *parents, last = path.split(".")
        for part in parents:
            inner[part] = dict(inner[part])
            inner = inner[part]
        inner[last] = value
    return result


def _trial(base: dict[str, Any], changes: dict[str, Any], *, runs: list[str], where: str) -> Trial:
    """Change params.yaml, and keep of its runs and networks those that the trial needs."""
    content = _changed(base, changes)
    content["runs"] = {name: content["runs"][name] for name in runs}
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        refusal = str(refuse(error, where="")).removeprefix("params.yaml: ")
        raise Refusal(f"params.yaml: {where}: {refusal}") from None
    needed = {
        name
        for entry in params.runs.values()
        for name in (entry.network, *JUDGES.get(entry.problem, ()))
    }
    networks = {name: entry for name, entry in params.networks.items() if name in needed}
    return Trial(params.model_copy(update={"networks": networks}), {})
