"""The teacher of a run: loaded, identified, and matched with the student."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tresnet_jax.checkpoints.run import PROJECTION
from tresnet_jax.data.class_matching import match_classes
from tresnet_jax.data.sources import Source
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.errors import TrainingError, amount
from tresnet_jax.factory import create_model
from tresnet_jax.labels import class_names, class_synsets
from tresnet_jax.models.base import ImageModel, Tree
from tresnet_jax.models.functional import functional
from tresnet_jax.models.initializers import torch_uniform
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.distillation import Distillation, loss_shares
from tresnet_jax.training.embedding import digest


class Teacher(NamedTuple):
    """A teacher.

    Attributes:
        model: in evaluation mode; without its classifier for distillation of features.
        variables: (params, batch_stats).
        identity: its name, where its weights are from, and their SHA-256; for provenance.json.
    """

    model: ImageModel
    variables: tuple[Tree, Tree]
    identity: dict[str, str]


def load_teacher(config: TrainConfig) -> Teacher | None:
    """Return the teacher of a configuration; None if it has none.

    Raises:
        ConversionError, HubError, ValueError: as `create_model`.
    """
    if config.kd_model_name is None:
        return None
    model = create_model(
        config.kd_model_name,
        pretrained=config.kd_checkpoint is None,
        checkpoint=config.kd_checkpoint,
        num_classes=0 if config.kd_distill_type == 'feature' else None,
        dtype=jnp.dtype(config.dtype),
    )
    _, params, batch_stats = functional(model)
    assert model.pretrained_cfg is not None
    name = model.pretrained_cfg.name if config.kd_checkpoint is None else config.kd_model_name
    weights = 'pretrained' if config.kd_checkpoint is None else str(config.kd_checkpoint)
    variables = params, batch_stats
    return Teacher(model, variables, {'name': name, 'weights': weights, 'sha256': digest(variables)})


def create_distillation(
    config: TrainConfig, teacher: Teacher, student: ImageModel, source: Source
) -> tuple[Distillation, Tree, str]:
    """Return how a student learns from a teacher.

    Args:
        config: kd_*, distill_loss_weight, task_loss_weight, seed; mean and std, which must be set.
        teacher: as `load_teacher` returns it.
        student: the model that is trained.
        source: its training images.

    Returns:
        The distillation; the parameters that are trained in addition to the student's, {} or a projection of its
        features; and a line for the log.

    Raises:
        TrainingError: the teacher does not suit the student.
        DataError: a class of the data is not among those of the teacher.
    """
    assert config.mean is not None and config.std is not None and config.kd_model_name is not None
    model, name = teacher.model, teacher.identity['name']
    if model.in_chans != student.in_chans:
        channels = amount(model.in_chans, 'channel')
        raise TrainingError(f'--kd-model-name {name}: takes {channels}, but the student takes {student.in_chans}')
    apply, *_ = functional(model)
    data_config = resolve_data_config(model)
    outputs, extra = None, {}
    if config.kd_distill_type == 'logit':
        outputs, text = _outputs(name, model, student, source)
    else:
        if student.ml_decoder is not None:
            raise TrainingError(
                '--kd-distill-type feature: compares pooled features, which a model with an ML-Decoder does not have'
            )
        ours, theirs = student.head_hidden_size, model.head_hidden_size
        text = f'{theirs} features'
        if ours != theirs:
            extra = {PROJECTION: _projection(config, ours, theirs)}
            text = f'{text}, from {ours} by a linear layer'
    distillation = Distillation(
        kind=config.kd_distill_type,
        teacher=apply,
        outputs=outputs,
        normalisations=((config.mean, config.std), (data_config['mean'], data_config['std'])),
        temperature=config.kd_temperature,
        shares=loss_shares(config.task_loss_weight, config.distill_loss_weight),
    )
    return distillation, extra, f'teacher: {name}, {text}'


def _outputs(name: str, teacher: ImageModel, student: ImageModel, source: Source) -> tuple[tuple[int, ...] | None, str]:
    """Return the teacher's outputs for the student's classes (None: all, in their order), and a text for the log."""
    if teacher.num_classes == 0:
        raise TrainingError(f'--kd-model-name {name}: has no classifier; use --kd-distill-type feature')
    if source.num_classes != student.num_classes:  # the classes of the student have no names
        if teacher.num_classes != student.num_classes:
            classes = amount(teacher.num_classes, 'class', 'classes')
            raise TrainingError(f'--kd-model-name {name}: has {classes}, but the student has {student.num_classes}')
        return None, f'all {teacher.num_classes} classes, in their order'
    names, synsets = class_names(teacher), class_synsets(teacher)
    match = match_classes(source.class_names, names, synsets, teacher.num_classes, source.name, f'the teacher {name}')
    places = tuple(match.places.tolist())
    return None if places == tuple(range(teacher.num_classes)) else places, match.text


def _projection(config: TrainConfig, ours: int, theirs: int) -> Tree:
    """Return a linear layer from the student's features to the teacher's, initialised as torch does."""
    draw = torch_uniform(ours)
    dtype = jnp.float64 if config.dtype == 'float64' else jnp.float32
    kernel, bias = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    return {'kernel': draw(kernel, (ours, theirs), dtype), 'bias': draw(bias, (theirs,), dtype)}
