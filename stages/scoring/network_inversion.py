"""Did the inputs give the wanted outputs: measured again in float64 from checkpoint and input.

Scores, table and pictures of the problem `network_inversion`. Nothing that a method says of its own
outputs is used; its verdicts (feasible, proved infeasible, unknown) are compared with them.
"""

import copy
import io
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from stages.command import Refusal
from stages.pictures import COLOURS, mosaic, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 1e-6  # relative error of an output that counts as reached
EQUAL = 0  # the other relations are -1, at most, and 1, at least
BATCH = 200
PROBLEM = "network_inversion"
HEADLINE = (
    *("reached", "relative_error_max", "absolute_error_max"),
    *("feasible", "infeasible", "unknown", "distance_mean"),
)
TASKS = ("maximise", "shut down")  # of hidden units, before the levels
RATE_SHARES = (0.05, 0.5, 0.9, 1.0, 1.02)  # of the learning rate's bound, in the picture

Arrays = Mapping[str, NDArray[Any]]
Scores = dict[str, Any]
Means = Callable[[dict[str, Tensor]], dict[str, float]]
Settings = Mapping[str, Any]


def outputs(
    network: nn.Module, inputs: Tensor, *, method: str, settings: Settings, arrays: Arrays
) -> Tensor:
    """What the targets of a run are compared with, differentiable in the inputs.

    Parameters
    ----------
    network : Module
    inputs : (B, ...) float64
    method : str
        ``affine``: the outputs (B, outputs). ``hidden_unit``: what goes into the activation of each
        input's unit, (B,). ``class_target``: the probability of each input's class, (B,).
        ``lstm_gate``: the unit's forget gate at the row, or the largest from that row on, (B,).
    settings : dict
        Of the run.
    arrays : dict
        The reconstruction, of which ``unit`` or ``label`` say what belongs to each input.
    """
    network = copy.deepcopy(network).double().requires_grad_(False)
    if method == "affine":
        return network(inputs)
    index = torch.from_numpy(arrays["label" if method == "class_target" else "unit"])
    parts = zip(inputs.split(BATCH), index.split(BATCH), strict=True)
    return torch.cat(
        [_of_images(network, x, i, method=method, settings=settings) for x, i in parts]
    )


def _of_images(
    network: nn.Module, x: Tensor, index: Tensor, *, method: str, settings: Settings
) -> Tensor:
    if method == "class_target":
        return network(x).softmax(dim=1).gather(1, index[:, None]).squeeze(1)
    if method == "lstm_gate":
        gates = network.forget_logits(x).sigmoid()  # type: ignore[operator]
        gates = gates.gather(2, index[:, None, None].expand(-1, gates.shape[1], 1)).squeeze(2)
        row = settings["row"]
        return gates[:, row] if settings["change"] == "row" else gates[:, row:].amax(dim=1)
    kept: list[Tensor] = []
    layer = network.get_submodule(settings["layer"])
    # A copy, since margin networks rectify in place.
    handle = layer.register_forward_hook(lambda module, given, out: kept.append(out.clone()))
    network(x)
    handle.remove()
    return kept[0].flatten(1).gather(1, index[:, None]).squeeze(1)


def sensitivity(
    network: nn.Module, inputs: Tensor, *, method: str, settings: Settings, arrays: Arrays
) -> Tensor:
    """Derivative of each input's output with respect to that input: (B, ...) of images."""
    variable = inputs.detach().requires_grad_()
    value = outputs(network, variable, method=method, settings=settings, arrays=arrays)
    (gradient,) = torch.autograd.grad(value.sum(), variable)
    return gradient


