"""Validates STAC objects by the JSON schemas of STAC 1.1 and its extensions, without a network."""

import json
from pathlib import Path
from typing import Any

import pyproj
import pystac
from jsonschema import Draft7Validator, FormatChecker
from referencing import Registry, Resource

VENDORED = Path(__file__).parent / "schemas"
_CORE = Path(pystac.__file__).parent / "validation" / "jsonschemas"
_SPEC = "https://schemas.stacspec.org/v1.1.0"
_EXTENSIONS = "https://stac-extensions.github.io"

_COMMON_NAMES = ["blue", "green", "red", "nir08", "swir16", "swir22"]
FIELDS: dict[str, dict[str, Any]] = {
    "eo/v2.0.0": {
        "eo:common_name": {"enum": _COMMON_NAMES},
        "eo:center_wavelength": {"type": "number", "exclusiveMinimum": 0},
    },
    "raster/v2.0.0": {
        "raster:scale": {"type": "number"},
        "raster:spatial_resolution": {"type": "number"},
    },
    "ml-aoi/v0.2.0": {
        "ml-aoi:split": {"enum": ["train", "validate", "test"]},
        "ml-aoi:role": {"enum": ["feature", "label"]},
    },
}
"""The fields that items have of extensions whose schemas no package has."""


def _resources() -> dict[str, Any]:
    found = {}
    for path in (_CORE / "stac-spec" / "v1.1.0").glob("*.json"):
        folder = f"{path.stem}-spec" if path.stem in ("catalog", "collection") else "item-spec"
        found[f"{_SPEC}/{folder}/json-schema/{path.name}"] = path
    for path in (_CORE / "geojson").glob("*.json"):
        found[f"https://geojson.org/schema/{path.name}"] = path
    for path in VENDORED.glob("*.json"):
        name, version = path.stem.split("-v")
        found[f"{_EXTENSIONS}/{name}/v{version}/schema.json"] = path
    projjson = Path(pyproj.datadir.get_data_dir()) / "projjson.schema.json"
    found["https://proj.org/schemas/v0.7/projjson.schema.json"] = projjson
    return {uri: json.loads(path.read_text()) for uri, path in found.items()}


_SCHEMAS = _resources()
# without a way to retrieve others: a reference to one that is not here is an error
_REGISTRY: Registry[Any] = Registry().with_resources(
    (uri, Resource.from_contents(schema)) for uri, schema in _SCHEMAS.items()
)


def problems(stac: dict[str, Any]) -> list[str]:
    """What is wrong with an item or collection by the schemas of STAC and of each extension that it declares."""
    kind = {"Feature": "item", "Collection": "collection"}[stac["type"]]
    uris = [f"{_SPEC}/{kind}-spec/json-schema/{kind}.json"]
    found = []
    for uri in stac["stac_extensions"]:
        name = uri.removeprefix(f"{_EXTENSIONS}/").removesuffix("/schema.json")
        if name in FIELDS:
            found += [f"{name}: {problem}" for problem in _field_problems(stac, FIELDS[name])]
        else:
            uris.append(uri)
    for uri in uris:
        validator = Draft7Validator(_SCHEMAS[uri], registry=_REGISTRY, format_checker=FormatChecker())
        found += [f"{uri}: {error.message}" for error in validator.iter_errors(stac)]
    return found


def _field_problems(stac: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """Where objects of a STAC object have other fields with the extension's prefix, or invalid values."""
    prefix = next(iter(fields)).split(":")[0]
    schema = {
        "type": "object",
        "properties": fields,
        "patternProperties": {f"^(?!{prefix}:)": {}},
        "additionalProperties": False,
    }
    objects = [stac.get("properties", {})]
    for assets in (stac.get("assets", {}), stac.get("item_assets", {})):
        for asset in assets.values():
            objects += [asset, *asset.get("bands", [])]
    validator = Draft7Validator(schema)
    found = [error.message for one in objects for error in validator.iter_errors(one)]
    if not any(field in one for field in fields for one in objects):
        found.append("it has no field of this extension")
    return found
