"""The configuration of a training run: one frozen dataclass. It is saved with the run, and every field is a flag."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

from tresnet_jax.errors import TrainingError, reason
from tresnet_jax.files import save_text

CONFIG_FILE = 'config.json'


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run. Names and defaults are those of timm's train.py where it has them."""

    # Model
    model: str = 'resnet50d'
    """Architecture, with a tag to select pretrained weights."""
    pretrained: bool = False
    """Start from the pretrained weights of the tag."""
    checkpoint: Path | None = None
    """Start from the weights of this file or training run."""
    num_classes: int | None = None
    """Number of classes. Default: that of the data."""
    new_head: bool = False
    """Draw a new classifier even if the weights have one with the right number of classes."""
    abn_slope: float | None = None
    """Slope of TResNet's leaky ReLUs. Default: that of the weights, or timm's 1e-3."""
    drop: float = 0.0
    """Dropout rate before the classifier."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block."""
    sync_bn: bool = True
    """Synchronise batch norm statistics over all devices."""
    dtype: Literal['float32', 'bfloat16', 'float64'] = 'float32'
    """Compute dtype. Parameters are float32, or float64 with float64."""
    abn_memory: Literal['plain', 'inplace', 'lean', 'recompute'] = 'plain'
    """What the backward pass keeps, from most to least: plain, inplace, lean for a TResNet; recompute for any model."""
    remat: bool = False
    """Recompute each block in the backward pass: least memory, about a third more work."""

    # Data
    data: str = 'embedded:fashion_mnist'
    """tfds:NAME, folder:DIR, csv:FILE, npz:FILE or embedded:fashion_mnist."""
    data_dir: Path | None = None
    """Folder of TensorFlow Datasets (default: TFDS's own), or the folder that relative paths start from."""
    train_split: str = 'train'
    """Training split, or a part of one: 'train[:500]'. For folder:DIR, also the name of a folder in DIR."""
    val_split: str | None = None
    """Evaluation split, named as --train-split. Default: the validation split, or else the test split."""
    val_fraction: float = 0.1
    """Share of a folder or CSV file without splits that is set aside for validation."""
    max_value: float | None = None
    """White in grey images of more than 8 bits: 4095 for 12 bits in 16-bit files. Default: 65535 in 16 bits."""
    image_size: int = 224
    """Edge of the square images in pixels."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel, for values in [0, 1]. Default: that of the model."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of each channel, for values in [0, 1]. Default: that of the model."""
    threads: int = 8
    """Decoding threads in each process."""
    workers: int = 0
    """Decoding processes; 0: decode in threads of this process."""
    max_unreadable: float = 0.01
    """Largest share of unreadable images, which are skipped and listed in unreadable.log."""

    # Augmentation
    crop: Literal['resized', 'pad', 'none'] = 'resized'
    """resized: resize a random part; pad: shift by up to `padding` pixels; none: the centre."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the area of the random part, as a share of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the width of the random part over its height."""
    padding: int = 4
    """Pixels of border on each side for crop 'pad'."""
    train_interpolation: str = 'random'
    """Filter for resizing; 'random' is bilinear or bicubic."""
    draft: bool = True
    """Decode a JPEG only as finely as its random part needs: faster, with slightly different pixels."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation jitter; ignored with `aa`."""
    aa: str | None = None
    """'original' (AutoAugment for ImageNet) or a RandAugment string such as 'rand-m9-mstd0.5-inc1'."""
    reprob: float = 0.0
    """Probability of random erasing."""
    remode: Literal['const', 'rand', 'pixel'] = 'pixel'
    """Fill of random erasing: the mean colour, one random colour, or a random colour per pixel."""
    cutout: float = 0.0
    """Edge of the Cutout square, as a share of the image's edge; 0: no Cutout."""
    mixup: float = 0.0
    """Alpha of mixup; 0: no mixup."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: no CutMix. With mixup too, each batch gets one of the two."""
    smoothing: float = 0.1
    """Label smoothing."""

    # Evaluation
    interpolation: str = 'bicubic'
    """Filter for resizing images for evaluation."""
    crop_pct: float = 0.875
    """Edge of the crop over the edge of the resized image."""

    # Optimisation
    opt: Literal['sgd', 'momentum', 'adamw'] = 'sgd'
    """Optimiser, named as in timm: 'sgd' has Nesterov momentum, 'momentum' has plain momentum."""
    lr: float | None = None
    """Peak learning rate. Default: lr_base * batch_size / 256, with the square root of the ratio for adamw."""
    lr_base: float = 0.1
    """Learning rate for a batch of 256."""
    momentum: float = 0.9
    """Momentum of 'sgd' and 'momentum'."""
    weight_decay: float = 2e-5
    """Weight decay of kernels; biases and norms have none."""
    sched: Literal['cosine', 'one_cycle', 'step', 'constant'] = 'cosine'
    """Schedule of the learning rate."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up; not used by 'one_cycle'."""
    warmup_lr: float = 1e-5
    """Learning rate at the start of the warm-up."""
    min_lr: float = 0.0
    """Learning rate at the end of 'cosine'."""
    decay_epochs: float = 90.0
    """Epochs between the decays of 'step'."""
    decay_rate: float = 0.1
    """Factor of each decay of 'step'."""
    pct_start: float = 0.1
    """Share of the steps of 'one_cycle' in which the learning rate rises."""
    div_factor: float = 20.0
    """'one_cycle' starts at lr / div_factor."""
    final_div_factor: float = 1e4
    """'one_cycle' ends at its start / final_div_factor."""
    clip_grad: float | None = None
    """Clip the norm of all gradients together to this value. Default: no clipping."""
    accumulate: int = 1
    """Compute each batch in this many parts, one after the other."""
    model_ema: bool = False
    """Keep a moving average of parameters and statistics, and evaluate it too."""
    model_ema_decay: float = 0.9998
    """Decay of the moving average."""
    model_ema_warmup: bool = False
    """Increase the decay over the first steps, for short runs."""
    freeze: tuple[str, ...] = ()
    """Parts to freeze, with their batch norm in evaluation mode: backbone, stem, layer1 to layer4, head."""
    layer_decay: float | None = None
    """Factor on the learning rate from each block to the one before it. Default: one rate for all blocks."""

    # Run
    epochs: float = 300.0
    """Length of the run in epochs."""
    steps: int | None = None
    """Length of the run in steps. Default: `epochs` determines it."""
    batch_size: int = 256
    """Images per step, over all devices and hosts."""
    seed: int = 0
    """Seed of all random numbers."""
    eval_every: float = 1.0
    """Epochs between evaluations; there is always one at the end."""
    eval_at_start: bool = False
    """Also evaluate before the first step."""
    val_batch_size: int | None = None
    """Images per evaluation step, over all devices and hosts. Default: batch_size."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; there is also one after each evaluation."""
    keep_last: int = 2
    """Number of latest checkpoints to keep."""
    keep_best: int = 1
    """Number of checkpoints with the best top-1 to keep."""
    log_every: int = 50
    """Steps between log lines."""
    devices: int | None = None
    """Devices of this host to use; on a CPU, the number of virtual devices. Default: all."""
    deterministic: bool = False
    """Return the same bits on every run on GPUs too, where the compiler might choose faster programs."""
    skip_nonfinite: int = 0
    """Number of steps with a non-finite loss or gradient to skip before the run stops."""

    @property
    def peak_lr(self) -> float:
        """The peak learning rate: `lr`, or timm's rule if it is None."""
        if self.lr is not None:
            return self.lr
        ratio = self.batch_size / 256
        return self.lr_base * (ratio if self.opt in ('sgd', 'momentum') else ratio**0.5)

    def check(self) -> None:
        """Raises TrainingError if a value is out of range."""
        positive = ('image_size', 'batch_size', 'accumulate', 'log_every', 'checkpoint_every', 'threads', 'keep_last')
        for name in positive:
            self._require(getattr(self, name) >= 1, name, 'at least 1')
        shares = ('drop', 'drop_path', 'smoothing', 'reprob', 'hflip', 'vflip', 'max_unreadable', 'cutout')
        for name in (*shares, 'val_fraction'):
            self._require(0 <= getattr(self, name) <= 1, name, 'between 0 and 1')
        for name in ('lr', 'epochs', 'steps', 'devices', 'layer_decay', 'clip_grad', 'val_batch_size', 'max_value'):
            value = getattr(self, name)
            self._require(value is None or value > 0, name, 'positive')
        for name in ('mixup', 'cutmix', 'weight_decay', 'warmup_epochs', 'workers', 'keep_best', 'skip_nonfinite'):
            self._require(getattr(self, name) >= 0, name, 'not negative')
        self._require(0 <= self.model_ema_decay < 1, 'model_ema_decay', 'at least 0 and less than 1')
        self._require(self.eval_every > 0, 'eval_every', 'positive')

    def _require(self, holds: bool, name: str, what: str) -> None:
        if not holds:
            raise TrainingError(f'--{name.replace("_", "-")} must be {what}, got {getattr(self, name)!r}')


