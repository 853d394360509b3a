"""What an edit may hold, and what is refused with its line."""

from __future__ import annotations

import ast

import pytest

from flor_plugins.errors import EditRefused
from flor_plugins.replayer.backport.edit import Edit, edit_of
from flor_plugins.replayer.backport.review import moment
from flor_plugins.replayer.backport.syntax import CodeVersion

NET = """import lightning.pytorch as pl
import numpy as np
import torch
import flor_plugins as flor
from torch.nn import functional as F


def softer(values):
    return values / 2


def noisy(values):
    return values + torch.randn(2)


class Net(pl.LightningModule):
    def bump(self):
        self.count = 0

    def __init__(self, lr=0.1):
        super().__init__()
        self.body = torch.nn.Linear(4, 2)
        self.rng = np.random.default_rng(1)
        self.lr, self.seen = lr, []

    def training_step(self, batch, index):
        x, y = batch
        out = self.body(x)
        loss = F.cross_entropy(softer(out), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        logits = self.body(x)
        self.log("val_loss", F.cross_entropy(logits, y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)
"""
PLACES = {
    "train": '        self.log("loss", loss)\n',
    "validate": "        logits = self.body(x)\n",
    "init": "        self.lr, self.seen = lr, []\n",
    "class": "        return torch.optim.SGD(self.parameters(), self.lr)\n",
    "module": "from torch.nn import functional as F\n",
}
INDENTS = {"train": 8, "validate": 8, "init": 8, "class": 4, "module": 0}


def line_after(place: str) -> int:
    return NET[: NET.index(PLACES[place])].count("\n") + 2


def put(text: str, place: str = "train", base: str = NET) -> str:
    indent = " " * INDENTS[place]
    lines = "".join(f"{indent}{line}\n" if line else "\n" for line in text.split("\n"))
    return base.replace(PLACES[place], PLACES[place] + lines)


def edit(edited: str, base: str = NET) -> Edit:
    return edit_of({"net.py": base}, {"net.py": edited}, "run r1")


ALLOWED = [
    ("train", 'flor.log("n", out.norm())'),
    ("train", 'self.log("n", out.norm(), prog_bar=True)'),
    ("train", 'self.log_dict({"a": out.mean(), "b": out.std()})'),
    ("train", 'norm = out.detach().norm()\nflor.log("n", norm)'),
    ("train", 'if index % 10 == 0:\n    flor.log("n", softer(out).max().item())'),
    ("train", 'with torch.no_grad():\n    flor.log("n", F.softmax(out, 1).amax(1).mean())'),
    ("train", 'for name, p in self.named_parameters():\n    flor.log(f"w/{name}", p.norm())'),
    ("train", 'norms = []\nfor p in self.parameters():\n    '
              'norms.append(p.norm())\nflor.log("n", sum(norms))'),
    ("train", 'total = 0.0\nfor p in self.parameters():\n    total += '
              'p.norm().item()\nflor.log("n", total)'),
    ("train", 'mine = np.random.default_rng(0)\nflor.log("n", out.sum() * mine.random())'),
    ("train", 'g = torch.Generator().manual_seed(1)\nflor.log("n", torch.rand(2, generator=g))'),
    ("train", 'self._calls = index\nflor.log("n", self._calls)'),
    ("train", 'import math\nflor.log("n", math.sqrt(2))'),
    ("train", 'flor.log("n", sum(q for q in [1, 2] if q))'),
    ("train", 'flor.log("g", torch.autograd.grad(loss, out, retain_graph=True)[0].norm())'),
    ("train", 'try:\n    flor.log("n", out.norm())\nexcept ValueError:\n    pass'),
    ("validate", 'flor.log("again", self.body(x).norm())'),
    ("class", '\ndef on_before_optimizer_step(self, optimizer):\n    flor.log("g", '
              'self.body.weight.grad.norm())'),
    ("class", '\ndef on_train_epoch_end(self):\n    super().on_train_epoch_end()\n    '
              'flor.log("g", self.lr)'),
    ("class", '\ndef on_train_epoch_end(self):\n    self._last = self.body.weight.norm()\n'
              '    flor.log("l", self._last)'),
    ("class", '\ndef forward(self, *args, **kwargs):\n    r = super().forward(*args, '
              '**kwargs)\n    flor.log("f", r)\n'
              "    return r"),
    ("module", "\n\ndef margin(a):\n    b = a.sort().values\n    return b[-1] - b[-2]"),
    ("module", "import math\nLIMIT = 3"),
    ("module", "\n\nclass Tally:\n    def __init__(self):\n        self.n = 0\n\n"
               "    def add(self, n):\n        self.n += n"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "text"), ALLOWED)
