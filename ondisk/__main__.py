"""``python -m ondisk``: see ``cli.py``."""

from ondisk.cli import main

main()
