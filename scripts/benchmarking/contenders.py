"""The libraries compared: one row each, with its measures and how it is loaded."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarking.sides import Side, Workload
from tresnet_jax.variants import ALL_BOTTLENECK, ARCHITECTURES, RESNETD, TRESNET, family_of

TIMM = ('timm-eager', 'timm-channels-last')  # the better of the two counts as timm


@dataclasses.dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        name: its name in the tables.
        package: the package that must be installed.
        wake: imports its libraries, sets the number of threads if it has to be set, starts the device and returns its
            name: 'cpu' or the name of a GPU.
        load: loads a model with the weights of a workload.
        measures: the ones of `MEASURES` that it takes part in; memory and largest_batch apply to those of inference
            and training that are among them.
        has: whether it supports an architecture.
        dtypes: supported compute dtypes.
        by_name: takes part only if it is named on the command line.
        cached: its processes keep programs on disk (`cached_jit`), which the warm-up round writes.
    """

    name: str
    package: str
    wake: Callable[[int], str]
    load: Callable[[Workload], Side]
    measures: tuple[str, ...]
    has: Callable[[str], bool] = lambda architecture: True
    dtypes: tuple[str, ...] = ('float32', 'bfloat16', 'float16')
    by_name: bool = False
    cached: bool = False

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def takes(self, workload: Workload) -> bool:
        return self.has(workload.architecture) and workload.dtype in self.dtypes


# The modules of the sides import their libraries, so only the functions of a contender import its side.


def _wake_jax(threads: int) -> str:
    from benchmarking import jax_side

    return jax_side.wake(threads)


def _wake_cached(threads: int) -> str:
    from tresnet_jax.compilation_cache import use_compilation_cache

    use_compilation_cache()
    return _wake_jax(threads)


def _ours(workload: Workload, **options: Any) -> Side:
    from benchmarking import jax_side

    return jax_side.ours(workload, **options)


def _winograd(workload: Workload) -> Side:
    return _ours(workload, folded=True, winograd=True)


def _cached(workload: Workload) -> Side:
    return _ours(workload, folded=True, cached=True)


def _wake_torch(threads: int) -> str:
    from benchmarking import torch_side

    return torch_side.wake(threads)


def _timm(workload: Workload, **options: Any) -> Side:
    from benchmarking import torch_side

    return torch_side.TorchSide(workload, **options)


def _channels_last(workload: Workload) -> Side:
    return _timm(workload, channels_last=True)


def _compiled(workload: Workload) -> Side:
    return _timm(workload, channels_last=True, compiled=True)


def _wake_peer(name: str) -> Callable[[int], str]:
    def wake(threads: int) -> str:
        from benchmarking import peers

        peers.import_peer(name)
        return _wake_jax(threads)

    return wake


def _peer(name: str) -> Callable[[Workload], Side]:
    def load(workload: Workload) -> Side:
        from benchmarking import peers

        return peers.PEERS[name](workload)

    return load


def _is_tresnet(architecture: str) -> bool:
    return family_of(architecture) == TRESNET


def _is_resnetd(architecture: str) -> bool:
    return family_of(architecture) == RESNETD and not architecture.startswith('test')


def _in_jax_resnet(architecture: str) -> bool:
    return _is_resnetd(architecture) and architecture != 'resnet26d'


def _in_keras_hub(architecture: str) -> bool:
    """Bottleneck blocks only: its basic blocks have a convolution in the first shortcut, unlike timm's."""
    return _is_resnetd(architecture) and ARCHITECTURES[architecture].blocks == ALL_BOTTLENECK


MEASURES = ('inference', 'train', 'build', 'first_call', 'memory', 'largest_batch')
FORWARD = tuple(measure for measure in MEASURES if measure != 'train')
PEER: dict[str, Any] = {'measures': MEASURES, 'dtypes': ('float32',)}


def _in_mode(name: str, has: Callable[[str], bool] = lambda architecture: True, **options: Any) -> Contender:
    """Return a row of this package in another memory mode of training."""
    measures = ('train', 'memory', 'largest_batch')
    return Contender(name, 'tresnet_jax', _wake_jax, functools.partial(_ours, **options), measures, has, by_name=True)


CONTENDERS: dict[str, Contender] = {row.name: row for row in (
    Contender('ours', 'tresnet_jax', _wake_jax, _ours, MEASURES),
    Contender('ours-folded', 'tresnet_jax', _wake_jax, lambda workload: _ours(workload, folded=True), FORWARD),
    Contender('ours-winograd', 'tresnet_jax', _wake_jax, _winograd, FORWARD),
    Contender('ours-cached', 'tresnet_jax', _wake_cached, _cached, ('first_call',), cached=True),
    _in_mode('ours-inplace', _is_tresnet, abn_memory='inplace'),
    _in_mode('ours-lean', _is_tresnet, abn_memory='lean'),
    _in_mode('ours-recompute', abn_memory='recompute'),
    _in_mode('ours-remat', remat=True),
    Contender('timm-eager', 'timm', _wake_torch, _timm, MEASURES),
    Contender('timm-channels-last', 'timm', _wake_torch, _channels_last, MEASURES),
    Contender('timm-compile', 'timm', _wake_torch, _compiled, MEASURES, by_name=True),
    Contender('jaxnn', 'jaxnn', _wake_peer('jaxnn'), _peer('jaxnn'), has=_is_resnetd, **PEER),
    Contender('jax-resnet', 'jax_resnet', _wake_peer('jax_resnet'), _peer('jax_resnet'), has=_in_jax_resnet, **PEER),
    Contender('keras-hub', 'keras_hub', _wake_peer('keras_hub'), _peer('keras_hub'), has=_in_keras_hub, **PEER),
)}  # fmt: skip
