import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_test_that_the_threat_model_names_is_there() -> None:
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
    documents = [*HERE.parent.glob("*.md"), *HERE.parent.glob("docs/*.md")]
    assert len(documents) > 5
    for document in documents:
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"
