# SPDX-License-Identifier: Apache-2.0
"""What is in an attachment."""

from __future__ import annotations

import base64
import os
from urllib.parse import unquote_to_bytes

from ..types import Attachment


def content(attachment: Attachment) -> bytes | None:
    """Its bytes: as given, those of the file at its path, or those in its data: URL (RFC 2397).

    None: they are elsewhere, at any other URL. Raises ValueError where the file can't be read, or the URL holds
    no base64 and says it does.
    """
    if attachment.data is not None:
        return attachment.data
    if attachment.path is not None:
        path = os.path.expanduser(attachment.path)
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise ValueError(f"the attachment {path} can't be read: {error.strerror or error}") from None
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
