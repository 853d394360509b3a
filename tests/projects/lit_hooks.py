import torch

import flor_plugins as flor


@flor.metric(at="epoch")
def val_accuracy(ctx):
    right = total = 0
    for x, y in ctx.val_dataloader:
        right += int((ctx.model(x.to(ctx.device)).argmax(1) == y.to(ctx.device)).sum())
        total += len(y)
    return right / total


@flor.metric(at="step")
def update_norm(ctx):
    before = [p.detach().clone() for p in ctx.model.parameters()]
    yield
    return torch.stack(
        [(p - b).norm() for p, b in zip(ctx.model.parameters(), before, strict=True)]
    ).norm()


@flor.metric(at="validation", reduce="sum")
def wrong(ctx):
    x, y = ctx.batch
    return int((ctx.model(x).argmax(1) != y).sum())
