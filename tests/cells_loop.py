"""Hand-written trainings of every kind. Each takes `loop` and `log` (flor's, or ones that do
nothing) and `tell`, which hears of each micro-batch's loss."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, IterableDataset

Cell = Callable[["Flor"], None]


@dataclass
class Flor:
    """What a cell calls. Without `face` it trains without flor. options: of `flor.checkpoints`."""

    face: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    told: list[tuple[int, str]] = field(default_factory=list)
    final: dict[str, torch.Tensor] = field(default_factory=dict)

    def checkpoints(self, *objects: Any, **named: Any) -> None:
        if self.face is not None:
            self.face.checkpoints(*objects, **named, **self.options)

    def loop(self, name: str, iterable: Any) -> Any:
        return iterable if self.face is None else self.face.loop(name, iterable)

    def log(self, name: str, value: Any) -> Any:
        return value if self.face is None else self.face.log(name, value)

    def loss(self, epoch: int, value: torch.Tensor) -> torch.Tensor:
        self.told.append((epoch, value.detach().float().numpy().tobytes().hex()))
        self.log("loss", value)
        return value

    def end(self, net: nn.Module) -> None:
        self.final = {name: one.clone() for name, one in net.state_dict().items()}


class Points(Dataset):
    """Augmented by all three global generators."""

    def __init__(self, n: int = 44, augment: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = (
            torch.randn(n, 6, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index]
        if self.augment:
            x = x + 0.1 * torch.randn(6) + 0.1 * float(np.random.rand()) + 0.1 * random.random()
        return x, self.y[index]


class Stream(IterableDataset):
    """Of unknown length, drawn from the global generator."""

    def __iter__(self) -> Iterator[Any]:
        for _ in range(30):
            yield torch.randn(6), torch.randint(0, 3, ()).item()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def built(lr: float = 0.05) -> tuple[Net, torch.optim.Optimizer]:
    net = Net()
    return net, torch.optim.AdamW(net.parameters(), lr=lr)


def step(net: nn.Module, optimizer: Any, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def validate(flor: Flor, net: nn.Module) -> float:
    loader, right = DataLoader(Points(20, augment=False), batch_size=8), 0
    net.eval()
    with torch.no_grad():
        for x, y in flor.loop("val", loader):
            right += int((net(x).argmax(1) == y).sum())
            flor.log("right", right)
    net.train()
    return right / 20


def plain(flor: Flor, **settings: Any) -> None:
    net, optimizer = built()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    loader = DataLoader(Points(), batch_size=8, **{"shuffle": True, **settings})
    flor.checkpoints(net, optimizer, schedule)
    for epoch in flor.loop("epoch", range(4)):
        total = 0.0
        for x, y in flor.loop("step", loader):
            loss = flor.loss(epoch, F.cross_entropy(net(x), y))
            step(net, optimizer, loss)
            total += loss.item()
            flor.log("total", total)
        schedule.step()
        flor.log("acc", validate(flor, net))
    flor.end(net)


def workers(flor: Flor) -> None:
    plain(flor, num_workers=2)


def persistent_workers(flor: Flor) -> None:
    net, optimizer = built()
    loader = DataLoader(
        Points(augment=False), 8, shuffle=True, num_workers=1, persistent_workers=True
    )
    flor.checkpoints(net, optimizer)
    for epoch in flor.loop("epoch", range(4)):
        for x, y in flor.loop("step", loader):
            step(net, optimizer, flor.loss(epoch, F.cross_entropy(net(x), y)))
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()
    flor.end(net)


def own_generator(flor: Flor) -> None:
    plain(flor, generator=torch.Generator().manual_seed(8))


def stream(flor: Flor) -> None:
    net, optimizer = built()
    loader = DataLoader(Stream(), batch_size=8)
    flor.checkpoints(net, optimizer)
    for epoch in flor.loop("epoch", range(4)):
        for i, (x, y) in flor.loop("step", enumerate(loader)):
            flor.log("i", i)
            step(net, optimizer, flor.loss(epoch, F.cross_entropy(net(x), y)))
    flor.end(net)


def accumulate(flor: Flor) -> None:
    net, optimizer = built()
    # 11 batches: two gradients stay at the epoch's end
    loader = DataLoader(Points(), batch_size=4, shuffle=True)
    flor.checkpoints(net, optimizer)
    for epoch in flor.loop("epoch", range(4)):
        for i, (x, y) in enumerate(flor.loop("step", loader)):
            (flor.loss(epoch, F.cross_entropy(net(x), y)) / 3).backward()
            if i % 3 == 2:
                norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                flor.log("norm", norm)
    flor.end(net)


def break_and_continue(flor: Flor) -> None:
    net, optimizer = built()
    loader = DataLoader(Points(), batch_size=4, shuffle=True)
    flor.checkpoints(net, optimizer)
    for number, epoch in enumerate(flor.loop("epoch", range(5)), start=10):
        for i, (x, y) in enumerate(flor.loop("step", loader)):
            if i % 4 == 1:
                flor.log("left_out", i)
                continue
            step(net, optimizer, flor.loss(epoch, F.cross_entropy(net(x), y)))
            if i == 4 + epoch:
                flor.log("stopped", i)
                break
        if epoch == 2:
            continue
        flor.log("acc", validate(flor, net))
        if number == 13:
            break
    flor.end(net)


def generators(flor: Flor) -> None:
    """Rates of a generator as the main loop's items, and batches of one that is made in each
    epoch.
    """

    def rates() -> Iterator[float]:
        for number in range(4):
            yield 0.1 / (1 + number) + 0.01 * random.random()

    def batches() -> Iterator[Any]:
        for _ in range(random.randrange(4, 7)):
            yield torch.randn(8, 6), torch.randint(0, 3, (8,))

    net, optimizer = built()
    flor.checkpoints(net, optimizer)
    for epoch, rate in enumerate(flor.loop("epoch", rates())):
        optimizer.param_groups[0]["lr"] = flor.log("rate", rate)
        for x, y in flor.loop("step", batches()):
            step(net, optimizer, flor.loss(epoch, F.cross_entropy(net(x), y)))
    flor.end(net)


class Session:
    """A trainer of one's own: loops in methods, a loader and a counter among its attributes."""

    def __init__(self, flor: Flor) -> None:
        self.flor, (self.net, self.optimizer), self.seen = flor, built(), 0
        self.loader = DataLoader(
            Points(), 8, shuffle=True, generator=torch.Generator().manual_seed(4)
        )
        self.recent: deque[float] = deque(maxlen=3)

    def train_epoch(self, epoch: int) -> float:
        count = 0
        for x, y in self.flor.loop("step", self.loader):
            loss = self.flor.loss(epoch, F.cross_entropy(self.net(x), y) * (1 + 0.01 * self.seen))
            step(self.net, self.optimizer, loss)
            self.seen, count = self.seen + 1, count + 1
            self.recent.append(loss.item())
            self.flor.log("recent", sum(self.recent) / len(self.recent))
        return count

    def fit(self) -> None:
        for epoch in self.flor.loop("epoch", range(4)):
            self.flor.log("count", self.train_epoch(epoch))


