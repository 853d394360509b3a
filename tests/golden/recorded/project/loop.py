"""A hand-written loop: two epochs of four updates with momentum, each with a validation.

The environment variable KILL_AT=6 kills the process after its sixth update.
"""

import os
import signal
import time

import torch
from points import Net, loaders, seed

import flor_plugins as flor


def main():
    torch.set_num_threads(1)
    seed(3)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), flor.arg("lr", 0.125), momentum=0.5)
    train, validation = loaders()
    flor.checkpoints(
        net,
        optimizer,
        name=flor.arg("name", "loop"),
        val_dataloader=validation,
        every_n_steps=6,
        overhead=None,
    )
    step = 0
    for _epoch in flor.loop("epoch", range(2)):
        for batch in flor.loop("step", train):
            loss = net(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            flor.log("loss", loss)
            step += 1
            if os.environ.get("KILL_AT") == str(step):
                time.sleep(2)  # the recording writes beside the training
                os.kill(os.getpid(), signal.SIGKILL)
        net.eval()
        total = 0.0
        for batch in flor.loop("validation", validation):
            total += net(**batch)["loss"].item()
        net.train()
        flor.log("val_loss", total / 2)


if __name__ == "__main__":
    main()
