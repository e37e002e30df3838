"""``python -m ondisk``: see ``cli/``."""

from ondisk.cli import main

main()
