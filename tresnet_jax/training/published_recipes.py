"""Published recipes: how the weights of each tag were trained, as far as that is known, one row per tag.

A row separates published values, listed by source, from values that are unknown and chosen here, listed by reason. The
accuracies are those of the published weights; none was reproduced here.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tresnet_jax.training.config import TrainConfig
from tresnet_jax.variants import PRETRAINED

Values = dict[str, Any]  # values of fields of TrainConfig
Groups = Mapping[str, Values]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named configuration.

    Attributes:
        name: the name, a tag for published weights.
        summary: what it trains, as text.
        result: the accuracy that it reached here, or that is published.
        published: source -> values of fields of TrainConfig.
        chosen: reason -> values that are not published for these weights. Other fields have their defaults.
        left_out: parts of the published recipe that TrainConfig lacks.
    """

    name: str
    summary: str
    result: str
    published: Groups = dataclasses.field(default_factory=dict)
    chosen: Groups = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def config(self) -> TrainConfig:
        """Return the configuration."""
        rows = (*self.published.values(), *self.chosen.values())
        return TrainConfig(**{name: value for row in rows for name, value in row.items()})

    def describe(self, config: TrainConfig) -> dict[str, Any]:
        """Return where the values of a configuration that began with this recipe come from, to be printed.

        Fields that have their defaults are not listed.
        """
        mine = self.config()
        changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(mine, f.name)]

        def kept(groups: Groups) -> dict[str, list[str]]:
            return {why: [name for name in values if name not in changed] for why, values in groups.items()}

        return {
            'name': self.name,
            'summary': self.summary,
            'result': self.result,
            'published': kept(self.published),
            'our_choice': kept(self.chosen),
            'left_out': list(self.left_out),
            'changed_by_flags': changed,
        }


def _tag(
    name: str,
    summary: str,
    published: Groups,
    chosen: Groups,
    *,
    left_out: tuple[str, ...] = (),
    note: str = '',
    start: str | None = None,
) -> Recipe:
    """Return the recipe of a tag, with its preprocessing of images.

    Args:
        name: the tag.
        summary, published, chosen, left_out: as in `Recipe`.
        note: more about the result.
        start: the tag whose weights the training starts from; None: from scratch.
    """
    row = PRETRAINED[name]
    images: Values = {
        'image_size': row.input_size[1], 'interpolation': row.interpolation, 'crop_pct': row.crop_pct,
        'mean': row.mean, 'std': row.std,
    }  # fmt: skip
    begin: Values = {'model': start or row.architecture, 'pretrained': start is not None}
    begin['data'] = 'folder:imagenet21k' if row.num_classes > 1000 else 'tfds:imagenet2012'
    accuracy = ', '.join(f'{a.top1:.2f} % top-1 at {a.size} pixels' for a in row.accuracies) or 'no accuracy is'
    return Recipe(
        name,
        summary,
        f'{accuracy} published, not reproduced here{note}',
        {**published, 'the tag in timm 1.0.31': images},
        {**chosen, 'to begin with': begin},
        left_out,
    )


_AMP: dict[str, Values] = {'published with mixed precision in float16': {'dtype': 'bfloat16'}}
_FASTER: dict[str, Values] = {'for speed': {'dtype': 'bfloat16'}}
_TIMM: dict[str, Values] = {"timm's train.py by default": {'prefetcher': True, 'sched_on_updates': False}}

# TResNet, by MIIL.

_CARD = "timm's model card"
_PAPER = 'Ridnik et al., arXiv:2003.13630'
_README = 'README of github.com/Alibaba-MIIL/TResNet'
_IMAGENET21K = 'train_semantic_softmax.py of github.com/Alibaba-MIIL/ImageNet21K'

_TRESNET: dict[str, Values] = {
    _CARD: {'epochs': 300, 'opt': 'momentum', 'lr': 0.01, 'momentum': 0.9, 'weight_decay': 1e-4, 'aa': 'original'},
    _PAPER: {'sched': 'one_cycle'},
}
_TRESNET_CHOSEN: dict[str, Values] = {
    'published without a value': {'cutout': 0.5, 'smoothing': 0.1},
    f'as {_IMAGENET21K}': {'pct_start': 0.1, 'div_factor': 20.0, 'final_div_factor': 1e4},
    "as in the authors' code for MS-COCO": {'model_ema': True, 'model_ema_decay': 0.9997},
    'as in evaluation': {'train_interpolation': 'bilinear'},
    **_FASTER,
}


