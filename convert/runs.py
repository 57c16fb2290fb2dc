"""The folder of a training run -> a Checkpoint, its tensors named as our own files name them."""

import json
from pathlib import Path
from typing import Literal

from convert.errors import ConversionError
from convert.layouts import COUNTER, FLAX_FORMAT
from convert.names import flatten, flax_key_to_torch
from convert.read import Checkpoint
from tresnet_jax.hub import split_source
from tresnet_jax.tresnet import SLOPE
from tresnet_jax.variants import split_name


def read_run(path: Path, *, ema: bool = True, step: int | Literal['best', 'latest'] = 'best') -> Checkpoint:
    """The weights of one checkpoint of a run, and what its configuration says of them.

    Raises:
        ConversionError: Orbax is not installed, the configuration is missing or not ours, there is no such
            checkpoint, or it cannot be read.
    """
    try:
        from tresnet_jax.training.checkpoint import load_weights
        from tresnet_jax.training.config import load_config, load_label_names
    except ImportError as error:
        raise ConversionError(
            f"{path}: the folder of a training run, and reading it needs pip install 'tresnet_jax[train]' ({error})"
        ) from None
    try:
        config = load_config(path)
        weights, label_names = load_weights(path, step, ema=ema), load_label_names(path)
        # The weights are no tag's any more. Of a model from the hub the shapes say what it is.
        architecture = '' if split_source(config.model) else split_name(config.model)[0]
    except ValueError as error:
        raise ConversionError(str(error)) from error
    params, stats = flatten(weights.params), flatten(weights.batch_stats)
    training: dict[str, str | int | float] = {'step': weights.step}
    if weights.top1 is not None:
        training['top1'] = weights.top1
    # torch counts batches in each batch norm; here all of them have seen every step.
    norms = [flax_key_to_torch(key).removesuffix('running_var') for key in stats if key.endswith('.var')]
    data_config = {
        'input_size': (3, config.image_size, config.image_size),
        'interpolation': config.interpolation,
        'mean': config.mean,
        'std': config.std,
        'crop_pct': config.crop_pct,
        'crop_mode': 'center',
    }
    return Checkpoint(
        path,
        'run',
        {f'params.{key}': value for key, value in params.items()}
        | {f'batch_stats.{key}': value for key, value in stats.items()},
        {
            'format': FLAX_FORMAT,
            'architecture': architecture,
            'tag': '',
            'num_classes': str(config.num_classes),
            'in_chans': '3',
            'abn_slope': '' if config.abn_slope in (None, SLOPE) else repr(config.abn_slope),
            'data_config': json.dumps(data_config),
            'label_names': json.dumps(label_names or ()),
            COUNTER: json.dumps({norm + COUNTER: weights.step for norm in norms}),
        },
        'ema' if weights.averaged else None,
        weights.has_ema,
        training,
    )
