"""The Hugging Face Trainer, unmodified: nothing changes, and the numbers are those of a loop written by hand."""

import contextlib
import dataclasses
import inspect
import warnings

import numpy as np
import pytest
import torch
from forked import read_only
from torch import nn

import lsmooth

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from lsmooth.errors import TraceWarning  # noqa: E402
from lsmooth.integrations.transformers import SmoothnessCallback  # noqa: E402

VOCABULARY, LENGTH, BATCH = 23, 9, 4
FIELDS = ("loss", "loss_along", "loss_next", "grad_norm", "step_norm", "grad_diff", "coordinate/grad_along")


def gpt2(dropout=0.0):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def examples(count=48):
    """Sequences whose labels are masked to different lengths: microbatches hold different numbers of items."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (count,), generator=generator)
    labels = torch.where(torch.arange(LENGTH) < lengths[:, None], tokens, -100)
    # The first token is predicted from nothing; some versions of the Trainer count it all the same.
    labels[:, 0] = -100
    return [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, labels, strict=True)]


def trainer_for(folder, model, callbacks=(), collator=None, kind=transformers.Trainer, **arguments):
    arguments = {"max_steps": 5, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5} | arguments
    return kind(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=BATCH, learning_rate=1e-2, optim="adamw_torch",
            lr_scheduler_type="constant", report_to=[], disable_tqdm=True, use_cpu=True, logging_steps=1,
            dataloader_pin_memory=False, **{"save_strategy": "no", **arguments},
        ),
        train_dataset=examples(),
        eval_dataset=examples(8),
        data_collator=collator,
        callbacks=list(callbacks),
    )  # fmt: skip


CHECKPOINTING = "activation_checkpointing"
if CHECKPOINTING not in {field.name for field in dataclasses.fields(transformers.TrainingArguments)}:
    CHECKPOINTING = "gradient_checkpointing"

VARIANTS = {
    "accumulation": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "bf16": {"bf16": True},
    "checkpointing": {CHECKPOINTING: True},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_are_bit_for_bit_those_without_the_callback(variant, tmp_path):
    ends = []
    for callbacks in ([], [SmoothnessCallback(tmp_path / "run.h5", every=2)]):
        model = gpt2(dropout=0.1)
        trainer = trainer_for(tmp_path / "out", model, callbacks, **VARIANTS[variant])
        trainer.train()
        assert "compute_loss" not in vars(trainer)
        logged = [
            {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
            for entry in trainer.state.log_history
        ]
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        moments = [value["exp_avg_sq"].clone() for value in trainer.optimizer.state.values()]
        ends.append((weights, moments, logged, torch.get_rng_state()))
    (weights, moments, logged, rng), (others, other_moments, other_logged, other_rng) = ends
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert all(torch.equal(a, b) for a, b in zip(moments, other_moments, strict=True))
    assert logged == other_logged
    assert torch.equal(rng, other_rng)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0, 2, 4]
        assert trace.status_counts() == {"measured": 3}


def test_training_goes_on_where_no_trace_can_be_written(tmp_path):
    (tmp_path / "runs").mkdir()
    callback = SmoothnessCallback(tmp_path / "runs" / "run.h5", every=1)
    ends = []
    for callbacks in ([], [callback]):
        model = gpt2(dropout=0.1)
        trainer = trainer_for(tmp_path / "out", model, callbacks)
        with read_only(tmp_path / "runs"), warnings.catch_warnings(record=True) as caught:
            trainer.train()
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert "cannot be written (Permission denied)" in callback.recorder.failure
    assert [str(warning.message) for warning in caught if warning.category is TraceWarning] == [
        f"Nothing of this run is recorded, and training goes on: {callback.recorder.failure}"
    ]
    assert list((tmp_path / "runs").iterdir()) == []


def by_hand(path, batches, model, loss_fn, *, autocast=False, apart=False):
    """What the Trainer's settings come to: two microbatches a step, clipped at 0.5; `apart`, the sum of their means."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    model.train()
    with lsmooth.Recorder(model, optimizer, path) as recorder:
        for first in range(0, len(batches), 2):
            parts = batches[first : first + 2]
            counts = [(part["labels"] != -100).sum() for part in parts]
            optimizer.zero_grad()
            for part, count in zip(parts, counts, strict=True):
                items = count if apart else sum(counts)

                def closure(part=part, items=items):
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                        logits = model(input_ids=part["input_ids"]).logits.float()
                    return loss_fn(logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten()) / items

                recorder.backward(closure)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()


@pytest.mark.parametrize("variant", ["accumulation", "label smoothing", "bf16"])
def test_the_estimates_are_those_of_the_recorder_in_a_loop_written_by_hand(variant, tmp_path):
    batches = []

    def collator(features):
        batches.append(transformers.default_data_collator(features))
        return {name: value.clone() for name, value in batches[-1].items()}

    model = gpt2()
    callback = SmoothnessCallback(tmp_path / "trainer.h5", every=1)
    trainer_for(tmp_path / "out", model, [callback], collator, **VARIANTS[variant]).train()
    hand = gpt2()
    smoothing = VARIANTS[variant].get("label_smoothing_factor", 0.0)
    loss_fn = nn.CrossEntropyLoss(reduction="sum", label_smoothing=smoothing)
    # Before the Trainer's label smoother was told the number of items, it took the mean of each microbatch.
    told = inspect.signature(transformers.trainer_pt_utils.LabelSmoother.__call__).parameters
    apart = smoothing > 0 and "num_items_in_batch" not in told
    by_hand(tmp_path / "hand.h5", batches[:10], hand, loss_fn, autocast=variant == "bf16", apart=apart)
    with lsmooth.Trace(tmp_path / "trainer.h5") as trace, lsmooth.Trace(tmp_path / "hand.h5") as expected:
        assert len(trace) == len(expected) == 5
        assert trace.status_counts() == {"measured": 5}
        for name in FIELDS:
            values = expected.read(name)
            tolerance = 2e-2 if variant == "bf16" else 2e-4
            np.testing.assert_allclose(
                trace.read(name), values, rtol=tolerance, atol=tolerance * np.abs(values).max(), err_msg=name
            )
    if variant != "bf16":
        for a, b in zip(model.parameters(), hand.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_loss_of_ones_own_is_measured_and_put_back(tmp_path):
    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            loss = model(**inputs).logits.square().mean() + (labels.clamp(min=0).float().mean() * 0)
            return (loss, None) if return_outputs else loss

    model = gpt2()
    trainer = trainer_for(tmp_path / "out", model, [SmoothnessCallback(tmp_path / "run.h5", every=1)], kind=Own)
    trainer.train()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 5}
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        # Some versions log four digits after the point.
        np.testing.assert_allclose(trace.loss, logged, rtol=1e-3, atol=5e-5)