def own_trainer(flor: Flor) -> None:
    session = Session(flor)
    flor.checkpoints(session.net, session.optimizer, session)
    session.fit()
    flor.end(session.net)


def counters(flor: Flor) -> None:
    """What decides about the training lives in variables."""
    net, optimizer = built()
    epsilon, best, patience, history, running = 1.0, 0.0, 0, [], torch.zeros(3)
    loader = DataLoader(Points(), batch_size=8, shuffle=True)
    flor.checkpoints(net, optimizer)

    def decay() -> None:
        nonlocal epsilon
        epsilon *= 0.9

    for epoch in flor.loop("epoch", range(9)):
        seen = 0
        for x, y in flor.loop("step", loader):
            out = net(x)
            running = 0.9 * running + out.detach().mean(0)
            loss = flor.loss(epoch, F.cross_entropy(out + epsilon * running, y))
            step(net, optimizer, loss)
            decay()
            seen += len(x)
            history.append(loss.item())
            flor.log("epsilon", epsilon)
            flor.log("seen", seen)
        acc = validate(flor, net)
        patience = 0 if acc > best else patience + 1
        best = max(best, acc)
        flor.log("mean", sum(history) / len(history))
        flor.log("best", best)
        if patience == 2 or epoch == 5:
            break
    flor.end(net)


