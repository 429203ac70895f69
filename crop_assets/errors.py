"""Errors of a dataset's own inputs: a recipe, a raster, a table, an area of interest.

Belongs here: what a user can mend by changing an input. Does not: what a server did
(`resources.errors`).
"""

from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from crop_assets.suggest import did_you_mean
from resources.plain_text import plain_text

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}


class InputError(ValueError):
    """An input that cannot be worked with. The message says what, where, and what to do next.

    It is bounded and on one line, whatever of the input it repeats.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain_text(message))


def problems(error: "ValidationError", kind: "type[BaseModel] | None" = None) -> dict[str, str]:
    """What is wrong with each field, by its name; "" stands for several of them.

    Without pydantic's own text of the error, which repeats all values, whatever secret they hold. Given the class as
    `kind`, it tells the whole range of a number, and which word may have been meant.
    """
    return {".".join(map(str, one["loc"])): _problem(dict(one), kind) for one in error.errors()}


def _problem(one: dict[str, Any], kind: "type[BaseModel] | None") -> str:
    message = str(one["msg"]).removeprefix("Value error, ")
    name = str(one["loc"][0]) if one["loc"] else ""
    field = kind.model_fields.get(name) if kind else None
    if field is None:
        return message
    if get_origin(field.annotation) is Literal:
        return message + did_you_mean(one["input"], get_args(field.annotation))
    if one["type"] in _OUT_OF_RANGE and field.annotation in (int, float):
        number = int if field.annotation is int else float
        return f"{name}{_shown(one['input'], number)} must {_range(field.metadata)}"
    return message


def _range(metadata: list[Any]) -> str:
    """The range of a number, as the bounds of its field give it."""
    found = {
        sign: getattr(one, sign)
        for one in metadata
        for sign in ("ge", "gt", "le", "lt")
        if getattr(one, sign, None) is not None
    }
    if "gt" in found:
        return f"lie between {found['gt']:,} and {found['lt']:,}"
    return f"lie from {found['ge']:,} to {found['le']:,}"


def _shown(value: Any, kind: type[int | float]) -> str:
    """A number in a message, but for one that is too long to be written out."""
    try:
        return f" is {kind(value)}, and"
    except (ValueError, OverflowError):
        return ""
