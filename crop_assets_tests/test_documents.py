import importlib.util
import re
from pathlib import Path

import pytest

from crop_assets.variables import FIELDS

HERE = Path(__file__).parent


def test_every_test_in_the_threat_model_exists() -> None:
    rows = [
        line for line in (HERE.parent / "docs/threats.md").read_text().splitlines() if line.startswith("| **")
    ]
    assert len(rows) > 10
    for row in rows:
        named = [
            name for name in re.findall("`([^`]+)`", row.rsplit("|", 2)[1]) if not name.startswith("make ")
        ]
        assert named, row
        for name in named:
            assert list(HERE.glob(name)), f"{name} is not there"


def test_every_link_between_documents_leads_to_a_file() -> None:
    documents = [*HERE.parent.glob("*.md"), *HERE.parent.glob("docs/**/*.md")]
    assert len(documents) > 15
    for document in documents:
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_references_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in {"CROP_ASSETS_DATA", "CROP_ASSETS_RECIPE", *FIELDS.values()}:
        monkeypatch.delenv(variable, raising=False)
    docs = HERE.parent / "docs"
    spec = importlib.util.spec_from_file_location("generate", docs / "generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in (("recipe", generate.recipe_reference()), ("assets", generate.asset_reference())):
        assert text.count("\n| `") > 30
        assert (docs / f"reference/{name}.md").read_text() == text, "out of date: run make docs"


def test_the_image_is_built_on_a_base_that_cannot_change() -> None:
    text = (HERE.parent / "Dockerfile").read_text()
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64}", image)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
