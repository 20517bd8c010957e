"""The word language model of Figure 1(a)."""

import math

import pytest
import torch
from torch.nn import functional

from lsmooth import tasks
from lsmooth.tasks.transformer_encoder import EncoderLanguageModel, EncoderSettings


@pytest.fixture(scope="module")
def task():
    return tasks.get("transformer-encoder")


@pytest.fixture(scope="module")
def data(task):
    return task.find_data(None)


def test_papers_settings(task):
    settings = task.settings("paper")
    assert (settings.batch_size, settings.epochs, settings.max_norm, settings.sequence) == (20, 5, 0.5, 35)
    assert (settings.embedding, settings.heads, settings.feed_forward, settings.layers) == (200, 2, 200, 2)
    assert (settings.dropout, settings.lr_decay) == (0.2, 0.95)
    assert task.optimizer_defaults("sgd", "paper") == {"lr": 5.0}


def test_parameter_count_and_output_shape():
    settings, vocabulary = EncoderSettings(), 1000
    model = EncoderLanguageModel(vocabulary, settings)
    # Attention: 4 matrices with biases; two feed-forward matrices with biases; two layer norms.
    layer = 4 * (200 * 200 + 200) + 2 * (200 * 200 + 200) + 2 * 2 * 200
    expected = vocabulary * 200 + 2 * layer + vocabulary * 200 + vocabulary
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model(torch.zeros(3, 35, dtype=torch.long)).shape == (3, 35, vocabulary)
    assert model(torch.zeros(3, 12, dtype=torch.long)).shape == (3, 12, vocabulary)


def test_no_word_sees_those_after_it():
    torch.manual_seed(0)
    model = EncoderLanguageModel(50, EncoderSettings()).eval()
    words = torch.randint(50, (2, 35))
    changed = words.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 50
    before, after = model(words), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_positions_are_sines_and_cosines():
    positions = EncoderLanguageModel(50, EncoderSettings()).positions
    for p, k in ((0, 0), (3, 7), (34, 99)):
        angle = p / 10_000 ** (2 * k / 200)
        assert positions[p, 2 * k].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert positions[p, 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_an_epoch_is_the_whole_text_in_an_order_of_its_own(task, data):
    problem = task.build(task.settings("small"), data, seed=3)
    first = list(problem.batches(0))
    assert len(first) == problem.steps_per_epoch
    for (words, following), (again, _) in zip(first, problem.batches(0), strict=True):
        assert torch.equal(words, again)
        assert torch.equal(words[:, 1:], following[:, :-1])
    seen = {tuple(words[0, :6].tolist()) + tuple(words[-1, :6].tolist()) for words, _ in first}
    assert seen == {tuple(w[0, :6].tolist()) + tuple(w[-1, :6].tolist()) for w, _ in problem.batches(1)}
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(first, problem.batches(1), strict=True))


def test_a_seed_decides_the_weights(task, data):
    one, two, other = (task.build(task.settings("small"), data, seed=s).model.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["decoder.weight"], other["decoder.weight"])


def test_metrics_are_the_mean_over_all_words(task, data):
    problem = task.build(task.settings("small").replaced({"sequence": 11}), data, seed=0)
    found = problem.evaluate("valid")
    assert problem.model.training
    text = data.streams("valid", 10, torch.device("cpu"))
    problem.model.eval()
    losses = []
    with torch.no_grad():
        for start in range(0, text.shape[1] - 1, 11):
            part = text[:, start : start + 12]
            logits = problem.model(part[:, :-1])
            losses += functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none").tolist()
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-5)


def test_learning_rate_decays_by_the_epoch(task, data):
    problem = task.build(task.settings("small"), data, seed=0)
    assert [problem.lr_factor(step, epoch, None) for step, epoch in ((0, 0), (152, 0), (153, 1), (900, 5))] == [
        1.0,
        1.0,
        0.95,
        0.95**5,
    ]
