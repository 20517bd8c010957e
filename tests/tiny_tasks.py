"""Every task at its smallest size."""

TINY = {
    "transformer-encoder": {"embedding": 8, "heads": 1, "feed_forward": 8, "sequence": 6, "batch_size": 4},
    "transformer-translation": {"width": 8, "heads": 2, "feed_forward": 8, "layers": 1, "batch_size": 4},
    "gpt2": {"width": 8, "heads": 2, "feed_forward": 8, "layers": 1, "context": 8, "batch_size": 4},
    "resnet20": {"width": 2, "batch_size": 4},
    "awd-lstm": {"embedding": 8, "hidden": 8, "bptt": 8, "batch_size": 4},
}
