"""Inputs for wanted outputs: closed forms against gradients, scipy and linear programming."""

from typing import Any

import numpy as np
import pytest
import torch
from inversions import AFFINE, NOTHING, fitted, scored
from scipy.optimize import LinearConstraint, linprog, minimize
from torch import Tensor

from retrace.methods.network_inversion import (
    _nearest,
    affine,
    class_target,
    hidden_unit,
    lstm_gate,
)
from retrace.methods.network_inversion._nearest import (
    AT_LEAST,
    AT_MOST,
    DISPROVED,
    EQUAL,
    PROVED,
    UNKNOWN,
    nearest,
    violation,
)
from retrace.networks import classifier, lstm, margin, vae
from retrace.pipeline.command import Refusal
from retrace.pipeline.params import GIVEN, bind, find
from retrace.problems.network_inversion import score as network_inversion
from retrace.types import BadInput

pytestmark = pytest.mark.numerical

PROBLEMS = 1000  # small random ones

UNITS: dict[str, Any] = {
    "layer": "layers.0",
    "units": [0, 3],
    "images": 4,
    "levels": [0.5, 1e6],
    "solver": "exact",
    "steps": 40,
}
GATE: dict[str, Any] = {
    "change": "row",
    "units": [1, 4],
    "row": 9,
    "images": 6,
    "gate": 0.01,
    "sharpness": 5.0,
    "steps": 30,
}
CLASS: dict[str, Any] = {
    "goal": "nearest",
    "images": 3,
    "probability": 0.4,
    "prior": 0.0,
    "steps": 30,
}


@pytest.fixture(scope="module")
def logistic() -> Any:
    return fitted(activation="sigmoid", slope=0.02, offset=-10.0)


@pytest.fixture(scope="module")
def several() -> Any:
    """12 inputs, 8 outputs, of which 6 directions can be reached."""
    return fitted(12, 8, span=1.0, slope=1.0, offset=0.5, rank=6)


@pytest.fixture(scope="module")
def dense() -> margin.Network:
    torch.manual_seed(0)
    network = margin.Network(shape=[28, 28], widths=[6, 5], first_deviation=0.05)
    network.mean.fill_(0.1)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def judge() -> classifier.Network:
    torch.manual_seed(0)
    network = classifier.Network(channels=[4, 4], hidden=16, dropout=0.0, classes=10)
    with torch.no_grad():  # as sure of itself as after training
        network.layers[-1].weight.mul_(30)  # type: ignore[operator]
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def reader() -> lstm.Network:
    torch.manual_seed(0)
    network = lstm.Network(hidden=8, classes=10)
    with torch.no_grad():  # as large as after training
        for parameter in network.lstm.parameters():
            parameter.mul_(2)
    return network.eval().requires_grad_(False)


# Regressions


def test_the_published_regression_gives_the_published_kind_of_value() -> None:
    """y = 0.4 x - 50 u has the mean 0.4 x - 25, which is 100 at 312.5."""
    exact = affine.reconstruct(fitted(), NOTHING, **AFFINE)
    assert exact["estimate"].item() == pytest.approx(312.5, rel=1e-9)
    noisy = fitted(noise=50.0)
    weight, bias = noisy.weight.item(), noisy.bias.item()
    found = affine.reconstruct(noisy, NOTHING, **AFFINE)
    assert found["estimate"].item() == pytest.approx((100 - bias) / weight, rel=1e-9)
    assert found["estimate"].item() == pytest.approx(312.5, rel=0.05)
    assert found["trajectory"].shape == (201, 1, 1) and found["trajectory"][0].item() == 1


@pytest.mark.parametrize("solver", ["gradient", "closed_form", "gauss_newton"])
def test_every_solver_reaches_every_target(solver: str, logistic: Any, several: Any) -> None:
    rate = 0.5 * affine.bound(several.weight, targets=None)
    cases: list[tuple[Any, dict[str, Any]]] = [
        (fitted(), {"wanted": [-20.0, 370.0], "learning_rate": 0.5}),
        (logistic, {"wanted": [0.01, 0.99], "start": 900.0, "learning_rate": 800.0}),
        (several, {"wanted": [[-1.0, 2.0] * 4], "learning_rate": rate, "steps": 3000}),
    ]
    for network, changes in cases:
        settings = {**AFFINE, **changes, "more": 50, "solver": solver, "loss": "logit"}
        answer = affine.reconstruct(network, NOTHING, **settings)
        scores = scored(network, answer, "affine", settings)
        assert scores["reached"] == 1 and scores["relative_error_max"] < 1e-6
        assert scores["contradicted"] == 0


