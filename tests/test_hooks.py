"""Hooks: what they may do, what is undone, how they are found, and what is said when one is
wrong.
"""

from __future__ import annotations

import random
import threading
from contextvars import copy_context
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import flor_plugins as flor
from flor_plugins.errors import FlorError, HookError
from flor_plugins.hooks import log
from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.hook_files import check_callback, load, scan
from flor_plugins.hooks.metric import Context, Metric
from flor_plugins.hooks.side_effects import undisturbed
from flor_plugins.records import Position
from flor_plugins.store.metrics.journal import read_run
from tests import replaying
from tests.replaying import Project, rows_of

HERE = Position(2, 16)

# ---- the guard


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


@flor.metric
def plain(ctx):
    return 1


@flor.metric(grad=True)
def with_grad(ctx):
    return 1


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_guarded_hook_leaves_no_trace() -> None:
    model = net()
    model(torch.randn(8, 3)).sum().backward()
    model[0].eval()
    model[3].weight.requires_grad_(False)
    modes = [part.training for part in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with undisturbed(model, with_grad, HERE):
        draws()
        model.train()
        model(torch.randn(8, 3)).sum().backward()
        model[3].weight.requires_grad_(True)
    assert draws() == expected
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not model[3].weight.requires_grad
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient is None or torch.equal(parameter.grad, gradient)


def test_the_epoch_hook_sees_eval_mode_without_autograd() -> None:
    model = net()
    with undisturbed(model, plain, HERE):
        assert not model.training and not torch.is_grad_enabled()
    assert model.training and torch.is_grad_enabled()


def test_a_hook_draws_the_same_numbers_at_the_same_position() -> None:
    seen = []
    for position in (HERE, HERE, Position(3, 24)):
        torch.rand(3)
        with undisturbed(net(), plain, position):
            seen.append(draws())
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="there, seeds of an unused GPU are kept otherwise"
)
def test_seed_of_a_hook_does_not_take_the_place_of_the_one_that_torch_keeps_for_a_gpu():
    torch.manual_seed(5)
    kept = torch.cuda._lazy_seed_tracker.get_calls()
    with undisturbed(nn.Linear(1, 1), plain, HERE):
        torch.rand(1)
    assert torch.cuda._lazy_seed_tracker.get_calls() == kept and any(kept)


def test_a_changed_weight_is_told_with_the_place_of_the_hook() -> None:
    model = net()
    with (
        pytest.raises(
            HookError,
            match=r"test_hooks\.py:\d+: metric 'plain' changed "
            r"weights",
        ),
        undisturbed(model, plain, HERE),
    ):
        model[0].weight.mul_(2)


@pytest.mark.parametrize("how", ["zero_", "none"])
def test_gradients_taken_away_are_told_or_put_back(how: str) -> None:
    model = net()
    model(torch.randn(8, 3)).sum().backward()
    before = model[0].weight.grad.clone()
    with undisturbed(model, with_grad, HERE):
        model.zero_grad(set_to_none=how == "none")
    assert torch.equal(model[0].weight.grad, before)


def test_modes_come_back_when_a_hook_raises() -> None:
    model = net()
    with pytest.raises(ZeroDivisionError), undisturbed(model, plain, HERE):
        raise ZeroDivisionError
    assert model.training


# ---- calling


def context(**fields: object) -> Context:
    return Context(**{"model": net(), "epoch": 2, "step": 16, **fields})  # type: ignore[arg-type]


def test_what_a_hook_returns_stays_as_it_was_when_the_training_goes_on() -> None:
    @flor.metric
    def mean_and_rows(ctx):
        norm = ctx.model[1]
        return {"mean": norm.running_mean, "rows": [norm.weight[:2]]}

    model = net()
    found = HookDispatcher([mean_and_rows]).epoch(context(model=model))["mean_and_rows"]
    with torch.no_grad():
        model[1].running_mean.add_(1)
        model[1].weight.add_(1)
    assert found["mean"].tolist() == [0, 0, 0, 0] and found["rows"][0].tolist() == [1, 1]


def test_a_hook_that_raises_does_not_stop_the_others() -> None:
    @flor.metric
    def broken(ctx):
        return 1 / 0

    told: list[HookError] = []
    hooks = HookDispatcher((broken, plain), lambda metric, position, error: told.append(error))
    assert hooks.epoch(context()) == {"plain": 1}
    [error] = told
    assert "test_hooks.py:" in str(
        error
    ) and "'broken' raised at epoch=2,step=16: ZeroDivisionError" in str(error)


def test_a_step_hook_sees_both_sides_of_an_update() -> None:
    @flor.metric(at="step")
    def change(ctx):
        before = ctx.model[0].weight.detach().clone()
        yield
        return float((ctx.model[0].weight - before).sum())

    hooks, ctx = HookDispatcher((change,)), context()
    hooks.before_update(ctx)
    with torch.no_grad():
        ctx.model[0].weight.add_(1)
    assert hooks.after_update(ctx) == {"change": pytest.approx(12)}


