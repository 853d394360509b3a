"""What was asked in hindsight while the store was recorded."""

import flor_plugins as flor


@flor.metric(at="epoch")
def weight_sum(ctx):
    return ctx.model.net.line.weight.sum()


@flor.metric(at="step")
def first_update(ctx):
    before = ctx.model.net.line.weight[0, 0].item()
    yield
    return ctx.model.net.line.weight[0, 0].item() - before
