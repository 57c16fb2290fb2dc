"""The sizes of what the parts run: by level on a GPU, and tiny ones for a trial on a CPU."""

import dataclasses
from typing import Literal

Level = Literal['quick', 'default', 'full']
SECONDS: dict[str, float] = {'quick': 120.0, 'default': 600.0, 'full': 2400.0}  # of the whole check

# By size, so that a part that runs out of time has checked the most.
BY_SIZE = (
    'test_resnet', 'test_tresnet', 'resnet18d', 'resnet26d', 'resnet34d', 'resnet50d', 'tresnet_m', 'resnet101d',
    'tresnet_v2_l', 'tresnet_l', 'resnet152d', 'resnet200d', 'tresnet_xl',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the parts run.

    Attributes:
        architectures: those compared with timm's stored outputs.
        modes_of: those whose gradients are compared between the memory modes.
        peak_of: those whose peak memory is measured in each mode, with `train_batch` images.
        largest_of: those whose largest batch is searched for.
        models: those that are timed, the first also for scaling and the profile.
        dtypes: compute dtypes that are timed.
        image_size: edge of the images in pixels, of all but parity.
        infer_batches, train_batches: batch sizes that are timed, the most important first.
        contenders: which take turns: 'main', 'modes' and 'timm', see `speed.CONTENDING`.
        rounds: rounds in which contenders take turns.
        turn_seconds: duration of a turn.
        deterministic_of: those that are trained twice.
        steps: their training steps.
        seeds: runs of the real training.
        epochs: epochs of the real training; None: those of the recipe, which can be compared with the CPU's.
        stream_bytes: array that measures the memory bandwidth.
        product_edge: edge of the square matrices that measure the arithmetic.
    """

    architectures: tuple[str, ...] = BY_SIZE
    modes_of: tuple[str, ...] = ('test_tresnet', 'tresnet_m', 'test_resnet', 'resnet50d')
    peak_of: tuple[str, ...] = ('tresnet_m', 'resnet50d')
    largest_of: tuple[str, ...] = ()
    models: tuple[str, ...] = ('tresnet_m', 'resnet50d')
    dtypes: tuple[str, ...] = ('bfloat16', 'float32')
    image_size: int = 224
    infer_batches: tuple[int, ...] = (256, 1, 32)
    train_batches: tuple[int, ...] = (128, 32)
    contenders: tuple[str, ...] = ('main', 'modes', 'timm')
    rounds: int = 5
    turn_seconds: float = 0.3
    deterministic_of: tuple[str, ...] = ('test_tresnet',)
    steps: int = 20
    seeds: int = 3
    epochs: float | None = None
    stream_bytes: int = 2**30
    product_edge: int = 8192


QUICK = Sizes(
    architectures=('test_resnet', 'test_tresnet', 'resnet50d', 'tresnet_m'),
    modes_of=('test_tresnet',),
    peak_of=('tresnet_m',),
    models=('tresnet_m',),
    dtypes=('bfloat16',),
    infer_batches=(256,),
    train_batches=(128,),
    contenders=('main',),
    rounds=3,
    turn_seconds=0.1,
    seeds=1,
)
FULL = Sizes(
    peak_of=('tresnet_m', 'tresnet_l', 'tresnet_xl', 'resnet50d'),
    largest_of=('tresnet_m', 'resnet50d', 'tresnet_l', 'tresnet_xl'),
    models=('tresnet_m', 'resnet50d', 'tresnet_l'),
    infer_batches=(256, 1, 8, 32, 128, 512),
    train_batches=(128, 32, 64, 256),
    rounds=7,
    turn_seconds=0.5,
    deterministic_of=('test_tresnet', 'tresnet_m'),
    steps=50,
)
LEVELS = {'quick': QUICK, 'default': Sizes(), 'full': FULL}
TINY = Sizes(
    architectures=('test_resnet', 'test_tresnet'),
    modes_of=('test_tresnet',),
    peak_of=('test_tresnet',),
    models=('test_tresnet',),
    dtypes=('float32',),
    image_size=32,
    infer_batches=(4,),
    train_batches=(4,),
    contenders=('main', 'modes'),
    rounds=1,
    turn_seconds=0.01,
    steps=3,
    seeds=1,
    epochs=0.5,
    stream_bytes=2**20,
    product_edge=128,
)


def sizes_of(level: Level, tiny: bool) -> Sizes:
    """Return the sizes of a level; `tiny` ones are the same on all levels."""
    return TINY if tiny else LEVELS[level]
