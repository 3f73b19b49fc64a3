"""Bytes of callers to values that are safe to go on with; every error names the field and holds nothing of the body."""

from __future__ import annotations

import binascii
from typing import TypeVar

import msgspec

from sandbox_svc.errors import InvalidRequest, MalformedRequest
from sandbox_svc.strict_json import SurrogateCloak, check_bounds

T = TypeVar("T")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> tuple[T, SurrogateCloak | None]:
    """Decode a request body strictly: RFC 8259 in UTF-8, of the decoder's type.

    Lone surrogates in `arguments` are allowed; then a cloak is returned, which `arguments_of` needs. Raises
    `MalformedRequest` or `InvalidRequest` with a message that holds nothing of the body.
    """
    try:
        if not body.isascii():
            str(body, "utf-8")
        try:
            return decoder.decode(body), None
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            cloak = SurrogateCloak()
            try:
                hidden = cloak.hide(body)
            except ValueError as error:
                raise InvalidRequest(f"The body {error}") from None
            if hidden is None:
                raise
            return decoder.decode(hidden), cloak
    except msgspec.ValidationError as error:
        raise InvalidRequest(_say(error)) from None
    except UnicodeDecodeError:
        raise MalformedRequest("The body is not UTF-8") from None
    except msgspec.DecodeError:
        raise MalformedRequest("The body is not valid JSON") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply") from None


def _say(error: msgspec.ValidationError) -> str:
    text = str(error)
    # msgspec quotes types, bounds and paths, which are ours, but also fields and values, which are the caller's.
    if text.startswith("Object contains unknown field"):
        name = text.partition("`")[2].partition("`")[0]
        is_plain = len(name) <= 40 and name.isidentifier() and name.isascii()
        return f"Unknown field {name}" if is_plain else "Unknown field"
    if text.startswith("Invalid enum value"):
        return f"Invalid value{text[text.rfind(' - at ') :]}"
    return text[:200]


def arguments_of(raw: msgspec.Raw | msgspec.UnsetType, cloak: SurrogateCloak | None) -> bytes:
    """Return the arguments as one JSON object of bounded depth, otherwise exactly as they were sent.

    Raises `InvalidRequest`.
    """
    if raw is msgspec.UNSET:
        return b"{}"
    text = bytes(raw)
    if text == b"null":
        return b"{}"
    if not text.startswith(b"{"):
        raise InvalidRequest("arguments must be a JSON object")
    try:
        check_bounds(text)
    except ValueError as error:
        raise InvalidRequest(f"The arguments {error}") from None
    return text if cloak is None else cloak.restore(text)


def from_base64(text: str, field: str) -> bytes:
    """Decode strict base64: standard alphabet, padded, nothing between or after. Raises `InvalidRequest`."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        data = None
    # Some versions of Python let more padding pass than there can be.
    if data is None or len(text) != (len(data) + 2) // 3 * 4:
        raise InvalidRequest(f"{field} must be base64 in the standard alphabet, padded and without line breaks")
    return data


def checked_source(source: bytes, field: str) -> bytes:
    """Return a source that is UTF-8, not empty and free of NUL. Raises `InvalidRequest`."""
    if not source:
        raise InvalidRequest(f"{field} must not be empty")
    if not source.isascii():
        try:
            str(source, "utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest(f"{field} must hold UTF-8 text") from None
    if b"\0" in source:
        raise InvalidRequest(f"{field} must not hold NUL characters")
    return source
