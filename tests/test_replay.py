"""What a hook computes in hindsight is what it would have computed live, to the last bit."""

from __future__ import annotations

import pytest

import flor_plugins as flor
from tests import replaying
from tests.replaying import HOOKS, METRICS, Project, rows_of

TWICE = """
from {hooks} import {names}
for accumulate in (1, 2):
    train(FlorCallback(f"plain{{accumulate}}"), accumulate=accumulate)
    train(FlorCallback(f"live{{accumulate}}", metrics=[{names}]), accumulate=accumulate)
train(FlorCallback("sparse", every_n_epochs=2))
"""


@pytest.fixture(scope="module", params=["lightning", "hf"])
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def recorded(framework: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Five trainings in one process; two of them had the metrics live."""
    project = replaying.make(tmp_path_factory.mktemp(framework) / "project")
    text = replaying.TRAIN[framework] + TWICE.format(
        hooks=HOOKS[framework].removesuffix(".py"), names=", ".join(METRICS[framework])
    )
    project.write("train.py", text)
    project.python("train.py")
    return project


@pytest.fixture(scope="module")
def limited(recorded: Project, framework: str) -> dict[tuple[int, int], float]:
    """The step metric, asked for in a few positions only."""
    hook = recorded.root / HOOKS[framework]
    frame = flor.replay(
        "update_norm",
        "step >= 10 and step < 13",
        hooks=[hook],
        run="plain1",
        store=recorded.store.root,
    )
    return rows_of(frame, "plain1", "update_norm")


@pytest.fixture(scope="module")
def asked(recorded: Project, framework: str, limited: object) -> None:
    hook = recorded.root / HOOKS[framework]
    names = ["plain1", "plain2", "sparse"]
    flor.replay(METRICS[framework], hooks=[hook], run=names, workers=2, store=recorded.store.root)


def test_where_limits_the_positions(limited: dict[tuple[int, int], float]) -> None:
    assert sorted(limited) == [(1, 10), (1, 11), (1, 12)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_hindsight_equals_live(
    recorded: Project, framework: str, asked: None, accumulate: int
) -> None:
    for metric, count in zip(
        METRICS[framework], (3, 24 if accumulate == 1 else 12, 3), strict=True
    ):
        frame = flor.dataframe(metric, store=recorded.store.root)
        live = rows_of(frame, f"live{accumulate}", metric)
        assert len(live) == count
        assert rows_of(frame, f"plain{accumulate}", metric) == live


def test_epochs_whose_checkpoint_was_not_kept_are_run_again(
    recorded: Project, framework: str, asked: None
) -> None:
    at_epoch, at_step, _ = METRICS[framework]
    frame = flor.dataframe(at_epoch, at_step, store=recorded.store.root)
    live = rows_of(frame, "live1", at_step)
    assert len(live) == 24
    assert rows_of(frame, "sparse", at_step) == live
    frame = flor.dataframe(at_epoch, store=recorded.store.root)
    assert rows_of(frame, "sparse", at_epoch) == rows_of(frame, "plain1", at_epoch)


def test_every_verdict_is_exact(recorded: Project, asked: None) -> None:
    rows = recorded.verdicts()
    assert {(row["name"], row["way"]) for row in rows} == {
        (name, way)
        for name in ("plain1", "plain2", "sparse")
        for way in ("state", "validate", "train")
    }
    assert {row["verdict"] for row in rows} == {"exact"}
    assert min(row["compared"] for row in rows) > 0


def test_a_rerun_epoch_is_compared_in_losses_and_weights(recorded: Project, asked: None) -> None:
    rerun = next(
        row for row in recorded.verdicts() if row["name"] == "plain1" and row["way"] == "train"
    )
    assert rerun["compared"] >= 3 * 8 + 3 * 4


def test_replayed_code_ends_at_its_fit(recorded: Project, asked: None) -> None:
    # plain2 is the third training of its process: two are passed over before it.
    outputs = {
        path.parent.name: path.read_text()
        for path in recorded.store.root.glob("replays/*/*/output.txt")
    }
    first, third = (
        run for run in flor.runs(store=recorded.store.root) if run.name.startswith("plain")
    )
    assert (first.launch.call, third.launch.call) == (0, 2)
    assert outputs[first.run_id].count("AFTER FIT") == 0
    assert outputs[third.run_id].count("AFTER FIT") == 2


def test_the_same_request_asked_twice_plans_nothing(
    recorded: Project, framework: str, asked: None
) -> None:
    count = len(list(recorded.store.replays.iterdir()))
    hook = recorded.root / HOOKS[framework]
    flor.replay(METRICS[framework], hooks=[hook], store=recorded.store.root)
    assert len(list(recorded.store.replays.iterdir())) == count


def test_recovered_values_share_a_row_with_recorded_ones(
    recorded: Project, framework: str, asked: None
) -> None:
    frame = flor.dataframe("update_norm", "loss", source=True, store=recorded.store.root)
    own = frame[frame["name"] == "plain1"]
    assert len(own) == 24
    assert own["loss"].notna().all() and own["update_norm"].notna().all()
    assert set(own["loss.source"]) == {"record"}
    assert all(source.startswith("replay") for source in own["update_norm.source"])
    assert set(own["update_norm.verdict"]) == {"exact"}


def test_missing_values_alone_are_asked_for(recorded: Project, framework: str, asked: None) -> None:
    for run in flor.runs(store=recorded.store.root):
        seen: set[tuple[str, object]] = set()
        from flor_plugins.store.metrics.journal import read_run

        for source, row in read_run(run.path):
            for name in row.values if source.is_replay else ():
                assert (name, row.position) not in seen
                seen.add((name, row.position))
