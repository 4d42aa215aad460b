"""A checkpoint's file: one process's events, files and pages, packed so that it can be trusted or refused.

It is a zip with a manifest that names every member with its size and SHA-256; the zip's comment is the
SHA-256 of all before it, so that not one bit of the file can change unnoticed. Members may be compressed by
zstd. An encrypted checkpoint is a header (magic, salt, nonce) and all of that under AES-256-GCM with a key
that scrypt made of a passphrase.

What is read is hostile until proven otherwise: no size is believed before it is bounded, no name of a member
is a path, and nothing is written here. What the parts mean is not known here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmasos.kernel.abi import Labels
from llmasos.kernel.errors import CheckpointRefused, ConfigError

FORMAT: Final = 1
MAX_FILE_BYTES: Final = 2**31 - 1
"""Of the checkpoint itself; it is also what AES-GCM takes at once."""
MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_EVENTS_BYTES: Final = 1 << 29
MAX_MEMBERS: Final = 100_000
MAX_RATIO: Final = 200
MIN_UNPACKED_BYTES: Final = 64 << 20
"""What any checkpoint may unpack to; a larger one to `MAX_RATIO` times its size at most."""

_MAGIC: Final = b"LLMASOS-ENCRYPTED-1\n"
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_DIGEST_CHARS: Final = 64
_MANIFEST: Final = "manifest.json"
_EVENTS: Final = "events.jsonl"
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN_ZIP: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, OverflowError, RuntimeError, EOFError,
    OSError,
)  # fmt: skip
"""What `zipfile` raises for files that were made to vex it."""
_STRICT: Final = ConfigDict(extra="forbid", strict=True, frozen=True)


class Member(BaseModel):
    """A part of the file; size and digest are of what it holds when unpacked."""

    model_config = _STRICT

    name: str = Field(pattern=r"^(events\.jsonl|files/[0-9]{6}|pages/[0-9a-f]{64})$")
    size: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class OwnedFile(BaseModel):
    """A file of the process: where it stands under the process's root."""

    model_config = _STRICT

    path: str = Field(min_length=1, max_length=4096)
    member: str
    labels: list[str] = Field(default_factory=list, max_length=64)
    """Where text in it came from, if from outside."""


class Manifest(BaseModel):
    """What the file says of itself."""

    model_config = _STRICT

    format: int
    home: str
    pid: int = Field(ge=1)
    num_events: int = Field(ge=1)
    app: str
    version: str
    syscalls: list[str]
    """Patterns of what the process may call."""
    model: str
    fingerprint: str
    vocab_size: int
    page_size: int
    bytes_per_page: int
    compression: Literal["", "zstd"]
    members: list[Member] = Field(max_length=MAX_MEMBERS)
    files: list[OwnedFile] = Field(max_length=MAX_MEMBERS)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A process as it was after its first `len(events)` events."""

    home: str
    pid: int
    spawn: Mapping[str, Any]
    events: Sequence[bytes]
    files: Mapping[str, bytes] = field(default_factory=dict)
    """By their paths under the process's root."""
    labels: Mapping[str, Labels] = field(default_factory=dict)
    """Of files that hold text from outside."""
    page_size: int = 0
    bytes_per_page: int = 0
    pages: Mapping[bytes, bytes] = field(default_factory=dict)
    """K/V by page key; see `swap.page_key`."""
    fingerprint: str = ""
    """Of the model that computed the pages."""


def pack(checkpoint: Checkpoint, *, compress: bool = False, passphrase: str | None = None) -> bytes:
    """The file's content. Raises `ConfigError` where an extra package is missing, `CheckpointRefused`
    where it would be too large."""
    parts, files = _parts(checkpoint)
    num_bytes = sum(map(len, parts.values()))
    data = _zipped(_manifest(checkpoint, parts, files, "zstd" if compress else ""), parts)
    if num_bytes > max_unpacked_bytes(len(data)):  # it would be taken for a bomb
        data = _zipped(_manifest(checkpoint, parts, files, ""), parts, zipfile.ZIP_STORED)
    if max(len(data), num_bytes) > MAX_FILE_BYTES - 1024:
        raise CheckpointRefused("The checkpoint would be larger than 2 GiB; leave its pages out.")
    return data if passphrase is None else _encrypted(data, passphrase)


def is_encrypted(data: bytes) -> bool:
    """Whether a passphrase is needed to read it."""
    return data.startswith(_MAGIC)


