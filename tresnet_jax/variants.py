"""The table of variants: one row per architecture, and one per tag of pretrained weights.

Architectures and tags are those of timm 1.0.31 (``timm/models/tresnet.py``, ``timm/models/resnet.py``); accuracies are
from timm's ``results/results-imagenet.csv``, others in `tresnet_jax.published`. `test_tresnet` and the `fashion_mnist`
tags are this package's own.
"""

import dataclasses
import difflib
from typing import Any, ClassVar

from tresnet_jax.published import PublishedAccuracy, published_accuracies

CLASSIFICATION, MULTILABEL = TASKS = ('classification', 'multilabel')  # one class per image, or any number

BASIC, BOTTLENECK = 'basic', 'bottleneck'
ALL_BASIC, ALL_BOTTLENECK = (BASIC, BASIC, BASIC, BASIC), (BOTTLENECK, BOTTLENECK, BOTTLENECK, BOTTLENECK)
EXPANSION = {BASIC: 1, BOTTLENECK: 4}  # output channels of a block divided by its planes


@dataclasses.dataclass(frozen=True)
class Family:
    """Facts about a family of architectures. Names are timm's keys.

    Attributes:
        name: 'tresnet' or 'resnetd'.
        first_conv, classifier: names of the first convolution and of the last linear layer, without the leaf.
        stages: prefix of a stage's name, before its number.
        stem_pattern: timm's regular expression for the names of the stem.
        convolution: suffix of a convolution's name in a block, between 'conv1' and the leaf.
        stem_block: edge, in pixels, of the blocks that space-to-depth moves into the channels; 1 without it.
        input_multiple: number that the height and width of an image must be multiples of.
        min_input: smallest height and width of an image.
        default_slope: default slope of the leaky ReLUs in the blocks; None for ReLUs.
        stem_slope: slope of the stem's leaky ReLU if the blocks have the default slope.
        feature_indices: the feature maps that `features_only` returns by default.
        output_strides: values that `output_stride` may have.
        default_pool: default pooling before the classifier.
        card_crops: whether timm's model cards count FLOPs on a square crop; otherwise on a whole image.
        card_counts_norms: whether those FLOPs include batch norm.
    """

    name: str
    first_conv: str
    classifier: str
    stages: str
    stem_pattern: str
    convolution: str
    stem_block: int
    input_multiple: int
    min_input: int
    default_slope: float | None
    stem_slope: float | None
    feature_indices: tuple[int, ...]
    output_strides: tuple[int, ...]
    default_pool: str
    card_crops: bool
    card_counts_norms: bool

    @property
    def head(self) -> str:
        """timm's name of the module that an ML-Decoder replaces."""
        return self.classifier.partition('.')[0]

    def in_chans(self, first_conv_channels: int) -> int:
        """Return the channels of the images, given the input channels of the first convolution."""
        return first_conv_channels // self.stem_block**2


