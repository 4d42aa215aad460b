"""What every benchmark shares: fair repetition, the machine it ran on, bars, and the two ways to print.

A benchmark builds one `Report` and hands it to `finish`. Rows are for reading; a `Bar` is what an
issue asked for, measured now. A missed bar is told and is no error: the exit status is 0.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import psutil
from rich.console import Console
from rich.table import Table

import llmasos
from llmasos.kernel.errors import LlmosError

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
PIPE_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Samples:
    """Repeated measurements of one thing, in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half of what lies between the extremes, as a share of the median: 0.05 is +-5 %."""
        return (max(self.values) - min(self.values)) / 2 / self.median if self.median else 0.0

    def map(self, function: Callable[[float], float]) -> Samples:
        """The same measurements in another unit."""
        return Samples(tuple(function(value) for value in self.values))


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise and what became of it. `at_most`: the target is a ceiling, not a floor."""

    name: str
    value: float
    target: float
    at_most: bool = False

    @property
    def ok(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "target": self.target, "ok": self.ok}


@dataclass(slots=True)
class Report:
    """One benchmark's results. Every row has the same keys; a `Samples` prints as median and spread."""

    benchmark: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader must know to judge the figures."""

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "machine": machine(),
            "versions": versions(),
            "rows": [{key: _plain(value) for key, value in row.items()} for row in self.rows],
            "bars": [bar.as_json() for bar in self.bars],
            "notes": self.notes,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Samples):
        return {"median": value.median, "spread": value.spread, "values": list(value.values)}
    return value


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer cases, within a minute")
    return parser


def alternate(
    sides: Mapping[str, Callable[[int], float]],
    *,
    repetitions: int,
    warm: bool = True,
    once: Collection[str] = (),
) -> dict[str, Samples]:
    """Measure each side in turn, as many times as asked, the order reversed every other time.

    A side is called with the number of the repetition (-1 to warm it, which is not counted) and
    returns its own measurement, so that what it prepares is not timed. Sides named in `once` are
    measured in the first repetition alone.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-1 if warm else 0, repetitions):
        names = list(sides)[:: 1 if repetition % 2 == 0 else -1]
        for name in names:
            if repetition > 0 and name in once:
                continue
            gc.collect()
            value = sides[name](repetition)
            if repetition >= 0:
                measured[name].append(value)
    return {name: Samples(tuple(values)) for name, values in measured.items()}


def timed(function: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def progress(text: str) -> None:
    """Tell whoever waits what is being measured; kept out of stdout, which is the report's."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
    elif text:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def run(main: Callable[[], int]) -> NoReturn:
    """Do `main` and exit; what the user can put right is one sentence on stderr."""
    try:
        code = main()
    except LlmosError as error:
        raise SystemExit(str(error)) from None
    raise SystemExit(code)


def finish(report: Report, *, as_json: bool) -> int:
    """Print the report and return the exit status."""
    progress("")
    if as_json:
        print(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        _print_for_people(report)
    return 0


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
        **_accelerator(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _accelerator() -> dict[str, str]:
    import torch

    return {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def versions() -> dict[str, str]:
    """Python's and the packages' that the figures depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"llmasos": llmasos.__version__, "python": platform.python_version(), **found}


def _print_for_people(report: Report) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    facts = machine()
    console.print(f"[bold]{report.benchmark}[/bold]  " + _join(facts), highlight=False)
    console.print(_join(versions()), highlight=False)
    if report.rows:
        console.print(_rows_table(report.rows))
    for bar in report.bars:
        sign = "<=" if bar.at_most else ">="
        verdict = "[green]ok[/green]" if bar.ok else "[red]MISSED[/red]"
        console.print(f"{verdict}  {bar.name}: {_number(bar.value)} (asked {sign} {bar.target:g})")
    for note in report.notes:
        console.print(f"- {note}", highlight=False, style="dim")


def _rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for name in rows[0]:
        is_text = isinstance(rows[0][name], str)
        table.add_column(name.replace("_", " "), justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Samples):
        spread = f" ±{value.spread:.0%}" if len(value.values) > 1 else ""
        return _number(value.median) + spread
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _join(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
