"""Which versions of which packages are installed. Reads names of folders, no metadata."""

from __future__ import annotations

import os
import re
import sys
from itertools import islice

# More names than any site-packages has; a folder of samples that lies next to a script is not
# read to its end.
MAX_NAMES = 20_000

_DIST_INFO = re.compile(r"(?P<name>[A-Za-z0-9].*)-(?P<version>[^-]+)\.dist-info")
_EGG_INFO = re.compile(r"(?P<name>[A-Za-z0-9][^-]*)(-(?P<version>[^-]+)(-py\d.*)?)?\.egg-info")
_VERSION = re.compile(r"^Version: *(\S+)", re.MULTILINE)


def installed() -> dict[str, str]:
    """Return the versions of all distributions on sys.path, by name.

    Names are spelt as PyPI does: lower case, dashes.

    The first folder of sys.path that has a distribution wins, as it does for `import`. Folders that
    can't be read and archives hold none.
    """
    found: dict[str, str] = {}
    for folder in sys.path:
        if not isinstance(folder, str):  # importlib looks no further either
            continue
        for file in _infos(folder or os.curdir):
            name, version = _split(folder, file)
            if version:
                found.setdefault(normal(name), version)
    return dict(sorted(found.items()))


def normal(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _infos(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MAX_NAMES)]
    except (OSError, ValueError):  # not there, an archive, a null byte
        return []
    return sorted(name for name in names if name.endswith((".dist-info", ".egg-info")))


def _split(folder: str, file: str) -> tuple[str, str | None]:
    match = _DIST_INFO.fullmatch(file) or _EGG_INFO.fullmatch(file)
    if match is None:  # what pip leaves behind begins with a tilde
        return "", None
    # `setup.py develop` leaves the version out of the name.
    return match["name"], match["version"] or _version_in(os.path.join(folder, file, "PKG-INFO"))


def _version_in(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = _VERSION.search(file.read(4_096))
    except OSError:
        return None
    return found[1] if found else None
