"""The training frameworks over several processes; run by torchrun, and in one process with the whole batch."""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

BATCH = 8


def ranks():
    return int(os.environ.get("WORLD_SIZE", "1"))


def trainer(path):
    import transformers

    from lsmooth.integrations.transformers import SmoothnessCallback

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (96, 8), generator=generator)
    # Ranks and microbatches hold different numbers of words that count.
    lengths = torch.randint(3, 9, (96, 1), generator=generator)
    labels = torch.where(torch.arange(8) < lengths, tokens, -100)
    labels[:, 0] = -100
    arguments = transformers.TrainingArguments(
        str(path) + ".out", max_steps=4, per_device_train_batch_size=BATCH // ranks(), gradient_accumulation_steps=2,
        max_grad_norm=0.5, learning_rate=1e-2, lr_scheduler_type="constant", optim="adamw_torch", use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
        average_tokens_across_devices=True,  # not every version's default
    )  # fmt: skip
    transformers.Trainer(
        transformers.GPT2LMHeadModel(config),
        arguments,
        train_dataset=[{"input_ids": a, "labels": b} for a, b in zip(tokens, labels, strict=True)],
        callbacks=[SmoothnessCallback(path, every=1)],
    ).train()


def lightning(path):
    import lightning.pytorch as pl

    from lsmooth.integrations.lightning import SmoothnessCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss, sync_dist=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(
        torch.randn(64, 6, generator=generator), torch.randint(3, (64,), generator=generator)
    )
    # Lightning's own sampler shuffles.
    sampler = torch.utils.data.DistributedSampler(data, ranks(), int(os.environ.get("RANK", "0")), shuffle=False)
    pl.Trainer(
        accelerator="cpu", devices=ranks(), strategy="ddp" if ranks() > 1 else "auto", max_epochs=1,
        accumulate_grad_batches=2, gradient_clip_val=0.1, logger=False, use_distributed_sampler=False,
        enable_checkpointing=False,        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[SmoothnessCallback(path, every=1)],
    ).fit(Module(), torch.utils.data.DataLoader(data, BATCH // ranks(), sampler=sampler))  # fmt: skip


def main(folder):
    trainer(folder / f"trainer.{ranks()}.h5")
    lightning(folder / f"lightning.{ranks()}.h5")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    # Gloo's threads crash a Python that ends at once (pytorch/pytorch#179291).
    time.sleep(0.2)