def _tresnet(name: str) -> Recipe:
    chosen = {'unknown; timm has 0.4 for this batch (--lr 0.4), the card 0.01 for an unknown one': {'batch_size': 1024}}
    return _tag(name, 'From scratch: SGD, one-cycle, AutoAugment, Cutout', _TRESNET, chosen | _TRESNET_CHOSEN)


def _tresnet_448(name: str) -> Recipe:
    return _tag(
        f'{name}_448',
        'The weights of 224 pixels, trained on at 448 pixels',
        _TRESNET,
        {'unknown': {'batch_size': 256}, **_TRESNET_CHOSEN},
        left_out=('the length of the fine-tuning, which the paper does not give; the card repeats that of 224 pixels',),
        start=name,
    )


def _in21k(name: str, start: str | None) -> Recipe:
    published: dict[str, Values] = {
        _IMAGENET21K: {
            'epochs': 80, 'opt': 'adam', 'opt_betas': (0.9, 0.999), 'opt_eps': 1e-8, 'lr': 3e-4, 'weight_decay': 1e-4,
            'sched': 'one_cycle', 'pct_start': 0.1, 'div_factor': 20.0, 'final_div_factor': 1e4, 'loss': 'semantic',
            'smoothing': 0.2, 'crop': 'pad', 'padding': 0, 'hflip': 0.0, 'color_jitter': 0.0, 'cutout': 0.5,
        },
    }  # fmt: skip
    chosen: dict[str, Values] = {
        '64 images on each of an unknown number of GPUs': {'batch_size': 512},
        "nearest to the package randaugment of the authors' code": {'aa': 'rand-m9-n2-p0.5-mstd101'},
        'as in evaluation': {'train_interpolation': 'bilinear'},
        "the authors' file, which is a download": {'semantic_tree': Path('imagenet21k_miil_tree.pth')},
        **_AMP,
    }
    left_out = ('ImageNet-1k weights to start from, which are not published',) if start is None else ()
    summary = 'ImageNet-21k, 11,221 classes of fall 2011: Adam, one-cycle, whole images squashed to a square'
    return _tag(name, summary, published, chosen, left_out=left_out, start=start)


def _from_21k(name: str) -> Recipe:
    chosen: dict[str, Values] = {
        'nothing is published; as for fine-tuning': {
            'epochs': 20, 'batch_size': 512, 'opt': 'sgd', 'lr': 0.02, 'weight_decay': 1e-4, 'warmup_epochs': 1,
            'warmup_lr': 1e-4, 'smoothing': 0.1, 'aa': 'rand-m9-mstd0.5-inc1', 'train_interpolation': 'bilinear',
            'model_ema': True,
        },
        **_FASTER,
    }  # fmt: skip
    start = f'{PRETRAINED[name].architecture}.miil_in21k'
    return _tag(name, 'ImageNet-1k from the weights of ImageNet-21k', {}, chosen, start=start)


# ResNet-D, by timm.

_TAGS = "timm's table of tags"
_RA_COMMAND = "nearest published: timm's command for EfficientNet-B2 with RandAugment"
_MOBILENET = 'nearest published: MobileNetV4-S in tensorflow/models, which the blog starts from'


def _ra2(name: str) -> Recipe:
    published: dict[str, Values] = {
        _TAGS: {'opt': 'rmsproptf', 'sched': 'step', 'sched_on_updates': False, 'model_ema': True},
    }
    chosen: dict[str, Values] = {
        _RA_COMMAND: {
            'opt_eps': 1e-3, 'opt_kwargs': ('alpha=0.9',), 'momentum': 0.9, 'lr': 0.016, 'batch_size': 256,
            'decay_rate': 0.97, 'decay_epochs': 2.4, 'warmup_lr': 1e-6, 'epochs': 450, 'weight_decay': 1e-5,
            'smoothing': 0.1, 'aa': 'rand-m9-mstd0.5', 'reprob': 0.2, 'remode': 'pixel', 'model_ema_decay': 0.9999,
        },
        'published without a value': {'warmup_epochs': 5},
        "timm's train.py by default": {'prefetcher': True},
        **_AMP,
    }  # fmt: skip
    return _tag(name, 'RandAugment, RMSProp, step decay, moving average', published, chosen)


