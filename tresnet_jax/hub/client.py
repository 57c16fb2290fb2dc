"""Find files of a model in a folder, in the cache of the Hugging Face hub, or on the hub, and verify their bytes.

``huggingface_hub`` downloads and caches, so its environment variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN,
...) apply here too, and files that timm has downloaded are not downloaded again. It is imported when first needed.
This module adds: a single attempt when offline (the client retries for minutes), a limit on downloads that are
interrupted repeatedly, and a checksum.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints.config_file import CONFIG
from tresnet_jax.checkpoints.records import printable
from tresnet_jax.checkpoints.shards import REPOSITORY_FILES, checkpoint_files, is_index, parse_index
from tresnet_jax.errors import HubError, reason
from tresnet_jax.files import sha256

_SOURCES = ('hf-hub', 'local-dir')
_PREFIX = re.compile(r'[a-zA-Z][\w+.-]+')  # at least two characters, because C:\folder is a path
_SHA1, _SHA256 = re.compile(r'[0-9a-f]{40}'), re.compile(r'[0-9a-f]{64}')
_MOST_IN_GIT = 10 * 2**20  # bytes of a file that the hub keeps in git itself
_FILE_NAME = re.compile(r'\w[\w.=+-]*')
_MOST_RECEIVED = 3  # times the size of the file, over all attempts to download it


def split_source(name: str) -> tuple[str, str] | None:
    """Split 'hf-hub:org/name' or 'local-dir:FOLDER' into kind and location; return None for a name of the table.

    Raises:
        HubError: the kind is unknown, the location is empty, or the name looks like a path without a kind.
    """
    prefix, colon, location = name.partition(':')
    if not colon or not _PREFIX.fullmatch(prefix):
        if any(character in name for character in '/\\:'):
            raise HubError(f"{name!r}: write 'hf-hub:{name}' for the hub or 'local-dir:{name}' for a folder")
        return None
    kind = prefix.lower().replace('_', '-')  # older versions of timm write hf_hub
    if kind not in _SOURCES:
        raise HubError(f'{name!r}: unknown source {prefix!r}; use hf-hub: or local-dir:')
    if not location:
        raise HubError(f'{name!r}: nothing after the colon; write hf-hub:org/name or local-dir:FOLDER')
    return kind, location


def find(source: str, filenames: Sequence[str], cache_dir: str | Path | None = None) -> Path:
    """Return the first of these files that a source has, downloaded unless the cache has its newest version.

    Args:
        source: 'local-dir:FOLDER', 'hf-hub:org/name', or 'hf-hub:org/name@revision'.
        filenames: file names in order of preference.
        cache_dir: folder of downloaded files. None: the Hugging Face cache.

    Raises:
        HubError: the source has none of the files; or the hub is unreachable or denies access, the download is
            interrupted, or its bytes do not match the announced checksum.
    """
    kind, location = split_source(source) or ('', '')
    if kind == 'hf-hub':
        repository, _, revision = location.partition('@')
        return _download(repository, revision or None, filenames, cache_dir)
    folder = Path(location)
    if not os.path.isdir(folder):  # False for a name that is too long, where `is_dir` raises OSError
        raise HubError(f'{source}: no such folder')
    for filename in filenames:
        if (folder / filename).is_file():
            return folder / filename
    others = checkpoint_files(folder) if filenames[0] in REPOSITORY_FILES else []
    found = ', '.join(printable(name, 60) for name in others[:5])
    hint = f'; it has {found}: pass one as checkpoint=PATH' if others else ''
    raise HubError(f'{source}: no {" or ".join(filenames)} in this folder{hint}')


def find_weights(source: str, cache_dir: str | Path | None = None) -> Path:
    """Return the file with the weights of a source, or the index of several files, downloaded like those of `find`.

    Raises:
        HubError: see `find`; or a file of the index is missing.
        ConversionError: the index is damaged, or names a file that would not be in its folder.
    """
    path = find(source, REPOSITORY_FILES, cache_dir)
    kind, location = split_source(source) or ('', '')
    if kind == 'hf-hub' and is_index(path):
        # The folder of a file in the cache has the name of its commit, and the other files must be of the same one.
        repository, commit = location.partition('@')[0], path.parent.name
        for name in parse_index(path):
            _download(repository, commit, [name], cache_dir)
    return path


def _download(repository: str, revision: str | None, filenames: Sequence[str], cache_dir: str | Path | None) -> Path:
    remedy = _remedy(repository, filenames)
    try:
        import huggingface_hub as client
        from huggingface_hub import constants
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise HubError(f'{repository}: downloading needs pip install huggingface_hub; or {remedy}') from None
    try:
        urls = {filename: client.hf_hub_url(repository, filename, revision=revision) for filename in filenames}
    except ValueError as error:
        raise HubError(f'{repository!r} cannot be a repository of the hub: {reason(error)}') from None

    for filename, url in urls.items():
        try:
            # The client makes this request too, but retries it seven times, for up to a minute each, when offline.
            remote = _check_answer(client.get_hf_file_metadata(url))
        except EntryNotFoundError:
            continue
        except Exception as error:  # from the client, its HTTP library or the system; in each case try the cache
            for name in filenames:
                cached = client.try_to_load_from_cache(repository, name, cache_dir, revision)
                if isinstance(cached, str):
                    return _verified(Path(cached), None, repository, cache_dir)
            raise HubError(
                f'{repository}: {explain(error)}, and {" or ".join(filenames)} is not in the cache '
                f'{cache_dir or constants.HF_HUB_CACHE}; {remedy}'
            ) from None
        try:
            path = client.hf_hub_download(
                repository,
                filename,
                revision=revision,
                cache_dir=cache_dir,
                library_name='tresnet_jax',
                tqdm_class=_bounded_bar(remote.size),
            )
        except Exception as error:  # from the client, its HTTP library or the system
            raise HubError(
                f'{repository}: {filename} could not be downloaded: {explain(error)}; try again, or {remedy}'
            ) from None
        return _verified(Path(path), remote.etag, repository, cache_dir)
    raise HubError(f'{repository}: there is no {" or ".join(filenames)} in this repository')


def _check_answer(remote: Any) -> Any:
    """Return the headers of a response after checking that they are a hub's: the client uses both as file names."""
    for value in (remote.etag, remote.commit_hash):
        if not isinstance(value, str) or not _FILE_NAME.fullmatch(value):
            raise HubError(f"the response to HEAD {remote.location} is not a hub's (ETag or X-Repo-Commit: {value!r})")
    return remote


