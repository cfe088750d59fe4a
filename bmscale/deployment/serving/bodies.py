"""The fields of a request, whichever way they come: JSON, a form, or the query."""

import email.policy
import json
import re
from email.parser import BytesParser
from typing import Any
from urllib.parse import parse_qs

from bmscale.deployment.serving.limits import Refused

_MOST_FIELDS = 2_000
_MOST_PARTS, _LONGEST_HEAD = 1_100, 1_000
"""Of a multipart body, and bytes of the header of each: the parser takes the square of their number."""


def fields_of(content_type: str, body: bytes, query: str = "") -> dict[str, Any]:
    """JSON's values as they are, a form's as strings; what a form has twice is a list.

    Raises Refused with 400 for what cannot be read, 415 for another type of content.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return _json(body)
    values = _form(query.encode("latin-1", errors="replace"))
    if kind == "application/x-www-form-urlencoded":
        values |= _form(body)
    elif kind == "multipart/form-data":
        values |= _multipart(content_type, body)
    elif kind or body:
        raise Refused(415, f"Content-Type: must be application/json or a form; got {kind[:80]!r}")
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "Invalid JSON format") from None
    if not isinstance(value, dict):
        raise Refused(400, "Invalid JSON format: must be an object")
    return value


def _form(body: bytes) -> dict[str, list[str]]:
    try:
        text = body.decode("utf-8")  # browsers escape it, `curl -d` does not
        return parse_qs(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise Refused(400, "Invalid form: must be UTF-8, as it is or percent-encoded") from None


def _multipart(content_type: str, body: bytes) -> dict[str, list[str]]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", errors="replace")
    _check_parts(head, body)
    values: dict[str, list[str]] = {}
    try:
        message = BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        for part in message.iter_parts() if message.is_multipart() else ():
            name = part.get_param("name", header="content-disposition")
            if not isinstance(name, str) or part.get_filename() is not None or len(values) > _MOST_FIELDS:
                raise Refused(400, "Invalid form: fields must be plain values")
            values.setdefault(name, []).append(bytes(part.get_payload(decode=True)).decode("utf-8"))
    except Refused:
        raise
    except Exception:  # the parser of e-mail has an exception for every kind of damage
        raise Refused(400, "Invalid form: not multipart/form-data of UTF-8 text") from None
    if not values:
        raise Refused(400, "Invalid form: no field could be read")
    return values


def _check_parts(head: bytes, body: bytes) -> None:
    if len(head) <= _LONGEST_HEAD:
        boundary = BytesParser(policy=email.policy.HTTP).parsebytes(head).get_boundary() or ""
        parts = body.split(b"--" + boundary.encode("latin-1", errors="replace"), _MOST_PARTS + 1)
        heads = [re.split(rb"\r?\n\r?\n", part, maxsplit=1)[0] for part in parts]
        if boundary and len(parts) <= _MOST_PARTS and max(map(len, heads)) <= _LONGEST_HEAD:
            return
    raise Refused(400, f"Invalid form: must have a boundary and at most {_MOST_PARTS:,} parts with short headers")
