"""Train timm's model in PyTorch with the configuration of one of our runs, and plot both accuracies.

    python scripts/compare_training.py RUN --seeds 0 1 2 --out comparison

Requires torch and timm (``pip install 'tresnet_jax[test]'``). Batches come from our pipeline: for the same seed, the
same images in the same order with the same augmentation. Weights, loss, updates and metrics are timm's. Only runs with
SGD or AdamW and the one-cycle schedule, without mixing, erasing and a moving average, can be compared (the recipes
`imagenette`, `fashion_mnist` and `fashion_mosaics`). RUN may be several runs with different seeds. timm's side computes
in float32; if the run does not, the results and the plot say so.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import timm.optim
import torch
import tyro
from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.poly_loss import PolyBinaryCrossEntropy, PolyCrossEntropy
from timm.task.evaluator import ClassificationEvaluator, MultiLabelClassificationEvaluator

from convert.golden import timm_model
from tresnet_jax.checkpoints.checkpoint import METRICS
from tresnet_jax.cli.common import Progress, fail, program_name
from tresnet_jax.data.pipeline import eval_dataset, train_dataset
from tresnet_jax.data.sources import Source
from tresnet_jax.errors import TrainingError
from tresnet_jax.files import save_text
from tresnet_jax.plotting import new_figure, save_figure
from tresnet_jax.training.batches import eval_transform, train_transform
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.metrics import METRICS_FILE, read_records
from tresnet_jax.training.run_config import CHANGEABLE, changed_options, load_config
from tresnet_jax.training.run_data import open_data
from tresnet_jax.variants import ARCHITECTURES, split_name

Points = list[tuple[int, float]]  # (step, metric as a fraction) of each evaluation

# Options that must have their defaults, because PyTorch's side does not have them.
NEEDS_DEFAULT = ('loss_pos_weight', 'loss_class_weight', 'mixup', 'cutmix', 'reprob', 'cutout', 'model_ema', 'freeze')
NEEDS_DEFAULT += ('accumulate', 'clip_grad', 'layer_decay', 'opt_eps', 'opt_betas', 'opt_kwargs', 'drop', 'drop_path')
NEEDS_DEFAULT += ('pretrained', 'checkpoint', 'head', 'aug_repeats', 'cutmix_minmax', 'kd_model_name', 'semantic_tree')
TIMM_DTYPE = 'float32'  # of timm's side


def check_configs(configs: list[TrainConfig]) -> None:
    """Raise TrainingError for options that this script does not support, or that differ between the runs."""
    first, plain = configs[0], TrainConfig(model='test_resnet')
    other = [name for name in NEEDS_DEFAULT if getattr(first, name) != getattr(plain, name)]
    if (
        first.abn_slope is not None
        and first.abn_slope != ARCHITECTURES[split_name(first.model)[0]].family.default_slope
    ):
        other.append('abn_slope')
    if other or first.sched != 'one_cycle' or first.opt not in ('sgd', 'momentum', 'adamw'):
        what = ', '.join(other) or 'another schedule or optimiser'
        wanted = f'SGD or AdamW, one_cycle and none of {", ".join(NEEDS_DEFAULT)}'
        raise TrainingError(f'a run with {what} cannot be compared; use {wanted}')
    for config in configs[1:]:
        differing = changed_options(first, config, (*CHANGEABLE, 'seed'))
        if differing:
            raise TrainingError(f'the runs differ in {", ".join(differing)}; give runs that differ in the seed alone')


def our_points(run: Path, metric: str) -> Points:
    """Return the metric of a run at each evaluation. Raises TrainingError if there is none."""
    found = [(r['step'], r[metric]) for r in read_records(run) if r['kind'] == 'eval' and r.get(metric) is not None]
    if not found:
        raise TrainingError(f'{run / METRICS_FILE}: no evaluation with {metric}; let the run finish first')
    return found


def normalise(images: np.ndarray, config: TrainConfig) -> torch.Tensor:
    """(b, H, W, 3) uint8 -> (b, 3, H, W) float32 in torch's channels_last format."""
    assert config.mean is not None and config.std is not None
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


@torch.no_grad()
def accuracy(model: torch.nn.Module, config: TrainConfig, source: Source) -> float:
    """Return the metric that rates checkpoints, measured by timm, as a fraction."""
    model.eval()
    evaluator = ClassificationEvaluator()
    if config.multilabel:
        evaluator = MultiLabelClassificationEvaluator(threshold=config.multilabel_threshold)
    batches = eval_dataset(
        source,
        eval_transform(config),
        batch_size=config.batch_size,
        threads=config.threads,
        max_value=config.max_value,
    )
    for batch in batches:
        kept = batch['mask'] > 0
        evaluator.update(model(normalise(batch['image'][kept], config)), torch.from_numpy(targets(batch)[kept]))
    model.train()
    return evaluator.compute()[config.rating] / 100


