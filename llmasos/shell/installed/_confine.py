"""Run as a program: take limits upon this process, then become another one.

`python -I -S _confine.py LIMITS COMMAND...`, LIMITS as JSON: `rlimits` by name, `nice`, and `uid`, the user
to become or null. It runs inside the sandbox where there is one, since a limit on processes counts those of
a user in a namespace. Imports nothing of LLMasOS.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys

_NO_NEW_PRIVILEGES = 38
_PARENT_DEATH_SIGNAL = 1
_SIGKILL = 9


def main() -> None:
    """Never returns."""
    limits = json.loads(sys.argv[1])
    os.nice(limits["nice"])
    with (
        contextlib.suppress(OSError),  # Linux alone has it
        open("/proc/self/oom_score_adj", "w", encoding="ascii") as file,
    ):
        file.write("800")
    if limits["uid"] is not None:
        os.setgroups([])
        os.setgid(limits["uid"])
        os.setuid(limits["uid"])
    for name, value in limits["rlimits"].items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError, AttributeError, ImportError):  # Linux alone has these
        import ctypes

        libc = ctypes.CDLL(None)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        libc.prctl(_PARENT_DEATH_SIGNAL, _SIGKILL, 0, 0, 0)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
