# SPDX-License-Identifier: Apache-2.0
"""Downloads from the Hugging Face hub that a later command continues.

huggingface_hub continues a transfer that breaks off, but since version 2 it deletes what arrived when the process ends.
So a large file is fetched here, to the place in the hub's cache where huggingface_hub finds it complete.
"""

from __future__ import annotations

import os
from pathlib import Path

_SMALLEST = 10 << 20
"""Bytes of a file that is worth continuing: huggingface_hub writes 10 MiB at a time."""
_LARGEST = 50_000_000_000
"""Bytes of a file that the hub sends over plain HTTP. Larger ones come in pieces, by huggingface_hub alone."""


def arrived(repo: str, sha256: str | None) -> int:
    """Return how many bytes of a file have been fetched by a command that did not end."""
    if sha256 is None:
        return 0
    try:
        return _partial(repo, sha256).stat().st_size
    except OSError:
        return 0


def fetch(repo: str, commit: str, name: str, size: int, sha256: str | None) -> None:
    """Fetch a file into the hub's cache, after what of it is there. A file that can't be continued is left out.

    Args:
        repo: The repository, OWNER/NAME.
        commit: The commit that has the file.
        name: The file's name in the repository.
        size: Its size in bytes.
        sha256: Its checksum; None for a file that git keeps.

    Raises:
        Exception: As huggingface_hub raises.
    """
    from filelock import FileLock
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.file_download import http_get

    if sha256 is None or not _SMALLEST <= size <= _LARGEST:
        return
    url = hf_hub_url(repo, name, revision=commit)
    if get_hf_file_metadata(url).etag != sha256:  # huggingface_hub would not find it
        return
    partial = _partial(repo, sha256)
    blob = partial.with_name(sha256)
    token = get_token()
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / blob.parent.parent.name / f"{sha256}.lock"
    for directory in (partial.parent, lock.parent):
        directory.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # as huggingface_hub's
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
