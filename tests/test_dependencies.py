"""dvc.yaml names every module that a stage imports, and the tree is as it says."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.params import read_yaml

ROOT = Path(__file__).parent.parent
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = read_yaml(ROOT / "params.yaml")
# They import by name what params.yaml names: covered by a dep of its own, in `dynamic` below.
DYNAMIC = {"stages/train.py", "stages/reconstruct.py", "stages/check.py"}


def modules_of(file: Path) -> set[Path]:
    """Our own files that a file imports by name, wherever in it, each package's __init__ too."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] != "stages":
                continue
            for i in range(1, len(parts) + 1):
                base = ROOT.joinpath(*parts[:i])
                for path in (base.with_suffix(".py"), base / "__init__.py"):
                    if path.is_file():
                        found.add(path)
    return found


def all_modules_of(file: Path) -> set[Path]:
    """`modules_of`, and of what they import, and so on."""
    seen, todo = set(), {file}
    while todo:
        current = todo.pop()
        seen.add(current)
        todo |= modules_of(current) - seen
    return seen


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


@pytest.mark.parametrize(("name", "stage"), EXPANDED, ids=[name for name, _ in EXPANDED])
def test_a_stage_depends_on_every_module_that_it_imports(name: str, stage: dict[str, Any]) -> None:
    module = stage["cmd"].split()[2]
    deps = [ROOT / dep for dep in stage["deps"]]
    used = all_modules_of(ROOT / (module.replace(".", "/") + ".py"))
    kind, _, key = name.partition("@")
    if kind == "train":
        architecture = PARAMS["networks"][key]["architecture"]
        used |= all_modules_of(ROOT / "stages/networks" / f"{architecture}.py")
    elif kind == "reconstruct":
        run = PARAMS["runs"][key]
        used |= all_modules_of(ROOT / "stages/methods" / run["problem"] / f"{run['method']}.py")
    # What only `check_all` imports, and only the stage `check` calls that.
    if kind != "check" and ROOT / "stages/train.py" not in modules_of(
        ROOT / (module.replace(".", "/") + ".py")
    ):
        used -= {ROOT / "stages/train.py"} - {ROOT / (module.replace(".", "/") + ".py")}
    missing = {
        str(path.relative_to(ROOT))
        for path in used
        if not any(path == dep or dep in path.parents for dep in deps)
    }
    assert not missing


@pytest.mark.parametrize(("name", "stage"), EXPANDED, ids=[name for name, _ in EXPANDED])
def test_dependencies_on_code_exist_and_are_used(name: str, stage: dict[str, Any]) -> None:
    for dep in stage["deps"]:
        if dep.startswith("stages"):
            assert (ROOT / dep).exists(), dep


def test_only_one_file_imports_mlflow() -> None:
    importers = {
        file.name
        for file in (ROOT / "stages").rglob("*.py")
        if re.search(r"^\s*(import|from) mlflow", file.read_text(), flags=re.MULTILINE)
    }
    assert importers == {"track.py"}


def test_reconstruct_never_opens_the_truth() -> None:
    for name, stage in EXPANDED:
        if name.startswith("reconstruct@"):
            truth = {"data/test.npz", "data/train.npz", "data/validation.npz", "data/raw"}
            assert not truth & set(stage["deps"])
    for file in [ROOT / "stages/reconstruct.py", *(ROOT / "stages/methods").rglob("*.py")]:
        assert "read_split" not in file.read_text()
