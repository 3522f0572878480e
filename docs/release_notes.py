# SPDX-License-Identifier: Apache-2.0
"""The notes of one version, from CHANGELOG.md.

    python docs/release_notes.py 0.1.0           what a release brought
    python docs/release_notes.py Unreleased      what the next one brings
    python docs/release_notes.py --tag v0.1.0    the first, if that is the tag of the package's own version

A section of CHANGELOG.md begins with `## Unreleased` or `## X.Y.Z - YYYY-MM-DD`; the newest is the first.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CHANGELOG = ROOT / "CHANGELOG.md"
PACKAGE = ROOT / "inference_bridge" / "__init__.py"

UNRELEASED = "Unreleased"
_HEADING = re.compile(rf"({UNRELEASED}|\d+\.\d+\.\d+)(?: - (\d{{4}}-\d\d-\d\d))?")


class Section(NamedTuple):
    """What CHANGELOG.md has of one version. `date` is None where it was not released, or does not say when."""

    date: date | None
    text: str


def sections(changelog: str) -> Mapping[str, Section]:
    """By version, in their order. Raises ValueError for a heading of another form, and a version that stands twice."""
    _, *parts = re.split(r"^## (.*)\n?", changelog, flags=re.MULTILINE)
    found: dict[str, Section] = {}
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        match = _HEADING.fullmatch(heading.rstrip())
        if match is None:
            raise ValueError(f"its heading '## {heading}' is neither '## {UNRELEASED}' nor '## X.Y.Z - YYYY-MM-DD'")
        version, day = match.groups()
        if version in found:
            raise ValueError(f"it has two sections of {version}")
        try:
            found[version] = Section(date.fromisoformat(day) if day else None, text.strip())
        except ValueError:
            raise ValueError(f"its heading '## {heading}' names a day that no calendar has") from None
    return found


def notes(changelog: str, version: str) -> str:
    """The text of the section of `version`. Raises ValueError where there is nothing to print."""
    section = sections(changelog).get(version)
    if section is None:
        raise ValueError(f"it has no section of {version}")
    if section.date is None and version != UNRELEASED:
        raise ValueError(f"its section of {version} has no date: write '## {version} - YYYY-MM-DD'")
    if not any(line and not line.startswith("#") for line in section.text.splitlines()):
        raise ValueError(f"its section of {version} is empty: say what users notice")
    return section.text


def tagged(tag: str, package: str) -> str:
    """The version that `tag` stands for. Raises ValueError where it is not that of `package`, an `__init__.py`."""
    match = re.search(r'^__version__ = "(.+)"$', package, re.MULTILINE)
    if match is None:
        raise ValueError("it has no line '__version__ = \"X.Y.Z\"'")
    if tag != f"v{match[1]}":
        raise ValueError(f"its __version__ is {match[1]}, of which the tag is v{match[1]}, and not {tag}")
    return match[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the notes of one version, from CHANGELOG.md.")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("version", nargs="?", help=f"X.Y.Z, or {UNRELEASED}")
    asked.add_argument("--tag", help="vX.Y.Z, which must be the tag of the package's own version")
    given = parser.parse_args(arguments)
    version, page = given.version, PACKAGE
    try:
        if given.tag is not None:
            version = tagged(given.tag, page.read_text(encoding="utf-8"))
        page = CHANGELOG
        text = notes(page.read_text(encoding="utf-8"), version)
    except ValueError as error:
        sys.stderr.write(f"{page.relative_to(ROOT)}: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
