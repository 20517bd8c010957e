"""ResNet-20 and CIFAR-10: Figure 4 and Table 1's left half."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lsmooth import tasks
from lsmooth.errors import DataError
from lsmooth.tasks.resnet20 import (
    Images,
    Normalisation,
    ResNet20,
    ResNet20Settings,
    augmented,
    generate_images,
    read_cifar10,
    training_batches,
)


@pytest.fixture(scope="module")
def task():
    return tasks.get("resnet20")


@pytest.fixture(scope="module")
def images():
    return generate_images(1500, seed=3)


def _write_cifar10(folder, batches=5, rows=20):
    """Write files of CIFAR-10's binary version; return pixels (n, 3, 32, 32) and labels by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for name in [f"data_batch_{i + 1}.bin" for i in range(batches)] + ["test_batch.bin"]:
        pixels = rng.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8)
        labels = rng.integers(0, 10, rows, dtype=np.uint8)
        (folder / name).write_bytes(b"".join(bytes([k]) + p.tobytes() for k, p in zip(labels, pixels, strict=True)))
        written[name] = pixels, labels
    return written


# --- model ---


def test_parameter_count_and_output_shape():
    model = ResNet20()
    assert sum(p.numel() for p in model.parameters()) == 269_722
    assert model(torch.zeros(5, 3, 32, 32)).shape == (5, 10)


def test_twenty_layers_with_weights_and_none_in_the_shortcuts():
    model = ResNet20()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 20
    # Option B would have 1x1 convolutions.
    assert all(layer.kernel_size == (3, 3) for layer in layers[:-1])


def test_shortcut_takes_every_other_pixel_and_adds_zero_channels():
    model = ResNet20().eval()
    block = model.blocks[3]
    with torch.no_grad():
        block.norm2.weight.zero_()
        x = torch.randn(2, 16, 32, 32)
        out = block(x)
    assert out.shape == (2, 32, 16, 16)
    torch.testing.assert_close(out[:, :16], x[:, :, ::2, ::2].relu())
    assert (out[:, 16:] == 0).all()


# --- data ---


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
def test_reads_the_binary_version(tmp_path, subfolder):
    written = _write_cifar10(tmp_path / subfolder)
    train, test = read_cifar10(tmp_path)
    expected = np.concatenate([written[f"data_batch_{i}.bin"][0] for i in range(1, 6)])
    np.testing.assert_array_equal(train.pixels.numpy(), expected)
    np.testing.assert_array_equal(train.labels.numpy()[20:40], written["data_batch_2.bin"][1])
    np.testing.assert_array_equal(test.pixels.numpy(), written["test_batch.bin"][0])
    assert train.labels.dtype == torch.int64


def test_missing_files_are_named(task, tmp_path):
    with pytest.raises(DataError, match=r"data_batch_1\.bin to data_batch_5\.bin and test_batch\.bin"):
        task.find_data(str(tmp_path))


def test_a_missing_training_batch_is_named(tmp_path):
    _write_cifar10(tmp_path, batches=4)
    with pytest.raises(DataError, match=r"lacks data_batch_5\.bin"):
        read_cifar10(tmp_path)


def test_a_torn_or_foreign_file_is_refused(tmp_path):
    _write_cifar10(tmp_path)
    whole = (tmp_path / "data_batch_2.bin").read_bytes()
    (tmp_path / "data_batch_2.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin is not a CIFAR-10 binary batch"):
        read_cifar10(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DataError, match="label from 0 to 9"):
        read_cifar10(tmp_path)


def test_hub_parquet(task, tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(1)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    pixels = {}
    for split, rows in (("train", 12), ("test", 7)):
        pixels[split] = rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
        rows = datasets.Dataset.from_dict(
            {"img": list(pixels[split]), "label": [i % 10 for i in range(rows)]}, features=features
        )
        rows.to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    data = task.find_data(f"hub:{tmp_path}")
    np.testing.assert_array_equal(data.train.pixels.permute(0, 2, 3, 1).numpy(), pixels["train"])
    np.testing.assert_array_equal(data.test.pixels.permute(0, 2, 3, 1).numpy(), pixels["test"])
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert not data.stand_in


def test_hub_data_without_images_is_refused(task, tmp_path):
    datasets = pytest.importorskip("datasets")
    for split in ("train", "test"):
        datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    with pytest.raises(DataError, match="no columns img and label; it has text"):
        task.find_data(f"hub:{tmp_path}")


def test_standin_is_the_same_for_the_same_seed():
    first, again, other = generate_images(40, seed=5), generate_images(40, seed=5), generate_images(40, seed=6)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.pixels, other.pixels)


