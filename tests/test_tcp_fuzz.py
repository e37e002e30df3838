"""Bytes that nobody would send, at the ports of replicas that are at work.

``ONDISK_FUZZ_SECONDS=3600 pytest --long tests/test_tcp_fuzz.py`` goes on for an hour; ``--long`` alone for a
minute, and without it for some seconds. A failure prints its seed, and ``ONDISK_FUZZ_SEED`` makes the same
bytes again (not the same times).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondisk.net.tcp import TcpNetwork
from ondisk.raft.log import RaftLog
from ondisk.raft.messages import (
    AddReplica,
    AppendEntries,
    AppendEntriesResponse,
    Message,
    Outcome,
    Outcomes,
    Propose,
    ProposeChange,
    ReadIndexRejection,
    ReadIndexRequest,
    ReadIndexResponse,
    Removed,
    RequestVote,
    RequestVoteResponse,
    SnapshotAck,
    SnapshotChunk,
    SnapshotRejection,
    TimeoutNow,
    decoder,
    encoder,
)
from ondisk.raft.records import LogEntry
from ondisk.snapshot.stream import Chunk
from ondisk.statemachine import Result
from tests.lengths import short_and_long
from tests.processes import Terminal, free_ports
from tests.proxy import Proxy
from tests.tcp import SECRET, HandmadePeer, free_addresses, is_over, served
from tests.waiting import wait_until

LONG_SECONDS = float(os.environ.get("ONDISK_FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("ONDISK_FUZZ_SEED", random.randrange(1 << 32)))
OPEN_AT_ONCE = 150  # connections that a stranger keeps, of which a replica keeps 64

# Bytes by which a replica may grow. A put stays in the memory of RocksDB, as an entry and as a value, until
# there are 64 MB of it; and an allocator keeps some. A stranger may cost nothing that lasts, and
# there are a thousand of them in a second: if some hundred bytes were lost for each, it would show.
GROWTH, GROWTH_OF_A_PUT = 4 << 20, 1 << 10


def changed(rng: random.Random, data: bytes) -> bytes:
    """The same with some bits flipped, pieces cut out, repeated, moved or inserted, or an end."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        here, there = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        there = min(there, here + rng.choice((1, 4, 16, 200)))
        piece = data[here:there]
        data = rng.choice(
            (
                data[:here] + bytes(byte ^ 1 << rng.randrange(8) for byte in piece) + data[there:],
                data[:here] + data[there:],
                data[:there] + piece + data[there:],
                data[there:] + piece + data[:here],
                data[:here] + rng.randbytes(rng.choice((1, 4, 100))) + data[here:],
                data[:here] + struct.pack(">I", rng.choice((0, 1, 127, 8 << 20, 0xFFFFFFFF))) + data[here:],
                data[:here],
            )
        )
    return data