def score(
    network: nn.Module, arrays: Arrays, *, method: str, settings: Settings, means: Means
) -> tuple[Scores, Scores]:
    """Scores of a run and its headline.

    ``relative_error_max`` is the largest |f(x) − v| / |v| over the targets that are not proved
    infeasible (of an output that must be at most, or at least, v the part that is too much), and
    relative to the output at the start where v is 0; ``relative_error_median`` and
    ``absolute_error_max`` alike. ``reached`` is the share of these targets with a relative error of
    at most `TOLERANCE`. ``feasible``, ``infeasible`` and ``unknown`` count the method's verdicts,
    ``contradicted`` those that the outputs contradict: called infeasible, and reached.
    ``without_target`` counts inputs that were to make an output as large as possible, with
    ``raised_mean``, how much larger it is than at the start. ``distance_mean`` is of the Euclidean
    distances from the start, of reached targets; ``outside_max`` is how far a pixel lies outside
    [0, 1]; ``iterations_mean`` counts steps.

    Parameters
    ----------
    network : Module
    arrays : dict
        The reconstruction.
    method, settings
        Of the run.
    means : function
        Takes per-target measures to means with intervals.

    Raises
    ------
    Refusal
        When the arrays do not belong together.
    """
    estimate, start = (torch.from_numpy(arrays[key]).double() for key in ("estimate", "start"))
    wanted = torch.from_numpy(arrays["wanted"])
    n = len(estimate)
    keys = ("start", "wanted", "relation", "feasible", "iterations")
    if estimate.shape != start.shape or any(len(arrays[key]) != n for key in keys):
        raise Refusal("the estimate, its start and its targets differ in number; run `dvc repro`")

    def of(x: Tensor) -> Tensor:
        found = outputs(network, x, method=method, settings=settings, arrays=arrays)
        return found.reshape(n, -1)  # (B, outputs)

    reached_output, at_start = of(estimate), of(start)
    target = wanted.reshape(n, -1)
    relation = torch.from_numpy(arrays["relation"])[:, None]
    excess = reached_output - target
    excess = torch.where(relation == EQUAL, excess.abs(), excess * -relation)
    # The relation −1 asks for at most, so that what is above is too much: excess · 1.
    error = excess.clamp(min=0)
    scale = torch.where(target != 0, target, at_start).abs()
    # A start that gives exactly the wanted 0 has no scale: its error counts as it is.
    relative = error / torch.where(scale > 0, scale, 1)
    absolute, relative = error.amax(dim=1), relative.amax(dim=1)  # (B,)

    verdict = torch.from_numpy(arrays["feasible"])
    aimed = target.isfinite().all(dim=1)
    counted = aimed & (verdict != 0)
    reached = relative <= TOLERANCE
    moved = (estimate - start).flatten(1).norm(dim=1)
    iterations = torch.from_numpy(arrays["iterations"]).double()
    scores: Scores = {
        "n": n,
        "feasible": int((verdict == 1).sum()),
        "infeasible": int((verdict == 0).sum()),
        "unknown": int((verdict == -1).sum()),
        "contradicted": int((aimed & (verdict == 0) & reached).sum()),
        "iterations_mean": float(iterations.mean()),
        "without_target": int((~aimed).sum()),
    }
    if bool(counted.any()):
        scores |= {
            "relative_error_max": float(relative[counted].max()),
            "relative_error_median": float(relative[counted].quantile(0.5)),
            "absolute_error_max": float(absolute[counted].max()),
            **means({"reached": reached[counted].double()}),
        }
    if bool((counted & reached).any()):
        scores |= means({"distance_mean": moved[counted & reached]})
    if bool((~aimed).any()):
        scores |= {"raised_mean": float((reached_output - at_start)[~aimed].mean())}
    if estimate.dim() == 3:
        scores["outside_max"] = float((estimate - estimate.clamp(0, 1)).abs().max())
    return scores, {key: scores[key] for key in HEADLINE if key in scores}


