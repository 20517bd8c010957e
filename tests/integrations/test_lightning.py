"""Lightning's Trainer: nothing changes, nothing is logged twice, and the numbers are those of a loop by hand."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
from forked import read_only
from torch import nn

import lsmooth

lightning = pytest.importorskip("lightning.pytorch")
torchmetrics = pytest.importorskip("torchmetrics")

from lightning.pytorch.loggers.logger import DummyLogger  # noqa: E402

from lsmooth.integrations.lightning import SmoothnessCallback  # noqa: E402

FIELDS = ("loss", "loss_along", "loss_next", "grad_norm", "step_norm", "grad_diff", "coordinate/grad_along")


class Heard(DummyLogger):
    """A logger that keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def log_metrics(self, metrics, step=None):
        self.told.append((step, {name: float(value) for name, value in metrics.items()}))


class Module(lightning.LightningModule):
    def __init__(self, dropout=0.3, returns="loss"):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 3))
        if dropout:
            self.net.insert(1, nn.BatchNorm1d(8))
        self.accuracy = torchmetrics.MeanMetric()
        self.listed = torchmetrics.CatMetric()
        self.returns = returns

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy((logits.argmax(1) == y).float())
        self.listed.update(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"accuracy": self.accuracy, "twice": 2 * loss})
        if self.returns == "none" and batch_idx % 4 == 3:
            return None
        return {"loss": loss, "logits": logits} if self.returns == "dict" else loss

    def on_train_epoch_end(self):
        self.log("count", float(self.listed.compute().numel()))
        self.listed.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def loader():
    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(
        torch.randn(48, 6, generator=generator), torch.randint(3, (48,), generator=generator)
    )
    return torch.utils.data.DataLoader(data, batch_size=4)


def trainer_for(folder, callbacks=(), **arguments):
    return lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, callbacks=list(callbacks), logger=Heard(),
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        **{"max_epochs": 2, "enable_checkpointing": False, **arguments},
    )  # fmt: skip


VARIANTS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.1, "accumulate_grad_batches": 3},
    "bf16": {"precision": "bf16-mixed"},
    "scaled": {"precision": "16-mixed", "gradient_clip_val": 0.1},
}


