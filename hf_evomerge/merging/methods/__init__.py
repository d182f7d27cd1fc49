"""The merge methods, one family a file. Importing this package imports every file of it, which
registers them. No torch."""

from importlib import import_module
from pkgutil import iter_modules

for _file in iter_modules(__path__):  # sorted by name
    import_module(f"{__name__}.{_file.name}")
