"""dvc.yaml names every module that a stage imports, and imports point one way."""

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from retrace.pipeline.params import read_yaml

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = read_yaml(ROOT / "params.yaml")
# What a package, or a module of `retrace` itself, may import of the others.
LIBRARY = {"types"}
ARROWS: dict[str, set[str]] = {
    "types": set(),
    "warm": set(),
    "git": {"pipeline"},
    "networks": LIBRARY,
    "methods": LIBRARY,
    "measures": LIBRARY,
    "pipeline": LIBRARY,
    "data": LIBRARY | {"pipeline"},
    "execution": LIBRARY | {"pipeline"},
    "training": LIBRARY | {"networks", "pipeline"},
    "report": LIBRARY | {"git", "measures", "pipeline"},
    "problems": LIBRARY | {"measures", "methods", "networks", "pipeline", "report"},
    "tracking": LIBRARY | {"git", "networks", "pipeline", "problems", "report"},
    "sweeps": LIBRARY
    | {"checks", "data", "execution", "measures", "pipeline", "problems", "training"},
    "checks": LIBRARY | {"networks", "pipeline", "problems"},
}
BELOW = set(ARROWS) | {"commands"}  # what commands may use; stages all of it but commands


def names_in(file: Path) -> list[str]:
    """Names that a file imports, wherever in it, whether they are modules or of modules."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@functools.cache
def modules_of(file: Path) -> frozenset[Path]:
    """Our own files that a file imports by name; of a package its __init__ where it defines more
    than a docstring."""
    found: set[Path] = set()
    for name in names_in(file):
        parts = name.split(".")
        if parts[0] not in ("retrace", "stages"):
            continue
        base = ROOT.joinpath(*parts)
        if base.with_suffix(".py").is_file():
            found.add(base.with_suffix(".py"))
        package = base / "__init__.py"
        if package.is_file() and len(ast.parse(package.read_text("utf-8")).body) > 1:
            found.add(package)
    return frozenset(found)


@functools.cache
def all_modules_of(file: Path) -> frozenset[Path]:
    """`modules_of`, and of what they import, and so on."""
    seen: set[Path] = set()
    todo = {file}
    while todo:
        current = todo.pop()
        seen.add(current)
        todo |= modules_of(current) - seen
    return frozenset(seen)


def expanded() -> list[tuple[str, dict[str, Any]]]:
    """Every stage, a foreach with the entries of params.yaml filled in."""
    stages = []
    for name, stage in STAGES.items():
        if "do" not in stage:
            stages.append((name, stage))
            continue
        items = PARAMS[stage["foreach"].strip("${}")]
        for key, item in items.items():

            def fill(match: re.Match[str], key: str = key, item: Any = item) -> str:
                return key if match[1] == "key" else str(item[match[1].removeprefix("item.")])

            text = re.sub(r"\$\{([^}]+)\}", fill, yaml.safe_dump(stage["do"]))
            stages.append((f"{name}@{key}", yaml.safe_load(text)))
    return stages


EXPANDED = expanded()


def imported(name: str, stage: dict[str, Any]) -> set[Path]:
    """What a stage imports, what params.yaml has it import included."""
    kind, _, key = name.partition("@")
    modules = [stage["cmd"].split()[2]]
    if kind == "train":
        modules.append(f"retrace.networks.{PARAMS['networks'][key]['architecture']}")
    elif kind == "reconstruct":
        run = PARAMS["runs"][key]
        modules.append(f"retrace.methods.{run['problem']}.{run['method']}")
    elif kind in ("observe", "score"):
        modules.append(f"retrace.problems.{key}.{kind}")
    files = [ROOT / f"{module.replace('.', '/')}.py" for module in modules]
    return {module for file in files for module in all_modules_of(file)}


def covers(dep: str, path: Path) -> bool:
    return ROOT / dep == path or ROOT / dep in path.parents


@pytest.mark.parametrize(("name", "stage"), EXPANDED, ids=[name for name, _ in EXPANDED])
def test_a_stage_depends_on_every_module_that_it_imports(name: str, stage: dict[str, Any]) -> None:
    through_a_checkpoint = any(dep.startswith("models") for dep in stage["deps"])
    missing = {
        str(path.relative_to(ROOT))
        for path in imported(name, stage)
        if not any(covers(dep, path) for dep in stage["deps"])
        # Whose header holds the digest of its network's module.
        and not (through_a_checkpoint and path.parent == ROOT / "retrace/networks")
    }
    assert not missing


@pytest.mark.parametrize(("name", "stage"), EXPANDED, ids=[name for name, _ in EXPANDED])
def test_a_stage_depends_on_no_code_that_it_does_not_use(name: str, stage: dict[str, Any]) -> None:
    """Of a folder one module is enough. In one problem the truth takes a method to be known, and
    what methods of several problems share is named for all, since an entry is one for all."""
    kind, _, key = name.partition("@")
    used = imported(name, stage)
    unused = [
        dep
        for dep in stage["deps"]
        if dep.startswith(("retrace", "stages"))
        and not dep.startswith("retrace/methods/_")
        and not any(covers(dep, path) for path in used)
    ]
    assert unused in ([], [f"retrace/methods/{key}"] if kind == "observe" else [])


def test_what_draws_is_no_dependency_of_what_computes() -> None:
    computing = ("train", "masks", "observe", "reconstruct", "score")
    drawing = [ROOT / "retrace/report", ROOT / "retrace/commands", ROOT / "retrace/tracking"]
    for name, stage in EXPANDED:
        if name.partition("@")[0] in computing:
            used = imported(name, stage)
            assert not [
                path for path in used if path.stem == "show" or {*path.parents} & {*drawing}
            ]


def part_of(path: Path) -> str:
    """The package of `retrace` that a file belongs to, or its own name; "stages" of a stage."""
    where = path.relative_to(ROOT).with_suffix("").parts
    return where[0] if where[0] == "stages" else where[1]


FILES = sorted([*(ROOT / "retrace").glob("*/**/*.py"), *(ROOT / "stages").glob("*.py")])
FILES += sorted((ROOT / "retrace").glob("[!_]*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_no_arrow_points_back(file: Path) -> None:
    part = part_of(file)
    allowed = {"stages": BELOW - {"commands"}, "commands": BELOW}.get(part, ARROWS.get(part))
    assert allowed is not None, f"{part} has no place in ARROWS"
    named = {part_of(path) for path in modules_of(file) if path != ROOT / "retrace/__init__.py"}
    assert named <= allowed | {part}


@pytest.mark.parametrize("package", ["methods", "networks"])
def test_methods_and_networks_import_mathematics_alone(package: str) -> None:
    known = {"retrace", "torch", "numpy", "scipy", "sklearn", "skimage", "pydantic"}
    known |= {"opacus"} if package == "networks" else set()  # where a setting asks for it
    for file in (ROOT / "retrace" / package).rglob("*.py"):
        roots = {name.split(".")[0] for name in names_in(file)}
        others = {root for root in roots - known if root not in STANDARD}
        assert not others, file


STANDARD = {
    *("collections", "copy", "functools", "itertools", "math", "time", "types", "typing"),
    "contextlib",
    "warnings",
}


def test_only_tracking_imports_mlflow() -> None:
    importers = {
        part_of(file)
        for file in FILES
        if any(name.split(".")[0] == "mlflow" for name in names_in(file))
    }
    assert importers == {"tracking"}
