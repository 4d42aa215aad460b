"""Secrets reach where they are for, and nothing else ever holds one."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import keyring
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyring.backend import KeyringBackend
from keyring.backends.fail import Keyring as NoKeyring

from llmasos.kernel.abi import Capabilities, Pid
from llmasos.kernel.errors import ConfigError, Failed, PermissionDenied
from llmasos.kernel.program import Port
from llmasos.kernel.redaction import Secret, redacted
from llmasos.kernel.rules import Decision, Policy
from llmasos.syscalls.vault import PASSPHRASE, HomeVault, Protection
from tests.syscalls.guarded import GuardedHome, told
from tests.syscalls.test_web import Site, answer, redirect, serving

pytestmark = pytest.mark.anyio
VALUE = 's3cr3t/with+odd"chars&more'
HOLDER = Capabilities(secrets=("*",))


class FakeKeyring(KeyringBackend):
    """A keyring in memory."""

    priority = 1

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _without_keyring() -> Any:
    before = keyring.get_keyring()
    keyring.set_keyring(NoKeyring())
    yield
    keyring.set_keyring(before)


@pytest.fixture
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    async with serving() as running:
        yield running


def kept(home: Path, environ: dict[str, str] | None = None, **how: Any) -> HomeVault:
    vault = HomeVault(home, environ or {})
    how = {"hosts": ("api.example",), "servers": (), "at": 0.0, **how}
    vault.set("github", VALUE, **how)
    return vault


def test_a_secret_goes_to_its_hosts_over_https_and_to_who_may_use_it(tmp_path: Path) -> None:
    vault = kept(tmp_path, hosts=("api.example", "*.dev.example:8443", "http://localhost:80*"))
    for url in ("https://api.example/x", "https://a.dev.example:8443/", "http://localhost:8080/"):
        assert vault.for_url("github", url, HOLDER).value == VALUE
    for url in (
        "http://api.example/x", "https://api.example.evil.example/", "https://api.example:444/",
        "https://dev.example/", "https://localhost:8080/", "http://localhost/",
    ):  # fmt: skip
        with pytest.raises(PermissionDenied, match="is not for"):
            vault.for_url("github", url, HOLDER)
    for holder in (Capabilities(), Capabilities(secrets=("gitlab", "git"))):
        with pytest.raises(PermissionDenied, match="may not use"):
            vault.for_url("github", "https://api.example/", holder)
    with pytest.raises(Failed, match="no secret gitlab"):
        vault.for_url("gitlab", "https://api.example/", HOLDER)


def test_without_a_key_the_file_is_its_owner_s_alone_and_says_so(tmp_path: Path) -> None:
    vault = kept(tmp_path)
    assert os.stat(tmp_path / "vault.json").st_mode & 0o777 == 0o600
    (info,) = vault.infos()
    assert (info.name, info.protection) == ("github", Protection.NONE)
    assert VALUE not in repr(info)
    assert VALUE not in repr(vault.for_url("github", "https://api.example/", HOLDER))


def test_a_passphrase_seals_it(tmp_path: Path) -> None:
    vault = kept(tmp_path, {PASSPHRASE: "correct horse"})
    assert VALUE.encode() not in (tmp_path / "vault.json").read_bytes()
    assert vault.for_url("github", "https://api.example/", HOLDER).value == VALUE
    again = HomeVault(tmp_path, {PASSPHRASE: "correct horse"})
    assert again.for_url("github", "https://api.example/", HOLDER).value == VALUE
    for environ, match in (({}, "locked"), ({PASSPHRASE: "wrong"}, "cannot be opened")):
        locked = HomeVault(tmp_path, environ)
        with pytest.raises(Failed, match=match):
            locked.for_url("github", "https://api.example/", HOLDER)
        with pytest.raises(Failed, match=match):
            locked.set("other", "another value", hosts=("x.example",), servers=(), at=0.0)


def test_what_was_not_sealed_is_once_there_is_a_key(tmp_path: Path) -> None:
    kept(tmp_path)
    environ = {PASSPHRASE: "correct horse"}
    vault = HomeVault(tmp_path, environ)
    vault.set("other", "another value", hosts=("api.example",), servers=(), at=0.0)
    assert VALUE.encode() not in (tmp_path / "vault.json").read_bytes()
    assert vault.for_url("github", "https://api.example/", HOLDER).value == VALUE
    assert {info.protection for info in vault.infos()} == {Protection.PASSPHRASE}


def test_a_keyring_keeps_the_key(tmp_path: Path) -> None:
    keyring.set_keyring(FakeKeyring())
    vault = kept(tmp_path)
    assert VALUE.encode() not in (tmp_path / "vault.json").read_bytes()
    assert vault.infos()[0].protection == Protection.KEYRING
    assert HomeVault(tmp_path, {}).for_url("github", "https://api.example/", HOLDER).value == VALUE
    keyring.set_keyring(NoKeyring())
    with pytest.raises(Failed, match="locked"):
        HomeVault(tmp_path, {}).for_url("github", "https://api.example/", HOLDER)


def test_what_a_secret_is_for_cannot_be_changed_without_the_key(tmp_path: Path) -> None:
    environ = {PASSPHRASE: "correct horse"}
    kept(tmp_path, environ)
    file = tmp_path / "vault.json"
    content = json.loads(file.read_text())
    content["secrets"]["github"]["hosts"] = ["evil.example"]
    file.write_text(json.dumps(content))
    with pytest.raises(Failed, match="was changed"):
        HomeVault(tmp_path, environ).for_url("github", "https://evil.example/", HOLDER)


@pytest.mark.parametrize("value", ["short", "two\nlines of it", "x" * 20_000])
def test_what_is_no_secret_is_refused_and_not_shown(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HomeVault(tmp_path, {}).set("github", value, hosts=("a.example",), servers=(), at=0.0)
    assert value not in str(caught.value)


def test_a_server_gets_only_what_is_for_it(tmp_path: Path) -> None:
    vault = kept(tmp_path, servers=("tracker",))
    assert vault.for_server("github", "tracker").value == VALUE
    with pytest.raises(ConfigError, match="not set for it"):
        vault.for_server("github", "other")


def test_removed_is_removed(tmp_path: Path) -> None:
    vault = kept(tmp_path)
    vault.remove("github")
    assert vault.infos() == []
    assert VALUE not in (tmp_path / "vault.json").read_text()
    with pytest.raises(ConfigError, match="There is no secret"):
        vault.remove("github")


VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40)
SPELLINGS = [
    lambda value: value,
    lambda value: quote(value, safe=""),
    json.dumps,
    repr,
    lambda value: value.encode().hex(),
    lambda value: base64.b64encode(f"user:{value}".encode()).decode(),
    lambda value: base64.urlsafe_b64encode(f"ab{value}cd".encode()).decode(),
]


@given(VALUES, st.sampled_from(SPELLINGS), st.text(max_size=5))
def test_a_secret_is_found_however_it_is_spelled(value: str, spell: Any, around: str) -> None:
    secret = Secret("github", value)
    text = f"{around} {spell(value)} {around}"
    clean = redacted({"text": text, text: [text, {"deep": (text,)}]}, [secret])
    assert "[secret:github]" in clean["text"]
    assert redacted(text, [secret]) == clean["text"]
    assert text not in str(clean)


def test_a_long_secret_is_replaced_before_one_that_is_part_of_it() -> None:
    secrets = [Secret("a", "password"), Secret("b", "password-of-b")]
    assert redacted("password-of-b password", secrets) == "[secret:b] [secret:a]"


# --- through a running kernel


async def fetching(home: GuardedHome, url: str, **headers: str) -> str:
    @home.app
    async def fetches(port: Port, params: Any) -> None:
        said = await told(port, "web.fetch", **params)
        if said == "done":
            result = await port.syscall("web.fetch", params)
            await port.syscall("io.write", {"text": json.dumps(result)})
            await port.syscall("memory.remember", {"text": result["text"][:1000]})
            await port.syscall("fs.write", {"path": "page.md", "text": result["text"]})
            context = await port.syscall("ctx.open", {})
            await port.syscall("ctx.append", {"context": context, "text": result["text"][:150]})
            await port.syscall("llm.generate", {"context": context, "max_tokens": 4})

    async with home.booted():
        said = await home.outcome("fetches", {"url": url, "headers": headers})
        await home.runtime.flushed()
    return said


@pytest.fixture
def home(tmp_path: Path) -> GuardedHome:
    home = GuardedHome(tmp_path, policy=Policy(tainted=Decision.ALLOW))
    home.environ = {PASSPHRASE: "correct horse"}
    return home


def all_bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def set_for(home: GuardedHome, host: str) -> None:
    vault = HomeVault(home.folder, home.environ)
    vault.set("github", VALUE, hosts=(host,), servers=(), at=0.0)


async def test_the_server_gets_the_value_and_nothing_in_the_home_does(
    home: GuardedHome, site: Site
) -> None:
    set_for(home, f"http://shop.example:{site.port}")
    encoded = base64.b64encode(f"me:{VALUE}".encode()).decode()
    padding = "x" * 7990
    site.pages["/"] = answer(f"You sent {VALUE} and {quote(VALUE)} {encoded} {padding}{VALUE}")
    said = await fetching(
        home, f"http://shop.example:{site.port}/", Authorization="Bearer secret:github"
    )
    assert "web.fetch done" in said
    assert said.count("[secret:github]") >= 3
    assert f"authorization: bearer {VALUE}".lower() in "".join(site.requests).lower()
    for spelled in (VALUE, quote(VALUE), VALUE[:12], encoded[6:-6]):
        assert spelled.encode() not in all_bytes(home.folder)
        assert spelled not in said
    assert b"secret:github" in all_bytes(home.folder)


async def test_a_secret_is_not_sent_where_a_redirect_leads(home: GuardedHome, site: Site) -> None:
    set_for(home, f"http://shop.example:{site.port}")
    site.pages["/"] = redirect(f"http://evil.example:{site.port}/catch")
    site.pages["/catch"] = answer("thanks")
    said = await fetching(
        home, f"http://shop.example:{site.port}/", Authorization="secret:github", X_Plain="a"
    )
    assert "web.fetch done" in said
    assert VALUE in site.requests[0]
    assert VALUE not in site.requests[1]
    assert "X_Plain" not in site.requests[1]


@pytest.mark.parametrize(
    ("host", "headers", "problem"),
    [
        ("http://other.example", {"Authorization": "secret:github"}, "is not for"),
        ("shop.example", {"Authorization": "secret:github"}, "is not for"),
        ("http://shop.example:{port}", {"Authorization": "secret:nothing"}, "There is no secret"),
        ("http://shop.example:{port}", {"Host": "secret:github"}, "none that can be given"),
        ("http://shop.example:{port}", {"Content-Length": "5"}, "none that can be given"),
        ("http://shop.example:{port}", {"X": "a\r\nHost: evil"}, "a character in it"),
        ("http://shop.example:{port}", {"X\r\nY": "a"}, "none that can be given"),
    ],
)
async def test_what_may_not_be_sent_is_not_even_asked_for(
    home: GuardedHome, site: Site, host: str, headers: dict[str, str], problem: str
) -> None:
    set_for(home, host.format(port=site.port))
    said = await fetching(home, f"http://shop.example:{site.port}/", **headers)
    assert problem in said
    assert VALUE not in said
    assert site.asked == []


async def test_a_process_without_the_capability_gets_no_secret(
    home: GuardedHome, site: Site
) -> None:
    set_for(home, f"http://shop.example:{site.port}")

    @home.app
    async def fetches(port: Port, params: Any) -> None:
        await told(port, "web.fetch", **params)

    params = {
        "url": f"http://shop.example:{site.port}/", "headers": {"A": "secret:github"}
    }  # fmt: skip
    bare = Capabilities(root=str(home.root), hosts=("*",))
    async with home.booted():
        said = await home.outcome("fetches", params, capabilities=bare)
    assert "may not use the secret github" in said
    assert site.asked == []


async def test_an_error_that_would_tell_a_secret_does_not(home: GuardedHome, site: Site) -> None:
    set_for(home, f"http://shop.example:{site.port}")
    site.pages["/"] = redirect(f"http://{VALUE[:6]}.example/{quote(VALUE)}\x7f")
    said = await fetching(home, f"http://shop.example:{site.port}/", A="secret:github")
    assert "web.fetch" in said
    assert "done" not in said
    for spelled in (VALUE, quote(VALUE)):
        assert spelled not in said
        assert spelled.encode() not in all_bytes(home.folder)


async def test_a_child_gets_no_secret_that_its_parent_keeps_from_it(
    home: GuardedHome, site: Site
) -> None:
    set_for(home, f"http://shop.example:{site.port}")

    @home.app
    async def fetches(port: Port, params: Any) -> None:
        await told(port, "web.fetch", **params)

    @home.app
    async def parent(port: Port, params: Any) -> None:
        grant = [{"handle": 0, "narrowed": {"secrets": []}}]
        args = {"app": "fetches", "params": params, "grant": grant}
        child = await port.syscall("proc.spawn", args)
        result = await port.syscall("proc.wait", {"pid": child})
        await port.syscall("io.write", {"text": result["output"]})

    params = {
        "url": f"http://shop.example:{site.port}/", "headers": {"A": "secret:github"}
    }  # fmt: skip
    async with home.booted() as runtime:
        assert "may not use the secret github" in await home.outcome("parent", params)
        assert runtime.kernel.process(Pid(2)).taint == ()


async def test_an_mcp_server_has_the_secret_and_cannot_tell_it(home: GuardedHome) -> None:
    pytest.importorskip("mcp")
    from llmasos.syscalls.mcp import MAX_RESULT_CHARS, ServerConfig, mounted

    server = str(Path(__file__).with_name("mcp_server.py"))
    config = ServerConfig(
        command=sys.executable,
        args=(server,),
        env={"TOKEN": VALUE},
        secrets=(Secret("github", VALUE),),
    )

    @home.app
    async def calls(port: Port, params: Any) -> None:
        for padding in (0, MAX_RESULT_CHARS - 5):
            result = await port.syscall("mcp.tracker.token", {"padding": padding})
            await port.syscall("io.write", {"text": result["text"][-40:] + "\n"})
        await told(port, "mcp.tracker.blurt")
        await told(port, "fs.write", path="a.md", text="x")

    home.policy = Policy(tainted=Decision.DENY)
    async with mounted({"tracker": config}) as mounts:
        home.more = mounts.syscalls
        async with home.booted() as runtime:
            trusting = Capabilities(root=str(home.root), tainted=("mcp.tracker.token",))
            said = await home.outcome("calls", capabilities=trusting)
            assert runtime.kernel.process(Pid(1)).taint == ("mcp.tracker.token",)
            await runtime.flushed()
    assert said.startswith("[secret:github]\n")
    assert "blurt permission_denied" in said, "a tainted process tells an MCP server nothing more"
    assert "fs.write permission_denied" in said
    assert VALUE not in said
    assert VALUE[:8].encode() not in all_bytes(home.folder)


async def test_what_an_mcp_server_s_error_tells_is_cleaned(home: GuardedHome) -> None:
    pytest.importorskip("mcp")
    from llmasos.syscalls.mcp import ServerConfig, mounted

    server = str(Path(__file__).with_name("mcp_server.py"))
    config = ServerConfig(
        command=sys.executable,
        args=(server,),
        env={"TOKEN": VALUE},
        secrets=(Secret("github", VALUE),),
    )

    @home.app
    async def calls(port: Port, params: Any) -> None:
        await told(port, "mcp.tracker.blurt")

    async with mounted({"tracker": config}) as mounts:
        home.more = mounts.syscalls
        async with home.booted():
            said = await home.outcome("calls")
    assert "failed: mcp.tracker.blurt: " in said
    assert "[secret:github]" in said
    assert VALUE not in said


def test_a_kernel_fills_in_the_secrets_of_its_servers(tmp_path: Path) -> None:
    from llmasos.shell.boot import with_secrets

    vault = kept(tmp_path, servers=("tracker",))
    filled = with_secrets(vault, "tracker", {"TOKEN": "Bearer secret:github", "MODE": "fast"})
    assert filled["env"] == {"TOKEN": f"Bearer {VALUE}", "MODE": "fast"}
    assert filled["secrets"] == (Secret("github", VALUE),)
    with pytest.raises(ConfigError, match="not set for it"):
        with_secrets(vault, "other", {"TOKEN": "secret:github"})
