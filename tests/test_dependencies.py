"""dvc.yaml names every module that a stage imports, and the tree is as it says."""

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from retrace.pipeline.params import read_yaml

ROOT = Path(__file__).parent.parent
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = read_yaml(ROOT / "params.yaml")


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
    """Our own files that a file imports by name, each package's __init__ too."""
    found: set[Path] = set()
    for name in names_in(file):
        parts = name.split(".")
        if parts[0] != "stages":
            continue
        for i in range(1, len(parts) + 1):
            base = ROOT.joinpath(*parts[:i])
            for path in (base.with_suffix(".py"), base / "__init__.py"):
                if path.is_file():
                    found.add(path)
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
    """Every stage, a foreach with the networks or runs of params.yaml filled in."""
    stages = []
    for name, stage in STAGES.items():
        if "do" not in stage:
            stages.append((name, stage))
            continue
        items = stage["foreach"]
        if isinstance(items, str):
            items = PARAMS[items.strip("${}")]
        for key in items:
            item = items[key] if isinstance(items, dict) else key

            def fill(match: re.Match[str], key: str = key, item: Any = item) -> str:
                name = match[1]
                if name == "key":
                    return key
                return str(item if name == "item" else item[name.removeprefix("item.")])

            text = re.sub(r"\$\{([^}]+)\}", fill, yaml.safe_dump(stage["do"]))
            stages.append((f"{name}@{key}", yaml.safe_load(text)))
    return stages


EXPANDED = expanded()


def with_packages(*modules: str) -> set[Path]:
    """Files of modules that are imported by name, and of all that those import."""
    found: set[Path] = set()
    for module in modules:
        file = ROOT / (module.replace(".", "/") + ".py")
        found |= all_modules_of(file)
        found |= {folder / "__init__.py" for folder in file.parents if ROOT in folder.parents}
    return found


def network_module(name: str) -> str:
    return f"retrace.networks.{PARAMS['networks'][name]['architecture']}"


def method_module(run: str) -> str:
    entry = PARAMS["runs"][run]
    return f"retrace.methods.{entry['problem']}.{entry['method']}"


def imported(name: str, stage: dict[str, Any]) -> set[Path]:
    """What a stage imports, what params.yaml has it import included."""
    kind, _, key = name.partition("@")
    by_params: list[str] = []
    if kind == "train":
        by_params = [network_module(key)]
    elif kind == "reconstruct":
        by_params = [method_module(key)]
    elif kind == "check":
        by_params = [*map(network_module, PARAMS["networks"]), *map(method_module, PARAMS["runs"])]
    return with_packages(stage["cmd"].split()[2], *by_params)


def built(stage: dict[str, Any]) -> set[Path]:
    """Modules of the networks whose checkpoints a stage depends on by name."""
    names = re.findall(r"^models/(\w+)\.safetensors$", "\n".join(stage["deps"]), re.MULTILINE)
    return with_packages(*map(network_module, names))


@pytest.mark.parametrize(("name", "stage"), EXPANDED, ids=[name for name, _ in EXPANDED])
def test_a_stage_depends_on_every_module_that_it_imports(name: str, stage: dict[str, Any]) -> None:
    deps = [ROOT / dep for dep in stage["deps"]]
    missing = {
        str(path.relative_to(ROOT))
        for path in imported(name, stage)
        if not any(path == dep or dep in path.parents for dep in deps)
    }
    assert not missing


@pytest.mark.parametrize(("name", "stage"), EXPANDED, ids=[name for name, _ in EXPANDED])
def test_a_stage_depends_on_no_code_that_it_does_not_use(name: str, stage: dict[str, Any]) -> None:
    used = imported(name, stage) | built(stage)
    # Of a folder one module that does something is enough: methods of a problem share code.
    working = {path for path in used if path.name != "__init__.py"}
    unused = [
        dep
        for dep in stage["deps"]
        if dep.startswith("stages/")
        and ROOT / dep not in used
        and not any(ROOT / dep in path.parents for path in working)
    ]
    assert not unused


def test_only_one_file_imports_mlflow() -> None:
    importers = {
        file.name
        for file in (ROOT / "stages").rglob("*.py")
        if any(name.split(".")[0] == "mlflow" for name in names_in(file))
    }
    assert importers == {"track.py"}
