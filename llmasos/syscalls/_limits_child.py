"""Run as a program: take limits upon this process, then become another one.

`python -I -S _limits_child.py LIMITS COMMAND...`, LIMITS as JSON: resource limits by name, `nice`,
`oom_score_adj` (who goes first when memory is short), and `uid`, the user to become (root alone can).
Between fork and exec of a process with threads nothing of this may be done, so it has a process of its own;
inside a sandbox, since a limit on processes counts those of a user in a namespace. Imports nothing of
LLMasOS.
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
    os.nice(limits.pop("nice", 0))
    if (score := limits.pop("oom_score_adj", None)) is not None:
        with (
            contextlib.suppress(OSError),  # Linux alone has it
            open("/proc/self/oom_score_adj", "w", encoding="ascii") as file,
        ):
            file.write(str(score))
    uid = limits.pop("uid", None)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for name, value in limits.items():
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
