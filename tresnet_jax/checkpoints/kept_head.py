"""Decide whether the classifier of a checkpoint is kept for a model that may want another one."""

from typing import Any, NamedTuple

from tresnet_jax.checkpoints.checkpoint import Checkpoint
from tresnet_jax.checkpoints.heads import classes_of, decoder_of, foreign_classifier
from tresnet_jax.checkpoints.identify import head_key, identify
from tresnet_jax.checkpoints.layouts import TimmState
from tresnet_jax.checkpoints.ml_decoder import Decoder
from tresnet_jax.errors import ConversionError
from tresnet_jax.models.build import HeadOptions
from tresnet_jax.variants import ARCHITECTURES, PretrainedConfig, family_of


class KeptHead(NamedTuple):
    """The classifier that the trees will have.

    Attributes:
        num_classes: 0 without a classifier.
        global_pool: 'catavgmax' if the classifier is twice as wide as the features, else None.
        options: arguments of `build_model` for an ML-Decoder; empty for a linear layer.
        in_file: the head of the checkpoint, 'linear' or 'ml_decoder', and its classes.
        dropped: (key, why) of each tensor of the checkpoint's head that is dropped.
    """

    num_classes: int
    global_pool: str | None
    options: dict[str, Any]
    in_file: tuple[str, int]
    dropped: tuple[tuple[str, str], ...] = ()


def match_head(
    checkpoint: Checkpoint,
    state: TimmState,
    architecture: str,
    config: PretrainedConfig | None,
    num_classes: int | None,
    wanted: HeadOptions,
) -> KeptHead:
    """Decide whether the checkpoint's classifier is kept; if not, remove it from the tensors of `state`.

    Raises:
        ConversionError: `num_classes` is None, and the head is not timm's or has another number of classes than the
            tag; or the metadata state another head.
    """
    tensors = state.tensors
    weight, classes = tensors.get(f'{head_key(architecture)}.weight'), classes_of(tensors, architecture)
    decoder = decoder_of(tensors, architecture)
    kind = 'linear' if decoder is None else 'ml_decoder'
    stated = state.metadata.get('head') or 'linear'
    if state.layout == 'flax' and classes and stated != kind:
        raise ConversionError(f'{checkpoint.path}: has the tensors of the head {kind!r}, but states {stated[:80]!r}')
    foreign = state.head or foreign_classifier(tensors, architecture)
    fits = identify(tensors) == (architecture, True)  # if the body does not fit, report that first
    if num_classes is None and fits and foreign:
        raise ConversionError(
            f"{checkpoint.path}: has {foreign}, not {architecture}'s classifier; --drop-head (num_classes=0) converts "
            'the body alone'
        )
    if num_classes is None and fits and classes and config is not None and config.num_classes != classes:
        raise ConversionError(
            f'{checkpoint.path}: has {classes} classes, but {config.name} has {config.num_classes}; to keep the '
            f'classifier give --model {architecture} or --num-classes {classes} (num_classes={classes}), to drop it '
            f'--drop-head (num_classes=0)'
        )
    other = classes > 0 and not _is_wanted(decoder, wanted)
    if other or (num_classes is not None and (foreign or not num_classes or num_classes != classes)):
        why = foreign or f'the file has {classes} classes, {num_classes} were requested'
        why = 'another head was requested' if other and num_classes in (None, classes) else why
        prefix = f'{family_of(architecture).head}.'
        dropped = [key for key in tensors if key.startswith(prefix)]
        for key in dropped:
            del tensors[key]
        dropped += state.beside if state.head else ()
        return KeptHead(0, None, {}, (kind, classes), tuple((key, why) for key in dropped))
    wide = weight is not None and weight.shape[-1:] == (2 * ARCHITECTURES[architecture].num_features,)
    options = {} if decoder is None or decoder.problem else decoder.options
    return KeptHead(classes, 'catavgmax' if classes and wide else None, options, (kind, classes))


def _is_wanted(decoder: Decoder | None, wanted: HeadOptions) -> bool:
    """Return whether a head, an ML-Decoder or None for a linear layer, is the one that was requested."""
    if wanted.head is None or decoder is None or wanted.head == 'linear':
        return wanted.head in (None, 'linear' if decoder is None else 'ml_decoder')
    groups = decoder.num_of_groups if wanted.num_of_groups is None else wanted.num_of_groups
    same = min(groups, decoder.num_classes) == decoder.num_of_groups
    return same and wanted.decoder_embedding in (None, decoder.decoder_embedding)
