"""Grad-CAM, which shows the pixels that support a class (Selvaraju et al., arXiv:1610.02391), and its heat maps.

`grad_cam` gives a map of the size of a feature map. `heat_map` scales it to an image, as pytorch-grad-cam does,
and `overlay` draws it over the image.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from tresnet_jax.models.base import PARTS, ImageModel
from tresnet_jax.models.block import ResidualBlock
from tresnet_jax.models.layers import at_least_float32
from tresnet_jax.plotting import colours

LAYERS = PARTS[1:-1]  # the stages
WEAKEST, STRONGEST = 0.1, 0.7  # opacity of a heat map over an image, where the heat is 0 and 1


def grad_cam(model: ImageModel, images: Any, classes: Any = None, *, layer: str = LAYERS[-1]) -> jax.Array:
    """Return how much each pixel of a feature map supports a class, at least 0.

    The result is ReLU(sum over the channels of weight * feature); the weight of a channel is the mean gradient of the
    logit with respect to it. The model runs in evaluation mode, whatever its own mode, and is not changed. Works under
    ``jax.jit``, with every pooling and with an ML-Decoder.

    Args:
        model: a model with a classifier.
        images: (B, H, W, in_chans), normalised.
        classes: indices of the classes: one for all images, (B,) one for each, or (B, K) several for each.
            None: the likeliest class of each image.
        layer: the stage whose output is the feature map, 'layer1' to 'layer4'. Earlier maps have more pixels and say
            less about the class.

    Returns:
        (B, h, w), or (B, K, h, w) for K classes of each image; float32, or float64 for a float64 model. The values are
        not scaled; those of `heat_map` go from 0 to 1.

    Raises:
        ValueError: the model has no classifier, a class is not one of the model's, or the layer is unknown.

    Example:
        >>> import jax, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> x = jax.random.normal(jax.random.key(0), (2, 64, 96, 3))
        >>> jax.jit(tresnet_jax.grad_cam)(model, x).shape
        (2, 2, 3)
    """
    if not model.num_classes or model.out_indices is not None:
        raise ValueError('Grad-CAM needs a model with a classifier; this one returns features')
    if layer not in LAYERS:
        raise ValueError(f'unknown layer {layer!r}; expected one of {", ".join(LAYERS)}')
    copy = nnx.merge(*nnx.split(model))
    copy.eval()
    (features,) = copy.forward_intermediates(images, [1 + LAYERS.index(layer)], intermediates_only=True)

    def rest(x: jax.Array) -> jax.Array:
        for later in LAYERS[LAYERS.index(layer) + 1 :]:
            (blocks,) = copy.part(later)
            for block in cast(Sequence[ResidualBlock], blocks):
                x = block(x, None)
        return copy.forward_head(x)

    logits, pullback = jax.vjp(rest, features)
    chosen = logits.argmax(-1) if classes is None else _checked(classes, *logits.shape)
    wanted = jax.nn.one_hot(chosen.reshape(len(logits), -1), model.num_classes, dtype=logits.dtype)
    (gradients,) = jax.vmap(pullback, in_axes=1, out_axes=1)(wanted)  # (B, K, h, w, channels)
    weights = at_least_float32(gradients).mean((2, 3))
    maps = jnp.einsum('bhwc,bkc->bkhw', at_least_float32(features), weights, precision='highest')
    return jax.nn.relu(maps).reshape(*chosen.shape, *maps.shape[2:])


def _checked(classes: Any, batch: int, num_classes: int) -> jax.Array:
    """Return the indices of classes, (B,) or (B, K). Raises ValueError; the values of a traced array are unknown."""
    chosen = jnp.asarray(classes)
    if not jnp.issubdtype(chosen.dtype, jnp.integer):
        raise ValueError(f'classes must be whole numbers, got {chosen.dtype}')
    if chosen.shape[:1] not in ((), (batch,)) or chosen.ndim > 2:
        raise ValueError(f'classes must be one number, ({batch},) or ({batch}, K), got the shape {chosen.shape}')
    if not isinstance(chosen, jax.core.Tracer) and bool(((chosen < 0) | (chosen >= num_classes)).any()):
        raise ValueError(f'classes must be from 0 to {num_classes - 1}, got {np.asarray(chosen).tolist()}')
    return jnp.broadcast_to(chosen, (batch,)) if chosen.ndim == 0 else chosen


def heat_map(cam: Any, height: int, width: int) -> np.ndarray:
    """Scale one map of `grad_cam` to an image: (h, w) -> (height, width) float32, from 0 to 1.

    As in pytorch-grad-cam, the smallest value becomes 0 and the largest 1, before and after the bilinear resizing. A
    map of one value, such as that of a new model, becomes 0.
    """
    small = Image.fromarray(_to_unit(np.asarray(cam, np.float32)))
    return _to_unit(np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)))


def _to_unit(values: np.ndarray) -> np.ndarray:
    values = values - values.min()
    return values / (1e-7 + values.max())


def overlay(image: Any, heat: np.ndarray) -> Image.Image:
    """Draw a heat map over an image in grey. Needs Matplotlib (extra `plot`).

    Args:
        image: a PIL image, or (height, width, 3) uint8.
        heat: (height, width), from 0 to 1, of the image's size.

    Raises:
        ValueError: the sizes differ.
        MissingExtraError: (a ValueError) Matplotlib is not installed.
    """
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    if image.size[::-1] != heat.shape:
        raise ValueError(f'the heat map has {heat.shape} pixels, but the image has {image.size[::-1]}')
    grey = np.asarray(image.convert('L').convert('RGB'), np.float32)
    opacity = (WEAKEST + (STRONGEST - WEAKEST) * heat)[:, :, None]
    return Image.fromarray(np.rint(grey * (1 - opacity) + colours(heat) * opacity).astype(np.uint8))
