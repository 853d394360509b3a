"""Hand-written loops: which values stand where, what a run is, and what is said of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextvars import Context
from multiprocessing import Process
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm
from xxhash import xxh3_64

import flor_plugins as flor
from flor_plugins.errors import FlorError
from flor_plugins.loops.api import loop_stack
from flor_plugins.records import Run
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs
from tests.conftest import Table, at, table_of

OURS = ("flor.batch", "flor.first_batch", "lr")


class Toy:
    """A net and its optimizer; `update` makes one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)

    def update(self) -> None:
        self.optimizer.zero_grad()
        self.net(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[Callable[[Toy], Any]], list[Run]]:
    """Runs a function in which a Toy is trained, and returns the runs that came of it."""

    def record(
        train: Callable[[Toy], Any], error: type[BaseException] | None = None, **options: Any
    ) -> list[Run]:
        toy = Toy()

        def act() -> None:
            flor.checkpoints(toy.net, toy.optimizer, store=tmp_path, **options)
            train(toy)
            loop_stack().recent.close()  # as when the process ends

        if error is None:
            Context().run(act)
        else:
            with pytest.raises(error):
                Context().run(act)
        return list_runs(Store(tmp_path))

    return record


def values(table: Table, epoch: int, step: int, **where: Any) -> dict[str, Any]:
    """What was logged at a place, without what is recorded of itself."""
    return {
        name: value for name, value in at(table, epoch, step, **where).items() if name not in OURS
    }


def test_values_of_steps_epochs_and_validation_stand_where_they_belong(recorded):
    def train(toy):
        flor.log("before", 1)
        for epoch in flor.loop("epoch", range(2)):
            flor.log("begun", epoch)
            for i in flor.loop("step", range(3)):
                flor.log("i", i)
                toy.update()
                flor.log("done", i)
            for j in flor.loop("val", range(2)):
                flor.log("j", j)
            assert flor.log("acc", 0.5 + epoch) == 0.5 + epoch
        flor.log("after", 2)

    (run,) = recorded(train)
    table = table_of(run)
    assert values(table, 0, 0, level="epoch") == {"before": 1}
    assert values(table, 0, 1) == {"i": 0, "done": 0}
    assert values(table, 1, 3) == {"i": 2, "done": 2}
    assert values(table, 1, 3, level="epoch") == {"begun": 0, "acc": 0.5}
    assert values(table, 1, 3, phase="validation", level="epoch") == {"j": 1}
    assert values(table, 1, 4) == {"i": 0, "done": 0}
    assert values(table, 2, 6, level="epoch") == {"begun": 1, "acc": 1.5, "after": 2}
    assert at(table, 1, 5)["lr"] == 0.5
    assert (run.framework, run.status, str(run.position)) == ("loop", "finished", "epoch=2,step=6")
    assert [str(one.position) for one in list_checkpoints(run.path)] == [
        "epoch=0,step=0", "epoch=1,step=3", "epoch=2,step=6",
    ]  # fmt: skip


def test_break_and_continue_leave_each_value_at_its_own_position(recorded):
    def train(toy):
        for epoch in flor.loop("epoch", range(2)):
            for i in flor.loop("step", range(9)):
                flor.log("i", i)
                if i == 1:
                    continue
                toy.update()
                if i == 2 + epoch:
                    break
            flor.log("last", i)

    table = table_of(recorded(train)[0])
    # What no update followed joins that of the next iteration, which has a newer one.
    assert values(table, 0, 1) == {"i": 0} and values(table, 1, 2) == {"i": 2}
    assert values(table, 1, 2, level="epoch") == {"last": 2}
    assert [values(table, 1, 3), values(table, 1, 4), values(table, 2, 5)] == [
        {"i": 0},
        {"i": 2},
        {"i": 3},
    ]
    assert values(table, 2, 5, level="epoch") == {"last": 3}


def test_break_before_the_update_overwrites_nothing_of_the_update_before(recorded):
    def train(toy):
        for _ in flor.loop("epoch", range(2)):
            for i in flor.loop("step", range(9)):
                flor.log("i", i)
                if i == 2:
                    break
                toy.update()

    table = table_of(recorded(train)[0])
    assert values(table, 1, 2) == {"i": 1} and values(table, 1, 2, level="epoch") == {"i": 2}
    assert values(table, 1, 3) == {"i": 0}


