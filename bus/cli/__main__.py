"""`python -m bus.cli`: the same as `jitney`, where no script is installed."""

import sys

from bus.cli import main

if __name__ == "__main__":
    sys.exit(main())
