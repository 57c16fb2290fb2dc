"""The configuration of a training run: one frozen dataclass, saved with the run; every field is a flag."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

from tresnet_jax.errors import TrainingError
from tresnet_jax.files import save_text

CONFIG_FILE = 'config.json'


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, and how. Names and defaults are those of timm's train.py where it has them."""

    # Model
    model: str = 'resnet50d'
    """An architecture, with a tag if its weights are wanted."""
    pretrained: bool = False
    """Start from the weights of the tag."""
    checkpoint: Path | None = None
    """Start from the weights of this file, or of this folder of an earlier run."""
    num_classes: int | None = None
    """Classes of the classifier; None is as many as the data has."""
    new_head: bool = False
    """Draw a new classifier even where the weights have one for as many classes."""
    abn_slope: float | None = None
    """Of TResNet's leaky ReLUs; None is what the weights were trained with, or timm's 1e-3."""
    drop: float = 0.0
    """Dropout before the classifier."""
    drop_path: float = 0.0
    """Stochastic depth of the last block."""
    sync_bn: bool = True
    """Share the statistics of batch norm over all devices."""
    dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
    """Of the computation; parameters are float32 (float64 for float64)."""
    abn_memory: Literal['plain', 'inplace', 'lean', 'recompute'] = 'plain'
    """What is kept for the backward pass, from most to least for TResNet: plain, inplace, lean; recompute for all."""
    remat: bool = False
    """Compute each block again in the backward pass: least memory, about a third more work."""

    # Data
    data: str = 'embedded:fashion_mnist'
    """tfds:NAME, folder:DIR, npz:FILE or embedded:fashion_mnist."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps its data; None is its own default."""
    train_split: str = 'train'
    val_split: str | None = None
    """None is the split that the data has for it: validation, val or test."""
    val_fraction: float = 0.1
    """Share of a folder without splits that is for validation."""
    image_size: int = 224
    """Edge of the square images in pixels."""
    mean: tuple[float, float, float] | None = None
    """Of each channel, for values in [0, 1]; None is what the model's weights expect."""
    std: tuple[float, float, float] | None = None
    threads: int = 8
    """Threads that decode, in each process."""
    workers: int = 0
    """Processes that decode; 0 leaves it to the threads."""
    max_unreadable: float = 0.01
    """The share of images that may be unreadable; they are skipped and named in unreadable.log."""

    # Augmentation
    crop: Literal['resized', 'pad', 'none'] = 'resized'
    """A random part resized, a shift by up to `padding` pixels, or their middle, always."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of a random part, as a share of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random part."""
    padding: int = 4
    train_interpolation: str = 'random'
    """A filter's name; 'random' is bilinear or bicubic."""
    draft: bool = True
    """Decode a JPEG only as finely as its random part needs: faster, and a little different."""
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    """Brightness, contrast and saturation; not used beside `aa`."""
    aa: str | None = None
    """'original' (AutoAugment for ImageNet) or a RandAugment string such as 'rand-m9-mstd0.5-inc1'."""
    reprob: float = 0.0
    """Probability of random erasing."""
    remode: Literal['const', 'rand', 'pixel'] = 'pixel'
    cutout: float = 0.0
    """Edge of the square that Cutout blanks, as a share of the image's edge."""
    mixup: float = 0.0
    """Alpha of mixup."""
    cutmix: float = 0.0
    """Alpha of CutMix; with both, each batch has one of the two."""
    smoothing: float = 0.1
    """Of the labels."""

    # Evaluation
    interpolation: str = 'bicubic'
    """Filter that images are resized with for evaluation."""
    crop_pct: float = 0.875
    """Edge of the crop over the edge of the resized image."""

    # Optimisation
    opt: Literal['sgd', 'momentum', 'adamw'] = 'sgd'
    """'sgd' is with Nesterov's momentum and 'momentum' without, as in timm."""
    lr: float | None = None
    """The largest learning rate; None is lr_base * batch_size / 256 (its square root for adamw)."""
    lr_base: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2e-5
    """Of kernels alone, not of biases and norms."""
    sched: Literal['cosine', 'one_cycle', 'step', 'constant'] = 'cosine'
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-5
    min_lr: float = 0.0
    decay_epochs: float = 90.0
    """Length of a step of 'step'."""
    decay_rate: float = 0.1
    pct_start: float = 0.1
    """Share of 'one_cycle' in which the rate rises."""
    div_factor: float = 20.0
    """'one_cycle' starts at lr / div_factor."""
    final_div_factor: float = 1e4
    """'one_cycle' ends at its start / final_div_factor."""
    clip_grad: float | None = None
    """Largest norm of all gradients together."""
    accumulate: int = 1
    """Parts that each batch is computed in, one after the other."""
    model_ema: bool = False
    """Keep a moving average of parameters and statistics, and evaluate it too."""
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False
    """Let the decay rise with the steps, for short runs."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are, their batch norm in evaluation mode: backbone, stem, layer1 to layer4, head."""
    layer_decay: float | None = None
    """Factor on the learning rate from each block to the one before it."""

    # Run
    epochs: float = 300.0
    steps: int | None = None
    """Instead of `epochs`."""
    batch_size: int = 256
    """Images in a step, over all devices and hosts."""
    seed: int = 0
    eval_every: float = 1.0
    """Epochs between evaluations; there is one at the end too."""
    eval_at_start: bool = False
    """Evaluate before the first step too."""
    val_batch_size: int | None = None
    """Images in a step of evaluation, over all devices and hosts; None is `batch_size`."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; there is one after each evaluation too."""
    keep_last: int = 2
    keep_best: int = 1
    log_every: int = 50
    """Steps between lines."""
    devices: int | None = None
    """How many devices of this host; None is all. On the CPU, that many virtual ones."""
    deterministic: bool = False
    """The same bits from run to run on GPUs too, where the compiler would choose faster programs."""
    skip_nonfinite: int = 0
    """How many steps with a loss that is not a number may be left out before the run stops."""

    @property
    def peak_lr(self) -> float:
        """The largest learning rate, by timm's rule where none is given."""
        if self.lr is not None:
            return self.lr
        ratio = self.batch_size / 256
        return self.lr_base * (ratio if self.opt in ('sgd', 'momentum') else ratio**0.5)

    def check(self) -> None:
        """Raises TrainingError for a value that cannot work."""
        positive = ('image_size', 'batch_size', 'accumulate', 'log_every', 'checkpoint_every', 'threads', 'keep_last')
        for name in positive:
            self._require(getattr(self, name) >= 1, name, 'at least 1')
        shares = ('drop', 'drop_path', 'smoothing', 'reprob', 'hflip', 'vflip', 'max_unreadable', 'cutout')
        for name in (*shares, 'val_fraction'):
            self._require(0 <= getattr(self, name) <= 1, name, 'between 0 and 1')
        for name in ('lr', 'epochs', 'steps', 'devices', 'layer_decay', 'clip_grad', 'val_batch_size'):
            value = getattr(self, name)
            self._require(value is None or value > 0, name, 'positive')
        for name in ('mixup', 'cutmix', 'weight_decay', 'warmup_epochs', 'workers', 'keep_best', 'skip_nonfinite'):
            self._require(getattr(self, name) >= 0, name, 'not negative')
        self._require(0 <= self.model_ema_decay < 1, 'model_ema_decay', 'at least 0 and less than 1')
        self._require(self.eval_every > 0, 'eval_every', 'positive')

    def _require(self, holds: bool, name: str, what: str) -> None:
        if not holds:
            raise TrainingError(f'--{name.replace("_", "-")} must be {what}, got {getattr(self, name)!r}')


