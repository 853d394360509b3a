"""Object stores as fsspec reaches them: their file systems, and the versions of objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flor_plugins.errors import MissingDependency, StoreError

# What a file system of fsspec knows of an object.
ObjectInfo = Mapping[str, Any]
# What object stores call the version of an object, the most telling first.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)


def version_of(info: ObjectInfo) -> str:
    """Return what is another one whenever the object is."""
    telling = next((info[name] for name in _VERSIONS if info.get(name)), "")
    return f"{info.get('size')} {telling}"


def is_local(files: Any) -> bool:
    """Say whether a file system is folders of this machine."""
    return "file" in ([files.protocol] if isinstance(files.protocol, str) else files.protocol)


def open_file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a url, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        files, top = url_to_fs(url)
    except ImportError as error:  # fsspec itself, or what it needs for that protocol: it says which
        raise MissingDependency(
            f"the store {url} was asked for; it can't be reached: {error}. pip install "
            f"'flor-plugins[s3]' "
            f"(for s3://; other object stores have packages of their own: gcsfs, adlfs, ...)"
        ) from error
    except ValueError as error:
        raise StoreError(
            f"the store {url} was asked for: {error}. Name a folder, or a url as s3://bucket/flor."
        ) from error
    return files, str(top).rstrip("/")