def test_the_closed_form_is_the_nearest_input_and_agrees_with_the_gradient(several: Any) -> None:
    settings = {**AFFINE, "wanted": [[-1.0, 2.0] * 4], "more": 20, "start": 0.5}
    closed = affine.reconstruct(several, NOTHING, **{**settings, "solver": "closed_form"})
    rate = 0.9 * affine.bound(several.weight, targets=None)
    settings |= {"learning_rate": rate, "steps": 5000}
    # From the same start descent moves in the row space of W only: it ends at the nearest input.
    descended = affine.reconstruct(several, NOTHING, **settings)
    feasible = closed["feasible"] == PROVED
    assert 0 < feasible.sum() < len(feasible)
    torch.testing.assert_close(
        closed["estimate"][feasible], descended["estimate"][feasible], rtol=0, atol=1e-8
    )
    target = closed["wanted"][feasible][0].numpy()
    weight, bias = several.weight.numpy(), several.bias.numpy()
    expected = 0.5 + np.linalg.lstsq(weight, target - bias - weight @ np.full(12, 0.5), 1e-10)[0]
    np.testing.assert_allclose(closed["estimate"][feasible][0].numpy(), expected, atol=1e-10)


def test_unreachable_outputs_are_told(several: Any) -> None:
    settings = {**AFFINE, "wanted": [[-1.0, 2.0] * 4], "more": 40, "solver": "closed_form"}
    answer = affine.reconstruct(several, NOTHING, **settings)
    error = (several(answer["estimate"]) - answer["wanted"]).abs().amax(dim=1)
    assert ((error < 1e-9) == (answer["feasible"] == PROVED)).all()
    assert ((error > 1e-3) == (answer["feasible"] == DISPROVED)).all()


def test_a_saturated_sigmoid_stops_the_plain_loss_and_no_other(logistic: Any) -> None:
    settings = {**AFFINE, "wanted": [0.1, 0.5, 0.9], "start": 2000.0, "learning_rate": 800.0}
    reached = {}
    for solver, loss in (("gradient", "output"), ("gradient", "logit"), ("gauss_newton", "output")):
        chosen = {**settings, "solver": solver, "loss": loss}
        answer = affine.reconstruct(logistic, NOTHING, **chosen)
        reached[solver, loss] = scored(logistic, answer, "affine", chosen)["reached"]
    assert list(reached.values()) == [0, 1, 1]


def test_the_bound_on_the_learning_rate_is_sharp() -> None:
    network = fitted()
    limit = 1 / 0.4**2
    assert affine.bound(network.weight, targets=None) == pytest.approx(limit, rel=1e-9)
    near = {**AFFINE, "learning_rate": 0.999 * limit, "steps": 10000}
    answer = affine.reconstruct(network, NOTHING, **near)
    assert answer["estimate"].item() == pytest.approx(312.5, rel=1e-6)
    with pytest.raises(BadInput, match=r"= 6\.3 diverges: it has to be below 6\.25 \(1/σ²"):
        affine.reconstruct(network, NOTHING, **{**AFFINE, "learning_rate": 6.3})


def test_the_bound_of_a_sigmoid_is_where_its_solution_no_longer_attracts(logistic: Any) -> None:
    target = torch.tensor([[0.5]], dtype=torch.float64)
    limit = affine.bound(logistic.weight, targets=target)
    settings = {**AFFINE, "wanted": [0.5], "start": 501.0, "steps": 20000}
    inside = affine.reconstruct(logistic, NOTHING, **{**settings, "learning_rate": 0.99 * limit})
    assert inside["estimate"].item() == pytest.approx(500, rel=1e-6)
    with pytest.raises(BadInput, match="diverges: it has to be below"):
        affine.reconstruct(logistic, NOTHING, **{**settings, "learning_rate": 1.01 * limit})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wanted": [[1.0, 2.0]]}, r"wanted\[0\] has 2 values; the network has 1 outputs"),
        ({"wanted": [float("nan")]}, "a target is not finite"),
        ({"wanted": [float("inf")]}, "a target is not finite"),
    ],
)
def test_targets_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as refusal:
        affine.reconstruct(fitted(), NOTHING, **{**AFFINE, **changes})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("target", [1.0, 1.5, 0.0, -0.2])
