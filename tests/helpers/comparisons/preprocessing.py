"""Pixels of prepared images, data configurations, default tags."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

import functools
import itertools
from typing import Any

import numpy as np
import timm

from tests.helpers import timm_transforms
from tests.helpers.comparisons.registry import EXACT, comparison, differing, error_of
from tests.helpers.reference import TIMM_ARCHITECTURES, TIMM_TAGS
from tests.helpers.timm_transforms import timm_transform
from tresnet_jax import variants
from tresnet_jax.data import transforms

# Images whose edges and configurations whose crops round to halves of a pixel.
IMAGES = ('coffee.png', '257x303', '33x31', '225x313', '160x169')
CONFIGS = (
    ('tresnet_m.miil_in1k', {}),  # bilinear, 256 -> 224
    ('resnet50d.a1_in1k', {}),  # 235.8 -> 224
    ('resnet101d.ra2_in1k', {}),  # 269.5 -> 256; half of the margin, 6.5, is rounded to even
    ('resnet50d.ra2_in1k', {'input_size': (3, 160, 225)}),  # a rectangle
    ('resnet50d.ra2_in1k', {'input_size': (3, 160, 225), 'crop_pct': 1.13}),  # a border of 9.5
    ('resnet50d.ra2_in1k', {'crop_mode': 'squash'}),
)


@functools.cache
def timm_pixels(config_index: int, image: str) -> np.ndarray:
    name, changes = CONFIGS[config_index]
    config = {**timm_config(name, False), **changes}
    return timm_transform(timm_transforms.images()[image], **config)


@functools.cache
def data_config(config_index: int) -> dict[str, Any]:
    name, changes = CONFIGS[config_index]
    return {**transforms.resolve_data_config(name), **changes}


@comparison('test_transforms.test_the_transform_of_every_tag', EXACT)
def pixels() -> float:
    errors = []
    for index, image in itertools.product(range(len(CONFIGS)), IMAGES):
        x = transforms.create_transform(**data_config(index))(timm_transforms.images()[image])
        errors.append(error_of(x, timm_pixels(index, image)))
    return max(errors)


@functools.cache
def timm_config(name: str, use_test_size: bool) -> dict[str, Any]:
    return timm_transforms.timm_config(name, use_test_size)


@comparison('test_transforms.test_resolve_data_config', EXACT)
def data_configs() -> float:
    """Return how many fields of the tags' configurations differ."""
    return sum(
        differing(transforms.resolve_data_config(name, use_test_size), timm_config(name, use_test_size))
        for name, use_test_size in itertools.product(TIMM_TAGS, (False, True))
    )


@functools.cache
def timm_default_tags() -> dict[str, str | None]:
    configs = {name: timm.models.get_pretrained_cfg(name) for name in TIMM_ARCHITECTURES}
    return {name: config.tag for name, config in configs.items() if config is not None}


@comparison('test_variants.test_the_default_tag_is_timms', EXACT)
def default_tags() -> float:
    ours_ = {name: variants.pretrained_config(name).tag for name in TIMM_ARCHITECTURES}
    return differing(ours_, timm_default_tags())
