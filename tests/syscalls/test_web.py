"""web.fetch: pages of granted hosts, and no way from there to anything else."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.abi import Capabilities
from llmasos.kernel.errors import (
    Failed,
    InvalidArguments,
    LimitExceeded,
    PermissionDenied,
    SyscallError,
    TimedOut,
)
from llmasos.syscalls import web
from llmasos.syscalls._addresses import is_public
from llmasos.syscalls._fetch import Fetcher, Page, parse_url
from tests.syscalls.conftest import Caller

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def answer(body: bytes | str, status: str = "200 OK", **headers: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    told = {"Content-Type": "text/plain", "Content-Length": str(len(data)), "Connection": "close"}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + data


def redirect(to: str) -> bytes:
    return answer("", "302 Found", Location=to)


@dataclass
class Site:
    """A server on this machine, and what was asked of it."""

    port: int = 0
    pages: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """Whole, as they came."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = request.split(" ")[1]
            self.asked.append(path)
            self.requests.append(request)
            self.hosts += [h[6:] for h in request.split("\r\n") if h.startswith("Host: ")]
            writer.write(self.pages.get(path, answer("nothing here", "404 Not Found")))
            if path == "/hang":
                await reader.read()
            await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site


@pytest.fixture
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    async with serving() as running:
        yield running


async def to_here(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


LOCAL = Fetcher(is_allowed=lambda _: True, resolve=to_here)


def fetch(caller: Caller, fetcher: Fetcher = LOCAL, **args: Any) -> Any:
    return caller(web.fetch_syscall(fetcher), **args)


@pytest.fixture
def granted(caller: Caller, site: Site) -> Caller:
    hosts = (f"shop.example:{site.port}", f"*.shop.example:{site.port}")
    caller.capabilities = replace(caller.capabilities, hosts=hosts)
    return caller


def url(site: Site, path: str, host: str = "shop.example") -> str:
    return f"http://{host}:{site.port}{path}"


async def test_a_granted_page_is_read(granted: Caller, site: Site) -> None:
    site.pages["/a?b=c%20d"] = answer("Tea is at four.")
    result = await fetch(granted, url=url(site, "/a?b=c%20d#part"))
    assert result == {
        "url": url(site, "/a?b=c%20d"),
        "status": 200,
        "content_type": "text/plain",
        "text": "Tea is at four.",
        "start": 0,
        "total_chars": 15,
        "truncated": False,
        "note": "",
    }
    assert site.hosts == [f"shop.example:{site.port}"]


async def test_without_a_grant_nothing_is_even_resolved(caller: Caller, site: Site) -> None:
    async def fail(host: str, port: int) -> list[str]:
        raise AssertionError(host)

    fetcher = Fetcher(is_allowed=lambda _: True, resolve=fail)
    with pytest.raises(PermissionDenied, match="needs a capability"):
        await fetch(caller, fetcher, url=url(site, "/"))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "shop.example.evil.example", "xshop.example", "localhost", "127.0.0.1"],
)
async def test_other_hosts_are_refused(granted: Caller, site: Site, host: str) -> None:
    with pytest.raises(PermissionDenied):
        await fetch(granted, url=url(site, "/", host))
    assert site.asked == []


