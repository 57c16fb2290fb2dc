"""timm's optimisers as chains of optax: the rules that turn gradients into updates.

Rows of `RULES` have timm's names, defaults and results (``timm/optim``, 1.0.31). Weight decay applies to kernels only.
Where optax has the same rule, the row uses it; the rest of this file has what optax lacks or computes differently.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tresnet_jax.errors import TrainingError
from tresnet_jax.models.base import Tree
from tresnet_jax.options import BELOW_1, NOT_NEGATIVE, POSITIVE, Range
from tresnet_jax.training.config import TrainConfig


class Settings(NamedTuple):
    """The options of an optimiser, with its defaults filled in.

    Attributes:
        weight_decay, momentum, eps, betas: as in timm.
        others: the remaining options by timm's names.
    """

    weight_decay: float
    momentum: float
    eps: float
    betas: tuple[float, float]
    others: Mapping[str, Any]

    @property
    def decay(self) -> optax.GradientTransformation:
        """Add weight_decay times the parameter: L2 regularisation before the rule, decoupled decay after it."""
        return optax.add_decayed_weights(self.weight_decay, kernels)


Chain = list[optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Rule:
    """An optimiser.

    Attributes:
        chain: (settings, rate) -> transformations. `rate` multiplies by minus the learning rate, and is part of the
            chain.
        eps, betas: defaults; None if the optimiser has none.
        others: the remaining options and their defaults.
    """

    chain: Callable[[Settings, optax.GradientTransformation], Chain]
    eps: float | None = None
    betas: tuple[float, float] | None = None
    others: Mapping[str, bool | int | float] = dataclasses.field(default_factory=dict)


def kernels(tree: Tree) -> Tree:
    """Return which leaves are kernels: those with more than one axis. Biases and norms are not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


def settings_of(config: TrainConfig) -> Settings:
    """Return the settings of `config.opt`.

    Raises:
        TrainingError: an option is not one of this optimiser, or has a wrong value.
    """
    rule = RULES[config.opt]
    for flag, given, default in (
        ('--opt-eps', config.opt_eps, rule.eps),
        ('--opt-betas', config.opt_betas, rule.betas),
    ):
        if given is not None and default is None:
            raise TrainingError(f'{flag} is not an option of --opt {config.opt}')
    others = dict(rule.others)
    for text in config.opt_kwargs:
        key, _, value = text.partition('=')
        if key not in others:
            known = ', '.join(others) or 'none'
            raise TrainingError(f'--opt-kwargs {text}: expected KEY=VALUE with an option of {config.opt}: {known}')
        others[key] = _value(text, value, rule.others[key], RANGES.get(key))
    eps = rule.eps if config.opt_eps is None else config.opt_eps
    betas = config.opt_betas or rule.betas
    return Settings(config.weight_decay, config.momentum, eps or 0.0, betas or (0.0, 0.0), others)


# The values that the options of --opt-kwargs take, except for those that are true or false.
RANGES = {
    'max_grad_norm': POSITIVE,
    'alpha': BELOW_1,
    'trust_coeff': POSITIVE,
    'clip_exp': NOT_NEGATIVE,
    'ns_steps': POSITIVE,
}