def test_targets_outside_a_sigmoid_are_refused(target: float, logistic: Any) -> None:
    with pytest.raises(BadInput, match="cannot be reached: a sigmoid's outputs lie between"):
        affine.reconstruct(logistic, NOTHING, **{**AFFINE, "wanted": [target]})


# Nearest points


def random_problem(random: np.random.Generator) -> tuple[Any, Any, float, float, int]:
    """Start, weights (some 0), bias, wanted value and relation."""
    n = int(random.integers(1, 7))
    weight = random.normal(size=n) * (random.random(n) < 0.9)
    start = 1.4 * random.random(n) - 0.2
    relation = int(random.integers(AT_MOST, AT_LEAST + 1))
    return start, weight, random.normal(), 1.5 * random.normal(), relation


def solved(problem: tuple[Any, Any, float, float, int], *, box: bool) -> tuple[Any, bool]:
    start, weight, bias, value, relation = problem
    answer = nearest(
        torch.from_numpy(start[None]),
        torch.from_numpy(weight[None]),
        torch.tensor([bias], dtype=torch.float64),
        wanted=torch.tensor([value], dtype=torch.float64),
        relation=torch.tensor([relation]),
        box=box,
    )
    return answer.point[0].numpy(), bool(answer.feasible[0])


def test_feasibility_is_that_of_linear_programming() -> None:
    random = np.random.default_rng(0)
    verdicts = []
    for _ in range(PROBLEMS):
        problem = random_problem(random)
        start, weight, bias, value, relation = problem
        sides = {"A_eq": [weight], "b_eq": [value - bias]}
        if relation:
            sides = {"A_ub": [-relation * weight], "b_ub": [-relation * (value - bias)]}
        expected = linprog(np.zeros(len(start)), bounds=[(0, 1)] * len(start), **sides).status == 0
        point, feasible = solved(problem, box=True)
        assert feasible == expected, problem
        verdicts.append(feasible)
        if feasible:
            error = violation(
                torch.tensor([weight @ point + bias]),
                torch.tensor([value], dtype=torch.float64),
                torch.tensor([relation]),
            )
            assert error.item() < 1e-12 and point.min() >= 0 and point.max() <= 1
        else:
            np.testing.assert_array_equal(point, start)
    assert 0.2 < np.mean(verdicts) < 0.9


@pytest.mark.parametrize("box", [True, False])
def test_nearest_points_are_those_of_scipy(box: bool) -> None:
    random = np.random.default_rng(1)
    compared = 0
    for _ in range(60):
        problem = random_problem(random)
        start, weight, bias, value, relation = problem
        point, feasible = solved(problem, box=box)
        if not feasible or not weight.any():
            continue
        low = -np.inf if relation == AT_MOST else value - bias
        high = np.inf if relation == AT_LEAST else value - bias
        expected = minimize(
            lambda x, start=start: ((x - start) ** 2).sum(),
            start.clip(0, 1),
            jac=lambda x, start=start: 2 * (x - start),
            bounds=[(0, 1)] * len(start) if box else None,
            constraints=[LinearConstraint(weight[None], low, high)],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 300},
        )
        if not expected.success:
            continue
        ours = ((point - start) ** 2).sum()
        assert ours <= expected.fun + 1e-7
        np.testing.assert_allclose(point, expected.x, atol=1e-4)
        compared += 1
    assert compared > 25


