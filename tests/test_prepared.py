"""What recipes prepare once, kept outside of the repository; a wheel whose files are used
without installing it.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from flor_plugins.errors import MissingDependency

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import prepared

    yield prepared
    sys.modules.pop("prepared", None)


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An index with one wheel, which pip is told to use alone."""
    path = tmp_path / "index" / "pictures-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("pictures/a.png", b"picture")
        file.writestr(
            "pictures-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: pictures\nVersion: 1.0\n",
        )
        file.writestr(
            "pictures-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr("pictures-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def test_text_and_tensors_are_made_once(prepared, tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        held = prepared.text(prepared.folder("r") / "a.txt", lambda: made.append("text") or "words")
        tensors = prepared.tensors(
            prepared.folder("r") / "a.safetensors", lambda: made.append("x") or {"x": torch.ones(2)}
        )
        assert held == "words" and tensors["x"].tolist() == [1, 1]
    assert made == ["text", "x"]
    assert sorted(path.name for path in (tmp_path / "cache" / "flor-recipes" / "r").iterdir()) == [
        "a.safetensors",
        "a.txt",
    ]


def test_a_wheel_is_fetched_once_and_not_installed(prepared, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    there = prepared.unpacked("pictures==1.0", digest)
    assert (there / "pictures" / "a.png").read_bytes() == b"picture"
    wheel.unlink()
    assert prepared.unpacked("pictures==1.0", digest) == there
    with pytest.raises(ImportError):
        import pictures  # noqa: F401  # pyright: ignore[reportMissingImports]


def test_another_wheel_than_asked_for_is_refused(prepared, wheel: Path) -> None:
    with pytest.raises(MissingDependency, match="another file"):
        prepared.unpacked("pictures==1.0", "0" * 64)
    assert not list(prepared.folder("wheels").iterdir())


def test_a_wheel_that_is_not_there_is_said(prepared, wheel: Path) -> None:
    with pytest.raises(
        MissingDependency, match=r"(?s)pictures==2\.0 was to be fetched by pip.*unpack the wheel at"
    ):
        prepared.unpacked("pictures==2.0", "0" * 64)
