"""The pages of the site that are not files of docs/: the home page, the guide and the reference."""

from __future__ import annotations

import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ssd_ops"
PARTS = {"ops": "Ops", "tinyssd": "TinySSD", "integrations": "Integrations"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"index.md": _page("README.md"), "contributing.md": _page("CONTRIBUTING.md")}
    pages |= {f"reference/{part}.md": _reference(part) for part in PARTS}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def _page(name: str) -> str:
    """A page of the root folder. Its links become those of a page in docs/."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    return text.replace("](CONTRIBUTING.md", "](contributing.md")


def _reference(part: str) -> str:
    """The reference of all public modules of a part of the package."""
    package = f"::: ssd_ops.{part}\n    options: {{members: false}}"
    lines = [f"# {PARTS[part]}", "", package, ""]
    for path in sorted((PACKAGE / part).rglob("*.py")):
        if not path.name.startswith("_"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            lines += [f"## {name}", "", f"::: {name}", ""]
    return "\n".join(lines)


class Examples(griffe.Extension):
    """Our docstrings have a section "Example:". griffe knows it as "Examples:"."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            value = obj.docstring.value
            obj.docstring.value = re.sub("^Example:$", "Examples:", value, flags=re.MULTILINE)
