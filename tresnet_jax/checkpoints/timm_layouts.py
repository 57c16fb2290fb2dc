"""The layouts that timm itself loads: its own names, those of parts of its models, and the in-place ABN names."""

import re

import numpy as np

from tresnet_jax.checkpoints.layout import Computed, Layout, Tensor

# The original TResNet repository and timm before 2023 nest convolution, in-place ABN and blur in Sequentials. The
# patterns are applied in this order, as in timm/models/tresnet.py.
IABN_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r'conv(\d+)\.0\.0', r'conv\1.conv'),
        (r'conv(\d+)\.0\.1', r'conv\1.bn'),
        (r'conv(\d+)\.0', r'conv\1.conv'),
        (r'conv(\d+)\.1', r'conv\1.bn'),
        (r'downsample\.(\d+)\.0', r'downsample.\1.conv'),
        (r'downsample\.(\d+)\.1', r'downsample.\1.bn'),
    )
)
IABN_EPSILON = 1e-5  # in-place ABN scales by |gamma| + epsilon, never by gamma
# The children of timm's ResNet with tensors, by their index.
CHILDREN = {'0': 'conv1', '1': 'bn1', '4': 'layer1', '5': 'layer2', '6': 'layer3', '7': 'layer4', '9': 'fc'}
OLD_STEM = ('body.conv1.0.weight', 'body.conv1.1.weight', 'body.layer1.0.conv1.0.weight')


def unchanged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that have timm's names."""
    return tensors


def from_inplace_abn(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the in-place ABN layout to timm's: new names, and |gamma| + 1e-5 for gamma."""
    renamed = {}
    for key, value in tensors.items():
        for pattern, replacement in IABN_NAMES:
            key = pattern.sub(replacement, key)
        renamed[key] = scale(value) if key.endswith('bn.weight') else value
    return renamed


def scale(gamma: Tensor) -> Tensor:
    """Return |gamma| + 1e-5, by which in-place ABN multiplies."""
    # 16 bits would round 1e-5 away.
    dtype = np.promote_types(gamma.dtype, np.float32)
    return Computed(gamma.shape, dtype, lambda: np.abs(gamma.numpy()).astype(dtype) + dtype.type(IABN_EPSILON))


def _from_features_only(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace('body_', 'body.', 1): value for key, value in tensors.items()}


def _from_children(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of `torch.nn.Sequential(*model.children())` of a ResNet-D."""
    renamed = {}
    for key, value in tensors.items():
        first, _, rest = key.partition('.')
        renamed[f'{CHILDREN.get(first, first)}.{rest}'] = value
    return renamed


def _from_body(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f'body.{key}': value for key, value in tensors.items()}


def _refuse_plain_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    raise ValueError(
        'a TResNet under the names of in-place ABN, but with counters of batch norm: plain batch norm and unknown '
        'activations, as in ML-Danbooru'
    )


def _refuse_frelu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    raise ValueError("ML-Danbooru's TResNet with FReLU (depthwise_conv_bn), another network")


INPLACE_ABN = Layout(
    'inplace_abn',
    signature=OLD_STEM,
    body='body',
    to_timm=from_inplace_abn,
    classifier='head.fc',
    absent=('num_batches_tracked', 'depthwise_conv_bn'),
)

TIMM_LAYOUTS = (
    Layout(
        'timm',
        signature=('conv1.6.weight', 'conv1.0.weight', 'conv1.3.weight', 'layer1.0.conv1.weight'),
        body=r'conv\d+|bn\d+|layer\d+|maxpool',
        to_timm=unchanged,
        classifier='fc',
    ),
    Layout(
        'timm',
        signature=('body.conv1.conv.weight', 'body.layer1.0.conv1.conv.weight'),
        body='body',
        to_timm=unchanged,
        classifier='head.fc',
    ),
    Layout(
        'timm features_only',
        signature=('body_conv1.conv.weight', 'body_layer1.0.conv1.conv.weight'),
        body=r'body_\w+',
        to_timm=_from_features_only,
    ),
    Layout(
        'timm body',  # of a TResNet, or the children of the whole
        signature=('conv1.conv.weight', 'layer1.0.conv1.conv.weight'),
        body=r'conv\d+|layer\d+',
        to_timm=_from_body,
    ),
    Layout(
        'timm children',  # of a ResNet-D
        signature=('4.0.conv1.weight', '0.0.weight', '0.3.weight', '0.6.weight'),
        body=r'[0-8]',
        to_timm=_from_children,
        classifier='9',
    ),
    INPLACE_ABN,
    Layout(
        'inplace_abn with plain batch norm',
        signature=(*OLD_STEM, 'body.conv1.1.num_batches_tracked'),
        body='body',
        to_timm=_refuse_plain_norms,
        absent=('depthwise_conv_bn',),
    ),
    Layout(
        'inplace_abn with FReLU',
        signature=('body.conv1.2.depthwise_conv_bn.0.weight', 'body.conv1.0.weight'),
        body='body',
        to_timm=_refuse_frelu,
    ),
)