def test_the_ends_of_the_range_are_reached_and_a_hair_beyond_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    start = torch.rand(50, 40, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(50, dtype=torch.float64)
    low, high = weight.clamp(max=0).sum(dim=1), weight.clamp(min=0).sum(dim=1)
    equal = torch.full((50,), EQUAL)
    for wanted, possible in ((low, True), (high, True), (high + 1e-9, False), (low - 1e-9, False)):
        answer = nearest(start, weight, nothing, wanted=wanted, relation=equal, box=True)
        assert (answer.feasible == possible).all()
        if possible:
            reached = (answer.point * weight).sum(dim=1)
            torch.testing.assert_close(reached, wanted, rtol=1e-12, atol=0)


def test_one_batch_is_the_same_as_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 9, generator=generator, dtype=torch.float64)
    start = torch.rand(20, 9, generator=generator, dtype=torch.float64)
    wanted = torch.linspace(-2, 2, 20, dtype=torch.float64)
    bias, relation = torch.zeros_like(wanted), torch.arange(20) % 3 - 1
    whole = nearest(start, weight, bias, wanted=wanted, relation=relation, box=True).point
    for i in range(20):
        one = slice(i, i + 1)
        alone = nearest(
            start[one], weight[one], bias[one], wanted=wanted[one], relation=relation[one], box=True
        )
        torch.testing.assert_close(alone.point[0], whole[i], rtol=0, atol=1e-14)


# Hidden units


def test_first_layer_units_are_reached_exactly(dense: margin.Network, images: Tensor) -> None:
    answer = hidden_unit.reconstruct(dense, images[:9], **UNITS)
    scores = scored(dense, answer, "hidden_unit", UNITS)
    assert scores["reached"] == 1 and scores["relative_error_max"] < 1e-9
    assert scores["infeasible"] == 8 and scores["contradicted"] == 0  # the level 1e6
    assert scores["outside_max"] == 0
    task, unit = answer["task"], answer["unit"]
    weight, bias = (dense.get_parameter(f"layers.0.{k}").double() for k in ("weight", "bias"))
    values = (answer["estimate"].flatten(1) - dense.mean.double()) @ weight.T + bias
    values = values.gather(1, unit[:, None]).squeeze(1)
    assert (values[task == 1] <= 1e-12).all()
    torch.testing.assert_close(values[task == 2], torch.full((8,), 0.5, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    others = torch.rand(1000, 784, generator=generator).double().round() - dense.mean.double()
    highest = (others @ weight.T + bias).amax(dim=0)
    assert (values[task == 0] > highest[unit[task == 0]]).all()


def test_the_gradient_finds_what_the_closed_form_gives(
    dense: margin.Network, images: Tensor
) -> None:
    settings = {**UNITS, "levels": [0.5]}
    exact = hidden_unit.reconstruct(dense, images[:9], **settings)
    settings["solver"] = "gradient"
    found = hidden_unit.reconstruct(dense, images[:9], **settings)
    torch.testing.assert_close(found["estimate"], exact["estimate"], rtol=0, atol=1e-6)


def test_deeper_units_are_reached_near_the_image(judge: Any, images: Tensor) -> None:
    settings = {**UNITS, "layer": "layers.7", "levels": [0.3], "solver": "gradient"}
    answer = hidden_unit.reconstruct(judge, images[:9], **settings)
    scores = scored(judge, answer, "hidden_unit", settings)
    assert scores["reached"] == 1 and scores["without_target"] == 8 and scores["raised_mean"] > 0
    assert (answer["feasible"][answer["task"] > 0] == PROVED).all()
    assert (answer["feasible"][answer["task"] == 0] == UNKNOWN).all()
    moved = (answer["estimate"] - answer["start"]).flatten(1).norm(dim=1)
    assert moved[answer["task"] > 0].max() < moved[answer["task"] == 0].min()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": [6]}, r"units: 6 is none of the 6 units of layers\.0"),
        ({"layer": "layers.9"}, r"'layers\.9': the network's layers are layers\.0, layers\.1"),
        ({"levels": [float("nan")]}, "a level is not finite"),
        ({"images": 10}, "images = 10: 9 are observed"),
        ({"layer": "layers.1"}, "'exact': these units are not affine in the image"),
    ],
)
def test_units_that_do_not_exist_are_refused(
    changes: dict[str, Any], message: str, dense: margin.Network, images: Tensor
) -> None:
    with pytest.raises(BadInput, match=message) as refusal:
        hidden_unit.reconstruct(dense, images[:9], **{**UNITS, **changes})
    assert "\n" not in str(refusal.value)


def test_sensitivity_is_the_slope_of_the_unit(dense: margin.Network, images: Tensor) -> None:
    answer = hidden_unit.reconstruct(dense, images[:9], **UNITS)
    arrays = {key: value.numpy() for key, value in answer.items()}
    run = network_inversion.Inversion(dense, arrays, "hidden_unit", UNITS)
    rows = dense.get_parameter("layers.0.weight").double()[answer["unit"]]
    expected = rows.unflatten(1, (28, 28))
    torch.testing.assert_close(run.sensitivity(), expected)