class Stranger(threading.Thread):
    """Calls one replica again and again, without the secret, with what it has heard on the line."""

    def __init__(
        self, address: tuple[str, int], replica: int, heard: list[tuple[bytes, bytes]], rng: random.Random
    ) -> None:
        super().__init__(name=f"stranger-of-{replica}")
        self.calls: Counter[str] = Counter()
        self.sent = 0
        self.let_in: list[str] = []  # by which attack something came back that is no hello
        self.broken: BaseException | None = None
        self.over = threading.Event()
        self._address, self._replica, self._heard, self._rng = address, replica, heard, rng
        self._open: list[socket.socket] = []

    def run(self) -> None:
        attacks: list[Callable[[], bytes]] = [
            self.noise,
            self.other_protocols,
            self.begun_well,
            self.replayed,
            self.replayed_with_changes,
            self.sent_back,
            self.hello_and_guess,
            self.hello_and_guess,
            self.hello_and_frames,
        ]
        try:
            while not self.over.is_set():
                attack = self._rng.choice(attacks)
                self.call(attack)
        except BaseException as error:
            self.broken = error
        finally:
            for sock in self._open:
                sock.close()

    def call(self, attack: Callable[[], bytes]) -> None:
        try:
            sock = socket.create_connection(self._address, 5)
        except OSError:  # the queue of the listening socket is full
            return
        self.calls[attack.__name__] += 1
        self._open.append(sock)
        answer = b""
        with contextlib.suppress(OSError):
            data = attack()
            if self._rng.random() < 0.1:  # slowly
                for place in range(0, min(len(data), 60), 20):
                    sock.sendall(data[place : place + 20])
                    self.over.wait(0.002)
                data = data[60:]
            self.sent += len(data)
            sock.sendall(data)
            sock.settimeout(0.02)
            while len(answer) <= 56 and (more := sock.recv(4096)):
                answer += more
        if len(answer) > 56:
            self.let_in.append(attack.__name__)
        if self._rng.random() < 0.7:
            self._open.pop().close()
        elif len(self._open) > OPEN_AT_ONCE // 3:
            self._open.pop(self._rng.randrange(len(self._open))).close()

    # What is said

    def noise(self) -> bytes:
        return self._rng.randbytes(self._rng.choice((0, 1, 3, 55, 56, 57, 88, 89, 300, 5000, 100_000)))

    def other_protocols(self) -> bytes:
        return self._rng.choice(
            (
                b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
                pickle.dumps([{"type": "append_entries"}] * 50),
                struct.pack("i", 60) + pickle.dumps(print),
                encoder.encode(RequestVote(99, 99, 99, pre=False)),
            )
        )

    def begun_well(self) -> bytes:
        there, _ = self._rng.choice(self._heard)
        return there[: self._rng.randrange(100)] + self.noise()

    def replayed(self) -> bytes:
        return self._rng.choice(self._heard)[0]

    def replayed_with_changes(self) -> bytes:
        return changed(self._rng, self._rng.choice(self._heard)[0][: self._rng.choice((60, 100, 5000))])

    def sent_back(self) -> bytes:
        return self._rng.choice(self._heard)[1]

    def hello(self) -> bytes:
        sender = self._rng.choice((self._replica + 1, 3, 3, self._replica, 1, 0, 4, 1 << 63))
        receiver = self._rng.choice((self._replica, self._replica, self._replica, 1, 0, 9))
        return struct.pack(">8sQQ32s", b"ondisk-6", sender, receiver, self._rng.randbytes(32))

    def hello_and_guess(self) -> bytes:
        heard = self._rng.choice(self._rng.choice(self._heard))
        return self.hello() + self._rng.choice((self._rng.randbytes(32), bytes(32), heard[56:88], heard[:32]))

    def hello_and_frames(self) -> bytes:
        """Frames as after a handshake, at once or after some proof."""
        message: Message = self._rng.choice(
            (
                RequestVote(1 << 40, 1 << 40, 1 << 40, pre=False),
                AppendEntries(1 << 40, 0, 0, [LogEntry(1, 1 << 40, b"\0forged")], 1, 0),
                Propose(1, [b"\0forged"]),
            )
        )
        payload = encoder.encode(message)
        frame = struct.pack(">I", len(payload)) + payload + self._rng.randbytes(16)
        return self.hello() + self._rng.choice((b"", self._rng.randbytes(32))) + frame


