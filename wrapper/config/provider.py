"""One `[providers.NAME]` table.

Invariant: a base URL is unambiguous. It has no credentials, query, fragment, dot segment or
percent-encoding, so that a path appended to it stays below it.
"""

from __future__ import annotations

import re
import ssl
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

from wrapper.config.fields import SECRET_WANTED, SecretReader, Table, kind
from wrapper.config.files import Unreadable, read_text
from wrapper.config.limits import check_period, read_limits
from wrapper.config.settings import MAX_IN_FLIGHT, MAX_OUTPUT_TOKENS, Provider

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_STREAM_USAGE = re.compile("ask|sent")
_ADDRESS = "write an address such as https://api.example.com/v1"

_RESERVED_HEADERS = frozenset(
    [
        "authorization",
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "proxy-authorization",
        "proxy-connection",
        "expect",
        "cookie",
        "accept-encoding",
    ]
)
_SECRET = frozenset(("api-key", "x-api-key", "x-goog-api-key"))
_AUTH = re.compile("|".join(["bearer", *sorted(_SECRET)]))

# Seconds that an idle connection may serve again. uvicorn, and with it vLLM, closes after 5 s, Node
# after 5 s: a request that meets the close on its way is lost. These hosts keep theirs for minutes.
_KEEPALIVE = 4.0
_PATIENT_HOSTS = {"api.openai.com": 45.0, "api.groq.com": 45.0}


def read_provider(name: str, table: Table, secrets: SecretReader) -> Provider | None:
    """The provider, or None when its base URL is wrong. Problems are recorded in the table."""
    base_url = _base_url(table)
    api_key, why = secrets.read(table, "api_key")
    auth = table.text(
        "auth", "bearer", pattern=_AUTH, wanted=f'"bearer" or one of {", ".join(sorted(_SECRET))}'
    )
    headers, secret_headers, headers_why = _headers(table, secrets, auth)
    timeouts = {
        "connect_timeout": table.seconds("connect_timeout", 5.0),
        "first_byte_timeout": table.seconds("first_byte_timeout", 600.0),
        "idle_timeout": table.seconds("idle_timeout", 600.0),
        "total_timeout": table.seconds("total_timeout", 3600.0),
        "drain_timeout": table.seconds("drain_timeout", 30.0),
        "keepalive": table.seconds("keepalive", _keepalive(base_url or "")),
    }
    client_credentials = table.flag("client_credentials", False)
    max_connections = table.whole("max_connections", MAX_IN_FLIGHT, high=100_000)
    ca_file, ca_pem = _ca_file(table, secrets.base)
    is_groq = name == "groq" or "api.groq.com" in (base_url or "")
    stream_usage = table.text(
        "stream_usage",
        "sent" if is_groq else "ask",
        pattern=_STREAM_USAGE,
        wanted='"ask" or "sent"',
    )
    on_abort = table.choice("on_abort", "cancel", ("cancel", "drain"))
    websockets = table.flag("websockets", not is_groq)
    limits = read_limits(table)
    check_period(table, limits)
    default_output_tokens = table.whole("default_output_tokens", None, high=MAX_OUTPUT_TOKENS)
    cooldown = float(table.number("cooldown_seconds", Decimal(5), high="3600"))
    table.close()
    if base_url is None:
        return None
    return Provider(
        name=name,
        base_url=base_url,
        api_key=api_key,
        api_key_problem=why or headers_why,
        auth=auth,
        client_credentials=client_credentials,
        max_connections=max_connections,
        headers=headers,
        secret_headers=secret_headers,
        ca_file=ca_file,
        ca_pem=ca_pem,
        stream_usage=stream_usage,
        on_abort=on_abort,
        websockets=websockets,
        default_output_tokens=default_output_tokens,
        cooldown_seconds=cooldown,
        **timeouts,
        **limits,
    )


