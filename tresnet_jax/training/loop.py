"""The training loop, from top to bottom: data, model, step, resume, loop, evaluate, save."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.checkpoints.report import describe_images
from tresnet_jax.checkpoints.run import save_description, stored_network
from tresnet_jax.data.examples import check_total
from tresnet_jax.data.sources import Source, check_channels
from tresnet_jax.data.transforms import per_channel, resolve_data_config
from tresnet_jax.errors import TrainingError, amount, reason
from tresnet_jax.factory import create_model
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.functional import functional
from tresnet_jax.training.batches import (
    UNREADABLE_FILE,
    check_transforms,
    eval_batches,
    eval_data_config,
    train_batches,
)
from tresnet_jax.training.checkpoint import Checkpoints
from tresnet_jax.training.class_weights import loss_weights
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import AXIS, agreed, interruption, local_devices, replicate
from tresnet_jax.training.distillation import without_projection
from tresnet_jax.training.evaluate import EvalResult, evaluate, evaluate_multilabel
from tresnet_jax.training.lock import locked
from tresnet_jax.training.losses import create_loss
from tresnet_jax.training.metrics import METRICS_FILE, Interval, PendingSteps, RunLog, has_evaluation
from tresnet_jax.training.multilabel import MultiLabelResult
from tresnet_jax.training.optim import create_optimizer
from tresnet_jax.training.preprocessing import with_images_of
from tresnet_jax.training.provenance import (
    check_processes,
    check_weights,
    compare,
    provenance,
    save_provenance,
    stored_classes,
)
from tresnet_jax.training.run_config import load_config, save_config, with_resolved
from tresnet_jax.training.run_data import open_data, opening
from tresnet_jax.training.schedules import create_schedule
from tresnet_jax.training.semantic import read_semantic_tree
from tresnet_jax.training.step import (
    TrainState,
    create_state,
    make_eval_step,
    make_multilabel_eval_step,
    make_train_step,
    over_devices,
)
from tresnet_jax.training.teacher import create_distillation, load_teacher
from tresnet_jax.training.update_rules import settings_of
from tresnet_jax.training.wandb_log import open_wandb

LAG = 2  # steps in flight before the metrics of the oldest are fetched, so that the devices never wait for the host


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended.

    Attributes:
        step: number of steps done.
        finished: whether all steps and evaluations are done; False if the run was interrupted.
        evaluation: the last evaluation of the weights in this call; None if there was none.
        ema_evaluation: the last evaluation of their moving average; None if there was none.
    """

    step: int
    finished: bool
    evaluation: EvalResult | MultiLabelResult | None
    ema_evaluation: EvalResult | MultiLabelResult | None


class _Interrupted(Exception):
    """The run was asked to stop during an evaluation."""


