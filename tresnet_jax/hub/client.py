"""Finding files of weights: in a folder, in the cache of the Hugging Face hub, or on the hub, their bytes checked.

``huggingface_hub`` does the asking and the caching, so what it reads from the environment (HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE, HF_TOKEN, ...) holds here too, and what timm has downloaded is not downloaded again. It is imported
when first needed. Around it lies what it leaves open: one attempt where there is no network instead of minutes of
them, an end to a download that is cut again and again, and a look at the bytes.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tresnet_jax.errors import HubError
from tresnet_jax.files import sha256

CONFIG = 'config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')  # in the order of preference, which is timm's

_SOURCES = ('hf-hub', 'local-dir')
_PREFIX = re.compile(r'[a-zA-Z][\w+.-]+')  # two characters or more: C:\folder names no source
_SHA256 = re.compile(r'[0-9a-f]{64}')
_FILE_NAME = re.compile(r'\w[\w.=+-]*')
_MOST_RECEIVED = 3  # times the size of a file, over all the fresh starts of its download


def split_source(name: str) -> tuple[str, str] | None:
    """'hf-hub:org/name' -> ('hf-hub', 'org/name'), and 'local-dir:FOLDER' alike; None for a name of the table.

    Raises:
        HubError: an unknown source, nothing behind it, or something like a path without one.
    """
    prefix, colon, location = name.partition(':')
    if not colon or not _PREFIX.fullmatch(prefix):
        if any(character in name for character in '/\\:'):
            raise HubError(f"{name!r}: write 'hf-hub:{name}' for the hub or 'local-dir:{name}' for a folder")
        return None
    kind = prefix.lower().replace('_', '-')  # timm once spelled it hf_hub
    if kind not in _SOURCES:
        raise HubError(f'{name!r}: unknown source {prefix!r}; there are hf-hub: and local-dir:')
    if not location:
        raise HubError(f'{name!r}: nothing behind the colon')
    return kind, location


def find(source: str, filenames: Sequence[str]) -> Path:
    """The first of these files that a source has; from the hub it is downloaded unless the cache has its newest state.

    Args:
        source: 'local-dir:FOLDER', 'hf-hub:org/name', or 'hf-hub:org/name@revision'.
        filenames: in the order of preference.

    Raises:
        HubError: it has none of them, or the hub cannot be reached, refuses, breaks off, or sends other bytes than
            it announced.
    """
    kind, location = split_source(source) or ('', '')
    if kind == 'hf-hub':
        repository, _, revision = location.partition('@')
        return _download(repository, revision or None, filenames)
    for filename in filenames:
        path = Path(location) / filename
        if path.is_file():
            return path
    raise HubError(f'{source}: {"no" if Path(location).is_dir() else "no such folder, so no"} {" or ".join(filenames)}')


def _download(repository: str, revision: str | None, filenames: Sequence[str]) -> Path:
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
        raise HubError(f'{repository!r} cannot be a repository of the hub: {_first_line(error)}') from None

    for filename, url in urls.items():
        try:
            # The client asks this too, but where nobody answers it asks seven times, for up to a minute each time.
            remote = _check_answer(client.get_hf_file_metadata(url))
        except EntryNotFoundError:
            continue
        except Exception as error:  # of the client, of its HTTP library, of the system: not now, whichever it is
            for name in filenames:
                cached = client.try_to_load_from_cache(repository, name, revision=revision)
                if isinstance(cached, str):
                    return _verified(Path(cached), None, repository)
            raise HubError(
                f'{repository}: {_reason(error)}, and {" or ".join(filenames)} is not in the cache '
                f'{constants.HF_HUB_CACHE}; {remedy}'
            ) from None
        try:
            path = client.hf_hub_download(
                repository, filename, revision=revision, library_name='tresnet_jax', tqdm_class=_bounded_bar()
            )
        except Exception as error:
            raise HubError(
                f'{repository}: {filename} did not arrive: {_reason(error)}; try again, or {remedy}'
            ) from None
        return _verified(Path(path), remote.etag, repository)
    raise HubError(f'{repository}: there is no {" or ".join(filenames)} in this repository')


def _check_answer(remote: Any) -> Any:
    """The headers of an answer, if they are a hub's; the client makes file names of both."""
    for value in (remote.etag, remote.commit_hash):
        if not isinstance(value, str) or not _FILE_NAME.fullmatch(value):
            raise HubError(f"the answer to HEAD {remote.location} is not a hub's (ETag or X-Repo-Commit: {value!r})")
    return remote


