"""The number of processes in the environments that launchers leave, and what flags change."""

import pytest

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.hosts import Hosts, resolve

# Of any process in a job of four tasks.
JOB = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_NPROCS': '4', 'SLURM_JOB_NODELIST': 'n[0-1]'}
BATCH = JOB | {'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'SLURM_NODEID': '0'}
STEP = {'SLURM_STEP_ID': '0', 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_NODELIST': 'n[0-1]'}
SRUN = BATCH | STEP | {'SLURM_PROCID': '2', 'SLURM_LOCALID': '0'}
MPIRUN = {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '2', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:5'}
BY_SLURM = {'cluster_detection_method': 'slurm', 'num_processes': 4, 'process_id': 2}
BY_OPEN_MPI = {'cluster_detection_method': 'ompi', 'num_processes': 4, 'process_id': 2}
BY_FLAGS = {'coordinator_address': 'host0:1234', 'num_processes': 4, 'process_id': 2}

ENVIRONMENTS = {
    'no launcher': ({}, None),
    'srun': (SRUN, BY_SLURM),
    'srun, an older SLURM': ({k: v for k, v in SRUN.items() if k != 'SLURM_STEP_NUM_TASKS'}, BY_SLURM),
    'srun in a job of more tasks': (SRUN | {'SLURM_NTASKS': '8'}, BY_SLURM),
    'srun of one task': (SRUN | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}, None),
    'sbatch --ntasks=4, plain python': (BATCH, None),
    'sbatch, with the number of its own step': (BATCH | {'SLURM_STEP_ID': '4294967291'}, None),
    'sbatch, empty SLURM_NTASKS': (BATCH | {'SLURM_NTASKS': ''}, None),
    'srun of one task, empty SLURM_NTASKS': (SRUN | {'SLURM_NTASKS': '', 'SLURM_STEP_NUM_TASKS': '1'}, None),
    'salloc, shell on the login node': (JOB, None),
    'salloc, interactive step': (BATCH | STEP | {'SLURM_STEP_ID': '4294967290'}, None),
    'salloc, shell by srun --pty': (BATCH | STEP | {'SLURM_STEP_NUM_TASKS': '1'}, None),
    'ssh into a job': ({'SLURM_JOB_ID': '7'}, None),
    'ssh into a job, variables kept': (JOB | {'SLURM_STEP_ID': ''}, None),
    'mpirun': (MPIRUN, BY_OPEN_MPI),
    'mpirun of one process': (MPIRUN | {'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'}, None),
    'mpirun in sbatch': (BATCH | MPIRUN, BY_OPEN_MPI),
    'mpirun in sbatch, another node': (SRUN | {'SLURM_PROCID': '1'} | MPIRUN, BY_OPEN_MPI),
    'Open MPI, empty variables': (dict.fromkeys(MPIRUN, ''), None),
    'srun in a shell of mpirun -n 1': (SRUN | MPIRUN | {'OMPI_COMM_WORLD_SIZE': '1'}, BY_SLURM),
}


@pytest.mark.parametrize('environment, expected', ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_environments(environment, expected):
    assert resolve(Hosts(), environment) == expected
    assert resolve(Hosts(num_processes=1), environment) is None


@pytest.mark.parametrize(
    'launcher, address', [(SRUN, 'SLURM_STEP_NODELIST'), (MPIRUN, 'OMPI_MCA_orte_hnp_uri')], ids=['SLURM', 'Open MPI']
)
def test_flags_override_a_launcher(launcher, address):
    assert resolve(Hosts('host0:1234'), launcher) == BY_FLAGS
    assert resolve(Hosts('host0:1234', process_id=3), launcher) == BY_FLAGS | {'process_id': 3}
    without = {name: value for name, value in launcher.items() if name != address}
    assert resolve(Hosts('host0:1234'), without) == BY_FLAGS
    with pytest.raises(TrainingError, match='also needs --coordinator$'):
        resolve(Hosts(), without)


def test_flags_alone():
    assert resolve(Hosts('host0:1234', 4, 2), {}) == BY_FLAGS
    for hosts, message in (
        (Hosts(num_processes=2), 'also needs --coordinator, --process-id$'),
        (Hosts(process_id=0), 'also needs --coordinator, --num-processes$'),
        (Hosts('host0:1234', 2, 2), '--process-id must be less than the number of processes, 2, got 2$'),
        (Hosts('host0', 2, 1), "--coordinator must be HOST:PORT, got 'host0'$"),
        (Hosts('host0:1234', 2, -1), '--process-id must be at least 0, got -1$'),
    ):
        with pytest.raises(TrainingError, match=message):
            resolve(hosts, {})


@pytest.mark.parametrize('name', ['SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_STEP_ID'])
def test_a_variable_that_is_no_number(name):
    with pytest.raises(TrainingError, match=f"variable {name} must be a whole number, got '2\\(x2\\)'$"):
        resolve(Hosts(), SRUN | {name: '2(x2)'})