def _keepalive(base_url: str) -> float:
    return _PATIENT_HOSTS.get(urlsplit(base_url).hostname or "", _KEEPALIVE)


def _base_url(table: Table) -> str | None:
    value = table.text("base_url", None, wanted="an address such as https://api.example.com/v1")
    if value is None:
        if table.data.get("base_url") is None:
            table.problem("base_url", "is missing", _ADDRESS)
        return None
    wrong = _wrong_address(value)
    if wrong:
        table.problem("base_url", wrong, _ADDRESS)
        return None
    scheme, _, rest = value.partition("://")
    return f"{scheme.lower()}://{rest.removesuffix('/')}"


def _wrong_address(value: str) -> str | None:
    """What is wrong with an address. Does not repeat it: it may contain a password."""
    if len(value) > 2048 or not re.fullmatch(r"[\x21-\x7e]+", value):
        return "is not printable ASCII without spaces"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"is not an address: {error}" if "ort" in str(error) else "is not an address"
    if parts.scheme not in ("http", "https"):
        return "does not begin with http:// or https://"
    if "@" in parts.netloc:
        return "has a user name in it"
    if "?" in value or "#" in value:
        return "has a query or a fragment"
    bracketed = parts.netloc.startswith("[")
    if not host or not (bracketed or _HOST.fullmatch(host)):
        return "has no host"
    if port == 0 or parts.netloc.endswith(":"):
        return "has no port behind the colon"
    path = parts.path.removesuffix("/")
    if not _PATH.fullmatch(path):
        return "has a path with an empty segment, a percent-encoding or an odd character"
    if {".", ".."} & set(path.split("/")):
        return "has a dot segment"
    return None


def _headers(
    table: Table, secrets: SecretReader, auth: str
) -> tuple[tuple[tuple[str, str], ...], frozenset[str], str | None]:
    """The headers to add, the names of the secret ones, and why a secret is missing."""
    inner = table.table("headers")
    found: dict[str, tuple[str, str]] = {}
    secret_names: set[str] = set()
    why: str | None = None
    if inner is None:
        return (), frozenset(), None
    for name, value in inner.data.items():
        if name.lower() in found:
            inner.problem(name, "is there twice", "remove one")
        elif not _may_add(inner, name, auth):
            continue
        elif isinstance(value, dict):
            secret, missing = secrets.read(inner, name)
            why = why or missing
            if secret is not None:
                found[name.lower()] = (name, secret.reveal())
                secret_names.add(name.lower())
        elif text := _header_value(inner, name, value):
            found[name.lower()] = (name, text)
    return tuple(found.values()), frozenset(secret_names), why


def _may_add(table: Table, name: str, auth: str) -> bool:
    if not _TOKEN.fullmatch(name):
        table.problem(name, "is not a header's name", "see RFC 9110 section 5.6.2")
    elif name.lower() in _RESERVED_HEADERS or name.lower() == auth:
        table.problem(name, "is set by the gateway", "use api_key for the credential")
    else:
        return True
    return False


def _header_value(table: Table, name: str, value: object) -> str | None:
    if name.lower() in _SECRET:
        table.problem(name, "is a literal secret", SECRET_WANTED)
    elif not isinstance(value, str):
        table.problem(name, f"is {kind(value)}", "write a string")
    elif len(value) > 4096 or not _VALUE.fullmatch(value):
        table.problem(name, "is no header's value", "write printable ASCII on one line")
    else:
        return value
    return None


def _ca_file(table: Table, base: Path) -> tuple[Path | None, str | None]:
    value = table.text("ca_file", None, wanted="the path of a PEM file")
    if value is None:
        return None, None
    path = base / value
    try:
        text = read_text(path)
    except Unreadable as error:
        table.problem("ca_file", error.reason, "write the path of a PEM file")
        return None, None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        table.problem("ca_file", "holds no certificate", "write the path of a PEM file")
        return None, None
    return path, text
