"""Files that apps are given: read whole, and rows of CSV with what is wrong told by its line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Set

from llmasos.apps.proc import Proc
from llmasos.kernel.errors import AppError, Failed

MAX_LINES = 20_000


async def read_whole(proc: Proc, path: str) -> str:
    """A file's text. Raises `AppError` where there is none, or it is too long to be read whole."""
    try:
        result = await proc.call("fs.read", path=path, max_lines=MAX_LINES)
    except Failed as error:
        raise AppError(str(error)) from error
    if result["truncated"]:
        raise AppError(f"{path} is too long: at most {MAX_LINES:,} lines are read.")
    return str(result["text"])


def csv_rows(
    path: str,
    text: str,
    wanted: Set[str],
    *,
    missing: str = "the column {} is missing",
    hint: str = "",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row that is not empty: its line, and its cells by the header's names in small letters.

    Raises `AppError` for a row that does not fit (`hint` follows), and where a `wanted` column is
    `missing`: the text has its name for `{}`.
    """
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if lacking := wanted - set(header):
            raise AppError(f"{path}, line 1: {missing.format(min(lacking))}.")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise AppError(
                    f"{path}, line {reader.line_num}: {len(row)} cells where the header has"
                    f" {len(header)}{hint}."
                )
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise AppError(f"{path}, line {reader.line_num}: this is no CSV ({error}).") from error
