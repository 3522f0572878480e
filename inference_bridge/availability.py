# SPDX-License-Identifier: Apache-2.0
"""Whether a backend can run on this machine, and the command that installs what is missing."""

from __future__ import annotations

import functools
import os
import sys
from typing import NamedTuple


class Availability(NamedTuple):
    """Whether a backend can run on this machine.

    Attributes:
        ok: True if it can.
        reason: Why it cannot, as a sentence without a full stop.
        hint: What to do about it, for example the command that installs what is missing.
    """

    ok: bool
    reason: str = ""
    hint: str = ""

    def __bool__(self) -> bool:
        return self.ok


_NAME = "inference-bridge"


def bridge_command(words: str) -> str:
    """Return a command of this library as the user types it: within llm it begins with `llm bridge`.

    Args:
        words: The command with its arguments, such as "pull chat".
    """
    return f"{'llm bridge' if _is_llm() else _NAME} {words}"


def _is_llm() -> bool:
    """Return whether this process is the program `llm`, which may also be started as `python -m llm`."""
    directory, file = os.path.split(sys.argv[0] if sys.argv else "")
    return file in ("llm", "llm.exe") or (file == "__main__.py" and os.path.basename(directory) == "llm")


@functools.cache
def install_command(extras: str) -> str:
    """Return a command that installs extras of this package.

    The package need not be on an index: the command installs it again from the clone, the archive or the repository
    that it came from. Within the `llm` program, which may have its own environment, the command is `llm install`.

    Args:
        extras: The names of the extras, separated by commas, such as "llm,server".

    Returns:
        The command line, quoted for a shell.
    """
    import shlex

    installer = "llm" if _is_llm() else "pip"
    options, requirement = _requirement(extras)
    return f"{installer} install {options}{shlex.quote(requirement)}"


def _requirement(extras: str) -> tuple[str, str]:
    """Return the option for pip, "-e " or "", and the requirement: where the package came from, with the extras."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    by_name = f"{_NAME}[{extras}]"
    try:
        origin = json.loads(distribution(_NAME).read_text("direct_url.json") or "{}")
        url = str(origin.get("url", ""))
    except PackageNotFoundError:  # the package is not installed, but imported from a directory in PYTHONPATH
        clone = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return "", f"{clone}[{extras}]"
    if urlsplit(url).scheme == "file" and "vcs_info" not in origin:
        path = url2pathname(urlsplit(url).path)
        editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return (editable, f"{path}[{extras}]") if os.path.exists(path) else ("", by_name)
    if "vcs_info" in origin:
        source = origin["vcs_info"]
        return "", f"{by_name} @ {source['vcs']}+{url}@{source.get('requested_revision') or source['commit_id']}"
    return "", f"{by_name} @ {url}" if url else by_name
