"""Asked of a pair: how much each kind of metric gets to see."""

import flor_plugins as flor


@flor.metric(at="epoch")
def seen(ctx):
    """Samples of the validation loader."""
    return sum(
        len(batch["x"] if isinstance(batch, dict) else batch[0]) for batch in ctx.val_dataloader
    )


@flor.metric(at="epoch")
def seen_then(ctx):
    return seen.function(ctx)


@flor.metric(at="epoch")
def norm(ctx):
    return float(sum(p.detach().double().square().sum() for p in ctx.model.parameters()))


@flor.metric(at="validation", reduce="sum")
def share(ctx):
    return len(ctx.batch["x"] if isinstance(ctx.batch, dict) else ctx.batch[0])


@flor.metric(at="step")
def lr_now(ctx):
    return ctx.optimizer.param_groups[0]["lr"]
