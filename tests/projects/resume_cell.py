"""A training that goes on after it was stopped: resume_cell.py FRAMEWORK CELL ..., cells of
tests/cells_*.py.

STOP: `moment:signal:number:seconds`; the process sends itself the signal at the moment, once so
many updates are made (step, validation, save, end) or before it hands over so many states to be
written (checkpoint), so much later.
OWN: the newest checkpoint of the trainer itself in out/ is asked for, too.
"""

import os
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import lightning.pytorch as pl
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from flor_plugins.recorder.checkpointing.writer_client import WriterClient

moment, name, number, seconds = (os.environ.pop("STOP", "::0") + ":0").split(":")[:4]


def stop(here, step):
    global moment
    if here != moment or step < int(number):
        return
    while here == "end" and not list(Path().glob(f"*/runs/*/checkpoints/epoch=*,step={step}")):
        time.sleep(0.01)  # the last State is being written
    moment = ""
    if float(seconds):
        threading.Timer(
            float(seconds), os.kill, (os.getpid(), getattr(signal, f"SIG{name}"))
        ).start()
    else:
        os.kill(os.getpid(), getattr(signal, f"SIG{name}"))


def in_checkpoints():
    send, count = WriterClient.send, iter(range(1, 100_000))

    def counted(self, letter):
        stop("checkpoint", next(count))
        send(self, letter)

    WriterClient.send = counted


class LightningStop(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        stop("step", trainer.global_step)

    def on_validation_batch_end(self, trainer, *args):
        stop("validation", trainer.global_step)

    def on_train_end(self, trainer, *args):
        stop("end", trainer.global_step)


class HfStop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        stop("step", state.global_step)

    def on_prediction_step(self, args, state, control, **kwargs):
        stop("validation", state.global_step)

    def on_save(self, args, state, control, **kwargs):
        stop("save", state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        stop("end", state.global_step)


def lightning(cell):
    cells, made = import_module("tests.cells_lightning"), import_module("flor_plugins.lightning")
    # no budget of time: on a busy machine, too, each State is taken
    callback = made.FlorCallback(
        resume="auto", every_n_steps=cells.CELLS[cell].every, overhead=None
    )
    _, trainer, train = cells.train(cell, Path("out"), callback, seed=5)
    trainer.callbacks.insert(0, LightningStop())
    if "OWN" in os.environ and list(Path("out").glob("*.ckpt")):
        fit, newest = trainer.fit, max(Path("out").glob("*.ckpt"), key=os.path.getmtime)
        trainer.fit = lambda *args: fit(*args, ckpt_path=newest)
    train()


def hf(cell):
    cells, made = import_module("tests.cells_hf"), import_module("flor_plugins.hf")
    callback = made.FlorCallback(
        resume="auto", every_n_steps=cells.every_n_steps(cell), overhead=None
    )
    trainer, train = cells.train(cell, Path("out"), callback)
    trainer.callback_handler.callbacks.insert(0, HfStop())
    train(
        resume_from_checkpoint=get_last_checkpoint("out")
        if "OWN" in os.environ and os.path.exists("out")
        else None
    )


def for_recipe(cell):
    return import_module("tests.cells_hf").train(cell, Path("out"), HfStop())[0]


torch.set_num_threads(1)
in_checkpoints()
if __name__ == "__main__":
    for cell in sys.argv[2:]:
        {"lightning": lightning, "hf": hf}[sys.argv[1]](cell)
    print("AFTER TRAINING")
