"""What of params.yaml can be checked before anything runs."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from retrace.networks._training import train
from retrace.pipeline.artifacts import made_here
from retrace.pipeline.command import Refusal
from retrace.pipeline.device import chosen
from retrace.pipeline.params import (
    GIVEN,
    NetworkEntry,
    Params,
    ProblemEntry,
    RunEntry,
    bind,
    find,
    parse_yaml,
    shown,
)
from retrace.problems import names, needed, part
from retrace.problems.architectures import objection


def check_place(folder: Path) -> None:
    """Refuse a path of the repository that DVC and MLflow cannot work in, however one writes it."""
    path = str(folder)
    if any("\udc80" <= c <= "\udcff" for c in path):  # Python's stand-ins for other bytes
        raise Refusal(f"the path {path!r:.200} is not UTF-8, as DVC and MLflow want; rename it")
    if "{" in path or "}" in path:  # DVC formats messages that hold the path already
        raise Refusal(f"the path {path!r:.200} holds a brace, which DVC cannot take; rename it")


def check_all(params: Params) -> None:
    """Check every section against the function that it will be handed to; refused on the first
    thing that is wrong."""
    chosen(params.device)
    check_entries(params)


def check_entries(params: Params) -> None:
    """`check_all`, but for what depends on the machine."""
    check_networks(params.networks)
    check_problems(params)
    check_runs(params)


def check_problems(params: Params) -> dict[str, ProblemEntry]:
    """Check the sections of problems, and that each has a run and the networks that it needs; give
    them with the values that they leave to defaults."""
    whole = {}
    for name, entry in params.problems.items():
        if name not in names():
            raise Refusal(f"params.yaml: problems.{name}: allowed are {', '.join(names())}")
        observe = part(name, "observe").observe
        settings = bind(observe, entry.settings, where=f"problems.{name}.settings")
        whole[name] = entry.model_copy(update={"settings": settings})
        if not any(run.problem == name for run in params.runs.values()):
            raise Refusal(f"params.yaml: problems.{name}: no run is of this problem; leave it out")
        if lacking := needed(name, entry.source) - params.networks.keys():
            raise Refusal(f"params.yaml: problems.{name} needs the network {min(lacking)}")
    return whole


def check_networks(networks: Mapping[str, NetworkEntry]) -> dict[str, NetworkEntry]:
    """Check the sections of networks against what their constructors and training take; give them
    with the values that they leave to defaults."""
    whole = {}
    for name, network in networks.items():
        where = f"networks.{name}"
        module = find("networks", network.architecture, where=f"{where}.architecture")
        arguments = bind(module.Network.__init__, network.arguments, where=f"{where}.arguments")
        fit = getattr(module.Network, "fit", train)
        given = () if fit is not train else ("progress",)
        training = bind(fit, network.training, where=f"{where}.training", given=given)
        whole[name] = network.model_copy(update={"arguments": arguments, "training": training})
    return whole


def check_runs(params: Params) -> dict[str, RunEntry]:
    """Check the sections of runs, and that the networks that they name are there and of an
    architecture that the method can work with; give them with the values that they leave to
    defaults."""
    whole = {}
    for name, entry in params.runs.items():
        where = f"runs.{name}"
        sections: dict[str, Mapping[str, object]]
        sections = {"problem": params.problems, "network": params.networks}
        for key, known in sections.items():
            if (value := getattr(entry, key)) not in known:
                raise Refusal(
                    f"params.yaml: {where}.{key} = {shown(value)}: allowed are {', '.join(known)}"
                )
        module = find(f"methods.{entry.problem}", entry.method, where=f"{where}.method")
        settings = bind(module.reconstruct, entry.settings, where=f"{where}.settings", given=GIVEN)
        architecture = params.networks[entry.network].architecture
        if wrong := objection(entry.problem, entry.method, architecture):
            raise Refusal(f"params.yaml: {where}.network = {shown(entry.network)}: {wrong}")
        whole[name] = entry.model_copy(update={"settings": settings})
    return whole


def remove_left_over(params: Params, lock: Path = Path("dvc.lock")) -> None:
    """Remove what dvc.lock says was made for networks, problems and runs that params.yaml has no
    more.

    Whole folders of checkpoints and reconstructions are dependencies of scores: with these files
    in them, they are not what a clone has. DVC's cache, or Git, still holds them.
    """
    if not lock.exists():
        return
    stages = (parse_yaml(lock.read_bytes(), name=str(lock)) or {}).get("stages", {})
    known = {f"train@{name}" for name in params.networks}
    known |= {f"{kind}@{name}" for kind in ("observe", "score") for name in params.problems}
    known |= {f"reconstruct@{name}" for name in params.runs}
    made = [
        Path(out["path"])
        for name, stage in stages.items()
        if "@" in name and name not in known
        for out in stage.get("outs", [])
    ]
    kept = {Path(out["path"]) for name in known & stages.keys() for out in stages[name]["outs"]}
    for path in made:
        # Whatever dvc.lock says, nothing else is removed.
        if made_here(path) and path.exists() and path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            print(f"{path} belongs to nothing in params.yaml any more and was removed")
