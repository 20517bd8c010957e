"""Counts what makes the host wait for the device."""

from loops import not_put_back
from torch.utils._python_dispatch import TorchDispatchMode


class CountsWaits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        # Replays put back what a mode counts.
        self._counts = not_put_back(seen=[])

    @property
    def seen(self):
        return self._counts.seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith(("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.equal", "aten.is_nonzero")):
            self.seen.append(name)
        result = func(*args, **(kwargs or {}))
        if name.startswith(("aten._to_copy", "aten.copy_")):
            source = args[1] if name.startswith("aten.copy_") else args[0]
            if result.device.type == "cpu" and source.device.type != "cpu":
                self.seen.append(name)
        return result
