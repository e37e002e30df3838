"""Addresses: ``host:port`` as people write it, checked where it is given.

An address that is once in the log is read by every member at every start. So what can be no address is
refused before it gets there, and what merely does not answer is somebody else's business (``net/tcp.py``).
"""

from __future__ import annotations

import ipaddress
import re

from ondisk.errors import ConfigurationError

Address = tuple[str, int]


def parse_address(text: str) -> Address:
    """``host:port`` or ``[::1]:port``. Raises ``ConfigurationError`` for what can be no address."""
    host, colon, port = text.strip().rpartition(":") if isinstance(text, str) else ("", "", "")  # type: ignore[redundant-expr]
    if (
        not colon
        or not 0 < len(host) < 256
        or not (port.isascii() and port.isdecimal())
        or not 0 < int(port) < 1 << 16
    ):
        raise ConfigurationError(f"{text!r:.80} is not an address like localhost:63001")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1].partition("%")[0])) and host[1:-1], int(port)
        except ValueError:
            raise ConfigurationError(f"{text!r:.80}: what is in brackets is no IPv6 address") from None
    if ":" in host:
        raise ConfigurationError(f"{text!r:.80}: an IPv6 address stands in brackets, like [::1]:63001")
    return _checked_host(host, text), int(port)


def _checked_host(host: str, text: str) -> str:
    """A name or an IPv4 address that could be looked up: no empty or long labels, no spaces."""
    try:
        encoded = host.encode("idna").decode("ascii") if not host.isascii() else host
    except UnicodeError as error:
        raise ConfigurationError(f"{text!r:.80}: {host!r:.60} is no host name ({error})") from None
    labels = encoded.removesuffix(".").split(".")
    if len(encoded) > 253 or not all(
        re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})", each) for each in labels
    ):
        raise ConfigurationError(f"{text!r:.80}: {host!r:.60} is neither a host name nor an IPv4 address")
    return host


def format_address(address: Address) -> str:
    """The other way round."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def canonical_host(host: str) -> str:
    """One spelling for one IP address: without a zone, and IPv4 as such where the kernel wraps it in IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def neighbourhood(host: str) -> str:
    """What one owner may have many addresses in: the network of /24, or /48 with IPv6, around an address."""
    try:
        address = ipaddress.ip_address(canonical_host(host))
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))
