"""Errors of a dataset's own inputs: a recipe, a raster, a table, an area of interest.

Belongs here: what a user can mend by changing an input. Does not: what a server did
(`resources.errors`).
"""

from pydantic import ValidationError

from resources.plain_text import plain_text


class InputError(ValueError):
    """An input that cannot be worked with. The message says what, where, and what to do next.

    It is bounded and on one line, whatever of the input it repeats.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain_text(message))


def problems(error: ValidationError) -> dict[str, str]:
    """What is wrong with each field, without pydantic's own text: it repeats all values, whatever secret they hold."""
    return {
        ".".join(map(str, one["loc"])): one["msg"].removeprefix("Value error, ") for one in error.errors()
    }
