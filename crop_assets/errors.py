"""Errors of a dataset's own inputs: a recipe, a raster, a table, an area of interest.

Belongs here: what a user can mend by changing an input. Does not: what a server did
(`resources.errors`).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

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
    `kind`, it shows the whole range of a number, and which word may have been meant.
    """
    return {".".join(map(str, one["loc"])): _problem(dict(one), kind) for one in error.errors()}


def number_range(metadata: Iterable[Any]) -> str:
    """The range of a number by the metadata of its field, such as "from 1 to 13"; "" if it has none."""
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
    """The type of the items of a list, or of the values of a map, and the metadata that bound them."""
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
        return f"{name}{_shown(one['input'], number)} must lie {number_range(metadata)}"
    return message


def _shown(value: Any, kind: type[int | float]) -> str:
    """A number in a message, but for one that is too long to be written out."""
    try:
        return f" is {kind(value)}, and"
    except (ValueError, OverflowError):
        return ""
