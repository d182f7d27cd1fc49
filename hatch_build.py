"""What a build adds: the README with links that lead somewhere from PyPI too, where the project is,
and the JSON schemas.

The address is known only where a distribution is built for others: a workflow on GitHub has it in
its environment.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://arxiv.org/abs/2403.13187"
_LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\((?!https?:|#)([^)]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Fills in the fields ``readme`` and ``urls``, which pyproject.toml calls dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set both, from the README and the environment."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {"Paper": PAPER}
        if repository := os.environ.get("GITHUB_REPOSITORY"):
            home = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
            text = absolute(text, home, os.environ.get("GITHUB_REF_NAME", "main"))
            metadata["urls"] |= {
                "Homepage": home,
                "Issues": f"{home}/issues",
                "Changelog": f"{home}/blob/main/CHANGELOG.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(text: str, home: str, ref: str) -> str:
    """A page of the repository as it can stand elsewhere.

    Args:
        text: The page, in Markdown; its relative links begin at the top of the repository.
        home: The repository's address.
        ref: The branch or tag that links lead to.
    """

    def full(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        return f"{picture}[{words}]({home}/{'raw' if picture else 'blob'}/{ref}/{target})"

    return _LINK.sub(full, text)


def get_metadata_hook() -> type[MetadataHookInterface]:
    """What hatchling asks for."""
    return ReadmeHook


class SchemaHook(BuildHookInterface[Any]):
    """Writes the JSON schemas of recipes and search files into the package: for wheels, and for
    editable checkouts."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write them before the files are collected; `artifacts` in pyproject.toml takes what git
        ignores."""
        sys.path[:0] = [self.root, str(Path(self.root) / "website")]
        from schemas import write_schemas

        write_schemas()
