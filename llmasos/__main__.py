"""`python -m llmasos` is `llmasos`."""

import sys

from llmasos.shell.main import main

if __name__ == "__main__":
    sys.exit(main())
