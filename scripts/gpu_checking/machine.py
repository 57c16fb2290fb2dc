"""The machine and what is installed on it: device, driver, versions, commit, optional packages."""

import importlib.util
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.processes import in_new_process
from gpu_reporting.devices import plugin
from gpu_reporting.fingerprint import versions

from gpu_checking.records import CheckError
from tresnet_jax.errors import EXTRAS
from tresnet_jax.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    'jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'nvidia-cudnn-cu12', 'nvidia-cudnn-cu13', 'flax',
    'numpy', 'optax', 'orbax-checkpoint', 'grain', 'torch', 'timm', 'jax-resnet', 'matplotlib',
)  # fmt: skip
PIP = {'timm': 'pip install timm torch', 'torch': 'pip install timm torch', 'jax_resnet': 'pip install jax-resnet'}
JOBS = 'gpu_checking.jobs'  # the module whose functions run in new processes
SECONDS = 300  # after which JAX is considered hung, as with a broken driver
ROOM = 24e9  # bytes of a device on which several parts can run at the same time
# Variables that change what is measured. Those of folders and of the platform do not.
VARIABLES = ('XLA_', 'JAX_', 'NVIDIA_TF32_OVERRIDE', 'CUDA_')
IGNORED = ('JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'CUDA_HOME', 'CUDA_VERSION', 'CUDA_PATH')


def describe_machine() -> dict[str, Any]:
    """Return platform, device, devices, memory_bytes, runtime, driver, compute_mode, versions, variables and commit.

    JAX starts in another process, so that this one takes no memory of the device.

    Raises:
        CheckError: JAX sees no GPU, and JAX_PLATFORMS does not ask for a CPU.
        benchmarking.processes.JobError: JAX cannot start, or has not started after some minutes.
    """
    found = in_new_process('about', {}, None, {}, JOBS, limit=SECONDS)
    if found['platform'] == 'cpu' and os.environ.get('JAX_PLATFORMS') != 'cpu':
        installed = plugin()
        remedy = (
            "install its CUDA plugin, pip install 'jax[cuda12]' or 'jax[cuda13]', or run make gpu-check"
            if installed is None
            else f'its plugin {installed} is installed but finds none; what it says is printed above, and nvidia-smi '
            'shows the driver and the GPUs'
        )
        raise CheckError(f'JAX sees no GPU: {remedy}; JAX_PLATFORMS=cpu tries the check without one')
    return {
        **found,
        'driver': _asked('driver_version'),
        'compute_mode': _asked('compute_mode'),
        'variables': {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES) and name not in IGNORED
        },
        'versions': {'tresnet_jax': __version__, **versions(PACKAGES)},
        'commit': _commit(),
    }


def pip_line(missing: Sequence[str]) -> str:
    """Return what to say about optional packages that are not installed, by the names they are imported by."""
    lines = {PIP.get(name) or f"pip install 'tresnet_jax[{EXTRAS[name]}]'" for name in missing}
    are = 'is' if len(missing) == 1 else 'are'
    return f'{", ".join(missing)} {are} not installed: {"; ".join(sorted(lines))}'


def missing_packages(names: Sequence[str]) -> list[str]:
    """Return the packages that are not installed, by the names they are imported by."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def has_room_for_several(about: Mapping[str, Any]) -> bool:
    """Return whether several processes can use the device of `describe_machine` at the same time."""
    return (about.get('memory_bytes') or 0) >= ROOM and 'Exclusive' not in about.get('compute_mode', '')


def _asked(what: str) -> str:
    """Return what nvidia-smi says about the first GPU."""
    first = _output('nvidia-smi', f'--query-gpu={what}', '--format=csv,noheader').partition('\n')[0]
    return first or 'unavailable: nvidia-smi does not answer'


def _commit() -> str:
    """Return the commit of this checkout, with '+' if tracked files differ from it."""
    commit = _output('git', '-C', str(ROOT), 'rev-parse', 'HEAD')
    if not commit:
        return 'unavailable: not a git checkout'
    return commit + '+' * bool(_output('git', '-C', str(ROOT), 'status', '--porcelain', '--untracked-files=no'))


def _output(*command: str) -> str:
    """Return what a command prints, or '' if it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''
