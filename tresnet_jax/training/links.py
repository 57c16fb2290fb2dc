"""Notice that another process of a run over several hosts has ended, and end this one with a line.

If the first process has ended, JAX's clients end with a stack trace; if another process has ended, the rest waits for
100 seconds or forever. So the connections of JAX's clients pass through our own sockets, and a connection that closes
before the run is over shows that a process has ended. The system closes connections when a process ends, however it
ends; unanswered probes reveal a host without power.

A small process forwards the connections. Threads of this process could not do so: JAX waits for messages while it holds
the interpreter's lock (`reached_preemption_sync_point` does). That process runs this file, which therefore imports only
the standard library.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

PROBES = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 4}  # seconds, seconds, number
SECONDS = 2.0  # until a connection that another process held is seen to be closed
PATIENCE = 10.0  # seconds until a process that does not end by itself is killed
UNANSWERED = 30_000  # milliseconds until data that nobody acknowledges ends a connection
LOST = (
    '{who} of this run has ended, so this one ends too; see its output. Start all processes again; the run resumes '
    'from its last checkpoint'
)


class Links:
    """The connections of this process to the first one; in the first process, those of the others to it.

    Attributes:
        connect: whether there are any.
    """

    def __init__(self) -> None:
        self.connect = False
        self._control: int | None = None  # a pipe to the forwarding process; it closes when this process ends

    def through(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `jax.distributed.initialize` that make JAX connect through our sockets.

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
        if arguments['process_id'] == 0:
            inner = f'127.0.0.1:{_free_port()}'
            # The other hosts may have addresses of both kinds.
            family, every = (socket.AF_INET6, '::') if socket.has_dualstack_ipv6() else (socket.AF_INET, '')
            server = socket.create_server(
                (every, int(port)), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
            )
            self._start(server, inner, 'another process')
            return {**arguments, 'coordinator_address': inner, 'coordinator_bind_address': inner}
        server = socket.create_server(('127.0.0.1', 0))
        near = f'127.0.0.1:{server.getsockname()[1]}'
        self._start(server, f'{host.strip("[]")}:{port}', 'the first process')
        return {**arguments, 'coordinator_address': near}

    def over(self) -> None:
        """Announce that processes may end from now on."""
        if self._control is not None:
            with contextlib.suppress(BrokenPipeError):  # the forwarding process has ended
                os.write(self._control, b'.')

    def failed(self) -> None:
        """Wait after an error: if its reason is that another process has ended, that is reported instead."""
        if self.connect:
            time.sleep(SECONDS)

    def leave(self, code: int) -> int:
        """Return the exit code of a process that failed. If there are others, end it here.

        Otherwise JAX would wait for them while they may wait for this one.
        """
        if self.connect:
            _end(code)
        return code

    def _start(self, server: socket.socket, target: str, who: str) -> None:
        """Start the process that forwards every connection of `server` to `target`, and listen to it."""
        orders, self._control = os.pipe()
        news, answers = os.pipe()
        with server:
            command = [sys.executable, '-I', '-S', __file__, str(server.fileno()), target, who]
            process = subprocess.Popen(command, stdin=orders, stdout=answers, pass_fds=[server.fileno()])
        for end in (orders, answers):
            os.close(end)
        self.connect = True

        def listen() -> None:
            os.read(news, 1)  # nothing if the process was killed; JAX is cut off then too
            self.over()
            _say(who)
            _end(2)
            process.wait()  # not reached: a process that nothing refers to causes a warning

        threading.Thread(target=listen, daemon=True).start()


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say(who: str) -> None:
    os.write(2, f'error: {LOST.format(who=who)}\n'.encode())


def _free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


class _Forwarder:
    """The program of the process that forwards: standard input is the control pipe, a byte of output means "lost"."""

    def __init__(self, target: str, who: str) -> None:
        host, _, port = target.rpartition(':')
        self._target, self._who = (host, int(port)), who
        self._lock, self._over, self._trains = threading.Lock(), threading.Event(), os.getppid()

    def run(self, server: socket.socket) -> None:
        """Forward until the process that trains ends.

        Signals are ignored: they are for that process, even if they reach the whole group.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        while True:
            _readable(None)
            self._over.set()  # before the byte is read: until then, the pipe is readable
            if not os.read(0, 1):
                os._exit(0)

    def _accept(self, server: socket.socket) -> None:
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection(self._target, timeout=30)
            except OSError:  # the first process has not started yet; JAX tries again
                near.close()
                continue
            far.settimeout(None)
            heard: set[socket.socket] = set()
            for source, sink in ((near, far), (far, near)):
                _probe(source)
                threading.Thread(target=self._forward, args=(source, sink, heard), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, heard: set[socket.socket]) -> None:
        try:
            while data := source.recv(65536):
                heard.add(source)
                sink.sendall(data)
        except OSError:
            pass
        if len(heard) == 2:  # otherwise a stranger, or an early attempt of JAX to connect
            self._lost()
        for each in (source, sink):
            with contextlib.suppress(OSError):  # the other thread was faster
                each.shutdown(socket.SHUT_RDWR)  # wakes the other thread, as closing does not
            each.close()

    def _lost(self) -> None:
        """End the process that trains, unless the run is over. It reports why; if it cannot, this process does so."""
        with self._lock:  # both directions of a connection close
            if self._over.is_set() or _readable(0):
                return
            with contextlib.suppress(BrokenPipeError):  # it is ending
                os.write(1, b'.')
            if not self._over.wait(PATIENCE) and os.getppid() == self._trains:
                _say(self._who)
                os.kill(self._trains, signal.SIGKILL)
            self._over.set()


def _readable(seconds: float | None) -> bool:
    """Wait until the training process announces the end of the run, or ends. Return whether it has; None: no limit."""
    return bool(select.select([0], [], [], seconds)[0])


def _probe(connection: socket.socket) -> None:
    """Make the system notice a host that does not answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items() | {('TCP_USER_TIMEOUT', UNANSWERED)}:
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


if __name__ == '__main__':
    _Forwarder(sys.argv[2], sys.argv[3]).run(socket.socket(fileno=int(sys.argv[1])))