def _bounded_bar() -> Any:
    """The client's progress bar, which also ends a download that starts afresh without end.

    The client goes on as long as each attempt brings something. Behind a proxy that cuts connections and ignores
    ranges, each attempt brings the same beginning of the file.
    """
    from huggingface_hub.utils import tqdm

    class BoundedBar(tqdm):
        received = 0.0

        def update(self, n: float | None = 1) -> Any:
            self.received += max(n or 0, 0)
            if self.total and self.received > _MOST_RECEIVED * self.total:
                raise ConnectionError('the connection was cut again and again')
            return super().update(n)

    return BoundedBar


def _verified(path: Path, announced: str | None, repository: str) -> Path:
    """A file of the cache, once its SHA-256 is the one announced; the client itself checks the length alone.

    A large file's ETag is its SHA-256, and the cache keeps it as the name of what the path links to. Others' is
    git's, and they are not checked. Hashing takes 0.1 to 0.4 s for 100 MB, so that the result is noted with the size
    and the time of the file, among the client's "assets".

    Raises:
        HubError: other bytes; they are taken out of the cache.
    """
    # One step of the link: the client may keep that blob in a store of its own, under another hash.
    wanted = Path(os.readlink(path)).name if path.is_symlink() else announced
    if wanted is None or not _SHA256.fullmatch(wanted):
        return path
    status = path.stat()
    state, note = f'{status.st_size} {status.st_mtime_ns}', _note(wanted)
    if note is not None and note.is_file() and note.read_text() == state:
        return path
    found = sha256(path)
    if found != wanted:
        left = '' if _remove(path) else f'; remove {path}'
        raise HubError(
            f'{repository}: {path.name} came with other bytes than announced (SHA-256 {found}, not {wanted}); '
            f'it was taken out of the cache, so try again{left}'
        )
    if note is not None:
        try:
            note.write_text(state)
        except OSError:  # a cache that is shared and read-only: the file is hashed each time
            pass
    return path


def _note(digest: str) -> Path | None:
    """Where it is noted that a file was verified; None where nothing can be written."""
    from huggingface_hub import cached_assets_path

    try:
        return cached_assets_path('tresnet_jax', namespace='hub', subfolder='verified') / digest
    except (OSError, ValueError):
        return None


def _remove(path: Path) -> bool:
    """Delete a file of the cache and what it links to there; whether that succeeded."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    try:
        while path.is_relative_to(cache):  # a link out of the cache is the user's own
            target = os.path.normpath(path.parent / os.readlink(path)) if path.is_symlink() else None
            path.unlink(missing_ok=True)
            if target is None:
                break
            path = Path(target)
    except OSError:
        return False
    return True


def _remedy(repository: str, filenames: Sequence[str]) -> str:
    if CONFIG in filenames:
        return f'fetch {CONFIG} and {WEIGHTS[0]} of {repository} into a folder and name it local-dir:FOLDER'
    return f'fetch {filenames[0]} of {repository} from the Hugging Face hub and pass checkpoint=PATH'


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if isinstance(error, HubError):
        return str(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set'
    if isinstance(error, errors.RevisionNotFoundError):
        return 'there is no such revision'
    if isinstance(error, errors.GatedRepoError):
        return f'access is granted on request only (HTTP {status}): ask on the page of the repository, set HF_TOKEN'
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:  # the hub answers 401 for both
        return f'there is no such repository, or it is private (HTTP {status}): set HF_TOKEN, or run hf auth login'
    if isinstance(error, OSError) and error.filename:
        return _first_line(error)  # the cache, not the hub
    if status is not None:
        return f'{constants.ENDPOINT} answers HTTP {status}'
    return f'{constants.ENDPOINT}: {_first_line(error)}'


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
