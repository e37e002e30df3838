"""How a running replica is watched from outside: figures for Prometheus, and whether it is alive and ready.

==============  =====================================================================
``exposition``  the figures, as the text that Prometheus scrapes
``health``      is it alive, is it ready, and if not, why
``server``      ``/metrics``, ``/livez`` and ``/readyz`` over HTTP
==============  =====================================================================

Needs the extra ``metrics``. Imports ``node`` and what is below. Imported by ``cli`` only, when it is asked.

Invariant: who looks changes nothing and holds nothing up; a replica in trouble is told as it is.
"""

try:
    import prometheus_client  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("ondisk.monitor needs prometheus-client: pip install 'ondisk[metrics]'") from None

from ondisk.monitor.exposition import exposition
from ondisk.monitor.health import Check, liveness, readiness
from ondisk.monitor.server import Monitor

__all__ = ["Check", "Monitor", "exposition", "liveness", "readiness"]
