"""The part of the hub of `hub_server` that takes uploads: repositories, Git LFS and commits."""

import base64
import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

LFS_SUFFIXES = ('.safetensors', '.bin')
READ_ONLY = 'read only'  # the fault of a repository that the token may not write


class Handler(BaseHTTPRequestHandler):
    """What both need of the handlers that they are mixed into."""

    hub: Any

    def answer(self, status: int, headers: dict[str, str], body: bytes = b'', announced: int | None = None) -> None:
        raise NotImplementedError


class Uploads(Handler):
    """Mixed into the handler of the hub. Commits change ``hub.repositories``; ``hub.commits`` holds the headers."""

    def do_POST(self) -> None:
        path = unquote(self.path).partition('?')[0].strip('/')
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.hub.tokens.append(self.headers.get('Authorization'))
        if path == 'api/repos/create':
            return self.create(json.loads(body))
        if path == 'api/validate-yaml':
            return self.json({'errors': [], 'warnings': []})
        if path.endswith('.git/info/lfs/objects/batch'):
            return self.json(
                {'transfer': 'basic', 'objects': [self.place(item) for item in json.loads(body)['objects']]}
            )
        _, _, organisation, name, action, revision = path.split('/', 5)
        repository = f'{organisation}/{name}'
        self.hub.requests.append(f'POST {repository} {action} {revision}')
        if self.hub.faults.get(repository) == READ_ONLY:
            return self.json({'error': 'You have read access only'}, 403)
        if action == 'preupload':
            files = [self.mode(file['path']) for file in json.loads(body)['files']]
            return self.json({'files': files})
        return self.commit(repository, [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict) -> None:
        repository = f'{wanted["organization"]}/{wanted["name"]}'
        exists = repository in self.hub.repositories
        self.hub.repositories.setdefault(repository, {})
        self.hub.created.append(wanted)
        self.json({'url': f'{self.hub.endpoint}/{repository}', 'name': repository}, 409 if exists else 200)

    def mode(self, path: str) -> dict:
        lfs = path.endswith(LFS_SUFFIXES)
        return {'path': path, 'uploadMode': 'lfs' if lfs else 'regular', 'shouldIgnore': False, 'oid': None}

    def place(self, item: dict) -> dict:
        return {**item, 'actions': {'upload': {'href': f'{self.hub.storage}/uploads/{item["oid"]}', 'header': {}}}}

    def commit(self, repository: str, lines: list[dict]) -> None:
        files = self.hub.repositories[repository]
        for line in lines:
            value = line['value']
            if line['key'] == 'header':
                self.hub.commits.append({'repository': repository, **value})
            elif line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                files[value['path']] = self.hub.uploads[value['oid']]
        oid = self.hub.commit(repository)
        address = f'{self.hub.endpoint}/{repository}'
        answer = {'success': True, 'commitOid': oid, 'commitUrl': f'{address}/commit/{oid}', 'hookOutput': ''}
        if 'create_pr=1' in self.path:
            answer['pullRequestUrl'] = f'{address}/discussions/1'
        self.json(answer)

    def json(self, answer: dict, status: int = 200) -> None:
        self.answer(status, {'Content-Type': 'application/json'}, json.dumps(answer).encode())


class StoredUploads(Handler):
    """Mixed into the handler of the storage."""

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.hub.uploads[self.path.rpartition('/')[2]] = body
        self.answer(200, {})