def test_exception_in_the_third_epoch_keeps_all_rows_before_it_and_no_fourth_epoch(recorded):
    def train(toy):
        for epoch in flor.loop("epoch", range(4)):
            flor.log("begun", epoch)
            for i in flor.loop("step", range(3)):
                flor.log("i", i)
                toy.update()
                if (epoch, i) == (2, 1):
                    raise ZeroDivisionError("as planned")
            flor.log("acc", epoch)

    (run,) = recorded(train, ZeroDivisionError)
    table = table_of(run)
    assert (run.status, str(run.position)) == ("failed", "epoch=2,step=8")
    assert values(table, 2, 6, level="epoch") == {"begun": 1, "acc": 1}
    assert values(table, 2, 7) == {"i": 0} and values(table, 2, 8) == {"i": 1, "begun": 2}
    assert max(position.epoch for position, *_ in table) == 2


@pytest.mark.parametrize("wrapped", [enumerate, tqdm], ids=["enumerate", "tqdm"])
def test_error_and_break_are_told_apart_through_what_goes_over_the_loop(recorded, wrapped):
    def train(toy):
        for _ in wrapped(flor.loop("epoch", range(4))):
            toy.update()
            flor.log("x", 1)
            break
        for _ in wrapped(flor.loop("epoch", range(4))):
            toy.update()
            flor.log("x", 2)
            raise LookupError

    left, failed = recorded(train, LookupError)
    assert (left.status, str(left.position)) == ("finished", "epoch=1,step=1")
    assert (failed.status, str(failed.position)) == ("failed", "epoch=0,step=1")
    assert values(table_of(failed), 0, 1) == {"x": 2}


def test_break_out_of_the_main_loop_completes_its_epoch(recorded):
    def train(toy):
        for epoch in flor.loop("epoch", range(9)):
            for _ in flor.loop("step", range(2)):
                toy.update()
            flor.log("acc", epoch)
            if epoch == 1:
                break
        flor.log("after", 1)

    (run,) = recorded(train)
    assert (run.status, str(run.position)) == ("finished", "epoch=2,step=4")
    assert values(table_of(run), 2, 4, level="epoch") == {"acc": 1, "after": 1}
    assert str(list_checkpoints(run.path)[-1].position) == "epoch=2,step=4"


def test_return_and_a_caught_exception_leave_the_loops_right(recorded):
    def helper(toy, epoch):
        for i in flor.loop("step", range(5)):
            toy.update()
            if epoch == 0 and i == 1:
                return
            if epoch == 1 and i == 2:
                raise LookupError

    def train(toy):
        for epoch in flor.loop("epoch", range(3)):
            try:
                helper(toy, epoch)
            except LookupError as error:
                flor.log("caught", type(error).__name__)
            flor.log("epoch", epoch)

    (run,) = recorded(train)
    table = table_of(run)
    assert values(table, 1, 2, level="epoch") == {"epoch": 0}
    assert values(table, 2, 5, level="epoch") == {"epoch": 1, "caught": "LookupError"}
    assert values(table, 3, 10, level="epoch") == {"epoch": 2}


def test_loop_whose_iterator_somebody_holds_is_over_when_the_one_around_it_goes_on(recorded):
    held = []

    def train(toy):
        for epoch in flor.loop("epoch", range(2)):
            steps = iter(flor.loop("step", range(9)))
            held.append(steps)
            for _ in steps:
                toy.update()
                if toy.net.weight.numel():
                    break
            flor.log("held", epoch)  # nobody has said yet that the inner loop is left
        flor.log("end", 1)

    (run,) = recorded(train)
    assert (run.status, str(run.position)) == ("finished", "epoch=2,step=2")
    found = {
        name for (position, *_), its in table_of(run).items() if position.epoch == 1 for name in its
    }
    assert "held" in found


