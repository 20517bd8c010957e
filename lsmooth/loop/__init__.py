"""What a training loop did: its backward passes, its steps, and which of them are measured."""
