"""Getting one page over HTTP for a program that is not trusted.

The address is checked where the connection is made: a name is resolved once, an allowed address of it is
connected to, and TLS and the Host header keep the name. So a name that resolves differently a moment later
gains nothing. Each redirect is a new request that is checked like the first. Sends no cookies, no
credentials, and follows no proxy setting.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import anyio
import httpcore2

from llmasos.kernel.errors import (
    Failed,
    InvalidArguments,
    LimitExceeded,
    PermissionDenied,
    TimedOut,
)
from llmasos.syscalls._addresses import Address, is_public

MAX_URL_CHARS = 4_000
MAX_REDIRECTS = 5
MAX_BYTES = 8 * 2**20
"""Of a body, as it comes and unpacked."""
TIME_S = 20.0
CONNECT_S = 8.0
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAFE = "/%:@!$&'()*+,;=~-._"

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_OURS = re.compile(
    r"host|content-.*|transfer-.*|connection|keep-alive|te|trailer|upgrade|expect|proxy-.*|accept-encoding",
    re.IGNORECASE,
)
"""Headers that say how a request is sent, which is not the caller's business."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    url: str
    """Where it came from in the end."""
    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Url:
    """A URL taken apart once, so that what is checked is what is asked for."""

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def authority(self) -> str:
        """Host, and the port where it is not the scheme's own; also what a grant must cover."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(text: str) -> Url:
    """Take a URL apart; raises `InvalidArguments` for what is none or is odd."""
    if len(text) > MAX_URL_CHARS:
        raise InvalidArguments(f"A URL has at most {MAX_URL_CHARS} characters.")
    if any(char <= " " or char in '\\"<>^`{|}\x7f' or not char.isprintable() for char in text):
        raise InvalidArguments("The URL has a character in it that no URL has.")
    try:
        parts = urlsplit(text)
        scheme, port = parts.scheme.lower(), parts.port
        host = _host(parts.hostname or "")
    except ValueError as error:
        raise InvalidArguments(
            "That is not a URL; give one like https://example.org/page."
        ) from error
    if scheme not in _PORTS or not host:
        raise InvalidArguments("Give a URL that begins with https:// or http://.")
    if "@" in parts.netloc:
        raise InvalidArguments("A URL with a user name in it is not fetched; leave it out.")
    target = quote(parts.path or "/", safe=_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=f"{_SAFE}?")
    return Url(scheme, host, _PORTS[scheme] if port is None else port, target)


def _host(host: str) -> str:
    """A host name in ASCII, or an address; empty for what is neither. Raises `ValueError`."""
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    name = host.lower().rstrip(".")
    if not name.isascii():
        name = name.encode("idna").decode() if len(name) < 254 else ""
    return name if _NAME.fullmatch(name) else ""


def header(name: str, value: str) -> tuple[bytes, bytes]:
    """A header that may be sent; raises `InvalidArguments`, without the value, for one that may not."""
    if not _TOKEN.fullmatch(name) or _OURS.fullmatch(name):
        raise InvalidArguments(f"The header {name[:100]!r} is none that can be given.")
    if not (value.isascii() and value.isprintable()):
        raise InvalidArguments(f"The header {name} has a character in it that no header has.")
    return name.encode(), value.strip().encode()


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Fetcher:
    """Gets pages. `is_allowed` says which addresses may be connected to."""

    def __init__(
        self,
        *,
        is_allowed: Callable[[Address], bool] = is_public,
        resolve: Resolve = resolve,
        ssl_context: ssl.SSLContext | None = None,
        max_bytes: int = MAX_BYTES,
        time_s: float = TIME_S,
    ) -> None:
        self._is_allowed = is_allowed
        self._resolve = resolve
        self._ssl_context = ssl_context
        self._max_bytes = max_bytes
        self._time_s = time_s

    async def get(
        self, url: str, allows_host: Callable[[str], bool], headers: Headers = ()
    ) -> Page:
        """The page at a URL, redirects followed as far as `allows_host` allows; `headers` go to the place
        that was asked for alone. Raises `SyscallError`."""
        try:
            with anyio.fail_after(self._time_s):
                return await self._follow(parse_url(url), allows_host, headers)
        except TimeoutError as error:
            raise TimedOut(f"The page did not come within {self._time_s:g} s.") from error
        except httpcore2.TimeoutException as error:
            raise TimedOut("The server did not answer in time.") from error
        except (httpcore2.NetworkError, OSError) as error:
            raise Failed(f"The server could not be reached: {_reason(error)}.") from error
        except (httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
            raise Failed(f"The server does not speak HTTP properly: {_reason(error)}.") from error

    async def _follow(self, url: Url, allows_host: Callable[[str], bool], headers: Headers) -> Page:
        first = url
        for _ in range(MAX_REDIRECTS + 1):
            if not allows_host(url.authority):
                raise PermissionDenied(
                    f"This process may not reach {url.authority}; it needs a capability for that host."
                )
            is_first = (url.scheme, url.authority) == (first.scheme, first.authority)
            answer = await self._request(url, headers if is_first else ())
            if isinstance(answer, Page):
                return answer
            if url.scheme == "https" and answer.scheme == "http":
                raise PermissionDenied(f"{url} leads from https to http, which is not followed.")
            url = answer
        raise Failed(f"The page redirects more than {MAX_REDIRECTS} times.")

    async def _request(self, url: Url, headers: Headers) -> Page | Url:
        """One request; a `Url` where the answer is to go there."""
        backend = _CheckedBackend(self._is_allowed, self._resolve)
        async with (
            httpcore2.AsyncConnectionPool(
                ssl_context=self._ssl_context, network_backend=backend
            ) as pool,
            pool.stream(
                "GET",
                httpcore2.URL(
                    scheme=url.scheme.encode(),
                    host=url.host.encode(),
                    port=url.port,
                    target=url.target.encode(),
                ),
                headers=[
                    (b"Host", url.authority.encode()),
                    (b"User-Agent", b"LLMasOS"),
                    (b"Accept", b"text/html, text/*;q=0.9, */*;q=0.5"),
                    (b"Accept-Encoding", b"gzip, deflate"),
                    *headers,
                ],
                extensions={"timeout": {"connect": CONNECT_S, "read": self._time_s}},
            ) as response,
        ):
            answered = _Headers(response.headers)
            location = answered["location"]
            if response.status in _REDIRECTS and location:
                return _redirected(url, location)
            body = await self._body(response.aiter_stream(), answered)
        return Page(str(url), response.status, answered["content-type"], body)

    async def _body(self, pieces: AsyncIterator[bytes], headers: _Headers) -> bytes:
        length = headers["content-length"]
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()
        unpack = _unpacker(headers["content-encoding"])
        body = bytearray()
        num_received = 0
        async for piece in pieces:
            num_received += len(piece)
            body += unpack(piece, self._max_bytes - len(body) + 1)
            if max(num_received, len(body)) > self._max_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> LimitExceeded:
        return LimitExceeded(f"The page is larger than {self._max_bytes} bytes; it was not read.")


def _redirected(url: Url, location: str) -> Url:
    try:
        return parse_url(quote(urljoin(str(url), location), safe=f"{_SAFE}?#[]"))
    except (ValueError, InvalidArguments) as error:
        raise Failed(f"{url} redirects to what is no page: {location[:100]!r}.") from error


class _Headers:
    """The first header of each name, as text."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, str] = {}
        for name, value in headers:
            self._values.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip())

    def __getitem__(self, name: str) -> str:
        return self._values.get(name, "")


class _CheckedBackend(httpcore2.AnyIOBackend):
    """Connects to allowed addresses only, whatever a name says."""

    def __init__(self, is_allowed: Callable[[Address], bool], resolve: Resolve) -> None:
        self._is_allowed = is_allowed
        self._resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve once, then connect to one of the very addresses that were checked."""
        found = [
            ipaddress.ip_address(text.partition("%")[0]) for text in await self._resolve(host, port)
        ]
        allowed = [address for address in found if self._is_allowed(address)]
        if not allowed:
            raise PermissionDenied(f"{host} is not an address of the public internet.")
        return await super().connect_tcp(
            str(allowed[0]), port, timeout, local_address, socket_options
        )


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """What turns pieces of a body into at most so many plain bytes."""
    if encoding.lower() in ("", "identity"):
        return lambda piece, _: piece
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        raise Failed(f"The page is packed in a way that was not asked for ({encoding[:40]!r}).")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def unpack(piece: bytes, most: int) -> bytes:
        try:
            return inflater.decompress(piece, most)
        except zlib.error as error:
            raise Failed("The page is damaged: it cannot be unpacked.") from error

    return unpack


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:200]