def two_networks(flor: Flor) -> None:
    maker, judge = (
        nn.Linear(4, 6),
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)),
    )
    first, second = (
        torch.optim.Adam(maker.parameters(), lr=0.02),
        torch.optim.SGD(judge.parameters(), lr=0.05),
    )
    loader = DataLoader(Points(), batch_size=8, shuffle=True)
    flor.checkpoints(maker=maker, judge=judge, first=first, second=second)
    for epoch in flor.loop("epoch", range(3)):
        for x, _ in flor.loop("step", loader):
            made = maker(torch.randn(len(x), 4))
            judged = F.softplus(-judge(x)).mean() + F.softplus(judge(made.detach())).mean()
            step(judge, second, flor.loss(epoch, judged))
            step(maker, first, flor.log("made", F.softplus(-judge(made)).mean()))
    flor.end(maker)


def average_and_scaler(flor: Flor) -> None:
    net, optimizer = built()
    average = AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    scaler = torch.amp.grad_scaler.GradScaler("cpu", init_scale=64.0, growth_interval=5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: 0.95**count)
    loader = DataLoader(Points(), batch_size=8, shuffle=True)
    flor.checkpoints(
        net=net, average=average, optimizer=optimizer, scaler=scaler, schedule=schedule
    )
    for epoch in flor.loop("epoch", range(3)):
        for x, y in flor.loop("step", loader):
            loss = flor.loss(epoch, F.cross_entropy(net(x), y) + 0.1 * average(x).pow(2).mean())
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            average.update_parameters(net)
            flor.log("scale", scaler.get_scale())
    flor.end(net)


def only_batches(flor: Flor) -> None:
    """The main loop goes over batches itself."""
    net, optimizer = built()
    loader = DataLoader(Points(), batch_size=8, shuffle=True, num_workers=1)
    flor.checkpoints(net, optimizer)
    for number, (x, y) in enumerate(flor.loop("batch", loader)):
        step(net, optimizer, flor.loss(number, F.cross_entropy(net(x), y)))
    flor.end(net)


def three_levels(flor: Flor) -> None:
    """As in PPO: an update draws data, and goes over them several times."""
    net, optimizer = built()
    flor.checkpoints(net, optimizer)
    for epoch in flor.loop("update", range(4)):
        x, y = torch.randn(16, 6), torch.randint(0, 3, (16,))
        for _ in flor.loop("pass", range(2)):
            for rows in flor.loop("minibatch", torch.randperm(16).split(4)):
                step(net, optimizer, flor.loss(epoch, F.cross_entropy(net(x[rows]), y[rows])))
        flor.log("reward", float(x.sum()))
    flor.end(net)


def no_optimizer(flor: Flor) -> None:
    net = nn.Linear(6, 3)
    loader = DataLoader(Points(), batch_size=8, shuffle=True)
    flor.checkpoints(net)
    for epoch in flor.loop("epoch", range(3)):
        for x, y in flor.loop("step", loader):
            loss = flor.loss(epoch, F.cross_entropy(net(x), y))
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for one, gradient in zip(net.parameters(), gradients, strict=True):
                    one -= 0.1 * gradient
    flor.end(net)


def lbfgs(flor: Flor) -> None:
    net = nn.Linear(6, 3)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)
    loader = DataLoader(Points(), batch_size=22, shuffle=True)
    flor.checkpoints(net, optimizer)
    for epoch in flor.loop("epoch", range(3)):
        for x, y in flor.loop("step", loader):

            def closure(
                x: torch.Tensor = x, y: torch.Tensor = y, epoch: int = epoch
            ) -> torch.Tensor:
                optimizer.zero_grad()
                loss = flor.loss(epoch, F.cross_entropy(net(x), y))
                loss.backward()
                return loss

            optimizer.step(closure)
    flor.end(net)


