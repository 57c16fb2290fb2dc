"""Notice that another process of a run over several hosts has ended, and end this one with a line.

JAX's client of the first process would end with a stack trace if that is gone, and with other processes gone, the rest
waits for 100 seconds or for ever. So the connections of JAX's clients pass through sockets of this module, and one that
closes before the run is over tells. The system closes them when a process ends, however it ends; a host without power
is noticed by probes that it does not answer.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any

PROBES = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 4}  # seconds, seconds, number
SECONDS = 2.0  # until a connection that another process held is seen to be closed
UNANSWERED = 30_000  # milliseconds until data that nobody acknowledges ends a connection
LOST = (
    '{who} of this run has ended, so this one ends too; see what it said. Start all processes again; the run resumes '
    'from its last checkpoint'
)


class Links:
    """The connections of this process to the first one, or of the others to this one if it is the first.

    Attributes:
        connect: whether there are any.
    """

    def __init__(self) -> None:
        self._over, self._lock = threading.Event(), threading.Lock()
        self.connect = False

    def through(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `jax.distributed.initialize` that make JAX connect through sockets of this process.

        If the address of the first process is not among them, because a launcher knows it, they are returned unchanged,
        and JAX itself notices processes that have ended.

        Args:
            arguments: as `hosts.resolve` returns them.

        Raises:
            OSError: the port of the first process is in use.
        """
        address = arguments.get('coordinator_address')
        if address is None:
            return arguments
        host, _, port = address.rpartition(':')
        self.connect = True
        if arguments['process_id'] == 0:
            inner = f'127.0.0.1:{_free_port()}'
            # The other hosts may have addresses of both kinds.
            family, every = (socket.AF_INET6, '::') if socket.has_dualstack_ipv6() else (socket.AF_INET, '')
            server = socket.create_server(
                (every, int(port)), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
            )
            self._serve(server, inner, 'another process')
            return {**arguments, 'coordinator_address': inner, 'coordinator_bind_address': inner}
        server = socket.create_server(('127.0.0.1', 0))
        self._serve(server, f'{host.strip("[]")}:{port}', 'the first process')
        return {**arguments, 'coordinator_address': f'127.0.0.1:{server.getsockname()[1]}'}

    def over(self) -> None:
        """Say that processes may end from now on."""
        self._over.set()

    def failed(self) -> None:
        """Wait after an error, because the reason may be that another process has ended; then that is said instead."""
        if self.connect:
            time.sleep(SECONDS)

    def leave(self, code: int) -> int:
        """Return the exit code of a process that failed. If there are others, end it here.

        JAX would wait for them, which may wait for this one.
        """
        if self.connect:
            _end(code)
        return code

    def _serve(self, server: socket.socket, target: str, who: str) -> None:
        """Forward each connection to a target, for as long as the process lives."""
        host, _, port = target.rpartition(':')

        def accept() -> None:
            while True:
                near, _ = server.accept()
                try:
                    far = socket.create_connection((host, int(port)), timeout=30)
                except OSError:  # the first process has not started yet; JAX tries again
                    near.close()
                    continue
                far.settimeout(None)
                heard: set[socket.socket] = set()
                for source, sink in ((near, far), (far, near)):
                    _probe(source)
                    threading.Thread(target=self._forward, args=(source, sink, heard, who), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, heard: set[socket.socket], who: str) -> None:
        try:
            while data := source.recv(65536):
                heard.add(source)
                sink.sendall(data)
        except OSError:
            pass
        with self._lock:  # both directions of a connection close
            # Else nobody of the run, or an early attempt of JAX to connect.
            lost = len(heard) == 2 and not self._over.is_set()
            if lost:
                self._over.set()
        if lost:
            os.write(2, f'error: {LOST.format(who=who)}\n'.encode())
            _end(2)
        for each in (source, sink):
            with contextlib.suppress(OSError):  # the other thread was faster
                each.shutdown(socket.SHUT_RDWR)  # wakes the other thread, as closing does not
            each.close()


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _probe(connection: socket.socket) -> None:
    """Make the system notice a host that does not answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items() | {('TCP_USER_TIMEOUT', UNANSWERED)}:
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]
