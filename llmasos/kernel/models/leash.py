"""Runs a Python module in this process, and ends the process when the one that started it is gone.

`python -P -m llmasos.kernel.models.leash MODULE ARGUMENTS...` with a pipe as stdin: the pipe breaks
when its other end dies, by whatever means, and with it goes the work that nobody waits for.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def main() -> None:
    """Tie this process to its stdin and become the module named in the arguments."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
