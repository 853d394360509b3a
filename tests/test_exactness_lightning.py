"""A replayed Lightning epoch equals the recorded one to the last bit, whatever the training uses."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

VARIANTS = [
    "plain", "workers", "own_generator", "stream", "plateau", "onecycle", "cosine", "accumulate", "clip",
    "often_validated", "seldom_validated", "max_steps", "bfloat16", "limited", "swa", "ema", "early",
    "model_checkpoint", "gan",
]  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_replayed_epochs_are_bit_equal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flor_plugins.lightning import FlorCallback, drive
    from flor_plugins.store.checkpoints import list_checkpoints
    from flor_plugins.store.layout import Store
    from flor_plugins.store.runs import list_runs
    from tests import variants

    monkeypatch.chdir(tmp_path)
    _, fit = variants.train(name, tmp_path / "saved", FlorCallback(store=tmp_path / "store"), seed=5)
    fit()
    (run,) = list_runs(Store(tmp_path / "store"))
    last = list_checkpoints(run.path)[-1].position.epoch
    before = sorted(tmp_path.glob("saved/*"))

    ways = {"train": tuple(sorted({1, 2, last})), "validate": (last,)} if name != "gan" else {"train": (1, 2, last)}
    session, events = variants.session_of(run, ways)
    trainer, fit = variants.train(name, tmp_path / "saved", FlorCallback(), seed=77)
    drive.drive(trainer, fit, session)

    passed = {event["way"]: (event["grade"], event["detail"]) for event in events if event["event"] == "passed"}
    assert passed.pop("train") == ("exact", "")
    # Nothing was validated at the end of these epochs, so there is nothing to compare with.
    expected = "unverified" if name in ("often_validated", "max_steps") else "exact"
    assert passed == ({"validate": (expected, "")} if "validate" in ways else {})
    assert sorted(tmp_path.glob("saved/*")) == before


def test_group_added_by_finetuning_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flor_plugins.lightning import FlorCallback, drive
    from flor_plugins.store.layout import Store
    from flor_plugins.store.runs import list_runs
    from tests import variants

    monkeypatch.chdir(tmp_path)
    variants.train("finetuning", tmp_path, FlorCallback(store=tmp_path / "store"), seed=5)[1]()
    (run,) = list_runs(Store(tmp_path / "store"))
    for epochs in ((1,), (3, 4)):
        session, events = variants.session_of(run, {"train": epochs})
        drive.drive(*variants.train("finetuning", tmp_path, FlorCallback(), seed=77), session)
        assert [e["grade"] for e in events if e["event"] == "passed"] == ["exact"]


def test_epoch_without_a_checkpoint_before_it_is_reached_by_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flor_plugins.lightning import FlorCallback, drive
    from flor_plugins.store.layout import Store
    from flor_plugins.store.runs import list_runs
    from tests import variants

    monkeypatch.chdir(tmp_path)
    variants.train("plain", tmp_path, FlorCallback(store=tmp_path / "store", every_n_epochs=3), seed=5)[1]()
    (run,) = list_runs(Store(tmp_path / "store"))
    session, events = variants.session_of(run, {"train": (1, 2, 3)})
    drive.drive(*variants.train("plain", tmp_path, FlorCallback(), seed=77), session)
    (passed,) = [event for event in events if event["event"] == "passed"]
    assert (passed["grade"], passed["detail"]) == ("exact", "")
