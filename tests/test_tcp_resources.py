"""TCP where something runs short: name servers that hang, no descriptors, no places, wakes at bad moments."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ondisk.errors import ConfigurationError, PortInUse
from ondisk.net import connection, dialer, resolver
from ondisk.net.addresses import canonical_host, neighbourhood
from ondisk.net.places import MAX_UNAUTHENTICATED, MEMBERS_PLACES
from ondisk.net.resolver import MAX_LOOK_UPS, Resolver
from ondisk.net.tcp import TcpEndpoint, TcpNetwork
from ondisk.raft.messages import ReadIndexRequest
from tests.tcp import SECRET, HandmadePeer, attach, connect, free_addresses, serve, served
from tests.waiting import wait_until

__all__ = ["attach"]  # the fixture

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only 127.0.0.1 is loopback")

# Names


class NameServer:
    """Stands in for ``socket.getaddrinfo``: some names hang until the end of the test, some are no good."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked: list[str] = []
        self.under_way = 0
        self.names: dict[str, list[tuple[str, int]] | Exception] = {}

    def getaddrinfo(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        self.asked.append(host)
        if host.startswith("hangs"):
            self.under_way += 1
            self.over.wait(60)
            self.under_way -= 1
        answer = self.names.get(host, [])
        if isinstance(answer, Exception):
            raise answer
        family = socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (ip, number or port)) for ip, number in answer]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """Look-ups of names go here; nothing else asks for any. No thread of a look-up outlives the test."""
    server = NameServer()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: object) -> list[tuple[object, ...]]:
        if "." not in host or host[0].isalpha():
            return server.getaddrinfo(host, port)
        return real(host, port, **options)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield server
    server.over.set()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("look-up of")])


def test_a_name_server_that_hangs_keeps_nobody_waiting(
    attach: Callable[..., TcpEndpoint], names: NameServer
) -> None:
    """Neither the replica's own thread nor its other peers, nor who closes it."""
    addresses = free_addresses(3)
    network = TcpNetwork(addresses | {1: ("hangs.example", 1)}, secret=SECRET)
    two = TcpNetwork(addresses, secret=SECRET).attach(2)
    with contextlib.closing(two):
        three = attach(network, 3)
        longest = 0.0
        deadline = time.monotonic() + 20
        while not (three.connected() and two.connected() and names.under_way):
            assert time.monotonic() < deadline
            begun = time.monotonic()
            three.wait(0.01)
            three.receive()
            longest = max(longest, time.monotonic() - begun)
            two.wait(0.01)
        assert three.send(2, ReadIndexRequest(5))
        wait_until(lambda: [m for _, m in serve(two, three)] == [ReadIndexRequest(5)])
        begun = time.monotonic()
        three.wait(0.2)
        three.close()
        assert time.monotonic() - begun < 2.0 and longest < 2.0
    assert names.under_way == 1 and names.asked == ["hangs.example"]