def unpack(data: bytes, *, passphrase: str | None = None) -> Checkpoint:
    """What is in a file, every byte of it checked. Raises `CheckpointRefused`, `ConfigError`."""
    if is_encrypted(data):
        data = _decrypted(data, passphrase)
    body, digest = data[:-_DIGEST_CHARS], data[-_DIGEST_CHARS:]
    if not body.startswith(b"PK"):
        raise CheckpointRefused("It is not a checkpoint, or its beginning is damaged.")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise CheckpointRefused("It is damaged or cut short: its checksum does not match.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _checkpoint(archive, len(data))
    except _BROKEN_ZIP as error:
        raise CheckpointRefused(f"It is no checkpoint that can be read ({error}).") from error


def max_unpacked_bytes(num_bytes: int) -> int:
    """What a file of that size may unpack to."""
    return max(MIN_UNPACKED_BYTES, num_bytes * MAX_RATIO)


# --- writing


def _zipped(
    manifest: Manifest, parts: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    stream = io.BytesIO()
    compressor = _zstd() if manifest.compression else None
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED if compressor else method) as archive:
        archive.writestr(_MANIFEST, manifest.model_dump_json())
        for name, content in parts.items():
            archive.writestr(name, compressor.compress(content) if compressor else content)
        archive.comment = b"0" * _DIGEST_CHARS
    body = stream.getvalue()[:-_DIGEST_CHARS]
    return body + hashlib.sha256(body).hexdigest().encode()


def _parts(checkpoint: Checkpoint) -> tuple[dict[str, bytes], list[OwnedFile]]:
    parts = {_EVENTS: b"\n".join(checkpoint.events)}
    files = []
    for number, (path, content) in enumerate(sorted(checkpoint.files.items())):
        member = f"files/{number:06}"
        parts[member] = content
        labels = list(checkpoint.labels.get(path, ()))
        files.append(OwnedFile(path=path, member=member, labels=labels))
    for key, content in checkpoint.pages.items():
        parts[f"pages/{key.hex()}"] = content
    return parts, files


def _manifest(
    checkpoint: Checkpoint,
    parts: Mapping[str, bytes],
    files: list[OwnedFile],
    compression: Literal["", "zstd"],
) -> Manifest:
    spawn = checkpoint.spawn
    members = [
        Member(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in parts.items()
    ]
    return Manifest(
        format=FORMAT,
        home=checkpoint.home,
        pid=checkpoint.pid,
        num_events=len(checkpoint.events),
        app=spawn["app"],
        version=spawn["version"],
        syscalls=list(spawn["capabilities"]["syscalls"]),
        model=spawn["model"],
        fingerprint=checkpoint.fingerprint or spawn["fingerprint"],
        vocab_size=spawn["vocab_size"],
        page_size=checkpoint.page_size,
        bytes_per_page=checkpoint.bytes_per_page,
        compression=compression,
        members=members,
        files=files,
    )


# --- reading


def _checkpoint(archive: zipfile.ZipFile, num_bytes: int) -> Checkpoint:
    entries = archive.infolist()
    by_name = {entry.filename: entry for entry in entries}
    if len(by_name) != len(entries) or len(entries) > MAX_MEMBERS + 1 or _MANIFEST not in by_name:
        raise CheckpointRefused("It is no checkpoint: it has no manifest, or members twice.")
    manifest = _read_manifest(archive, by_name[_MANIFEST])
    if (
        by_name.keys() - {_MANIFEST} != {member.name for member in manifest.members}
        or len(manifest.members) != len(entries) - 1
    ):
        raise CheckpointRefused("Its manifest does not name what is in it.")
    unpacked = sum(member.size for member in manifest.members)
    if unpacked > max_unpacked_bytes(num_bytes):
        raise CheckpointRefused(f"It would unpack to {unpacked} bytes, which is no honest size.")
    parts = dict(_contents(archive, manifest))
    return _assembled(manifest, parts)


def _read_manifest(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Manifest:
    text = _bounded(archive, entry, MAX_MANIFEST_BYTES)
    try:
        value = json.loads(text)
        written = value.get("format") if isinstance(value, dict) else None
        if isinstance(written, int) and written > FORMAT:
            raise CheckpointRefused(
                f"It was written by a newer LLMasOS (format {written}, this one reads {FORMAT});"
                " upgrade this one."
            )
        return Manifest.model_validate(value)
    except (ValueError, RecursionError) as error:
        what = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
        raise CheckpointRefused(f"Its manifest makes no sense ({what}).") from error


def _contents(archive: zipfile.ZipFile, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    for member in manifest.members:
        stored = member.size if not manifest.compression else MAX_FILE_BYTES
        content = _bounded(archive, archive.getinfo(member.name), stored)
        if manifest.compression == "zstd":
            content = _decompressed(content, member.size)
        if len(content) != member.size or hashlib.sha256(content).hexdigest() != member.sha256:
            raise CheckpointRefused(f"Its member {member.name} is not what the manifest says.")
        yield member.name, content


def _bounded(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """A member as it stands in the zip, which must not be larger than that."""
    if entry.compress_type not in _METHODS:
        raise CheckpointRefused(f"Its member {entry.filename[:80]!r} is compressed in another way.")
    with archive.open(entry) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise CheckpointRefused(f"Its member {entry.filename[:80]!r} is larger than it says.")
    return content


def _assembled(manifest: Manifest, parts: Mapping[str, bytes]) -> Checkpoint:
    if _EVENTS not in parts or len(parts[_EVENTS]) > MAX_EVENTS_BYTES:
        raise CheckpointRefused("It holds no events, or more than a process can have.")
    events = parts[_EVENTS].split(b"\n")
    files = {owned.path: owned.member for owned in manifest.files}
    named = {name for name in parts if name.startswith("files/")}
    if len(files) != len(manifest.files) or set(files.values()) != named:
        raise CheckpointRefused("Its list of files does not fit the files in it.")
    if len(events) != manifest.num_events:
        raise CheckpointRefused("It holds another number of events than it says.")
    pages = {
        bytes.fromhex(name.removeprefix("pages/")): content
        for name, content in parts.items()
        if name.startswith("pages/")
    }
    if any(len(content) != manifest.bytes_per_page for content in pages.values()):
        raise CheckpointRefused("A page in it has another size than it says.")
    return Checkpoint(
        home=manifest.home,
        pid=manifest.pid,
        spawn=_spawn(manifest, events),
        events=events,
        files={path: parts[member] for path, member in files.items()},
        labels={owned.path: tuple(owned.labels) for owned in manifest.files if owned.labels},
        page_size=manifest.page_size,
        bytes_per_page=manifest.bytes_per_page,
        pages=pages,
        fingerprint=manifest.fingerprint,
    )


def _spawn(manifest: Manifest, events: Sequence[bytes]) -> Mapping[str, Any]:
    """What the first event says, which must be what the manifest says."""
    try:
        kind, spawn = json.loads(events[0])
        said = (spawn["app"], spawn["version"], spawn["model"], spawn["vocab_size"])
        syscalls = spawn["capabilities"]["syscalls"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointRefused("Its events do not begin as a process does.") from error
    names = (manifest.app, manifest.version, manifest.model, manifest.vocab_size)
    if kind != "spawn" or said != names or syscalls != manifest.syscalls:
        raise CheckpointRefused("Its manifest and its events speak of different processes.")
    result: Mapping[str, Any] = spawn
    return result


# --- extra packages


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise _missing("zstandard", "compresses") from error
    return zstandard.ZstdCompressor(level=6)


def _decompressed(content: bytes, size: int) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise _missing("zstandard", "compresses") from error
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(content) as stream:
            return stream.read(size + 1)
    except zstandard.ZstdError as error:
        raise CheckpointRefused(f"It cannot be decompressed ({error}).") from error


def _cipher(passphrase: str, salt: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    except ImportError as error:
        raise _missing("cryptography", "encrypts") from error
    key = Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(passphrase.encode())
    return AESGCM(key)


def _encrypted(data: bytes, passphrase: str) -> bytes:
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    header = _MAGIC + salt + nonce
    sealed: bytes = _cipher(passphrase, salt).encrypt(nonce, data, header)
    return header + sealed


def _decrypted(data: bytes, passphrase: str | None) -> bytes:
    if passphrase is None:
        raise CheckpointRefused(
            "It is encrypted; set LLMASOS_PASSPHRASE to its passphrase, or restore it on a terminal."
        )
    cipher = _cipher(passphrase, data[len(_MAGIC) : len(_MAGIC) + _SALT_BYTES])
    header = data[: len(_MAGIC) + _SALT_BYTES + _NONCE_BYTES]
    from cryptography.exceptions import InvalidTag

    try:
        opened: bytes = cipher.decrypt(header[-_NONCE_BYTES:], data[len(header) :], header)
    except (InvalidTag, ValueError) as error:
        raise CheckpointRefused("The passphrase is wrong, or the file is damaged.") from error
    return opened


def _missing(package: str, verb: str) -> ConfigError:
    return ConfigError(
        f"{package}, which {verb} checkpoints, is not installed; `pip install 'llmasos[checkpoint]'`."
    )
