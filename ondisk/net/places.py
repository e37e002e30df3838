"""Places for unauthenticated connections, so that nobody can keep others out by calling often.

Who has addresses in many networks can push out everybody else, but no caller from the host of a member as
long as there are no more of those than places are kept for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ondisk.net.connection import Connection

MAX_UNAUTHENTICATED = 64  # connections that have not finished their handshake
MEMBERS_PLACES = 16  # of these, that callers from elsewhere than a member's host cannot take


def who_makes_room(callers: Sequence[Connection], member_hosts: Callable[[], set[str]]) -> Connection | None:
    """The caller to let go before another one is taken, ``None`` if there is room.

    ``callers`` (the oldest first) are unauthenticated. It is the oldest one from the network that has most,
    or, among too many from the hosts of members, from the host that has most.
    """
    if len(callers) < MAX_UNAUTHENTICATED:
        return None
    hosts = member_hosts()
    of_members = [caller for caller in callers if caller.address[0] in hosts]
    if len(of_members) > MEMBERS_PLACES:
        from_where = {caller: caller.address[0] for caller in of_members}
    else:
        from_where = {caller: caller.neighbourhood for caller in callers if caller.address[0] not in hosts}
    ((most, _),) = Counter(from_where.values()).most_common(1)
    return next(caller for caller in from_where if from_where[caller] == most)