def _bounded_bar(size: int | None) -> Any:
    """Return a class of the client's progress bar that also stops a download which does not end.

    The client writes whatever a server sends, and tries again as long as each attempt receives some bytes. Behind a
    proxy that cuts connections and ignores range requests, each attempt receives the same first part of the file.

    Args:
        size: bytes of the file, as the hub announces it. None: take what the server of the bytes announces.
    """
    from huggingface_hub.utils import tqdm

    class BoundedBar(tqdm):
        received = 0.0

        def update(self, n: float | None = 1) -> Any:
            self.received += max(n or 0, 0)
            most = self.total if size is None else size
            if most is not None and self.received > _MOST_RECEIVED * most:
                raise ConnectionError(f'it sends more than {_MOST_RECEIVED} times the {most:,} bytes of the file')
            return super().update(n)

    return BoundedBar


def _verified(path: Path, announced: str | None, repository: str, cache_dir: str | Path | None) -> Path:
    """Return a file of the cache after comparing its checksum with the announced one; the client checks its length.

    The ETag of a large file is its SHA-256, that of a small one its hash in git, and the cache uses it as the name of
    the file that the path links to. SHA-256 takes 0.1 to 0.4 s for 100 MB, so a success is recorded with the size and
    the modification time of the file, among the client's "assets".

    Args:
        path: the file in the cache.
        announced: the ETag; None: read it from the cache.
        repository: name for messages.
        cache_dir: the cache. None: the Hugging Face cache.

    Raises:
        HubError: the file cannot be read, is not a regular file, or has another checksum. In the last two cases it is
            removed from the cache.
    """
    try:
        # Follow one link only: the client may keep the file in a store of its own, under another hash.
        wanted = Path(os.readlink(path)).name if path.is_symlink() else announced
        problem = _problem(path, wanted or '')
    except OSError as error:  # such as another process that removed it from a shared cache
        raise HubError(f'{repository}: {path}: cannot be read: {reason(error)}; try again') from None
    if problem:
        remedy = (
            'it was removed from the cache; try again' if _remove(path, cache_dir) else f'remove {path} and try again'
        )
        raise HubError(f'{repository}: {path.name} {problem}; {remedy}')
    return path


