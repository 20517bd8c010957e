"""Run each training library that is installed with a recorder, and print what was run as a table.

python tests/integrations/libraries.py     (pip install pytorch-ignite skorch fastai stable-baselines3 schedulefree …)
"""

import functools
import importlib.metadata
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import lsmooth

COUNT, FEATURES, CLASSES = 64, 6, 3


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(COUNT, FEATURES, generator=generator), torch.randint(CLASSES, (COUNT,), generator=generator)


def model(*extra: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, CLASSES), *extra)


def loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=16)


def pytorch_ignite(path: Path, record: bool) -> nn.Module:
    from ignite.engine import create_supervised_trainer

    net, criterion = model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    recorder = lsmooth.Recorder(net, optimizer, path) if record else None
    if record:
        criterion = recorder.watch(net, criterion)
    create_supervised_trainer(net, optimizer, criterion).run(loader(), max_epochs=2)
    if record:
        recorder.close()
    return net


def skorch(path: Path, record: bool) -> nn.Module:
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback

    class Record(Callback):
        def on_train_begin(self, net, **kwargs):
            self.recorder = lsmooth.Recorder(net.module_, net.optimizer_, path)
            net.get_loss = self.recorder.watch(net.module_, net.get_loss)

        def on_train_end(self, net, **kwargs):
            self.recorder.close()
            del net.get_loss

    # The criterion is NLLLoss, whose logarithm skorch takes itself, in `get_loss`.
    net = NeuralNetClassifier(
        model(nn.Softmax(dim=-1)), max_epochs=2, lr=0.3, batch_size=16, train_split=None, verbose=0,
        callbacks=[Record()] if record else [],
    )  # fmt: skip
    inputs, targets = data()
    net.fit(inputs.numpy(), targets.numpy())
    return net.module_


def fastai(path: Path, record: bool) -> nn.Module:
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import OptimWrapper

    batches = loader()
    learn = Learner(
        DataLoaders(batches, batches), model(), CrossEntropyLossFlat(), cbs=[],
        opt_func=functools.partial(OptimWrapper, opt=torch.optim.SGD), path=path.parent,
    )  # fmt: skip
    learn.create_opt()
    if record:
        recorder = lsmooth.Recorder(learn.model, learn.opt.opt, path)
        learn.loss_func = recorder.watch(learn.model, learn.loss_func)
    learn.remove_cbs(list(learn.cbs[1:]))
    learn.fit(2, lr=0.3)
    if record:
        recorder.close()
    return learn.model


def stable_baselines3(path: Path, record: bool) -> nn.Module:
    import gymnasium
    import stable_baselines3.dqn.dqn as module

    dqn = module.DQN(
        "MlpPolicy", gymnasium.make("CartPole-v1"), learning_starts=32, train_freq=8, batch_size=16, seed=0,
        device="cpu", policy_kwargs={"net_arch": [16]},
    )  # fmt: skip
    functional = module.F
    if record:
        recorder = lsmooth.Recorder(dqn.policy, dqn.policy.optimizer, path)
        # DQN's loss is this function of its Q-network's entries, called by its module's `F`.
        watched = recorder.watch(dqn.q_net, functional.smooth_l1_loss)
        module.F = types.SimpleNamespace(**{**vars(functional), "smooth_l1_loss": watched})
    try:
        dqn.learn(96)
    finally:
        module.F = functional
    if record:
        recorder.close()
    return dqn.q_net


def schedulefree(path: Path, record: bool) -> nn.Module:
    from schedulefree import AdamWScheduleFree

    net = model()
    optimizer = AdamWScheduleFree(net.parameters(), lr=0.01)
    optimizer.train()
    recorder = lsmooth.Recorder(net, optimizer, path) if record else None
    criterion = recorder.watch(net, F.cross_entropy) if record else F.cross_entropy
    for inputs, targets in [*loader(), *loader()]:
        optimizer.zero_grad()
        criterion(net(inputs), targets).backward()
        optimizer.step()
    if record:
        recorder.close()
    return net


def lightning(path: Path, record: bool) -> nn.Module:
    import logging

    from lightning.pytorch import LightningModule, Trainer

    from lsmooth.integrations.lightning import SmoothnessCallback

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model()

        def training_step(self, batch, index):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module()
    Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[SmoothnessCallback(path, every=1)] if record else [],
    ).fit(module, loader())  # fmt: skip
    return module.net


def transformers(path: Path, record: bool) -> nn.Module:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from lsmooth.integrations.transformers import SmoothnessCallback

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()

        def forward(self, inputs, labels=None):
            return {"loss": F.cross_entropy(self.net(inputs), labels)}

    net = Net()
    arguments = TrainingArguments(
        str(path.parent / "out"), max_steps=8, per_device_train_batch_size=16, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, logging_strategy="no", learning_rate=0.01, lr_scheduler_type="constant",
    )  # fmt: skip
    examples = [{"inputs": x, "labels": y} for x, y in zip(*data(), strict=True)]
    callbacks = [SmoothnessCallback(path, every=1)] if record else []
    trainer = Trainer(model=net, args=arguments, train_dataset=examples, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return net.net


# What is run: the package, how a recorder is attached to it, and how many lines of one's own script that changes.
LIBRARIES: dict[str, tuple[Callable[[Path, bool], nn.Module], str, int]] = {
    "transformers": (transformers, "`SmoothnessCallback` in `Trainer`", 1),
    "lightning": (lightning, "`SmoothnessCallback` in `Trainer`", 1),
    "pytorch-ignite": (pytorch_ignite, "`criterion = recorder.watch(model, criterion)`", 2),
    "skorch": (skorch, "a callback: `net.get_loss = recorder.watch(net.module_, net.get_loss)`", 7),
    "fastai": (fastai, "`learn.loss_func = recorder.watch(learn.model, learn.loss_func)`, with `OptimWrapper`", 3),
    "stable-baselines3": (stable_baselines3, "DQN: `recorder.watch(dqn.q_net, F.smooth_l1_loss)` in its module", 3),
    "schedulefree": (schedulefree, "`AdamWScheduleFree`, `recorder.watch(model, criterion)`", 2),
}


def table() -> str:
    """Return the table of docs/integrations.md, with the versions that are installed here."""
    lines = ["| library | version | how attached | lines | steps measured |", "|---|---|---|---|---|"]
    for name, (run, how, changed) in LIBRARIES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "run.h5"
            run(path, True)
            with lsmooth.Trace(path) as trace:
                counts = trace.status_counts()
                lines.append(f"| {name} | {version} | {how} | {changed} | {counts['measured']} of {len(trace)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
