"""The evaluation transform of one image, bit for bit timm's (``timm/data/transforms_factory.py``).

Pillow does the resizing, because the published accuracies were measured with its filters, which round to whole grey
levels; `jax.image.resize` differs from them by up to two levels.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tresnet_jax.data.images import MODES, pixels_of, planes
from tresnet_jax.variants import IMAGENET, PretrainedConfig, pretrained_config

CROP_MODES = ('center', 'squash', 'border')
OPTIONS = ('interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')  # of `create_transform`, beside input_size
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
}


def draw_interpolation(name: str, rng: np.random.Generator) -> Image.Resampling:
    """Return Pillow's filter of a name; for 'random', bilinear or bicubic."""
    return INTERPOLATIONS[('bilinear', 'bicubic')[rng.integers(2)]] if name == 'random' else INTERPOLATIONS[name]


def resolve_data_config(source: Any, use_test_size: bool = False) -> dict[str, Any]:
    """Return the arguments of `create_transform` that prepare images as the weights expect.

    ``timm.data.resolve_data_config`` returns the same values under the same keys. If the model takes another number of
    channels than its tag, the result has that number, and mean and std are averages over the tag's, as in timm's
    scripts.

    Args:
        source: a model, a model's name ('resnet50d.a1_in1k', or 'resnet50d' for its default tag), or a row of the
            table of pretrained weights. A model without a row gets timm's defaults: ImageNet's mean and std, bicubic,
            224.
        use_test_size: return the size and crop of the best published accuracy, if they differ from training's.

    Returns:
        input_size (channels, height, width), interpolation, mean, std, crop_pct, crop_mode.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> import tresnet_jax
        >>> config = tresnet_jax.resolve_data_config('resnet50d.a1_in1k', use_test_size=True)
        >>> config['input_size'], config['crop_pct'], config['interpolation']
        ((3, 288, 288), 1.0, 'bicubic')
    """
    if isinstance(source, str):
        source = pretrained_config(source)
    row = source if isinstance(source, PretrainedConfig) else source.pretrained_cfg
    if row is None:
        row = PretrainedConfig('', '', IMAGENET['mean'], IMAGENET['std'], 'bicubic')
    test_size, test_crop_pct = (row.test_input_size, row.test_crop_pct) if use_test_size else (None, None)
    config = {
        'input_size': test_size or row.input_size,
        'interpolation': row.interpolation,
        'mean': row.mean,
        'std': row.std,
        'crop_pct': test_crop_pct or row.crop_pct,
        'crop_mode': row.crop_mode,
    }
    return for_channels(config, getattr(source, 'in_chans', config['input_size'][0]))


