"""Folders that a process gets instead of the user's: for temporary files and for caches."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

CACHES = (
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "MPLCONFIGDIR",
)
SHORT, LONGEST = "/tmp", 50


def own_temporary() -> Path:
    """A folder for the temporary files of this process."""
    folder = Path(os.path.realpath(tempfile.gettempdir()))
    # Sockets of DataLoader workers lie in it, and their paths end at 107 bytes.
    if len(os.fsencode(folder)) > LONGEST and os.access(SHORT, os.W_OK):
        folder = Path(SHORT)
    # Two levels, because the kernel would not let us remove the one that is allowed.
    ours = folder / f"flor-{os.getuid()}"
    ours.mkdir(mode=0o700, exist_ok=True)
    if ours.is_symlink() or ours.stat().st_uid != os.getuid():  # laid there by somebody else
        ours = Path(tempfile.mkdtemp(prefix="flor-", dir=folder))
    own = tempfile.mkdtemp(dir=ours)
    owner = os.getpid()
    atexit.register(
        lambda: shutil.rmtree(own, ignore_errors=True) if os.getpid() == owner else None
    )
    tempfile.tempdir = own
    os.environ.update(TMPDIR=own, TEMP=own, TMP=own)
    return Path(own)


def link_caches(own: Path) -> None:
    """Caches are read where they lie; what is added to them is added here."""
    home = os.path.expanduser("~")
    os.environ.setdefault("XDG_CACHE_HOME", os.path.join(home, ".cache"))
    os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(home, ".triton", "cache"))
    os.environ.setdefault("CUDA_CACHE_PATH", os.path.join(home, ".nv", "ComputeCache"))
    for number, name in enumerate(one for one in CACHES if os.environ.get(one)):
        source = os.path.realpath(os.path.expanduser(os.environ[name]))
        twin = own / f"cache{number}"
        twin.mkdir()
        if os.path.isdir(source):
            for entry in os.listdir(source):
                (twin / entry).symlink_to(os.path.join(source, entry))
        os.environ[name] = str(twin)
