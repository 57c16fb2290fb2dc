"""Find or make a Python for ``make gpu-check`` and print its path. Uses the standard library alone.

    python3 scripts/gpu_python.py .venv-gpu-check

The Python that runs this is used if its JAX, 0.10 to 0.12, sees a GPU and the other packages of the check are
installed. Otherwise the virtual environment is made, with JAX for the CUDA version that the driver and the GPU support;
that needs the network once. With JAX_PLATFORMS=cpu no GPU is required.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_OF_CUDA_13 = 7.5  # compute capability: Turing
SECONDS = 300  # after which JAX or nvidia-smi is considered hung, as with a broken driver
NEEDED = 'flax, optax, tyro, tqdm, safetensors, PIL, flatbuffers, ml_dtypes, huggingface_hub'
PROBE = f"""
import jax, {NEEDED}
if not (0, 10) <= jax.__version_info__[:2] < (0, 13):
    raise SystemExit(f'JAX {{jax.__version__}}, not 0.10 to 0.12')
if jax.config.jax_platforms != 'cpu' and jax.devices()[0].platform != 'gpu':
    raise SystemExit('its JAX sees no GPU')
"""


def main(folder: Path) -> int:
    """Print the path of a Python, or one line of what is missing on standard error; return the exit code."""
    problem = problem_of(sys.executable)
    if problem is None:
        print(sys.executable)
        return 0
    print(f'{sys.executable}: {problem}; using {folder}', file=sys.stderr)
    python = folder / 'bin' / 'python'
    try:
        if not python.exists() or problem_of(str(python)) is not None:
            extra = extra_for(nvidia_smi(), nvidia_smi('--query-gpu=compute_cap', '--format=csv,noheader'))
            print(f'{folder}: installing .[{extra}]', file=sys.stderr)
            subprocess.run([sys.executable, '-m', 'venv', str(folder)], check=True, stdout=2)
            pip = [str(python), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
            subprocess.run([*pip, f'{ROOT}[{extra}]'], check=True, stdout=2)
        problem = problem_of(str(python))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        problem = str(error)
    if problem is not None:
        print(f'error: {folder}: {problem}', file=sys.stderr)
        return 1
    print(python)
    return 0


def problem_of(python: str) -> str | None:
    """Return why a Python cannot run the check, in one line; None if it can."""
    try:
        done = subprocess.run([python, '-c', PROBE], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f'its JAX has not started after {SECONDS} s'
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ['it cannot start'])[-1]


def nvidia_smi(*flags: str) -> str:
    """Return what nvidia-smi prints; '' if it is missing or does not answer."""
    try:
        return subprocess.run(['nvidia-smi', *flags], capture_output=True, text=True, timeout=SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ''


def extra_for(text: str, capabilities: str) -> str:
    """Return the extras of pyproject.toml for a driver and its GPUs.

    Args:
        text: what nvidia-smi prints; it has the newest CUDA version that the driver supports.
        capabilities: the compute capability of each GPU on a line, as nvidia-smi prints them; other lines are ignored.

    Raises:
        ValueError: there is no driver, or it is too old.
    """
    if os.environ.get('JAX_PLATFORMS') == 'cpu':
        return 'train'
    found = re.search(r'CUDA (?:UMD )?Version *: (\d+)\.', text)  # UMD: in newer drivers
    if found is None:
        raise ValueError('nvidia-smi shows no driver: install the driver of the GPU first')
    if int(found[1]) < 12:
        raise ValueError(f'the driver supports CUDA {found[1]}; JAX needs 12 or 13: install a newer driver')
    oldest = min(map(float, re.findall(r'^\d+\.\d+$', capabilities, re.MULTILINE)), default=OLDEST_OF_CUDA_13)
    return 'cuda13,train' if int(found[1]) >= 13 and oldest >= OLDEST_OF_CUDA_13 else 'cuda12,train'


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1])))