def test_standin_has_all_classes_and_no_linear_classifier_tells_them_apart(images):
    counts = torch.bincount(images.labels, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 100
    x = functional.avg_pool2d(images.pixels.double(), 2).flatten(1) / 255
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    y = functional.one_hot(images.labels).double()
    weights = torch.linalg.solve(x[:1000].T @ x[:1000] + 10 * torch.eye(x.shape[1]), x[:1000].T @ y[:1000])
    accuracy = ((x[1000:] @ weights).argmax(1) == images.labels[1000:]).double().mean()
    # Chance is 0.1; this network is at 0.8 after 200 steps.
    assert accuracy < 0.25


# --- batches ---


def test_normalisation_gives_zero_mean_and_unit_deviation(images):
    normal = Normalisation.of(images)(images.pixels)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_crops_and_flips_against_one_image_at_a_time():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    offsets, flips = rng.integers(0, 9, (30, 2)), rng.integers(0, 2, 30).astype(bool)
    found = augmented(torch.from_numpy(pixels), torch.from_numpy(offsets), torch.from_numpy(flips)).numpy()
    for image, (row, column), flip, out in zip(pixels, offsets, flips, found, strict=True):
        crop = np.pad(image, ((0, 0), (4, 4), (4, 4)))[:, row : row + 32, column : column + 32]
        np.testing.assert_array_equal(out, crop[:, :, ::-1] if flip else crop)


def test_an_epoch_is_the_same_again_and_has_every_image_once():
    n = 50
    labels = torch.arange(n)
    images = Images(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), labels)
    settings = ResNet20Settings(batch_size=16)
    first, again = list(training_batches(images, settings, 1, 2)), list(training_batches(images, settings, 1, 2))
    assert [len(batch) for batch in first] == [16, 16, 16, 2]
    assert all(
        torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels) for a, b in zip(first, again, strict=True)
    )
    order = torch.cat([batch.labels for batch in first])
    assert order.sort().values.tolist() == labels.tolist()
    for seed, epoch in ((1, 3), (2, 2)):
        other = torch.cat([batch.labels for batch in training_batches(images, settings, seed, epoch)])
        assert order.tolist() != other.tolist()


def test_augmentation_can_be_left_out():
    images = generate_images(20, seed=0)
    batch = next(training_batches(images, ResNet20Settings(batch_size=20, augment=False), 0, 0))
    originals = {bytes(image.numpy().tobytes()) for image in images.pixels}
    assert {bytes(image.numpy().tobytes()) for image in batch.pixels} == originals


def test_held_out_images_are_not_trained_on(task, tmp_path):
    _write_cifar10(tmp_path)
    data = task.find_data(str(tmp_path))
    kept = task.build(ResNet20Settings(batch_size=10, width=4), data, seed=0)
    assert (len(kept.train), len(kept.splits["valid"]), len(kept.splits["test"])) == (90, 10, 20)
    train = {image.numpy().tobytes() for image in kept.train.pixels}
    valid = {image.numpy().tobytes() for image in kept.splits["valid"].pixels}
    assert not train & valid
    everything = task.build(ResNet20Settings(batch_size=10, width=4), data, seed=0, hold_out=False)
    assert len(everything.train) == 100
    assert "valid" not in everything.splits


# --- run ---


def test_papers_settings(task):
    settings = task.settings("paper")
    assert (settings.batch_size, settings.epochs, settings.steps, settings.width) == (128, 164, None, 16)
    rates = {
        "generalized-signsgd": 2e-4,
        "adam": 9e-4,
        "sgd-momentum": 0.07,
        "sgd-clip-grad": 0.5,
        "sgd-clip-momentum": 10,
        "sgd-momentum-normalized": 0.1,
    }
    for optimizer, lr in rates.items():
        defaults = task.optimizer_defaults(optimizer, "paper")
        assert defaults["lr"] == lr
        assert defaults["weight_decay"] == 1e-4
    assert task.optimizer_defaults("sgd-momentum", "paper")["nesterov"]


def test_metrics_against_the_whole_split_at_once(task, images):
    data = task.find_data(None)
    problem = task.build(ResNet20Settings(batch_size=32, width=4), data, seed=0)
    found = problem.evaluate("test")
    problem.model.eval()
    with torch.no_grad():
        logits = problem.model(problem.normalisation(data.test.pixels))
    assert found["loss"] == pytest.approx(functional.cross_entropy(logits, data.test.labels).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == data.test.labels).double().mean().item())


def test_training_gets_below_ln_10(task):
    data = task.find_data(None)
    problem = task.build(ResNet20Settings(batch_size=32, width=8), data, seed=0)
    assert problem.baseline().name == "ln 10"
    assert problem.baseline().loss == math.log(10)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.07, momentum=0.9, nesterov=True)
    losses = []
    for step, batch in enumerate(problem.batches(0)):
        if step == 120:
            break
        loss, _ = problem.loss(batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.9 * math.log(10)
