"""Devices and hosts: what has to be settled before JAX starts, and who this process is."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tresnet_jax.compilation_cache import use_compilation_cache
from tresnet_jax.errors import TrainingError

AXIS = 'batch'  # the mapped axis of `jax.pmap`

# Variables of a launcher: processes of the job, this one's number in it, and one that JAX finds the first host by.
LAUNCHERS = {
    'SLURM': ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_STEP_NODELIST'),
    'Open MPI': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_MCA_orte_hnp_uri'),
}


@dataclasses.dataclass(frozen=True)
class Hosts:
    """How the processes of a run over several hosts find each other."""

    coordinator: str | None = None
    """host:port of the first process. Not needed under SLURM, and Open MPI up to 4, which say it."""
    num_processes: int | None = None
    """Processes of the run. Not needed under SLURM or Open MPI."""
    process_id: int | None = None
    """Which of them this is, from 0. Not needed under SLURM or Open MPI."""


def set_up(hosts: Hosts, *, devices: int | None = None, deterministic: bool = False, x64: bool = False) -> None:
    """Settle devices, determinism and hosts. To be called before JAX is used.

    Args:
        hosts: from the command line.
        devices: virtual devices on the CPU.
        deterministic: ask XLA for programs that give the same bits each time on GPUs.
        x64: switch float64 on.

    Raises:
        TrainingError: the hosts are given in part, or cannot be reached.
    """
    if deterministic:
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'.strip()
    if x64:
        jax.config.update('jax_enable_x64', True)
    if devices is not None:
        with contextlib.suppress(RuntimeError):  # JAX is in use already: `local_devices` tells if there are too few
            jax.config.update('jax_num_cpu_devices', devices)
    use_compilation_cache()
    arguments = resolve(hosts, os.environ)
    if arguments is None:
        return
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f'the processes of the run do not find each other: {error}') from error


def resolve(hosts: Hosts, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of jax.distributed.initialize; None where there is one process.

    Raises:
        TrainingError: a part of them is missing.
    """
    given = {key: value for key, value in dataclasses.asdict(hosts).items() if value is not None}
    for size, rank, address in LAUNCHERS.values():
        if int(environment.get(size, '1')) > 1 and rank in environment:
            if not given and address in environment:
                return {}  # JAX reads the rest itself
            given = {'num_processes': int(environment[size]), 'process_id': int(environment[rank])} | given
    if not given:
        return None
    missing = [f.name for f in dataclasses.fields(hosts) if f.name not in given]
    if missing:
        flags = ', '.join('--' + name.replace('_', '-') for name in missing)
        raise TrainingError(f'a run over several hosts needs {flags} too')
    return {'coordinator_address' if key == 'coordinator' else key: value for key, value in given.items()}


def local_devices(count: int | None) -> list[Any]:
    """The devices of this host that take part.

    Raises:
        TrainingError: there are fewer, or not all of them are to take part in a run over several hosts.
    """
    devices = jax.local_devices()
    if count is None or count == len(devices):
        return devices
    if count > len(devices):
        raise TrainingError(f'--devices {count}: there are {len(devices)} on this host')
    if jax.process_count() > 1:
        raise TrainingError(f'--devices {count}: a run over several hosts uses all {len(devices)} of each')
    return devices[:count]


def replicate(tree: Any, devices: list[Any]) -> Any:
    """A tree on every device of this host."""
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())
    # Through NumPy: the copy on the first device must not share memory with the source, which a step would donate.
    return jax.device_put(jax.tree.map(np.asarray, tree), sharding)


def to_global(tree: Any) -> Any:
    """Arrays of this process -> arrays of the whole run, which is what Orbax writes. Nothing happens on one host."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.host_local_array_to_global_array(tree, _mesh(), PartitionSpec())


def to_local(tree: Any) -> Any:
    """The way back."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.global_array_to_host_local_array(tree, _mesh(), PartitionSpec())


def everywhere() -> NamedSharding:
    """Replicated over all devices of the run."""
    return NamedSharding(_mesh(), PartitionSpec())


def _mesh() -> Mesh:
    return Mesh(np.asarray(jax.devices()), (AXIS,))


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], bool]]:
    """A function that tells, at a step, whether the run was asked to stop: SIGTERM, or Ctrl-C (twice is at once).

    Over several hosts JAX's own service listens, and all processes stop at the same step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked: list[int] = []

    def note(signum: int, frame: Any) -> None:
        del frame
        asked.append(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
