"""Seven versions of one small Lightning project, each a change of the one before, and an edit
of the newest one.

v1 original; v2 a method renamed; v3 the model's file moved into a package; v4 its class split
in two files; v5 a variable renamed; v6 a new argument of the dataset; v7 a helper moved to
another module."""

from __future__ import annotations

Files = dict[str, str]

HEAD = '''"""A classifier of points."""

import lightning.pytorch as pl
import torch
from torch.nn import functional as F

CLASSES = 3


def smooth_targets(y, amount=0.1):
    """One-hot targets, softened: (batch, classes)."""
    hot = F.one_hot(y, CLASSES).float()
    return hot * (1 - amount) + amount / CLASSES


'''

STEPS = """    def compute(self, batch, phase):
        x, y = batch
        out = self(x)
        loss = F.cross_entropy(out, smooth_targets(y))
        self.log(f"{phase}_loss", loss)
        return loss

    def training_step(self, batch, index):
        return self.compute(batch, "train")

    def validation_step(self, batch, index):
        return self.compute(batch, "val")
"""

NET = """class Net(pl.LightningModule):
    def __init__(self, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.2)
        self.body = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.body(x))

{steps}
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)
"""

TRAIN = '''"""Trains the classifier: python train.py NAME."""

import sys

import lightning.pytorch as pl
import torch
from model import Net
from torch.utils.data import DataLoader, Dataset

from flor_plugins.lightning import FlorCallback


class Points(Dataset):
    def __init__(self, n):
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 4, generator=generator)
        self.y = self.x[:, :3].argmax(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def main(name):
    torch.set_num_threads(1)
    pl.seed_everything(5, verbose=False)
    train = DataLoader(Points(32), 8, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FlorCallback(name)],
    )
    trainer.fit(Net(), train, DataLoader(Points(16), 8))


if __name__ == "__main__":
    main(sys.argv[1])
'''


def _changed(files: Files, path: str, *changes: tuple[str, str]) -> Files:
    """The files with parts of one replaced; each part must be there."""
    text = files[path]
    for old, new in changes:
        assert old in text, f"{path} has no {old!r}"
        text = text.replace(old, new)
    return {**files, path: text}


def versions() -> dict[str, Files]:
    """v1 ... v7: name to {path: text}."""
    v1 = {"model.py": HEAD + NET.format(steps=STEPS), "train.py": TRAIN}
    v2 = _changed(
        v1, "model.py", ("def compute(", "def shared_step("), ("self.compute(", "self.shared_step(")
    )
    v3 = _changed(v2, "train.py", ("from model import", "from toys.model import"))
    v3 = {"toys/__init__.py": "", "toys/model.py": v3.pop("model.py"), **v3}
    v4 = {**v3, **_split(STEPS.replace("compute(", "shared_step("))}
    v5 = _changed(
        v4, "toys/steps.py", ("out = self(x)", "logits = self(x)"), ("(out, ", "(logits, ")
    )
    v6 = _changed(
        v5, "train.py",
        ("def __init__(self, n):", "def __init__(self, n, noise=0.0):"),
        ("generator=generator)\n", "generator=generator)\n        self.noise = noise\n"),
        ("return self.x[i], ", "return self.x[i] + self.noise * torch.randn(4), "),
        ("Points(32)", "Points(32, noise=0.1)"),
    )  # fmt: skip
    return {
        "v1": v1,
        "v2": v2,
        "v3": v3,
        "v4": v4,
        "v5": v5,
        "v6": v6,
        "v7": {**v6, **_helper_moved(v6)},
    }


def _split(steps: str) -> Files:
    """The steps of the model become a class of their own, in a file of its own."""
    head = HEAD.replace("import torch\n", "")
    imports = (
        '"""A classifier of points."""\n\nimport torch\n\nfrom toys.steps import '
        "CLASSES, Steps\n\n\n"
    )
    net = NET.replace("{steps}\n", "").replace("pl.LightningModule", "Steps")
    return {
        "toys/steps.py": head.replace("A classifier of points", "How a classifier is trained")
        + "class Steps(pl.LightningModule):\n" + steps,
        "toys/model.py": imports + net,
    }  # fmt: skip


def _helper_moved(files: Files) -> Files:
    text = files["toys/steps.py"]
    start, end = text.index("CLASSES = 3"), text.index("class Steps")
    helper = text[start:end].rstrip() + "\n"
    return {
        "toys/losses.py": '"""Targets and losses."""\n\nfrom torch.nn import functional as F\n\n'
        + helper,
        "toys/steps.py": text[:start] + "from toys.losses import smooth_targets\n\n\n" + text[end:],
        "toys/model.py": files["toys/model.py"].replace(
            "from toys.steps import CLASSES, Steps",
            "from toys.losses import CLASSES\nfrom toys.steps import Steps",
        ),
    }


# What somebody adds to v7: an import of a package, one of a module of the project, a helper,
# and the line that logs.
HELPER = '''def logit_margin(logits, targets):
    """How far the right class is ahead of the best other one, on average."""
    right = (logits * targets).sum(1)
    others = logits.masked_fill(targets == targets.max(1, keepdim=True).values, -math.inf)
    return (right - others.amax(1)).mean()  # one number


'''
LOG = """        if phase == "train":
            flor.log("margin", logit_margin(logits.detach(), smooth_targets(y)))  # after the loss
"""


def edited() -> Files:
    """The working tree: v7 with the metric in it."""
    return _changed(
        versions()["v7"], "toys/steps.py",
        ('trained."""\n\nimport light', 'trained."""\n\nimport math\n\nimport light'),
        ("from toys.losses", "import flor_plugins as flor\nfrom toys.losses"),
        ("class Steps", HELPER + "class Steps"),
        ("        return loss\n", LOG + "        return loss\n"),
    )  # fmt: skip
