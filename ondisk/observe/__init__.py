"""What can be watched, without holding anything up.

============  ==============================================================
``view``      the whole cluster at one moment, and what changed
``contents``  what logs and states hold
``elsewhere`` a group that runs elsewhere, over TCP
``messages``  messages without their payload, and which are news
``recorder``  a bounded record of views, messages and notes
``commits``   how far a state is behind what is committed
``lag``       a record of that, every few milliseconds
``every``     the thread of who records
``waiting``   waiting for what can be observed
============  ==============================================================

Imports ``cluster``, ``remote`` and what is below; imported by the lab and tests. Use the names below.

Invariant: who watches delays nobody, and keeps a bounded number of small records.
"""

from ondisk.observe.commits import Commits, Lag, Reading
from ondisk.observe.contents import NEWEST_ENTRIES, Contents, Looker, SeenEntry
from ondisk.observe.elsewhere import GroupElsewhere
from ondisk.observe.lag import STEP, LagRecorder
from ondisk.observe.messages import Seen, describe, without_repeats
from ondisk.observe.recorder import Recorder
from ondisk.observe.view import MAX_IN_FLIGHT, Note, View, capture, changes
from ondisk.observe.waiting import wait_until, wait_until_level

__all__ = [
    "MAX_IN_FLIGHT",
    "NEWEST_ENTRIES",
    "STEP",
    "Commits",
    "Contents",
    "GroupElsewhere",
    "Lag",
    "LagRecorder",
    "Looker",
    "Note",
    "Reading",
    "Recorder",
    "Seen",
    "SeenEntry",
    "View",
    "capture",
    "changes",
    "describe",
    "wait_until",
    "wait_until_level",
    "without_repeats",
]
