"""A training with the Hugging Face Trainer: two epochs of four updates and an evaluation."""

import torch
from points import Net, Points, seed
from transformers import Trainer, TrainingArguments

from flor_plugins.hf import FlorCallback


def main():
    torch.set_num_threads(1)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.125)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    arguments = TrainingArguments(
        "out",
        num_train_epochs=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        max_grad_norm=0,
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=4,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        net,
        arguments,
        train_dataset=Points(),
        eval_dataset=Points(2),
        optimizers=(optimizer, schedule),
        callbacks=[FlorCallback("hf", every_n_epochs=2, overhead=None)],
    )
    seed(11)  # the Trainer has seeded all generators with a number of its own
    trainer.train()


if __name__ == "__main__":
    main()
