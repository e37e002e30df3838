"""The conversation over one connection: handshake and frames. Bytes in, bytes out, no sockets.

* Handshake: two *hellos* of 56 bytes say who calls whom, with a fresh random number (a *nonce*) each. Then
  the caller proves that it knows the shared secret, for exactly these two hellos, and then the called one
  does: who calls and does not know it gets nothing to try guesses on. Of a caller that has proved nothing no
  more than 88 bytes are read, and no decoder sees them.
* A frame is a length, a payload of at most 8 MB and a MAC. Each direction of each connection has a key and
  a counter of its own, so a frame that was forged, repeated, left out, reordered, sent back, or taken from
  another connection does not verify. That ends the connection and nothing else.
* Only then is the payload decoded, by ``raft/messages.py``, type by type. Nothing is ever unpickled.
* Before its first message, and whenever it changes, each side says its *origin*: which group, which disk,
  which life. It stamps all that follows, so it costs nothing per message. Who belongs together is decided
  above (``identity/origins.py``), by origin and not by address: whoever knows an address calls.

* A *client* hosts no replica (``client_messages.py``): its number is 0, and so is that of whom it calls,
  which is whoever is there. It proves that it knows the secret as members do, and says no origin.

The idea is that of TLS 1.3 with a pre-shared key (RFC 8446), without its encryption: HMAC-SHA256 over what
both sides said makes proofs and keys, and keyed BLAKE2b (RFC 7693) seals the frames. Anybody who can listen
can read them, unless all of it goes through TLS (``tls``). The secret is that of the group: who knows
it can speak as any member.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import NamedTuple

import msgspec

from ondisk.net.client_messages import MAX_REQUEST_BYTES
from ondisk.raft.limits import MAX_FRAME_BYTES
from ondisk.raft.messages import Message, Origin, decoder, encoder

CLIENT = 0  # in a hello: a client calls, and whom a client calls

_MAC_BYTES = 16
_LENGTH_BYTES = 4
_PROOF_BYTES = 32
# Another number with each change of a message, and with each new command of DiskKV: see docs/decisions.md.
_FAMILY, _MAGIC = b"ondisk-", b"ondisk-6"
_ORIGIN_TAG = b"\xc1"  # of a frame that holds an origin: MessagePack never begins so
_HELLO = struct.Struct(">8sQQ32s")  # the magic, sender, receiver, nonce

_origin_encoder = msgspec.msgpack.Encoder()
_origin_decoder = msgspec.msgpack.Decoder(Origin)


class Refused(Exception):
    """The other side broke the protocol; the connection must end. The arguments are those of a log call."""

    def __str__(self) -> str:
        text, *values = self.args
        return str(text % tuple(values))


class _Hello(NamedTuple):
    """Who calls whom, and a fresh random number. Nothing of it is believed before the proof."""

    sender: int
    receiver: int
    nonce: bytes

    def encode(self) -> bytes:
        return _HELLO.pack(_MAGIC, *self)


class Channel:
    """One side of one conversation. ``peer`` is the other side, known and proved, after the handshake."""

    def __init__(self, own_id: int, secret: bytes, calling: int | None) -> None:
        """``calling``: who is called, or ``None`` if the other side calls."""
        self.calling = calling
        self.peer: int | None = None
        self._id = own_id
        self._secret = secret
        self._nonce = os.urandom(32)
        self._hellos: tuple[_Hello, _Hello] | None = None  # the caller's, then that of the called one
        self._received = bytearray()
        self._send_key = self._receive_key = b""
        self._sent_frames = self._received_frames = 0
        self._their_origin: Origin | None = None  # as it was said last
        self._own_origin: Origin | None = None

    # The handshake. Nothing of the next step is read before this one is done: what somebody sends beyond it
    # stays in the kernel.

    def call(self) -> bytes:
        """The hello with which a caller begins."""
        assert self.calling is not None
        return self._hello(self.calling).encode()

    @property
    def greeted(self) -> bool:
        """Whether the other side has said hello."""
        return self._hellos is not None

    @property
    def missing(self) -> int:
        """How many bytes the present step of the handshake still needs."""
        return self._step_bytes - len(self._received)

    @property
    def _step_bytes(self) -> int:
        return _HELLO.size if self._hellos is None else _PROOF_BYTES

    def shake_hands(self, data: bytes) -> bytes:
        """Take what has arrived, at most ``missing`` bytes; return what to answer. Raises ``Refused``."""
        self._received += data
        if self._hellos is None:
            self._check_version(bytes(self._received[: len(_MAGIC)]))
        if len(self._received) < self._step_bytes:
            return b""
        data = bytes(self._received)
        self._received.clear()
        return (
            self._on_hello(_Hello(*_HELLO.unpack(data)[1:])) if self._hellos is None else self._on_proof(data)
        )

    def _check_version(self, start: bytes) -> None:
        if start.startswith(_FAMILY) and len(start) == len(_MAGIC) and start != _MAGIC:
            raise Refused(
                "it speaks %s, and this side %s: stop all replicas, install the same version of ondisk "
                "everywhere, and start them again",
                ascii(start)[2:-1],  # whoever calls begins no line of the log
                _MAGIC.decode(),
            )
        if start.startswith(b"\x16\x03"):
            raise Refused("it speaks TLS, and this side does not: start all replicas with TLS, or none")
        if not _MAGIC.startswith(start):
            raise Refused("what it says is not the beginning of a conversation between replicas")

    def _hello(self, receiver: int) -> _Hello:
        return _Hello(self._id, receiver, self._nonce)

    def _on_hello(self, hello: _Hello) -> bytes:
        called_by_client = self.calling is None and hello.sender == hello.receiver == CLIENT
        if hello.receiver != self._id and not called_by_client:
            raise Refused("a call for replica %d; this is replica %d", hello.receiver, self._id)
        if self.calling is not None:
            if hello.sender == CLIENT:
                raise Refused("who answered is a client, and no replica")
            if self.calling not in (CLIENT, hello.sender):
                raise Refused("replica %d answered instead of replica %d", hello.sender, self.calling)
            self._hellos = self._hello(self.calling), hello
            return self._proof(self._id)
        if hello.sender == 0 and not called_by_client:
            raise Refused("replica %d is none: ids begin with 1", hello.sender)
        if hello.sender == self._id:
            raise Refused("another replica %d calls: two have the same number", hello.sender)
        self._hellos = hello, self._hello(hello.sender)
        return self._hellos[1].encode()

    def _on_proof(self, proof: bytes) -> bytes:
        assert self._hellos is not None
        peer = self._hellos[0 if self.calling is None else 1].sender
        if not hmac.compare_digest(proof, self._proof(peer)):
            if peer == CLIENT:
                raise Refused("a client does not know the shared secret")
            raise Refused("who claims to be replica %d does not know the shared secret", peer)
        self._send_key = self._derive(b"frames", self._id)
        self._receive_key = self._derive(b"frames", peer)
        self.peer = peer
        return self._proof(self._id) if self.calling is None else b""

    def _proof(self, sender: int) -> bytes:
        return self._derive(b"proof", sender)

    def _derive(self, purpose: bytes, sender: int) -> bytes:
        """32 bytes that belong to this connection, this purpose and what ``sender`` says on it."""
        assert self._hellos is not None
        caller, called = self._hellos
        what = struct.pack(">8sQ", purpose, sender) + caller.encode() + called.encode()
        return hmac.digest(self._secret, what, "sha256")

    # Frames

    def seal(self, message: Message, origin: Origin) -> bytes:
        """The frame of a message; the first with an origin has another one in front that says it.

        Empty if it is too large, for which the other side would end the connection, or cannot be encoded.
        """
        try:
            payload = encoder.encode(message)
        except (OverflowError, TypeError):  # with a result that no state machine should give
            return b""
        if len(payload) > MAX_FRAME_BYTES:
            return b""
        introduction = b""
        if self._own_origin is not origin:
            self._own_origin = origin
            introduction = self.frame(_ORIGIN_TAG + _origin_encoder.encode(origin))
        frame = self.frame(payload)
        return introduction + frame if introduction else frame

    def frame(self, payload: bytes) -> bytes:
        """The frame of a payload; between a client and a member that is all there is to do."""
        mac = _mac(self._send_key, self._sent_frames, payload)
        self._sent_frames += 1
        return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload + mac

    def open(self, data: bytes) -> list[tuple[Origin, Message]]:
        """Take what has arrived; return the messages that are complete by now. Raises ``Refused``."""
        self._received += data
        messages: list[tuple[Origin, Message]] = []
        while (payload := self._next_payload()) is not None:
            try:
                if payload.startswith(_ORIGIN_TAG):
                    self._their_origin = _origin_decoder.decode(memoryview(payload)[1:])
                elif self._their_origin is None:
                    raise Refused("a message before its sender has introduced itself")
                else:
                    messages.append((self._their_origin, decoder.decode(payload)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
                raise Refused("not a message: %s", error) from None
        return messages

    def payloads(self, data: bytes) -> list[bytes]:
        """Take what has arrived; return what the complete frames hold, undecoded. Raises ``Refused``."""
        self._received += data
        payloads = []
        while (payload := self._next_payload()) is not None:
            payloads.append(payload)
        return payloads

    def _next_payload(self) -> bytes | None:
        if len(self._received) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._received[:_LENGTH_BYTES], "big")
        most = MAX_REQUEST_BYTES if self.peer == CLIENT else MAX_FRAME_BYTES
        if length > most:
            raise Refused("a frame of %s bytes; at most %s are allowed", f"{length:,}", f"{most:,}")
        end = _LENGTH_BYTES + length + _MAC_BYTES
        if len(self._received) < end:
            return None
        payload = bytes(self._received[_LENGTH_BYTES : _LENGTH_BYTES + length])
        mac = _mac(self._receive_key, self._received_frames, payload)
        if not hmac.compare_digest(mac, bytes(self._received[end - _MAC_BYTES : end])):
            raise Refused("a frame that was tampered with, or that does not belong here")
        self._received_frames += 1
        del self._received[:end]
        return payload


def _mac(key: bytes, number: int, payload: bytes) -> bytes:
    mac = hashlib.blake2b(number.to_bytes(8, "big"), key=key, digest_size=_MAC_BYTES)
    mac.update(payload)
    return mac.digest()
