"""The training loop, from top to bottom: devices, data, model, state, resume, steps, evaluation, save."""

import collections
import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.factory import create_model
from tresnet_jax.model import functional
from tresnet_jax.training.batches import check_pictures, eval_batches, train_batches
from tresnet_jax.training.checkpoint import BEST, Checkpoints
from tresnet_jax.training.config import TrainConfig, TrainingError, save_config, save_label_names
from tresnet_jax.training.distributed import local_devices, replicate
from tresnet_jax.training.evaluation import Accuracy, evaluate
from tresnet_jax.training.interruption import interruption
from tresnet_jax.training.interval import Interval
from tresnet_jax.training.metrics import Metrics
from tresnet_jax.training.optimizer import create_optimizer
from tresnet_jax.training.schedule import create_schedule
from tresnet_jax.training.sources import Source, open_source
from tresnet_jax.training.step import AXIS, create_state, make_eval_step, make_train_step, over_devices

LAG = 2  # steps between the one that is started and the one whose metrics are read, so that the devices never wait


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: `step` steps done of `steps`, and the last evaluation of raw and averaged weights."""

    step: int
    steps: int
    accuracy: Accuracy | None
    ema_accuracy: Accuracy | None

    @property
    def finished(self) -> bool:
        return self.step == self.steps


def train(config: TrainConfig, workdir: Path) -> Result:
    """Train from the beginning, or from the last checkpoint below `workdir`, to the end or until interrupted.

    Every process of a run over several hosts calls this. SIGTERM and Ctrl-C save a checkpoint first.

    Raises:
        TrainingError: a configuration that cannot work, data that cannot be had, a loss that is not finite, a
            checkpoint that cannot be read or written.
        DataError: (a ValueError) the data.
        ValueError: what `create_model` raises.
    """
    config.check()
    check_pictures(config)
    workdir.mkdir(parents=True, exist_ok=True)
    devices = local_devices(config.devices)
    first = jax.process_index() == 0
    _check_batches(config, len(devices))

    # Data.
    where = {'data_dir': config.data_dir, 'val_fraction': config.val_fraction}
    source = open_source(config.data, config.train_split, **where)
    val_source = open_source(config.data, config.val_split, **where)
    steps_per_epoch = len(source) / config.batch_size
    steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
    eval_steps = max(1, round(config.eval_every * steps_per_epoch))

    # Model.
    dtype = jnp.dtype(config.dtype)
    model = create_model(
        config.model,
        pretrained=config.pretrained,
        checkpoint=config.checkpoint,
        num_classes=config.num_classes or source.num_classes,
        abn_slope=config.abn_slope,
        drop_rate=config.drop,
        drop_path_rate=config.drop_path,
        dtype=dtype,
        axis_name=AXIS if config.sync_bn else None,
        abn_memory=config.abn_memory,
        remat=config.remat,
        rngs=nnx.Rngs(config.seed),
    )
    if source.num_classes > model.num_classes:
        raise TrainingError(f'{config.data} has {source.num_classes} classes, the model {model.num_classes}')
    if config.new_head:
        model.start_classifier(model.num_classes, nnx.Rngs(config.seed))
    assert model.pretrained_cfg is not None
    mean, std = config.mean or model.pretrained_cfg.mean, config.std or model.pretrained_cfg.std
    config = dataclasses.replace(
        config,
        num_classes=model.num_classes,
        abn_slope=getattr(model, 'abn_slope', None),
        mean=mean,
        std=std,
    )
    apply, params, batch_stats = functional(model, config.freeze)

    # State and steps.
    schedule = create_schedule(config, steps, steps_per_epoch)
    optimizer = create_optimizer(config, schedule, params)
    state = create_state(params, batch_stats, optimizer, config.model_ema)
    step_of = make_train_step(apply, optimizer, config, num_classes=model.num_classes, mean=mean, std=std)
    train_step = over_devices(step_of, donate=True)
    wide = jnp.dtype(jnp.float64) if config.dtype == 'float64' else jnp.dtype(jnp.float32)
    eval_step = over_devices(make_eval_step(apply, mean=mean, std=std, dtype=wide))
    del model, params, batch_stats

    # Resume. The order matters: the iterator first, since restoring sets its position.
    batches = iter(train_batches(config, source, devices, workdir))
    checkpoints = Checkpoints(workdir, keep_last=config.keep_last, keep_best=config.keep_best)
    if checkpoints.latest is not None:
        state = checkpoints.restore(state, batches)
    elif first:
        save_config(config, workdir)
        if source.num_classes == config.num_classes:
            save_label_names(source.class_names, workdir)
    step = start = int(state.step)
    nonfinite = int(state.nonfinite)
    state = replicate(state, devices)
    metrics = Metrics(workdir, start=step, steps=steps, active=first)
    metrics.say(_opening(config, source, val_source, step, steps, steps_per_epoch, len(devices)))

    def accuracy_of(weights: Any) -> Accuracy:
        data = eval_batches(config, val_source, devices, workdir)
        return evaluate(eval_step, (weights['params'], weights['batch_stats']), data)

    accuracy = ema_accuracy = None
    interval = Interval(config.batch_size)
    pending: collections.deque[tuple[int, dict[str, Any], np.ndarray]] = collections.deque()

    def settle(until: int) -> None:
        """Read the metrics of all but the last `until` steps begun; stop for what is not finite."""
        nonlocal nonfinite
        while len(pending) > until:
            at, values, indices = pending.popleft()
            if not values.pop('finite'):
                nonfinite += 1
                _report_nonfinite(config, metrics, at, values, indices, interval.last, nonfinite)
            else:
                interval.add({name: float(value) for name, value in values.items()})

    def evaluate_now() -> dict[str, float]:
        nonlocal accuracy, ema_accuracy
        accuracy = accuracy_of({'params': state.params, 'batch_stats': state.batch_stats})
        ema_accuracy = None if state.ema is None else accuracy_of(state.ema)
        values = _evaluation_metrics(step, accuracy, ema_accuracy)
        metrics.evaluation(values)
        interval.restart()
        return _rating(values)

    def is_due(step: int) -> bool:
        # The one at the end takes the place of one that would be just before it.
        return step == steps or (step % eval_steps == 0 and steps - step > eval_steps // 2)

    with contextlib.ExitStack() as stack:
        stack.callback(metrics.close)
        stack.callback(_close, batches)
        stack.callback(checkpoints.close)
        interrupted = stack.enter_context(interruption())
        if start == 0 and config.eval_at_start:
            evaluate_now()
        if start and is_due(start) and not checkpoints.is_rated:  # it was stopped between the step and its evaluation
            checkpoints.save(step, state, batches, evaluate_now())
        while step < steps:
            waited = time.perf_counter()
            batch = next(batches)
            interval.waited += time.perf_counter() - waited
            indices = batch.pop('index')
            state, values = train_step(state, batch)
            step += 1
            pending.append((step, values, indices))
            metrics.advance()
            settle(LAG)
            if step == start + 1:  # it was compiled in this one, which says nothing of the rate
                settle(0)
                interval.restart_clock()
            stop = interrupted(step)
            if step % config.log_every == 0 or step == steps or stop:
                settle(0)
                metrics.train(
                    interval.summary(step, step / steps_per_epoch, float(np.asarray(schedule(step - 1)))),
                    interval.seconds_left(steps - step),
                )
                interval.restart()
            evaluates = is_due(step) and not stop  # there is not always time for it; it is made up for
            if stop or evaluates or step % config.checkpoint_every == 0:
                settle(0)
                checkpoints.save(step, state, batches, evaluate_now() if evaluates else None)
            if stop:
                checkpoints.wait()
                metrics.say(f'interrupted and saved at step {step:,}; go on with: train.py --workdir {workdir}')
                break
        checkpoints.wait()
    return Result(step, steps, accuracy, ema_accuracy)


def _check_batches(config: TrainConfig, devices: int) -> None:
    """Raises TrainingError where a batch cannot be shared out evenly."""
    everywhere = devices * jax.process_count()
    if config.batch_size % (everywhere * config.accumulate):
        raise TrainingError(
            f'--batch-size {config.batch_size} must be a multiple of {everywhere} devices '
            f'times {config.accumulate} parts (--accumulate)'
        )
    if (config.val_batch_size or config.batch_size) % everywhere:
        raise TrainingError(f'--val-batch-size {config.val_batch_size} must be a multiple of {everywhere} devices')


def _report_nonfinite(
    config: TrainConfig,
    metrics: Metrics,
    step: int,
    values: dict[str, Any],
    indices: Any,
    last: dict[str, float],
    count: int,
) -> None:
    """Say which step it was; raises TrainingError when there were more than the run may leave out."""
    found = ', '.join(f'{name} {float(value):.4g}' for name, value in values.items())
    shown = ' '.join(str(i) for i in np.concatenate([np.ravel(s.data) for s in indices.addressable_shards]))
    before = ', '.join(f'{name} {value:.4g}' for name, value in last.items()) or 'none'
    what = f'step {step}: {found}; last finite: {before}; pictures of the batch, by index: {shown}'
    if count > config.skip_nonfinite:
        raise TrainingError(
            f'{what}. The weights are those before this step. Lower --lr, clip with --clip-grad, '
            f'or leave such steps out with --skip-nonfinite N (now {config.skip_nonfinite})'
        )
    metrics.say(f'left out {what} ({count} of at most {config.skip_nonfinite})')


def _evaluation_metrics(step: int, raw: Accuracy, ema: Accuracy | None) -> dict[str, float]:
    values = {'step': step, **dataclasses.asdict(raw)}
    if ema is not None:
        values |= {f'ema_{name}': value for name, value in dataclasses.asdict(ema).items() if name != 'count'}
    return values


def _rating(values: dict[str, float]) -> dict[str, float]:
    """What the best checkpoint is told by: the top-1 of the weights that will be used."""
    return {BEST: values.get('ema_top1', values['top1'])}


def _opening(
    config: TrainConfig, source: Source, val: Source, step: int, steps: int, steps_per_epoch: float, devices: int
) -> str:
    begun = f'goes on at step {step:,} of' if step else 'begins:'
    return (
        f'{config.model} on {config.data}: {len(source):,} pictures to train, {len(val):,} to evaluate, '
        f'{source.num_classes} classes; {begun} {steps:,} steps of {config.batch_size} pictures '
        f'({steps / steps_per_epoch:.2f} epochs) on {devices * jax.process_count()} '
        f'{jax.devices()[0].device_kind} devices in {jax.process_count()} processes'
    )


def _close(batches: Any) -> None:
    if hasattr(batches, 'close'):
        batches.close()