@pytest.fixture(autouse=True)
def quiet():
    """Lightning warns about loaders with few workers and the like; the recorder has nothing to say."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert not [str(entry.message) for entry in caught if "At step" in str(entry.message)]


@pytest.mark.parametrize(
    ("variant", "returns"), [*((variant, "loss") for variant in VARIANTS), ("plain", "none"), ("accumulation", "dict")]
)
def test_weights_and_logs_are_those_without_the_callback(variant, returns, tmp_path):
    ends = []
    for callbacks in ([], [SmoothnessCallback(tmp_path / "run.h5", every=2)]):
        module = Module(returns=returns)
        trainer = trainer_for(tmp_path, callbacks, **VARIANTS[variant])
        trainer.fit(module, loader())
        assert "training_step" not in vars(trainer.strategy)
        assert not {"log", "log_dict"} & set(vars(module))
        moments = [state["momentum_buffer"].clone() for state in trainer.optimizers[0].state.values()]
        ends.append((dict(module.state_dict()), moments, trainer.logger.told, torch.get_rng_state()))
    (weights, moments, told, rng), (others, other_moments, other_told, other_rng) = ends
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert all(torch.equal(a, b) for a, b in zip(moments, other_moments, strict=True))
    assert told == other_told
    assert {name for _, metrics in told for name in metrics} >= {"loss_step", "loss_epoch", "accuracy", "count"}
    assert torch.equal(rng, other_rng)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert len(trace) >= 4
        assert (trace.steps % 2 == 0).all()
        # Steps as short as some of these change gradients in half precision by little more than rounding.
        half = "16" in str(VARIANTS[variant].get("precision"))
        assert "measured" in trace.status_counts()
        assert set(trace.status_counts()) <= ({"measured", "noisy"} if half else {"measured"})


def test_training_goes_on_where_no_trace_can_be_written(tmp_path):
    (tmp_path / "runs").mkdir()
    callback = SmoothnessCallback(tmp_path / "runs" / "run.h5", every=1)
    ends = []
    for callbacks in ([], [callback]):
        module = Module()
        trainer = trainer_for(tmp_path, callbacks)
        with read_only(tmp_path / "runs"):
            trainer.fit(module, loader())
        ends.append((dict(module.state_dict()), trainer.logger.told))
    (weights, told), (others, other_told) = ends
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert told == other_told
    assert "cannot be written (Permission denied)" in callback.recorder.failure
    assert callback.state_dict()["rows"] == 0
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("variant", ["plain", "clipped", "bf16"])
def test_the_estimates_are_those_of_the_recorder_in_a_loop_written_by_hand(variant, tmp_path):
    module = Module(dropout=0.0)
    callback = SmoothnessCallback(tmp_path / "trainer.h5", every=1)
    trainer_for(tmp_path, [callback], **{**VARIANTS[variant], "max_epochs": 1}).fit(module, loader())

    hand = Module(dropout=0.0)
    optimizer = hand.configure_optimizers()
    parts = VARIANTS[variant].get("accumulate_grad_batches", 1)
    batches = list(loader())
    with lsmooth.Recorder(hand, optimizer, tmp_path / "hand.h5") as recorder:
        for first in range(0, len(batches), parts):
            optimizer.zero_grad()
            for x, y in batches[first : first + parts]:

                def closure(x=x, y=y):
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=variant == "bf16"):
                        return nn.functional.cross_entropy(hand.net(x), y) / parts

                recorder.backward(closure)
            if variant == "clipped":
                nn.utils.clip_grad_norm_(hand.parameters(), 0.1)
            optimizer.step()
    with lsmooth.Trace(tmp_path / "trainer.h5") as trace, lsmooth.Trace(tmp_path / "hand.h5") as expected:
        assert len(trace) == len(expected) == 12 // parts
        for name in FIELDS:
            values = expected.read(name)
            np.testing.assert_allclose(
                trace.read(name), values, rtol=1e-5, atol=1e-6 * np.abs(values).max(), err_msg=name
            )
    for a, b in zip(module.net.parameters(), hand.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_goes_on_in_its_trace(tmp_path):
    """From a checkpoint at the end of an epoch: in the middle of one, Lightning starts the loader anew."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(name, steps, resume=None):
        keep = ModelCheckpoint(tmp_path / name, every_n_train_steps=12, save_top_k=-1, filename="{step}")
        trainer = trainer_for(
            tmp_path, [SmoothnessCallback(tmp_path / f"{name}.h5", every=1), keep], max_steps=steps, max_epochs=-1,
            enable_checkpointing=True,
        )  # fmt: skip
        trainer.fit(Module(dropout=0.0), loader(), ckpt_path=resume)

    fit("whole", 16)
    fit("parts", 14)
    fit("parts", 16, tmp_path / "parts" / "step=12.ckpt")
    with lsmooth.Trace(tmp_path / "whole.h5") as whole, lsmooth.Trace(tmp_path / "parts.h5") as parts:
        assert parts.steps.tolist() == list(range(16))
        for name in FIELDS:
            np.testing.assert_allclose(parts.read(name), whole.read(name), rtol=1e-6, err_msg=name)


def test_an_exception_leaves_a_finished_trace(tmp_path):
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 5:
                raise FloatingPointError("mine")
            return super().training_step(batch, batch_idx)

    trainer = trainer_for(tmp_path, [SmoothnessCallback(tmp_path / "run.h5", every=1)])
    with pytest.raises(FloatingPointError):
        trainer.fit(Fails(), loader())
    assert "training_step" not in vars(trainer.strategy)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0, 1, 2, 3, 4]


