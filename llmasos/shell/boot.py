"""Booting a kernel in this process: the one place where model, core, syscalls and apps meet.

Importing this is quick; torch is loaded by `_load`, in a worker thread.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from llmasos.kernel.abi import Capabilities, Effect
from llmasos.kernel.errors import ConfigError
from llmasos.shell.home import ANSWERS_NAME, JOURNAL_NAME, kernel_lock
from llmasos.shell.otel_live import exporting
from llmasos.shell.settings import Settings, load_settings

if TYPE_CHECKING:
    from llmasos.kernel.adapters import AdapterShelf
    from llmasos.kernel.core import Core
    from llmasos.kernel.journal.store import JournalStore
    from llmasos.kernel.redaction import Secret
    from llmasos.kernel.rules import Policy
    from llmasos.kernel.runtime import Runtime
    from llmasos.kernel.swap import Swap
    from llmasos.kernel.syscall import Syscall
    from llmasos.kernel.tokenizer import Tokenizer
    from llmasos.syscalls.vault import HomeVault


@asynccontextmanager
async def boot(
    model: str | None = None,
    *,
    home: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] = ".",
    kv_memory: str | int | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    step_tokens: int | None = None,
) -> AsyncGenerator[Runtime]:
    """Boot a kernel and yield it; leaving kills what still runs (unless `Runtime.suspend` was called).

    What ran when an earlier kernel of this home crashed comes back first.

    What is not given comes from LLMASOS_* variables and the home's config.toml. Processes spawned
    without capabilities of their own see the files under `root`. On a terminal a model that is
    missing is pulled, after saying what and how large. Raises `ConfigError`.
    """
    from llmasos.shell.models import ensure_model
    from llmasos.shell.output import Output

    flags = {
        "home": home, "model": model, "kv_memory": kv_memory, "dtype": dtype,
        "threads": threads, "step_tokens": step_tokens,
    }  # fmt: skip
    settings = load_settings(flags)
    await ensure_model(settings, Output(sys.stdout, sys.stderr))
    async with booted(settings, root=root) as runtime:
        yield runtime


@asynccontextmanager
async def booted(
    settings: Settings, *, root: str | os.PathLike[str] = "."
) -> AsyncGenerator[Runtime]:
    """A kernel with these settings, the home locked meanwhile. Raises `ConfigError`."""
    with kernel_lock(settings.home):
        load = functools.partial(_load, settings)
        loaded = await anyio.to_thread.run_sync(load, abandon_on_cancel=True)
        async with (
            _mounted(settings) as mounted,
            _runtime(settings, loaded, os.path.abspath(root), mounted) as runtime,
        ):
            with exporting(settings, runtime):
                await runtime.recover()
                yield runtime


@asynccontextmanager
async def _mounted(settings: Settings) -> AsyncGenerator[tuple[Syscall, ...]]:
    """The tools of the MCP servers that the settings name; what is left out is told on stderr."""
    if not settings.mcp.servers:
        yield ()
        return
    try:
        from llmasos.syscalls.mcp import ServerConfig, mounted
        from llmasos.syscalls.vault import HomeVault
    except ImportError as error:
        raise ConfigError(
            "[mcp.servers] needs the mcp package: pip install 'llmasos[mcp]'."
        ) from error
    vault = HomeVault(settings.home)
    servers = {
        name: ServerConfig(**{**dict(each), **with_secrets(vault, name, each.env)})
        for name, each in settings.mcp.servers.items()
    }
    async with mounted(servers) as mounts:
        for problem in mounts.problems:
            logging.getLogger("llmasos").warning("%s", problem)
        yield mounts.syscalls


def with_secrets(vault: HomeVault, server: str, env: Mapping[str, str]) -> dict[str, Any]:
    """A server's environment with secrets where their names stand, and which those are."""
    from llmasos.syscalls.vault import REFERENCE

    drawn: list[Secret] = []

    def value_of(match: re.Match[str]) -> str:
        drawn.append(vault.for_server(match[1], server))
        return drawn[-1].value

    filled = {name: REFERENCE.sub(value_of, value) for name, value in env.items()}
    return {"env": filled, "secrets": tuple(drawn)}