def test_two_yields_are_told() -> None:
    @flor.metric(at="step")
    def twice(ctx):
        yield
        yield

    told: list[HookError] = []
    hooks, ctx = (
        HookDispatcher((twice,), lambda metric, position, error: told.append(error)),
        context(),
    )
    hooks.before_update(ctx)
    assert hooks.after_update(ctx) == {}
    assert "yields twice" in str(told[0])


@pytest.mark.parametrize(("how", "expected"), [("mean", 2.0), ("sum", 6), (max, 3)])
def test_validation_values_are_reduced_over_batches(how: object, expected: float) -> None:
    hooks = HookDispatcher((Metric(lambda ctx: ctx.batch, "validation", how),))  # type: ignore[arg-type]
    for batch in (1, 2, 3):
        hooks.validation_batch(context(batch=batch))
    [value] = hooks.validation_end(HERE).values()
    assert float(value) == expected
    assert hooks.validation_end(HERE) == {}


def test_log_does_nothing_outside_a_training_and_feeds_the_sink_within() -> None:
    seen: list[tuple[str, object]] = []
    flor.log("x", 1)
    with log.connected(lambda name, value: seen.append((name, value))):
        flor.log("x", 2)
    flor.log("x", 3)
    assert seen == [("x", 2)]


def log_in_thread(name: str) -> None:
    thread = threading.Thread(target=flor.log, args=(name, 1))
    thread.start()
    thread.join()


def test_log_in_a_thread_reaches_the_only_training_as_long_as_it_is_connected() -> None:
    seen: list[str] = []
    log_in_thread("before")
    log.connect(lambda name, value: seen.append(name))
    log_in_thread("during")
    with log.connected(lambda name, value: seen.append(f"{name} an update")):
        log_in_thread("within")
    log_in_thread("after it")
    log.connect(None)
    log_in_thread("later")
    assert seen == ["during", "within an update", "after it"]


def test_log_in_a_thread_warns_where_several_trainings_are_recorded() -> None:
    seen: list[str] = []
    is_connected, is_over = threading.Event(), threading.Event()

    def train() -> None:
        with log.connected(lambda name, value: seen.append(f"other {name}")):
            is_connected.set()
            is_over.wait()

    other = threading.Thread(target=train)
    other.start()
    is_connected.wait()
    try:
        with log.connected(lambda name, value: seen.append(name)):
            flor.log("own", 1)
            with pytest.warns(RuntimeWarning, match=r"flor.log\('lost'\).*2 trainings"):
                log_in_thread("lost")
            known = threading.Thread(target=copy_context().run, args=(flor.log, "known", 1))
            known.start()
            known.join()
    finally:
        is_over.set()
        other.join()
    assert seen == ["own", "known"]


# ---- finding


