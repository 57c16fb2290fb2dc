"""Find or make a Python for ``make gpu-check`` and print its path. Uses the standard library alone.

    python3 scripts/gpu_python.py .venv-gpu-check

The Python that runs this is used if its JAX, 0.10 to 0.12, sees a GPU and the other packages of the check are
installed. If only packages are missing, a virtual environment is made that adds them to those of this Python.
Otherwise it gets everything, with JAX for the CUDA version that the driver and the GPU support. Making it needs the
network once, or a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels. With JAX_PLATFORMS=cpu no GPU is required.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 11)
OLDEST_OF_CUDA_13 = 7.5  # compute capability: Turing
SECONDS = 300  # after which JAX or nvidia-smi is considered hung, as with a broken driver
# Import names, and the names on PyPI where they differ. Without the optional ones, parts of the check are left out.
NEEDED = (
    'flax', 'optax', 'tyro', 'tqdm', 'safetensors', 'PIL', 'flatbuffers', 'ml_dtypes', 'numpy', 'huggingface_hub',
)  # fmt: skip
OPTIONAL = ('grain', 'orbax.checkpoint', 'tensorboardX', 'tensorstore', 'filelock', 'matplotlib')
ON_PYPI = {'PIL': 'pillow', 'orbax.checkpoint': 'orbax-checkpoint'}
PROBE = """
import importlib.util, json, sys
def is_there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
problem = ''
try:
    import jax
    if not (0, 10) <= jax.__version_info__[:2] < (0, 13):
        problem = f'JAX {jax.__version__}, not 0.10 to 0.12'
    elif jax.config.jax_platforms != 'cpu' and jax.devices()[0].platform != 'gpu':
        problem = 'its JAX sees no GPU'
except Exception as error:
    problem = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
missing = [name for name in sys.argv[1:] if not is_there(name)]
folders = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
print('\\n' + json.dumps({'problem': problem, 'missing': missing, 'folders': folders}))
"""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a Python has.

    Attributes:
        problem: why its JAX cannot be used, in one line; '' if it can.
        missing: those of `NEEDED` and `OPTIONAL` that are not installed.
        folders: of its packages.
    """

    problem: str
    missing: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def needed(self) -> list[str]:
        """Those of `NEEDED` that are missing."""
        return [name for name in self.missing if name in NEEDED]

    def __str__(self) -> str:
        return self.problem or f'{", ".join(self.needed)} {"is" if len(self.needed) == 1 else "are"} not installed'


def main(folder: Path) -> int:
    """Print the path of a Python, or one line of what is missing on standard error; return the exit code."""
    if sys.version_info < OLDEST_PYTHON:
        version = '.'.join(map(str, sys.version_info[:2]))
        print(f'error: this is Python {version}, not 3.11 or newer: make gpu-check PYTHON=python3.12', file=sys.stderr)
        return 1
    found = look_at(sys.executable)
    if not found.problem and not found.needed:
        print(sys.executable)
        return 0
    print(f'{sys.executable}: {found}; using {folder}', file=sys.stderr)
    python = folder / 'bin' / 'python'
    try:
        made = look_at(str(python)) if python.exists() else None
        if made is None or made.problem or made.needed:
            make(folder, found)
            made = look_at(str(python))
        problem = str(made) if made.problem or made.needed else ''
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem:
        print(f'error: {folder}: {problem}', file=sys.stderr)
        return 1
    print(python)
    return 0


def look_at(python: str) -> Found:
    """Return what a Python has."""
    try:
        done = subprocess.run(
            [python, '-c', PROBE, *NEEDED, *OPTIONAL], capture_output=True, text=True, timeout=SECONDS
        )
        fields = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Found(f'its JAX has not started after {SECONDS} s')
    except (ValueError, IndexError):  # it crashed
        return Found((done.stderr.strip().splitlines() or ['it cannot start'])[-1])
    return Found(fields['problem'], tuple(fields['missing']), tuple(fields['folders']))