def test_a_resumed_run_goes_on_in_its_trace(tmp_path):
    def train(path, stops):
        for steps, resume in stops:
            model = gpt2(dropout=0.1)
            trainer = trainer_for(
                tmp_path / path, model, [SmoothnessCallback(tmp_path / f"{path}.h5", every=1)], max_steps=steps,
                save_strategy="steps", save_steps=3, gradient_accumulation_steps=1, seed=3,
            )  # fmt: skip
            trainer.train(resume_from_checkpoint=resume)

    train("whole", [(6, None)])
    train("parts", [(4, None), (6, str(tmp_path / "parts" / "checkpoint-3"))])
    with lsmooth.Trace(tmp_path / "whole.h5") as whole, lsmooth.Trace(tmp_path / "parts.h5") as parts:
        assert parts.steps.tolist() == list(range(6))
        for name in FIELDS:
            np.testing.assert_allclose(parts.read(name), whole.read(name), rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_existing_trace_is_refused_before_a_step_is_taken(tmp_path):
    (tmp_path / "run.h5").write_text("mine")
    model = gpt2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_for(tmp_path / "out", model, [SmoothnessCallback(tmp_path / "run.h5")])
    with pytest.raises(lsmooth.LsmoothError, match="exists already"):
        trainer.train()
    assert (tmp_path / "run.h5").read_text() == "mine"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_attempt_takes_over_the_trace_of_the_last(tmp_path):
    """`auto_find_batch_size` starts over when memory is out. What came to its end is kept."""

    class TooLarge(transformers.GPT2LMHeadModel):
        def forward(self, input_ids=None, labels=None, **inputs):
            if self.training and len(input_ids) > 2 and started:
                raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
            started.append(len(input_ids))
            return super().forward(input_ids=input_ids, labels=labels, **inputs)

    started = []
    model = TooLarge(gpt2().config)
    callback = SmoothnessCallback(tmp_path / "run.h5", every=1)
    trainer = trainer_for(tmp_path / "out", model, [callback], auto_find_batch_size=True, max_steps=4)
    losses = []
    for name in ("run.h5", "run-2.h5"):
        with pytest.warns(UserWarning, match=r"is recorded in .*run-2\.h5\.") if losses else contextlib.nullcontext():
            trainer.train()
        with lsmooth.Trace(tmp_path / name) as trace:
            assert trace.steps.tolist() == [0, 1, 2, 3]
            assert trace.status_counts() == {"measured": 4}
            losses.append(trace.read("loss").tolist())
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.read("loss").tolist() == losses[0] != losses[1]
    # Another callback's file is not its own.
    with pytest.raises(lsmooth.LsmoothError, match="exists already"):
        trainer_for(tmp_path / "out", gpt2(), [SmoothnessCallback(tmp_path / "run.h5")]).train()


class Both(torch.optim.Optimizer):
    """Muon for matrices and AdamW for all else, as one: what a Trainer takes."""

    def __init__(self, model):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        muon = getattr(torch.optim, "Muon", torch.optim.SGD)
        self.optimizers = [muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]
        super().__init__([group for optimizer in self.optimizers for group in optimizer.param_groups], {})
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


def test_an_optimizer_that_holds_several_is_measured_as_these_are(tmp_path):
    seen = []

    class Seeing(transformers.Trainer):
        def compute_loss(self, model, inputs, **arguments):
            if not lsmooth.replay.replaying():
                seen.append((inputs, arguments))
            return super().compute_loss(model, inputs, **arguments)

    model = gpt2()
    trainer = trainer_for(
        tmp_path / "out", model, [SmoothnessCallback(tmp_path / "trainer.h5", every=1)], kind=Seeing, max_steps=4,
        gradient_accumulation_steps=1, max_grad_norm=0.0,
    )  # fmt: skip
    trainer.optimizer = Both(model)
    trainer.train()
    hand = gpt2()
    hand.train()
    both = Both(hand).optimizers
    with lsmooth.Recorder(hand, both, tmp_path / "hand.h5") as recorder:
        for inputs, arguments in seen:
            hand.zero_grad()
            recorder.backward(lambda i=inputs, a=arguments: transformers.Trainer.compute_loss(trainer, hand, i, **a))
            for one in both:
                one.step()
    with lsmooth.Trace(tmp_path / "trainer.h5") as trace, lsmooth.Trace(tmp_path / "hand.h5") as expected:
        assert trace.status_counts() == expected.status_counts() == {"measured": 4}
        assert trace.metadata["optimizer"] == "Both"
        assert trace.lr.shape == (4, 2)
        for name in FIELDS:
            values = expected.read(name)
            np.testing.assert_allclose(trace.read(name), values, rtol=1e-5, atol=1e-6 * np.abs(values).max())
