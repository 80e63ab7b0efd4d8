"""Refuse a wrong params.yaml before anything runs; every other stage comes after this one."""

from pathlib import Path

from stages.artifacts import written_whole
from stages.command import Refusal, run
from stages.params import GIVEN, Params, bind, find, load, shown
from stages.train import train


def check_all(params: Params) -> None:
    """Check every section against the function that it will be handed to.

    Raises
    ------
    Refusal
        On the first thing that is wrong.
    """
    for name, network in params.networks.items():
        where = f"networks.{name}"
        module = find("networks", network.architecture, where=f"{where}.architecture")
        bind(module.Network.__init__, network.arguments, where=f"{where}.arguments")
        fit = getattr(module.Network, "fit", train)
        given = () if fit is not train else ("progress",)
        bind(fit, network.training, where=f"{where}.training", given=given)
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


def main() -> None:
    """Check params.yaml as a whole, before anything runs."""
    check_all(load())
    # The same bytes whatever the parameters are, so that no later stage reruns for it.
    with written_whole(Path("data/checked")) as temporary:
        temporary.write_text("params.yaml was checked\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