def make(folder: Path, found: Found) -> None:
    """Make the virtual environment, on top of this Python's packages if its JAX can be used.

    Raises:
        ValueError: there is no driver, it is too old, or something cannot be installed.
    """
    needed, optional = requirements('dependencies'), requirements('train')
    if found.problem:
        extra = extra_for(nvidia_smi(), nvidia_smi('--query-gpu=compute_cap', '--format=csv,noheader'))
        needed += requirements('optax') + requirements(extra) * bool(extra)
    else:
        needed, optional = (
            [text for name in found.missing if name in names for text in requirements(ON_PYPI.get(name, name))]
            for names in (NEEDED, OPTIONAL)
        )
    run([sys.executable, '-m', 'venv', str(folder)], 'cannot be made; what Python says is printed above')
    packages = folder / 'lib' / f'python{sys.version_info[0]}.{sys.version_info[1]}' / 'site-packages'
    # Not --system-site-packages: this Python may be that of a virtual environment itself.
    lines = [f'import site; site.addsitedir({path!r})\n' for path in found.folders if not found.problem]
    (packages / 'gpu_check.pth').write_text(''.join(lines), encoding='utf-8')
    pip = [str(folder / 'bin' / 'python'), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    print(f'{folder}: installing {" ".join(needed)}', file=sys.stderr)
    wheels = 'without a network, PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER takes their wheels from a folder'
    if needed:
        run([*pip, *needed], f'pip cannot install {" ".join(needed)}; {wheels}')
    if optional:
        try:
            run([*pip, *optional], '')
        except ValueError:
            print(f'{folder}: without {" ".join(optional)}: parts of the check are left out', file=sys.stderr)


def run(command: list[str], otherwise: str) -> None:
    """Run a command; it may print to standard error. Raises ValueError if it fails."""
    if subprocess.run(command, stdout=2).returncode:
        raise ValueError(otherwise)


def requirements(of: str) -> list[str]:
    """Return requirements of pyproject.toml: 'dependencies', those of an extra, or that of a package on PyPI."""
    import tomllib  # not in Python 3.10, which gets a message of its own

    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    extras = project['optional-dependencies']
    if of == 'dependencies':
        return project['dependencies']
    if of in extras:
        nested = {text: re.fullmatch(r'tresnet_jax\[(\w+)\]', text) for text in extras[of]}
        return [each for text, extra in nested.items() for each in (requirements(extra[1]) if extra else [text])]
    every = [*project['dependencies'], *(text for texts in extras.values() for text in texts)]
    return [next(text for text in every if re.fullmatch(rf'{of}\b[^-].*', text))]


def nvidia_smi(*flags: str) -> str:
    """Return what nvidia-smi prints; '' if it is missing or does not answer."""
    try:
        return subprocess.run(['nvidia-smi', *flags], capture_output=True, text=True, timeout=SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ''


def extra_for(text: str, capabilities: str) -> str:
    """Return the extra of pyproject.toml for a driver and its GPUs; '' with JAX_PLATFORMS=cpu.

    Args:
        text: what nvidia-smi prints; it has the newest CUDA version that the driver supports.
        capabilities: the compute capability of each GPU on a line, as nvidia-smi prints them; other lines are ignored.

    Raises:
        ValueError: there is no driver, or it is too old.
    """
    if os.environ.get('JAX_PLATFORMS') == 'cpu':
        return ''
    found = re.search(r'CUDA (?:UMD )?Version *: (\d+)\.', text)  # UMD: in newer drivers
    if found is None:
        raise ValueError('nvidia-smi shows no driver: install the driver of the GPU first')
    if int(found[1]) < 12:
        raise ValueError(f'the driver supports CUDA {found[1]}; JAX needs 12 or 13: install a newer driver')
    oldest = min(map(float, re.findall(r'^\d+\.\d+$', capabilities, re.MULTILINE)), default=OLDEST_OF_CUDA_13)
    return 'cuda13' if int(found[1]) >= 13 and oldest >= OLDEST_OF_CUDA_13 else 'cuda12'


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1])))
