"""How the outside world is configured, by whoever makes a client: the environment, a test, or a run in Dagster."""

from functools import cached_property

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings of a client, checked when it is made and never changed. No error shows their values: some are secret."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, ignored_types=(cached_property,)
    )
