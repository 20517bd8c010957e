"""The paper's training runs, one module each."""
