"""Builds the native attention kernel where there is a C compiler; everything else is declarative.

The kernel is optional: without it (no compiler, Windows) attention runs on torch, only slower. Each
path_*.c chooses its own instruction set and is picked at run time, so a build serves every
processor of its architecture.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("llmasos/kernel/cores/native")

kernel = Extension(
    "llmasos.kernel.cores.native._paged_attention",
    sources=sorted(str(path) for path in FOLDER.glob("*.c")),
    depends=sorted(str(path) for path in FOLDER.glob("*.h")),
    # Contraction would let the compiler choose where products are rounded.
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-std=gnu11"],
    libraries=["m"],
    optional=True,
)

setup(ext_modules=[] if sys.platform == "win32" else [kernel])
