"""Errors of inputs that a user can fix: a recipe, a raster, a table, an area of interest.

`resources.errors` has those of servers.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from crop_assets.suggest import did_you_mean
from resources.plain_text import plain_text

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}


class InputError(ValueError):
    """An invalid input. The message says what is wrong, where, and what to do next.

    It is short and on one line, even if it quotes the input.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain_text(message))


def problems(error: "ValidationError", kind: "type[BaseModel] | None" = None) -> dict[str, str]:
    """What is wrong with each field, by its name; "" stands for several fields.

    It does not contain pydantic's message, which quotes all values, including secrets. With the class as `kind`, it
    includes the range of a number, and suggestions for a word.
    """
    return {".".join(map(str, one["loc"])): _problem(dict(one), kind) for one in error.errors()}


def number_range(metadata: Iterable[Any]) -> str:
    """The range of a number, from the metadata of its field, such as "from 1 to 13"; "" if it has none."""
    found = {
        sign: getattr(one, sign)
        for one in metadata
        for sign in ("ge", "gt", "le", "lt")
        if getattr(one, sign, None) is not None
    }
    if not found:
        return ""
    if "gt" in found:
        return f"between {found['gt']:,} and {found['lt']:,}"
    return f"from {found['ge']:,} to {found['le']:,}"


def item_type(annotation: Any) -> tuple[Any, list[Any]]:
    """The type of the items of a list or the values of a map, and the metadata with their range."""
    inner = get_args(annotation)[-1]
    if get_origin(inner) is Annotated:
        inner, field = get_args(inner)
        return inner, field.metadata
    return inner, []


def _problem(one: dict[str, Any], kind: "type[BaseModel] | None") -> str:
    message = str(one["msg"]).removeprefix("Value error, ")
    name = ".".join(map(str, one["loc"]))
    field = kind.model_fields.get(str(one["loc"][0])) if kind and one["loc"] else None
    if field is None:
        return message
    annotation, metadata = field.annotation, field.metadata
    if len(one["loc"]) > 1:
        annotation, metadata = item_type(annotation)
    if get_origin(annotation) is Literal:
        return message + did_you_mean(one["input"], get_args(annotation))
    if one["type"] in _OUT_OF_RANGE and annotation in (int, float):
        number = int if annotation is int else float
        return f"{name}{_shown(one['input'], number)} must be {number_range(metadata)}"
    return message


def _shown(value: Any, kind: type[int | float]) -> str:
    """A number for a message, or "" if it is too long."""
    try:
        return f" is {kind(value)}, and"
    except (ValueError, OverflowError):
        return ""