class Group:
    """Three replicas as processes. What 3 says to 1 and 2, and what 2 says to 1, is overheard."""

    def __init__(self, cwd: Path) -> None:
        (cwd / "secret").write_bytes(SECRET)
        ports = dict(zip((1, 2, 3), free_ports(3), strict=True))
        self.addresses = {replica: ("127.0.0.1", port) for replica, port in ports.items()}
        self._stack = contextlib.ExitStack()
        self.lines = {
            (caller, called): self._stack.enter_context(Proxy(self.addresses[called]))
            for caller, called in ((2, 1), (3, 1), (3, 2))
        }
        self.terminals = {}
        for replica in (1, 2, 3):
            seen = dict(ports) | {
                called: proxy.address[1]
                for (caller, called), proxy in self.lines.items()
                if caller == replica
            }
            members = ",".join(f"127.0.0.1:{seen[other]}" for other in (1, 2, 3))
            self.terminals[replica] = self._stack.enter_context(
                Terminal(
                    *("--replica-id", str(replica), "--members", members, "--secret-file", "secret"), cwd=cwd
                )
            )
        for terminal in self.terminals.values():
            terminal.ready()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def heard(self) -> list[tuple[bytes, bytes]]:
        """What was said there and back on connections of members; nothing before it was said on each line."""
        said = [
            [(bytes(there), bytes(back)) for there, back in line.recorded if min(len(there), len(back)) >= 88]
            for line in self.lines.values()
        ]
        return [pair for pairs in said for pair in pairs] if all(said) else []

    def outline(self) -> dict[int, tuple[str, ...]]:
        """Of each replica: role, term, leader and members."""
        found = {}
        for replica, terminal in self.terminals.items():
            row = terminal.status()[0]
            found[replica] = (*row[1:4], terminal.ask("members"))
        return found


def footprint(terminal: Terminal) -> tuple[int, int, int]:
    """Files, threads and bytes of memory of a replica's process."""
    process = psutil.Process(terminal.pid)
    return process.num_fds(), process.num_threads(), process.memory_info().rss


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS + 200)
@pytest.mark.parametrize("seconds", short_and_long(8.0, LONG_SECONDS))
def test_strangers_change_nothing_and_nothing_of_them_stays(tmp_path: Path, seconds: float) -> None:
    """Puts go on meanwhile; afterwards term, votes, members, files, threads and memory are as before."""
    print(f"seed {SEED}, {seconds:g} s")
    with Group(tmp_path) as group:
        terminals = group.terminals
        wait_until(lambda: terminals[3].ask("put first v") == "ok")
        wait_until(lambda: len({row[1:] for row in group.outline().values()}) == 1)
        heard = wait_until(group.heard)
        for number in range(200):  # until everything that a replica keeps is there
            assert terminals[1 + number % 3].ask(f"put k{number % 50} {number}") == "ok"
        before = group.outline()
        at_rest = {replica: footprint(terminal) for replica, terminal in terminals.items()}
        # On a slow machine they may have waited for each other, before there was a group.
        said_before = {replica: len(terminal.errors) for replica, terminal in terminals.items()}

        strangers = [
            Stranger(group.addresses[replica], replica, heard, random.Random(f"{SEED} {replica}"))
            for replica in (1, 2, 3)
        ]
        for stranger in strangers:
            stranger.start()
        waits = []
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                begun = time.monotonic()
                number = len(waits)
                assert terminals[1 + number % 3].ask(f"put k{number % 50} {number}") == "ok"
                waits.append(time.monotonic() - begun)
                assert not any(stranger.broken for stranger in strangers)
        finally:
            for stranger in strangers:
                stranger.over.set()
            for stranger in strangers:
                stranger.join()

        assert [stranger.let_in for stranger in strangers] == [[], [], []]
        assert group.outline() == before
        for number in range(max(0, len(waits) - 50), len(waits)):
            assert terminals[2].ask(f"get k{number % 50}").endswith(f"result: {number}")
        assert terminals[1].ask("scan '' 1000") and "forged" not in terminals[1].output
        wait_until(lambda: all(footprint(terminals[i])[:2] == at_rest[i][:2] for i in (1, 2, 3)))
        growth = {replica: footprint(terminals[replica])[2] - at_rest[replica][2] for replica in (1, 2, 3)}
        calls = sum((stranger.calls for stranger in strangers), Counter())
        print(f"{sum(calls.values()):,} connections, {sum(stranger.sent for stranger in strangers):,} bytes:")
        print(dict(calls))
        print(
            f"{len(waits):,} puts, the slowest took {max(waits):.3f} s; memory grew by",
            {replica: f"{by / 1e6:.1f} MB" for replica, by in growth.items()},
        )
        assert max(growth.values()) < GROWTH + GROWTH_OF_A_PUT * len(waits)
        leader, term = int(before[1][2]), int(before[1][1])
        for replica in sorted((1, 2, 3), key=lambda replica: replica == leader):  # at last, so nobody votes
            terminal = terminals[replica]
            terminal.end_input()
            assert terminal.wait() == 0
            complaint = re.compile(rf"WARNING: replica {replica} dropped \S+:\d+: .*|waiting for a leader")
            said = terminal.errors[said_before[replica] :].splitlines()
            assert [line for line in said if not complaint.fullmatch(line)] == []
    for replica in (1, 2, 3):
        log = RaftLog(tmp_path / "example-data" / f"replica-{replica}" / "log")
        assert log.term == term and log.voted_for in (None, leader)
        log.close()


