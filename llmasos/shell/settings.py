"""Settings of a kernel: flags win over LLMASOS_* variables, these over `config.toml` in the home.

Read only where a kernel boots; everything that is wrong is told at once, a sentence each.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from llmasos.kernel.errors import ConfigError
from llmasos.shell.home import home_folder

CONFIG_NAME = "config.toml"
DEFAULT_MODEL = "smollm2"

Dtype = Literal["auto", "bf16", "fp32", "int8"]
JournalLevel = Literal["durable", "relaxed", "off"]
DTYPES: tuple[str, ...] = get_args(Dtype)


class McpServer(BaseModel):
    """A `[mcp.servers.NAME]` table: a command that speaks MCP on stdin and stdout, or a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    """Added to the few variables that the server gets."""
    cwd: str | None = None
    url: str = ""
    tools: tuple[str, ...] = ("*",)
    """Patterns of the tools to mount."""
    timeout_s: float | None = Field(300.0, gt=0)
    """What a call may take."""

    @model_validator(mode="after")
    def _has_one_address(self) -> McpServer:
        if bool(self.command) == bool(self.url):
            raise ValueError("give either a command or a url")
        return self


class McpSettings(BaseModel):
    """MCP servers whose tools become syscalls, by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    servers: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")], McpServer] = Field(
        default_factory=dict
    )


Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
"""One pattern or a list of them."""
DecisionName = Literal["allow", "ask", "deny"]


class ApprovalRule(BaseModel):
    """An `[[approvals.rules]]` table; see `kernel.rules`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: DecisionName
    syscall: Patterns = ("*",)
    app: Patterns = ("*",)
    effect: Annotated[
        tuple[Literal["pure", "read", "write", "external"], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    ] = ()
    arguments: dict[str, str] = Field(default_factory=dict)
    taint: Patterns = ()
    """Patterns of labels; `none` is a process that has none."""


class ApprovalSettings(BaseModel):
    """Which calls are allowed, asked about or denied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tainted: DecisionName = "ask"
    """What changes the world or reaches beyond it, in a process that has read text from outside."""
    otherwise: DecisionName = "allow"
    rules: tuple[ApprovalRule, ...] = ()
    """The first that matches decides."""


class TaintSettings(BaseModel):
    """Which files come from outside by where they stand: patterns of absolute paths, or folders."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trusted: Patterns = ()
    """Where given, every other file is from outside."""
    untrusted: Patterns = ()


class Settings(BaseSettings):
    """What a kernel is booted with. Build it with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="LLMASOS_", extra="forbid", frozen=True, env_ignore_empty=True
    )

    home: Path
    model: str = Field(DEFAULT_MODEL, min_length=1)
    """A name in the model store."""
    kv_memory: ByteSize | None = Field(None, gt=0)
    """Memory for K/V pages, such as `2GiB`; None takes a share of what is free."""
    dtype: Dtype = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads that compute; None takes one for each core."""
    max_context: int | None = Field(None, ge=16)
    """Tokens a context may have, where that is less than the model's own window."""
    step_tokens: int | None = Field(None, ge=1, le=65536)
    """Tokens a step computes at most; None takes the kernel's own default."""
    swap: ByteSize = Field(ByteSize(4 * 1024**3), ge=0)
    """Disk for pages that memory has no room for, such as `4GiB`; 0 is none."""
    journal: JournalLevel = "durable"
    """What is on disk before an app sees a result: everything (durable), soon everything (relaxed), or
    nothing at all (off): then what runs is lost with the kernel."""
    audit: bool = True
    """Whether what changes the world is written to the audit log."""
    otel_endpoint: str = ""
    """Where spans are sent as they end (OTLP over HTTP), such as http://localhost:4318/v1/traces; empty:
    where OTEL_EXPORTER_OTLP_ENDPOINT says, if it is set."""
    exec_sandbox: Literal["strict", "weak"] = "strict"
    """What `exec.*` needs: bubblewrap, or (weak) resource limits alone where that is missing."""
    price_in: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What a million tokens put into contexts cost, for limits in money; nothing for a local model."""
    price_out: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What a million sampled tokens cost."""
    mcp: McpSettings = Field(default_factory=McpSettings)
    approvals: ApprovalSettings = Field(default_factory=ApprovalSettings)
    taint: TaintSettings = Field(default_factory=TaintSettings)

    @field_validator("dtype", mode="before")
    @classmethod
    def _short_dtype(cls, value: object) -> object:
        short = str(value).lower()
        return {"float32": "fp32", "bfloat16": "bf16"}.get(short, short)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then config.toml; no `.env` file of the current folder."""
        home = home_folder(_init_values(init_settings).get("home"))
        file = InitSettingsSource(settings_cls, init_kwargs=_config_file(home))
        return init_settings, env_settings, file


def _init_values(source: PydanticBaseSettingsSource) -> dict[str, Any]:
    return source.init_kwargs if isinstance(source, InitSettingsSource) else {}


def _config_file(home: Path) -> dict[str, Any]:
    path = home / CONFIG_NAME
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os.strerror(error.errno or 0)}.") from error


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings with these flags on top (those that are None were not given).

    Raises `ConfigError` that names every problem and where it comes from.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    home = home_folder(given.get("home"))
    try:
        return Settings(**{**given, "home": home})
    except ValidationError as error:
        problems = [_problem(dict(item), given, home) for item in error.errors()]
        raise ConfigError(*problems) from None


def _problem(item: Mapping[str, Any], flags: Mapping[str, Any], home: Path) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{_source(name, flags, home)} is not a setting{_suggestion(name)}."
    reason = item["msg"][:1].lower() + item["msg"][1:]
    return f"{_source(name, flags, home)} is {item['input']!r}, which will not do: {reason}."


def _source(name: str, flags: Mapping[str, Any], home: Path) -> str:
    variable = f"LLMASOS_{name.upper()}"
    if name in flags:
        return "--" + name.replace("_", "-")
    if os.environ.get(variable):
        return variable
    return f"{name} in {home / CONFIG_NAME}"


def _suggestion(name: str) -> str:
    fields: Mapping[str, FieldInfo] = Settings.model_fields
    close = difflib.get_close_matches(name, fields, n=1)
    return f"; did you mean {close[0]}" if close else ""
