# SPDX-License-Identifier: Apache-2.0
"""The formats of JSON Schema as regular expressions for llguidance, or as bounds.

The formats are those of draft 2020-12, section 7.3, and those that pydantic, zod and OpenAPI add.
"""

from __future__ import annotations

from collections.abc import Mapping

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_MONTH_AND_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = rf"(?:{_YEAR}-{_MONTH_AND_DAY}|{_LEAP_YEAR}-02-29)"
_HOURS = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOURS}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOURS})"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,60}[a-zA-Z0-9])?"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = r"[0-9a-fA-F]"
_GROUP = rf"{_HEX}{{1,4}}"


def _ipv6() -> str:
    whole = rf"(?:{_GROUP}:){{7}}{_GROUP}"
    # n groups before "::" and at most 7 - n after it, because "::" replaces at least one group.
    shortened = [
        (rf"{_GROUP}(?::{_GROUP}){{{n - 1}}}" if n else "")
        + "::"
        + (rf"(?:{_GROUP}(?::{_GROUP}){{0,{6 - n}}})?" if n < 7 else "")
        for n in range(8)
    ]
    return "(?:" + "|".join([whole, *shortened]) + ")"


def _uuid(version: str = _HEX, variant: str = _HEX) -> str:
    return rf"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-{variant}{_HEX}{{3}}-{_HEX}{{12}}"


def _base64(last: str) -> str:
    sign = rf"[A-Za-z0-9{last}]"
    return rf"(?:{sign}{{4}})*(?:{sign}[AQgw]==|{sign}{{2}}[AEIMQUYcgkosw048]=)?"


def _uri_reference() -> str:
    segment = r"(?:[a-zA-Z0-9._~!$&'()*+,;=@-]|%[0-9a-fA-F]{2})"
    tail = r"(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*"
    # The first segment has no colon: the text before a colon would be read as the scheme.
    relative = rf"(?:/?{segment}+(?:/{segment}+)*/?|/)?(?:\\?{tail})?(?:#{tail})?"
    return rf"(?:{_uri()}|{relative})"


def _uri() -> str:
    plain = r"(?:[a-zA-Z0-9._~!$&'()*+,;=-]|%[0-9a-fA-F]{2})"
    segment = r"(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
    host = rf"(?:{plain}+|\[{_ipv6()}\])"
    authority = rf"(?:(?:{plain}|:)*@)?{host}(?::[0-9]{{1,5}})?"
    path = rf"(?://{authority}(?:/{segment}*)*|//(?:/{segment}+)+|/?{segment}+(?:/{segment}*)*)"
    tail = rf"(?:{segment}|[/?])*"
    return rf"[a-zA-Z][a-zA-Z0-9+.-]*:{path}(?:\?{tail})?(?:#{tail})?"


_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_NETWORK4 = (
    rf"(?:{_IPV4}(?:/32)?|(?:{_OCTET}\.){{3}}0/24|(?:{_OCTET}\.){{2}}0\.0/16|{_OCTET}\.0\.0\.0/8"
    r"|0\.0\.0\.0/0)"
)
_NETWORK6 = rf"(?:{_ipv6()}(?:/128)?|{_GROUP}(?::{_GROUP}){{0,3}}::/64|::/0)"

_WHOLE = {
    "date-time": rf"{_DATE}T{_TIME}",
    "date": _DATE,
    "time": _TIME,
    "duration": (
        r"P(?:[0-9]{1,6}W|T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}S)"
        r"|(?:[0-9]{1,6}Y(?:[0-9]{1,6}M(?:[0-9]{1,6}D)?)?|[0-9]{1,6}M(?:[0-9]{1,6}D)?|[0-9]{1,6}D)"
        r"(?:T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}S))?)"
    ),
    "email": rf"{_ATOM}(?:\.{_ATOM})*@{_HOSTNAME}",
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _ipv6(),
    "uri": _uri(),
    "uri-reference": _uri_reference(),
    "uuid": _uuid(),
    **{f"uuid{version}": _uuid(str(version), "[89abAB]") for version in (1, 3, 4, 5, 6, 7, 8)},
    "json-pointer": r"(?:/(?:[^~/\x00]|~[01])*)*",
    "cidrv4": rf"{_IPV4}/(?:3[0-2]|[12]?[0-9])",
    "cidrv6": rf"{_ipv6()}/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])",
    # The next formats are pydantic's. In a network, the address bits after the prefix must be 0, so a network has only
    # prefix lengths for which a pattern can express that.
    "ipv4interface": rf"{_IPV4}(?:/(?:3[0-2]|[12]?[0-9]))?",
    "ipv6interface": rf"{_ipv6()}(?:/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9]))?",
    "ipv4network": _NETWORK4,
    "ipv6network": _NETWORK6,
    "ipvanyaddress": rf"(?:{_IPV4}|{_ipv6()})",
    "ipvanyinterface": rf"(?:{_IPV4}|{_ipv6()})",
    "ipvanynetwork": rf"(?:{_NETWORK4}|{_NETWORK6})",
    "cuid": r"[cC][^\s-]{8,40}",
    "cuid2": r"[0-9a-z]{1,64}",
    "ulid": r"[0-7][0-9A-HJKMNP-TV-Z]{25}",
    "nanoid": r"[a-zA-Z0-9_-]{21}",
    "e164": r"\+[1-9][0-9]{6,14}",
    "byte": _base64("+/"),
    "base64": _base64("+/"),
    "base64url": _base64("_-"),
}

_GENERAL = {"idn-email": "email", "idn-hostname": "hostname", "iri": "uri", "iri-reference": "uri-reference"}

STRINGS: Mapping[str, str] = {name: f"^(?:{pattern})$" for name, pattern in _WHOLE.items()} | {
    # Stricter than the format: every match is valid, but not every valid value matches.
    general: f"^(?:{_WHOLE[name]})$"
    for general, name in _GENERAL.items()
}
"""Formats of strings, as patterns."""

EVERY_STRING = frozenset({"binary", "password", "path", "file-path", "directory-path"})
"""Formats that only describe how a string is used; every string is valid."""

NUMBERS: Mapping[str, tuple[int, int]] = {
    **{f"int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32)},
    **{f"uint{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32)},
    "int64": (1 - (1 << 53), (1 << 53) - 1),
    "uint64": (0, (1 << 53) - 1),
    **dict.fromkeys(("int", "int128", "isize"), (1 - (1 << 53), (1 << 53) - 1)),
    **dict.fromkeys(("uint", "uint128", "usize"), (0, (1 << 53) - 1)),
    **dict.fromkeys(("float", "double", "decimal"), (0, 0)),
}
"""Formats of numbers, as (minimum, maximum). (0, 0): the format has no bounds."""
