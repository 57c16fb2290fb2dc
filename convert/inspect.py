"""Describe a checkpoint without converting it: ``python -m convert inspect FILE``."""

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints.heads import classes_of, decoder_of, foreign_classifier, shown
from tresnet_jax.checkpoints.identify import describe, identify, image_channels
from tresnet_jax.checkpoints.layouts import to_timm
from tresnet_jax.checkpoints.records import printable
from tresnet_jax.checkpoints.report import describe_images
from tresnet_jax.files import sha256
from tresnet_jax.variants import CLASSIFICATION, PRETRAINED

from .reading import read

# The names of timm's releases before the hub end with the first eight digits of their SHA-256, so the digest of a
# renamed file still identifies the release.
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
    """The properties of a checkpoint; None: unknown.

    Attributes:
        path: the file or folder.
        size: bytes of the file, or of a run's tensors.
        sha256: digest of the file in hexadecimal; '' for a run.
        container: 'safetensors', 'torch' or 'run'.
        wrapper: the key that held the state dict; None for a bare one.
        layout: the name of the layout: 'timm', 'inplace_abn', 'PaddleClas', ...; 'flax' for a file of ours.
        architecture: the likeliest architecture.
        exact: whether every block and width matches that architecture.
        looks_like: the architecture, or a description of a network that is not ours.
        tags: possible pretrained tags: the one that the metadata or the digest names, else every tag of the
            architecture with this number of classes.
        num_classes: outputs of the classifier; 0 without one.
        in_chans: channels of the images.
        head: the kind of a head that is not one linear layer.
        tensors: number of tensors.
        parameters: number of parameters, without running statistics and counters.
        dtypes: dtype -> number of tensors.
        ema: whether averaged weights are stored.
        training: further values stored by a training script.
        abn_slope: slope of the leaky ReLUs, if the file states one.
        data_config: how images are prepared, if the file states it.
        label_names: names of the classes, if the file states them.
        task: 'classification', one class per image, or 'multilabel', any number, if the file states it.
        networks: 'PATH:PREFIX, architecture, parameters' of each network in the file; `key` takes the first part.
        notes: how the network was found, and what its tensors do not show.
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
    data_config: dict[str, Any] | None
    label_names: tuple[str, ...] | None
    task: str
    networks: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return all attributes as a JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __str__(self) -> str:
        rows = [
            ('file', f'{self.path} ({self.size:,} bytes, {self.container})'),
            ('SHA-256', self.sha256 or '-'),
            ('layout', self.layout + (f' under {printable(self.wrapper)!r}' if self.wrapper else '')),
            ('looks like', self.looks_like),
            ('tags', ', '.join(self.tags) or '-'),
            ('classes', _or_dash(self.num_classes) + (f', {self.head}' if self.head else '')),
            ('channels', _or_dash(self.in_chans)),
            ('tensors', f'{self.tensors} ({", ".join(f"{n} {dtype}" for dtype, n in self.dtypes.items())})'),
            ('parameters', f'{self.parameters:,}'),
            ('averaged', 'yes' if self.ema else 'no'),
            *((key, str(value)) for key, value in self.training.items()),
            *([('slope', f'{self.abn_slope:g}')] if self.abn_slope is not None else []),
            *([('images', describe_images(self.data_config))] if self.data_config else []),
            *([('names', shown(self.label_names))] if self.label_names else []),
            *([('task', self.task)] if self.task != CLASSIFICATION else []),
            *(('network', network) for network in (self.networks if len(self.networks) > 1 else ())),
            *(('note', note) for note in self.notes),
        ]
        return '\n'.join(f'{name:<11} {value}' for name, value in rows)


def _or_dash(value: int | None) -> str:
    return '-' if value is None else str(value)


def inspect(path: str | Path, *, key: str | None = None) -> Inspection:
    """Read a checkpoint and return its properties.

    Args:
        path: the file or folder.
        key: see `read`.

    Raises:
        ConversionError: the checkpoint cannot be read, or its metadata is wrong.
    """
    path = Path(path)
    checkpoint = read(path, key=key)
    state = to_timm(checkpoint)
    tensors = state.tensors
    architecture, exact = identify(tensors)
    classes = channels = head = decoder = None
    if architecture is not None:
        classes, decoder = classes_of(tensors, architecture), decoder_of(tensors, architecture)
        channels = image_channels(tensors, architecture)
        head = state.head or (foreign_classifier(tensors, architecture) if exact else None)
        head = head or (decoder and str(decoder))
    digest = sha256(path)
    tags: tuple[str, ...] = ()
    if exact and checkpoint.container != 'run':  # training changed the weights of the tag
        named = '.'.join(filter(None, [state.metadata.get('architecture'), state.metadata.get('tag')]))
        known = named if named in PRETRAINED else RELEASED.get(digest[:8])
        found = (architecture, classes if decoder is None else None)  # no tag has an ML-Decoder
        rows = (row for row in PRETRAINED.values() if (row.architecture, row.num_classes) == found)
        tags = (known,) if known else tuple(row.name for row in rows)
    statistics = ('.running_mean', '.running_var')
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
        tags=tags,
        num_classes=classes,
        in_chans=channels,
        head=head,
        tensors=len(checkpoint.tensors),
        parameters=sum(v.size for k, v in tensors.items() if not k.endswith(statistics)),
        dtypes=dict(collections.Counter(value.dtype.name for value in checkpoint.tensors.values())),
        ema=checkpoint.has_ema,
        training=checkpoint.training,
        abn_slope=state.abn_slope,
        data_config=state.data_config,
        label_names=state.label_names,
        task=state.task,
        networks=checkpoint.networks,
        notes=state.notes,
    )