def test_breakpoints_and_newtons_method_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    start, weight = torch.randn(2, 200, 40, generator=generator, dtype=torch.float64)
    weight[:, :5] = 0  # pixels that the output does not see
    low, high = _nearest.box_range(weight, torch.zeros(200, dtype=torch.float64))
    share = torch.linspace(0, 1, 200, dtype=torch.float64)  # both ends of the range too
    given: dict[str, Any] = {
        "wanted": torch.lerp(low, high, share),
        "relation": torch.full((200,), EQUAL),
        "box": True,
    }
    points = []
    for steps in (40, 1):  # with one step, Newton's method leaves nearly all to the breakpoints
        monkeypatch.setattr(_nearest, "STEPS", steps)
        found = nearest(start, weight, torch.zeros(200, dtype=torch.float64), **given)
        assert found.feasible.all()
        points.append(found.point)
    torch.testing.assert_close(*points, rtol=0, atol=1e-12)


# Classes


def test_the_nearest_image_of_a_class_has_its_probability(judge: Any, images: Tensor) -> None:
    answer = class_target.reconstruct(judge, images[:9], **CLASS)
    scores = scored(judge, answer, "class_target", CLASS)
    # Of an untrained network not every class can be had; what is said of each is so.
    assert scores["n"] == 30 and scores["reached"] > 0.5 and scores["outside_max"] == 0
    found = judge.double()(answer["estimate"]).softmax(dim=1)
    reached = found[torch.arange(30), answer["label"]] >= 0.4 - 1e-6
    assert (reached == (answer["feasible"] == PROVED)).all()
    judge.float()


def test_a_prior_takes_variation_out_of_what_a_class_wants(judge: Any, images: Tensor) -> None:
    variation = []
    for prior in (0.0, 0.01):
        settings = {**CLASS, "goal": "preferred", "prior": prior}
        answer = class_target.reconstruct(judge, images[:9], **settings)
        estimate = answer["estimate"]
        variation.append(sum(estimate.diff(dim=axis).abs().mean() for axis in (1, 2)))
    assert variation[1] < 0.5 * variation[0]


def test_what_a_class_wants_in_the_range_of_a_decoder_is_in_that_range(
    judge: Any, images: Tensor
) -> None:
    torch.manual_seed(0)
    decoder = vae.Network(code_size=3, widths=[16, 8])
    weights = decoder.decoder_weights()
    beside = {f"decoder_{i}": weight for i, weight in enumerate(weights)}
    settings = {**CLASS, "goal": "range"}
    for without_code in (None, beside):
        with pytest.raises(BadInput, match="goal = 'range': no decoder was observed"):
            class_target.reconstruct(judge, images[:9], **settings, beside=without_code)
    code = torch.tensor([0.3, -0.2, 0.1])
    answer = class_target.reconstruct(
        judge, images[:9], **settings, beside={**beside, "code": code}
    )
    start = decoder.double().decode(code[None].double()).detach()
    torch.testing.assert_close(answer["start"], start.expand(10, -1, -1))
    # Layer by layer back to a code, and no image is without one.
    logits = answer["estimate"].flatten(1).logit()
    hidden = torch.linalg.lstsq(weights[2].double(), logits.T).solution
    hidden = torch.linalg.lstsq(weights[1].double(), hidden.atanh()).solution
    codes = torch.linalg.lstsq(weights[0].double(), hidden.atanh()).solution.T
    torch.testing.assert_close(decoder.decode(codes), answer["estimate"])
    # Each class has more of its own probability than the start gave it.
    before, after = (judge.double()(answer[key]).softmax(dim=1) for key in ("start", "estimate"))
    label = answer["label"][:, None]
    assert (after.gather(1, label) > before.gather(1, label)).all()
    judge.float()


# LSTM


