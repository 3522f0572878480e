# SPDX-License-Identifier: Apache-2.0
"""Reads the content of an attachment."""

from __future__ import annotations

import base64
from urllib.parse import unquote_to_bytes

from ..types import Attachment
from .attachment_files import read_file


def content(attachment: Attachment) -> bytes | None:
    """Return an attachment's bytes: its data, or the content of its file or of its data: URL (RFC 2397).

    None: the attachment has a URL of another kind.

    Raises:
        ValueError: The file can't be read, is not a regular file or is larger than 100 MiB; or the data: URL states
            base64, and its content is not valid base64.
    """
    if attachment.data is not None:
        return attachment.data
    if attachment.path is not None:
        return read_file(attachment.path)
    assert attachment.url is not None
    scheme, _, rest = attachment.url.partition(":")
    if scheme.lower() != "data":
        return None
    head, _, payload = rest.partition(",")
    data = unquote_to_bytes(payload)
    if not head.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ValueError(f"the attachment's data: URL does not contain valid base64: {error}") from None
