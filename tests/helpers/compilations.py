"""Programs that a module traces and compiles once, although each run makes them anew."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from tresnet_jax.training import loop
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.run_config import CHANGEABLE

# Options of a run that its step does not depend on.
NOT_OF_THE_STEP = tuple(name for name in CHANGEABLE if name != 'skip_nonfinite')


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keep compiled programs in a folder. Also let optax multiply integers and floats."""
    from jax.experimental.compilation_cache import compilation_cache

    values = {
        'jax_compilation_cache_dir': str(folder),
        'jax_enable_compilation_cache': True,
        'jax_persistent_cache_min_compile_time_secs': 0.0,
        'jax_numpy_dtype_promotion': 'standard',
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Let runs whose steps are the same share them, as long as their loss does not depend on the data."""
    made: dict[Any, Any] = {}

    def once(key: Any, make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = make()
        return made[key]

    def functional(model: Any, frozen: tuple[str, ...] = ()) -> tuple[Any, ...]:
        apply, *trees = originals['functional'](model, frozen)
        return once((nnx.graphdef(model), frozen), lambda: apply), *trees

    def make_train_step(apply: Any, optimizer: Any, config: TrainConfig, *, loss: Any, **arguments: Any) -> Any:
        def make() -> Any:
            return originals['make_train_step'](apply, optimizer, config, loss=loss, **arguments)

        by_data = (config.loss_pos_weight, config.loss_class_weight, config.semantic_tree, arguments['distillation'])
        if by_data != (None,) * 4:
            return make()
        plain = {name: getattr(TrainConfig(model='test_resnet'), name) for name in NOT_OF_THE_STEP}
        return once((apply, dataclasses.replace(config, **plain), *arguments.values()), make)

    def make_eval_step(apply: Any, *, tree: Any, **arguments: Any) -> Any:
        def make() -> Any:
            return originals['make_eval_step'](apply, tree=tree, **arguments)

        return once(('evaluation', apply, *arguments.values()), make) if tree is None else make()

    def over_devices(step: Any, **arguments: Any) -> Any:
        make = originals['over_devices']
        if arguments.get('fixed') is not None:
            return make(step, **arguments)
        return once(('devices', step, *arguments.items()), lambda: make(step, **arguments))

    patches = {value.__name__: value for value in (functional, make_train_step, make_eval_step, over_devices)}
    originals = {name: getattr(loop, name) for name in patches}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patches.items():
            patch.setattr(loop, name, value)
        yield
