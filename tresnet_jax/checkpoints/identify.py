"""Identify the architecture of a state dict under timm's names, from its keys and shapes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tresnet_jax.checkpoints.records import printable
from tresnet_jax.checkpoints.structure import (
    STATISTICS,
    Differences,
    Shape,
    architecture_shape,
    differences,
    tensors_shape,
)
from tresnet_jax.variants import ALL_BOTTLENECK, ARCHITECTURES, BASIC, BOTTLENECK, family_of

WIDE = (64, 128, 256, 512)

# Of torch.nn.utils: prune, weight_norm, spectral_norm, parametrize; of PEFT: LoRA.
SPLIT_WEIGHT = re.compile(r'(.*\.)?(weight_(orig|mask|[uvg])|(parametrizations|base_layer|lora_[AB])\..+)')

# Published networks that share a name or the keys with our architectures but are not among them.
FOREIGN = {
    Shape('tresnet', (3, 8, 34, 5), ALL_BOTTLENECK, 64, WIDE): "ML-Decoder's tresnet_xl, another network",
    Shape('tresnet', (3, 4, 6, 3), (BASIC, BASIC, BOTTLENECK, BOTTLENECK), 64, WIDE): "ML-Decoder's tresnet_s",
    Shape('tresnet', (3, 6, 14, 3), ALL_BOTTLENECK, 64, WIDE): "ML-Danbooru's tresnet_d",
    Shape('resnetd', (3, 12, 48, 3), ALL_BOTTLENECK, 32, WIDE): "PaddleClas's ResNet200_vd (3, 12, 48, 3 blocks)",
}


def identify(tensors: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return the likeliest architecture, and whether all keys and shapes but the classifier's are exactly its own.

    Args:
        tensors: timm's key -> anything with a `shape`.

    Returns:
        The architecture, None for neither family; whether it is exact.
    """
    shape = tensors_shape(tensors)
    if shape is None:
        return None, False
    best = min(ARCHITECTURES, key=lambda name: shape.distance(architecture_shape(name)))
    return best, shape == architecture_shape(best) and not any(differences(tensors, shape))


def split_weights(names: Iterable[str]) -> str | None:
    """Return a text if weights are split into several tensors, as by pruning, weight norm or PEFT; None if not."""
    key = next((name for name in names if SPLIT_WEIGHT.fullmatch(name)), None)
    if key is None:
        return None
    return (
        f'a network whose weights are split ({printable(key, 80)}); merge them in its program (prune.remove, '
        "remove_parametrizations, PEFT's merge_and_unload), then: torch.save(model.state_dict(), 'weights.pth')"
    )


def describe(tensors: Mapping[str, Any]) -> str:
    """Return what a state dict looks like, as part of a message; `tensors` as in `identify`."""
    split = split_weights(tensors)
    if split:
        return split
    shape = tensors_shape(tensors)
    if shape is None:
        return _describe_unknown(tensors)
    if shape in FOREIGN:
        return f'{FOREIGN[shape]} that timm does not have'
    best, exact = identify(tensors)
    if exact:
        return str(best)
    other = _other_network(tensors)
    if other:
        return f'{other}, another network'
    if shape != architecture_shape(str(best)):
        truncated = _describe_truncated(tensors, shape)
        if truncated:
            return truncated
        return f'no known architecture; the nearest is {best} (blocks {shape.layers}, stem {shape.stem} wide)'
    found = differences(tensors, shape)
    if found.missing and all(key.endswith(STATISTICS) for key in found.missing):
        every = {key for key in tensors if key.endswith(STATISTICS)} == set()
        return f'{best} with {"no" if every else "too few"} running statistics; save model.state_dict()'
    return f'{best} with differences: {_count(found)}'


def _count(found: Differences) -> str:
    parts = (f'{len(keys)} {what} ({printable(keys[0], 80)}, ...)' for what, keys in found._asdict().items() if keys)
    return ', '.join(parts)


def _describe_truncated(tensors: Mapping[str, Any], shape: Shape) -> str | None:
    """Return which stages are missing of which architectures; None if the others are not exactly theirs."""
    count = shape.layers.index(0) if 0 in shape.layers else 4
    if count == 4 or any(shape.layers[count:]) or any(differences(tensors, shape.first_stages(count))):
        return None
    names = [
        name for name in ARCHITECTURES if architecture_shape(name).first_stages(count) == shape.first_stages(count)
    ]
    missing = ', '.join(f'layer{stage}' for stage in range(count + 1, 5))
    return f'the first part of {" or ".join(names)}, without {missing}' if names else None


def _describe_unknown(tensors: Mapping[str, Any]) -> str:
    stems = [key for key in tensors if key == 'conv1.weight' or key.endswith('.conv1.weight')]
    blocks = [
        key for key in stems if key == 'conv1.weight' or f'{key.removesuffix("conv1.weight")}bn1.weight' in tensors
    ]
    if any(len(tensors[key].shape) == 4 and tensors[key].shape[2:] == (7, 7) for key in blocks):
        return "a plain ResNet's stem; ResNet-D has three convolutions there (timm's resnet50.d_in1k is not a ResNet-D)"
    first = ', '.join(printable(key, 80) for key in sorted(tensors)[:3]) or 'none'
    return f'neither a TResNet nor a ResNet-D (first keys: {first})'


def _other_network(tensors: Mapping[str, Any]) -> str | None:
    """Return the name of a relative of ResNet-D with the same stem; None if it cannot be told."""
    if tensors_shape(tensors) is None or 'conv1.6.weight' not in tensors:
        return None

    def channels(key: str, axis: int) -> int:
        shape = getattr(tensors.get(key), 'shape', ())
        return shape[axis] if len(shape) == 4 else 0

    if any(key.endswith('.se.conv.weight') for key in tensors):
        return "an ECA-ResNet-D (timm's ecaresnet50d)"
    if any('.se.fc1.' in key for key in tensors):
        return "a ResNet-D with squeeze-excite (timm's seresnet152d or resnetrs50)"
    if channels('conv1.0.weight', 0) != channels('conv1.3.weight', 0):
        return "a ResNet-T, whose stem widens (timm's resnet50t)"
    if 'layer2.0.downsample.0.weight' in tensors:
        return "a ResNet-C, whose shortcuts do not pool (timm's resnet50c, OpenMMLab's V1c, Paddle's variant c)"
    second, width = channels('layer1.0.conv2.weight', 1), channels('layer1.0.conv2.weight', 0)
    if 0 < second < width:
        return "a ResNeXt-D, whose convolutions have groups (timm's resnext50d_32x4d)"
    if 'layer1.0.downsample.1.weight' in tensors and 'layer1.0.conv3.weight' not in tensors:
        return 'a ResNet-D of 18 or 34 layers with one more projection, in stage 1 (Paddle, RT-DETR)'
    return None


def image_channels(tensors: Mapping[str, Any], architecture: str) -> int | None:
    """Return the channels of the images; None if the first convolution is missing or has an impossible shape."""
    shape, family = getattr(tensors.get(stem_key(architecture)), 'shape', ()), family_of(architecture)
    if len(shape) != 4 or shape[1] == 0 or shape[1] % family.stem_block**2:
        return None
    return family.in_chans(shape[1])


def stem_key(architecture: str) -> str:
    """Return timm's key of the first convolution's weight."""
    return f'{family_of(architecture).first_conv}.weight'


def head_key(architecture: str) -> str:
    """Return timm's key of the classifier, without the leaf."""
    return family_of(architecture).classifier