def _plugged(taken: list[str]) -> tuple[Syscall, ...]:
    """What installed packages add; what is left out is told on stderr."""
    from llmasos.syscalls import builtin_syscalls
    from llmasos.syscalls.plugins import installed_plugins

    plugins = installed_plugins([*builtin_syscalls(), *taken])
    for problem in plugins.problems:
        logging.getLogger("llmasos").warning("%s", problem)
    return plugins.syscalls


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a kernel is made of; swap and journal only where they are on."""

    core: Core
    tokenizer: Tokenizer
    adapters: AdapterShelf
    swap: Swap | None
    store: JournalStore | None


def _load(settings: Settings) -> _Loaded:
    """Read the weights and open what is on disk. Blocks for as long as that takes."""
    from llmasos.kernel.core import PageId
    from llmasos.kernel.models import ModelKind, ModelStore
    from llmasos.kernel.models.adapter_shelf import ModelAdapters
    from llmasos.kernel.swap import Swap
    from llmasos.kernel.swap_host import DEFAULT_HOST_BYTES

    models = ModelStore(settings.home / "models")
    model = models.open(settings.model)
    if model.kind is ModelKind.ADAPTER:
        raise ConfigError(
            f"{model.name} is an adapter; boot {model.info.base} and use --adapter {model.name}."
        )
    if model.kind is not ModelKind.DECODER:
        raise ConfigError(
            f"{model.name} embeds text and cannot write it; boot a kernel with another model."
        )
    cache = settings.home / "cache"
    cache.mkdir(mode=0o700, exist_ok=True)
    with ThreadPoolExecutor(1) as checking:  # every byte, while the weights are packed
        checked = checking.submit(models.verify, settings.model)
        from llmasos.kernel.cores.torch_core import TorchCore

        core = TorchCore.load(
            model.folder,
            name=model.name,
            fingerprint=model.fingerprint,
            kv_memory_bytes=settings.kv_memory,
            dtype=settings.dtype,
            threads=settings.threads,
            max_context=settings.max_context,
            cache_path=cache / "self-checks.json",
        )
    try:
        checked.result()
    except BaseException:
        core.close()
        raise
    swap = None
    if settings.swap:
        has_pages_in_host_memory = core.page_view(PageId(0)) is not None
        swap = Swap.in_folder(
            settings.home / "swap",
            max_bytes=settings.swap,
            host_bytes=0 if has_pages_in_host_memory else DEFAULT_HOST_BYTES,
        )
    adapters = ModelAdapters(models, model.info)
    return _Loaded(core, model.load_tokenizer(), adapters, swap, _open_journal(settings))


def _open_journal(settings: Settings) -> JournalStore | None:
    from llmasos.kernel.journal.entries import Level
    from llmasos.kernel.journal.store import JournalStore

    level = Level(settings.journal)
    if level is Level.OFF:
        return None
    return JournalStore.open(settings.home / JOURNAL_NAME, level=level)


def _runtime(
    settings: Settings, loaded: _Loaded, root: str, mounted: tuple[Syscall, ...]
) -> Runtime:
    from llmasos.kernel.accounts import Prices
    from llmasos.kernel.approvals import Remembered
    from llmasos.kernel.audit_log import AuditFile, AuditLog
    from llmasos.kernel.journal.entries import Level
    from llmasos.kernel.journal.journal import Journal
    from llmasos.kernel.kernel import KernelOptions
    from llmasos.kernel.runtime import Runtime
    from llmasos.kernel.taint import Trust
    from llmasos.shell.installed.apps import Apps
    from llmasos.syscalls import builtin_syscalls
    from llmasos.syscalls.archive import archives_in
    from llmasos.syscalls.sandbox import Sandbox
    from llmasos.syscalls.vault import HomeVault

    prices = Prices(settings.price_in / 1e6, settings.price_out / 1e6)
    options = KernelOptions(prices=prices)
    if settings.step_tokens is not None:
        options = KernelOptions(step_tokens=settings.step_tokens, prices=prices)
    journal = None
    if loaded.store is not None:
        journal = Journal(loaded.store, level=Level(settings.journal), now=time.time)
    audit = None
    if settings.audit:
        is_durable = settings.journal == "durable"
        audit = AuditLog(AuditFile(settings.home, durable=is_durable))
    return Runtime(
        loaded.core,
        loaded.tokenizer,
        syscalls=builtin_syscalls(
            sandbox=Sandbox(allow_weak=settings.exec_sandbox == "weak"),
            mounted=(*mounted, *_plugged([each.name for each in mounted])),
        ),
        programs=Apps(settings.home).load,
        cache_folder=settings.home / "cache",
        capabilities=Capabilities(root=root),
        options=options,
        swap=loaded.swap,
        journal=journal,
        archives=archives_in(settings.home / "cache", now=time.time),
        policy=policy_of(settings),
        remembered=Remembered(settings.home / ANSWERS_NAME),
        trust=Trust(settings.taint.trusted, settings.taint.untrusted),
        vault=HomeVault(settings.home),
        audit=audit,
        adapters=loaded.adapters,
    )


def policy_of(settings: Settings) -> Policy:
    """The rules that the settings say."""
    from llmasos.kernel.rules import Decision, Policy, Rule

    rules = tuple(
        Rule(
            Decision(each.decision),
            syscall=each.syscall,
            app=each.app,
            effect=tuple(map(Effect, each.effect)),
            arguments=each.arguments,
            taint=each.taint,
        )
        for each in settings.approvals.rules
    )
    tainted, otherwise = settings.approvals.tainted, settings.approvals.otherwise
    return Policy(rules, tainted=Decision(tainted), otherwise=Decision(otherwise))