def test_optimization_by_hand_is_refused(tmp_path):
    class ByHand(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(lsmooth.LsmoothError, match="optimizes by hand"):
        trainer_for(tmp_path, [SmoothnessCallback(tmp_path / "run.h5")]).fit(ByHand(), loader())
    assert not (tmp_path / "run.h5").exists()


def test_another_fit_takes_over_the_trace_of_the_last(tmp_path):
    class Fails(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3 and self.fails:
                raise FloatingPointError("mine")
            return super().training_step(batch, batch_idx)

    callback = SmoothnessCallback(tmp_path / "run.h5", every=1)
    for fails in (True, False):
        module = Fails()
        module.fails = fails
        trainer = trainer_for(tmp_path, [callback], max_epochs=1)
        with pytest.raises(FloatingPointError) if fails else contextlib.nullcontext():
            trainer.fit(module, loader())
        with lsmooth.Trace(tmp_path / "run.h5") as trace:
            assert len(trace) == (3 if fails else 12)
    # The trace of a finished training is kept.
    kept = (tmp_path / "run.h5").read_bytes()
    with pytest.warns(UserWarning, match=r"is recorded in .*run-2\.h5\."):
        trainer_for(tmp_path, [callback], max_epochs=1).fit(module, loader())
    assert (tmp_path / "run.h5").read_bytes() == kept
    with lsmooth.Trace(tmp_path / "run-2.h5") as trace:
        assert trace.steps.tolist() == list(range(12))


def test_another_fit_of_the_same_trainer_goes_on_in_the_trace(tmp_path):
    callback = SmoothnessCallback(tmp_path / "run.h5", every=1)
    module, trainer = Module(), trainer_for(tmp_path, [callback], max_epochs=1)
    for epochs in (1, 2):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, loader())
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == list(range(24))
        assert trace.status_counts() == {"measured": 24}


def test_a_step_that_returns_none_for_a_loss_that_is_not_finite(tmp_path):
    """At a point of the segment the replay finds none either: the step is flagged, and training goes on."""

    class Passes(Module):
        def training_step(self, batch, batch_idx):
            loss = 1e3 * self.net(batch[0]).square().mean()
            return loss if torch.isfinite(loss) else None

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e25)

        def on_train_epoch_end(self):
            pass

    trainer = trainer_for(tmp_path, [SmoothnessCallback(tmp_path / "run.h5", every=1)], max_epochs=1)
    trainer.fit(Passes(dropout=0.0), loader())
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts().get("measured", 0) == 0
        assert trace.status_counts()["non_finite"] >= 1


class Several(Module):
    """Two optimizers on one loss, the second every second time, by hand."""

    def __init__(self, dropout=0.3):
        super().__init__(dropout=dropout)
        self.automatic_optimization = False

    def compute_loss(self, batch):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.compute_loss(batch))
        for optimizer in self.optimizers()[: 1 + batch_idx % 2]:
            optimizer.step()

    def on_train_epoch_end(self):
        pass

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.ndim == 2]
        others = [p for p in self.parameters() if p.ndim != 2]
        muon = getattr(torch.optim, "Muon", torch.optim.SGD)
        return [muon(matrices, lr=0.05), torch.optim.AdamW(others, lr=0.02)]


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_several_optimizers_on_a_named_loss(precision, tmp_path):
    ends = []
    for callbacks in ([], [SmoothnessCallback(tmp_path / "run.h5", loss="compute_loss", every=1)]):
        module = Several()
        trainer = trainer_for(tmp_path, callbacks, max_epochs=1, precision=precision)
        trainer.fit(module, loader())
        assert "compute_loss" not in vars(module)
        ends.append((dict(module.state_dict()), trainer.logger.told, torch.get_rng_state()))
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert ends[0][1] == ends[1][1]
    assert torch.equal(ends[0][2], ends[1][2])
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        counts = trace.status_counts()
        assert counts["measured"] + (counts.get("noisy", 0) if precision == "16-mixed" else 0) == 12
        assert trace.lr.shape == (12, 2)
        shapes = [len(shape) for shape in trace.metadata["parameter_shapes"]]
        moved = trace.read("step_norm") > 0
        assert moved[1::2].all()
        assert (moved[::2] == [dims == 2 for dims in shapes]).all()