def train(config: TrainConfig, workdir: Path, *, accept_changes: bool = False) -> Result:
    """Train from scratch, or resume from the latest checkpoint in `workdir`, until the end or an interruption.

    Every process of a run over several hosts calls this. SIGTERM or Ctrl-C saves a checkpoint and returns.

    Args:
        config: the configuration. A run that resumes needs the saved one (`load_config`), in which only the options
            CHANGEABLE may differ; the run keeps their new values. Options that the run resolved may be None.
        workdir: folder of the run; it is made if it does not exist.
        accept_changes: resume even if the data differs from what the run began with. The options ACCEPTABLE may then
            differ too.

    Raises:
        TrainingError: an option is out of range, another process trains in the folder, the data has changed, the loss
            is not finite, or a checkpoint cannot be read or written.
        DataError: the data set is missing or unusable.
        MissingExtraError: an optional package is not installed.
        ConversionError, HubError, ValueError: as `create_model`.
    """
    with contextlib.ExitStack() as stack:
        config.check()
        check_transforms(config)
        settings_of(config)
        _make_folder(workdir)
        abandoned = stack.enter_context(locked(workdir))
        devices = local_devices(config.devices)
        _check_batch_size(config, len(devices))
        is_first_process = jax.process_index() == 0

        checkpoints = Checkpoints(workdir, keep_last=config.keep_last, keep_best=config.keep_best, metric=config.rating)
        stack.callback(checkpoints.close)
        resumes = checkpoints.latest is not None

        # Data. A run resumes with the examples, classes and splits that it began with.
        data = open_data(config, stored_classes(workdir) if resumes else None)
        checkpoints.keep(data.milestones)
        teacher = load_teacher(config)
        origin = provenance(config, data.train, data.val, len(devices), teacher.identity if teacher else None)
        check_processes(origin, config, workdir, checkpoints.latest)
        remarks: list[str] = []
        saved: TrainConfig | None = None
        if checkpoints.latest is not None:
            saved = load_config(workdir)
            origin, remarks = compare(origin, config, saved, workdir, checkpoints.latest, accept_changes)
            config = with_resolved(config, saved)

        # Model. The weights of a run that resumes are in its checkpoint.
        model = _create_model(config, data.train.num_classes, stored_network(workdir) if resumes else None)
        config = _resolved(config, model)
        for source in (data.train, data.val):
            check_channels(source, model.in_chans)
        data_config = eval_data_config(config)
        apply, params, batch_stats = functional(model, config.freeze)
        distillation, about_teacher = None, []
        if teacher is not None:
            distillation, extra, line = create_distillation(config, teacher, model, data.train)
            apply, params, about_teacher = without_projection(apply), params | extra, [line]
        if not resumes:
            check_weights((params, batch_stats), data_config, config.model)

        # State and steps.
        schedule = create_schedule(config, data.steps, data.steps_per_epoch)
        optimizer = create_optimizer(config, schedule, params)
        state = create_state(params, batch_stats, optimizer, config.model_ema)
        normalisation = {'mean': data_config['mean'], 'std': data_config['std']}
        tree = config.semantic_tree and read_semantic_tree(config.semantic_tree, model.num_classes, data.train)
        loss = create_loss(config, **loss_weights(config, data.train, model.num_classes), tree=tree)
        arguments = {'num_classes': model.num_classes, 'mixing_steps': data.mixing_steps, 'loss': loss, **normalisation}
        inner = make_train_step(apply, optimizer, config, distillation=distillation, **arguments)
        fixed = None if teacher is None else replicate(teacher.variables, devices)
        train_step = over_devices(inner, donate=True, fixed=fixed)
        eval_dtype = jnp.dtype(jnp.float64) if config.dtype == 'float64' else jnp.dtype(jnp.float32)
        make_evaluation = (
            make_multilabel_eval_step if config.multilabel else functools.partial(make_eval_step, tree=tree)
        )
        eval_step = over_devices(make_evaluation(apply, **normalisation, dtype=eval_dtype))
        evaluate_state = functools.partial(_evaluate, eval_step, config, data.val, devices, workdir)

        # Resume. The iterator is made first, because restoring sets its position.
        batches = iter(train_batches(config, data.train, devices, workdir))
        stack.callback(batches.close)
        about_damage: list[str] = []
        if resumes:
            state, about_damage = checkpoints.restore(state, batches)
            _check_skipped(int(state.nonfinite), config, workdir)
        if is_first_process and (not resumes or remarks):
            save_provenance(origin, workdir)
        if is_first_process and config != saved:
            save_config(config, workdir)
        if is_first_process and (not resumes or accept_changes):
            names = data.train.class_names if data.train.num_classes == model.num_classes else None
            save_description(workdir, model, data_config, names, config.task)
        if is_first_process and not resumes:
            for file in (METRICS_FILE, UNREADABLE_FILE):  # of a run that ended before its first checkpoint
                (workdir / file).unlink(missing_ok=True)
        del model, params, batch_stats, teacher
        step = start = int(state.step)
        wandb = stack.enter_context(open_wandb(config, workdir)) if is_first_process else None
        log = RunLog(workdir, start=step, steps=data.end, active=is_first_process, wandb=wandb)
        stack.callback(log.close)
        names = ('loss', *(() if config.multilabel else ('top1',)), *(('task_loss', 'kd_loss') if distillation else ()))
        interval = Interval(config.batch_size, names)
        pending = PendingSteps(log, interval, config.skip_nonfinite, nonfinite=int(state.nonfinite))
        state = replicate(state, devices)
        for line in [*([abandoned] if abandoned else []), *about_damage, *remarks, *about_teacher]:
            log.say(line)
        log.say(opening(config, data, step, len(devices)))
        log.say(f'images {describe_images(data_config)}')
        interrupted = stack.enter_context(interruption())
        evaluation: _Evaluation | None = None
        # Evaluate before the first step if requested; after a resume, finish the interrupted evaluation.
        evaluates = data.evaluates_at(step) if step else config.eval_at_start
        evaluates = agreed(evaluates and not has_evaluation(workdir, step))
        stop = False
        interval.restart()

        while True:
            # Evaluate. The state is saved already. An interrupted evaluation is repeated on resume.
            if evaluates and not stop:
                try:
                    evaluation = evaluate_state(state, interrupted)
                except _Interrupted:
                    stop = True
                else:
                    if step:
                        checkpoints.rate(step, evaluation.rating(config.rating))
                    log.evaluation(evaluation.metrics(step))
                    interval.restart_clock()
            if stop or step >= data.end:
                break

            # Step.
            waited = time.perf_counter()
            batch = next(batches)
            interval.waited += time.perf_counter() - waited
            indices = batch.pop('index')
            state, values = train_step(state, batch)
            step += 1
            pending.add(step, values, indices)
            log.advance()
            pending.fetch(keep=LAG)
            if step == start + 1:  # the first step includes compilation; exclude it from the throughput
                pending.fetch()
                interval.restart_clock()

            # Log.
            stop = interrupted()
            if step % config.log_every == 0 or step == data.end or stop:
                pending.fetch()
                learning_rate = float(np.asarray(schedule(step - 1)))
                log.train(
                    interval.summary(step, step / data.steps_per_epoch, learning_rate),
                    interval.seconds_left(data.end - step),
                )
                interval.restart()

            # Save.
            evaluates = data.evaluates_at(step)
            if stop or evaluates or step % config.checkpoint_every == 0:
                pending.fetch()
                checkpoints.save(step, state, batches)

        if stop and checkpoints.latest != step:  # before the first step
            checkpoints.save(step, state, batches)
        checkpoints.wait()
        if stop:
            log.say(f'interrupted and saved at step {step:,}; to resume: train.py --workdir {workdir}')
        raw, ema = evaluation or (None, None)
        return Result(step, not stop, raw, ema)


