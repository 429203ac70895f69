"""The base of all clients' settings, and types that several of them share."""

from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Attempts = Annotated[
    int, Field(ge=1, le=20, description="How often a request is tried before it is given up.")
]
Seconds = Annotated[float, Field(ge=0.01, le=600, allow_inf_nan=False)]
"""How long to wait for an answer."""
TimeoutSeconds = Annotated[Seconds, Field(description="Most seconds to wait for the next bytes.")]


class Settings(BaseModel):
    """Settings of a client, checked when it is made and then frozen. Errors do not show values, which may be secret."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, ignored_types=(cached_property,)
    )
