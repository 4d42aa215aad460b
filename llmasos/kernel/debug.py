"""Tracebacks, for those who ask for them."""

from __future__ import annotations

import os
import traceback


def debug(error: BaseException) -> None:
    """Print an error's traceback where `LLMASOS_DEBUG` is set."""
    if os.environ.get("LLMASOS_DEBUG"):
        traceback.print_exception(error)