def _problem(path: Path, wanted: str) -> str:
    """Return what is wrong with a file whose ETag is `wanted`, or ''."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a link to a device, whose content may never end
        return 'is not a regular file'
    if _SHA1.fullmatch(wanted) and status.st_size <= _MOST_IN_GIT:
        content = path.read_bytes()
        header = b'blob %d\0' % len(content)
        found = [hashlib.sha1(start + content).hexdigest() for start in (header, b'')]  # git's, and that of mirrors
        return '' if wanted in found else f'does not have the announced checksum (SHA-1 {found[0]}, not {wanted})'
    if not _SHA256.fullmatch(wanted):
        return ''
    state, record = f'{status.st_size} {status.st_mtime_ns}'.encode(), _record(wanted)
    if record is not None and record.is_file() and record.read_bytes() == state:
        return ''
    if (digest := sha256(path)) != wanted:
        return f'does not have the announced checksum (SHA-256 {digest}, not {wanted})'
    if record is not None:
        with contextlib.suppress(OSError):  # a shared, read-only cache: the file is hashed each time
            record.write_bytes(state)
    return ''


def _record(digest: str) -> Path | None:
    """Return the file that records a verification; None if the cache is read-only."""
    from huggingface_hub import cached_assets_path

    try:
        return cached_assets_path('tresnet_jax', namespace='hub', subfolder='verified') / digest
    except (OSError, ValueError):
        return None


def _remove(path: Path, cache_dir: str | Path | None) -> bool:
    """Delete a file of the cache and the files that it links to; return whether that succeeded."""
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    caches = os.path.abspath(cache), cache.resolve()  # the client gives paths in either
    path = first = Path(os.path.abspath(path))
    try:
        while any(path.is_relative_to(folder) for folder in caches):  # outside are the user's own files
            target = os.path.normpath(path.parent / os.readlink(path)) if path.is_symlink() else None
            path.unlink(missing_ok=True)
            if target is None:
                break
            path = Path(target)
    except OSError:
        return False
    return not os.path.lexists(first)


def _remedy(repository: str, filenames: Sequence[str]) -> str:
    if CONFIG in filenames:
        weights = REPOSITORY_FILES[0]
        return f'fetch {CONFIG} and {weights} of {repository} into a folder and use local-dir:FOLDER as the name'
    if filenames[0] not in REPOSITORY_FILES:  # one of several
        return f'fetch all files of {repository} into a folder and use local-dir:FOLDER as the name'
    return f'fetch {filenames[0]} of {repository} from the Hugging Face hub and pass checkpoint=PATH'


def explain(error: Exception) -> str:
    """Return in one line why a request failed, and the remedy if there is one."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if isinstance(error, HubError):
        return str(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set'
    if isinstance(error, errors.RevisionNotFoundError):
        return 'there is no such revision'
    if isinstance(error, errors.GatedRepoError):
        return f'access is granted on request only (HTTP {status}): request it on the hub, then set HF_TOKEN'
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:  # the hub answers 401 for both
        return f'there is no such repository, or it is private (HTTP {status}): set HF_TOKEN, or run hf auth login'
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {reason(error)}'  # in the cache, not on the hub
    if status is not None:
        return f'{constants.ENDPOINT} answers HTTP {status}'
    return f'{constants.ENDPOINT}: {reason(error)}'
