"""The processes of a run over several hosts: given by flags, or by the environment that a launcher sets."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from tresnet_jax.errors import TrainingError
from tresnet_jax.options import NOT_NEGATIVE, POSITIVE, check_options, flag, flag_name

# SLURM numbers the steps of a batch script and of an interactive shell from here; srun counts from 0.
FIRST_SPECIAL_STEP = 0xFFFFFFF0
# JAX finds the first host in these variables.
NEEDED_OF_OPEN_MPI = ('OMPI_MCA_orte_hnp_uri',)
NEEDED_OF_SLURM = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_LOCALID')


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a run over several hosts. Default: one process, or those that SLURM or Open MPI started."""

    coordinator: Annotated[str | None, flag('HOST:PORT', 'found by the launcher')] = None
    """Address of the first process. Not needed under SLURM, or under Open MPI up to version 4."""
    num_processes: Annotated[int | None, POSITIVE, flag('N', 'found by the launcher, or 1')] = None
    """Number of processes. Not needed under SLURM or Open MPI; 1 ignores them."""
    process_id: Annotated[int | None, NOT_NEGATIVE, flag('I', 'found by the launcher')] = None
    """Number of this process, from 0. Not needed under SLURM or Open MPI."""


class Launched(NamedTuple):
    """How a launcher started this process.

    Attributes:
        method: JAX's name of the launcher; None if JAX cannot find the first host.
        num_processes: number of processes.
        process_id: number of this process.
    """

    method: str | None
    num_processes: int
    process_id: int


def resolve(hosts: Hosts, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the arguments of jax.distributed.initialize, or None for a run of one process.

    Args:
        hosts: from the command line; they override the launcher.
        environment: environment variables; an empty one counts as not set.

    Raises:
        TrainingError: an argument is missing or wrong.
    """
    check_options(hosts, TrainingError)
    environment = {name: value for name, value in environment.items() if value.strip()}
    given: dict[str, Any] = {key: value for key, value in dataclasses.asdict(hosts).items() if value is not None}
    # Open MPI first: under SLURM it starts its daemons with srun, and its processes inherit their variables.
    launched = None if hosts.num_processes == 1 else _by_open_mpi(environment) or _by_slurm(environment)
    if launched is not None:
        found = {'num_processes': launched.num_processes, 'process_id': launched.process_id}
        if not given and launched.method is not None:
            return {'cluster_detection_method': launched.method, **found}
        given = found | given
    if given in ({}, {'num_processes': 1}):
        return None
    missing = [field.name for field in dataclasses.fields(hosts) if field.name not in given]
    if missing:
        raise TrainingError(f'a run over several hosts also needs {", ".join(map(flag_name, missing))}')
    if given['process_id'] >= given['num_processes']:
        number, count = given['process_id'], given['num_processes']
        raise TrainingError(f'--process-id must be less than the number of processes, {count}, got {number}')
    if not re.fullmatch(r'.+:\d+', given['coordinator']):
        raise TrainingError(f'--coordinator must be HOST:PORT, got {given["coordinator"]!r}')
    return {'coordinator_address' if key == 'coordinator' else key: value for key, value in given.items()}


def _by_open_mpi(environment: Mapping[str, str]) -> Launched | None:
    """Return how mpirun started this process; None if it did not start several."""
    size, rank = (_number(name, environment) for name in ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'))
    return _launched('ompi', NEEDED_OF_OPEN_MPI, size, rank, environment)


def _by_slurm(environment: Mapping[str, str]) -> Launched | None:
    """Return how srun started this process; None if it did not start several.

    A batch script and a shell of salloc are one process, although SLURM_NTASKS has the number of tasks that the job may
    start and SLURM_PROCID is 0. srun makes a step for the processes that it starts.
    """
    step = _number('SLURM_STEP_ID', environment)
    if step is None and 'SLURM_STEP_NODELIST' not in environment:
        return None
    if step is not None and step >= FIRST_SPECIAL_STEP:
        return None
    size = _number('SLURM_STEP_NUM_TASKS', environment)
    size = _number('SLURM_NTASKS', environment) if size is None else size
    return _launched('slurm', NEEDED_OF_SLURM, size, _number('SLURM_PROCID', environment), environment)


def _launched(
    method: str, needed: tuple[str, ...], size: int | None, rank: int | None, environment: Mapping[str, str]
) -> Launched | None:
    if size is None or rank is None or size <= 1:
        return None
    return Launched(method if all(name in environment for name in needed) else None, size, rank)


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    """Return an environment variable as a number; None if it is not set. Raises TrainingError if it is not a number."""
    text = environment.get(name)
    if text is not None and not text.isdecimal():
        raise TrainingError(f'the environment variable {name} must be a whole number, got {text!r}')
    return None if text is None else int(text)