def _ra4(name: str) -> Recipe:
    published: dict[str, Values] = {
        "timm's blog 'MobileNet Baselines' and the name of the tag": {'opt': 'adamw', 'epochs': 3600},
    }
    chosen: dict[str, Values] = {
        'beta1 is published in the blog, beta2 is not': {'opt_betas': (0.6, 0.999)},
        _MOBILENET: {
            'lr': 2e-3, 'batch_size': 4096, 'opt_eps': 1e-6, 'weight_decay': 0.01, 'sched': 'cosine',
            'warmup_epochs': 5, 'smoothing': 0.1, 'aa': 'rand-m9-p0.5', 'drop': 0.3, 'model_ema': True,
            'model_ema_decay': 0.9999,
        },
        **_TIMM,
        **_AMP,
    }  # fmt: skip
    return _tag(name, '3,600 epochs of RandAugment with AdamW', published, chosen)


_RSB = 'Wightman et al., arXiv:2110.00476 (RSB), and mmpretrain'


def _rsb(name: str, summary: str, note: str = '', left_out: tuple[str, ...] = (), **values: Any) -> Recipe:
    """Return a procedure of ResNet strikes back; `values` are those in which the three differ."""
    shared: Values = {
        'opt': 'lamb', 'opt_betas': (0.9, 0.999), 'opt_eps': 1e-6, 'opt_kwargs': ('max_grad_norm=1',),
        'batch_size': 2048, 'sched': 'cosine', 'warmup_epochs': 5, 'warmup_lr': 1e-4, 'min_lr': 1e-6, 'loss': 'bce',
        'bce_target_thresh': 0.2, 'cutmix': 1.0, 'mixup_prob': 1.0, 'mixup_switch_prob': 0.5, 'mixup_mode': 'batch',
        'reprob': 0.0, 'color_jitter': 0.0, 'drop': 0.0, 'model_ema': False, 'hflip': 0.5,
        'train_interpolation': 'bicubic',
    }  # fmt: skip
    published: dict[str, Values] = {_RSB: shared | values}
    left_out += ('10 epochs at min_lr, which timm then added by default; whether RSB counts them is unknown',)
    return _tag(name, summary, published, {**_TIMM, **_AMP}, note=note, left_out=left_out)


_GLUON_SCRIPT = 'resnet50_v1d-mixup.sh of dmlc/web-data, gluon-cv'
_GLUON: Values = {
    'opt': 'sgd', 'momentum': 0.9, 'weight_decay': 1e-4, 'sched': 'cosine', 'sched_on_updates': True, 'min_lr': 0.0,
    'warmup_epochs': 5, 'warmup_lr': 0.0, 'epochs': 200, 'smoothing': 0.1, 'mixup': 0.2, 'mixup_off_epoch': 0,
    'scale': (0.08, 1.0), 'hflip': 0.5, 'color_jitter': 0.4,
}  # fmt: skip
_GLUON_LEFT_OUT = ('noise along the principal components of colours',)
_GLUON_CHOSEN: dict[str, Values] = {'not in the script': {'train_interpolation': 'bilinear'}}