def test_what_only_logs_is_an_edit(place: str, text: str):
    assert edit(put(text, place)).insertions


REFUSED = [
    ("train", "loss = loss * 2", 0, "'loss' another meaning"),
    ("train", "F = None", 0, "'F' another meaning"),
    ("train", "if (out := x) is not None:\n    flor.log('a', 1)", 0, "'out' another meaning"),
    ("train", "for x in range(3):\n    flor.log('a', 1)", 0, "'x' another meaning"),
    ("train", "del y", 0, "`del y`"),
    ("train", "global softer", 0, "`global softer`"),
    ("train", "return out", 0, "`return out`"),
    ("train", "if index:\n    raise ValueError", 1, "raise"),
    ("train", "assert out.sum() > 0", 0, "assert"),
    ("train", "yield out", 0, "gives up control"),
    ("train", "self.lr = 0.5", 0, "'self.lr'"),
    ("train", "self.automatic_optimization = False", 0, "automatic_optimization"),
    ("train", "self.training = False", 0, "training"),
    ("train", "out[0] = 0", 0, "`out[0]`"),
    ("train", "out.data = x", 0, "`out.data`"),
    ("train", "loss += 1", 0, "'loss' another meaning"),
    ("train", "a = loss.detach()\na += 1", 1, "in place"),
    ("train", "flor.log('a', out.relu_())", 0, "in place"),
    ("train", "flor.log('a', torch.add(x, x, out=x))", 0, "out="),
    ("train", "self.seen.append(1)", 0, "changes what it is called on"),
    ("train", "loss.backward()", 0, "changes what it is called on"),
    ("train", "self.optimizers().step()", 0, "changes what it is called on"),
    ("train", "self.eval()", 0, "changes what it is called on"),
    ("train", "self.body.requires_grad_(False)", 0, "in place"),
    ("train", "self.half()", 0, "in place"),
    ("train", "torch.manual_seed(1)", 0, "changes"),
    ("train", "torch.set_num_threads(1)", 0, "changes"),
    ("train", "flor.log('a', torch.rand(2))", 0, "generator of its own"),
    ("train", "flor.log('a', np.random.rand())", 0, "generator of its own"),
    ("train", "import random\nflor.log('a', random.random())", 1, "generator of its own"),
    ("train", "flor.log('a', F.dropout(out, 0.5))", 0, "generator of its own"),
    ("train", "flor.log('a', self.rng.normal())", 0, "generator of its own"),
    ("train", "flor.log('a', out.multinomial(1))", 0, "generator of its own"),
    ("train", "flor.log('a', noisy(out))", 0, "net.py: `torch.randn(...)`"),
    ("train", "flor.log('a', torch.nn.Linear(2, 2)(out))", 0, "weights"),
    ("train", "flor.log('a', self.body(x).norm())", 0, "dropout draws"),
    ("train", "flor.log('a', self(x).norm())", 0, "dropout draws"),
    ("train", "for more in self.trainer.train_dataloader:\n    flor.log('a', 1)", 0, "loader"),
    ("train", "flor.log('a', next(iter([1])))", 0, "more than compute"),
    ("train", "flor.log('a', torch.autograd.grad(loss, out)[0])", 0, "retain_graph"),
    ("train", "import os\nos.system('ls')", 1, "can't be seen"),
    ("train", "open('f', 'w').write('x')", 0, "more than compute"),
    ("train", "setattr(self, 'lr', 1)", 0, "more than compute"),
    ("train", "self.log('loss', out.mean())", 0, "logs already"),
    ("train", "flor.log(str(index), 1)", 0, "name that can't be told"),
    ("train", "self.log_dict(batch)", 0, "name that can't be told"),
    ("train", "flor.log(f'{index}', 1)", 0, "name that can't be told"),
    ("train", "with torch.random.fork_rng():\n    torch.manual_seed(2)", 1, "changes"),
    ("train", "with open('x') as f:\n    flor.log('a', 1)", 0, "with open"),
    ("init", "self.hparams = 3", 0, "hparams"),
    ("class", "\ndef forward(self, x):\n    return x", 1, "overrides 'forward'"),
    (
        "class",
        "\ndef training_step(self, batch, index):\n    return None",
        1,
        "overrides 'training_step'",
    ),
    (
        "class",
        "\ndef optimizer_step(self, *a, **k):\n    flor.log('a', 1)",
        1,
        "overrides 'optimizer_step'",
    ),
    ("class", "\ndef __getattr__(self, name):\n    return 1", 1, "overrides '__getattr__'"),
    (
        "class",
        "\ndef on_train_batch_start(self, batch, index):\n    return -1",
        2,
        "gives the framework a value",
    ),
    (
        "class",
        "\ndef on_train_epoch_end(self):\n    self.body.zero_grad()",
        2,
        "changes what it is called on",
    ),
    ("class", "\ndef on_train_epoch_end(self):\n    self.lr = 0.5", 1, "'self.lr'"),
    ("class", "\ndef on_train_epoch_end(self):\n    self.lr *= 0.5", 1, "'self.lr'"),
    ("train", "self.bump()", 0, "a helper gives its result back"),
    ("train", "mine = [self.seen]\nmine[0].append(1)", 1, "changes what it is called on"),
    ("train", "mine = {'a': out}\nmine['a'][0] = 1", 1, "not of the edit"),
    ("class", "\nlr = 3", 1, "'lr'"),
    ("module", "from math import *", 0, "any number"),
    ("module", "import numpy as torch", 0, "'torch' another meaning"),
    ("module", "pl.seed_everything(3)", 0, "can't be seen"),
    ("module", "\n\n@torch.jit.script\ndef f(x):\n    return x", 2, "may do anything"),
    ("module", "\n\ndef f(x):\n    x[0] = 1\n    return x", 3, "`x[0]`"),
    ("module", "\n\ndef f():\n    global noisy\n    noisy = softer", 3, "`global noisy`"),
]


