"""The names that other libraries give to the tensors of a ResNet-D, and timm's names for them.

Every network of `LIBRARIES` computes the same function as timm's ResNet-D with the same tensors. Sources of the names:
mmpretrain 1.2, mmdetection 3.3, PaddleClas, PaddleDetection, PaddleSeg 2.8, RT-DETR, transformers 5.24, fastai 2.8 and
1.0.61. TResNets of other repositories have names that timm itself loads (`timm_layouts`).
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np

from tresnet_jax.checkpoints.layout import Layout, Tensor, transposed
from tresnet_jax.checkpoints.timm_layouts import TIMM_LAYOUTS, unchanged

Tensors = dict[str, Tensor]

MOST_BLOCKS = 64  # in a stage; resnet200d has 36
PADDLE_LEAVES = (('_mean', 'running_mean'), ('_variance', 'running_var'))
SQUEEZE_EXCITE = (r'\.(se|se_layer|scale|eca)\.', 'squeeze-excite, which a ResNet-D does not have')


@dataclasses.dataclass(frozen=True)
class Library:
    """How a library names the tensors of a ResNet-D.

    The templates are those of `str.format` and give the name of a layer: a convolution or the batch norm after it.

    * `{part}` is one of `parts`, for the convolution and the batch norm.
    * `{i}` is the number of the layer's pair in the stem or in the block, from 0; `{i1}` from 1; `{abc}` is a letter.
    * `{s}` is the number of the stage, from 0; `{s1}` from 1, and so on.
    * `{b}` is the number of the block in its stage, from 0; `{letter}` is its letter.
    * `{child}` is the index in a Sequential of convolution, batch norm and activation: 0, 1, 3, 4, 6, 7.
    * `{j}` is 0 for a convolution and 1 for a batch norm; `{j1}` is 1 and 2.

    Attributes:
        name: the library.
        signature, body, classifier: see `Layout`.
        stem, block: templates.
        shortcut: template for the projection of stage 1, and of stages in which no pooling precedes it.
        pooled: template for the projection after a pooling, in stages 2 to 4.
        parts: the names of a convolution and of a batch norm.
        blocks: template of blocks, if some have other names than those of `block`.
        leaves: (leaf, timm's leaf) for those that differ from timm's.
        transposed: whether the weight of the classifier is stored as (features, classes).
        prepare: rename tensors so that the templates fit.
        others: (regular expression, reason) of names that only other networks of the library have.
        third_stem: part of the name of the stem's last convolution, which networks with one convolution lack; None if
            the distinctive name of the signature excludes them.
        unseen: networks with the same tensors that compute another function.
    """

    name: str
    signature: tuple[str, ...]
    body: str
    stem: str
    block: str
    shortcut: str
    pooled: str
    parts: tuple[str, str]
    classifier: str | None = None
    blocks: str | None = None
    leaves: tuple[tuple[str, str], ...] = ()
    transposed: bool = False
    prepare: Callable[[Tensors], Tensors] = unchanged
    others: tuple[tuple[str, str], ...] = (SQUEEZE_EXCITE,)
    third_stem: str | None = None
    unseen: tuple[str, ...] = ('other activations', 'dilations')

    @functools.cached_property
    def layers(self) -> dict[str, str]:
        """The name of each layer that a network can have -> timm's name of it."""
        names = {}
        for j, part in enumerate(self.parts):
            numbers = {'part': part, 'j': j, 'j1': j + 1}
            for i in range(3):
                timm = 'bn1' if (i, j) == (2, 1) else f'conv1.{3 * i + j}'
                names[self.stem.format(**numbers, i=i, i1=i + 1, child=3 * i + j)] = timm
            for s in range(4):
                stage = numbers | {f's{add or ""}': s + add for add in range(5)}
                for b in range(MOST_BLOCKS):
                    for i in range(3):
                        block = stage | {'b': b, 'letter': chr(97 + b), 'i': i, 'i1': i + 1, 'abc': 'abc'[i]}
                        timm = f'layer{s + 1}.{b}.{("conv", "bn")[j]}{i + 1}'
                        names[self.block.format(**block)] = timm
                        if self.blocks:
                            names[self.blocks.format(**block)] = timm
                # timm's ResNet-C has its projection at index 0, with nothing before it.
                first = 1 if s == 0 else 0
                names[self.shortcut.format(**stage, b=0, letter='a')] = f'layer{s + 1}.0.downsample.{first + j}'
                if s > 0:
                    names[self.pooled.format(**stage, b=0, letter='a')] = f'layer{s + 1}.0.downsample.{1 + j}'
        return names

    def to_timm(self, tensors: Tensors) -> Tensors:
        """Rename the tensors; see `Layout.to_timm`."""
        for pattern, reason in self.others:
            if any(re.search(pattern, name) for name in tensors):
                raise ValueError(f'a network of {self.name} with {reason}')
        if any(tensor.dtype == np.uint16 for tensor in tensors.values()):
            raise ValueError(f'weights of {self.name} in uint16, as Paddle writes bfloat16; save them as float32')
        leaves, renamed = dict(self.leaves), {}
        for name, tensor in self.prepare(tensors).items():
            owner, _, leaf = name.rpartition('.')
            if owner == self.classifier:
                renamed[f'fc.{leaf}'] = transposed(tensor) if self.transposed and leaf == 'weight' else tensor
            elif owner in self.layers:
                renamed[f'{self.layers[owner]}.{leaves.get(leaf, leaf)}'] = tensor
            else:
                renamed[name] = tensor  # unknown, and reported as unexpected
        return renamed

    def layouts(self) -> tuple[Layout, ...]:
        """Return the layout, and that of the library's networks with a stem of one convolution, which are refused."""
        layout = Layout(self.name, self.signature, self.body, self.to_timm, self.classifier, unseen=self.unseen)
        if self.third_stem is None:
            return (layout,)

        def refuse(tensors: Tensors) -> Tensors:
            raise ValueError(
                f'a ResNet of {self.name} whose stem is one convolution (variants a and b); a ResNet-D has three'
            )

        plain = Layout(f'{self.name}, plain', self.signature[:1], self.body, refuse, absent=(self.third_stem,))
        return layout, plain


def _shift_shortcut(tensors: Tensors) -> Tensors:
    """Name the projection of OpenMMLab's stage 1 as timm does: its index is 0 or 1, and its weight has 4 dimensions."""
    shortcut = 'layer1.0.downsample.'
    weight = tensors.get(f'{shortcut}0.weight')
    if weight is None or len(weight.shape) != 4:
        return tensors
    shifted = {f'{shortcut}0.': f'{shortcut}1.', f'{shortcut}1.': f'{shortcut}2.'}
    start = len(shortcut) + 2
    return {shifted.get(name[:start], name[:start]) + name[start:]: tensor for name, tensor in tensors.items()}


def _number_stages(tensors: Tensors) -> Tensors:
    """'blocks.7.conv0' -> 'blocks.2.0.conv0': PaddleClas counts blocks over all stages, which begin with a `short`."""
    shortcuts = (re.match(r'blocks\.(\d{1,3})\.short\.', name) for name in tensors)
    starts = sorted({0} | {int(match[1]) for match in shortcuts if match})

    def number(match: re.Match[str]) -> str:
        stage = bisect.bisect_right(starts, int(match[1])) - 1
        return f'blocks.{stage}.{int(match[1]) - starts[stage]}.'

    return {re.sub(r'^blocks\.(\d{1,3})\.', number, name): tensor for name, tensor in tensors.items()}


FASTAI_OTHERS = (
    (r'\.2\.running_var$', 'bn_1st=False, which normalises after the activation'),
    (r'^[89]\.', 'six stages (xresnet18_deep and others)'),
    (r'\.(convpath|convs)\.\d\.(layers|gamma|conv)\b', 'squeeze-excite or self-attention (xse_resnet50, sa=True)'),
    (r'^[5-7]\.0\.idpath\.0\.', 'pool_first=False, which pools after the projection'),
)
FASTAI_UNSEEN = ('other activations (act_cls)', 'pool=MaxPool')
OPENMMLAB_UNSEEN = ("style='caffe'", 'dilations')

LIBRARIES = (
    Library(
        'mmpretrain',  # mmcls and mmpose too
        signature=('stem.2.conv.weight', 'stem.0.conv.weight', 'layer1.0.conv1.weight'),
        body=r'stem|layer\d+',
        stem='stem.{i}.{part}',
        block='layer{s1}.{b}.{part}{i1}',
        shortcut='layer{s1}.{b}.downsample.{j1}',
        pooled='layer{s1}.{b}.downsample.{j1}',
        parts=('conv', 'bn'),
        prepare=_shift_shortcut,
        unseen=OPENMMLAB_UNSEEN,
    ),
    Library(
        'mmdetection',  # mmsegmentation too
        signature=('stem.6.weight', 'stem.0.weight', 'stem.3.weight', 'layer1.0.conv1.weight'),
        body=r'stem|layer\d+',
        stem='stem.{child}',
        block='layer{s1}.{b}.{part}{i1}',
        shortcut='layer{s1}.{b}.downsample.{j1}',
        pooled='layer{s1}.{b}.downsample.{j1}',
        parts=('conv', 'bn'),
        prepare=_shift_shortcut,
        unseen=OPENMMLAB_UNSEEN,
    ),
    Library(
        'PaddleClas',
        signature=('blocks.0.conv0.conv.weight', 'stem.0.conv.weight', 'stem.2.conv.weight'),
        body=r'stem|blocks',
        stem='stem.{i}.{part}',
        block='blocks.{s}.{b}.conv{i}.{part}',
        shortcut='blocks.{s}.{b}.short.{part}',
        pooled='blocks.{s}.{b}.short.{part}',
        parts=('conv', 'bn'),
        classifier='fc',
        leaves=PADDLE_LEAVES,
        transposed=True,
        prepare=_number_stages,
        third_stem='stem.2.conv',
        unseen=('other activations',),
    ),
    Library(
        'PaddleDetection',
        signature=('res2.res2a.branch2a.conv.weight', 'conv1.conv1_1.conv.weight', 'conv1.conv1_3.conv.weight'),
        body=r'conv1|res\d+',
        stem='conv1.conv1_{i1}.{part}',
        block='res{s2}.res{s2}{letter}.branch2{abc}.{part}',
        blocks='res{s2}.res{s2}b{b}.branch2{abc}.{part}',  # of stages with more than ten
        shortcut='res{s2}.res{s2}{letter}.short.{part}',
        pooled='res{s2}.res{s2}{letter}.short.conv.{part}',
        parts=('conv', 'norm'),
        leaves=PADDLE_LEAVES,
        third_stem='conv1.conv1_3',
    ),
    Library(
        'PaddleSeg',  # PaddleOCR's text detection too
        signature=('bb_0_0.conv0._conv.weight', 'conv1_1._conv.weight', 'conv1_3._conv.weight'),
        body=r'conv1_\d|bb_\d+_\d+|out',
        stem='conv1_{i1}.{part}',
        block='bb_{s}_{b}.conv{i}.{part}',
        shortcut='bb_{s}_{b}.short.{part}',
        pooled='bb_{s}_{b}.short.{part}',
        parts=('_conv', '_batch_norm'),
        leaves=PADDLE_LEAVES,
        # PaddleClas's ResNet_vc has exactly these names, and a classifier `out`.
        others=(SQUEEZE_EXCITE, (r'^out\.', 'the classifier out, which PaddleClas has in ResNet50_vc, not a ResNet-D')),
        third_stem='conv1_3._conv',
        unseen=("PaddleClas's ResNet50_vc", "the strides of PaddleOCR's text recognition", 'dilations'),
    ),
    Library(
        'RT-DETR',
        signature=(
            'res_layers.0.blocks.0.branch2a.conv.weight',
            'conv1.conv1_1.conv.weight',
            'conv1.conv1_3.conv.weight',
        ),
        body=r'conv1|res_layers',
        stem='conv1.conv1_{i1}.{part}',
        block='res_layers.{s}.blocks.{b}.branch2{abc}.{part}',
        shortcut='res_layers.{s}.blocks.{b}.short.{part}',
        pooled='res_layers.{s}.blocks.{b}.short.conv.{part}',
        parts=('conv', 'norm'),
        third_stem='conv1.conv1_3',
        unseen=('other activations',),
    ),
    Library(
        'transformers RT-DETR',
        signature=(
            'encoder.stages.0.layers.0.layer.0.convolution.weight',
            'embedder.embedder.0.convolution.weight',
            'embedder.embedder.2.convolution.weight',
        ),
        body=r'embedder|encoder',
        stem='embedder.embedder.{i}.{part}',
        block='encoder.stages.{s}.layers.{b}.layer.{i}.{part}',
        shortcut='encoder.stages.{s}.layers.{b}.shortcut.{part}',
        pooled='encoder.stages.{s}.layers.{b}.shortcut.1.{part}',
        parts=('convolution', 'normalization'),
        unseen=('other activations', 'downsample_in_bottleneck'),
    ),
    Library(
        'fastai 2',
        signature=('4.0.convpath.0.0.weight', '0.0.weight', '1.0.weight', '2.0.weight'),
        body=r'\d',
        stem='{i}.{part}',
        block='{s4}.{b}.convpath.{i}.{part}',
        shortcut='{s4}.{b}.idpath.0.{part}',
        pooled='{s4}.{b}.idpath.1.{part}',
        parts=('0', '1'),
        classifier='11',
        others=FASTAI_OTHERS,
        unseen=FASTAI_UNSEEN,
    ),
    Library(
        'fastai 1',
        signature=('4.0.convs.0.0.weight', '0.0.weight', '1.0.weight', '2.0.weight'),
        body=r'\d',
        stem='{i}.{part}',
        block='{s4}.{b}.convs.{i}.{part}',
        shortcut='{s4}.{b}.idconv.{part}',
        pooled='{s4}.{b}.idconv.{part}',
        parts=('0', '1'),
        classifier='10',
        others=FASTAI_OTHERS,
        unseen=FASTAI_UNSEEN,
    ),
)
LAYOUTS = (*TIMM_LAYOUTS, *(layout for library in LIBRARIES for layout in library.layouts()))
