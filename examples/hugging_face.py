"""Record the smoothness of a Hugging Face Trainer: one callback, nothing else changes.

python examples/hugging_face.py run.h5     (pip install 'lsmooth[transformers]'; nothing is downloaded)
"""

import sys
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import lsmooth
from lsmooth.integrations.transformers import SmoothnessCallback

TEXT = "How much the gradient changes along a step says how long the step may be. " * 40
LENGTH = 32


def characters() -> tuple[list[dict[str, torch.Tensor]], int]:
    """Return windows of the text, character by character, and how many characters there are."""
    alphabet = sorted(set(TEXT))
    tokens = torch.tensor([alphabet.index(character) for character in TEXT])
    return [{"input_ids": window, "labels": window} for window in tokens.unfold(0, LENGTH, 7)], len(alphabet)


def main(path: str, steps: int = 100) -> None:
    examples, size = characters()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=size, n_positions=LENGTH, n_embd=48, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=GPT2LMHeadModel(config),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=2,
                learning_rate=3e-3,
                max_grad_norm=1.0,
                logging_steps=25,
                save_strategy="no",
                report_to=[],
            ),
            train_dataset=examples,
        )
        trainer.add_callback(SmoothnessCallback(path, every=5))
        trainer.train()

    with lsmooth.Trace(path) as trace:
        print(trace)
        print(trace.smoothness()[["step", "smoothness", "grad_norm"]].tail().to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "run.h5")