def test_several_optimizers_are_measured_as_in_a_loop_by_hand_and_resumed(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(name, epochs, resume=None):
        keep = ModelCheckpoint(tmp_path / name, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
        callback = SmoothnessCallback(tmp_path / f"{name}.h5", loss="compute_loss", every=1)
        trainer = trainer_for(tmp_path, [callback, keep], max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(Several(dropout=0.0), loader(), ckpt_path=resume)
        return trainer, callback

    fit("trainer", 1)
    trainer, _ = fit("trainer", 2, tmp_path / "trainer" / "epoch=0.ckpt")
    # Goes on without a checkpoint: Lightning has counted the steps of each optimizer by then.
    assert trainer.global_step == 36
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, loader())
    hand = Several(dropout=0.0)
    optimizers = hand.configure_optimizers()
    with lsmooth.Recorder(hand, optimizers, tmp_path / "hand.h5") as recorder:
        for i, (x, y) in enumerate(list(loader()) * 2):
            for optimizer in optimizers:
                optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: nn.functional.cross_entropy(hand.net(x), y))
            for optimizer in optimizers[: 1 + i % 2]:
                optimizer.step()
    with lsmooth.Trace(tmp_path / "trainer.h5") as trace, lsmooth.Trace(tmp_path / "hand.h5") as expected:
        assert trace.steps.tolist() == list(range(36))
        for name in FIELDS:
            np.testing.assert_allclose(trace.read(name)[:24], expected.read(name), rtol=1e-5, atol=1e-7, err_msg=name)


def test_under_automatic_optimization_lightning_itself_refuses_several_optimizers(tmp_path):
    class Automatic(Several):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = True

    with pytest.raises(RuntimeError, match="multiple optimizers"):
        trainer_for(tmp_path, [SmoothnessCallback(tmp_path / "run.h5")]).fit(Automatic(), loader())


@pytest.mark.parametrize(
    ("module", "loss", "message"),
    [
        (Several, "misspelt", "Several has no method 'misspelt'"),
        (Module, "training_step", "leaves optimization to Lightning"),
    ],
)
def test_a_loss_that_cannot_be_named_is_refused(module, loss, message, tmp_path):
    with pytest.raises(lsmooth.LsmoothError, match=message):
        trainer_for(tmp_path, [SmoothnessCallback(tmp_path / "run.h5", loss=loss)]).fit(module(), loader())
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize("how", ["backward", "watch"])
def test_a_recorder_inside_of_a_module_that_optimizes_by_hand(how, tmp_path):
    class ByHand(Module):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.automatic_optimization = False
            self.held = []

        def on_train_start(self):
            recorder = lsmooth.Recorder(self, self.optimizers().optimizer, tmp_path / f"{how}.h5")
            compute = self.loss if how == "backward" else recorder.watch(self.loss)
            self.held += [recorder, compute]

        def loss(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            recorder, compute = self.held
            optimizer = self.optimizers()
            optimizer.zero_grad()
            if how == "backward":
                recorder.backward(lambda: compute(batch))
            else:
                self.manual_backward(compute(batch))
            optimizer.step()

        def on_train_end(self):
            self.held[0].close()

        def on_train_epoch_end(self):
            pass

    trainer_for(tmp_path, max_epochs=1).fit(ByHand(), loader())
    with lsmooth.Trace(tmp_path / f"{how}.h5") as trace:
        assert trace.status_counts() == {"measured": 12}
