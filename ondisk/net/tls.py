"""TLS below the conversation: both sides show a certificate of the group's own authority; nobody listens in.

The shared secret stays: a certificate says which machine calls, the secret that it belongs to the group. What
``channel`` says goes through TLS 1.3 as it is. Bytes in, bytes out, no sockets: the connection moves them.

The files are looked at before each new connection, and read again when they have changed: so certificates
are renewed without a restart. Connections that are there go on with the old ones.
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from ondisk.errors import ConfigurationError
from ondisk.net.channel import Refused

logger = logging.getLogger(__name__)


class Certificates:
    """The certificate of this machine, its key, and the authority whose certificates are believed.

    All in PEM. The certificate is good for server and client (``extendedKeyUsage``), and names the host or
    the IP address under which the others call this replica (``subjectAltName``).
    """

    def __init__(self, certificate: Path | str, key: Path | str, authority: Path | str) -> None:
        """Raises ``ConfigurationError`` if a file cannot be used."""
        self._certificate, self._key, self._authority = map(Path, (certificate, key, authority))
        try:
            self._seen = self._look()
            self._contexts = self._load()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"TLS with {self}: {_why(error)}") from None

    def __str__(self) -> str:
        return f"{self._certificate}, {self._key} and {self._authority}"

    def session(self, hostname: str | None) -> Session:
        """For one connection: to ``hostname``, or from a caller."""
        self._read_again()
        to_call, to_answer = self._contexts
        if hostname is None:
            return Session(to_answer, None)
        return Session(to_call, hostname.partition("%")[0])

    def _read_again(self) -> None:
        """If a file has changed. What cannot be used, half written, say, leaves all as it was."""
        try:
            if (seen := self._look()) == self._seen:
                return
            self._seen = seen
            self._contexts = self._load()
        except (OSError, ValueError) as error:
            logger.warning("TLS goes on with the old certificates: %s: %s", self, _why(error))

    def _look(self) -> list[tuple[int, int, int]]:
        found = map(os.stat, (self._certificate, self._key, self._authority))
        return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """To call, and to answer."""
        contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for context in contexts:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._authority)
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        return contexts


class Session:
    """One side of TLS on one connection. All methods raise ``Refused`` if the other side is not believed."""

    def __init__(self, context: ssl.SSLContext, hostname: str | None) -> None:
        """``hostname``: who is called, or ``None`` if the other side calls."""
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._arrived, self._leaving, server_side=hostname is None, server_hostname=hostname
        )
        self.established = False  # whether something can be sent
        self._shake_hands()

    def take_in(self, data: bytes) -> None:
        """What has arrived from the socket."""
        self._arrived.write(data)
        if not self.established:
            self._shake_hands()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise _refused(error) from None
        self.established = True

    def read(self, most: int) -> bytes:
        """What the other side says, at most so many bytes; nothing if there is no more. Or ``EOFError``."""
        if not self.established:
            return b""
        try:
            return self._tls.read(most)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            raise EOFError from None
        except ssl.SSLError as error:
            raise _refused(error) from None

    def write(self, data: bytes) -> None:
        """Say this. Only when it is established."""
        self._tls.write(data)

    def to_send(self) -> bytes:
        """What is to go to the socket now."""
        return self._leaving.read()


def _refused(error: ssl.SSLError) -> Refused:
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return Refused("it does not speak TLS, and this side does: start all replicas with TLS, or none")
    return Refused("TLS: %s", _why(error))


def _why(error: Exception) -> str:
    """What OpenSSL says, without the place in its source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error)


def _no_password() -> str:
    """A key that needs one is refused; OpenSSL would ask for it at the terminal."""
    raise ValueError("the key is encrypted: a replica has nobody to ask for the password")