async def test_another_port_of_a_granted_host_is_refused(granted: Caller, site: Site) -> None:
    for address in ("http://shop.example/", f"http://shop.example:{site.port + 1}/"):
        with pytest.raises(PermissionDenied):
            await fetch(granted, url=address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shop.example",
        "ftp://shop.example/",
        "file:///etc/passwd",
        "gopher://shop.example/",
        "http://",
        "http:///etc/passwd",
        "http://user:pass@shop.example/",
        "http://shop.example@evil.example/",
        "http://evil.example\\@shop.example/",
        "http://shop.example\r\nX: y/",
        "http://shop.example/\r\nX-Injected: y",
        "http://shop.example/a b",
        "http://shop.example:99999/",
        "http://shop.example:x/",
        "http://[::1/",
        "http://[zz]/",
        "http://a..b/",
        "http://shop.example\u200b/",
        "http://" + "a" * 300 + "/",
        "http://shop.example/" + "a" * 5000,
        "javascript:alert(1)",
    ],
)
async def test_odd_urls_are_refused(granted: Caller, text: str) -> None:
    granted.capabilities = replace(granted.capabilities, hosts=("*",))
    with pytest.raises(SyscallError):
        await fetch(granted, url=text)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200",
        "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.0.192", "198.18.0.1", "240.0.0.1",
        "168.63.129.16", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
        "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:db8::1",
    ],
)  # fmt: skip
async def test_addresses_that_are_not_the_internets_are_not_connected_to(
    granted: Caller, site: Site, text: str
) -> None:
    async def lead_there(host: str, port: int) -> list[str]:
        return [text]

    with pytest.raises(PermissionDenied, match="not an address of the public internet"):
        await fetch(granted, Fetcher(resolve=lead_there), url=url(site, "/"))


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"])
def test_public_addresses_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "0", "[::1]"]
)
async def test_no_spelling_of_loopback_is_reached(caller: Caller, site: Site, host: str) -> None:
    caller.capabilities = replace(caller.capabilities, hosts=("*",))
    with pytest.raises(SyscallError):
        await fetch(caller, Fetcher(), url=f"http://{host}:{site.port}/")
    assert site.asked == []


async def test_a_name_is_resolved_once_and_what_was_checked_is_connected_to(
    granted: Caller, site: Site
) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    seen: list[str] = []

    async def rebind(host: str, port: int) -> list[str]:
        return next(answers)

    def is_allowed(address: object) -> bool:
        seen.append(str(address))
        return str(address) == "127.0.0.1"

    site.pages["/"] = answer("hello")
    fetcher = Fetcher(is_allowed=is_allowed, resolve=rebind)
    assert (await fetch(granted, fetcher, url=url(site, "/")))["text"] == "hello"
    assert seen == ["127.0.0.1"]
    with pytest.raises(PermissionDenied):
        await fetch(granted, fetcher, url=url(site, "/"))


async def test_of_several_addresses_only_an_allowed_one_is_used(
    granted: Caller, site: Site
) -> None:
    async def mixed(host: str, port: int) -> list[str]:
        return ["10.0.0.1", "fe80::1%eth0", "127.0.0.1"]

    site.pages["/"] = answer("hello")
    fetcher = Fetcher(is_allowed=lambda a: str(a) == "127.0.0.1", resolve=mixed)
    assert (await fetch(granted, fetcher, url=url(site, "/")))["text"] == "hello"


async def test_redirects_are_followed_where_they_may_go(granted: Caller, site: Site) -> None:
    site.pages["/old"] = redirect("/new?x=ü")
    site.pages["/new?x=%C3%83%C2%BC"] = answer("moved")
    result = await fetch(granted, url=url(site, "/old"))
    assert result["text"] == "moved"
    site.pages["/away"] = redirect(url(site, "/there", "sub.shop.example"))
    site.pages["/there"] = answer("sub")
    assert (await fetch(granted, url=url(site, "/away")))["url"] == url(
        site, "/there", "sub.shop.example"
    )


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example/",
        "http://127.0.0.1:{port}/secret",
        "http://localhost:{port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "//evil.example/",
        "http://shop.example@evil.example/",
        "gopher://shop.example:{port}/secret",
        "http://[::1]:{port}/secret",
        "http://[bad",
    ],
)
async def test_a_redirect_is_checked_like_a_request(
    granted: Caller, site: Site, target: str
) -> None:
    site.pages["/start"] = redirect(target.format(port=site.port))
    site.pages["/secret"] = answer("secret")
    with pytest.raises((PermissionDenied, Failed)) as caught:
        await fetch(granted, url=url(site, "/start"))
    assert "secret" not in str(caught.value).replace("/secret", "")
    assert site.asked == ["/start"]


