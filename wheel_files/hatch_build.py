"""The layout of the wheel: convert/ of the checkout is tresnet_jax/convert/, a name that no other distribution has."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelLayout(BuildHookInterface):
    """Places the files of the wheel that are elsewhere in the checkout."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Add them. An editable install (version 'editable') uses the checkout as it is."""
        if version == 'standard':
            build_data['force_include'] |= {'convert': 'tresnet_jax/convert', 'wheel_files/convert.py': 'convert.py'}