def for_channels(config: dict[str, Any], channels: int) -> dict[str, Any]:
    """Return arguments of `create_transform` for images with a number of channels, as timm's scripts adapt them."""
    size = (channels, *config['input_size'][-2:])
    return config | {'input_size': size} | {name: per_channel(config[name], channels) for name in ('mean', 'std')}


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value for each channel: the values, or their average if their number differs."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resize, crop, normalise: image -> (height, width, channels) float32. Made by `create_transform`."""

    height: int
    width: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    channels: int = 3

    @property
    def data_config(self) -> dict[str, Any]:
        """The arguments of `create_transform`, in the form of `resolve_data_config`."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {'input_size': (self.channels, self.height, self.width), **values}

    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Return the prepared image.

        Raises:
            ValueError: as `crop_image`.
        """
        # Rounded to float32 three times, in torchvision's order: to_tensor's division, normalize's two steps.
        x = np.asarray(self.crop_image(image), np.float32) / np.float32(255)
        return (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def crop_image(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Resize and crop only: image -> (height, width, channels) uint8.

        Args:
            image: a PIL image; with another number of channels than 1 and 3 an array, (H, W, channels) uint8.

        Raises:
            ValueError: an image of another kind; or a long, thin one would be resized beyond Pillow's limit for images.
        """
        fill = tuple(round(255 * value) for value in self.mean) if self.crop_mode == 'border' else (0,) * self.channels
        if self.channels not in MODES:
            parts = planes(image, self.channels)
            return pixels_of([self._resize_crop(part, fill[i : i + 1]) for i, part in enumerate(parts)])
        if not isinstance(image, Image.Image):
            raise ValueError(f'expected a PIL image, got {type(image).__name__}')
        mode = MODES[self.channels]
        return pixels_of([self._resize_crop(image if image.mode == mode else image.convert(mode), fill)])

    def _resize_crop(self, image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
        width, height = self._resized(image.width, image.height)
        if width * height > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
            size = f'{image.width} x {image.height}'
            raise ValueError(f'an image of {size} pixels would be resized to {width} x {height}')
        return self._crop(image.resize((width, height), INTERPOLATIONS[self.interpolation]), fill)

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return which part of an image of this size is in the crop: left, top, right and bottom, in its pixels."""
        resized = self._resized(width, height)
        lows = [-_offset(size, target) for size, target in zip(resized, (self.width, self.height), strict=True)]
        left, right = (min(max(edge, 0), resized[0]) * width / resized[0] for edge in (lows[0], lows[0] + self.width))
        top, bottom = (min(max(edge, 0), resized[1]) * height / resized[1] for edge in (lows[1], lows[1] + self.height))
        return left, top, right, bottom

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height after resizing. The crop takes the middle `crop_pct` of both."""
        to_height, to_width = math.floor(self.height / self.crop_pct), math.floor(self.width / self.crop_pct)
        if self.crop_mode == 'squash':
            return to_width, to_height
        if self.crop_mode == 'center' and to_height == to_width:
            # torchvision's Resize: the short edge fits, the long edge is truncated to whole pixels.
            short, long = min(width, height), max(width, height)
            resized_long = int(to_width * long / short)
            return (to_width, resized_long) if width <= height else (resized_long, to_width)
        # timm's ResizeKeepRatio: the image covers the target ('center') or fits into it ('border'). timm fails if an
        # edge of a thin image is rounded to 0 pixels; here it has 1.
        choose = max if self.crop_mode == 'border' else min
        ratio = choose(height / to_height, width / to_width)
        return max(round(width / ratio), 1), max(round(height / ratio), 1)

    def _crop(self, image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
        """Cut out the middle of the image, padded with the colour `fill`."""
        cropped = Image.new(image.mode, (self.width, self.height), fill)
        cropped.paste(image, (_offset(image.width, self.width), _offset(image.height, self.height)))
        return cropped


def _offset(size: int, target: int) -> int:
    """Return the position of an image of `size` pixels in a frame of `target` pixels that shows its middle."""
    # As in torchvision: the border of a smaller image is floored, the cut of a larger image is rounded half to even.
    return (target - size) // 2 if size < target else -round((size - target) / 2)


def height_width(size: Any, name: str, *, channels: bool = False) -> tuple[int, int]:
    """Return height and width in pixels of an image size: one number for both, or (height, width).

    Args:
        size: the size as the caller gave it.
        name: name of the caller's argument, for the error message.
        channels: accept (channels, height, width) too, the form of timm's `input_size`.

    Raises:
        ValueError: `size` has another form, or is not positive.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
    first: tuple[Any, ...] = ()
    if channels and len(sizes) == 3:
        first, sizes = sizes[:1], sizes[1:]
    try:
        height, width = map(operator.index, sizes)
        smallest = min(height, width, *map(operator.index, first))
    except (TypeError, ValueError):  # not two numbers, or not whole ones
        height = width = smallest = 0
    if smallest < 1:
        forms = '(height, width) or (channels, height, width)' if channels else '(height, width)'
        raise ValueError(f'{name} must be a positive number of pixels or {forms}, got {size!r}')
    return height, width


def channels_of(size: Any) -> int:
    """Return the channels of an `input_size` that `height_width` has accepted: 3 if it does not have them."""
    return int(size[0]) if isinstance(size, Sequence) and len(size) == 3 else 3


def create_transform(
    input_size: int | Sequence[int] = 224,
    interpolation: str = 'bilinear',
    mean: Sequence[float] = IMAGENET['mean'],
    std: Sequence[float] = IMAGENET['std'],
    crop_pct: float = 0.875,
    crop_mode: str = 'center',
) -> EvalTransform:
    """Return the transform of ``timm.data.create_transform(..., is_training=False)``, with timm's defaults.

    ``create_transform(**resolve_data_config(model))`` prepares images as the weights of a model expect.

    Args:
        input_size: pixels of a square's edge, (height, width), or (channels, height, width); 3 channels by default.
        interpolation: Pillow's filter: 'nearest', 'bilinear', 'bicubic', 'box', 'hamming' or 'lanczos'.
        mean, std: one value for each channel or for all, for pixels scaled to [0, 1].
        crop_pct: edge of the crop over the edge of the resized image; above 1 the image gets black borders.
        crop_mode: 'center' fits the short edge and cuts the long edge; 'squash' changes the aspect ratio;
            'border' fits the long edge and pads with the mean colour.

    Returns:
        A callable: PIL image of any size and mode -> (height, width, channels) float32 array. The image is converted
        to 'RGB', or for 1 channel to 'L' (grey). For another number of channels, images are (H, W, channels) uint8
        arrays.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import tresnet_jax
        >>> from PIL import Image
        >>> transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config('tresnet_m'))
        >>> x = transform(Image.new('RGB', (500, 375), 'white'))
        >>> x.shape, x.dtype.name, float(x.max())
        ((224, 224, 3), 'float32', 1.0)
    """
    height, width = height_width(input_size, 'input_size', channels=True)
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f'interpolation must be one of {", ".join(INTERPOLATIONS)}, got {interpolation!r}')
    if crop_mode not in CROP_MODES:
        raise ValueError(f'crop_mode must be one of {", ".join(CROP_MODES)}, got {crop_mode!r}')
    if not 0 < crop_pct <= min(height, width):
        raise ValueError(f'crop_pct must be positive and leave at least one pixel, got {crop_pct!r}')
    channels = channels_of(input_size)
    if not {len(mean), len(std)} <= {1, channels} or 0 in std:
        numbers = 'one number' if channels == 1 else f'one or {channels} numbers each'
        raise ValueError(f'mean and std must be {numbers}, std not zero, got {mean!r} and {std!r}')
    means, stds = per_channel(mean, channels), per_channel(std, channels)
    return EvalTransform(height, width, interpolation, means, stds, crop_pct, crop_mode, channels)
