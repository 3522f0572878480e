# SPDX-License-Identifier: Apache-2.0
"""Downloads from the Hugging Face hub that a later command can continue.

huggingface_hub continues an interrupted transfer, but since version 2 it deletes the partial file when the process
ends. So this module downloads large files to the place in the hub's cache where huggingface_hub finds them.
"""

from __future__ import annotations

import os
from pathlib import Path

_SMALLEST = 10 << 20
"""Minimum size in bytes of a file to download here: huggingface_hub writes 10 MiB at a time."""
_LARGEST = 50_000_000_000
"""Maximum size in bytes: the hub sends larger files in pieces, which only huggingface_hub can join."""


def arrived(repo: str, sha256: str | None) -> int:
    """Return how many bytes of a file earlier, interrupted commands have downloaded.

    Args:
        repo: The repository, OWNER/NAME.
        sha256: The file's checksum. None for a file that git keeps: it is never continued.
    """
    if sha256 is None:
        return 0
    try:
        return _partial(repo, sha256).stat().st_size
    except OSError:
        return 0


def fetch(repo: str, commit: str, name: str, size: int, sha256: str | None) -> None:
    """Download a file into the hub's cache, and continue a partial one. Skip a file that can't be continued.

    Args:
        repo: The repository, OWNER/NAME.
        commit: The commit that has the file.
        name: The file's name in the repository.
        size: The file's size in bytes.
        sha256: The file's checksum. None for a file that git keeps.

    Raises:
        Exception: Any error of huggingface_hub and of its HTTP client.
    """
    from filelock import FileLock
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.file_download import http_get

    if sha256 is None or not _SMALLEST <= size <= _LARGEST:
        return
    url = hf_hub_url(repo, name, revision=commit)
    if get_hf_file_metadata(url).etag != sha256:  # huggingface_hub looks for a file named after the etag
        return
    partial = _partial(repo, sha256)
    blob = partial.with_name(sha256)
    token = get_token()
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / blob.parent.parent.name / f"{sha256}.lock"
    for directory in (partial.parent, lock.parent):
        directory.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # the lock that huggingface_hub takes
        if blob.exists():
            return
        if arrived(repo, sha256) > size:
            partial.unlink()
        with partial.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=size,
                displayed_filename=os.path.basename(name),
            )
        partial.replace(blob)


def _partial(repo: str, sha256: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "blobs" / f"{sha256}.incomplete"