def test_generators_are_asked_for_one_item_at_a_time_and_kept_nowhere(recorded):
    pulled, alive = [], []

    class Item:
        pass

    def items() -> Iterator[Item]:
        for number in range(3):
            pulled.append(number)
            item = Item()
            alive.append(weakref.ref(item))
            yield item
            del item

    def train(toy):
        for number, _ in enumerate(flor.loop("epoch", (n for n in range(2)))):
            pulled.clear()
            for index, item in enumerate(flor.loop("step", items())):
                assert pulled == list(range(index + 1))
                toy.update()
                del item
                # The generator's own, and that of which a hook may ask.
                assert sum(one() is not None for one in alive[3 * number :]) <= 2
            flor.log("pulled", len(pulled))

    (run,) = recorded(train)
    assert values(table_of(run), 2, 6, level="epoch") == {"pulled": 3}


def test_loops_in_helper_functions_and_at_any_depth_count_updates_once(recorded):
    def minibatches(toy):
        for k in flor.loop("minibatch", range(2)):
            toy.update()
            flor.log("k", k)

    def passes(toy):
        for p in flor.loop("pass", range(2)):
            minibatches(toy)
            flor.log("p", p)

    def train(toy):
        for update in flor.loop("update", range(2)):
            passes(toy)
            flor.log("update", update)

    (run,) = recorded(train)
    table = table_of(run)
    assert values(table, 0, 2) == {"k": 1, "p": 0} and values(table, 1, 4) == {"k": 1, "p": 1}
    assert values(table, 1, 4, level="epoch") == {"update": 0}
    assert values(table, 2, 8, level="epoch") == {"update": 1}


def test_without_an_optimizer_iterations_of_the_innermost_loop_are_steps(tmp_path):
    net = nn.Linear(2, 2)

    def train():
        flor.checkpoints(net, store=tmp_path)
        for epoch in flor.loop("epoch", range(2)):
            for i in flor.loop("step", range(3)):
                flor.log("i", i)
            flor.log("epoch", epoch)

    Context().run(train)
    table = table_of(list_runs(Store(tmp_path))[0])
    assert (
        values(table, 0, 1) == {"i": 0}
        and values(table, 1, 3) == {"i": 2}
        and values(table, 2, 6) == {"i": 2}
    )
    assert values(table, 2, 6, level="epoch") == {"epoch": 1}


def test_two_main_loops_are_two_runs_and_a_loop_of_another_thread_is_nobodys(recorded):
    def train(toy):
        for _ in flor.loop("first", range(1)):
            toy.update()
            Context().run(lambda: [flor.log("elsewhere", x) for x in flor.loop("step", range(3))])
        flor.log("between", 1)
        for _ in flor.loop("val", range(1)):
            pass
        for _ in flor.loop("second", range(2)):
            toy.update()

    first, second = recorded(train)
    assert [first.launch.call, second.launch.call] == [0, 1]
    assert values(table_of(first), 1, 1, level="epoch") == {"between": 1}
    assert str(second.position) == "epoch=2,step=2"
    assert "elsewhere" not in {name for its in table_of(first).values() for name in its}


def test_block_ends_the_run_and_says_what_went_wrong(tmp_path):
    toy = Toy()

    def train():
        with flor.checkpointing(model=toy.net, optimizer=toy.optimizer, store=tmp_path):
            for epoch in flor.loop("epoch", range(3)):
                toy.update()
                if epoch == 1:
                    raise LookupError("not found")

    with pytest.raises(LookupError):
        Context().run(train)
    (run,) = list_runs(Store(tmp_path))
    assert (run.status, run.error) == ("failed", "LookupError: not found")


