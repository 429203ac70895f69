"""What the sensors keep between two looks.

Belongs here: reading and bounding it, for anybody who reaches the UI may set a cursor. Does not: what follows from it
(`releases`, `years`).
"""

from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, StringConstraints, field_validator

from resources.json_values import parse

YEARS = range(1997, 2101)
"""From the first CDL of any state on; no others are worked on."""
_MAX_CHARACTERS = 1_000_000

_Year = Annotated[str, StringConstraints(pattern="^[1-9][0-9]{3}$")]
_Value = TypeVar("_Value")


def _within_years(values: dict[str, _Value]) -> dict[str, _Value]:
    return {year: value for year, value in values.items() if int(year) in YEARS}


class Looked(BaseModel, strict=True):
    """What the last look of cdl_release_sensor left: the versions that it knows of `place`, and its Unix time."""

    place: str = ""
    versions: dict[_Year, Annotated[str, StringConstraints(max_length=1000)]] | None = None
    looked: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    problem: str = ""

    @field_validator("versions")
    @classmethod
    def _are_of_the_cdl(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return value and _within_years(value)


class Asked(BaseModel, strict=True):
    """The tile map and the dataset of a year that were asked for last (`YearState.tile_map` and `digest`)."""

    tiles: str = ""
    dataset: str = ""


class Seen(BaseModel, strict=True):
    """What the last look of dataset_sensor left: the events that it saw, what it said, and what it asked for."""

    seen: list[str | int] = []
    told: str = ""
    asked: dict[_Year, Asked] = {}
    count: int = Field(default=0, ge=0, le=2**53)

    _are_of_the_cdl = field_validator("asked")(_within_years)


_Cursor = TypeVar("_Cursor", Looked, Seen)


def read_cursor(text: str, kind: type[_Cursor]) -> _Cursor | None:
    """The cursor, or None where it is not one of this kind."""
    if len(text) > _MAX_CHARACTERS:
        return None
    try:
        return kind.model_validate(parse(text))
    except ValueError:
        return None
