"""Record the smoothness of the global batch's loss, over several processes.

torchrun --nproc-per-node 2 examples/ddp.py run.h5
"""

import os
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lsmooth


class Regression(nn.Module):
    """A model whose forward returns its loss, as those of Hugging Face do."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        predictions = self.net(inputs)
        return {"loss": nn.functional.mse_loss(predictions, targets), "predictions": predictions}


def main(path: str, steps: int = 100) -> None:
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    model = DistributedDataParallel(Regression().to(device), device_ids=[device.index] if cuda else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(dist.get_rank())

    # Every rank makes the recorder, with the model that the loop calls; rank 0 writes. The loop is left as it is.
    with lsmooth.Recorder(model, optimizer, path, every=5).watch_forward():
        for _ in range(steps):
            inputs = torch.randn(32, 8, generator=generator).to(device)
            optimizer.zero_grad()
            model(inputs, inputs.sin().sum(dim=1, keepdim=True))["loss"].backward()
            optimizer.step()

    if dist.get_rank() == 0:
        with lsmooth.Trace(path) as trace:
            print(trace)
            print(trace.smoothness()[["step", "smoothness", "grad_norm"]].tail().to_string(index=False))
    dist.destroy_process_group()
    time.sleep(0.2)  # Gloo's threads outlive the group, and crash a Python that ends at once (pytorch#179291).


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "run.h5")