@pytest.mark.parametrize(
    "failure",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        UnicodeError("label too long"),
        ValueError("embedded null character"),
        RuntimeError("whatever else"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_name_that_cannot_be_looked_up_costs_a_line_and_nothing_else(
    attach: Callable[..., TcpEndpoint],
    names: NameServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    """However often it is tried."""
    monkeypatch.setattr(resolver, "_FRESH_SECONDS", 0.1)
    addresses = free_addresses(3)
    names.names["odd.example"] = failure
    network = TcpNetwork(addresses | {1: ("odd.example", 7)}, secret=SECRET)
    two, three = attach(TcpNetwork(addresses, secret=SECRET), 2), attach(network, 3)
    wait_until(lambda: serve(two, three) or (len(names.asked) >= 3 and two.connected() and three.connected()))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"replica 3 cannot call replica 1 at odd.example:7: {failure}"]


def test_each_address_of_a_name_is_tried(
    attach: Callable[..., TcpEndpoint], names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a pause: nobody listens at one, another hangs up, the third is right."""
    addresses = free_addresses(4)
    names.names["many.example"] = [addresses[3], addresses[4], addresses[1]]
    one = attach(TcpNetwork(addresses, secret=SECRET), 1)
    two = attach(TcpNetwork({1: ("many.example", 0), 2: addresses[2]}, secret=SECRET), 2)
    with socket.create_server(addresses[4]):
        wait_until(lambda: serve(two) or two._dialer._resolver.known_hosts(("many.example", 0)))
        monkeypatch.setattr(dialer, "RECONNECT_SECONDS", 600.0)
        wait_until(lambda: serve(two) or two._unauthenticated)
        assert not one.connected()
    wait_until(lambda: serve(one, two) or (two.connected() and one.connected()))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_localhost_is_either_of_the_two(attach: Callable[..., TcpEndpoint], host: str) -> None:
    """Whichever the other side listens on, and without looking it up."""
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as it:
            port = it.getsockname()[1]
    except OSError:
        pytest.skip("no IPv6 here")
    addresses = free_addresses(2)
    one = attach(TcpNetwork(addresses | {1: (host, port)}), 1)
    connect(one, attach(TcpNetwork(addresses | {1: ("localhost", port)}), 2))


def test_a_look_up_is_made_once_at_a_time_kept_a_while_and_good_until_a_better_one(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that fails later takes nobody's address away."""
    asked = Resolver()
    where = ("name.example", 5)
    names.names["name.example"] = [("192.0.2.1", 0)]
    expected = [(socket.AF_INET, ("192.0.2.1", 5))]
    assert wait_until(lambda: asked.resolve(where)) == expected
    assert [asked.resolve(where) for _ in range(100)] == [expected] * 100
    assert names.asked == ["name.example"]
    assert asked.known_hosts(where) == {"192.0.2.1"}
    monkeypatch.setattr(resolver, "_FRESH_SECONDS", 0.0)
    names.names["name.example"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure")
    wait_until(lambda: asked.resolve(where) == expected and len(names.asked) > 3)
    names.names["name.example"] = [("192.0.2.2", 0)]
    wait_until(lambda: asked.resolve(where) == [(socket.AF_INET, ("192.0.2.2", 5))])


def test_look_ups_that_hang_are_few_and_said_aloud(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a thread."""
    asked = Resolver()
    for _ in range(5):
        assert asked.resolve(("hangs-0.example", 5)) == []
    for number in range(3 * MAX_LOOK_UPS):
        assert asked.resolve((f"hangs-{number}.example", 5)) == []
    assert len(names.asked) <= MAX_LOOK_UPS
    assert len([t for t in threading.enumerate() if t.name.startswith("look-up of")]) == MAX_LOOK_UPS
    monkeypatch.setattr(resolver, "_PATIENCE_SECONDS", -1.0)
    with pytest.raises(OSError, match="takes long"):
        asked.resolve(("hangs-0.example", 5))


# Where to listen


def test_a_member_may_listen_elsewhere_than_others_call_it(attach: Callable[..., TcpEndpoint]) -> None:
    """Behind a router or in a container. What the others are told is where they call."""
    addresses = free_addresses(3)
    network = TcpNetwork({1: addresses[1], 2: addresses[2]}, bind={1: addresses[3]})
    one = attach(network, 1)
    assert one._listener.getsockname() == addresses[3]
    assert one.advertised == "{}:{}".format(*addresses[1])
    two = attach(network, 2)
    assert two._listener.getsockname() == addresses[2]
    everywhere = attach(TcpNetwork(addresses, secret=SECRET, bind={3: ("0.0.0.0", 0)}), 3)
    assert everywhere._listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_who_listens_beyond_loopback_needs_a_secret(host: str) -> None:
    """Wherever the others call it."""
    with pytest.raises(ConfigurationError, match="beyond loopback: a shared secret is required"):
        TcpNetwork({1: ("127.0.0.1", 1)}, bind={1: (host, 1)})
    TcpNetwork({1: ("127.0.0.1", 1)}, bind={1: (host, 1)}, secret=SECRET)
    with pytest.raises(ConfigurationError, match="replica 2 has an address to listen at, and none where"):
        TcpNetwork({1: ("127.0.0.1", 1)}, bind={2: ("127.0.0.1", 2)})


def test_where_a_machine_cannot_listen_is_said_with_what_to_do(attach: Callable[..., TcpEndpoint]) -> None:
    """An address of another machine is no port in use."""
    with pytest.raises(ConfigurationError, match=r"192.0.2.7:1.*this machine does not have it.*bind"):
        attach(TcpNetwork({1: ("192.0.2.7", 1)}, secret=SECRET), 1)
    addresses = free_addresses(2)
    with socket.create_server(addresses[2]), pytest.raises(PortInUse, match=f":{addresses[2][1]}"):
        attach(TcpNetwork({1: addresses[1]}, bind={1: addresses[2]}), 1)


# Descriptors

STARVING = """
import logging, os, resource, sys, time
from ondisk.errors import ConfigurationError
from ondisk.net.tcp import TcpNetwork

logging.basicConfig(format="%(message)s")
address, elsewhere = (("127.0.0.1", int(port)) for port in sys.argv[1:])
network = TcpNetwork({1: address, 3: ("127.0.0.1", 1)}, secret=b"a secret of sixteen bytes or more")
endpoint = network.attach(1)
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
hoard = []
try:
    while True:
        hoard.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
print("starved", flush=True)
sys.stdin.readline()
begun, worked = time.monotonic(), time.process_time()
while time.monotonic() < begun + 2.0:
    endpoint.wait(0.1)
    endpoint.receive()
print((time.process_time() - worked) / (time.monotonic() - begun), flush=True)
assert not endpoint.connected()
for free in range(4):
    for _ in range(free):
        os.close(hoard.pop())
    try:
        TcpNetwork({1: elsewhere}).attach(1)
    except ConfigurationError as error:
        assert "cannot" in str(error) and "ulimit -n" in str(error), error
    else:
        raise AssertionError("it did not fail")
    for _ in range(free):
        hoard.append(os.open("/dev/null", os.O_RDONLY))  # it has left nothing open
for descriptor in hoard:
    os.close(descriptor)
deadline = time.monotonic() + 20
while 2 not in endpoint.connected():
    assert time.monotonic() < deadline
    endpoint.wait(0.1)
    endpoint.receive()
print("connected", flush=True)
sys.stdin.readline()
endpoint.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on descriptors that counts exactly")
def test_without_descriptors_a_replica_waits_and_then_goes_on(attach: Callable[..., TcpEndpoint]) -> None:
    """It says so once, does not spin although somebody calls all the time, and lets a member in later."""
    addresses = free_addresses(3)
    ports = [str(addresses[member][1]) for member in (1, 3)]
    with subprocess.Popen(
        [sys.executable, "-W", "always::ResourceWarning", "-c", STARVING, *ports],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            assert process.stdout.readline() == "starved\n", process.stderr.read()
            two = attach(TcpNetwork({1: addresses[1], 2: addresses[2]}, secret=SECRET), 2)
            with served(two):
                wait_until(lambda: two._unauthenticated)  # it has called
                process.stdin.write("\n")
                process.stdin.flush()
                busy = process.stdout.readline()
                assert busy, process.stderr.read()
                assert float(busy) < 0.25
                assert process.stdout.readline() == "connected\n", process.stderr.read()
                wait_until(lambda: two.connected() == {1})
            process.stdin.write("\n")
            process.stdin.close()
            lines = process.stderr.read().splitlines()
            assert process.wait(20) == 0
        finally:
            process.kill()
    answering = [line for line in lines if line.startswith("replica 1 cannot answer who calls: ")]
    calling = [line for line in lines if line.startswith("replica 1 cannot call replica 3 at ")]
    assert len(answering) == len(calling) == 1 and len(lines) == 2, lines
    assert all("ulimit -n" in line for line in lines)


# Places


@pytest.mark.parametrize(
    ("host", "canonical", "network"),
    [
        ("127.0.7.1", "127.0.7.1", "127.0.7.0/24"),
        ("::ffff:192.0.2.9", "192.0.2.9", "192.0.2.0/24"),
        ("2001:db8:1:2::9", "2001:db8:1:2::9", "2001:db8:1::/48"),
        ("fe80::1%lo", "fe80::1", "fe80::/48"),
        ("a.name", "a.name", "a.name"),
    ],
)
def test_a_host_has_one_spelling_and_a_network_around_it(host: str, canonical: str, network: str) -> None:
    """However the kernel writes it, where IPv6 serves both."""
    assert (canonical_host(host), neighbourhood(host)) == (canonical, network)


def strangers_from(networks: int, address: tuple[str, int], stack: contextlib.ExitStack) -> None:
    """One from each of so many networks."""
    for number in range(networks):
        source = f"127.{1 + number // 250}.{number % 250}.1"
        stack.enter_context(socket.create_connection(address, 20, (source, 0)))


@ON_LINUX
def test_strangers_from_many_networks_keep_no_member_out(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that is slow, as long as it calls from where members are known to be."""
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 600.0)
    addresses = free_addresses(2)
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with served(endpoint), contextlib.ExitStack() as stack:
        strangers_from(MAX_UNAUTHENTICATED, addresses[1], stack)
        wait_until(lambda: len(endpoint._unauthenticated) == MAX_UNAUTHENTICATED)
        with HandmadePeer(addresses[1], 2, 1) as member:
            member.say_hello()
            strangers_from(4 * MAX_UNAUTHENTICATED, addresses[1], stack)
            wait_until(lambda: len(endpoint._unauthenticated) == MAX_UNAUTHENTICATED)
            member.prove()
            wait_until(lambda: endpoint.connected() == {2})


@ON_LINUX
def test_the_hosts_of_members_share_their_places_and_no_more(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So who calls from the host of a member does not keep out the others, nor who joins from elsewhere."""
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 600.0)
    addresses = free_addresses(3) | {3: ("127.0.0.3", 1)}
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with (
        served(endpoint),
        contextlib.ExitStack() as stack,
        HandmadePeer(addresses[1], 3, 1, source="127.0.0.3") as member,
        HandmadePeer(addresses[1], 4, 1, source="127.0.4.4") as joining,
    ):
        member.say_hello()
        joining.say_hello()
        for _ in range(2 * MAX_UNAUTHENTICATED):
            stack.enter_context(socket.create_connection(addresses[1]))  # from the host of replica 2
        strangers_from(MAX_UNAUTHENTICATED - MEMBERS_PLACES - 5, addresses[1], stack)
        wait_until(lambda: len(endpoint._unauthenticated) == MAX_UNAUTHENTICATED)
        member.prove()
        joining.prove()
        wait_until(lambda: endpoint.connected() == {3, 4})


@ON_LINUX
def test_a_network_with_many_strangers_pushes_out_its_own(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may come from another address of it: who joins from elsewhere keeps its place."""
    monkeypatch.setattr(connection, "HANDSHAKE_SECONDS", 600.0)
    addresses = {1: free_addresses(1)[1]}
    endpoint = attach(TcpNetwork(addresses, secret=SECRET), 1)
    with (
        served(endpoint),
        contextlib.ExitStack() as stack,
        HandmadePeer(addresses[1], 4, 1, source="127.0.4.4") as joining,
    ):
        joining.say_hello()
        for number in range(3 * MAX_UNAUTHENTICATED):
            source = (f"127.0.9.{1 + number}", 0)
            stack.enter_context(socket.create_connection(addresses[1], 20, source))
        wait_until(lambda: len(endpoint._unauthenticated) == MAX_UNAUTHENTICATED)
        joining.prove()
        wait_until(lambda: endpoint.connected() == {4})


# Waking


def test_no_wake_is_lost_while_another_thread_waits(attach: Callable[..., TcpEndpoint]) -> None:
    """Each is answered by the end of a wait, long before its time is up."""
    endpoint = attach(TcpNetwork(free_addresses(1)), 1)
    asked, answered = 0, 0
    done = threading.Event()

    def run() -> None:
        nonlocal answered
        while not done.is_set():
            endpoint.wait(60.0)
            answered = asked

    thread = threading.Thread(target=run)
    thread.start()
    try:
        longest = 0.0
        for number in range(1, 3001):
            asked = number
            begun = time.monotonic()
            endpoint.wake()
            while answered < number:
                assert time.monotonic() - begun < 20
                time.sleep(0)
            longest = max(longest, time.monotonic() - begun)
    finally:
        done.set()
        endpoint.wake()
        thread.join()
    assert longest < 5.0


class Interrupted:
    """A socket whose user is interrupted (Ctrl+C) when it sends."""

    def send(self, data: bytes) -> int:
        raise KeyboardInterrupt


def test_a_wake_that_was_interrupted_takes_nothing_from_the_next(
    attach: Callable[..., TcpEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lock stays locked, and the next caller does not believe that somebody else has sent the token."""
    monkeypatch.setattr(dialer, "RECONNECT_SECONDS", 60.0)  # how long ``select`` sleeps
    endpoint = attach(TcpNetwork(free_addresses(1)), 1)
    thread = threading.Thread(target=endpoint.wait, args=(60.0,))
    thread.start()
    try:
        wait_until(lambda: endpoint._waker._asleep)
        time.sleep(0.1)  # until it is in ``select``; if it is not yet, the test cannot fail
        with monkeypatch.context() as patch:
            patch.setattr(endpoint._waker, "_sender", Interrupted())
            with pytest.raises(KeyboardInterrupt):
                endpoint.wake()
    finally:
        begun = time.monotonic()
        endpoint.wake()
        thread.join(20)
    assert time.monotonic() - begun < 10.0


def test_who_sleeps_gets_one_token_however_many_wake_it(attach: Callable[..., TcpEndpoint]) -> None:
    """Until its next sleep, which gets one of its own."""
    waker = attach(TcpNetwork(free_addresses(1)), 1)._waker
    for _ in range(3):
        waker.begin()
        assert not waker.awake
        for _ in range(10):
            waker.wake()
        assert waker.receiver.recv(1) == b""
        with pytest.raises(BlockingIOError):
            waker.receiver.recv(1)
        assert waker.awake
        waker.end()
        waker.wake()  # nobody sleeps
        with pytest.raises(BlockingIOError):
            waker.receiver.recv(1)
        waker.end()


def test_any_number_of_wakes_blocks_nobody_and_ends_one_wait(attach: Callable[..., TcpEndpoint]) -> None:
    """More than fit into the socket, because nobody waits, or nobody is served."""
    endpoint = attach(TcpNetwork(free_addresses(1)), 1)
    endpoint._waker._asleep = True
    for _ in range(10_000):
        endpoint.wake()
    endpoint.wait(60.0)
    begun = time.monotonic()
    endpoint.wait(0.1)
    assert time.monotonic() - begun > 0.05
    endpoint._waker._asleep = True
    endpoint.close()
    endpoint.wake()
    endpoint._waker._closed = False  # as it looks to who has asked just before
    endpoint.wake()
    endpoint._waker._closed = True


def test_what_a_wake_sends_is_no_byte(attach: Callable[..., TcpEndpoint]) -> None:
    """If the number of the socket belongs to a conversation by now, nothing is added to that."""
    endpoint = attach(TcpNetwork(free_addresses(1)), 1)
    here, there = socket.socketpair()
    with here, there:
        kept = os.dup(endpoint._waker._sender.fileno())
        os.dup2(here.fileno(), endpoint._waker._sender.fileno())
        try:
            endpoint._waker._asleep = True
            endpoint.wake()
            here.sendall(b"next")
            assert there.recv(100) == b"next"
        finally:
            os.dup2(kept, endpoint._waker._sender.fileno())
            os.close(kept)
