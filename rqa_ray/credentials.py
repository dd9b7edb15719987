"""Hides the credentials in URIs from all that is printed or stored, and puts them back where a stored URI is read.

Credentials are in the user part of a URI (`s3://KEY:SECRET@bucket`), in its query (`?secret_key=...`), or are tokens
of the Hugging Face hub (`hf_...`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TextIO

MASK = "***"

# The user part: up to the last @ of the first part of the URI, and over slashes if a colon came before them, because
# the keys of S3 have slashes. `abfs://container@account` and `hdfs://user@host` have no secret there.
_USER = re.compile(
    r"(?P<scheme>\b[a-zA-Z][\w.+-]*)://(?P<user>[^\s/?#'\"]*|[^\s/@?#'\"]*:(?!\d+(?:[/?#]|$))[^\s@'\"]*)@(?=[^\s])"
)
_NAMES = {"abfs", "abfss", "wasb", "wasbs", "hdfs", "viewfs", "gs", "gcs", "ssh", "sftp", "git"}  # alone, no secret
_PARAMETER = re.compile(r"(?P<name>[?&;][\w.%-]+=)(?P<value>[^\s&;#'\")]*[^\s&;#'\"),.:])")
_SECRET = re.compile(r"key(?!word)|secret|token|pass|pwd|sig|cred|auth|account|session|sas|jwt|code", re.IGNORECASE)
_PLAIN = {"blob_storage_authority", "dfs_storage_authority", "credentials_kind"}  # options that only sound secret
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=--hub_token[= ])\S+")
_MASKED = re.compile(rf"://{re.escape(MASK)}@|[?&;][\w.%-]+={re.escape(MASK)}(?![^&;#])")


def masked(text: str) -> str:
    """Returns a text with `***` for the credentials in its URIs."""
    if "://" in text or text.startswith("?"):
        text = _PARAMETER.sub(_mask_parameter, _USER.sub(_mask_user, text))
    return _TOKEN.sub(MASK, text)


def _mask_user(found: re.Match[str]) -> str:
    is_name = found["scheme"].lower() in _NAMES and ":" not in found["user"]
    return found[0] if is_name or not found["user"] else f"{found['scheme']}://{MASK}@"


def _mask_parameter(found: re.Match[str]) -> str:
    name = found["name"][1:-1]
    return found["name"] + MASK if _SECRET.search(name) and name.lower() not in _PLAIN else found[0]


def masked_values(value: Any) -> Any:
    """Returns a value of JSON whose texts are masked."""
    if isinstance(value, dict):
        return {name: masked_values(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked_values(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def is_masked(location: str) -> bool:
    """Returns whether credentials of a URI are masked, so that the URI cannot be opened."""
    return _MASKED.search(location) is not None


def unmasked(location: str, known: Iterable[str]) -> str:
    """Returns a masked URI with its credentials, if one of the known URIs leads to the same storage, else as it is."""
    if is_masked(location):
        storage, path, query = _parts(location)
        for uri in known:
            own_storage, _, own_query = _parts(uri)
            if (masked(own_storage), masked(own_query)) == (storage, query):
                return own_storage + path + own_query
    return location


def _parts(uri: str) -> tuple[str, str, str]:
    """Returns the storage (`s3://KEY:SECRET@bucket`), the path, and the query of a URI with its question mark."""
    base, mark, query = uri.partition("?")
    user = _USER.match(base)
    start = base.find("/", user.end() if user else base.find("://") + 3)
    end = start if start >= 0 else len(base)
    return base[:end], base[end:], mark + query


def mask_error(error: BaseException | None) -> None:
    """Masks credentials in the texts of an exception and of those behind it: Ray logs what a worker raises."""
    while error is not None:
        error.args = tuple(masked_values(list(error.args)))
        for name in ("filename", "filename2"):
            if isinstance(getattr(error, name, None), str):
                setattr(error, name, masked(getattr(error, name)))
        error = error.__cause__ or error.__context__


class MaskedStream:
    """A stream of text, such as stderr, that masks what is written to it: also what a library prints or logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(masked(text))

    def writelines(self, lines: Iterable[str]) -> None:
        self._stream.writelines(map(masked, lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
