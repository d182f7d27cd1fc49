"""What MkDocs does beside rendering docs/: pages from code, notebooks and the top of the
repository, and links that hold.

A comment `generated: NAME` is where a table from the code stands on the site, and a link to a
settings class in its file leads to the class's section of the reference.
A paragraph that is only a link to a section of the README is that section on the site: no text is
there twice.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]  # files of the site that are not in docs/
OUTSIDE += [
    file.relative_to(ROOT).as_posix()
    for kind in ("README.md", "images/*.png")
    for file in ROOT.glob(f"model_cards/demo/*/{kind}")
]
# by website/notebooks.py; without it the notebooks have no outputs
EXECUTED = ROOT / "build" / "notebooks"
SEARCHED: dict[str, dict[str, Any]] = {
    page: {"boost": 2} for page in ("how-to.md", "methods.md", "search.md")
}
SEARCHED |= {page: {"exclude": True} for page in OUTSIDE}  # they mention everything
REFERENCE = {"boost": 0.3}  # guides answer a search before the reference does
SECTIONS = reference.sections()
_LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_SECTION = re.compile(r"^\[[^]\n]*\]\(\.\./README\.md#([\w-]+)\)$", re.MULTILINE)
_GENERATED = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Say where the project is, which a workflow on GitHub has in its environment, and list the
    pages that are made."""
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        owner, name = repository.split("/")
        config.repo_url = (
            f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
        )
        config.repo_name = repository
        config.site_url = f"https://{owner.lower()}.github.io/{name}/"
    section = next(part["Reference"] for part in config.nav or () if "Reference" in part)
    python = next(part for part in section if "Python" in part)
    python["Python"] = [f"reference/{name}.md" for name in reference.python_pages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files in docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        _add_notebook(files, config, notebook)
    return files


def _add_notebook(files: Files, config: MkDocsConfig, notebook: Path) -> None:
    import nbformat
    from nbconvert import MarkdownExporter

    executed = EXECUTED / notebook.name
    read = nbformat.read(executed if executed.exists() else notebook, as_version=4)
    text, resources = MarkdownExporter().from_notebook_node(read, {"unique_key": notebook.stem})
    title, rest = text.strip().split("\n", 1)
    if config.repo_url and config.repo_url.startswith("https://github.com/"):
        file = f"{config.repo_name}/blob/main/notebooks/{notebook.name}"
        colab = f"https://colab.research.google.com/github/{file}"
        rest = f"\n[The notebook](https://github.com/{file}), [in Colab]({colab}).\n{rest}"
    files.append(
        File.generated(config, f"notebooks/{notebook.stem}.md", content=f"{title}\n{rest}")
    )
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, f"notebooks/{name}", content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the README's sections, and lead links that leave docs/ to where they lead on the site
    or in the repository."""
    readme = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    here = page.file.src_uri
    page.meta["search"] = SEARCHED.get(here, REFERENCE if here.startswith("reference/") else {})
    place = here if here in OUTSIDE else f"docs/{here}"
    home = f"{config.repo_url}/blob/main" if config.repo_url else None

    def put_in(link: re.Match[str]) -> str:
        return _outside_fences(
            section(readme, link[1]), lambda text: _led(text, "README.md", here, files, home)
        )

    text = _outside_fences(markdown, lambda text: _led(text, place, here, files, home))
    text = _GENERATED.sub(lambda marker: reference.table(marker[1]), text)
    return _SECTION.sub(put_in, text)


def section(text: str, anchor: str) -> str:
    """The section of a page that an anchor names, without its heading; of the title, what stands
    before the first section."""
    title, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    heading, _, body = title.strip().partition("\n")
    for name, content in [
        (heading.removeprefix("# "), body),
        *zip(parts[::2], parts[1::2], strict=True),
    ]:
        if slug(name) == anchor:
            return content.strip()
    raise LookupError(f"README.md has no section #{anchor}")


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _outside_fences(text: str, change: Any) -> str:
    return "".join(
        part if number % 2 else change(part) for number, part in enumerate(_FENCE.split(text))
    )


def _led(text: str, place: str, here: str, files: Files, home: str | None) -> str:
    """A text's links, read as they stand in a file of the repository, as they stand on a page of
    the site.

    Args:
        text: Markdown without fenced code.
        place: The file of the repository that holds it.
        here: The page of the site.
        files: The site's files.
        home: Where the repository is; its files are named and not linked where that is not known.
    """

    def lead(link: re.Match[str]) -> str:
        if _SECTION.fullmatch(link[0]):
            return link[0]
        picture = link[1]
        words = link[2]
        target = link[3]
        anchor = link[4] or ""
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        page = (
            "index.md"
            if inside == "README.md"
            else inside.removeprefix("docs/").replace(".ipynb", ".md")
        )
        on_site = inside in ("README.md", *OUTSIDE) or inside.startswith(("docs/", "notebooks/"))
        if inside.startswith("hf_evomerge/") and anchor[1:] in SECTIONS:  # a settings class
            page = SECTIONS[anchor[1:]]
            on_site = True
        if on_site and files.get_file_from_path(page):
            return f"{picture}[{words}]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{anchor})"  # noqa: E501
        if not (ROOT / inside).exists():
            return link[0]  # MkDocs says so
        return f"{picture}[{words}]({home}/{inside}{anchor})" if home is not None else words

    return _LINK.sub(lead, text)
