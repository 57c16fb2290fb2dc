"""Weights & Biases: log the run of a folder to one run there, also after a resume."""

import contextlib
import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

from tresnet_jax.errors import TrainingError, missing_extra, reason
from tresnet_jax.files import save_text
from tresnet_jax.training.config import TrainConfig

ID_FILE = 'wandb_id.txt'


def open_wandb(config: TrainConfig, workdir: Path) -> contextlib.AbstractContextManager[Any]:
    """Return the run of a folder at Weights & Biases, or a context that yields None without `log_wandb`.

    The run logs dicts; `step` is the axis of all metrics. Leaving the context finishes it. Its files are in
    `workdir`/wandb, and with WANDB_MODE=offline they stay there until ``wandb sync``. Other settings come from wandb's
    environment variables, such as WANDB_ENTITY.

    Args:
        config: log_wandb, wandb_project, wandb_tags, wandb_resume_id; all of it is shown with the run.
        workdir: folder of the run, which keeps the id. `wandb_resume_id` overrides it.

    Raises:
        MissingExtraError: wandb is not installed.
        TrainingError: wandb cannot start: nobody is logged in, or a project, tag or id is invalid.
        ConversionError: the file of the id cannot be written.
    """
    if not config.log_wandb:
        return contextlib.nullcontext()
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None
    try:
        run = wandb.init(
            project=config.wandb_project,
            tags=config.wandb_tags,
            name=workdir.resolve().name,
            id=_run_id(config, workdir),
            resume='allow',
            config=json.loads(json.dumps(dataclasses.asdict(config), default=str)),
            dir=str(workdir),
            settings=wandb.Settings(console='off'),  # the log lines of the run stay on its own console
        )
    except (wandb.Error, ValueError) as error:  # ValueError: the checks of its settings
        hint = 'if it needs a login, run wandb login or set WANDB_MODE=offline'
        raise TrainingError(f'--log-wandb: {reason(error)}; {hint}') from error
    # Steps that were lost when a run was killed are logged again; wandb's own counter must not decrease.
    run.define_metric('*', step_metric='step')
    return run


def _run_id(config: TrainConfig, workdir: Path) -> str:
    """Return the id of the run, and keep it in the folder.

    Raises:
        TrainingError, ConversionError: the file of the id cannot be read or written.
    """
    file = workdir / ID_FILE
    try:
        stored = file.read_text(encoding='utf-8').strip() if file.exists() else ''
    except (OSError, ValueError) as error:
        raise TrainingError(f'{file}: cannot be read: {reason(error)}') from error
    found = config.wandb_resume_id or stored or uuid.uuid4().hex[:8]
    if found != stored:
        save_text(file, f'{found}\n')
    return found