_ROWS = (
    *map(_tresnet, ('tresnet_m.miil_in1k', 'tresnet_l.miil_in1k', 'tresnet_xl.miil_in1k')),
    *map(_tresnet_448, ('tresnet_m.miil_in1k', 'tresnet_l.miil_in1k', 'tresnet_xl.miil_in1k')),
    _in21k('tresnet_m.miil_in21k', 'tresnet_m.miil_in1k'),
    _in21k('tresnet_v2_l.miil_in21k', None),
    *map(_from_21k, ('tresnet_m.miil_in21k_ft_in1k', 'tresnet_v2_l.miil_in21k_ft_in1k')),
    *(_ra2(f'resnet{depth}d.ra2_in1k') for depth in (18, 34, 50, 101, 152, 200)),
    *map(_ra4, ('resnet18d.ra4_e3600_r224_in1k', 'resnet50d.ra4_e3600_r224_in1k')),
    _tag(
        'resnet26d.bt_in1k',
        'Nesterov momentum, cosine',
        {_TAGS: {'opt': 'sgd', 'sched': 'cosine'}},
        {
            "nearest published: timm's command for SE-ResNeXt-26-D": {
                'lr': 0.1, 'batch_size': 224, 'epochs': 160, 'weight_decay': 1e-4, 'reprob': 0.4, 'remode': 'pixel',
                'warmup_epochs': 5,
            },
            **_TIMM,
            **_FASTER,
        },
    ),
    _rsb('resnet50d.a1_in1k', 'RSB A1: LAMB, binary cross entropy, 600 epochs', '; RSB: 80.4 % for ResNet-50',
         epochs=600, lr=5e-3, weight_decay=0.01, smoothing=0.1, drop_path=0.05, aug_repeats=3, mixup=0.2,
         aa='rand-m7-mstd0.5-inc1'),
    _rsb('resnet50d.a2_in1k', 'RSB A2: LAMB, binary cross entropy, 300 epochs', '; RSB: 79.8 % for ResNet-50',
         epochs=300, lr=5e-3, weight_decay=0.02, smoothing=0.0, drop_path=0.05, aug_repeats=3, mixup=0.1,
         aa='rand-m7-mstd0.5-inc1'),
    _rsb('resnet50d.a3_in1k', 'RSB A3: LAMB, binary cross entropy, 100 epochs at 160 pixels',
         '; RSB: 78.1 % for ResNet-50',
         ('evaluation at 224 pixels while training; evaluate.py --test-size evaluates at them',),
         epochs=100, lr=8e-3, weight_decay=0.02, smoothing=0.0, drop_path=0.0, aug_repeats=0, mixup=0.1,
         aa='rand-m6-mstd0.5-inc1'),
    _tag(
        'resnet50d.gluon_in1k',
        'Bag of Tricks (He et al., arXiv:1812.01187): mixup, cosine, label smoothing',
        {_GLUON_SCRIPT: {**_GLUON, 'lr': 0.4, 'batch_size': 1024}},
        {**_GLUON_CHOSEN, **_AMP},
        left_out=_GLUON_LEFT_OUT,
        note='; its script: 79.15 %, and 78.48 % for 120 epochs without mixup (--epochs 120 --mixup 0)',
    ),
    _tag(
        'resnet101d.gluon_in1k',
        'Bag of Tricks: mixup, cosine, label smoothing',
        {'table of results in dmlc/web-data': {'epochs': 200, 'weight_decay': 1e-4}},
        {
            'its script is not stored; as resnet152d': {
                **{name: value for name, value in _GLUON.items() if name not in ('epochs', 'weight_decay')},
                'lr': 0.1, 'batch_size': 256, 'dtype': 'float32',
            },
            **_GLUON_CHOSEN,
        },
        left_out=_GLUON_LEFT_OUT,
        note='; in gluon-cv: 80.51 %',
    ),
    _tag(
        'resnet152d.gluon_in1k',
        'Bag of Tricks: mixup, cosine, label smoothing',
        {'resnet152_v1d-mixup.sh of dmlc/web-data, gluon-cv': {
            **_GLUON, 'lr': 0.1, 'batch_size': 256, 'dtype': 'float32',
        }},
        _GLUON_CHOSEN,
        left_out=_GLUON_LEFT_OUT,
        note='; in gluon-cv: 80.61 %',
    ),
    _tag(
        'test_resnet.r160_in1k',
        'A tiny network at 160 pixels',
        {},
        {
            'nothing but the size is published': {
                'epochs': 100, 'batch_size': 1024, 'opt': 'sgd', 'lr': 0.4, 'weight_decay': 2e-5, 'warmup_epochs': 5,
                'smoothing': 0.1, 'train_interpolation': 'bilinear',
            },
            **_FASTER,
        },
    ),
)  # fmt: skip

_README_COMMAND = Recipe(
    'tresnet_m_imagenet_timm',
    "TResNet-M, the command in the original README, which runs timm's train.py",
    '80.5 % top-1 at 224 pixels published, not reproduced here',
    {
        _README: {
            'epochs': 300, 'opt': 'sgd', 'lr': 0.6, 'batch_size': 1520, 'sched': 'cosine', 'mixup': 0.2,
            'aa': 'rand-m9-mstd0.5-inc1', 'reprob': 0.4, 'remode': 'pixel', 'model_ema': True,
        },
    },
    {
        'to begin with': {'model': 'tresnet_m', 'data': 'tfds:imagenet2012'},
        "timm's defaults of today, not those of 2020": {
            'weight_decay': 2e-5, 'warmup_epochs': 5.0, 'warmup_lr': 1e-5, 'min_lr': 0.0, 'smoothing': 0.1,
        },
        'as for the weights in timm': {'interpolation': 'bilinear', 'image_size': 224, 'crop_pct': 0.875},
        **_TIMM,
        **_AMP,
    },
)  # fmt: skip

