"""Overhead of the train stage over a bare trl script: tokens per second of both, alternating, on the same rows.

    python tests/bench/bench_train_overhead.py [--pairs N] [--steps N]

Both train the same QLoRA adapter on the same random model of 3.3 million parameters. The bare script is what a user of
trl would write; the stage also counts parameters, observes every step, reports progress and saves its checkpoint.
Goal: a ratio of at least 0.99.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import print_table
from edgetune_contract.spec import Parameters
from edgetune_jobs.models import loading
from edgetune_jobs.models.libraries import prepare_libraries
from support import tiny_data
from support.tiny_model import make_tiny_base
from support.tiny_runs import tiny_parameters, train

_BATCH = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each kind (5)")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of one measurement (30)")
    options = parser.parse_args()
    prepare_libraries()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_tiny_base(folder / "base", hidden=256, layers=4, pretrain_steps=0)
        prepared = tiny_data.write_prepared(
            folder / "prepared", loading.load_tokenizer(base), tiny_data.training_examples(600), []
        )
        bare: list[float] = []
        stage: list[float] = []
        _measure_bare(base, prepared, folder / "warm-up", 2)
        for pair in range(options.pairs):
            # Alternating, with changing order: a machine that slows down or speeds up affects both.
            for kind in ("bare", "stage") if pair % 2 == 0 else ("stage", "bare"):
                work = folder / f"{kind}-{pair}"
                if kind == "bare":
                    bare.append(_measure_bare(base, prepared, work, options.steps))
                else:
                    stage.append(_measure_stage(base, prepared, work, options.steps))
    ratios = [ours / theirs for ours, theirs in zip(stage, bare, strict=True)]
    rows = [
        [name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}"]
        for name, values in (("bare trl script", bare), ("train stage", stage))
    ]
    rows.append(["ratio", *(f"{value:.3f}" for value in (statistics.median(ratios), min(ratios), max(ratios)))])
    print_table(
        f"QLoRA training, tokens per second ({options.pairs} pairs of {options.steps} steps)",
        ["", "median", "lowest", "highest"],
        rows,
        ["The ratio is computed for each pair; the goal is at least 0.99."],
    )


def _parameters(steps: int) -> Parameters:
    return tiny_parameters(
        training={"maxSteps": steps, "batchSize": _BATCH, "microBatchSize": _BATCH, "precision": "Auto"}
    )


def _measure_stage(base: Path, prepared: Path, work: Path, steps: int) -> float:
    return train(work, _parameters(steps), base, prepared).output.metrics["tokensPerSecond"]


def _measure_bare(base: Path, prepared: Path, work: Path, steps: int) -> float:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    spec = _parameters(steps)
    on_cpu = not torch.cuda.is_available()
    bf16 = (
        loading.dtype_of(loading.resolve_precision(spec.training.precision, loading.choose_device())) is torch.bfloat16
    )
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    rows: Any = Dataset.from_parquet(str(prepared / "train.parquet"), cache_dir=str(work / "cache"))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=_BATCH,
            learning_rate=spec.training.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=spec.training.warmup_ratio,
            optim=spec.training.optimizer,
            max_length=spec.training.max_length,
            completion_only_loss=True,
            activation_checkpointing=False,
            bf16=bf16,
            use_cpu=on_cpu,
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=not on_cpu,
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=spec.lora.rank, lora_alpha=spec.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    began = time.monotonic()
    trainer.train()
    return float(trainer._total_train_tokens / (time.monotonic() - began))


if __name__ == "__main__":
    main()
