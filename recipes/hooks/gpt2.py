"""What nobody thought of logging while recipes/gpt2.yaml was trained."""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.nn.utils import get_total_norm

import flor_plugins as flor

PROMPT = "The value of the attribute is"
LONGEST = 48  # pieces that a sample goes on for
LIKELIEST = 20  # pieces that are drawn from
SMALL, BIG = 8, 512  # sequences of a small batch, and of all of them together


@flor.metric(at="epoch")
def perplexity_by_position(ctx: flor.Context) -> list[float]:
    """Perplexity of the validation text at each place of a sequence from the second on: what
    context is worth.
    """
    sequences, total = 0, torch.zeros(())
    for batch in ctx.val_dataloader:
        ids = batch["input_ids"].to(ctx.device)
        logits = ctx.model(input_ids=ids).logits[:, :-1]
        losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        total = total + losses.double().sum(dim=0).cpu()
        sequences += len(ids)
    return (total / sequences).exp().tolist()


@flor.metric(at="epoch")
def generated_sample(ctx: flor.Context) -> str:
    """PROMPT and what the model writes after it.

    Drawn from the LIKELIEST pieces by a generator of its own with the same seed for every
    epoch: samples differ by the weights alone."""
    import gpt2  # of the run's own code; it is on the path once the trainer is built

    tokenizer = gpt2.load_tokenizer()
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([tokenizer.encode(PROMPT, add_special_tokens=False)])
    for _ in range(LONGEST):
        seen = ids[:, -ctx.model.config.n_positions :].to(ctx.device)
        values, pieces = ctx.model(input_ids=seen).logits[0, -1].float().cpu().topk(LIKELIEST)
        drawn = torch.multinomial(values.softmax(dim=0), 1, generator=generator)
        ids = torch.cat([ids, pieces[drawn].unsqueeze(0)], dim=1)
    return tokenizer.decode(ids[0]).strip()


@flor.metric(at="epoch", grad=True)
def gradient_noise_scale(ctx: flor.Context) -> float:
    """B_simple, in sequences: batches much smaller have mostly noise as gradients, much larger
    ones gain little.

    The estimator of McCandlish et al. 2018, "An Empirical Model of Large-Batch Training",
    appendix A.1. From the squared norms of gradients of a small and of a big batch, of b and B
    sequences, it takes

        |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)    and    S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B),

    both without bias, and B_simple = S / |G|^2 (their ratio is biased; where noise drowns
    |G|^2, it may be negative).
    |G_b|^2 is the mean over the small batches that the big one consists of. The sequences are
    of the training text, drawn once and the same at every epoch; the model is in eval mode, so
    that dropout adds no noise of its own."""
    import gpt2  # of the run's own code; it is on the path once the trainer is built

    chunks, _ = gpt2.load_chunks(gpt2.load_tokenizer(), ctx.model.config.n_positions)
    # Shuffled: neighbours are of the same topic, and a small batch of those is no fair sample.
    order = torch.randperm(len(chunks), generator=torch.Generator().manual_seed(0))
    parts = [part for part in chunks[order[:BIG]].split(SMALL) if len(part) == SMALL]
    weights = [p for p in ctx.model.parameters() if p.requires_grad]
    squares, mean = [], [torch.zeros_like(p) for p in weights]
    for part in parts:
        ids = part.to(ctx.device)
        gradients = torch.autograd.grad(ctx.model(input_ids=ids, labels=ids).loss, weights)
        squares.append(get_total_norm(gradients).item() ** 2)
        for whole, one in zip(mean, gradients, strict=True):
            whole.add_(one, alpha=1 / len(parts))
    of_small = sum(squares) / len(squares)
    return simple_noise_scale(of_small, get_total_norm(mean).item() ** 2, SMALL, SMALL * len(parts))


def simple_noise_scale(of_small: float, of_big: float, small: int, big: int) -> float:
    """S / |G|^2. of_small, of_big: squared norms of the gradients of so many sequences."""
    noise = (of_small - of_big) / (1 / small - 1 / big)
    return noise / ((big * of_big - small * of_small) / (big - small))
