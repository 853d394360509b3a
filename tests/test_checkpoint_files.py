from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import AT, LATER, folder, sections
from codec_cases import same

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.store.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from flor_plugins.store.codec import decode, encode

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "20260101-000000-000-abcdef"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_the_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[10] ^= 0x80
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, flip_the_header, Path.unlink])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_damaged_file_is_named_before_anything_is_loaded(
    run: Path, file: str, damage: Callable[[Path], None]
) -> None:
    save_checkpoint(run, AT, encode(sections()))
    damage(folder(run) / file)
    with pytest.raises(DamagedCheckpoint, match=rf"{file}.*Restore it from a copy"):
        load_checkpoint(run, AT)


def test_every_single_bit_of_a_tensor_file_matters(run: Path) -> None:
    save_checkpoint(run, AT, encode({"model": {"w": torch.ones(2)}}))
    path = folder(run) / "model.safetensors"
    whole = path.read_bytes()
    for i in range(8, len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        if whole[i : i + 1] != b" ":  # the header is padded with spaces
            with pytest.raises(DamagedCheckpoint):
                load_checkpoint(run, AT)


def test_damage_in_a_referenced_checkpoint_is_found(run: Path) -> None:
    known: dict[Any, Any] = {}
    save_checkpoint(run, AT, encode(sections()), known)
    save_checkpoint(run, LATER, encode(sections(2.0)), known)
    flip_a_bit(folder(run) / "model.safetensors")
    with pytest.raises(DamagedCheckpoint, match=str(AT)):
        load_checkpoint(run, LATER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"lr": 0.1', '"lr": 0.2'),
        ('"full": true', '"full": false'),
        ("model.safetensors", "../../x.safetensors"),
        ('"epoch": 1', '"epoch": NaN'),
        ('{"format": 2', '{"format": 0'),
        ("{", ""),
        ("}", ""),
    ],
)
def test_an_altered_state_is_found(run: Path, old: str, new: str) -> None:
    save_checkpoint(run, AT, encode(sections()))
    path = folder(run) / "state.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DamagedCheckpoint, match=r"state\.json"):
        load_checkpoint(run, AT)
    with pytest.warns(UserWarning, match="passed over"):
        assert list_checkpoints(run) == []


def test_a_checkpoint_without_its_state_is_damaged(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    (folder(run) / "state.json").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"state\.json"):
        load_checkpoint(run, AT)


def test_a_renamed_checkpoint_is_refused(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    folder(run).rename(folder(run, LATER))
    with pytest.raises(DamagedCheckpoint, match=f"is the state at {AT}"):
        load_checkpoint(run, LATER)


def test_pretty_printing_does_no_harm_and_a_newer_format_is_said(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    path = folder(run) / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state, indent=4, sort_keys=True))
    load_checkpoint(run, AT)
    path.write_text(json.dumps(state | {"format": 3}))
    with pytest.raises(StoreError, match="newer flor-plugins"):
        load_checkpoint(run, AT)


def test_checkpoints_of_format_1_are_read(tmp_path: Path) -> None:
    run = (
        Path(shutil.copytree(GOLDEN / "format-1", tmp_path / "old")) / "20260101-000000-000-abcdef"
    )
    assert same(load_checkpoint(run, AT), decoded(sections()))
    assert same(load_checkpoint(run, LATER), decoded(sections(2.0)))
    flip_a_bit(folder(run, LATER) / "optimizer.safetensors")
    with pytest.raises(DamagedCheckpoint, match="sha256"):
        load_checkpoint(run, LATER)


def decoded(state: dict[str, Any]) -> dict[str, Any]:
    encoded = encode(state)
    return decode(encoded.tree, encoded.tensors)
