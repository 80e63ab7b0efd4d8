"""params.yaml: read it, and refuse what is wrong in it before anything runs.

The shape of the file is described here once. What a network or a method accepts is described by
the signature of its own function, so that adding one never touches this module (which every
stage depends on).
"""

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from retrace.pipeline.command import Refusal, WrongValue
from retrace.types import SIDE, BadInput, Precision, Seed

PARAMS = Path("params.yaml")
DEEPEST = 1000  # levels of YAML; its reader overflows the stack at some ten thousand

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(-[a-z0-9_]+)*$")]
Row = Annotated[int, Field(ge=0, lt=SIDE)]
Settings = dict[str, Any]
Entry = TypeVar("Entry")
SHOWN = 120  # characters of a refused value
GIVEN = ("callback", "memory", "beside")  # what `reconstruct` hands to a method beside its settings


class Part(BaseModel):
    """A part of params.yaml: no unknown key, and no value of another type."""

    model_config = STRICT


class Data(Part):
    """A published dataset, or ``folder``: one's own images at `path`, a folder for each label."""

    name: Literal["mnist", "fashion-mnist", "kmnist", "digits", "folder"]
    path: str | None = None
    mirror: str | None
    validation: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed

    @model_validator(mode="after")
    def folder_named(self) -> "Data":
        if (self.name == "folder") != (self.path is not None):
            raise ValueError("path is needed where name is folder, and must be null elsewhere")
        return self


class NetworkEntry(Part):
    architecture: Name
    arguments: Settings = {}
    training: Settings = {}
    precision: Precision = "float32"  # see `retrace.pipeline.device.computing_on`


