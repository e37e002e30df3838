"""What is peculiar about sockets: listening, noticing silence, and saying why something is refused."""

from __future__ import annotations

import errno
import math
import socket
import struct
import sys

import psutil

from ondisk.errors import ConfigurationError, PortInUse
from ondisk.net.addresses import Address
from ondisk.storage.lock import describe_process

SILENCE_SECONDS = 10.0  # a machine that lost its power says no goodbye
_TCP_INFO_RTT = struct.Struct("=68xI")  # struct tcp_info of Linux: tcpi_rtt, in microseconds
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def notice_silence(sock: socket.socket) -> None:
    """Let the kernel end a connection whose other side does not answer, or takes nothing, for so long.

    Otherwise a peer that lost its power and came back would be reached only when a retransmission comes
    round, which can take minutes.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", math.ceil(SILENCE_SECONDS / 2)),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", math.ceil(SILENCE_SECONDS / 2)),
        ("TCP_USER_TIMEOUT", int(SILENCE_SECONDS * 1000)),  # of what was sent, not of silence
    ):
        if hasattr(socket, option):  # not every system has each
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def round_trip(sock: socket.socket) -> float | None:
    """The kernel's smoothed estimate in seconds; ``None`` where it tells none, or the socket is closed."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RTT.size)
    except OSError:
        return None
    return float(_TCP_INFO_RTT.unpack(info)[0]) / 1e6 if len(info) == _TCP_INFO_RTT.size else None


def listen(address: Address) -> socket.socket:
    """Listen at the first that the address stands for and that this machine has."""
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{host}:{port} cannot be resolved: {error}") from None
    failure: OSError | None = None
    for family, kind, protocol, _, resolved in found:
        listener: socket.socket | None = None
        try:
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(resolved)
            listener.listen(128)
            return listener
        except OSError as error:
            if listener is not None:
                listener.close()
            if error.errno == errno.EADDRINUSE:
                what = f"cannot listen on {host}:{port}: {error.strerror}{_holder(port)}"
                raise PortInUse(what) from None
            failure = failure or error
    why = reason(failure) if failure is not None else "it stands for no address"
    raise ConfigurationError(f"cannot listen on {host}:{port}: {why}")


def reason(error: OSError) -> str:
    """What is wrong, and what to do about it."""
    text = error.strerror or str(error)
    if error.errno in NO_DESCRIPTORS:
        return f"{text}: close other files and connections, or raise the limit (ulimit -n)"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{text}: this machine does not have it; where to listen and where others call may differ (bind)"
        )
    return text


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,):
                return f", it is held by {describe_process(connection.pid)}"
    except psutil.Error:
        pass
    return ""
