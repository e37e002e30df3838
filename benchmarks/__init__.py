"""One command that measures ondisk beside stock PySyncObj: ``python -m benchmarks``, or ``make bench``.

``worker.py`` holds what is measured and how, in a process of its own; ``__main__.py`` runs the rounds;
``report.py`` prints the conditions, the tables and the verdict.
"""