TRESNET = Family(
    name='tresnet', first_conv='body.conv1.conv', classifier='head.fc', stages='body.layer',
    stem_pattern=r'^body\.conv1', convolution='.conv', stem_block=4, input_multiple=4, min_input=20, default_slope=1e-3,
    stem_slope=1e-2,  # torch's default; the paper's authors did not change it in the stem
    feature_indices=(1, 2, 3, 4), output_strides=(32,), default_pool='fast', card_crops=True, card_counts_norms=False,
)  # fmt: skip
RESNETD = Family(
    name='resnetd', first_conv='conv1.0', classifier='fc', stages='layer', stem_pattern='^conv1|bn1|maxpool',
    convolution='', stem_block=1,
    input_multiple=1, min_input=1, default_slope=None, stem_slope=None, feature_indices=(0, 1, 2, 3, 4),
    output_strides=(8, 16, 32), default_pool='avg', card_crops=False, card_counts_norms=True,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TResNetConfig:
    """A row of TResNet (Ridnik et al., arXiv:2003.13630).

    Attributes:
        layers: number of blocks of each stage.
        width_factor: factor on all widths.
        v2: the second version, which has bottlenecks in all stages.
    """

    family: ClassVar[Family] = TRESNET

    layers: tuple[int, int, int, int]
    width_factor: float = 1.0
    v2: bool = False

    @property
    def planes(self) -> int:
        """Channels of the stem and of layer1's convolutions; only the second version rounds down to a multiple of 8."""
        planes = int(64 * self.width_factor)
        return planes // 8 * 8 if self.v2 else planes

    @property
    def stem_channels(self) -> int:
        """Output channels of the first convolution."""
        return self.planes

    @property
    def blocks(self) -> tuple[str, str, str, str]:
        """Kind of block of each stage."""
        early = BOTTLENECK if self.v2 else BASIC
        return (early, early, BOTTLENECK, BOTTLENECK)

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Planes of each stage."""
        p = self.planes
        return (p, p * 2, p * 4, p * 8)

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return self.channels[3] * EXPANSION[self.blocks[3]]


@dataclasses.dataclass(frozen=True)
class ResNetDConfig:
    """A row of ResNet-D (He et al., arXiv:1812.01187).

    Attributes:
        layers: number of blocks of each stage.
        blocks: kind of block of each stage.
        stem_width: channels of the first convolution.
        channels: planes of each stage.
    """

    family: ClassVar[Family] = RESNETD

    layers: tuple[int, int, int, int]
    blocks: tuple[str, str, str, str]
    stem_width: int = 32
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)

    @property
    def stem_channels(self) -> int:
        """Output channels of the first convolution."""
        return self.stem_width

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return self.channels[3] * EXPANSION[self.blocks[3]]


ArchitectureConfig = TResNetConfig | ResNetDConfig

ARCHITECTURES: dict[str, ArchitectureConfig] = {
    'tresnet_m': TResNetConfig((3, 4, 11, 3)),
    'tresnet_l': TResNetConfig((4, 5, 18, 3), width_factor=1.2),
    'tresnet_xl': TResNetConfig((4, 5, 24, 3), width_factor=1.3),
    'tresnet_v2_l': TResNetConfig((3, 4, 23, 3), v2=True),
    'test_tresnet': TResNetConfig((1, 1, 1, 1), width_factor=0.25),
    'resnet18d': ResNetDConfig((2, 2, 2, 2), ALL_BASIC),
    'resnet26d': ResNetDConfig((2, 2, 2, 2), ALL_BOTTLENECK),
    'resnet34d': ResNetDConfig((3, 4, 6, 3), ALL_BASIC),
    'resnet50d': ResNetDConfig((3, 4, 6, 3), ALL_BOTTLENECK),
    'resnet101d': ResNetDConfig((3, 4, 23, 3), ALL_BOTTLENECK),
    'resnet152d': ResNetDConfig((3, 8, 36, 3), ALL_BOTTLENECK),
    'resnet200d': ResNetDConfig((3, 24, 36, 3), ALL_BOTTLENECK),
    'test_resnet': ResNetDConfig((1, 1, 1, 1), (BASIC, BASIC, BOTTLENECK, BASIC), 16, (32, 48, 48, 96)),
}

# Means and standard deviations of images.
IMAGENET: dict[str, Any] = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
HALF: dict[str, Any] = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
UNIT: dict[str, Any] = {'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0)}


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    """Describes one set of pretrained weights. Fields have timm's names and meaning.

    Sizes are (channels, height, width) in pixels; mean and std are for pixels scaled to [0, 1].

    Attributes:
        embedded: whether the weights come with this package.
        sha256: digest of the embedded file, which is checked when it is loaded.
        label_names: one name per class, for weights of a training run or a saved model. None: `class_names` looks
            them up.
        task: 'classification', one class per image; 'multilabel', any number, with an independent logit for each class.
    """

    architecture: str
    tag: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    accuracies: tuple[PublishedAccuracy, ...] = ()
    input_size: tuple[int, int, int] = (3, 224, 224)
    test_input_size: tuple[int, int, int] | None = None
    crop_pct: float = 0.875
    test_crop_pct: float | None = None
    crop_mode: str = 'center'
    num_classes: int = 1000
    license: str = 'apache-2.0'
    embedded: bool = False
    sha256: str = ''
    label_names: tuple[str, ...] | None = None
    task: str = CLASSIFICATION

    @property
    def name(self) -> str:
        return f'{self.architecture}.{self.tag}'

    def published(self, test_set: str | None = None) -> tuple[PublishedAccuracy, ...]:
        """Return the published accuracies on a test set, a key of `published.TEST_SETS`. None: `accuracies`."""
        return self.accuracies if test_set is None else published_accuracies(self.name, test_set)

    @property
    def hf_hub_id(self) -> str | None:
        """The repository on the Hugging Face hub; None for embedded weights."""
        return None if self.embedded else f'timm/{self.name}'

    @property
    def pool_size(self) -> tuple[int, int]:
        """Height and width of the feature map before pooling."""
        return self.input_size[1] // 32, self.input_size[2] // 32

    @property
    def first_conv(self) -> str:
        """timm's name of the first convolution."""
        return family_of(self.architecture).first_conv

    @property
    def classifier(self) -> str:
        """timm's name of the last linear layer."""
        return family_of(self.architecture).classifier


def _size(pixels: int) -> tuple[int, int, int]:
    return (3, pixels, pixels)


def _miil(name: str, *accuracies: PublishedAccuracy, **fields: Any) -> PretrainedConfig:
    architecture, tag = name.split('.')
    return PretrainedConfig(architecture, tag, interpolation='bilinear', accuracies=accuracies, **UNIT, **fields)


def _timm(
    name: str, *accuracies: PublishedAccuracy, train: int = 224, test: int | None = None, **fields: Any
) -> PretrainedConfig:
    architecture, tag = name.split('.')
    fields = {**IMAGENET, 'interpolation': 'bicubic', 'input_size': _size(train), **fields}
    if test:
        fields['test_input_size'] = _size(test)
    return PretrainedConfig(architecture, tag, accuracies=accuracies, **fields)


def _fashion(architecture: str, top1: float, top5: float, sha256: str, **fields: Any) -> PretrainedConfig:
    return PretrainedConfig(
        architecture, 'fashion_mnist', interpolation='bilinear', input_size=_size(32), crop_pct=1.0, num_classes=10,
        license='mit', embedded=True, sha256=sha256, accuracies=(PublishedAccuracy(32, top1, top5),), **fields,
    )  # fmt: skip


# Short names for the table.
_A = PublishedAccuracy
_CROP_95: dict[str, Any] = {'crop_pct': 0.95, 'test_crop_pct': 1.0}

# The first tag of an architecture is its default tag, as in timm.
PRETRAINED: dict[str, PretrainedConfig] = {row.name: row for row in (
    _miil('tresnet_m.miil_in21k_ft_in1k', _A(224, 83.090, 96.112)),
    _miil('tresnet_m.miil_in21k', num_classes=11221),
    _miil('tresnet_m.miil_in1k', _A(224, 80.816, 94.862)),
    _miil('tresnet_m.miil_in1k_448', _A(448, 81.710, 95.562), input_size=_size(448)),
    _miil('tresnet_l.miil_in1k', _A(224, 81.498, 95.652)),
    _miil('tresnet_l.miil_in1k_448', _A(448, 82.278, 95.988), input_size=_size(448)),
    _miil('tresnet_xl.miil_in1k', _A(224, 82.060, 95.932)),
    _miil('tresnet_xl.miil_in1k_448', _A(448, 83.066, 96.180), input_size=_size(448)),
    _miil('tresnet_v2_l.miil_in21k_ft_in1k', _A(224, 83.910, 96.492)),
    _miil('tresnet_v2_l.miil_in21k', num_classes=11221),
    _timm('resnet18d.ra2_in1k', _A(224, 72.296, 90.682), _A(288, 73.790, 91.834), test=288, test_crop_pct=0.95),
    _timm('resnet18d.ra4_e3600_r224_in1k', _A(224, 74.356, 91.826), _A(288, 76.012, 92.784), test=288,
          crop_pct=0.9, test_crop_pct=1.0, **HALF),
    _timm('resnet26d.bt_in1k', _A(224, 76.698, 93.156), _A(288, 77.422, 93.634), test=288, test_crop_pct=0.95),
    _timm('resnet34d.ra2_in1k', _A(224, 77.108, 93.372), _A(288, 78.440, 94.348), test=288, test_crop_pct=0.95),
    _timm('resnet50d.ra2_in1k', _A(224, 80.546, 95.160), _A(288, 81.354, 95.742), test=288, test_crop_pct=0.95),
    _timm('resnet50d.ra4_e3600_r224_in1k', _A(224, 80.956, 95.380), _A(288, 81.840, 95.926), test=288,
          **_CROP_95, **HALF),
    _timm('resnet50d.a1_in1k', _A(224, 80.730, 94.678), _A(288, 81.466, 95.218), test=288, **_CROP_95),
    _timm('resnet50d.a2_in1k', _A(224, 80.268, 94.642), _A(288, 81.164, 95.100), test=288, **_CROP_95),
    _timm('resnet50d.a3_in1k', _A(160, 77.222, 93.256), _A(224, 78.742, 94.236), train=160, test=224,
          crop_pct=0.95, test_crop_pct=0.95),
    _timm('resnet50d.gluon_in1k', _A(224, 79.080, 94.458)),
    _timm('resnet101d.ra2_in1k', _A(256, 82.254, 96.070), _A(320, 83.020, 96.456), train=256, test=320, **_CROP_95),
    _timm('resnet101d.gluon_in1k', _A(224, 80.466, 95.034)),
    _timm('resnet152d.ra2_in1k', _A(256, 83.160, 96.370), _A(320, 83.684, 96.750), train=256, test=320, **_CROP_95),
    _timm('resnet152d.gluon_in1k', _A(224, 80.476, 95.194)),
    _timm('resnet200d.ra2_in1k', _A(256, 83.250, 96.552), _A(320, 83.976, 96.820), train=256, test=320, **_CROP_95),
    _timm('test_resnet.r160_in1k', _A(160, 41.602, 67.984), train=160, crop_pct=0.95, interpolation='bilinear', **HALF),
    _fashion('test_resnet', 91.99, 99.94, '1a43e681e3f1595219317296256bbc0b542fff3333c1804283dbcfce94ff4d2f', **HALF),
    _fashion('test_tresnet', 88.99, 99.90, '00bcf48c9e2e6949554ee5ad1e7c5a175ca19fc837f4e3ca36f4e1ca83507823', **UNIT),
)}  # fmt: skip

# Names from before timm had tags, including those in its model cards.
ALIASES = {
    'tresnet_m_miil_in21k': 'tresnet_m.miil_in21k',
    'tresnet_m_448': 'tresnet_m.miil_in1k_448',
    'tresnet_l_448': 'tresnet_l.miil_in1k_448',
    'tresnet_xl_448': 'tresnet_xl.miil_in1k_448',
    'gluon_resnet50_v1d': 'resnet50d.gluon_in1k',
    'gluon_resnet101_v1d': 'resnet101d.gluon_in1k',
    'gluon_resnet152_v1d': 'resnet152d.gluon_in1k',
}
# Characters, more than any name has. difflib takes forty times the size of a text, which may come from a file.
LONGEST_NAME = 100


def family_of(architecture: str) -> Family:
    """Return the family of an architecture."""
    return ARCHITECTURES[architecture].family


def split_name(name: str) -> tuple[str, PretrainedConfig | None]:
    """Return the architecture of a name and the row of its tag, if it has one. Aliases are resolved first.

    'resnet50d.a1_in1k' -> ('resnet50d', its row); 'resnet50d' -> ('resnet50d', None).

    Raises:
        ValueError: the architecture or the tag is unknown; the message names similar ones.
    """
    name = ALIASES.get(name, name)[:LONGEST_NAME]
    architecture, _, tag = name.partition('.')
    if architecture not in ARCHITECTURES:
        known = [*ARCHITECTURES, *ALIASES]
        close = difflib.get_close_matches(architecture, known, n=3) or list(ARCHITECTURES)
        raise ValueError(f'unknown architecture {architecture!r}; did you mean {", ".join(close)}?')
    if not tag:
        return architecture, None
    if name not in PRETRAINED:
        known = sorted(row.name for row in PRETRAINED.values() if row.architecture == architecture)
        raise ValueError(f'unknown tag {name!r}; {architecture} has {", ".join(known)}')
    return architecture, PRETRAINED[name]


def pretrained_config(name: str) -> PretrainedConfig:
    """Return the row of a name's tag; a name without one has its architecture's default tag.

    Raises:
        ValueError: the name is unknown.
    """
    architecture, config = split_name(name)
    return config or next(row for row in PRETRAINED.values() if row.architecture == architecture)