class Rectangle(Part):
    """Missing: the rows first..last of the columns first..last, both ends included."""

    kind: Literal["rectangle"]
    rows: Annotated[list[Row], Field(min_length=2, max_length=2)]
    columns: Annotated[list[Row], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def ordered(self) -> "Rectangle":
        for axis, (first, last) in (("rows", self.rows), ("columns", self.columns)):
            if first > last:
                raise ValueError(f"{axis}: the first, {first}, lies behind the last, {last}")
        if self.rows == self.columns == [0, SIDE - 1]:
            raise ValueError("the mask covers the whole image; leave at least one pixel known")
        return self


class EveryNthRow(Part):
    """Missing: every `step`-th row, from `first` on."""

    kind: Literal["rows"]
    first: Row
    step: Annotated[int, Field(ge=2, le=SIDE)]


class RandomPixels(Part):
    """Missing: `share` of the pixels, drawn for each image anew."""

    kind: Literal["random"]
    share: Annotated[float, Field(ge=1 / SIDE**2, le=1 - 1 / SIDE**2)]


Mask = Annotated[Rectangle | EveryNthRow | RandomPixels, Field(discriminator="kind")]


class Masks(Part):
    images: Annotated[int, Field(ge=1)]
    seed: Seed
    patterns: Annotated[dict[Name, Mask], Field(min_length=1)]


class ProblemEntry(Part):
    """What a problem is observed from, beside the test images: a path that a stage makes."""

    source: str
    settings: Settings = {}


class RunEntry(Part):
    problem: Name
    method: Name
    network: Name
    settings: Settings = {}
    precision: Precision = "float32"  # see `retrace.pipeline.device.computing_on`


class Scoring(Part):
    resamples: Annotated[int, Field(ge=100)]
    seed: Seed


class Params(Part):
    data: Data
    device: Literal["auto", "cpu", "cuda"]
    networks: dict[Name, NetworkEntry]
    masks: Masks
    problems: dict[Name, ProblemEntry]
    runs: dict[Name, RunEntry]
    scoring: Scoring
    sweeps: dict[Name, Settings] = {}


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it would fill the screen."""
    # Not repr: a few lines of aliases within aliases would fill the memory.
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 2 * SHOWN
    text = repr(value) if isinstance(value, str) else brief.repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"


def refuse(error: ValidationError, *, where: str) -> WrongValue:
    """Turn pydantic's first error into one line: the key's path, the value, what is allowed."""
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"] if part != "[key]"]
    if keys[:2] == ["masks", "patterns"]:
        del keys[3:4]  # the kind of a mask, which pydantic puts there; it is no key of the file
    path = ".".join([where, *keys] if where else keys)
    if first["type"] == "extra_forbidden":
        return WrongValue(f"params.yaml: {path}: unknown key")
    if first["type"] == "missing":
        return WrongValue(f"params.yaml: {path}: this key is missing")
    message = first["msg"].removeprefix("Value error, ")
    value = shown(first["input"])
    return WrongValue(f"params.yaml: {path} = {value}: {message[:1].lower()}{message[1:]}")


def refused(error: BadInput, *, where: str, sections: dict[str, dict[str, Any]]) -> WrongValue:
    """The line for an argument that a network or a method refused, with the key's path where it is
    one of some sections of params.yaml."""
    word = re.match(r"\w*", str(error))
    for section, settings in sections.items():
        if word and word[0] in settings:
            return WrongValue(f"params.yaml: {where}.{section}.{error}")
    return WrongValue(f"{where}: {error}")


def entry_of(entries: Mapping[str, Entry], name: str, *, section: str) -> Entry:
    """An entry of a section of params.yaml, refused where there is none of that name."""
    if name not in entries:
        raise Refusal(f"{section}.{name}: unknown; allowed are {', '.join(entries)}")
    return entries[name]


def conflict_in(text: str) -> str | None:
    """Where a merge conflict begins in a text, if one does."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("<<<<<<< "):
            return f"line {number}: {line:.40}"
    return None


def depth_of(text: str) -> int:
    """How deeply brackets of a YAML text are nested, at most, those in strings included; or dashes
    of one line."""
    depths = accumulate((c in "[{") - (c in "]}") for c in text if c in "[{]}")
    dashes = max(map(len, re.findall(r"(?:[-?:][ \t]+)+", text)), default=0) // 2
    return max(max(depths, default=0), dashes)


def parse_yaml(content: bytes, *, name: str) -> Any:
    """What a YAML file, UTF-8, holds for DVC, whose reader this is; the name is for messages.

    That is YAML 1.2, where 010 is 10, 1:30 is text and 1e-3 is a number; to PyYAML, which reads
    YAML 1.1, they are 8, 90 and text. Refused when it is not YAML, or a merge conflict stands in
    it.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Refusal(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    if depth_of(text) > DEEPEST:
        raise Refusal(f"{name} is nested in more than {DEEPEST} levels")
    try:
        return YAML(typ="safe").load(text)
    except Exception as error:  # not YAMLError alone: the 40th of May raises ValueError
        if conflict := conflict_in(text):
            raise Refusal(f"{name}: a merge conflict is not resolved ({conflict})") from None
        reason = str(error)
        if isinstance(error, MarkedYAMLError) and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise Refusal(f"{name} is not YAML: {' '.join(reason.split())}") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file here holds, as `parse_yaml` reads it; a missing one is refused too."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise Refusal(f"{path} is no file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; run from the folder that holds dvc.yaml") from None
    return parse_yaml(content, name=str(path))


def load(path: Path = PARAMS) -> Params:
    """Read and validate params.yaml; refused where the file is missing, is not YAML, or holds an
    unknown key, a wrong type or an impossible value."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise Refusal(f"{path} holds {shown(content)}; sections such as data are needed")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise refuse(error, where="") from None


def bind(
    function: Callable[..., Any], settings: Settings, *, where: str, given: tuple[str, ...] = ()
) -> Settings:
    """Check settings, the section `where` of params.yaml, against the keyword-only parameters of a
    function, but for those that are `given` by the stage itself; give them with all defaults.

    The annotations are the schema: ``steps: Annotated[int, Field(ge=1)]`` refuses 0.

    Raises
    ------
    Refusal
        On a missing or unknown key, a wrong type, or a value out of range.
    """
    try:
        return _schema(function, given).model_validate(settings).model_dump()
    except ValidationError as error:
        raise refuse(error, where=where) from None


@cache  # the trials of a sweep ask hundreds of times
def _schema(function: Callable[..., Any], given: tuple[str, ...]) -> type[BaseModel]:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in given
    }
    return create_model("Settings", __config__=STRICT, **fields)


def find(kind: str, name: str, *, where: str) -> Any:
    """Import the module of a network or a method: its file name is the registry; refused, with
    those that there are, where there is no such file."""
    folder = Path(__file__).parents[1].joinpath(*kind.split("."))
    names = sorted(file.stem for file in folder.glob("[!_]*.py"))
    if name not in names:
        raise Refusal(
            f"params.yaml: {where} = {shown(name)}: allowed are {', '.join(names) or 'none'} "
            f"(the files of retrace/{kind.replace('.', '/')}/)"
        )
    return import_module(f"retrace.{kind}.{name}")
