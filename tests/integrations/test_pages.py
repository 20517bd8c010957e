"""The Python in the pages on trainers, loggers and many processes runs, in the order in which it stands there."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from loops import batches, mlp
from torch import nn

import lsmooth

DOCS = Path(__file__).parents[2] / "docs"


def run(pages, names):
    for page in pages:
        text = (DOCS / page).read_text()
        for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
            line = text[: match.start()].count("\n") + 1
            exec(compile("\n" * line + match[1], page, "exec"), names)
    return names


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, inputs, targets):
        return {"loss": nn.functional.cross_entropy(self.inner(inputs), targets)}


def test_integrations(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    lightning = pytest.importorskip("lightning")
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    told = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(log=lambda values: told.append(values)))
    monkeypatch.setitem(
        sys.modules,
        "mlflow",
        types.SimpleNamespace(log_metric=lambda name, value, step: told.append({name: value, "step": step})),
    )
    data = torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches(12), strict=True)))

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    config = transformers.GPT2Config(
        vocab_size=7, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    tokens = torch.arange(8) % 7
    model, network, classifier = mlp(), mlp(), Classifier()
    names = run(
        ["integrations.md", "criterion.md", "hugging-face.md", "lightning.md", "logs.md"],
        {
            "torch": torch,
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "network": network,
            "optimizer_of_network": torch.optim.SGD(network.parameters(), lr=0.1),
            "classifier": classifier,
            "optimizer_of_classifier": torch.optim.SGD(classifier.parameters(), lr=0.1),
            "loader": batches(12),
            "loss_fn": nn.functional.cross_entropy,
            "trainer": transformers.Trainer(
                transformers.GPT2LMHeadModel(config),
                transformers.TrainingArguments(
                    "out", max_steps=3, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
                ),
                train_dataset=[{"input_ids": tokens, "labels": tokens}] * 8,
            ),
            "module": Module(),
            "train_loader": torch.utils.data.DataLoader(data, batch_size=8),
            "quiet": {
                "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_steps": 3,
                "enable_model_summary": False, "accelerator": "cpu",
            },
            "seen": [],
        },
    )  # fmt: skip
    names["recorder"].close()
    for name in ("closure", "criterion", "forward", "function", "trainer", "lightning"):
        with lsmooth.Trace(tmp_path / f"{name}.h5") as trace:
            assert set(trace.status_counts()) == {"measured"}, name
    for log in (names["for_wandb"], names["for_mlflow"]):
        log("lsmooth/smoothness", 1.5, 3)
    assert told == [{"lsmooth/smoothness": 1.5, "optimizer_step": 3}, {"lsmooth/smoothness": 1.5, "step": 3}]
    (inputs, targets) = batches(1)[0]
    recorder = lsmooth.Recorder(model, names["optimizer"], tmp_path / "counted.h5")
    names["optimizer"].zero_grad()
    recorder.backward(lambda: names["loss_and_statistics"](inputs, targets))
    names["optimizer"].step()
    recorder.close()
    assert names["seen"] == [8]


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="fully_shard is public from PyTorch 2.6 on")
def test_distributed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        transformer = nn.Module()
        transformer.layers = nn.ModuleList([nn.Linear(3, 3)])
        names = run(
            ["distributed.md"],
            {
                "torch": torch,
                "network": mlp(),
                "transformer": transformer,
                "loader": batches(12),
                "loss_fn": nn.functional.cross_entropy,
            },
        )
        names["recorder"].close()
    finally:
        torch.distributed.destroy_process_group()
    with lsmooth.Trace(tmp_path / "ddp.h5") as trace:
        assert trace.steps.tolist() == [0, 10]
        assert trace.status_counts() == {"measured": 2}
        assert trace.parameters[0] == "0.weight"
    with lsmooth.Trace(tmp_path / "fsdp.h5") as trace:
        assert trace.parameters == ["layers.0.weight", "layers.0.bias"]


def quoted(page):
    """Sentences in the tables of a page, cut where they are abbreviated."""
    rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    for row in rows:
        for sentence in re.findall(r"`([^`]*[.;…,])`", row):
            yield from (part.strip() for part in sentence.split("…") if len(part.strip()) > 12)


@pytest.mark.parametrize("page", ["integrations.md", "distributed.md"])
def test_quoted_messages_are_those_of_the_code(page):
    package = Path(lsmooth.__file__).parent
    text = "".join(path.read_text() for path in package.rglob("*.py"))
    # As one line, with the joints of implicit concatenation and the fields of f-strings closed.
    code = re.sub(r'"\s*\n\s*f?"', "", text)
    found = list(quoted(page))
    assert len(found) >= 4
    names = (
        "SGD",
        "PowerSGDState",
        "powerSGD_hook",
        "spectral/grad_norm",
        "parameters",
        "FSDPStrategy",
        "CrossEntropyLoss",
    )
    layout = "(Shard(dim=0), Shard(dim=1))"
    for sentence in found:
        pattern = re.escape(sentence).replace(re.escape(layout), "{placements}")
        for value in ("8", "4", "0", "1", *names):
            pattern = re.sub(rf"(?<![\w/]){re.escape(re.escape(value))}(?![\w/])", r"(?:{[^}]*}|\\w+)", pattern)
        assert re.search(pattern, code), sentence