@pytest.fixture
def rng() -> Iterator[random.Random]:
    print(f"seed {SEED}")
    yield random.Random(SEED)


@pytest.mark.slow
@pytest.mark.timeout(LONG_SECONDS + 100)
@pytest.mark.parametrize("seconds", short_and_long(2.0, LONG_SECONDS / 6))
def test_whatever_happens_to_frames_on_the_way_only_the_first_ones_arrive(
    rng: random.Random, seconds: float
) -> None:
    """Somebody on the line changes what a member has said: what is taken in is a prefix of that."""
    addresses = free_addresses(2)
    endpoint = TcpNetwork(addresses, secret=SECRET).attach(1)
    streams = arrived = 0
    try:
        with served(endpoint) as received:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                messages = [ReadIndexRequest(number) for number in range(rng.choice((1, 2, 10, 100)))]
                with HandmadePeer(addresses[1], 2, 1) as peer:
                    peer.say_hello()
                    peer.prove()
                    frames = [peer.seal(encoder.encode(message)) for message in messages]
                    if rng.random() < 0.5:
                        frames = rng.choices(frames, k=len(frames))
                        stream = b"".join(frames)
                    else:
                        stream = changed(rng, b"".join(frames))
                    with contextlib.suppress(OSError):
                        peer.sock.sendall(stream)
                        peer.sock.shutdown(socket.SHUT_WR)
                    assert is_over(peer.sock)
                wait_until(lambda: not endpoint.connected())
                got = [message for _, message in received]
                received.clear()
                assert got == messages[: len(got)]
                streams, arrived = streams + 1, arrived + len(got)
    finally:
        endpoint.close()
    print(f"{streams:,} streams, {arrived:,} messages arrived")
    assert arrived


EACH_KIND: tuple[Message, ...] = (
    RequestVote(3, 200, 2, pre=True),
    RequestVoteResponse(3, pre=False),
    AppendEntries(3, 200, 2, [LogEntry(201, 3, b"command"), LogEntry(202, 3, b"")], 199, 70_000),
    AppendEntriesResponse(3, 202, 200, 70_000),
    Propose(1 << 40, [b"command", b""]),
    Outcomes([Outcome(1 << 40, "applied", Result(b"value")), Outcome(7, "unknown")]),
    ReadIndexRequest(1 << 40),
    ReadIndexResponse(1 << 40, 202),
    ReadIndexRejection(1 << 40),
    TimeoutNow(3),
    Removed(),
    ProposeChange(7, AddReplica(4, "localhost:63004")),
    SnapshotChunk(3, 1 << 40, Chunk(0, 1, b"data", 0xFFFFFFFF)),
    SnapshotAck(1 << 40, 3, 16),
    SnapshotRejection(1 << 40),
)


@st.composite
def nearly_messages(draw: st.DrawFn) -> bytes:
    """Encoded messages of every kind, with some of their bytes changed."""
    data = bytearray(encoder.encode(draw(st.sampled_from(EACH_KIND))))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data) - 1))
        data[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=6)) or b"\xdd"
        data = data or bytearray(b"\xc0")
    return bytes(data)


@settings(max_examples=2000, deadline=None)
@given(data=st.binary(max_size=200) | nearly_messages())
def test_the_decoder_gives_a_message_or_refuses(data: bytes) -> None:
    """With an error of those that end a connection, and never with another one."""
    try:
        message = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    assert isinstance(message, Message)
    assert decoder.decode(encoder.encode(message)) == message
