"""The whole pipeline on scikit-learn's digits, offline, in a folder of its own."""

import shutil
import sys
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dumps_yaml

from retrace.checks import check_place
from retrace.commands.run import reproduce
from retrace.pipeline.command import Refusal, run
from retrace.pipeline.params import PARAMS, read_yaml

FOLDER = Path("demo")
COPIED = ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/plots", "retrace", "stages")
CHANGES = Path("demo.yaml")
# Over .dvc/config. Git ignores the folder, so that DVC must not ask Git. A cache of its own, since
# `dvc gc` deletes from a cache all that its own workspace does not name.
CONFIG = "[core]\n    no_scm = true\n[cache]\n    dir = cache\n"


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


def params_of(base: dict[str, Any], demo: dict[str, Any]) -> dict[str, Any]:
    """params.yaml of the demo: of some sections the entries that it keeps, and what it changes."""
    kept = {}
    for section, names in demo.get("keep", {}).items():
        if missing := [name for name in names if name not in base.get(section, {})]:
            raise Refusal(f"{CHANGES}: keep.{section}: {PARAMS} has no {missing[0]} any more")
        kept[section] = {name: base[section][name] for name in names}
    return merged({**base, **kept, "sweeps": {}}, demo.get("change", {}))


def prepare(folder: Path) -> None:
    """Lay out a workspace: the code, dvc.yaml and changed parameters, with a cache of its own.

    What a former demo made stays, so that a second one has nothing to do.
    """
    for name in COPIED:
        source, target = Path(name), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    text = dumps_yaml(params_of(read_yaml(PARAMS), read_yaml(CHANGES)))
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
