"""The cost of a model: parameters, multiply-accumulates, activations, and FLOPs as counted in timm's model cards.

Nothing is computed or compiled: the forward pass is traced with shapes, and a hook counts the cost of each layer.
"""

import dataclasses
import math
from collections import Counter
from typing import Any

import jax
from flax import nnx

from tresnet_jax.data.transforms import height_width
from tresnet_jax.models.base import PARTS, ImageModel, part_of
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.build import build_model
from tresnet_jax.models.hooks import add_forward_hook
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.models.pooling import AvgPool
from tresnet_jax.variants import family_of, pretrained_config, split_name

COUNTS: tuple[str, ...] = ('parameters', 'macs', 'activations', 'card_flops')
CARD_IMAGE = (1213, 1546)  # height and width of the example image in the cards, pytorch/hub/images/dog.jpg


@dataclasses.dataclass(frozen=True)
class StageProfile:
    """The part of a `Profile` for one stage; `output` is the shape of its output, (h, w, channels) or (channels,)."""

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    activations: int
    card_flops: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """The cost of a forward pass of one image in evaluation mode; ``str()`` is a table.

    timm's own tables (``infer_gmacs``, ``infer_macts``) were counted with fvcore. To both counts it adds TResNet's
    blur, up to 2.5% of the activations; to the MACs it adds pools, and 2 per element of a plain batch norm, up to 1%.

    Attributes:
        architecture: name of the architecture, or of the class for a model that is not in the table.
        image_size: height and width in pixels.
        parameters: number of parameters, without the running statistics of batch norm.
        macs: multiply-accumulates of the convolutions, including squeeze-excite's, and of the linear layer or the
            ML-Decoder. Biases, norms, activations, pools and the blur, whose weights are fixed, are not counted.
        activations: output elements of the convolutions and the linear layers (Radosavovic et al., arXiv:2003.13678).
        card_flops: FLOPs as timm's model cards counted them in 2021. They are close to the MACs, not twice as many; see
            `layer_card_flops`, and `card_image_size` for the image they were counted on.
        stages: the same by stage: stem, layer1 to layer4, head.
    """

    architecture: str
    image_size: tuple[int, int]
    parameters: int
    macs: int
    activations: int
    card_flops: int
    stages: tuple[StageProfile, ...]

    def __str__(self) -> str:
        def numbers(part: StageProfile | Profile) -> list[str]:
            return [f'{getattr(part, count):,}' for count in COUNTS]

        rows = [['', 'output', 'parameters', 'MACs', 'activations', 'card FLOPs']]
        rows += [[part.name, ' x '.join(map(str, part.output)), *numbers(part)] for part in self.stages]
        rows += [['total', '', *numbers(self)]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        height, width = self.image_size
        lines = [f'{self.architecture}, one image of {height} x {width} pixels']
        lines += ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return '\n'.join(lines)


def _inputs_per_output(layer: nnx.Conv | nnx.Linear) -> int:
    """Return the multiply-accumulates per output element; the kernel's last axis is the output's channels."""
    return math.prod(layer.kernel.shape[:-1])


def layer_card_flops(model: ImageModel, layer: nnx.Module, x: Any, y: Any) -> int:
    """Return the FLOPs of a layer as counted in timm's model cards, for one image.

    The rule is that of thop (github.com/Lyken17/pytorch-OpCounter, release 0.0.31) with timm of January 2021. thop
    identifies torch's layers by their exact class: a bias counts as one more input, batch norm as 2 per element, an
    average pool as 1 per output. It skipped timm's own classes: the linear layer, the pool of a dilated shortcut, and
    TResNet's in-place norm with its leaky ReLU. (With today's timm, thop counts the linear layer and the leaky ReLUs.)

    Args:
        model: the model that the layer belongs to.
        layer: the layer.
        x, y: its input and output; only their sizes are used.
    """
    if isinstance(layer, nnx.Conv):
        return y.size * (_inputs_per_output(layer) + int(layer.bias is not None))
    if isinstance(layer, BatchNormAct):
        return 2 * x.size if model.config.family.card_counts_norms else 0
    if isinstance(layer, AvgPool):
        return y.size if layer.stride == 2 else 0
    return 0


def _pool_card_flops(model: ImageModel, features: jax.Array) -> int:
    """Return thop's count of the global pool: an addition per pixel and a division.

    Only 'avg' counts, because it is torch's own class.
    """
    _, height, width, channels = features.shape
    return (height * width + 1) * channels if model.global_pool == 'avg' else 0


def _layer_counts(model: ImageModel, layer: nnx.Module, x: jax.Array, y: jax.Array) -> dict[str, int]:
    """Return the counts of a layer except its parameters."""
    counts = {'card_flops': layer_card_flops(model, layer, x, y)}
    if isinstance(layer, nnx.Conv | nnx.Linear):
        counts |= {'macs': y.size * _inputs_per_output(layer), 'activations': y.size}
    return counts


def _abstract_model(name: str) -> ImageModel:
    """Return the model of a name, with shapes in place of weights."""
    architecture, tagged = split_name(name)
    classes = tagged.num_classes if tagged else 1000
    model = build_model(architecture, num_classes=classes, in_chans=3, rngs=ShapesOnly())
    model.pretrained_cfg = tagged
    return model


def input_size(model: ImageModel) -> tuple[int, int]:
    """Return height and width in pixels of the input size of the model's tag.

    Raises:
        ValueError: the model is not in the table.
    """
    if not model.architecture:
        raise ValueError('a model that is not in the table has no input size: pass image_size')
    _, height, width = (model.pretrained_cfg or pretrained_config(model.architecture)).input_size
    return height, width


def profile(model: ImageModel | str, image_size: int | tuple[int, int] | None = None) -> Profile:
    """Count the cost of a forward pass of one image; ``print(tresnet_jax.profile('resnet50d'))`` shows a table.

    Args:
        model: a model, which is not changed, or a name in the table: 'resnet50d', 'resnet50d.a1_in1k'.
        image_size: height and width in pixels, or one number for both. None: the input size of the model's tag.

    Raises:
        ValueError: the name is unknown, or the model does not support the image size.

    Example:
        >>> import tresnet_jax
        >>> profile = tresnet_jax.profile('test_resnet', image_size=64)
        >>> profile.parameters, profile.macs
        (469688, 16488192)
        >>> profile.stages[-2].output
        (2, 2, 96)
    """
    model = _abstract_model(model) if isinstance(model, str) else model
    height, width = input_size(model) if image_size is None else height_width(image_size, 'image_size')
    graphdef, state = nnx.split(model)
    counts: dict[str, Counter[str]] = {stage: Counter(dict.fromkeys(COUNTS, 0)) for stage in PARTS}

    def forward(state: nnx.State, x: jax.Array) -> dict[str, jax.Array]:
        m = nnx.merge(graphdef, state).eval()  # a copy, so the caller's model keeps its layers and its mode
        add_forward_hook(m, lambda path, layer, x, y: counts[part_of(path)].update(_layer_counts(m, layer, x, y)))
        last, maps = m.forward_intermediates(x)
        outputs = dict(zip(PARTS, maps, strict=False))
        if m.out_indices is None:
            outputs['head'] = m.forward_head(last)
            counts['head'].update(card_flops=_pool_card_flops(m, last))
            if m.ml_decoder is not None:
                macs, activations = m.ml_decoder.products(last.shape[1] * last.shape[2])
                counts['head'].update(macs=macs, activations=activations)
        return outputs

    image = jax.ShapeDtypeStruct((1, height, width, model.in_chans), model.dtype)
    outputs = jax.eval_shape(forward, state, image)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        counts[part_of(path)].update(parameters=math.prod(leaf.shape))
    stages = tuple(StageProfile(s, outputs[s].shape[1:], **counts[s]) for s in PARTS if s in outputs)
    totals = {key: sum(counts[stage][key] for stage in PARTS) for key in COUNTS}
    return Profile(model.architecture or type(model).__name__, (height, width), stages=stages, **totals)


def card_image_size(name: str) -> tuple[int, int]:
    """Return height and width in pixels of the image for which timm's model card of `name` counts FLOPs.

    TResNet's cards count a square image. The ResNets' FLOPs match only the image of the card's example, with its short
    side resized to the input size and without a crop: for resnet50d that is 224 x 285, not the 224 x 224 that the card
    suggests.

    Args:
        name: an architecture, or a name with a tag.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> import tresnet_jax
        >>> tresnet_jax.card_image_size('resnet50d')
        (224, 285)
    """
    config = pretrained_config(name)
    _, height, width = config.input_size
    card_crops = family_of(config.architecture).card_crops
    return (height, width) if card_crops else (height, height * CARD_IMAGE[1] // CARD_IMAGE[0])
