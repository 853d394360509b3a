"""A training with Lightning: two epochs of four updates, each epoch with a validation."""

import lightning.pytorch as pl
import torch
from points import Net, loaders, seed

from flor_plugins.lightning import FlorCallback


class Module(pl.LightningModule):
    def __init__(self, lr=0.125):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net()

    def training_step(self, batch, index):
        loss = self.net(**batch)["loss"]
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=2)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.net(**batch)["loss"], batch_size=4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


def main():
    torch.set_num_threads(1)
    seed(7)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FlorCallback("lit", tags=["golden"], overhead=None)],
    )
    trainer.fit(Module(), *loaders())


if __name__ == "__main__":
    main()
