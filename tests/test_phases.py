"""`flor.log` belongs to the phase it is called in, and hooks draw from nobody's generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import flor_plugins as flor
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.runs import list_runs

pytestmark = pytest.mark.filterwarnings("ignore")


def phases_of(store: Path, name: str) -> set[tuple[int, str]]:
    (run,) = list_runs(Store(store))
    return {(row.position.epoch, row.phase) for _, row in read_run(run.path) if name in row.values}


def test_lightning_log_in_validation_and_test_lands_in_its_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from flor_plugins.lightning import FlorCallback
    from tests import variants

    class Logging(variants.Net):
        def validation_step(self, batch: Any, index: int) -> None:
            flor.log("seen_in", "validation")
            super().validation_step(batch, index)

        def test_step(self, batch: Any, index: int) -> None:
            flor.log("seen_in", "test")

    monkeypatch.chdir(tmp_path)
    loader = DataLoader(variants.Points(20, False), 4)
    module = Logging(variants.adamw)
    trainer = pl.Trainer(
        **variants.SETTINGS, max_epochs=2, callbacks=[FlorCallback(store=tmp_path / "s")]
    )
    trainer.fit(module, loader, loader)
    trainer.test(module, loader, verbose=False)
    assert phases_of(tmp_path / "s", "seen_in") == {
        (1, "validation"),
        (2, "validation"),
        (2, "test"),
    }


def test_hf_log_in_compute_metrics_lands_in_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flor_plugins.hf import FlorCallback
    from tests.cells_hf import train

    monkeypatch.chdir(tmp_path)
    trainer, go = train("plain", tmp_path / "out", FlorCallback(store=tmp_path / "s"))

    def compute_metrics(predicted: Any) -> dict[str, float]:
        flor.log("asked", 1)
        return {}

    trainer.compute_metrics = compute_metrics
    go()
    assert phases_of(tmp_path / "s", "asked") == {(epoch, "validation") for epoch in (1, 2, 3, 4)}


def test_hook_leaves_a_generator_that_both_loaders_share_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from flor_plugins.lightning import FlorCallback
    from tests import variants

    @flor.metric(at="epoch")
    def passes(ctx: flor.Context) -> int:
        return sum(len(x) for x, _ in ctx.val_dataloader)

    def weights(callbacks: list[Any]) -> list[torch.Tensor]:
        pl.seed_everything(5, verbose=False)
        module = variants.Net(variants.adamw)
        shared = torch.Generator().manual_seed(1)
        train = DataLoader(variants.Points(), 4, shuffle=True, generator=shared)
        val = DataLoader(variants.Points(20, False), 4, generator=shared)
        pl.Trainer(**variants.SETTINGS, max_epochs=3, callbacks=callbacks).fit(module, train, val)
        return [p.detach().clone() for p in module.parameters()]

    monkeypatch.chdir(tmp_path)
    without = weights([])
    having = weights([FlorCallback(metrics=[passes], store=tmp_path / "s")])
    assert all(torch.equal(a, b) for a, b in zip(without, having, strict=True))
    assert phases_of(tmp_path / "s", "passes") == {(epoch, "validation") for epoch in (1, 2, 3)}


def test_trainer_that_is_built_otherwise_is_trained_unrecorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flor_plugins.hf import FlorCallback
    from flor_plugins.hf.collector import MetricCollector
    from flor_plugins.recorder.gaps import FlorWarning
    from tests.cells_hf import train

    def attach(self: MetricCollector) -> None:
        raise AttributeError("'Trainer' object has no attribute '_get_grad_norm'")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MetricCollector, "attach", attach)
    trainer, go = train("max_steps_long", tmp_path / "out", FlorCallback(store=tmp_path / "s"))
    with pytest.warns(FlorWarning, match="_get_grad_norm"):
        go()
    assert trainer.state.global_step == 29
    (run,) = list_runs(Store(tmp_path / "s"))
    assert run.status == "failed" and "_get_grad_norm" in str(run.gaps)
