"""What tests look up in the folder of a run while it trains, and at its end."""

from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints.digests import CUSTOM, DIGESTS, METADATA_PART
from tresnet_jax.checkpoints.run import CHECKPOINTS
from tresnet_jax.files import read_json
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.metrics import read_records
from tresnet_jax.training.run_config import save_config


def new_run(folder: Path, config: TrainConfig) -> Path:
    """Make the folder of a run that `train.py --workdir` begins."""
    folder.mkdir()
    save_config(config, folder)
    return folder


def steps_in(workdir: Path, half: bool = False) -> list[int]:
    """Return the steps of the complete checkpoints, or of those that are being written."""
    folder = workdir / CHECKPOINTS
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name.split('.')[0]) for name in names if name.isdecimal() is not half)


def last_step(workdir: Path) -> int:
    """Return the last step with metrics; 0 if there is none."""
    return max((record['step'] for record in read_records(workdir)), default=0)


def end_of(workdir: Path) -> tuple[int, dict[str, str], list[dict[str, Any]]]:
    """Return the last step, the digests of its state, and all metrics of the run that do not depend on time."""
    step = steps_in(workdir)[-1]
    digests = read_json(workdir / CHECKPOINTS / str(step) / METADATA_PART)[CUSTOM][DIGESTS]
    timeless = dict.fromkeys(('time', 'images_per_second', 'wait'))
    return step, digests, [record | timeless for record in read_records(workdir)]
