"""The whole pipeline on scikit-learn's digits, offline, in a folder of its own."""

import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from dvc.utils.serialize import dumps_yaml
from pydantic import Field, ValidationError

from retrace.checks import check_entries, check_place
from retrace.commands.run import reproduce
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import PARAMS, Params, Part, load, read_yaml, refuse, shown

FOLDER = Path("demo")
COPIED = ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/plots", "retrace", "stages")
CHANGES = Path("demo.yaml")
# Over .dvc/config. Git ignores the folder, so that DVC must not ask Git. A cache of its own, since
# `dvc gc` deletes from a cache all that its own workspace does not name.
CONFIG = "[core]\n    no_scm = true\n[cache]\n    dir = cache\n"


class Demo(Part):
    """demo.yaml: of some sections of params.yaml the entries that are kept, and what is changed."""

    keep: dict[Literal["networks", "problems", "runs"], list[str]] = Field({})
    change: dict[str, Any] = Field({})


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Take `changes` over `base`, key by key into nested dictionaries."""
    result = dict(base)
    for key, value in changes.items():
        known = base.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            result[key] = merged(known, value)
        else:
            result[key] = value
    return result


def reason(error: Refusal | ValidationError) -> str:
    """What is wrong, without the file's name."""
    refusal = refuse(error, where="") if isinstance(error, ValidationError) else error
    return str(refusal).removeprefix(f"{PARAMS}: ")


def params_of(base: dict[str, Any], demo: Any) -> dict[str, Any]:
    """params.yaml of the demo: of some sections the entries that it keeps, and what it changes;
    refused where demo.yaml is none, or names an entry that is not there or not kept."""
    if not isinstance(demo, dict):
        raise Refusal(f"{CHANGES} holds {shown(demo)}; the sections keep and change are needed")
    try:
        given = Demo.model_validate(demo)
    except ValidationError as error:
        raise Refusal(f"{CHANGES}: {reason(error)}") from None
    kept: dict[str, Any] = {}
    for section, names in given.keep.items():
        known, changes = base.get(section, {}), given.change.get(section)
        if missing := [name for name in names if name not in known]:
            raise Refusal(f"{CHANGES}: keep.{section}: {PARAMS} has no {missing[0]} any more")
        for name in changes if isinstance(changes, dict) else ():
            if name in known and name not in names:
                raise Refusal(f"{CHANGES}: change.{section}.{name}: keep.{section} lacks it")
        kept[section] = {name: known[name] for name in names}
    return merged({**base, **kept, "sweeps": {}}, given.change)


def read_params() -> dict[str, Any]:
    """params.yaml of the demo, from the files here; refused where it would be no valid one."""
    check_entries(load())  # what is wrong there is no fault of demo.yaml
    params = params_of(read_yaml(PARAMS), read_yaml(CHANGES))
    try:
        check_entries(Params.model_validate(params))
    except (Refusal, ValidationError) as error:
        raise Refusal(f"{CHANGES}: in what it makes of {PARAMS}, {reason(error)}") from None
    return params


def prepare(folder: Path) -> None:
    """Lay out a workspace: the code, dvc.yaml and changed parameters, with a cache of its own.

    What a former demo made stays, so that a second one has nothing to do.
    """
    text = dumps_yaml(read_params())
    for name in COPIED:
        source, target = Path(name), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    (folder / PARAMS).write_text(text, encoding="utf-8")
    (folder / ".dvc" / "config.local").write_text(CONFIG, encoding="utf-8")


def main() -> None:
    """Run the pipeline on scikit-learn's digits in demo/, print its results and where to look."""
    check_place(Path.cwd())
    prepare(FOLDER)
    try:
        reproduce(FOLDER)
    except Refusal as refusal:
        raise Refusal(
            f"{refusal}; the files of the demo are in {FOLDER}/, your own are untouched"
        ) from None
    sys.stdout.write("\n" + (FOLDER / "metrics/report/table.md").read_text(encoding="utf-8"))
    print(
        f"""
These are scikit-learn's digits (8 x 8, resized), not MNIST. Where to look next:
  {(FOLDER / "metrics/report.html").resolve().as_uri()}
  retrace ui --store {FOLDER}     compare the runs in the MLflow UI
  make run                  the real thing: the same on MNIST
params.yaml, dvc.lock and everything else outside {FOLDER}/ are as they were."""
    )


if __name__ == "__main__":
    run(main)
