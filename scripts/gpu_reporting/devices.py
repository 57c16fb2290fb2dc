"""Descriptions of GPUs, complete enough for XLA to compile for them without the device."""

import dataclasses
import importlib.util
import os
from typing import Any

# As XLA describes real devices (xla/backends/gpu/target_config/specs/*.txtpb in github.com/openxla/xla).
DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: {compute_capability} minor: 0 }}
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {clock_ghz}
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  l2_cache_size: {l2_cache}
  shared_memory_per_core: {shared_memory_per_core}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_memory_per_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{description}"
"""


@dataclasses.dataclass(frozen=True)
class Device:
    """The properties of a GPU that XLA asks for, and the speed of its tensor cores.

    Attributes:
        description: NVIDIA's name.
        compute_capability: the major number; the minor number is 0.
        cores: number of streaming multiprocessors.
        fpus_per_core: number of float32 units per multiprocessor.
        clock_ghz: clock rate in GHz.
        bandwidth: memory bandwidth in bytes per second.
        memory, l2_cache, shared_memory_per_core, shared_memory_per_block: sizes in bytes.
        half, single: dense operations per second of the tensor cores; a multiply-accumulate counts as two. `half` is
            for bfloat16 and float16, `single` for float32, which JAX multiplies as TF32. From NVIDIA's data sheets.
    """

    description: str
    compute_capability: int
    cores: int
    fpus_per_core: int
    clock_ghz: float
    bandwidth: int
    memory: int
    l2_cache: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    half: float
    single: float

    def peak(self, dtype: str) -> float:
        """Return the peak operations per second in a compute dtype."""
        return self.single if dtype == 'float32' else self.half


DEVICES = {
    'h100': Device(
        'NVIDIA H100 80GB HBM3', compute_capability=9, cores=132, fpus_per_core=128, clock_ghz=1.98,
        bandwidth=3_352_320_000_000, memory=85_044_166_656, l2_cache=52_428_800,
        shared_memory_per_core=233_472, shared_memory_per_block=232_448, half=990e12, single=495e12,
    ),
    'a100': Device(
        'NVIDIA A100-SXM4-80GB', compute_capability=8, cores=108, fpus_per_core=64, clock_ghz=1.41,
        bandwidth=2_039_040_000_000, memory=85_100_068_864, l2_cache=41_943_040,
        shared_memory_per_core=167_936, shared_memory_per_block=166_912, half=312e12, single=156e12,
    ),
}  # fmt: skip

ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',  # for computations on the way; the topology names the compiler's device
    'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',  # otherwise the plugin looks for a driver
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
}
AUTOTUNING_OFF = '--xla_gpu_autotune_level=0'  # autotuning would time kernels on the device


def environment() -> dict[str, str]:
    """Return the environment variables of a process that compiles; they must be set before JAX is imported."""
    flags = f'{os.environ.get("XLA_FLAGS", "")} {AUTOTUNING_OFF}'.strip()
    return {**os.environ, **ENVIRONMENT, 'XLA_FLAGS': flags}


def plugin() -> str | None:
    """Return the name of JAX's CUDA plugin, or None if it is not installed."""
    for name in ('xla_cuda12', 'xla_cuda13'):
        try:
            if importlib.util.find_spec(f'jax_plugins.{name}'):
                return name
        except ModuleNotFoundError:  # no plugin of any kind
            return None
    return None


def topology(device: Device) -> Any:
    """Return a topology of one such GPU, for JAX to lower for. Requires a process with the `environment`."""
    from jax.experimental import topologies

    # Spelled out, because there is no driver to ask.
    config = DESCRIPTION.format(**dataclasses.asdict(device))
    return topologies.get_topology_desc('gpu', 'cuda', topology='1x1x1', target_config=config)
