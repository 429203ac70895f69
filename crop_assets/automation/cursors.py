"""The cursors of the sensors. They are validated when read, because anyone with access to the UI can set them."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, StringConstraints, field_validator

from resources.json_values import parse

YEARS = range(1997, 2101)
"""Years of the CDL, from the first one of any state; other partitions are ignored."""
_MAX_CHARACTERS = 1_000_000

_Year = Annotated[str, StringConstraints(pattern="^[1-9][0-9]{3}$")]
_Value = TypeVar("_Value")


def _within_years(values: dict[str, _Value]) -> dict[str, _Value]:
    return {year: value for year, value in values.items() if int(year) in YEARS}


class ReleaseCursor(BaseModel, strict=True):
    """The cursor of cdl_release_sensor: the known versions at `place`, and the Unix time of the last look."""

    place: str = ""
    versions: dict[_Year, Annotated[str, StringConstraints(max_length=1000)]] | None = None
    looked: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    problem: str = ""

    @field_validator("versions")
    @classmethod
    def _are_of_the_cdl(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return value and _within_years(value)


class LastRequests(BaseModel, strict=True):
    """The last requests for the tiles and the dataset of a year (`YearState.tile_map` and `digest`)."""

    tiles: str = ""
    dataset: str = ""


class YearLook(BaseModel, strict=True):
    """A look at a year: the recipe's fingerprint and the last event of the year that it saw, and what it found."""

    recipe: str
    event: int = Field(ge=0, le=2**63)
    told: Annotated[str, StringConstraints(max_length=1000)] = ""


class DatasetCursor(BaseModel, strict=True):
    """The cursor of dataset_sensor: the last events it saw, its message, its last look at each year, and what it
    requested.
    """

    seen: list[str | int] = []
    told: str = ""
    looks: dict[_Year, YearLook] = {}
    asked: dict[_Year, LastRequests] = {}
    count: int = Field(default=0, ge=0, le=2**53)

    _are_of_the_cdl = field_validator("looks", "asked")(_within_years)


_Cursor = TypeVar("_Cursor", ReleaseCursor, DatasetCursor)


def read_cursor(text: str, kind: type[_Cursor]) -> _Cursor | None:
    """The cursor, or None if the text is not a cursor of this kind."""
    if len(text) > _MAX_CHARACTERS:
        return None
    try:
        return kind.model_validate(parse(text))
    except ValueError:
        return None
