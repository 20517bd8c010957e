"""Training with several processes: DistributedDataParallel and `fully_shard`."""
