"""Devices and hosts of a run: setup before JAX starts, replication over devices, and graceful shutdown."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tresnet_jax.compilation_cache import use_compilation_cache
from tresnet_jax.errors import TrainingError, reason
from tresnet_jax.training.hosts import Hosts, resolve
from tresnet_jax.training.links import Links

AXIS = 'batch'  # the mapped axis of `jax.pmap`


def set_up(
    hosts: Hosts,
    *,
    devices: int | None = None,
    deterministic: bool = False,
    x64: bool = False,
    links: Links | None = None,
) -> None:
    """Configure JAX for a program: devices, determinism, float64, compilation cache and hosts.

    Changes settings of the whole process, so only command lines call it, before JAX is used.

    Args:
        hosts: from the command line.
        devices: number of virtual devices on a CPU; None: JAX's default.
        deterministic: make XLA compile programs for GPUs that return the same bits on every run.
        x64: enable float64.
        links: end this process if another one of the run ends.

    Raises:
        TrainingError: the description of the hosts is incomplete, or they cannot be reached, or there is no device.
    """
    if deterministic:
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'.strip()
    if x64:
        jax.config.update('jax_enable_x64', True)
    if devices is not None:
        with contextlib.suppress(RuntimeError):  # JAX is already in use; `local_devices` reports missing devices
            jax.config.update('jax_num_cpu_devices', devices)
    use_compilation_cache()
    arguments = resolve(hosts, os.environ)
    if arguments is not None:
        try:
            jax.distributed.initialize(**(arguments if links is None else links.through(arguments)))
        except (RuntimeError, ValueError, OSError) as error:
            raise TrainingError(f'the processes of the run cannot connect: {reason(error)}') from error
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no platform of JAX_PLATFORMS is there
        config: Any = jax.config  # its attributes are not annotated
        platforms = config.jax_platforms
        where = f'JAX_PLATFORMS={platforms}: ' if platforms else ''
        why = reason(error) if str(error) else 'it finds none of this kind; is the right extra of jax installed?'
        raise TrainingError(f'{where}JAX cannot use its devices: {why}') from error


def local_devices(count: int | None) -> list[Any]:
    """Return the first `count` devices of this host, or all if None.

    Raises:
        TrainingError: the host has fewer devices, or `count` leaves some idle in a run over several hosts.
    """
    devices = jax.local_devices()
    if count is None or count == len(devices):
        return devices
    if count > len(devices):
        raise TrainingError(f'--devices {count}: this host has {len(devices)}')
    if jax.process_count() > 1:
        raise TrainingError(f'--devices {count}: a run over several hosts uses all {len(devices)} of every host')
    return devices[:count]


def replicate(tree: Any, devices: list[Any]) -> Any:
    """Copy a tree to every device of this host."""
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())
    # Through NumPy, so that the copy on the first device does not share memory with `tree`: a step donates it.
    return jax.device_put(jax.tree.map(np.asarray, tree), sharding)


def to_global(tree: Any) -> Any:
    """Turn replicated arrays of this process into arrays of the whole run, for Orbax. One process: return `tree`."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.host_local_array_to_global_array(tree, _mesh(), PartitionSpec())


def to_local(tree: Any) -> Any:
    """Turn arrays of the whole run into arrays of this process: the inverse of `to_global`."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.global_array_to_host_local_array(tree, _mesh(), PartitionSpec())


def agreed(value: bool) -> bool:
    """Return the value of the first process, in all processes, which may see different files."""
    return value if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.bool_(value)))


def everywhere_true(value: bool) -> bool:
    """Return whether the value is True in all processes. Every process calls this."""
    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(value)).all())


def differing_process(digest: bytes) -> int | None:
    """Return the number of a process whose digest differs from that of the first process; None if all agree."""
    found = differing_item([digest])
    return None if found is None else found[0]


def differing_item(digests: Sequence[bytes]) -> tuple[int, int] | None:
    """Return the numbers of a process and of one of its digests that is not the first process's; None if all agree.

    Every process calls this, with as many digests of the same length.
    """
    if jax.process_count() == 1:
        return None
    mine = np.stack([np.frombuffer(digest, np.uint8) for digest in digests])
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    differing = np.argwhere((everyone != everyone[0]).any(-1))
    return (int(differing[0, 0]), int(differing[0, 1])) if len(differing) else None


def everywhere() -> NamedSharding:
    """Return the sharding of an array that is replicated over all devices of the run."""
    return NamedSharding(_mesh(), PartitionSpec())


def _mesh() -> Mesh:
    return Mesh(np.asarray(jax.devices()), (AXIS,))


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Graceful shutdown: catch SIGTERM and Ctrl-C while the context is open.

    Yields a function that returns whether the run was asked to stop. A second Ctrl-C raises KeyboardInterrupt. Over
    several hosts JAX's preemption service listens for SIGTERM. All processes must then call the function equally
    often; it returns True for the first time at the same call in all of them.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        calls = itertools.count(1)

        def reached() -> bool:
            if not received and multihost_utils.reached_preemption_sync_point(next(calls)):
                received.append(signal.SIGTERM)
            return bool(received)

        yield reached
        return

    def handle(signum: int, frame: Any) -> None:
        del frame
        received.append(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
