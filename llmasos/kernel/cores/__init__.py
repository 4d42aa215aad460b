"""Model drivers: `TorchCore` and what it stands on."""

import os

# OpenMP's threads spin at the end of each parallel region, of which a step has hundreds. With one
# processor busy elsewhere the others then wait for it in vain: half the speed is lost. A short spin
# costs nothing measurable on a quiet machine (docs/performance.md). libgomp reads this when torch is
# imported, so it stands here, before any module that does.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