def test_scan_finds_hooks_without_importing(tmp_path: Path) -> None:
    path = tmp_path / "hooks.py"
    path.write_text(
        "import flor_plugins as flor\nraise SystemExit('imported')\n"
        "@flor.metric\ndef a(ctx): ...\n@flor.metric(at='validation')\ndef b(ctx): ...\n"
        "@flor.metric(at='step')\ndef c(ctx): ...\ndef helper(x): ...\n"
        "class Only(Callback):\n    def on_validation_epoch_end(self, trainer, pl_module): ...\n"
        "class Train(TrainerCallback):\n    def on_step_end(self, args, state, control, **k): ...\n"
        "def compute_metrics(p): ...\n"
    )
    assert [(found.name, found.kind, found.way) for found in scan(path)] == [
        ("a", "metric", "state"), ("b", "metric", "validate"), ("c", "metric", "train"),
        ("Only", "callback", "validate"), ("Train", "callback", "train"),
        ("compute_metrics", "compute_metrics", "validate"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(:\n", r"bad\.py:1: .*not Python"),
        (
            "import flor_plugins as flor\n@flor.metric(at='batch')\ndef f(ctx): ...\n",
            r"bad\.py:3: .*'batch'",
        ),
    ],
)
def test_scan_names_file_and_line(tmp_path: Path, source: str, told: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(HookError, match=told):
        scan(path)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("x = 1\ny = 1 / 0\n", r"bad\.py:2: .*ZeroDivisionError"),
        (
            "import flor_plugins as flor\n@flor.metric\ndef f(): ...\n",
            r"bad\.py:\d: metric 'f' must take one",
        ),
        (
            "import flor_plugins as flor\n@flor.metric\ndef f(ctx): yield\n",
            r"bad\.py:\d: metric 'f' yields",
        ),
    ],
)
def test_load_names_file_and_line(tmp_path: Path, source: str, told: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(HookError, match=told):
        load(path)


class Base:
    def on_validation_epoch_end(self, trainer, pl_module): ...
    def on_evaluate(self, args, state, control, **kwargs): ...


def test_a_misspelt_method_is_told_with_the_likely_one() -> None:
    class Hook(Base):
        def on_validation_epoch_ends(self, trainer, pl_module): ...

    with pytest.raises(
        HookError,
        match=r"test_hooks\.py:\d+: Hook\.on_validation_epoch_ends .*on_validation_epoch_end",
    ):
        check_callback(Hook, Base)


def test_a_wrong_signature_is_told_with_the_right_one() -> None:
    class Short(Base):
        def on_validation_epoch_end(self, trainer): ...

    class NoKeywords(Base):
        def on_evaluate(self, args, state, control): ...

    with pytest.raises(
        HookError,
        match=r"test_hooks\.py:\d+: Short.*def on_validation_epoch_end\(self, trainer, pl_module",
    ):
        check_callback(Short, Base)
    with pytest.raises(HookError, match="NoKeywords"):
        check_callback(NoKeywords, Base)


def test_a_good_callback_passes() -> None:
    class Hook(Base):
        def on_validation_epoch_end(self, *args): ...
        def on_evaluate(self, args, state, control, metrics=None, **kwargs): ...

    check_callback(Hook, Base)


# ---- in a replay

CALLBACKS = {
    "lightning": """
from lightning.pytorch.callbacks import Callback

class Spread(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("spread", pl_module.net[0].weight.std())
""",
    "hf": """
from transformers import TrainerCallback
import flor_plugins as flor

class Spread(TrainerCallback):
    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        flor.log("spread", float(model.transformer.wte.weight.std()))

def compute_metrics(prediction):
    return {"certain": float(prediction.predictions.max())}
""",
}
NAMES = {"lightning": ["spread"], "hf": ["spread", "eval_certain"]}
MISSPELT = {
    "lightning": CALLBACKS["lightning"].replace("epoch_end", "epochs_end"),
    "hf": CALLBACKS["hf"].replace("on_evaluate", "on_evaluation"),
}
BAD = """
import flor_plugins as flor

@flor.metric
def sometimes(ctx):
    if ctx.epoch == 2:
        raise ValueError("not at two")
    return ctx.epoch

@flor.metric
def alive(ctx):
    return ctx.model

@flor.metric
def fine(ctx):
    return ctx.epoch * 10
"""


@pytest.fixture(scope="module", params=["lightning", "hf"])
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def project(framework: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = replaying.make(tmp_path_factory.mktemp(framework) / "project")
    # Evaluations every few steps, of which some end an epoch: those are compared.
    often = {"lightning": "val_check_interval=0.5", "hf": "eval_strategy='steps', eval_steps=4"}[
        framework
    ]
    project.write("train.py", replaying.TRAIN[framework] + f"train(FlorCallback('toy'), {often})\n")
    project.python("train.py")
    return project


def test_an_ordinary_callback_delivers_values_by_validating(
    project: Project, framework: str
) -> None:
    hook = project.write("callbacks.py", CALLBACKS[framework])
    assert {found.way for found in scan(hook)} == {"validate"}
    frame = flor.replay(NAMES[framework], hooks=[hook], store=project.store.root)
    for name in NAMES[framework]:
        values = rows_of(frame, "toy", name)
        assert list(values) == [(0, 4), (1, 8), (1, 12), (2, 16), (2, 20), (3, 24)]
        assert len(set(values.values())) == 6
    # Where a checkpoint lies it is restored; to the others the training leads.
    assert [(row["way"], row["verdict"]) for row in project.verdicts()] == [
        ("validate", "exact"),
        ("train", "exact"),
    ]
    assert all(row["compared"] >= 3 for row in project.verdicts())


def test_what_a_callback_delivers_is_the_value_at_that_epoch(
    project: Project, framework: str
) -> None:
    weights = {"lightning": "net.0.weight", "hf": "transformer.wte.weight"}[framework]
    frame = flor.dataframe("spread", store=project.store.root)
    for (epoch, step), value in rows_of(frame, "toy", "spread").items():
        if step % 8:
            continue
        model = flor.checkpoint("toy", epoch, store=project.store.root)
        assert value == float(model[weights].std())


def test_a_misspelt_callback_is_told_and_nothing_is_stored(
    project: Project, framework: str
) -> None:
    hook = project.write("misspelt.py", MISSPELT[framework].replace('"spread"', '"spreads"'))
    with pytest.raises(
        FlorError, match=r"misspelt\.py:\d+: Spread\.on_.* is no hook of .*did you mean"
    ):
        flor.replay("spreads", hooks=[hook], store=project.store.root)


def test_a_hook_that_raises_is_placed_and_other_positions_are_stored(
    project: Project, framework: str
) -> None:
    hook = project.write("bad.py", BAD)
    with pytest.raises(HookError) as caught:
        flor.replay(["sometimes", "alive", "fine"], hooks=[hook], store=project.store.root)
    told = str(caught.value)
    assert (
        "bad.py:7: metric 'sometimes' raised at epoch=2," in told
        and "ValueError: not at two" in told
    )
    assert "'alive' at epoch=1," in told and "sometimes' raised at epoch=1" not in told
    frame = flor.dataframe("sometimes", "fine", store=project.store.root)
    assert list(rows_of(frame, "toy", "sometimes").values()) == [1, 3]
    assert list(rows_of(frame, "toy", "fine").values()) == [10, 20, 30]
    [run] = flor.runs(store=project.store.root)
    assert not any("alive" in row.values for _, row in read_run(run.path))