def targets(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return the labels of a batch as torch's losses take them."""
    return batch['target'] if 'target' in batch else batch['label'].astype(np.int64)


def loss_of_timm(config: TrainConfig) -> torch.nn.Module:
    """Return timm's loss of a configuration."""
    if config.loss_name == 'ce':
        return torch.nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    if config.loss_name == 'bce':
        return BinaryCrossEntropy(
            config.label_smoothing, config.bce_target_thresh, sum_classes=config.bce_sum, smooth_dense=config.multilabel
        )
    if config.loss_name == 'poly':
        epsilon, smoothing = config.poly_epsilon, config.label_smoothing
        if not config.multilabel:
            return PolyCrossEntropy(epsilon, smoothing)
        return PolyBinaryCrossEntropy(epsilon, config.poly_gamma, config.poly_alpha, smoothing)
    return AsymmetricLossMultiLabel(
        config.asl_gamma_neg, config.asl_gamma_pos, config.asl_clip, reduction=config.asl_reduction,
        smoothing=config.label_smoothing, disable_torch_grad_focal_loss=not config.asl_focal_gradient,
    )  # fmt: skip


def train_timm(config: TrainConfig) -> Points:
    """Train timm's model and return its metric at each evaluation."""
    data = open_data(config, None)
    torch.manual_seed(config.seed)
    sizes = {'num_classes': config.num_classes, 'in_chans': config.channels}
    model = timm_model(config.model, **sizes).to(memory_format=torch.channels_last).train()
    optimizer = timm.optim.create_optimizer_v2(  # pyright: ignore[reportPrivateImportUsage]
        model, opt=config.opt, lr=config.peak_lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.peak_lr, total_steps=data.steps, pct_start=config.pct_start, div_factor=config.div_factor,
        final_div_factor=config.final_div_factor, cycle_momentum=False,
    )  # fmt: skip
    loss_of = loss_of_timm(config)
    batches = iter(
        train_dataset(
            data.train,
            train_transform(config),
            batch_size=config.batch_size,
            seed=config.seed,
            threads=config.threads,
            max_value=config.max_value,
            channels=config.channels,
        )
    )
    found = []
    with Progress(data.end, f'steps of timm, seed {config.seed}') as progress:
        for step in range(1, data.end + 1):
            batch = next(batches)
            loss = loss_of(model(normalise(batch['image'], config)), torch.from_numpy(targets(batch)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            progress.update(step)
            if data.evaluates_at(step):
                found.append((step, accuracy(model, config, data.val)))
                metric = f'{METRICS[config.rating]} {100 * found[-1][1]:.2f} %'
                progress.write(f'timm, seed {config.seed}, step {step}: {metric}')
    return found


def sides(config: TrainConfig) -> tuple[str, str]:
    """Return our label and timm's, each with its dtype if they differ."""
    dtypes = ('', '') if config.dtype == TIMM_DTYPE else (f' in {config.dtype}', f' in {TIMM_DTYPE}')
    return f'tresnet_jax{dtypes[0]}', f'timm{dtypes[1]}'


def plot_accuracy(ours: dict[str, Points], theirs: dict[str, Points], config: TrainConfig, out: Path) -> None:
    """Write a PNG with one line per run."""
    mine, timms = sides(config)
    figure = new_figure(6, 4)
    axis = figure.subplots()
    for curves, colour, what in ((ours, 'C0', mine), (theirs, 'C1', f'{timms}, PyTorch')):
        for i, points in enumerate(curves.values()):
            steps, values = zip(*points, strict=True)
            axis.plot(steps, 100 * np.asarray(values), '.-', color=colour, alpha=0.7, label=what if i == 0 else None)
    axis.set_xlabel('step')
    axis.set_ylabel(f'{METRICS[config.rating]} on the validation images, percent')
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, out.with_suffix('.png'), dpi=120)


def main(runs: Annotated[list[Path], tyro.conf.Positional], seeds: list[int], out: Path = Path('comparison')) -> int:
    """Train timm's model once per seed, print the final accuracies, and write OUT.json and OUT.png.

    Args:
        runs: folders of our runs, with the same configuration except for the seed.
        seeds: seeds of timm's runs.
        out: path of the two files without suffix.
    """
    try:
        configs = [load_config(run) for run in runs]
        check_configs(configs)
        ours = {str(config.seed): our_points(run, config.rating) for run, config in zip(runs, configs, strict=True)}
        theirs, seconds = {}, {}
        for seed in seeds:
            began = time.monotonic()
            theirs[str(seed)] = train_timm(dataclasses.replace(configs[0], seed=seed))
            seconds[str(seed)] = time.monotonic() - began
        dtypes = {'ours': configs[0].dtype, 'timm': TIMM_DTYPE}
        document = {'ours': ours, 'timm': theirs, 'dtypes': dtypes, 'seconds_of_timm': seconds}
        save_text(out.with_suffix('.json'), json.dumps(document, indent=1))
        plot_accuracy(ours, theirs, configs[0], out)
    except ValueError as error:
        return fail(error)
    for what, curves in zip(sides(configs[0]), (ours, theirs), strict=True):
        last = [100 * points[-1][1] for points in curves.values()]
        print(f'{what}: {", ".join(f"{value:.2f}" for value in last)} %, mean {np.mean(last):.2f} %')
    return 0


if __name__ == '__main__':
    sys.exit(tyro.cli(main, prog=program_name()))