async def test_a_redirect_to_a_name_that_leads_inside_is_refused(
    granted: Caller, site: Site
) -> None:
    async def by_name(host: str, port: int) -> list[str]:
        return ["10.0.0.1" if host.startswith("sub") else "127.0.0.1"]

    site.pages["/start"] = redirect(url(site, "/secret", "sub.shop.example"))
    fetcher = Fetcher(is_allowed=lambda a: str(a) == "127.0.0.1", resolve=by_name)
    with pytest.raises(PermissionDenied, match="public internet"):
        await fetch(granted, fetcher, url=url(site, "/start"))


async def test_a_loop_of_redirects_ends(granted: Caller, site: Site) -> None:
    site.pages["/loop"] = redirect("/loop")
    with pytest.raises(Failed, match="redirects more than"):
        await fetch(granted, url=url(site, "/loop"))
    assert len(site.asked) == 6


SMALL = Fetcher(is_allowed=lambda _: True, resolve=to_here, max_bytes=10_000, time_s=5.0)


@pytest.mark.parametrize(
    "page",
    [
        answer(b"x" * 10_001),
        answer(b"x" * 20_000, Transfer_Encoding="chunked")[:0]
        + b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
        + b"x" * 20_000,
        answer(gzip.compress(b"x" * 50_000_000), Content_Encoding="gzip"),
        answer(zlib.compress(b"x" * 50_000_000), Content_Encoding="deflate"),
        answer("x", Content_Length="99999999999999"),
    ],
    ids=["large", "endless", "gzip bomb", "deflate bomb", "claimed"],
)
async def test_what_is_too_large_is_refused(granted: Caller, site: Site, page: bytes) -> None:
    site.pages["/big"] = page
    with pytest.raises(LimitExceeded, match="larger than"):
        await fetch(granted, SMALL, url=url(site, "/big"))


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        answer("x", Content_Encoding="br"),
        answer(b"not gzip", Content_Encoding="gzip"),
        answer("x", Content_Type="image/png"),
        answer(b"\x89PNG\0\0", Content_Type="text/plain"),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        answer("x", Content_Length="\xb2"),
    ],
)
async def test_servers_that_misbehave_are_a_clear_error(
    granted: Caller, site: Site, page: bytes
) -> None:
    site.pages["/bad"] = page
    with pytest.raises(SyscallError) as caught:
        await fetch(granted, url=url(site, "/bad"))
    assert len(str(caught.value)) < 400


async def test_a_server_that_never_answers_is_given_up(granted: Caller, site: Site) -> None:
    site.pages["/hang"] = b"HTTP/1.1 200 OK\r\n"
    fetcher = Fetcher(is_allowed=lambda _: True, resolve=to_here, time_s=0.2)
    with pytest.raises(TimedOut):
        await fetch(granted, fetcher, url=url(site, "/hang"))


async def test_a_host_that_does_not_exist_is_a_clear_error(granted: Caller, site: Site) -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    with pytest.raises(Failed, match="could not be reached"):
        await fetch(granted, Fetcher(resolve=unknown), url=url(site, "/"))


async def test_an_error_page_is_read_and_named(granted: Caller, site: Site) -> None:
    result = await fetch(granted, url=url(site, "/gone"))
    assert (result["status"], result["text"]) == (404, "nothing here")
    assert "404" in result["note"]


async def test_a_long_page_is_read_in_pieces(granted: Caller, site: Site) -> None:
    site.pages["/long"] = answer("0123456789" * 10)
    first = await fetch(granted, url=url(site, "/long"), max_chars=30)
    assert first["truncated"]
    assert "start=30" in first["note"]
    rest = await fetch(granted, url=url(site, "/long"), start=30, max_chars=1000)
    assert first["text"] + rest["text"] == "0123456789" * 10
    assert not rest["truncated"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("退款".encode("gb18030"), "text/plain; charset=gb18030"),
        ("退款".encode(), "text/plain"),
        ("退款".encode(), "text/plain; charset=idna"),
        ("退款".encode(), "text/plain; charset=hex"),
        ("退款".encode(), "text/plain; charset=no-such-thing"),
    ],
)
async def test_text_is_decoded_as_it_says_or_as_it_looks(
    granted: Caller, site: Site, body: bytes, kind: str
) -> None:
    site.pages["/zh"] = answer(body, Content_Type=kind)
    assert (await fetch(granted, url=url(site, "/zh")))["text"] == "退款"


