"""What is refused in one process already: wrappers whose gradients are not the model's, foreign optimizers."""

import importlib
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def refused(folder, model, optimizer=None):
    """Return the one sentence with which a recorder refuses a model; nothing is left in the folder."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
    with pytest.raises(InvalidArgumentError) as error:
        lsmooth.Recorder(model, optimizer, folder / "run.h5")
    assert not list(folder.iterdir())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_data_parallel(tmp_path):
    sentence = "DataParallel is not measured; use DistributedDataParallel, one process a GPU."
    assert refused(tmp_path, nn.DataParallel(net())) == sentence
    assert refused(tmp_path, nn.Sequential(nn.DataParallel(net()), nn.Tanh())) == sentence


@pytest.mark.filterwarnings("ignore")
def test_fsdp1(tmp_path, one_process_group):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    assert refused(tmp_path, model) == (
        "FullyShardedDataParallel (FSDP1) is not measured, since its flat parameters are not the model's; use "
        "torch.distributed.fsdp.fully_shard (FSDP2)."
    )


def test_shards_where_fully_shard_is_not_public_yet(tmp_path, one_process_group, monkeypatch):
    early = torch.__version__ < (2, 5)
    tensor = importlib.import_module("torch.distributed._tensor" if early else "torch.distributed.tensor")
    mesh = dist.init_device_mesh("cpu", (1,))
    model = nn.Linear(4, 3, bias=False)
    model.weight = nn.Parameter(tensor.distribute_tensor(model.weight.detach(), mesh, [tensor.Shard(0)]))
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard", raising=False)
    assert refused(tmp_path, model) == (
        "Sharded parameters are measured from PyTorch 2.6 on, where fully_shard became public, and this is "
        f"{torch.__version__}; train with DistributedDataParallel, or update PyTorch."
    )


def test_one_process_beside_tensor_parallel_code(tmp_path):
    # Before PyTorch 2.5 the package that this lies in had no DTensor.
    import torch.distributed.tensor.parallel

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        recorder.backward(lambda: model(torch.ones(2, 4)).square().sum())
        optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 1}


class DeepSpeedEngine(nn.Module):
    """Stands in for DeepSpeed's: a module that holds the model, and an optimizer that is none of torch's."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class ZeroOptimizer:
    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]


def test_deepspeed(tmp_path):
    model = net()
    assert refused(tmp_path, DeepSpeedEngine(model)) == (
        "DeepSpeed is not measured, since its engine owns gradients and steps; use DistributedDataParallel or "
        "torch.distributed.fsdp.fully_shard."
    )
    assert "ZeroOptimizer is not a torch.optim.Optimizer" in refused(tmp_path, model, ZeroOptimizer(model.parameters()))


def test_a_trainer_that_runs_deepspeed(tmp_path):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from lsmooth.integrations.transformers import SmoothnessCallback

    trainer = transformers.Trainer(
        net(),
        transformers.TrainingArguments(str(tmp_path / "out"), report_to=[], use_cpu=True, disable_tqdm=True),
        train_dataset=[{"input": torch.zeros(4)}],
        callbacks=[SmoothnessCallback(tmp_path / "run.h5")],
    )
    trainer.is_deepspeed_enabled = True

    def began(self):
        self.callback_handler.on_train_begin(self.args, self.state, self.control)

    type(trainer).began = began
    try:
        with pytest.raises(lsmooth.LsmoothError, match=r"DeepSpeed is not measured, .*FSDP2 \(fsdp_version 2\)\.$"):
            trainer.began()
    finally:
        del type(trainer).began
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize(
    "name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "SingleDeviceXLAStrategy"]
)
def test_lightning_strategies_that_own_gradients_or_steps(name, tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch import LightningModule, strategies

    from lsmooth.integrations.lightning import SmoothnessCallback

    strategy = object.__new__(getattr(strategies, name))
    trainer = SimpleNamespace(strategy=strategy, optimizers=[None], global_step=0)
    with pytest.raises(lsmooth.LsmoothError) as error:
        SmoothnessCallback(tmp_path / "run.h5").on_train_start(trainer, LightningModule())
    assert str(error.value) == (
        f"{name} is not measured; use the strategy 'ddp', or lsmooth.Recorder in a loop of your own over fully_shard."
    )
    assert not list(tmp_path.iterdir())


def test_a_trainer_with_another_strategy_trains_nothing(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from lsmooth.integrations.lightning import SmoothnessCallback

    class Sharing(SingleDeviceStrategy):
        strategy_name = "sharing"

    class Module(lightning.LightningModule):
        steps = 0

        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, index):
            Module.steps += 1
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", strategy=Sharing(device=torch.device("cpu")), max_steps=2,
        callbacks=[SmoothnessCallback(tmp_path / "run.h5")], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(lsmooth.LsmoothError, match="Sharing is not measured; use the strategy 'ddp'"):
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.zeros(8, 4)))
    assert Module.steps == 0
    assert not list(tmp_path.iterdir())


def test_an_optimizer_of_accelerate_is_not_refused(tmp_path):
    """It hands its steps on to the one that it holds."""
    accelerate = pytest.importorskip("accelerate")

    def train(measured):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = net()
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=2) if measured else None

        def compute_loss(x):
            return model(x).square().mean()

        if recorder is not None:
            compute_loss = recorder.watch(compute_loss)
        generator = torch.Generator().manual_seed(1)
        losses = []
        for _ in range(8):
            x = torch.randn(6, 4, generator=generator)
            with accelerator.accumulate(model):
                # Accelerate divides by the number of microbatches.
                loss = compute_loss(x)
                losses.append(loss.item())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
        if recorder is not None:
            recorder.close()
        return list(model.parameters()), losses

    (bare, _), (watched, losses) = train(False), train(True)
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0, 2]
        assert trace.loss.tolist() == pytest.approx([(losses[0] + losses[1]) / 2, (losses[4] + losses[5]) / 2])
        assert trace.status_counts() == {"measured": 2}
