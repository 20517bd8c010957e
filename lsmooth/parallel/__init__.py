"""Many processes, one function: what changes under DistributedDataParallel and `fully_shard`."""
