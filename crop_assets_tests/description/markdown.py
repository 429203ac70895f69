"""Reads what a Markdown file has: its header, sections, tables, blocks of code, links and names of files."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from markdown_it import MarkdownIt


class Card:
    """A dataset card, as a reader of Markdown sees it."""

    def __init__(self, text: str) -> None:
        self.text = text
        _, header, self.body = text.split("---\n", 2)
        self.header: dict[str, Any] = yaml.safe_load(header)
        self.tokens = MarkdownIt("commonmark").enable("table").parse(self.body)

    @classmethod
    def of(cls, folder: Path) -> "Card":
        return cls((folder / "README.md").read_text())

    @property
    def sections(self) -> list[str]:
        return [
            self.tokens[at + 1].content
            for at, token in enumerate(self.tokens)
            if token.type == "heading_open" and token.tag == "h2"
        ]

    def table(self, section: str, number: int = 0) -> pd.DataFrame:
        """A table of a section (the title for what is above the first), with the texts of its cells."""
        tables: list[list[list[str]]] = []
        here = ""
        for at, token in enumerate(self.tokens):
            if token.type == "heading_open" and token.tag in ("h1", "h2"):
                here = self.tokens[at + 1].content
            if here != section:
                continue
            if token.type == "table_open":
                tables.append([])
            elif token.type == "tr_open":
                tables[-1].append([])
            elif token.type in ("th_open", "td_open"):
                inline = self.tokens[at + 1]
                tables[-1][-1].append("".join(child.content for child in inline.children or ()))
        rows = tables[number]
        return pd.DataFrame(rows[1:], columns=rows[0])

    def code(self, language: str) -> list[str]:
        return [token.content for token in self.tokens if token.type == "fence" and token.info == language]

    @property
    def kinds(self) -> set[str]:
        """The types of all tokens, such as html_block."""
        return {token.type for token in self.tokens} | {
            child.type for token in self.tokens for child in token.children or ()
        }

    @property
    def links(self) -> set[str]:
        """Addresses of links and images."""
        children = [child for token in self.tokens for child in token.children or ()]
        return {str(child.attrs.get("href") or child.attrs.get("src")) for child in children if child.attrs}

    @property
    def named_files(self) -> set[str]:
        """Names of files and folders of the dataset in code, links and lines of code."""
        children = [child for token in self.tokens for child in token.children or ()]
        codes = {child.content for child in children if child.type == "code_inline"}
        codes |= set(re.findall(r'"([^"{}\n]+)"', "\n".join(self.code("python"))))
        codes |= set(re.findall(r"-c (\S+)", "\n".join([*self.code("sh"), *codes])))
        local = {link for link in self.links if "://" not in link}
        ends = (".md", ".csv", ".txt", ".json", ".yaml", ".png", ".parquet", ".npy", ".html")
        return local | {
            code
            for code in codes
            if re.fullmatch(r"[\w./-]+", code)
            and (code.endswith("/") or code.endswith(ends))
            and not code.startswith(("/path/", "."))
            and code != "default_config.yaml"
        }
