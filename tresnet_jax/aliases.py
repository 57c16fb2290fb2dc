"""A second name for a package."""

import importlib
import pkgutil
import sys


def alias(name: str, package: str) -> None:
    """Give a package a second name with the same module objects; call this in the module that has the second name.

    Without this, importing a module by the second name would load it twice.

    Args:
        name: the second name.
        package: the name of the package; its modules are imported, except for ``__main__``.
    """
    original = importlib.import_module(package)
    for module in pkgutil.iter_modules(original.__path__):
        if module.name != '__main__':
            sys.modules[f'{name}.{module.name}'] = importlib.import_module(f'{package}.{module.name}')
    sys.modules[name] = original
