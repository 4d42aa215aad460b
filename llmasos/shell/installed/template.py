"""What `app new` writes: a package with one app, a test of it, and how to go on."""

from __future__ import annotations

import re
from pathlib import Path

from llmasos.apps.builtin import builtin_apps
from llmasos.kernel.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*", re.ASCII)

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "An app for LLMasOS."
requires-python = ">=3.11"
dependencies = ["llmasos"]

[project.entry-points."llmasos.apps"]
{name} = "{module}:{module}"

[tool.setuptools]
py-modules = ["{module}"]
"""

_APP = '''\
"""The `{name}` app: what it is for, in a sentence."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from llmasos.apps.sdk import Proc, app


class Params(BaseModel):
    """What `llmasos run {name}` takes."""

    topic: Annotated[str, Field(description="What to write about")]
    lines: Annotated[int, Field(ge=1, le=20)] = 3


@app(
    name="{name}",
    summary="Writes a few lines about a topic.",
    syscalls=["fs.read"],  # what it wants beyond its own contexts and output; its user is asked
)
async def {module}(proc: Proc, params: Params) -> None:
    """Everything an app does to the world goes through `proc`."""
    async with proc.session(system="You write short, plain sentences.") as session:
        for number in range(params.lines):
            await proc.progress(number, params.lines, "lines")
            said = "Begin." if number == 0 else "Go on."
            said = f"{{said}} The topic is {{params.topic}}."
            async with session.stream(said, max_tokens=40, temperature=0.8) as reply:
                async for piece in reply:
                    await proc.print(piece, end="")
            await proc.print()
    await proc.log("wrote", params.lines, "lines about", params.topic)
'''

_TEST = '''\
"""The app against replies that are written beforehand: no kernel, no model."""

import anyio
from {module} import {module}

from llmasos.apps.testing import ScriptedPort, run_app


def test_it_writes_a_line_for_each_reply():
    port = ScriptedPort({{"llm.generate": ["The sea is wide.", "It is blue."]}})
    assert anyio.run(run_app, {module}, port, {{"topic": "the sea", "lines": 2}}) == 0
    assert port.output == "The sea is wide.\\nIt is blue.\\n"
    assert "the sea" in port.contexts.get(0, "") or port.closed == [0]
    assert port.log == "[info] wrote 2 lines about the sea\\n"
'''

_README = """\
# {name}

An app for LLMasOS.

    python -m pytest             # its tests: no kernel, no model
    llmasos app install .        # into an environment of its own
    llmasos run {name} "the sea"
    llmasos app update {name}     # after a change
    llmasos app remove {name}
"""


def write_template(name: str, folder: Path) -> list[Path]:
    """Write a new app's files into a folder that is made for them; returns them. Raises `ConfigError`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for an app: use small letters, digits and hyphens.")
    if name in builtin_apps():
        raise ConfigError(f"There is an app {name} in LLMasOS itself; choose another name.")
    module = name.replace("-", "_")
    texts = {
        "pyproject.toml": _PYPROJECT,
        f"{module}.py": _APP,
        f"tests/test_{module}.py": _TEST,
        "README.md": _README,
    }
    try:
        folder.mkdir(parents=True)
        for path, text in texts.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text.format(name=name, module=module), encoding="utf-8")
    except FileExistsError:
        raise ConfigError(
            f"There is a {folder.name} already; choose another name or folder."
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.") from error
    return [folder / path for path in texts]
