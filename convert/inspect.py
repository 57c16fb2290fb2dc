"""What a checkpoint is, without converting it: ``python -m convert inspect FILE``."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints.layouts import describe, foreign_head, head_key, identify, stem_key, to_timm
from tresnet_jax.checkpoints.read import read
from tresnet_jax.files import sha256
from tresnet_jax.variants import PRETRAINED, family_of

# timm's releases before the hub carry the first eight digits of their SHA-256 in their names, so the digest of a file
# says which one it is whatever it is called now.
RELEASED = {
    'dbc13962': 'tresnet_m.miil_in1k',
    '235b486c': 'tresnet_l.miil_in1k',
    'a2d51b00': 'tresnet_xl.miil_in1k',
    'bc359d10': 'tresnet_m.miil_in1k_448',
    '940d0cd1': 'tresnet_l.miil_in1k_448',
    '8c1815de': 'tresnet_xl.miil_in1k_448',
    'd236afcb': 'tresnet_m.miil_in21k_ft_in1k',
    '901b6ed4': 'tresnet_m.miil_in21k',
    'f36e4445': 'tresnet_v2_l.miil_in21k_ft_in1k',
    '48a79e06': 'resnet18d.ra2_in1k',
    '69e92c46': 'resnet26d.bt_in1k',
    'f8dcfcaf': 'resnet34d.ra2_in1k',
    '464e36ba': 'resnet50d.ra2_in1k',
    'e20cff14': 'resnet50d.a1_in1k',
    'a3adc64d': 'resnet50d.a2_in1k',
    '403fdfad': 'resnet50d.a3_in1k',
    '818a1b1b': 'resnet50d.gluon_in1k',
    '2803ffab': 'resnet101d.ra2_in1k',
    '0f9c8644': 'resnet101d.gluon_in1k',
    '5cac0439': 'resnet152d.ra2_in1k',
    'bd354e12': 'resnet152d.gluon_in1k',
    'bdba9bf9': 'resnet200d.ra2_in1k',
}


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is known of a checkpoint; None is unknown.

    Attributes:
        path, size, sha256: of the file; bytes and hexadecimal digits. Of a run: bytes of its tensors, no digest.
        container: 'safetensors', 'torch' or 'run'; wrapper: the key its state dict is under.
        layout: 'timm', 'inplace_abn' or 'flax'.
        architecture: the likeliest one; exact: whether every block and width is that one's.
        looks_like: the same in words, for what is none of ours.
        tags: the pretrained tags it may be: one where the file itself or its digest says so, else all of the
            architecture with so many classes.
        num_classes, in_chans, head: of the classifier and the stem; head names one that is not timm's.
        tensors, parameters: how many tensors, and numbers in them that are no running statistics or counters.
        dtypes: dtype -> number of tensors.
        ema: whether averaged weights are there; training: what a training script kept beside.
        abn_slope: of the leaky ReLUs, where the file says.
    """

    path: str
    size: int
    sha256: str
    container: str
    wrapper: str | None
    layout: str
    architecture: str | None
    exact: bool
    looks_like: str
    tags: tuple[str, ...]
    num_classes: int | None
    in_chans: int | None
    head: str | None
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    ema: bool
    training: dict[str, Any]
    abn_slope: float | None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __str__(self) -> str:
        rows = [
            ('file', f'{self.path} ({self.size:,} bytes, {self.container})'),
            ('SHA-256', self.sha256 or '-'),
            ('layout', self.layout + (f' under {self.wrapper!r}' if self.wrapper else '')),
            ('looks like', self.looks_like),
            ('tags', ', '.join(self.tags) or '-'),
            ('classes', f'{self.num_classes}' + (f', {self.head}' if self.head else '')),
            ('channels', f'{self.in_chans}'),
            ('tensors', f'{self.tensors} ({", ".join(f"{n} {dtype}" for dtype, n in self.dtypes.items())})'),
            ('parameters', f'{self.parameters:,}'),
            ('averaged', 'yes' if self.ema else 'no'),
            *((key, str(value)) for key, value in self.training.items()),
            *([('slope', f'{self.abn_slope:g}')] if self.abn_slope is not None else []),
        ]
        return '\n'.join(f'{name:<11} {value}' for name, value in rows)


def inspect(path: str | Path) -> Inspection:
    """Look into a checkpoint.

    Raises:
        ConversionError: it cannot be read.
    """
    path = Path(path)
    checkpoint = read(path)
    state = to_timm(checkpoint)
    tensors = state.tensors
    architecture, exact = identify(tensors)
    classes = channels = head = None
    if architecture is not None:
        weight, stem = tensors.get(f'{head_key(architecture)}.weight'), tensors[stem_key(architecture)]
        classes = 0 if weight is None or weight.ndim != 2 else weight.shape[0]
        channels = family_of(architecture).in_chans(stem.shape[1])
        head = foreign_head(tensors, architecture) if exact else None
    digest = sha256(path)
    said = '.'.join(filter(None, [state.metadata.get('architecture'), state.metadata.get('tag')]))
    known = said if said in PRETRAINED else RELEASED.get(digest[:8])
    candidates = (row.name for row in PRETRAINED.values() if row.architecture == architecture)
    tags = (known,) if known else tuple(name for name in candidates if PRETRAINED[name].num_classes == classes)
    exact_tags = tags if exact and checkpoint.container != 'run' else ()  # what was trained on is no tag any more
    statistics = ('.running_mean', '.running_var')
    dtypes: dict[str, int] = {}
    for value in checkpoint.tensors.values():
        dtypes[value.dtype.name] = dtypes.get(value.dtype.name, 0) + 1
    return Inspection(
        path=str(path),
        size=sum(v.nbytes for v in checkpoint.tensors.values()) if path.is_dir() else path.stat().st_size,
        sha256=digest,
        container=checkpoint.container,
        wrapper=checkpoint.wrapper,
        layout=state.layout,
        architecture=architecture,
        exact=exact,
        looks_like=describe(tensors),
        tags=exact_tags,
        num_classes=classes,
        in_chans=channels,
        head=head,
        tensors=len(checkpoint.tensors),
        parameters=sum(v.size for k, v in tensors.items() if not k.endswith(statistics)),
        dtypes=dtypes,
        ema=checkpoint.has_ema,
        training=checkpoint.training,
        abn_slope=state.abn_slope,
    )
