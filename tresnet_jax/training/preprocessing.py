"""Options of a run whose default is the model's: how images are prepared for evaluation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tresnet_jax.data.transforms import OPTIONS
from tresnet_jax.training.config import TrainConfig

IMAGE_OPTIONS = ('image_size', *OPTIONS)
# Fixed defaults of development versions of 0.1.0, which a config.json without these keys had.
FORMER_DEFAULTS = {'image_size': 224, 'interpolation': 'bicubic', 'crop_pct': 0.875, 'crop_mode': 'center'}


def open_images(config: TrainConfig) -> list[str]:
    """Return the names of the options IMAGE_OPTIONS that are None."""
    return [name for name in IMAGE_OPTIONS if getattr(config, name) is None]


def with_images_of(config: TrainConfig, data_config: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration, in which the options IMAGE_OPTIONS that are None have the values of a model.

    This is what timm's `resolve_data_config` does with the arguments of its script.

    Args:
        config: the configuration.
        data_config: how images are prepared for the model, as our `resolve_data_config` returns it.
    """
    _, height, width = data_config['input_size']
    values = {**data_config, 'image_size': height if height == width else (height, width)}
    return dataclasses.replace(config, **{name: values[name] for name in open_images(config)})