_USI = Recipe(
    'tresnet_m_usi',
    'TResNet-M from scratch with TResNet-L (V2) as its teacher: AdamW, mixup and CutMix, 300 epochs',
    '82.5 % top-1 at 224 pixels published, not reproduced here',
    {
        'Ridnik et al., arXiv:2204.03475 (USI), and github.com/Alibaba-MIIL/Solving_ImageNet': {
            'epochs': 300, 'cooldown_epochs': 10, 'opt': 'adamw', 'lr': 2e-3, 'batch_size': 1024, 'weight_decay': 0.02,
            'sched': 'cosine', 'warmup_epochs': 5, 'warmup_lr': 1e-4, 'min_lr': 1e-6, 'smoothing': 0.0, 'mixup': 0.8,
            'cutmix': 1.0, 'aa': 'rand-m7-mstd0.5-inc1', 'model_ema': True, 'model_ema_decay': 0.99996,
            'train_interpolation': 'bicubic', 'interpolation': 'bicubic', 'task_loss_weight': 1.0,
            'distill_loss_weight': 5.0, 'kd_temperature': 1.0,
        },
    },
    {
        'to begin with': {'model': 'tresnet_m', 'data': 'tfds:imagenet2012'},
        'as for the weights of TResNet in timm': {'image_size': 224, 'crop_pct': 0.875},
        'its published weights': {'kd_model_name': 'tresnet_v2_l.miil_in21k_ft_in1k'},
        **_TIMM,
        **_AMP,
    },
)  # fmt: skip

_COCO: Values = {
    'task': 'multilabel', 'image_size': 448, 'loss': 'asl', 'asl_gamma_neg': 4.0, 'asl_gamma_pos': 0.0,
    'asl_clip': 0.05, 'asl_reduction': 'sum', 'asl_focal_gradient': False, 'opt': 'adam', 'lr': 1e-4,
    'weight_decay': 1e-4, 'sched': 'one_cycle', 'pct_start': 0.2, 'div_factor': 25, 'final_div_factor': 1e4,
    'model_ema': True, 'model_ema_decay': 0.9997, 'cutout': 0.5, 'hflip': 0.0, 'crop': 'pad', 'padding': 0,
    'crop_mode': 'squash', 'crop_pct': 1.0, 'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0),
}  # fmt: skip
_COCO_CHOSEN: dict[str, Values] = {
    "nearest to the package randaugment of the authors' code": {'aa': 'rand-m9-n2-p0.5-mstd101'},
    'unknown': {'train_interpolation': 'bilinear', 'interpolation': 'bilinear'},
    **_AMP,
}
_COCO_LEFT_OUT = ("Adam's beta1 from 0.95 to 0.85 and back, as torch's one-cycle schedule moves it",)
_COCO_ROWS = (
    Recipe(
        'coco_asl',
        'TResNet-L on MS-COCO 2014 at 448 pixels, from ImageNet-21k (--checkpoint FILE): asymmetric loss',
        '86.6 % mAP (TResNet-M at 224 pixels: 81.8 %) published, not reproduced here',
        {
            'Ridnik et al., arXiv:2009.14119, and train.py of github.com/Alibaba-MIIL/ASL': {
                **_COCO, 'epochs': 80, 'stop_epoch': 40,
            },
        },
        {
            'to begin with': {'model': 'tresnet_l', 'data': 'coco:COCO'},
            "that of 448 pixels is unknown; the script's default": {'batch_size': 128},
            **_COCO_CHOSEN,
        },
        _COCO_LEFT_OUT,
    ),
    Recipe(
        'coco_ml_decoder',
        'TResNet-L (V2) with the ML-Decoder head on MS-COCO 2014 at 448 pixels, from ImageNet-21k (--checkpoint FILE)',
        '90.1 % mAP (TResNet-M at 224 pixels: 84.2 %) published, not reproduced here',
        {
            'Ridnik et al., arXiv:2111.12933, and train.py of github.com/Alibaba-MIIL/ML_Decoder': {
                **_COCO, 'model': 'tresnet_v2_l', 'head': 'ml_decoder', 'epochs': 40, 'batch_size': 56,
            },
        },
        {'to begin with': {'data': 'coco:COCO'}, **_COCO_CHOSEN},
        _COCO_LEFT_OUT,
    ),
)  # fmt: skip

PUBLISHED: dict[str, Recipe] = {row.name: row for row in (*_ROWS, _README_COMMAND, _USI, *_COCO_ROWS)}
