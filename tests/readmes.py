"""The repository's READMEs, and what stands in them: examples and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _all_readmes() -> list[Path]:
    """Every README outside hidden and ignored folders, the repository's own first."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()}
    folders = [p for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in ignored]
    return [ROOT / "README.md", *sorted(file for folder in folders for file in folder.rglob("README.md"))]


READMES = _all_readmes()


def block(first_line: str) -> str:
    """The fenced block that starts with a line, without the fence, in whichever README it stands."""
    for readme in READMES:
        text = readme.read_text(encoding="utf-8")
        if found := re.search(rf"```\w*\n({re.escape(first_line)}.*?)```", text, re.DOTALL):
            return found[1]
    raise AssertionError(f"no README has a block that starts with {first_line!r}")


def commands(text: str, program: str) -> list[list[str]]:
    """The arguments of every call of a program (a regular expression with one group) in a text, the group's first.

    Lines that a backslash continues are joined; calls with an ellipsis, which nobody can run, are left out.
    """
    found = re.findall(rf"(?<!\w)python {program}([^\n`|&;>]*)", re.sub(r"\\\n[ #]*", " ", text))
    calls = [(name, rest) for name, rest in found if "…" not in rest and "..." not in rest]
    return [[name, *shlex.split(rest, comments=True)] for name, rest in calls]


def anchors(readme: Path) -> set[str]:
    """What its headings are called in a link."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", readme.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(readme: Path) -> list[str]:
    """The links of a README to files or headings that aren't there; the web's are not looked at."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", readme.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (readme.parent / path).resolve() if path else readme
        target = target / "README.md" if target.is_dir() and anchor else target
        there = link.startswith("http") or (target.exists() and (not anchor or anchor in anchors(target)))
        dead += [] if there else [link]
    return dead