def _value(text: str, value: str, default: bool | int | float, values: Range | None) -> bool | int | float:
    """Return the value of an option, of the type of its default.

    Raises:
        TrainingError: it is of another type, or not one of `values`.
    """
    kind = type(default)
    try:
        found = {'true': True, 'false': False}[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        what = {bool: 'true or false', int: 'a whole number', float: 'a number'}[kind]
        raise TrainingError(f'--opt-kwargs {text}: must be {what}') from None
    if values is not None and not (math.isfinite(found) and values.has(found)):
        raise TrainingError(f'--opt-kwargs {text}: must be {values.text}')
    return found


# Transformations that optax lacks.


class _Moments(NamedTuple):
    count: jax.Array
    mu: Any
    nu: Any


def scale_by_nadamw(betas: tuple[float, float], eps: float) -> optax.GradientTransformation:
    """Scale as timm's NAdamW. ``optax.nadamw`` corrects the bias of the momentum by one more step."""
    b1, b2 = betas

    def init(params):
        return _Moments(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        count = jnp.asarray(optax.safe_increment(state.count))
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        ahead = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mu, updates)
        mu_hat, nu_hat = optax.tree.bias_correction(ahead, b1, count), optax.tree.bias_correction(nu, b2, count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat), _Moments(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_lars(settings: Settings) -> optax.GradientTransformation:
    """Scale as timm's LARS (arXiv:1708.03888), which adds the weight decay itself.

    ``optax.lars`` divides by the norm of the gradient with its weight decay, timm by the sum of both norms.
    """
    decay, eps, others = settings.weight_decay, settings.eps, settings.others

    def scale(grad, param, is_kernel):
        wd = decay if is_kernel else 0.0
        if wd:
            norm, size = jnp.linalg.norm(param), jnp.linalg.norm(grad)
            ratio = others['trust_coeff'] * norm / (size + norm * wd + eps)
            ratio = jnp.where((norm > 0) & (size > 0), ratio, 1.0)
            return ratio * (grad + wd * param)
        return grad

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(scale, updates, params, kernels(updates))

    return optax.stateless(update)


def scale_by_muon(steps: int, momentum: float, eps: float) -> optax.GradientTransformation:
    """Orthogonalise the momentum of kernels, as timm's Muon (Jordan 2024; scaled as in arXiv:2502.16982).

    timm iterates in bfloat16, and so differs by about 5e-4; here the iteration has the dtype of the gradient.
    """

    def init(params):
        return optax.tree.zeros_like(params)

    def update(updates, state, params=None):
        del params
        state = optax.tree.update_moment(updates, state, momentum, 1)
        return jax.tree.map(lambda m: _orthogonalised(m, steps, eps), state), state

    return optax.GradientTransformation(init, update)


# Coefficients of the Newton-Schulz iteration, timm's preset 'quintic'; more steps repeat the last row.
QUINTIC = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def _orthogonalised(kernel: jax.Array, steps: int, eps: float) -> jax.Array:
    """Return the nearest semi-orthogonal matrix to a kernel, times 0.2 sqrt(its longer side)."""
    x = kernel.reshape(_matrix_shape(kernel.shape))
    longer = max(x.shape)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / jnp.maximum(jnp.linalg.norm(x), eps)
    for a, b, c in (QUINTIC + QUINTIC[-1:] * steps)[:steps]:
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return 0.2 * longer**0.5 * (x.T if is_tall else x).reshape(kernel.shape)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the matrix that Muon makes of a kernel (..., in, out), or (groups, in, out) of an ML-Decoder.

    That is (inputs, outputs) or, as in timm for three axes, (groups, all others).
    """
    if len(shape) == 3:
        return shape[0], math.prod(shape[1:])
    return math.prod(shape[:-1]), shape[-1]


def suits_muon(shape: tuple[int, ...]) -> bool:
    """Return whether timm's Muon orthogonalises a kernel; AdamW updates the others."""
    if len(shape) < 2 or 1 in (shape[:2] if len(shape) == 3 else shape[-2:]):
        return False
    shorter, longer = sorted(_matrix_shape(shape))
    return shorter >= 4 and longer <= 128 * shorter


# The optimisers.


def _sgd(nesterov: bool) -> Callable[[Settings, optax.GradientTransformation], Chain]:
    return lambda s, rate: [s.decay, optax.trace(s.momentum, nesterov=nesterov), rate]


def _adam(s: Settings, rate: optax.GradientTransformation) -> Chain:
    return [s.decay, optax.scale_by_adam(*s.betas, eps=s.eps), rate]


def _adamw(s: Settings, rate: optax.GradientTransformation) -> Chain:
    return [optax.scale_by_adam(*s.betas, eps=s.eps), s.decay, rate]


def _nadamw(s: Settings, rate: optax.GradientTransformation) -> Chain:
    return [scale_by_nadamw(s.betas, s.eps), s.decay, rate]


def _lamb(s: Settings, rate: optax.GradientTransformation) -> Chain:
    """LAMB (arXiv:1904.00962). Without weight decay timm applies no trust ratio."""
    clipping = [optax.clip_by_global_norm(s.others['max_grad_norm'])] if s.others['max_grad_norm'] else []
    trust = [s.decay, optax.masked(optax.scale_by_trust_ratio(), kernels)] if s.weight_decay else []
    return [*clipping, optax.scale_by_adam(*s.betas, eps=s.eps), *trust, rate]


def _rmsproptf(s: Settings, rate: optax.GradientTransformation) -> Chain:
    """RMSProp as in TensorFlow 1: the average starts at 1, eps is in the root, the rate is in the momentum."""
    scale = optax.scale_by_rms(s.others['alpha'], s.eps, initial_scale=1.0, eps_in_sqrt=True)
    return [s.decay, scale, rate, *([optax.trace(s.momentum)] if s.momentum else [])]


def _lion(s: Settings, rate: optax.GradientTransformation) -> Chain:
    return [optax.scale_by_lion(*s.betas), s.decay, rate]


def _lars(s: Settings, rate: optax.GradientTransformation) -> Chain:
    return [scale_by_lars(s), optax.trace(s.momentum, nesterov=bool(s.others['nesterov'])), rate]


def _adopt(s: Settings, rate: optax.GradientTransformation) -> Chain:
    exponent = s.others['clip_exp']
    scale = optax.contrib.scale_by_adopt(*s.betas, eps=s.eps, clip_value_fn=lambda count: count**exponent)
    return [s.decay, scale, rate]


def _muon(s: Settings, rate: optax.GradientTransformation) -> Chain:
    def labels(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: 'muon' if suits_muon(leaf.shape) else 'adamw', tree)

    muon = scale_by_muon(s.others['ns_steps'], s.momentum, s.eps)
    rules: dict[Hashable, optax.GradientTransformation] = {
        'muon': muon,
        'adamw': optax.scale_by_adam(*s.betas, eps=s.eps),
    }
    return [optax.partition(rules, labels), s.decay, rate]


ADAM = (0.9, 0.999)
RULES: dict[str, Rule] = {
    'sgd': Rule(_sgd(nesterov=True)),
    'momentum': Rule(_sgd(nesterov=False)),
    'adam': Rule(_adam, 1e-8, ADAM),
    'adamw': Rule(_adamw, 1e-8, ADAM),
    'nadamw': Rule(_nadamw, 1e-8, ADAM),
    'lamb': Rule(_lamb, 1e-6, ADAM, {'max_grad_norm': 1.0}),
    'rmsproptf': Rule(_rmsproptf, 1e-10, None, {'alpha': 0.9}),
    'lion': Rule(_lion, None, (0.9, 0.99)),
    'lars': Rule(_lars, 1e-8, None, {'trust_coeff': 0.001, 'nesterov': False}),
    'adopt': Rule(_adopt, 1e-6, (0.9, 0.9999), {'clip_exp': 0.333}),
    'muon': Rule(_muon, 1e-7, (0.9, 0.95), {'ns_steps': 5}),
}
