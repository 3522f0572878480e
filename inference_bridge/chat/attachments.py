# SPDX-License-Identifier: Apache-2.0
"""What is in an attachment."""

from __future__ import annotations

import base64
from urllib.parse import unquote_to_bytes

from ..types import Attachment
from .attachment_files import read_file


def content(attachment: Attachment) -> bytes | None:
    """Its bytes: as given, those of the file at its path, or those in its data: URL (RFC 2397).

    None: they are elsewhere, at any other URL. Raises ValueError where the file can't be read, is not a regular file
    or is larger than 100 MiB, and where the URL holds no base64 and says it does.
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
        raise ValueError(f"the attachment's data: URL holds no base64: {error}") from None
