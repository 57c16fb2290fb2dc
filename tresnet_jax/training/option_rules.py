"""Which options of a training configuration suit one another. An option that would have no effect is refused."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tresnet_jax.models.base import PARTS
from tresnet_jax.options import as_flag

LOSSES = {'classification': ('ce', 'bce', 'poly', 'semantic'), 'multilabel': ('bce', 'asl', 'poly')}
METRICS = {
    'classification': ('top1', 'top5', 'semantic_top1'),
    'multilabel': ('map', 'micro_f1', 'macro_f1', 'sample_f1'),
}
# Methods of --loss-pos-weight and --loss-class-weight.
POS_WEIGHTS, CLASS_WEIGHTS = ('neg_pos',), ('inv_freq', 'effective_num')


class Use(NamedTuple):
    """Options, and what they have an effect on.

    Attributes:
        names: fields of TrainConfig.
        wanted: what a configuration must have for them, as text.
        holds: whether it has that; its argument is the configuration.
        has: what it has instead, as text; '' for nothing.
        choice: the field that they are details of; '' if they are choices of their own.
    """

    names: tuple[str, ...]
    wanted: str
    holds: Callable[[Any], bool]
    has: Callable[[Any], str] = lambda config: ''
    choice: str = ''


def _loss(names: tuple[str, ...], *losses: str) -> Use:
    """Return the rule of options that only some losses have."""
    return Use(
        names,
        f'--loss {" and ".join(losses)}',
        lambda config: config.loss_name in losses,
        lambda c: c.loss_name,
        'loss',
    )


def _weights(names: tuple[str, ...], *methods: str) -> Use:
    """Return the rule of options that only some methods for the weights of classes have."""
    flags = {f'--loss-pos-weight {m}' if m in POS_WEIGHTS else f'--loss-class-weight {m}' for m in methods}
    return Use(
        names,
        ' and '.join(sorted(flags, reverse=True)),
        lambda config: {config.loss_pos_weight, config.loss_class_weight} & {*methods} != set(),
    )


USES = (
    _loss(('bce_target_thresh', 'bce_sum'), 'bce'),
    _loss(('loss_pos_weight', 'loss_class_weight'), 'bce', 'asl'),
    _loss(('asl_gamma_neg', 'asl_gamma_pos', 'asl_clip', 'asl_focal_gradient', 'asl_reduction'), 'asl'),
    _loss(('poly_epsilon', 'poly_gamma', 'poly_alpha'), 'poly'),
    Use(
        ('data_dir',), 'a --data with files', lambda c: not c.data.startswith('embedded:'), lambda c: f'--data {c.data}'
    ),
    Use(('poly_gamma', 'poly_alpha'), '--task multilabel', lambda c: c.multilabel, lambda c: f'--task {c.task}'),
    _loss(('semantic_tree',), 'semantic'),
    Use(
        ('kd_model_name',),
        '--kd-distill-type feature with --loss semantic, which has no softmax of all classes',
        lambda config: config.loss_name != 'semantic' or config.kd_distill_type == 'feature',
    ),
    _weights(('loss_weight_power',), 'neg_pos', 'inv_freq'),
    _weights(('loss_weight_beta',), 'effective_num'),
    _weights(('loss_weight_max', 'class_stats'), *POS_WEIGHTS, *CLASS_WEIGHTS),
    Use(
        ('kd_checkpoint', 'kd_distill_type', 'kd_temperature', 'distill_loss_weight', 'task_loss_weight'),
        'a teacher (--kd-model-name)',
        lambda config: config.kd_model_name is not None,
    ),
    Use(('kd_temperature',), '--kd-distill-type logit', lambda config: config.kd_distill_type == 'logit'),
    Use(('kd_model_name',), '--task classification', lambda c: not c.multilabel, lambda c: f'--task {c.task}'),
    Use(
        ('target_format', 'multilabel_threshold'),
        '--task multilabel',
        lambda config: config.multilabel,
        lambda config: f'--task {config.task}',
        'task',
    ),
)
OF_OPTIMIZER = ('opt_betas', 'opt_eps', 'opt_kwargs')  # each optimiser has its own


def replaced_details(config: Any, recipe: Any) -> list[str]:
    """Return the options that a recipe sets for its optimiser, loss or task, where a configuration has another one.

    Args:
        config: a TrainConfig that began as the recipe.
        recipe: the TrainConfig of the recipe.
    """
    names = OF_OPTIMIZER if config.opt != recipe.opt else ()
    for use in USES:
        if use.choice and getattr(config, use.choice) != getattr(recipe, use.choice) and not use.holds(config):
            names += use.names
    return [name for name in names if getattr(config, name) == getattr(recipe, name)]


def conflicts(config: Any, defaults: Any) -> Iterator[str]:
    """Yield a line for each choice of a configuration that does not suit the others.

    Args:
        config: a TrainConfig.
        defaults: the one with all defaults.
    """
    task = f'--task {config.task}'
    losses, metrics = LOSSES[config.task], METRICS[config.task]
    if config.loss_name not in losses:
        yield f'--loss {config.loss} is not for {task}; expected one of {", ".join(losses)}'
    if config.rating not in metrics:
        yield f'--eval-metric {config.eval_metric} is not for {task}; expected one of {", ".join(metrics)}'
    if config.rating == 'semantic_top1' and config.loss_name != 'semantic':
        yield f'--eval-metric semantic_top1 is for --loss semantic, not for {config.loss_name}'
    if config.loss_name == 'semantic' and config.semantic_tree is None:
        yield '--loss semantic: needs the tree of the classes; give --semantic-tree FILE'
    if config.distill_loss_weight is None and (config.task_loss_weight or 0) > 1:
        yield f'--task-loss-weight {config.task_loss_weight:g}: without --distill-loss-weight must be at most 1'
    backbone = {*PARTS[:-1]} if 'backbone' in config.freeze else set()
    projects = config.kd_model_name is not None and config.kd_distill_type == 'feature'
    if {*config.freeze} | backbone >= {*PARTS} and not projects:
        yield f'{as_flag("freeze", config.freeze)}: nothing is left to train; leave out a part'
    for use in USES:
        given = [name for name in use.names if getattr(config, name) != getattr(defaults, name)]
        if given and not use.holds(config):
            flags = ', '.join(as_flag(name, getattr(config, name)) for name in given)
            has = use.has(config)
            yield f'{flags}: for {use.wanted}, not for {has}' if has else f'{flags}: only for {use.wanted}'