@pytest.mark.parametrize(("place", "text", "offset", "why"), REFUSED)
def test_what_may_change_the_training_is_refused_with_its_line(
    place: str, text: str, offset: int, why: str
):
    with pytest.raises(EditRefused) as error:
        edit(put(text, place))
    assert f"net.py:{line_after(place) + offset} " in str(error.value), str(error.value)
    assert why in str(error.value), str(error.value)
    assert "train a new run, or take it out" in str(error.value)


@pytest.mark.parametrize(("name", "text", "expected"), [
    ("validate", 'flor.log("a", 1)', "validate"), ("train", 'flor.log("a", 1)', "train"),
    ("init", 'flor.log("a", 1)', "train"),
])  # fmt: skip
def test_the_moment_is_that_of_the_function(name: str, text: str, expected: str):
    edited = put(text, name)
    (one,) = edit(edited).insertions
    assert moment(one, CodeVersion({"net.py": edited})) == expected


@pytest.mark.parametrize(("places", "expected"), [
    (["validate"], "validate"), (["train"], "train"), (["validate", "train"], "train"),
])  # fmt: skip
def test_a_helper_is_followed_to_its_callers(places: list[str], expected: str):
    base = put("\n\ndef tell(v):\n    print(v)", "module")
    for place in places:
        base = put("tell(1)", place, base)
    edited = base.replace("    print(v)\n", "    print(v)\n    flor.log('told', v)\n")
    (one,) = edit(edited, base).insertions
    assert moment(one, CodeVersion({"net.py": edited})) == expected


def test_every_case_is_python():
    for place, text, *_ in [*ALLOWED, *REFUSED]:
        ast.parse(put(text, place))
