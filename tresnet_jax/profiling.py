"""What a model costs: parameters, multiply-accumulates, activations, and the FLOPs that timm's model cards state.

Nothing is computed or compiled: the forward pass is traced with shapes, and each layer that is called reports its own.
"""

import dataclasses
import math
from collections import Counter
from typing import Any

import jax
from flax import nnx

from tresnet_jax.data.transforms import height_width
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.build import build_model
from tresnet_jax.models.hooks import add_forward_hook
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.models.pooling import AvgPool
from tresnet_jax.variants import family_of, pretrained_config, split_name

STAGES: tuple[str, ...] = ('stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head')
COUNTS: tuple[str, ...] = ('parameters', 'macs', 'activations', 'card_flops')
CARD_IMAGE = (1213, 1546)  # height and width of the image in the cards' example, pytorch/hub/images/dog.jpg


@dataclasses.dataclass(frozen=True)
class StageProfile:
    """One stage's share of a `Profile`; `output` is the shape of what it gives, (h, w, channels) or (channels,)."""

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    activations: int
    card_flops: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """The cost of a forward pass of one image in evaluation mode; ``str()`` is a table.

    timm's own tables (``infer_gmacs``, ``infer_macts``) were counted with fvcore. It adds TResNet's blur to both, up to
    2.5% of the activations, and to the MACs pools and 2 for each element through a plain batch norm, up to 1%.

    Attributes:
        architecture: the name of its row in the table, or of its class if it has none.
        image_size: height and width in pixels.
        parameters: trainable numbers; the running statistics of batch norm are not among them.
        macs: multiply-accumulates of the convolutions, squeeze-excite's too, and of the linear layer. Biases, batch
            norm, activations, pools and the blur, whose weights are fixed, count nothing.
        activations: elements that the convolutions and the linear layer give (Radosavovic et al., arXiv:2003.13678).
        card_flops: what the model cards of timm in 2021 call FLOPs. They are near the MACs, not twice them; see
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


def profile(model: ImageModel | str, image_size: int | tuple[int, int] | None = None) -> Profile:
    """Count what one image costs: ``print(tresnet_jax.profile('resnet50d'))``.

    Args:
        model: a model, which is left as it is, or a name of the table: 'resnet50d', 'resnet50d.a1_in1k'.
        image_size: height and width in pixels, or one number for both; None is the input size of the model's tag.

    Raises:
        ValueError: the name is unknown, or the model cannot take images of this size.
    """
    model = _abstract_model(model) if isinstance(model, str) else model
    height, width = input_size(model) if image_size is None else height_width(image_size, 'image_size')
    graphdef, state = nnx.split(model)
    counts: dict[str, Counter[str]] = {stage: Counter(dict.fromkeys(COUNTS, 0)) for stage in STAGES}

    def forward(state: nnx.State, x: jax.Array) -> dict[str, jax.Array]:
        m = nnx.merge(graphdef, state).eval()  # a new model, so the caller's keeps its layers and its mode
        add_forward_hook(m, lambda path, layer, x, y: counts[_stage(path)].update(_layer_counts(m, layer, x, y)))
        last, maps = m.forward_intermediates(x)
        outputs = dict(zip(STAGES, maps, strict=False))
        if m.out_indices is None:
            outputs['head'] = m.forward_head(last)
            counts['head'].update(card_flops=_pool_card_flops(m, last))
        return outputs

    image = jax.ShapeDtypeStruct((1, height, width, model.in_chans), model.dtype)
    outputs = jax.eval_shape(forward, state, image)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        counts[_stage(path)].update(parameters=math.prod(leaf.shape))
    stages = tuple(StageProfile(s, outputs[s].shape[1:], **counts[s]) for s in STAGES if s in outputs)
    totals = {key: sum(counts[stage][key] for stage in STAGES) for key in COUNTS}
    return Profile(model.architecture or type(model).__name__, (height, width), stages=stages, **totals)


def card_image_size(name: str) -> tuple[int, int]:
    """Height and width in pixels of the image on which the FLOPs in timm's model card of `name` were counted.

    TResNet's was a square. The ResNets' fit one image alone: that of the card's example, its short side resized to
    the input size and nothing cropped. So those of resnet50d are at 224 x 285, not at the 224 x 224 the card suggests.

    Raises:
        ValueError: the name is unknown.
    """
    config = pretrained_config(name)
    _, height, width = config.input_size
    card_crops = family_of(config.architecture).card_crops
    return (height, width) if card_crops else (height, height * CARD_IMAGE[1] // CARD_IMAGE[0])


def layer_card_flops(model: ImageModel, layer: nnx.Module, x: Any, y: Any) -> int:
    """What a layer adds to the model cards' FLOPs, from its input x and output y for one image.

    The rule is that of thop (github.com/Lyken17/pytorch-OpCounter, release 0.0.31) on timm of January 2021. It knows
    torch's layers by their exact class: a bias is one more input, batch norm 2 for each element, an average pool 1 for
    each output. It passed over what timm had of its own: the linear layer, the pool of a dilated shortcut, and
    TResNet's in-place norm with its leaky ReLU. (On today's timm it counts the linear layer and the leaky ReLUs.)
    """
    if isinstance(layer, nnx.Conv):
        return y.size * (_inputs_per_output(layer) + int(layer.bias is not None))
    if isinstance(layer, BatchNormAct):
        return 2 * x.size if model.config.family.card_counts_norms else 0
    if isinstance(layer, AvgPool):
        return y.size if layer.stride == 2 else 0
    return 0


def _pool_card_flops(model: ImageModel, features: jax.Array) -> int:
    """thop's count of the global pool: an addition for each pixel and a division, for torch's own class, 'avg'."""
    _, height, width, channels = features.shape
    return (height * width + 1) * channels if model.global_pool == 'avg' else 0


def _layer_counts(model: ImageModel, layer: nnx.Module, x: jax.Array, y: jax.Array) -> dict[str, int]:
    counts = {'card_flops': layer_card_flops(model, layer, x, y)}
    if isinstance(layer, nnx.Conv | nnx.Linear):
        counts |= {'macs': y.size * _inputs_per_output(layer), 'activations': y.size}
    return counts


def _inputs_per_output(layer: nnx.Conv | nnx.Linear) -> int:
    """Multiply-accumulates for each element of the output; the kernel's last axis is the output's channels."""
    return math.prod(layer.kernel.shape[:-1])


def _stage(path: tuple[Any, ...]) -> str:
    """The stage that a layer or a parameter belongs to, by its path in the model."""
    if path[0] in ('head', 'fc'):
        return 'head'
    return next((part for part in path if part in STAGES), 'stem')


def _abstract_model(name: str) -> ImageModel:
    """The model of a name, whose weights are shapes."""
    architecture, tagged = split_name(name)
    classes = tagged.num_classes if tagged else 1000
    model = build_model(architecture, num_classes=classes, in_chans=3, rngs=ShapesOnly())
    model.pretrained_cfg = tagged
    return model


def input_size(model: ImageModel) -> tuple[int, int]:
    """Height and width in pixels of the images that the model's tag was made with.

    Raises:
        ValueError: the model is not of the table.
    """
    if not model.architecture:
        raise ValueError('a model that is not of the table has no input size: pass image_size')
    _, height, width = (model.pretrained_cfg or pretrained_config(model.architecture)).input_size
    return height, width
