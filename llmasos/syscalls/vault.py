"""The vault: secrets by name, for drivers to draw on. One file in the home, its owner's alone (0600).

Values are sealed with AES-256-GCM where there is a key: made by scrypt of a passphrase
(`LLMASOS_VAULT_PASSPHRASE`), or kept in the operating system's keyring. Where there is neither they stand in
the file as they are, and `secret list` says so. What a secret is for (hosts, MCP servers) is sealed with it,
so that nobody who can only write the file can send it elsewhere. Blocks.
"""

from __future__ import annotations

import base64
import enum
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmasos.kernel.abi import Capabilities
from llmasos.kernel.errors import ConfigError, Failed, InvalidArguments, PermissionDenied
from llmasos.kernel.redaction import MIN_CHARS, Secret

FILE: Final = "vault.json"
PASSPHRASE: Final = "LLMASOS_VAULT_PASSPHRASE"
MAX_VALUE_CHARS: Final = 16_384
NAME: Final = r"[a-z0-9][a-z0-9_.-]{0,63}"
REFERENCE: Final = re.compile(rf"\bsecret:({NAME})")
_SERVICE: Final = "llmasos vault"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class Protection(enum.StrEnum):
    """What keeps values from whoever reads the file."""

    NONE = "none"
    PASSPHRASE = "passphrase"
    KEYRING = "keyring"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    value: str
    """Sealed and in base64, or (without protection) as it is."""
    hosts: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    set_at: float = 0.0


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    protection: Protection
    salt: str = ""
    secrets: dict[str, _Entry] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """A secret as `secret list` shows it: everything but its value."""

    name: str
    hosts: tuple[str, ...]
    servers: tuple[str, ...]
    set_at: float
    protection: str


class HomeVault:
    """The vault of a home. Reads its file anew each time, so that a kernel sees what was set since."""

    def __init__(self, home: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._file = home / FILE
        self._passphrase = environ.get(PASSPHRASE) or None
        self._key: tuple[str, bytes] | None = None
        """The salt that it belongs to, and the key."""

    def infos(self) -> list[SecretInfo]:
        """What there is, by name."""
        content = self._read()
        return [
            SecretInfo(name, entry.hosts, entry.servers, entry.set_at, content.protection.value)
            for name, entry in sorted(content.secrets.items())
        ]

    def set(
        self, name: str, value: str, *, hosts: tuple[str, ...], servers: tuple[str, ...], at: float
    ) -> Protection:
        """Keep a value under a name, instead of an earlier one. Raises `ConfigError`."""
        _check(name, value)
        content = self._protected(self._read())
        sealed = self._sealed(content, name, value, hosts, servers)
        entry = _Entry(value=sealed, hosts=hosts, servers=servers, set_at=at)
        kept = {**content.secrets, name: entry}
        self._write(content.model_copy(update={"secrets": kept}))
        return content.protection

    def remove(self, name: str) -> None:
        """Forget a secret. Raises `ConfigError` where there is none of that name."""
        content = self._read()
        if name not in content.secrets:
            raise ConfigError(f"There is no secret {name!r}; `secret list` shows those there are.")
        kept = {key: entry for key, entry in content.secrets.items() if key != name}
        self._write(content.model_copy(update={"secrets": kept}))

    def for_url(self, name: str, url: str, holder: Capabilities) -> Secret:
        """A secret for a request to a URL; see `redaction.Vault`."""
        if not holder.allows_secret(name):
            raise PermissionDenied(f"This process may not use the secret {name}; see --secret.")
        content = self._read()
        entry = content.secrets.get(name)
        if entry is None:
            raise Failed(f"There is no secret {name} in the vault; `llmasos secret set {name}`.")
        if not any(_is_for(pattern, url) for pattern in entry.hosts):
            raise PermissionDenied(
                f"The secret {name} is not for {urlsplit(url).netloc}; it goes to"
                f" {', '.join(entry.hosts) or 'no host at all'}, and there only over https."
            )
        return Secret(name, self._opened(content, name, entry))

    def for_server(self, name: str, server: str) -> Secret:
        """A secret for the environment of an MCP server. Raises `ConfigError`."""
        content = self._read()
        entry = content.secrets.get(name)
        if entry is None or server not in entry.servers:
            raise ConfigError(
                f"The MCP server {server} wants the secret {name}, which is not set for it:"
                f" `llmasos secret set {name} --mcp {server}`."
            )
        try:
            return Secret(name, self._opened(content, name, entry))
        except Failed as error:
            raise ConfigError(str(error)) from error

    # --- the file

    def _read(self) -> _File:
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            return self._new()
        except OSError as error:
            raise ConfigError(f"{self._file} cannot be read: {error.strerror}.") from error
        try:
            return _File.model_validate_json(text)
        except ValidationError:
            raise ConfigError(f"{self._file} is no vault that this version can read.") from None

    def _new(self) -> _File:
        salt = secrets.token_hex(16)
        if self._passphrase is not None:
            return _File(protection=Protection.PASSPHRASE, salt=salt)
        if _keyring() is not None:
            return _File(protection=Protection.KEYRING, salt=salt)
        return _File(protection=Protection.NONE)

    def _protected(self, content: _File) -> _File:
        """The same, sealed from now on if it was not and there is a key."""
        new = self._new()
        if content.protection is not Protection.NONE or new.protection is Protection.NONE:
            return content
        sealed = {
            name: entry.model_copy(
                update={"value": self._sealed(new, name, entry.value, entry.hosts, entry.servers)}
            )
            for name, entry in content.secrets.items()
        }
        return new.model_copy(update={"secrets": sealed})

    def _write(self, content: _File) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temp = f"{self._file}.{secrets.token_hex(6)}.part"
        try:
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "w", encoding="utf-8") as stream:
                stream.write(content.model_dump_json(indent=1))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temp, self._file)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temp)
            raise ConfigError(f"{self._file} cannot be written: {error.strerror}.") from error

    # --- sealing

    def _sealed(
        self,
        content: _File,
        name: str,
        value: str,
        hosts: tuple[str, ...],
        servers: tuple[str, ...],
    ) -> str:
        if content.protection is Protection.NONE:
            return value
        for other, entry in [*content.secrets.items()][:1]:  # one vault has one key
            self._opened(content, other, entry)
        nonce = os.urandom(_NONCE_BYTES)
        bound = _bound(name, hosts, servers)
        sealed = _cipher(self._key_of(content, make=True)).encrypt(nonce, value.encode(), bound)
        return base64.b64encode(nonce + sealed).decode()

    def _opened(self, content: _File, name: str, entry: _Entry) -> str:
        if content.protection is Protection.NONE:
            return entry.value
        cipher = _cipher(self._key_of(content, make=False))
        from cryptography.exceptions import InvalidTag

        data = base64.b64decode(entry.value)
        bound = _bound(name, entry.hosts, entry.servers)
        try:
            opened: bytes = cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):
            raise Failed(
                f"The secret {name} cannot be opened: {PASSPHRASE} is not what it was sealed with,"
                " or the vault was changed."
            ) from None
        return opened.decode()

    def _key_of(self, content: _File, *, make: bool) -> bytes:
        if self._key is None or self._key[0] != content.salt:
            find = self._derived if content.protection is Protection.PASSPHRASE else self._kept
            self._key = (content.salt, find(content.salt, make))
        return self._key[1]

    def _derived(self, salt: str, _make: bool) -> bytes:
        if self._passphrase is None:
            raise Failed(f"The vault is locked: start the kernel with {PASSPHRASE} set.")
        try:
            from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
        except ImportError as error:
            raise _missing() from error
        derive = Scrypt(salt=bytes.fromhex(salt), length=_KEY_BYTES, n=2**15, r=8, p=1).derive
        return bytes(derive(self._passphrase.encode()))

    def _kept(self, salt: str, make: bool) -> bytes:
        """The key in the keyring, under a name that belongs to this vault alone."""
        keyring = _keyring()
        if keyring is None:
            raise Failed(
                "The vault is locked: its key is in a keyring that cannot be reached here."
            )
        known = keyring.get_password(_SERVICE, salt)
        if known is None and make:
            known = base64.b64encode(os.urandom(_KEY_BYTES)).decode()
            keyring.set_password(_SERVICE, salt, known)
        if known is None:
            raise Failed("The vault is locked: the keyring does not have its key (any more).")
        return base64.b64decode(known)


