"""Verbs about the model store: `model pull`, `list`, `info`, `rm`. They need no kernel."""

from __future__ import annotations

import functools
import time
from argparse import Namespace
from typing import TYPE_CHECKING

import anyio.to_thread

from llmasos.kernel.errors import ConfigError, ModelNotFound
from llmasos.shell.arguments import Parser
from llmasos.shell.environment import Environment
from llmasos.shell.home import home_folder
from llmasos.shell.plain import one_line
from llmasos.shell.tables import Column, Table, size
from llmasos.shell.verbs.verb import Verb, add_json, kernel_flags

if TYPE_CHECKING:
    from llmasos.kernel.models import ModelInfo, ModelStore


def _store(environment: Environment, args: Namespace) -> ModelStore:
    from llmasos.kernel.models import ModelStore
    from llmasos.shell.models import MODELS_FOLDER

    return ModelStore(home_folder(kernel_flags(args, environment.flags).home) / MODELS_FOLDER)


def _configure_pull(parser: Parser) -> None:
    parser.add_argument("--name", metavar="NAME", help="what to call it in the store")
    parser.add_argument("--base", metavar="MODEL", help="of an adapter: the model that it is for")
    add_json(parser)
    parser.add_argument(
        "source", metavar="SOURCE",
        help="a built-in name, a Hugging Face id, a folder (an adapter's too) or a .gguf file",
    )  # fmt: skip


async def pull(environment: Environment, args: Namespace) -> int:
    """Fetch a model, convert it once, and keep it."""
    from llmasos.shell.models import pull

    store = _store(environment, args)
    info = await pull(store, args.source, args.name, environment.output, base=args.base)
    if args.json:
        environment.output.json(info)
    else:
        environment.output.line(
            f"{info.name} is ready: {size(info.size_bytes)}, {info.fingerprint}."
        )
    return 0


async def list_models(environment: Environment, args: Namespace) -> int:
    """Show the models that are here, and the built-in ones that could be."""
    store = _store(environment, args)
    models = await anyio.to_thread.run_sync(_all_models, store)
    if args.json:
        environment.output.json(models)
        return 0
    environment.output.table(_table(store, models))
    return 0


def _all_models(store: ModelStore) -> tuple[ModelInfo, ...]:
    """Those of the store, and the shipped adapters that none of them takes the place of."""
    here = store.list()
    names = {model.name for model in here}
    return (*here, *(each for name, each in _shipped().items() if name not in names))


def _shipped() -> dict[str, ModelInfo]:
    """The adapters that come with LLMasOS."""
    from llmasos.kernel.models.adapter_files import shipped_adapters, shipped_info

    return {name: shipped_info(folder) for name, folder in shipped_adapters().items()}


def _info_of(store: ModelStore, name: str) -> ModelInfo:
    try:
        return store.info(name)
    except ModelNotFound:
        if (shipped := _shipped().get(name)) is None:
            raise
        return shipped


def _table(store: ModelStore, models: tuple[ModelInfo, ...]) -> Table:
    columns = (
        Column("MODEL"), Column("KIND", drop=3), Column("ARCHITECTURE", drop=4),
        Column("PARAMETERS", right=True, drop=2), Column("WINDOW", right=True, drop=5),
        Column("SIZE", right=True), Column("SOURCE", drop=6), Column("STATE", drop=1),
    )  # fmt: skip
    here = {model.name for model in models}
    missing = [entry for name, entry in store.catalogue.items() if name not in here]
    rows = [
        (
            model.name, model.kind.value, one_line(_made_of(model)), _millions(model.parameters),
            str(model.context_length or "-"), size(model.size_bytes), one_line(model.source),
            "damaged" if model.problem else "here",
        )
        for model in models
    ] + [
        (
            entry.name, "-", one_line(entry.title), "-", "-", size(entry.fetch_bytes),
            entry.source, "to be pulled",
        )
        for entry in missing
    ]  # fmt: skip
    return Table(columns, tuple(rows))


def _made_of(model: ModelInfo) -> str:
    return f"{model.architecture}, for {model.base}" if model.base else model.architecture


def _millions(count: int) -> str:
    if count < 1e9:
        return f"{count / 1e6:.0f}M" if count >= 1e7 else f"{count / 1e6:.1f}M"
    return f"{count / 1e9:.1f}B"


def _configure_info(parser: Parser) -> None:
    parser.add_argument("--verify", action="store_true", help="read every byte and check it")
    parser.add_argument("model", metavar="MODEL")
    add_json(parser)


async def info(environment: Environment, args: Namespace) -> int:
    """Show one model; with `--verify` check its files too."""
    from llmasos.kernel.models.adapter_files import SHIPPED_SOURCE

    store = _store(environment, args)
    model = _info_of(store, args.model)
    if args.verify and model.source != SHIPPED_SOURCE:
        await anyio.to_thread.run_sync(functools.partial(store.verify, args.model))
    if args.json:
        environment.output.json(model)
        return 0
    facts = (
        ("kind", model.kind.value),
        ("architecture", model.architecture),
        ("parameters", f"{model.parameters:,}"),
        ("stored as", model.dtype),
        *((("for the model", model.base),) if model.base else ()),
        *(
            (
                ("window", f"{model.context_length} tokens"),
                ("vocabulary", f"{model.vocab_size:,} tokens"),
            )
            if model.context_length
            else ()
        ),
        ("size", size(model.size_bytes)),
        ("source", model.source),
        ("license", model.license),
        ("fingerprint", model.fingerprint),
        *((("pulled", _date(model.pulled_at)),) if model.pulled_at else ()),
        *(("note", note) for note in model.notes),
    )
    rows = tuple((name, one_line(value)) for name, value in facts)
    environment.output.table(Table((Column("MODEL"), Column(model.name)), rows))
    return 0


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _configure_rm(parser: Parser) -> None:
    parser.add_argument("model", nargs="+", metavar="MODEL")


async def remove(environment: Environment, args: Namespace) -> int:
    """Remove models from the store."""
    store = _store(environment, args)
    failed = 0
    for name in args.model:
        try:
            await anyio.to_thread.run_sync(store.remove, name)
        except ConfigError as error:
            is_shipped = isinstance(error, ModelNotFound) and name in _shipped()
            said = ConfigError(f"{name} comes with LLMasOS and cannot be removed.")
            environment.output.error(said if is_shipped else error)
            failed = 1
    return failed


VERBS = (
    Verb("model pull", "Fetch a model and keep it.", pull, _configure_pull, completes=("source",)),
    Verb("model list", "List the models.", list_models, add_json),
    Verb("model info", "Show a model.", info, _configure_info, completes=("model",)),
    Verb("model rm", "Remove models.", remove, _configure_rm, completes=("model",)),
)
