"""Errors of a dataset's own inputs: a recipe, a raster, a table, an area of interest.

Belongs here: what a user can mend by changing an input. Does not: what a server did
(`resources.errors`).
"""


class InputError(ValueError):
    """An input that cannot be worked with. The message says what, where, and what to do next."""
