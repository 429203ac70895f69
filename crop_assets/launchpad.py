"""What a run may configure: numbers, switches, and the recipe's choices.

Anyone who reaches the UI, or has a web page launch a run there, writes that run's configuration. So paths, addresses,
hosts, tokens and commands are set only by the environment (`crop_assets.variables`).
"""

import inspect
from typing import Any, Literal, get_args, get_origin

import dagster as dg
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from crop_assets.errors import InputError, item_type, number_range, problems
from crop_assets.recipe import DatasetRecipe
from crop_assets.variables import FIELDS
from resources.settings import Settings


def launchable(key: str, resource: Settings) -> dg.ResourceDefinition:
    """A Dagster resource of which a run may change the harmless fields; `key` is its name in the definitions.

    Fields that a run does not set are those of `resource`. A launch that sets another field is refused with the
    variable to set instead. The schema is of Dagster's plain types, because Dagster's own resources made of a class
    accept {"env": "ANY_VARIABLE"} as a value. Raises KeyError for a field that neither a run nor a variable can set.
    """
    kind = type(resource)
    own = {name: getattr(resource, name) for name in kind.model_fields}
    schema = {}
    for name, field in kind.model_fields.items():
        if _harmless(key, name, kind, field.annotation):
            shown = dg.Field(_config_type(field.annotation), own[name], False, _described(field))
        else:
            variable = FIELDS[f"{key}.{name}"]
            # an empty enumeration, because the message that refuses a value shows its name
            nothing = dg.Enum(f"'set by the variable {variable}, and not by a run'", [])
            shown = dg.Field(
                nothing, is_required=False, description=f"{field.description} Set by {variable}."
            )
        schema[name] = shown

    def configured(context: dg.InitResourceContext) -> Any:
        try:
            return kind(**{**own, **context.resource_config})
        except ValidationError as error:
            wrong = [
                f"{name}: {message}" if name else message for name, message in problems(error, kind).items()
            ]
            raise InputError(f"{key}: {'; '.join(wrong)}") from None

    return dg.ResourceDefinition(configured, schema, inspect.getdoc(kind))


def _harmless(key: str, name: str, kind: type, annotation: Any) -> bool:
    if issubclass(kind, DatasetRecipe):
        return f"{key}.{name}" not in FIELDS
    return annotation in (bool, int, float)


def _described(field: FieldInfo) -> str:
    """What a field means, and the range of a number."""
    words = number_range(field.metadata)
    return f"{field.description} A number {words}." if words else str(field.description)


def _config_type(annotation: Any) -> Any:
    """Dagster's type of a field's values."""
    of = get_args(annotation)
    if get_origin(annotation) is Literal:
        return dg.Enum(f"'one of {', '.join(of)}'", [dg.EnumValue(value) for value in of])
    if get_origin(annotation) is list:
        return dg.Array(_config_type(item_type(annotation)[0]))
    # Dagster's short form of a map
    return {of[0]: item_type(annotation)[0]} if get_origin(annotation) is dict else annotation
