"""What a user of trl would write: a training of the same adapter on the same rows, without Edgetune."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgetune_contract.spec import Method, Parameters


def train_bare(
    parameters: Parameters,
    base: Path,
    prepared: Path,
    work: Path,
    on_step: Callable[[], None] = lambda: None,
    **options: Any,
) -> tuple[float, float]:
    """Train; the number of tokens, and the seconds with the checkpoint at the end, as the stage counts them.

    Args:
        parameters: method, adapter, steps, batch size, length and learning rate.
        base: folder of the base model.
        prepared: artifact of the stage prepare.
        work: a new folder.
        on_step: called after each step.
        options: of SFTConfig; the rest is the library's default.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from edgetune_jobs.models import loading

    class Steps(TrainerCallback):  # type: ignore[misc, unused-ignore]  # untyped
        def on_step_end(self, *_: Any, **__: Any) -> None:
            on_step()

    training, device = parameters.training, loading.choose_device()
    on_gpu = device.type == "cuda"
    dtype = loading.dtype_of(loading.resolve_precision(training.precision, device))
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        device_map={"": device},
        **({"quantization_config": quantization} if parameters.method is Method.QLORA else {}),
    )
    rows: Any = Dataset.from_parquet(str(prepared / "train.parquet"), cache_dir=str(work / "cache"))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(work),
            max_steps=training.max_steps or -1,
            per_device_train_batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.scheduler,
            warmup_steps=training.warmup_ratio,
            max_length=training.max_length,
            completion_only_loss=True,
            bf16=dtype is torch.bfloat16,
            use_cpu=not on_gpu,
            disable_tqdm=True,
            logging_strategy="no",
            report_to="none",
            dataloader_pin_memory=on_gpu,
            **options,
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=parameters.lora.rank,
            lora_alpha=parameters.lora.alpha,
            lora_dropout=parameters.lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)  # it prints a summary
    began = time.monotonic()
    trainer.train()
    return float(trainer._total_train_tokens), time.monotonic() - began