def test_a_page_is_read_as_text_and_without_scripts() -> None:
    story = "<p>The ferry leaves at nine and is back at noon, every day of the week.</p>" * 3
    html = f"<html><script>var evil;</script><body><article>{story}</article></body></html>"
    text = web.page_text(Page("http://a/", 200, "text/html; charset=utf-8", html.encode()))
    assert "The ferry leaves at nine" in text
    assert "evil" not in text


async def test_tls_keeps_the_name_that_was_asked_for(caller: Caller, tmp_path: Path) -> None:
    server, client = tls_contexts(tmp_path, "shop.example")
    async with serving(server) as site:
        site.pages["/"] = answer("safe")
        caller.capabilities = replace(caller.capabilities, hosts=("*",))
        fetcher = Fetcher(is_allowed=lambda _: True, resolve=to_here, ssl_context=client)
        good = f"https://shop.example:{site.port}/"
        assert (await fetch(caller, fetcher, url=good))["text"] == "safe"
        for bad in (f"https://evil.example:{site.port}/", f"https://127.0.0.1:{site.port}/"):
            with pytest.raises(Failed, match="could not be reached"):
                await fetch(caller, fetcher, url=bad)
        site.pages["/down"] = redirect(f"http://shop.example:{site.port}/")
        with pytest.raises(PermissionDenied, match="https to http"):
            await fetch(caller, fetcher, url=f"{good}down")


def tls_contexts(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate of its own making, and a client's that trusts it."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "server.pem").write_bytes(pem + secret)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_a_cancelled_fetch_ends_at_once(granted: Caller, site: Site) -> None:
    site.pages["/hang"] = b"HTTP/1.1 200 OK\r\n"
    with anyio.move_on_after(0.1) as scope:
        await fetch(granted, url=url(site, "/hang"))
    assert scope.cancelled_caught


# --- grants


@pytest.mark.parametrize(
    ("own", "wanted", "granted"),
    [
        (("*",), ("a.com",), ("a.com",)),
        (("a.com",), ("*",), ("a.com",)),
        (("a.com", "b.com"), ("b.com", "c.com"), ("b.com",)),
        (("*.a.com",), ("*.b.a.com", "*.com"), ("*.b.a.com", "*.a.com")),
        ((), ("*",), ()),
        (("?.com",), ("[a].com",), ()),
    ],
)
def test_hosts_are_attenuated_to_what_both_allow(
    own: tuple[str, ...], wanted: tuple[str, ...], granted: tuple[str, ...]
) -> None:
    assert Capabilities(hosts=own).with_hosts(wanted).hosts == granted


HOST = st.text("ab.*:?[]1", max_size=8)


@given(own=st.lists(HOST, max_size=3), wanted=st.lists(HOST, max_size=3), host=st.text("ab.:1"))
def test_attenuation_never_adds_a_host(own: list[str], wanted: list[str], host: str) -> None:
    before = Capabilities(hosts=tuple(own))
    after = before.with_hosts(tuple(wanted))
    asked = Capabilities(hosts=tuple(wanted))
    if after.allows_host(host):
        assert before.allows_host(host)
        assert asked.allows_host(host)


@given(text=st.text(st.characters(exclude_categories=[]), max_size=60))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for each in (text, f"http://{text}", f"https://a.com/{text}"):
        with suppress(InvalidArguments):
            parsed = parse_url(each)
            again = parse_url(str(parsed))
            assert (again.host, again.port, again.scheme) == (
                parsed.host,
                parsed.port,
                parsed.scheme,
            )
            assert str(parsed).isascii()
            assert not set(str(parsed)) & set(" \r\n\t\\")
