"""The recipe of GPT-2: its text, and what is measured with it."""

from __future__ import annotations

import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

import flor_plugins as flor
from flor_plugins.hooks.hook_files import load
from flor_plugins.hooks.metric import Context
from flor_plugins.recipe import check_recipe
from tests.replaying import Project, rows_of

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = ("eval_perplexity", "perplexity_by_position", "generated_sample", "gradient_noise_scale")
LENGTH = 64


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The recipe's module, with an empty cache; it and what it imports from beside it are
    forgotten afterwards.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        known = set(sys.modules)
        import gpt2

        yield gpt2
        for name in ("gpt2", "help_topics", "prepared"):
            if name not in known:
                del sys.modules[name]


@pytest.fixture(scope="module")
def tokenizer(gpt2: Any) -> Any:
    return gpt2.load_tokenizer()


@pytest.fixture(scope="module")
def chunks(gpt2: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return gpt2.load_chunks(tokenizer, LENGTH)


@pytest.fixture(scope="module")
def model(gpt2: Any) -> Any:
    torch.manual_seed(0)
    return gpt2.build_model(gpt2.SCALES["tiny"], 16).eval()


@pytest.fixture(scope="module")
def hooks() -> dict[str, Any]:
    return {metric.name: metric for metric in load(RECIPES / "hooks" / "gpt2.py").metrics}


def test_recipe_has_no_mistake() -> None:
    assert check_recipe(RECIPES / "gpt2.yaml") == []


def test_a_paragraph_of_the_topics_is_read_once_and_none_is_lost(gpt2: Any) -> None:
    read = [line for text in gpt2.help_topics.load_passages() for line in text.split("\n")]
    written = {" ".join(one.split()) for text in topics.values() for one in text.split("\n\n")} - {
        ""
    }
    assert len(read) == len(set(read)) and set(read) == written


def test_little_of_the_validation_text_stands_in_the_training_text(
    chunks: Any, tokenizer: Any
) -> None:
    def phrases(part: torch.Tensor) -> list[tuple[str, ...]]:
        words = [tokenizer.decode(ids).split() for ids in part]
        return [tuple(one[i : i + 8]) for one in words for i in range(len(one) - 7)]

    known, asked = set(phrases(chunks[0])), phrases(chunks[1])
    assert len(asked) > 2_000
    assert sum(one in known for one in asked) / len(asked) < 0.04


def test_chunks_are_the_text_and_every_tenth_is_held_out(
    gpt2: Any, chunks: Any, tokenizer: Any
) -> None:
    train, validation = chunks
    whole = [
        part for i in range(len(validation)) for part in (*train[9 * i : 9 * i + 9], validation[i])
    ]
    text = tokenizer.decode(torch.cat([*whole, *train[9 * len(validation) :]]))
    expected = "".join(f"<|endoftext|> {one}" for one in gpt2.help_topics.load_passages())
    assert len(text) > 300_000 and expected.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert len(expected) - len(text) < 10 * LENGTH


def test_full_size_is_gpt2(gpt2: Any) -> None:
    size = gpt2.SCALES["full"]
    with torch.device("meta"):
        built = gpt2.build_model(size, size.hidden_size)
    assert sum(one.numel() for one in built.parameters()) == 124_439_808


@pytest.mark.slow
def test_full_size_takes_a_step(gpt2: Any, tokenizer: Any) -> None:
    size = gpt2.SCALES["full"]
    ids = gpt2.load_chunks(tokenizer, size.length)[0][:1]
    built = gpt2.build_model(size, size.hidden_size)
    loss = built(input_ids=ids, labels=ids).loss
    loss.backward()
    assert 10 < loss.item() < 12  # about the logarithm of the vocabulary's size
    assert all(one.grad is not None and one.grad.isfinite().all() for one in built.parameters())


def test_training_logs_the_perplexity_of_all_tokens(gpt2: Any, chunks: Any) -> None:
    trainer = gpt2.build_trainer(hidden_size=16)
    logged = trainer.evaluate()
    (kept,) = [one["eval_perplexity"] for one in trainer.state.log_history]
    ids = chunks[1]
    with torch.no_grad():
        likely = trainer.model(input_ids=ids).logits.double().log_softmax(dim=-1)
    surprise = -likely[:, :-1].gather(2, ids[:, 1:, None]).mean().item()
    assert logged["eval_perplexity"] == kept == pytest.approx(math.exp(surprise), rel=1e-5)


def test_training_loss_is_the_mean_over_the_tokens_that_are_predicted(gpt2: Any) -> None:
    trainer = gpt2.build_trainer(hidden_size=16)
    loader = iter(trainer.get_train_dataloader())
    _, count = trainer.get_batch_samples(loader, 1, torch.device("cpu"))
    assert count == 16 * (LENGTH - 1)


def test_perplexity_by_position_is_that_of_each_column(
    model: Any, chunks: Any, hooks: dict[str, Any]
) -> None:
    ids = chunks[1][:50]
    ctx = Context(
        model=model,
        device="cpu",
        make_val_dataloader=lambda: [{"input_ids": p} for p in ids.split(20)],
    )
    with torch.no_grad():
        found = hooks["perplexity_by_position"](ctx)
        likely = model(input_ids=ids).logits.double().softmax(dim=-1)
    for place in (1, 2, 40, LENGTH - 1):
        each = [likely[i, place - 1, ids[i, place]].item() for i in range(len(ids))]
        assert found[place - 1] == pytest.approx(
            1 / math.prod(one ** (1 / len(each)) for one in each), rel=1e-5
        )
    assert len(found) == LENGTH - 1


def test_noise_scale_is_that_of_the_spread_of_the_gradients(
    model: Any, gpt2: Any, chunks: Any, hooks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = hooks["gradient_noise_scale"]
    monkeypatch.setitem(hook.function.__globals__, "BIG", 44)  # the last four make no small batch
    found = hook(Context(model=model, device="cpu"))

    order = torch.randperm(len(chunks[0]), generator=torch.Generator().manual_seed(0))[:40]
    rows = []
    for part in chunks[0][order].view(5, 8, LENGTH):
        loss = torch.stack(
            [model(input_ids=one[None], labels=one[None]).loss for one in part]
        ).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([one.flatten() for one in gradients]).double().numpy())
    spread = np.var(
        rows, axis=0, ddof=1
    ).sum()  # the trace of the covariance of small batches' gradients
    signal = np.square(np.mean(rows, axis=0)).sum() - spread / 5
    assert found == pytest.approx(8 * spread / signal, rel=1e-3)


@pytest.mark.parametrize(("noise", "signal"), [(300.0, 2.0), (1.0, 0.5)])
def test_noise_scale_of_expected_norms_is_noise_over_signal(
    hooks: dict[str, Any], noise: float, signal: float
) -> None:
    estimate = hooks["gradient_noise_scale"].function.__globals__["simple_noise_scale"]
    assert estimate(signal + noise / 8, signal + noise / 512, 8, 512) == pytest.approx(
        noise / signal
    )


def test_sample_goes_on_from_the_prompt_and_draws_from_nobody(
    model: Any, hooks: dict[str, Any]
) -> None:
    hook = hooks["generated_sample"]
    before = torch.get_rng_state()
    with torch.no_grad():
        texts = [hook(Context(model=model, device="cpu")) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert texts[0] == texts[1]
    assert texts[0].startswith(hook.function.__globals__["PROMPT"])
    assert len(texts[0]) > len(hook.function.__globals__["PROMPT"]) + 48


def record(project: Project) -> dict[str, list[Any]]:
    """One short version of the recipe, recorded and replayed in a repository of its own: its
    values by metric.
    """
    shutil.copytree(RECIPES, project.root / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    recipe = (RECIPES / "gpt2.yaml").read_text()
    versions = "versions:\n  - {name: short, epochs: 2, hidden_size: 32}\n"
    project.write("recipes/gpt2.yaml", re.sub(r"versions:\n(  - .*\n)+", versions, recipe))
    project.git("init", "-q", "-b", "main")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "recipe")
    project.flor("replay", "recipes/gpt2.yaml", "--yes", timeout_s=500)
    assert [(one["way"], one["verdict"]) for one in project.verdicts()] == [("state", "exact")]
    frame = flor.dataframe(*NAMES, store=project.store.root)
    return {
        name: [np.asarray(one).tolist() for one in rows_of(frame, "short", name).values()]
        for name in NAMES
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replay_finds_what_was_recorded_and_so_does_another_one(tmp_path: Path) -> None:
    """Each has a cache of its own, so that all that is prepared is prepared twice."""
    found, again = (
        record(Project(tmp_path / one, {"XDG_CACHE_HOME": str(tmp_path / f"cache-{one}")}))
        for one in ("one", "two")
    )
    assert {len(values) for values in found.values()} == {2}
    for whole, each in zip(found["eval_perplexity"], found["perplexity_by_position"], strict=True):
        assert math.exp(np.log(each).mean()) == pytest.approx(whole, rel=1e-5)
    assert found["eval_perplexity"][0] > found["eval_perplexity"][1] > 1
    assert again == found