# Where None is filled in from the data and the model at the beginning of a run.
RESOLVED = ('num_classes', 'abn_slope', 'mean', 'std')
# What may be changed when a run goes on, since the weights that come out do not depend on it.
CHANGEABLE = ('devices', 'log_every', 'eval_every', 'checkpoint_every', 'keep_last', 'keep_best', 'skip_nonfinite')
CHANGEABLE += ('threads', 'workers', 'data_dir', 'val_batch_size', 'max_unreadable')


def save_config(config: TrainConfig, workdir: Path) -> None:
    """Write config.json below the run's folder."""
    text = json.dumps(dataclasses.asdict(config), indent=2, default=str) + '\n'
    save_text(workdir / CONFIG_FILE, text)


def load_config(workdir: Path) -> TrainConfig:
    """The configuration of a run.

    Raises:
        TrainingError: there is none, it has keys that are not ours, or values of another type.
    """
    path = workdir / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise TrainingError(f'{path}: not the configuration of a run ({error})') from error
    if not isinstance(values, dict):
        raise TrainingError(f'{path}: expected a JSON object, got {type(values).__name__}')
    types = typing.get_type_hints(TrainConfig)
    unknown = sorted(values.keys() - types.keys())
    if unknown:
        raise TrainingError(f'{path}: unknown keys {", ".join(unknown)}')
    return TrainConfig(**{name: _from_json(path, name, value, types[name]) for name, value in values.items()})


def _from_json(path: Path, name: str, value: Any, kind: Any) -> Any:
    """A JSON value as the field's type: lists are tuples there, and paths are strings."""
    if value is None or typing.get_origin(kind) is Literal:
        allowed = typing.get_args(kind)
        if (value is None and type(None) in allowed) or value in allowed:
            return value
        raise TrainingError(f'{path}: {name} is {value!r}; expected one of {allowed}')
    options = [option for option in typing.get_args(kind) or (kind,) if option is not type(None)]
    if isinstance(value, list):
        return tuple(value)
    for option in options if typing.get_origin(kind) is not tuple else []:
        if option is Path and isinstance(value, str):
            return Path(value)
        if type(value) is option or (option is float and type(value) is int):
            return value
    raise TrainingError(f'{path}: {name} is {value!r}; expected {kind}')