def _check(name: str, value: str) -> None:
    """Raise `ConfigError` for what cannot be a secret."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{name[:80]!r} is no name for a secret; use a-z, 0-9 and _.- .")
    if not MIN_CHARS <= len(value) <= MAX_VALUE_CHARS:
        raise ConfigError(f"A secret has {MIN_CHARS} to {MAX_VALUE_CHARS} characters.")
    if not value.isprintable():
        raise ConfigError("A secret is one line of printable characters.")


def _is_for(pattern: str, url: str) -> bool:
    """Whether a secret for this host may go with a request: over https, unless it says http itself."""
    parts = urlsplit(url)
    scheme, sign, host = pattern.partition("://")
    wanted, host = (scheme, host) if sign else ("https", pattern)
    return parts.scheme == wanted and Capabilities(hosts=(host,)).allows_host(parts.netloc)


def check_hosts(hosts: tuple[str, ...]) -> None:
    """Raise `InvalidArguments` for a host that would let a secret go anywhere."""
    for host in hosts:
        if not host.rpartition("://")[2].strip("*.") or any(char in host for char in "?[] "):
            raise InvalidArguments(f"{host!r} names no host; give one such as api.example.org.")


def _bound(name: str, hosts: tuple[str, ...], servers: tuple[str, ...]) -> bytes:
    return json.dumps([name, sorted(hosts), sorted(servers)]).encode()


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise _missing() from error
    return AESGCM(key)


def _missing() -> ConfigError:
    return ConfigError(
        "cryptography, which seals secrets, is not installed; `pip install 'llmasos[vault]'`."
    )


def _keyring() -> Any | None:
    """The operating system's keyring, where there is one that works."""
    try:
        import keyring
        from keyring.backends.fail import Keyring
    except ImportError:
        return None
    return None if isinstance(keyring.get_keyring(), Keyring) else keyring
