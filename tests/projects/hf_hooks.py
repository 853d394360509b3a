import torch

import flor_plugins as flor


@flor.metric(at="epoch")
def token_accuracy(ctx):
    right = total = 0
    for batch in ctx.val_dataloader:
        ids = batch["input_ids"].to(ctx.device)
        out = ctx.model(input_ids=ids).logits[:, :-1].argmax(-1)
        right += int((out == ids[:, 1:]).sum())
        total += ids[:, 1:].numel()
    return right / total


@flor.metric(at="step")
def update_norm(ctx):
    before = [p.detach().clone() for p in ctx.model.parameters()]
    yield
    return torch.stack(
        [(p - b).norm() for p, b in zip(ctx.model.parameters(), before, strict=True)]
    ).norm()


@flor.metric(at="validation", reduce="sum")
def tokens(ctx):
    return int(ctx.batch["input_ids"].numel())