# Options whose None is replaced by the value of the data or the model when a run starts.
RESOLVED = ('num_classes', 'abn_slope', 'mean', 'std')
# Options that may change when a run resumes. All but `devices` leave the weights unchanged; each device draws its own
# random numbers.
CHANGEABLE = ('devices', 'log_every', 'eval_every', 'checkpoint_every', 'keep_last', 'keep_best', 'skip_nonfinite')
CHANGEABLE += ('threads', 'workers', 'data_dir', 'val_batch_size', 'max_unreadable')


def save_config(config: TrainConfig, workdir: Path) -> None:
    """Write config.json to the folder of a run.

    Raises:
        ConversionError: the file cannot be written.
    """
    text = json.dumps(dataclasses.asdict(config), indent=2, default=str) + '\n'
    save_text(workdir / CONFIG_FILE, text)


def load_config(workdir: Path) -> TrainConfig:
    """Read config.json from the folder of a run.

    Raises:
        TrainingError: the file is missing or not JSON, or has an unknown key or a value of the wrong type.
    """
    path = workdir / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise TrainingError(f'{path}: not the configuration of a run ({reason(error)})') from error
    if not isinstance(values, dict):
        raise TrainingError(f'{path}: expected a JSON object, got {type(values).__name__}')
    types = typing.get_type_hints(TrainConfig)
    unknown = sorted(values.keys() - types.keys())
    if unknown:
        raise TrainingError(f'{path}: unknown keys {", ".join(unknown)}')
    return TrainConfig(**{name: _from_json(path, name, value, types[name]) for name, value in values.items()})


def _from_json(path: Path, name: str, value: Any, kind: Any) -> Any:
    """Convert a JSON value to the type of its field: a list to a tuple, a string to a Path."""
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