def table_rows(runs: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table of all runs."""
    head = ["run", "method", "network", "targets", "reached", "relative error, largest"]
    head += ["proved infeasible", "undecided", "distance", "steps", "seconds"]
    rows = []
    for name, scores in runs.items():
        rows.append(
            [
                f"`{name.removeprefix(f'{PROBLEM}-')}`",
                scores["method"],
                f"`{scores['network']}`",
                str(scores["n"]),
                f"{scores['reached']:.1%}" if "reached" in scores else "",
                f"{scores['relative_error_max']:.1e}" if "relative_error_max" in scores else "",
                str(scores["infeasible"]),
                str(scores["unknown"]),
                f"{scores['distance_mean']:.2f}" if "distance_mean" in scores else "",
                f"{scores['iterations_mean']:.0f}",
                f"{scores['seconds']:.1f}",
            ]
        )
    return head, rows


Run = tuple[nn.Module, Arrays, str, Settings]
"""A run's network, reconstruction, method and settings."""


def pictures(runs: Mapping[str, Run], *, dataset: str) -> dict[str, Image.Image]:
    """Pictures of all runs by the end of their file's name.

    Parameters
    ----------
    runs : dict of (network, arrays, method, settings)
        By the short name of the run.
    dataset : str
        For the titles.
    """
    found = {}
    affine: dict[str, dict[str, Run]] = {}
    preferred: dict[str, Run] = {}
    for name, run in runs.items():
        _, arrays, method, settings = run
        if method == "affine":
            if len(arrays["estimate"][0]) == 1:
                affine.setdefault(str(arrays["network"]), {})[name] = run
        elif method == "hidden_unit":
            title = f"{dataset}, units of {arrays['network']}"
            found[name] = units_picture(*run, title=title)
        elif method == "lstm_gate":
            rows = "row" if settings["change"] == "row" else "rows from"
            title = (
                f"{dataset}: forget gate at most {settings['gate']:g} at {rows} {settings['row']}"
            )
            found[name] = gate_picture(*run, title=title)
        elif settings["goal"] == "nearest":
            title = f"{dataset}: to another label with probability {settings['probability']:g}, "
            found[name] = nearest_picture(*run, title=title + "and the distance")
        else:
            preferred[name] = run
    if preferred:
        found["preferred"] = preferred_picture(preferred, title=f"{dataset}: what a class wants")
    for name, of_network in affine.items():
        found[name] = affine_chart(of_network)
    return found


def signed(values: NDArray[Any]) -> NDArray[Any]:
    """Images (n, h, w) of any sign, each scaled so that grey is 0 and its largest value is white
    (or its smallest black)."""
    largest = np.abs(values).max(axis=(1, 2), keepdims=True)
    return 0.5 + 0.5 * values / np.where(largest > 0, largest, 1)


def change(values: NDArray[Any]) -> NDArray[Any]:
    """Differences of images in [0, 1]: grey is none, white is 1 brighter."""
    return 0.5 + 0.5 * values


def units_picture(
    network: nn.Module, arrays: Arrays, method: str, settings: Settings, *, title: str
) -> Image.Image:
    """`units_rows` as a sheet."""
    rows, columns = units_rows(network, arrays, method, settings)
    return sheet(rows, title=title, columns=columns, scale=3)


def units_rows(
    network: nn.Module, arrays: Arrays, method: str, settings: Settings
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Units in rows, and the columns' captions: the image that moved most to shut the unit down,
    and the answer to each task, white where it is proved that there is none. Beside each the unit's
    sensitivity there, or once at the end where it is the same everywhere: of a unit that is affine
    in the image."""
    index = shown_units(arrays, settings)  # (units, tasks)
    estimate = arrays["estimate"][index]
    gradient = sensitivity(
        network,
        torch.from_numpy(arrays["estimate"]),
        method=method,
        settings=settings,
        arrays=arrays,
    ).numpy()[index]
    affine = bool(np.isclose(gradient, gradient[:, :1], rtol=1e-9, atol=1e-12).all())
    estimate[arrays["feasible"][index] == 0] = 1
    rows = {}
    for i, unit in enumerate(settings["units"]):
        cells = [arrays["start"][index[i, 0]]]
        for found, slope in zip(estimate[i], signed(gradient[i]), strict=True):
            cells += [found] if affine else [found, slope]
        cells += [signed(gradient[i, :1])[0]] if affine else []
        rows[f"unit {unit}"] = np.stack(cells)
    columns = ["image"]
    for task in [*TASKS, *(f"= {level:g}" for level in settings["levels"])]:
        columns += [task] if affine else [task, "gradient"]
    columns += ["gradient"] if affine else []
    return rows, columns


def shown_units(arrays: Arrays, settings: Settings) -> NDArray[Any]:
    """Positions (units, tasks) of the answers that are shown: for each unit the image that had to
    change most to shut it down, which the unit therefore answers to."""
    count = len(settings["units"]), len(TASKS) + len(settings["levels"]), settings["images"]
    index = np.arange(math.prod(count)).reshape(count)
    moved = np.abs(arrays["estimate"] - arrays["start"]).sum(axis=(1, 2)).reshape(count)
    return np.stack(
        [of_unit[:, i] for of_unit, i in zip(index, moved[:, 1].argmax(1), strict=True)]
    )


def nearest_picture(
    network: nn.Module,
    arrays: Arrays,
    method: str,
    settings: Settings,
    *,
    title: str,
    count: int = 10,
) -> Image.Image:
    """Images, the nearest image of another class, the difference, and the class's sensitivity."""
    strips = nearest_strips(network, arrays, method, settings, count=count)
    *rows, captions = strips
    names = ("image", "nearest", "difference", "gradient")
    return sheet(dict(zip(names, rows, strict=True)), title=title, columns=captions, scale=3)


def nearest_strips(
    network: nn.Module, arrays: Arrays, method: str, settings: Settings, *, count: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], list[str]]:
    """Original, nearest image, difference and sensitivity (count, 28, 28) each, and captions: of
    the other classes the one that is nearest, and how far it is."""
    estimate, start = arrays["estimate"], arrays["start"]
    value = outputs(
        network, torch.from_numpy(start), method=method, settings=settings, arrays=arrays
    )
    classes = int(arrays["label"].max()) + 1
    own = value.reshape(-1, classes).argmax(dim=1)  # (images,)
    moved = np.sqrt(((estimate - start) ** 2).sum(axis=(1, 2)))
    moved = np.where(arrays["feasible"] == 1, moved, np.inf).reshape(-1, classes)
    moved[np.arange(len(own)), own] = np.inf
    nearest = moved.argmin(axis=1)[:count]
    index = np.arange(len(nearest)) * classes + nearest
    gradient = sensitivity(
        network, torch.from_numpy(estimate), method=method, settings=settings, arrays=arrays
    ).numpy()
    captions = [f"{own[i]} to {j}: {moved[i, j]:.1f}" for i, j in enumerate(nearest.tolist())]
    difference = change(estimate[index] - start[index])
    return start[index], estimate[index], difference, signed(gradient[index]), captions


def preferred_picture(runs: Mapping[str, Run], *, title: str) -> Image.Image:
    """What each class wants, a prior a row."""
    rows = {}
    for _, arrays, _, settings in runs.values():
        weight = settings["prior"]
        name = f"prior {weight:g}" if weight else "no prior"
        if settings["goal"] == "range":
            name = f"decoder, {name}"
        rows[name] = arrays["estimate"]
    labels = [str(label) for label in next(iter(runs.values()))[1]["label"].tolist()]
    return sheet(rows, title=title, columns=labels, scale=3)


def gate_picture(
    network: nn.Module,
    arrays: Arrays,
    method: str,
    settings: Settings,
    *,
    title: str,
    count: int = 10,
) -> Image.Image:
    """Images, changed images, differences, and the gate at each row before and after."""
    index = shown_gates(arrays, count=count)
    rows = gate_strips(network, arrays, index)
    names = ("image", "changed", "difference", "gate before", "gate after")
    captions = [f"unit {arrays['unit'][i]}" for i in index]
    return sheet(dict(zip(names, rows, strict=True)), title=title, columns=captions, scale=3)


def shown_gates(arrays: Arrays, *, count: int) -> NDArray[Any]:
    """Positions of the changed images that are shown: those that moved, a unit after the other."""
    moved = np.abs(arrays["estimate"] - arrays["start"]).max(axis=(1, 2)) > 0
    possible = np.flatnonzero(moved & (arrays["feasible"] == 1))
    if not len(possible):
        return np.arange(min(count, len(moved)))
    units = arrays["unit"][possible]
    # The first of each unit, then the second, ...
    rank = np.array([int((units[:i] == unit).sum()) for i, unit in enumerate(units)])
    return possible[np.lexsort((units, rank))][:count]


def gate_strips(network: nn.Module, arrays: Arrays, index: NDArray[Any]) -> list[NDArray[Any]]:
    """Original, changed, difference, and the forget gates as images whose row t is the gate at
    that row: white is open."""
    start, estimate = arrays["start"][index], arrays["estimate"][index]
    network = copy.deepcopy(network).double()
    unit = torch.from_numpy(arrays["unit"][index])

    def gates(images: NDArray[Any]) -> NDArray[Any]:
        found = network.forget_logits(torch.from_numpy(images)).sigmoid()  # type: ignore[operator]
        rows = found.shape[1]
        of_unit = found.gather(2, unit[:, None, None].expand(-1, rows, 1))
        return of_unit.expand(-1, -1, rows).numpy()

    return [start, estimate, change(estimate - start), gates(start), gates(estimate)]


def affine_chart(runs: Mapping[str, Run]) -> Image.Image:
    """`affine_figure` as a picture."""
    from matplotlib import pyplot

    figure = affine_figure(runs)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    stream.seek(0)
    return Image.open(stream).convert("RGB")


def affine_figure(runs: Mapping[str, Run]) -> "Figure":
    """Inputs by step of each iterative run, the answer dashed; of a linear network also which
    learning rates converge."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    iterative = {name: run for name, run in runs.items() if "trajectory" in run[1]}
    network = next(iter(runs.values()))[0]
    linear = network.activation == "identity"
    panels = len(iterative) + linear
    figure, grid = pyplot.subplots(
        1, max(panels, 1), figsize=(4.4 * max(panels, 1), 3.4), layout="constrained", squeeze=False
    )
    weight, bias = float(network.weight), float(network.bias)  # type: ignore[arg-type]
    for axes, (name, (_, arrays, _, settings)) in zip(grid[0], iterative.items(), strict=False):
        path, wanted = arrays["trajectory"][:, :, 0], arrays["wanted"][:, 0]
        named = len(settings["wanted"])
        for i in range(min(named, path.shape[1])):
            colour = COLOURS[i % len(COLOURS)]
            level = wanted[i] if linear else math.log(wanted[i] / (1 - wanted[i]))
            axes.axhline((level - bias) / weight, color=colour, linestyle="dashed", linewidth=0.8)
            axes.plot(path[:, i], color=colour)
            label, end = f"output {wanted[i]:g}", len(path) - 1
            answer = (level - bias) / weight
            axes.text(end, answer, label, color=colour, ha="right", va="bottom", fontsize=8)
        axes.set(title=name, xlabel="step", ylabel="input")
    if linear:
        axes = grid[0, -1]
        _, arrays, _, settings = next(iter(runs.values()))
        first = float(arrays["wanted"][0, 0])
        answer, limit = (first - bias) / weight, 1 / weight**2
        for share, colour in zip(RATE_SHARES, COLOURS, strict=False):
            x = [settings["start"]]
            for _ in range(40):
                x.append(x[-1] - 2 * share * limit * weight * (weight * x[-1] + bias - first))
            axes.plot(x, color=colour, label=f"{share:g} / w²")
        axes.axhline(answer, color="#777777", linestyle="dashed", linewidth=0.8)
        axes.set(title="learning rates, bound 1 / w²", xlabel="step", ylabel="input")
        axes.legend(frameon=False, fontsize=8)
    return figure


def tracked_pictures(run: Run, *, count: int) -> Iterator[tuple[str, int, Any]]:
    """Bare pictures for MLflow, with key and step: for images the rows start, answer, difference
    and sensitivity (of LSTM gates: the gate after), for regressions the path of the input."""
    network, arrays, method, settings = run
    if method == "affine":
        if len(arrays["estimate"][0]) == 1 and "trajectory" in arrays:
            yield "inputs", 0, np.asarray(affine_chart({"inputs by step": run}))
        return
    if method == "lstm_gate":
        start, estimate, difference, _, gates = gate_strips(
            network, arrays, shown_gates(arrays, count=count)
        )
        yield "inputs", 0, mosaic([start, estimate, difference, gates])
    elif method == "class_target" and settings["goal"] == "nearest":
        yield (
            "inputs",
            0,
            mosaic(nearest_strips(network, arrays, method, settings, count=count)[:4]),
        )
    else:
        gradient = sensitivity(
            network,
            torch.from_numpy(arrays["estimate"]),
            method=method,
            settings=settings,
            arrays=arrays,
        ).numpy()
        index = np.arange(min(count, len(gradient)))  # of units the tasks of the first
        if method == "hidden_unit":
            index = shown_units(arrays, settings)[0, :count]
        start, estimate = arrays["start"][index], arrays["estimate"][index]
        yield (
            "inputs",
            0,
            mosaic([start, estimate, change(estimate - start), signed(gradient[index])]),
        )
