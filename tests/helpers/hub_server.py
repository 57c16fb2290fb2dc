"""A Hugging Face hub on 127.0.0.1 that answers the requests of a download or an upload and can fail in many ways.

As on the real hub, small files come from the hub itself, and weights by a redirect to a storage host, here another
port of `localhost`, with the SHA-256 as the ETag.
"""

import contextlib
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from tests.helpers.hub_uploads import StoredUploads, Uploads

TOKEN = 'hf_right'

# The faults of a repository. At the hub:
PRIVATE, GATED, DOWN, SILENT = 'private', 'gated', 'down', 'silent'
PORTAL, TRAVERSAL = 'portal', 'traversal'  # a page that is not a hub's answer, an ETag that is a path
HUB_LOOP, TO_FILE = 'hub loop', 'to file'  # redirects to itself, and to a file of the client
WRONG_CONFIG, CONFIG_ELSEWHERE = 'wrong config', 'config elsewhere'
# At the storage:
CUT_ONCE, CUT, CUT_AFRESH = 'cut once', 'cut', 'cut afresh'  # CUT_AFRESH ignores ranges
WRONG_SIZE, WRONG_BYTES, STORAGE_DOWN = 'wrong size', 'wrong bytes', 'storage down'
SLOW, STALLED = 'slow', 'stalled'  # a part at a time, half of the file and then silence
PAUSE = 0.3  # seconds between two parts
ENDLESS, HUGE = 'endless', 'huge'  # never ends, with and without the announcement of a size
STORAGE_LOOP, STORAGE_TO_FILE = 'storage loop', 'storage to file'
SECRET = '/etc/passwd'  # a file of the client, to which a lying server points