def accelerated(flor: Flor) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, optimizer = built()
    loader = DataLoader(Points(), batch_size=4, shuffle=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
    net, optimizer, loader, schedule = accelerator.prepare(net, optimizer, loader, schedule)
    flor.checkpoints(net, optimizer, schedule)
    for epoch in flor.loop("epoch", range(4)):
        for x, y in flor.loop("step", loader):
            with accelerator.accumulate(net):
                loss = flor.loss(epoch, F.cross_entropy(net(x), y))
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    flor.end(net)


def arrays(flor: Flor) -> None:
    """Variables and attributes of numpy, which go from one iteration to the next; `seen` and
    `first` are one memory.
    """
    net, optimizer = built()
    rest, best, last = np.zeros((4, 6), np.float32), np.float32(0.5), deque(maxlen=3)
    seen = np.zeros(3)
    first = seen[:1]
    flor.checkpoints(net, optimizer)
    for epoch in flor.loop("epoch", range(4)):
        for _ in flor.loop("step", range(5)):
            rest = rest * best + np.random.rand(4, 6).astype(np.float32)
            loss = flor.loss(
                epoch, F.cross_entropy(net(torch.from_numpy(rest)), torch.arange(4) % 3)
            )
            step(net, optimizer, loss)
            best, first[0] = np.float32(0.9) * best + np.float32(0.05), first[0] + 1
            last.append(best)
            flor.log("kept", [float(best), float(sum(last)), *seen.tolist()])
    flor.end(net)


class Maze(gymnasium.Env):
    """A user's own environment: its state is in an object that it holds, and it draws from
    its own generator.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self) -> None:
        self.place = Place()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place.move(-self.place.at)
        return self.place.at, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place.move(self.np_random.normal(size=6).astype(np.float32) * (1 + action))
        return self.place.at, float(self.place.at.sum()), self.place.moves % 9 == 0, False, {}


class Place:
    def __init__(self) -> None:
        self.at, self.moves = np.zeros(6, np.float32), 0

    def move(self, by: np.ndarray) -> None:
        self.at, self.moves = self.at + by, self.moves + 1


def acted(flor: Flor, environments: Any) -> None:
    """Learn from what environments give; their observation goes from epoch to epoch."""
    net, optimizer = built()
    environments.action_space.seed(4)
    seen, _ = environments.reset(seed=3)
    flor.checkpoints(net, optimizer, environments=environments)
    for epoch in flor.loop("epoch", range(4)):
        for _ in flor.loop("step", range(5)):
            for _ in range(7):
                seen, reward, *_ = environments.step(environments.action_space.sample())
            data = torch.from_numpy(seen).float().nan_to_num().clamp(-9, 9)
            data = F.pad(data, (0, 6 - data.shape[1]))
            flor.log("reward", [float(one) for one in reward])
            step(
                net,
                optimizer,
                flor.loss(epoch, F.cross_entropy(net(data), torch.arange(len(data)) % 3)),
            )
    flor.end(net)


def vector_environment(flor: Flor) -> None:
    acted(flor, gymnasium.make_vec("CartPole-v1", num_envs=4, max_episode_steps=20))


def wrapped_environments(flor: Flor) -> None:
    made = gymnasium.make_vec(
        "CartPole-v1", num_envs=3, vectorization_mode="sync", max_episode_steps=20
    )
    acted(
        flor,
        gymnasium.wrappers.vector.RecordEpisodeStatistics(
            gymnasium.wrappers.vector.NormalizeReward(made)
        ),
    )


def own_environment(flor: Flor) -> None:
    acted(
        flor, gymnasium.vector.SyncVectorEnv([lambda: gymnasium.wrappers.TimeLimit(Maze(), 12)] * 3)
    )


def logged_in_threads(flor: Flor) -> None:
    def log(name: str, value: Any) -> None:
        thread = Thread(target=flor.log, args=(name, value))
        thread.start()
        thread.join()

    net, optimizer = built()
    flor.checkpoints(net, optimizer)
    for epoch in flor.loop("epoch", range(3)):
        for x, y in flor.loop("step", DataLoader(Points(), batch_size=8, shuffle=True)):
            loss = flor.loss(epoch, F.cross_entropy(net(x), y))
            log("loss_in_thread", loss.item())
            step(net, optimizer, loss)
        log("norm_in_thread", sum(float(one.detach().norm()) for one in net.parameters()))
    flor.end(net)


_ALL: tuple[Cell, ...] = (
    plain,
    workers,
    persistent_workers,
    own_generator,
    stream,
    accumulate,
    break_and_continue,
    generators,
    own_trainer,
    counters,
    two_networks,
    average_and_scaler,
    only_batches,
    three_levels,
    no_optimizer,
    lbfgs,
    accelerated,
    arrays,
    vector_environment,
    wrapped_environments,
    own_environment,
    logged_in_threads,
)
CELLS: dict[str, Cell] = {one.__name__: one for one in _ALL}


def train(name: str, flor: Flor, seed: int = 7) -> Flor:
    """Train a cell from a seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    CELLS[name](flor)
    return flor
