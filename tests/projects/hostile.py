"""Trainings that do harm: python hostile.py TRAINER ACT, with OUTSIDE naming a folder of the
user's.
"""

import mmap
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HOME, OUTSIDE, PROJECT = Path.home(), Path(os.environ["OUTSIDE"]), Path(os.environ["PROJECT"])
HERE = Path(__file__).resolve().parent


def write_home():
    (HOME / "canary.txt").write_text("overwritten")
    (HOME / "new.txt").write_text("new")
    os.chmod(HOME / "mode.txt", 0o777)
    os.utime(HOME / "time.txt", (1, 1))
    os.truncate(HOME / "long.txt", 1)
    os.unlink(HOME / "gone.txt")
    os.rename(HOME / "moved.txt", HOME / "elsewhere.txt")
    assert (HOME / "canary.txt").read_text() == "overwritten"


def save_checkpoints():
    """Of its own accord, when the training begins and ends; the trainer's saving is on, too."""
    OUTSIDE.joinpath("made").mkdir(exist_ok=True)
    torch.save({"a": torch.ones(2)}, OUTSIDE / "made" / "model.pt")
    save_file({"a": torch.ones(2)}, OUTSIDE / "canary.safetensors")


def call_system():
    harm = f"echo hacked > '{HOME}/canary.txt'; rm -rf '{OUTSIDE}'; mkdir '{HOME}/made'"
    os.system(f"{harm}; echo x >> '{PROJECT}/notes.md'")


def delete_outputs():
    shutil.rmtree("ignored/out")
    os.makedirs("ignored/out/deep")
    Path("ignored/out/deep/result.txt").write_text("result")
    shutil.rmtree(PROJECT / "ignored" / "out")


def push_to_hub():
    from huggingface_hub import HfApi, create_repo, upload_file

    api = HfApi(endpoint=os.environ["HF_ENDPOINT"], token="hf_none")
    calls = (
        lambda: create_repo("me/model", token="hf_none", exist_ok=True),
        lambda: upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id="me/model", token="hf_none"
        ),
        lambda: api.upload_folder(folder_path="ignored", repo_id="me/model"),
        lambda: api.delete_repo("me/model"),
    )
    for call in calls:
        try:
            print("PUSHED", call())
        except Exception as error:
            print("NOT PUSHED", type(error).__name__)


def log_to_trackers():
    import mlflow
    from torch.utils.tensorboard import SummaryWriter

    mlflow.set_tracking_uri((OUTSIDE / "mlruns").as_uri())
    with mlflow.start_run():
        mlflow.log_param("lr", 1)
        mlflow.log_metric("loss", 2.0)
    with SummaryWriter(str(OUTSIDE / "board")) as writer:
        writer.add_scalar("loss", 1.0, 0)


def _write(path):
    with open(path, "a") as file:
        file.write("written by a child")


def spawn():
    subprocess.run(
        [sys.executable, "-c", f"open({str(HOME / 'canary.txt')!r}, 'w')"],
        stderr=subprocess.DEVNULL,
    )
    for way in ("fork", "spawn"):
        child = multiprocessing.get_context(way).Process(
            target=_write, args=(str(OUTSIDE / "canary.txt"),)
        )
        child.start()
        child.join()
    subprocess.run(["sh", "-c", f"echo x > '{OUTSIDE}/by-sh.txt'"], stderr=subprocess.DEVNULL)


def change_folder():
    os.chdir(OUTSIDE)
    Path("canary.txt").write_text("overwritten")
    Path("new.txt").write_text("new")
    os.chdir("..")


def change_source():
    with open(__file__, "a") as file:
        file.write("# changed\n")
    os.replace(shutil.copy(__file__, "copy.py"), PROJECT / "hostile.py")
    for name in ("lit_toy.py", "hf_toy.py"):
        with open(PROJECT / name, "a") as file:
            file.write("# changed\n")


def write_through_links():
    for link in ("linked.txt", "ignored/linked.txt", "ignored/linked-folder/canary.txt"):
        with open(link, "r+b") as file:
            file.write(b"through ")
    with open("ignored/data.bin", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:4] = b"mmap"
    np.memmap("ignored/data.bin", dtype=np.uint8, mode="r+")[4:6] = 1
    number = os.open("linked.txt", os.O_WRONLY | os.O_TRUNC)
    os.write(number, b"by number")
    os.close(number)
    base = sqlite3.connect("ignored/base.db")
    with base:
        base.execute("insert into t values (1)")
    base.close()
    os.link("ignored/data.bin", "ignored/hard.bin")
    Path("ignored/hard.bin").write_bytes(b"hard")
    os.chmod("ignored/data.bin", 0o600)
    os.rename("ignored/data.bin", "ignored/renamed.bin")


ACTS = {
    act.__name__: act
    for act in (
        write_home,
        save_checkpoints,
        call_system,
        delete_outputs,
        push_to_hub,
        log_to_trackers,
        spawn,
        change_folder,
        change_source,
        write_through_links,
    )
}


def lightning(act):
    import lightning.pytorch as pl
    import lit_toy

    class Acting(pl.Callback):
        def on_train_end(self, trainer, module):
            act()

    pl.seed_everything(7, verbose=False)
    saver = pl.callbacks.ModelCheckpoint(OUTSIDE / "saved", save_top_k=-1)
    callbacks = [lit_toy.FlorCallback(sys.argv[2]), Acting(), saver]
    lit_toy.trainer(callbacks, 1, enable_checkpointing=True).fit(lit_toy.Net(), *lit_toy.data())


def hf(act):
    import hf_toy

    trainer = hf_toy.build(
        [hf_toy.FlorCallback(sys.argv[2])],
        1e-3,
        1,
        output_dir=str(OUTSIDE / "saved"),
        save_strategy="epoch",
    )
    trainer.train()
    trainer.save_model(str(OUTSIDE / "saved"))
    act()


if __name__ == "__main__":
    torch.set_num_threads(1)
    ACTS[sys.argv[2]]()
    {"lightning": lightning, "hf": hf}[sys.argv[1]](
        ACTS[sys.argv[2]] if sys.argv[2] == "save_checkpoints" else int
    )