def test_loop_without_checkpoints_records_values_and_says_that_it_cannot_be_replayed(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FLOR_DIR", str(tmp_path))
    Context().run(lambda: [flor.log("x", x) for x in flor.loop("step", range(3))])
    (run,) = list_runs(Store(tmp_path))
    assert run.replay_grade == "none" and any(
        "flor.checkpoints" in one.remedy for one in run.obstacles
    )
    assert [values(table_of(run), n, n, level="epoch") for n in (1, 2, 3)] == [
        {"x": 0},
        {"x": 1},
        {"x": 2},
    ]
    assert list_checkpoints(run.path) == []


def test_state_that_nobody_registered_is_an_obstacle_with_its_name(recorded):
    def train(toy):
        schedule = torch.optim.lr_scheduler.StepLR(toy.optimizer, 1)
        stream = iter(DataLoader(TensorDataset(torch.ones(9, 3))))
        for _ in flor.loop("epoch", range(1)):
            next(stream)
            toy.update()
            schedule.step()

    (run,) = recorded(train)
    reasons = [one.reason for one in run.obstacles if one.grade == "partial"]
    assert any("StepLR in `schedule`" in one for one in reasons)
    assert any("an iterator" in one and "`stream`" in one for one in reasons)


def test_large_containers_that_grow_are_an_obstacle_until_they_are_registered(recorded):
    def train(toy, registered):
        memory, small, data = [], [], [torch.randn(50, 50) for _ in range(400)]
        flor.checkpoints(*registered(memory))
        for _ in flor.loop("epoch", range(3)):
            memory.extend(torch.randn(3) for _ in range(150))
            small.append(len(data))
            toy.update()

    (run,) = recorded(lambda toy: train(toy, lambda memory: ()))
    reasons = [one.reason for one in run.obstacles if one.grade == "partial"]
    assert len(reasons) == 1 and "`memory`" in reasons[0]
    _, run = recorded(lambda toy: train(toy, lambda memory: (memory,)))
    assert not [one for one in run.obstacles if one.grade == "partial"]


class Emulator(gymnasium.Env):
    """Of its state one part is made in C and one in another process; `dreams` is an object
    that changes.
    """

    def __init__(self) -> None:
        self.core, self.helper, self.dreams = xxh3_64(), Process(), [object()]

    def step(self, action: Any) -> Any:
        self.dreams.append(object())


class Player:
    def __init__(self, poles: Any) -> None:
        self.poles = poles

    def reset(self, seed: int) -> None:
        self.poles.reset(seed=seed)


def test_environments_are_obstacles_until_they_are_registered_and_then_what_in_them_is_out_of_reach(
    recorded,
):
    def train(toy, environment, **registered):
        flor.checkpoints(**registered)
        for _ in flor.loop("epoch", range(1)):
            environment.reset(seed=0)
            toy.update()

    def reasons(run):
        return sorted(one.reason for one in run.obstacles if one.grade == "partial")

    poles = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    (run,) = recorded(lambda toy: train(toy, poles))
    (reason,) = reasons(run)
    assert (
        "keeps an environment (SyncVectorEnv) in `environment`, which flor.checkpoints was not "
        "given" in reason
    )
    run = recorded(lambda toy: train(toy, poles, poles=poles))[-1]
    assert reasons(run) == []
    player = Player(poles)
    run = recorded(lambda toy: train(toy, player))[-1]
    (reason,) = reasons(run)
    assert "keeps an environment (SyncVectorEnv) in `environment.poles`" in reason
    run = recorded(lambda toy: train(toy, player, player=player))[-1]
    assert reasons(run) == []
    emulator = TimeLimit(Emulator(), 9)
    run = recorded(lambda toy: train(toy, emulator, emulator=emulator))[-1]
    assert [reason.split(" keeps in ")[1][:22] for reason in reasons(run)] == [
        "`core` what is not mad", "`helper` a process of ", "`dreams` state (list),",
    ]  # fmt: skip


def test_objects_of_which_no_state_can_be_taken_are_refused_by_name():
    with pytest.raises(FlorError, match=r"given rate=0\.1"):
        Context().run(lambda: flor.checkpoints(nn.Linear(1, 1), rate=0.1))
    with pytest.raises(ValueError, match="every_n_epochs=0"):
        Context().run(lambda: flor.checkpoints(nn.Linear(1, 1), every_n_epochs=0))


def test_a_main_loop_that_nobody_follows_is_one_and_the_loops_in_it_are_none():
    asked = []

    def train():
        loop_stack().begin = lambda on, main: asked.append(main.name)  # returns None
        for epoch in flor.loop("epoch", range(3)):
            for _ in flor.loop("step", range(2)):
                pass
            if epoch == 1:
                break
        for _ in flor.loop("epoch", range(2)):
            list(flor.loop("step", range(2)))
        for _ in flor.loop("more", range(2)):
            list(flor.loop("step", range(2)))

    Context().run(train)
    assert asked == ["epoch", "epoch", "more"]