def client_environment(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    """Return environment variables for a client of the hub at `endpoint`, without the user's settings and proxies."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(('HF_', 'HUGGING'))}
    local = {'HF_HOME': str(home), 'HF_ENDPOINT': endpoint, 'NO_PROXY': '*', 'no_proxy': '*'}
    return {**kept, **local, 'JAX_PLATFORMS': 'cpu', **more}


class Hub:
    """``with Hub() as hub:`` serves ``hub.repositories`` at ``hub.endpoint``.

    Attributes:
        repositories: 'org/name' -> file name -> bytes; tests may change it at any time.
        faults: 'org/name' -> one of the constants above.
        renamed: 'org/old' -> 'org/new'.
        requests: one line per request: 'HEAD org/name config.json', or 'STORAGE org/name model.safetensors'.
        tokens: the Authorization header of each request.
        uploads: SHA-256 -> bytes that were sent to the storage.
        created, commits: what was asked of the hub: repositories to create, and headers of commits.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.faults: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.uploads: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.commits: list[dict] = []
        self.released = threading.Event()

    def __enter__(self) -> 'Hub':
        self._servers = [self._serve(_HubHandler), self._serve(_StorageHandler)]
        hub, storage = (server.server_port for server in self._servers)
        # Another name, because some versions of the client take two ports of one host for the same server.
        self.endpoint, self.storage = f'http://127.0.0.1:{hub}', f'http://localhost:{storage}'
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _serve(self, handler: type['_Handler']) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(('127.0.0.1', 0), type(handler.__name__, (handler,), {'hub': self}))
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        return server

    def commit(self, repository: str) -> str:
        """Return a commit that changes with the files, as git's does."""
        return hashlib.sha1(repr(sorted(self.repositories[repository].items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = 'HTTP/1.1'

    def log_message(self, format: str, *args: object) -> None:
        pass

    def note(self, what: str, repository: str, filename: str) -> None:
        self.hub.requests.append(f'{what} {repository} {filename}')
        self.hub.tokens.append(self.headers.get('Authorization'))

    def answer(self, status: int, headers: dict[str, str], body: bytes = b'', announced: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body) if announced is None else announced))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)
        if announced is not None and announced > len(body):
            self.close_connection = True


class _HubHandler(_Handler, Uploads):
    def do_HEAD(self) -> None:
        hub = self.hub
        if self.path.startswith('/api/') or self.path.count('/') < 5:
            return self.answer(404, {})  # what the client asks beside the requests of a download
        organisation, name, _, revision, filename = unquote(self.path).lstrip('/').split('/', 4)
        repository = f'{organisation}/{name}'
        self.note(self.command, repository, filename)
        fault = hub.faults.get(repository)
        if repository in hub.renamed:
            new = f'/{hub.renamed[repository]}/resolve/{revision}/{filename}'
            return self.answer(307, {'Location': new})
        if fault == SILENT:
            hub.released.wait()
            return None
        if fault == DOWN:
            return self.answer(503, {})
        if fault == HUB_LOOP:
            return self.answer(307, {'Location': self.path})
        if fault == PORTAL:
            return self.answer(200, {'Content-Type': 'text/html'}, b'<p>Please log in to the wireless network</p>')
        if fault == PRIVATE and self.headers.get('Authorization') != f'Bearer {TOKEN}':
            return self.answer(401, {'X-Error-Message': 'Invalid username or password.'})
        if fault == GATED:
            return self.answer(403, {'X-Error-Code': 'GatedRepo', 'X-Error-Message': 'Access is restricted.'})
        if repository not in hub.repositories:
            return self.answer(404, {'X-Error-Code': 'RepoNotFound', 'X-Error-Message': 'Repository not found'})
        commit = {'X-Repo-Commit': hub.commit(repository)}
        if revision not in ('main', commit['X-Repo-Commit']):
            return self.answer(404, {'X-Error-Code': 'RevisionNotFound'})
        body = hub.repositories[repository].get(filename)
        if body is None:
            return self.answer(404, {**commit, 'X-Error-Code': 'EntryNotFound', 'X-Error-Message': 'Entry not found'})
        if filename == 'config.json':
            git = hashlib.sha1(b'blob %d\0' % len(body) + body).hexdigest()
            if fault == CONFIG_ELSEWHERE and self.command == 'GET':
                return self.answer(302, {'Location': f'{hub.storage}/{repository}/{filename}'})
            sent = body.replace(b'"', b"'", 1) if fault == WRONG_CONFIG else body
            return self.answer(200, {**commit, 'ETag': f'"{git}"'}, sent)
        sha256 = '../../../../escaped' if fault == TRAVERSAL else hashlib.sha256(body).hexdigest()
        linked = {'X-Linked-Size': str(len(body)), 'X-Linked-Etag': f'"{sha256}"'}
        location = f'file://{SECRET}' if fault == TO_FILE else f'{hub.storage}/{repository}/{filename}'
        return self.answer(302, {**commit, **linked, 'Location': location})

    do_GET = do_HEAD


class _StorageHandler(_Handler, StoredUploads):
    def do_GET(self) -> None:
        repository, _, filename = unquote(self.path).lstrip('/').rpartition('/')
        self.note('STORAGE', repository, filename)
        body, fault = self.hub.repositories[repository][filename], self.hub.faults.get(repository)
        if fault == STORAGE_DOWN:
            return self.answer(503, {})
        if fault == WRONG_SIZE:
            return self.answer(200, {}, body[:-10])
        if fault == WRONG_BYTES:
            return self.answer(200, {}, body[:-1] + bytes([body[-1] ^ 1]))
        if fault in (STORAGE_LOOP, STORAGE_TO_FILE):
            return self.answer(302, {'Location': self.path if fault == STORAGE_LOOP else f'file://{SECRET}'})
        if fault in (ENDLESS, HUGE):
            return self.send_for_ever(body, announced=fault == HUGE)
        if fault == CUT_AFRESH:
            return self.answer(200, {}, body[: len(body) // 2], announced=len(body))
        start = int(self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').partition('-')[0])
        status, headers = 200, {}
        if start:
            status, headers = 206, {'Content-Range': f'bytes {start}-{len(body) - 1}/{len(body)}'}
        if fault in (SLOW, STALLED):
            return self.send_slowly(status, headers, body, start, len(body) // 2 if fault == STALLED else len(body))
        rest, announced = body[start:], len(body) - start
        if fault == CUT or fault == CUT_ONCE and not start:
            rest = rest[: max(len(body) // 2 - start, 0)]
        return self.answer(status, headers, rest, announced)

    def send_for_ever(self, body: bytes, announced: bool) -> None:
        """Send a body again and again until the client has had enough."""
        self.send_response(200)
        self.send_header(*(('Content-Length', str(2**50)) if announced else ('Transfer-Encoding', 'chunked')))
        self.end_headers()
        self.close_connection = True
        part = body if announced else b'%x\r\n%b\r\n' % (len(body), body)
        with contextlib.suppress(OSError):
            while not self.hub.released.is_set():
                self.wfile.write(part)

    def send_slowly(self, status: int, headers: dict[str, str], body: bytes, start: int, end: int) -> None:
        """Send a body in 8 parts with pauses, and nothing more from `end` on."""
        self.answer(status, headers, announced=len(body) - start)
        step = len(body) // 8 + 1
        with contextlib.suppress(OSError):
            for place in range(start, end, step):
                self.wfile.write(body[place : min(place + step, end)])
                self.hub.released.wait(PAUSE)
            if end < len(body):
                self.hub.released.wait()