def test_a_row_closes_the_gate_or_none_does(reader: lstm.Network, images: Tensor) -> None:
    answer = lstm_gate.reconstruct(reader, images[:9], **GATE)
    scores = scored(reader, answer, "lstm_gate", GATE)
    assert scores["contradicted"] == 0 and scores["infeasible"] > 0
    assert scores["reached"] == 1 and scores["relative_error_max"] < 1e-9
    moved = (answer["estimate"] != answer["start"]).any(dim=2)
    assert not moved[:, torch.arange(28) != 9].any() and moved[:, 9].any()
    # Every row of zeros and ones that the sign of the weights could want leaves the gate open.
    on_row = reader.forget_parts()[0].double()[answer["unit"]]
    best = answer["start"].clone()
    best[:, 9] = (on_row < 0).double()
    network = reader.double()
    gates = network.forget_logits(best).sigmoid()[:, 9].gather(1, answer["unit"][:, None])
    assert ((gates.squeeze(1) > 0.01) == (answer["feasible"] == DISPROVED)).all()
    reader.float()


def test_an_image_keeps_the_gate_closed(reader: lstm.Network, images: Tensor) -> None:
    settings = {**GATE, "change": "image", "gate": 0.5}
    answer = lstm_gate.reconstruct(reader, images[:9], **settings)
    scores = scored(reader, answer, "lstm_gate", settings)
    assert scores["reached"] > 0.5 and scores["contradicted"] == 0
    reached = answer["feasible"] == PROVED
    network = reader.double()
    gates = network.forget_logits(answer["estimate"][reached]).sigmoid()[:, 9:]
    largest = gates.amax(dim=1).gather(1, answer["unit"][reached][:, None])
    assert (largest <= 0.5 + 1e-6).all()
    reader.float()


def test_a_gate_that_does_not_exist_is_refused(reader: lstm.Network, images: Tensor) -> None:
    with pytest.raises(BadInput, match="units: 8 is none of the 8 units of the LSTM"):
        lstm_gate.reconstruct(reader, images[:9], **{**GATE, "units": [8]})


# Defaults


def test_every_method_works_with_its_defaults(
    several: Any, judge: Any, reader: lstm.Network, images: Tensor
) -> None:
    x = images[:2]
    target = several(torch.full((1, 12), 0.3)).tolist()
    wanted: dict[Any, tuple[Any, dict[str, Any]]] = {
        affine: (several, {"wanted": target}),
        hidden_unit: (judge, {"layer": "layers.7", "units": [0], "levels": [0.3]}),
        class_target: (judge, {}),
        lstm_gate: (reader, {"units": [1]}),
    }
    for method, (network, compulsory) in wanted.items():
        answer = method.reconstruct(network, x, **compulsory)
        assert answer["estimate"].isfinite().all()
        assert (answer["feasible"] == PROVED).any()


@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
def test_a_learning_rate_that_is_left_out_converges(activation: str) -> None:
    network = fitted(activation=activation, slope=0.02, offset=-10.0)
    answer = affine.reconstruct(
        network, NOTHING, wanted=[0.2, 0.5, 0.8], start=500.0, solver="gradient", steps=2000
    )
    torch.testing.assert_close(network(answer["estimate"]), answer["wanted"])


# Answers and settings


def test_the_answer_says_how_its_outputs_are_measured(
    dense: margin.Network, judge: classifier.Network, images: Tensor
) -> None:
    """Whatever the method is called; refused where that says too little."""
    settings = {**UNITS, "images": 9}
    unit = hidden_unit.reconstruct(dense, images[:9], **settings)
    assert scored(dense, unit, "mine", settings) == scored(dense, unit, "hidden_unit", settings)
    label = class_target.reconstruct(judge, images[:3], **CLASS)
    assert scored(judge, label, "mine", CLASS) == scored(judge, label, "class_target", CLASS)
    with pytest.raises(Refusal, match="mine names units, and neither the setting layer nor row"):
        scored(dense, unit, "mine", {})
    without = {key: value for key, value in label.items() if key != "label"}
    with pytest.raises(Refusal, match="1 values are wanted of each input, 10 come out"):
        scored(judge, without, "mine", {})


@pytest.mark.parametrize("goal", ["nearest", "preferred"])
def test_settings_are_the_schema(goal: str) -> None:
    method = find("methods.network_inversion", "class_target", where="").reconstruct
    good = {**CLASS, "goal": goal}
    assert bind(method, good, where="s", given=GIVEN) == {**good, "learning_rate": 0.05}
    with pytest.raises(Refusal, match=r"s\.probability = 1\.0: input should be less than 1"):
        bind(method, {**good, "probability": 1.0}, where="s", given=GIVEN)