class _Evaluation(NamedTuple):
    """The results of one evaluation: of the weights, and of their moving average if the run keeps one."""

    raw: EvalResult | MultiLabelResult
    ema: EvalResult | MultiLabelResult | None

    def metrics(self, step: int) -> dict[str, float]:
        """Return the metrics to log."""
        values = {'step': step, **self.raw.metrics()}
        if self.ema is not None:
            values |= {f'ema_{name}': value for name, value in self.ema.metrics().items() if name != 'count'}
        return values

    def rating(self, metric: str) -> float:
        """Return a metric of the moving average if there is one, else of the weights."""
        return (self.ema or self.raw).metrics()[metric]


def _make_folder(workdir: Path) -> None:
    """Make the folder of a run. Raises TrainingError if that fails."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f'{workdir}: the folder cannot be made: {reason(error)}') from error


def _create_model(config: TrainConfig, data_classes: int, network: dict[str, Any] | None) -> ImageModel:
    """Return the model of a configuration, in evaluation mode.

    Args:
        config: the configuration.
        data_classes: number of classes of the data.
        network: for a run that resumes, the network that it has stored; {} if it has none. Its weights are not loaded.

    Raises:
        TrainingError: the data has more classes than the model.
        ConversionError, HubError, ValueError: as `create_model`.
    """
    weights = {'pretrained': config.pretrained, 'checkpoint': config.checkpoint} if network is None else {}
    head = {'head': config.head, 'num_of_groups': config.num_of_groups}
    model = create_model(
        **{'name': config.model, 'in_chans': config.in_chans, **head, **weights, **(network or {})},
        num_classes=data_classes if config.num_classes is None else config.num_classes,
        abn_slope=config.abn_slope,
        drop_rate=config.drop,
        drop_path_rate=config.drop_path,
        dtype=jnp.dtype(config.dtype),
        axis_name=AXIS if config.sync_bn else None,
        abn_memory=config.abn_memory,
        remat=config.remat,
        rngs=nnx.Rngs(config.seed),
    )
    if data_classes > model.num_classes:
        classes = amount(data_classes, 'class', 'classes')
        raise TrainingError(f'{config.data} has {classes}, but the model has {model.num_classes}')
    if config.new_head:
        model.start_classifier(model.num_classes, nnx.Rngs(config.seed))
    return model


def _resolved(config: TrainConfig, model: ImageModel) -> TrainConfig:
    """Return the configuration with the options RESOLVED set to the model's values.

    Raises:
        TrainingError: the preprocessing does not suit the channels of the model.
    """
    config = with_images_of(dataclasses.replace(config, in_chans=model.in_chans), resolve_data_config(model))
    check_transforms(config)
    assert config.mean is not None and config.std is not None
    return dataclasses.replace(
        config,
        num_classes=model.num_classes,
        abn_slope=model.abn_slope,
        mean=per_channel(config.mean, model.in_chans),
        std=per_channel(config.std, model.in_chans),
    )


def _check_batch_size(config: TrainConfig, local: int) -> None:
    """Raise TrainingError if a batch cannot be split evenly; `local` is the number of devices of this host."""
    devices = local * jax.process_count()
    factors = f'{amount(devices, "device")} times {amount(config.accumulate, "part")} (--accumulate)'
    unit = devices * config.accumulate
    if config.mixes:
        factors, unit = f'{factors} times 2 images (--mixup and --cutmix mix neighbours)', 2 * unit
    if config.batch_size % unit:
        raise TrainingError(f'--batch-size {config.batch_size} must be a multiple of {factors}')
    if config.val_batch_size is not None and config.val_batch_size % devices:
        raise TrainingError(
            f'--val-batch-size {config.val_batch_size} must be a multiple of {amount(devices, "device")}'
        )


def _check_skipped(skipped: int, config: TrainConfig, workdir: Path) -> None:
    """Raise TrainingError if a run has skipped more steps than it may; its weights would no longer change."""
    if skipped > config.skip_nonfinite:
        raise TrainingError(
            f'{workdir}: the run has skipped {amount(skipped, "step")} with a non-finite loss or gradient; resume it '
            f'with --skip-nonfinite {skipped} or more, got {config.skip_nonfinite}'
        )


def _evaluate(
    eval_step: Any,
    config: TrainConfig,
    source: Source,
    devices: list[Any],
    workdir: Path,
    state: TrainState,
    interrupted: Callable[[], bool],
) -> _Evaluation:
    """Evaluate the weights of a state, and their moving average if there is one.

    Raises:
        _Interrupted: the run was asked to stop, which `interrupted` returns after each batch.
        DataError: too many images are unreadable.
    """

    def tick(count: int) -> None:
        del count
        if interrupted():
            raise _Interrupted

    def result(params: Any, batch_stats: Any) -> EvalResult | MultiLabelResult:
        given = eval_step, (params, batch_stats), eval_batches(config, source, devices, workdir), tick
        found = evaluate_multilabel(*given, config.multilabel_threshold) if config.multilabel else evaluate(*given)
        check_total(source, len(source) - found.count, config.max_unreadable)
        return found

    raw = result(state.params, state.batch_stats)
    return _Evaluation(raw, None if state.ema is None else result(**state.ema))
