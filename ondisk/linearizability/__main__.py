"""``python -m ondisk.linearizability FILE...``: judge recorded histories."""

import sys

from ondisk.linearizability.checker import main

if __name__ == "__main__":
    sys.exit(main())
