"""Refuse a wrong params.yaml before anything runs; every other stage comes after this one."""

from collections.abc import Mapping
from pathlib import Path

from stages.artifacts import written_whole
from stages.command import Refusal, run
from stages.device import chosen
from stages.params import GIVEN, NetworkEntry, Params, bind, find, load, shown
from stages.train import train
from stages.trials import sweep_of


def check_place(folder: Path) -> None:
    """Check that the path of the repository is one that DVC and MLflow can work in: any but a few.

    Raises
    ------
    Refusal
        Where they cannot, however one writes it.
    """
    path = str(folder)
    if any("\udc80" <= c <= "\udcff" for c in path):  # Python's stand-ins for other bytes
        raise Refusal(f"the path {path!r:.200} is not UTF-8, as DVC and MLflow want; rename it")
    if "{" in path or "}" in path:  # DVC formats messages that hold the path already
        raise Refusal(f"the path {path!r:.200} holds a brace, which DVC cannot take; rename it")


def check_all(params: Params) -> None:
    """Check every section against the function that it will be handed to.

    Raises
    ------
    Refusal
        On the first thing that is wrong.
    """
    chosen(params.device)
    check_networks(params.networks)
    check_runs(params)


def check_networks(networks: Mapping[str, NetworkEntry]) -> None:
    """Check the sections of networks against what their constructors and training take."""
    for name, network in networks.items():
        where = f"networks.{name}"
        module = find("networks", network.architecture, where=f"{where}.architecture")
        bind(module.Network.__init__, network.arguments, where=f"{where}.arguments")
        fit = getattr(module.Network, "fit", train)
        given = () if fit is not train else ("progress",)
        bind(fit, network.training, where=f"{where}.training", given=given)


def check_runs(params: Params) -> None:
    """Check the sections of runs, and that the networks that they name are there."""
    problems = sorted(
        folder.name for folder in Path(__file__).parent.joinpath("methods").glob("[!_]*/")
    )
    for name, entry in params.runs.items():
        where = f"runs.{name}"
        if entry.problem not in problems:
            allowed = ", ".join(problems)
            raise Refusal(
                f"params.yaml: {where}.problem = {shown(entry.problem)}: allowed are {allowed}"
            )
        if entry.network not in params.networks:
            allowed = ", ".join(params.networks)
            raise Refusal(
                f"params.yaml: {where}.network = {shown(entry.network)}: allowed are {allowed}"
            )
        module = find(f"methods.{entry.problem}", entry.method, where=f"{where}.method")
        bind(module.reconstruct, entry.settings, where=f"{where}.settings", given=GIVEN)


def check_sweeps(params: Params) -> None:
    """Check every trial of every sweep as params.yaml itself; of sections that are alike, one.

    Raises
    ------
    Refusal
        On the first thing that is wrong.
    """
    for name in params.sweeps:
        seen: list[object] = []
        for number, trial in enumerate(sweep_of(params, name).trials):
            networks = {k: v for k, v in trial.params.networks.items() if v not in seen}
            seen += networks.values()
            # The names of networks are looked up, their sections need no second look.
            entries = trial.params.model_copy(update={"sweeps": {}})
            try:
                check_networks(networks)
                check_runs(entries)
            except Refusal as refusal:
                reason = str(refusal).removeprefix("params.yaml: ")
                raise Refusal(f"params.yaml: sweeps.{name}, trial {number}: {reason}") from None


def main() -> None:
    """Check params.yaml as a whole, and the path of the repository, before anything runs."""
    check_place(Path.cwd())
    params = load()
    check_all(params)
    check_sweeps(params)
    # The same bytes whatever the parameters are, so that no later stage reruns for it.
    with written_whole(Path("data/checked")) as temporary:
        temporary.write_text("params.yaml was checked\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
