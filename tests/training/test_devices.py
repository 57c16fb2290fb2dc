"""Devices and hosts: what a launcher tells, and which devices take part."""

import jax
import pytest

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.devices import Hosts, local_devices, resolve

SLURM = {'SLURM_NTASKS': '4', 'SLURM_PROCID': '2'}
OPEN_MPI = {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '2'}
FOUND = {'coordinator_address': 'host0:1234', 'num_processes': 4, 'process_id': 2}


def test_one_process():
    assert resolve(Hosts(), {}) is None
    assert resolve(Hosts(), {'SLURM_NTASKS': '1', 'SLURM_PROCID': '0', 'SLURM_STEP_NODELIST': 'host0'}) is None


@pytest.mark.parametrize(
    'launcher, address', [(SLURM, 'SLURM_STEP_NODELIST'), (OPEN_MPI, 'OMPI_MCA_orte_hnp_uri')], ids=['SLURM', 'OpenMPI']
)
def test_a_launcher(launcher, address):
    """JAX reads the variables of a launcher itself if they contain the address of the first host."""
    assert resolve(Hosts(), launcher | {address: 'host0'}) == {}
    assert resolve(Hosts('host0:1234'), launcher) == FOUND
    assert resolve(Hosts('host0:1234'), launcher | {address: 'host0'}) == FOUND
    assert resolve(Hosts('host0:1234', process_id=3), launcher)['process_id'] == 3
    with pytest.raises(TrainingError, match='also needs --coordinator$'):
        resolve(Hosts(), launcher)


def test_flags_alone():
    assert resolve(Hosts('host0:1234', 4, 2), {}) == FOUND
    with pytest.raises(TrainingError, match='also needs --coordinator, --process-id$'):
        resolve(Hosts(num_processes=2), {})


def test_devices_of_this_host():
    assert local_devices(None) == jax.local_devices() == local_devices(len(jax.local_devices()))
    assert local_devices(2) == jax.local_devices()[:2]
    with pytest.raises(TrainingError, match='--devices 99: this host has 4'):
        local_devices(99)
