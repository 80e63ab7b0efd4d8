"""Settings of a method that is called from Python, by the schema that params.yaml is checked by."""

from collections.abc import Callable
from typing import Any

from retrace.pipeline.command import Refusal
from retrace.pipeline.params import GIVEN, PARAMS, bind
from retrace.types import BadInput


def checked(function: Callable[..., Any], settings: dict[str, Any], *, where: str = "") -> Any:
    """Settings of a method with all its defaults.

    Raises
    ------
    BadInput
        On an unknown name, a wrong type or a value out of range; the text begins with the name,
        behind `where`.
    """
    try:
        return bind(function, settings, where=where, given=GIVEN)
    except Refusal as refusal:
        raise BadInput(str(refusal).removeprefix(f"{PARAMS}: ")) from None
