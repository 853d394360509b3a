from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flor_plugins.store.checkpoints import direct_io
from flor_plugins.store.checkpoints.direct_io import BLOCK, DirectFile

SIZES = st.sampled_from([0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]) | st.integers(
    0, 5 * BLOCK
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(sizes=st.lists(SIZES, max_size=8), is_large=st.booleans())
def test_what_is_written_in_parts_is_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], is_large: bool
) -> None:
    monkeypatch.setattr(direct_io, "ROOM", 2 * BLOCK)
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    parts = [os.urandom(size) for size in sizes]
    with DirectFile(path, direct_io.WORTH if is_large else 0) as file:
        for part in parts:
            file.write(memoryview(part))
    assert path.read_bytes() == b"".join(parts)


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for nbytes in (0, direct_io.WORTH):
        with pytest.raises(FileExistsError):
            DirectFile(tmp_path / "file", nbytes)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_system_without_direct_writes_gets_ordinary_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, direct = os.open, getattr(os, "O_DIRECT", 0)

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with DirectFile(tmp_path / "file", direct_io.WORTH) as file:
        file.write(memoryview(b"all the same"))
    assert (tmp_path / "file").read_bytes() == b"all the same"


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="there are no direct writes")
def test_a_file_system_that_refuses_direct_writes_one_by_one_gets_ordinary_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def refuse(handle: int, memory: memoryview) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(handle, memory)

    monkeypatch.setattr(os, "write", refuse)
    with DirectFile(tmp_path / "file", direct_io.WORTH) as file:
        file.write(memoryview(b"all the same"))
    assert (tmp_path / "file").read_bytes() == b"all the same"
