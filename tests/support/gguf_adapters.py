"""Adapters in GGUF-LoRA: real ones of tiny models, and small files of them in a store."""

import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_contract.digest import base_gguf_digest
from edgetune_contract.request import Manifest, Result
from edgetune_contract.spec import EdgeFormat, Method
from edgetune_contract.stages import Stage
from edgetune_jobs.models.quantization.gguf_adapter import BASE_SHA256
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE, BASE_FILE
from edgetune_jobs.runtime.outputs import StageUpload
from edgetune_jobs.stage import StageOutput
from edgetune_jobs.store.files import fingerprint
from edgetune_jobs.store.manifests import write_manifest_once
from support import families
from support.edge_models import write_gguf
from support.published import RESOLVED, PublishedModel

LORA = EdgeFormat.GGUF_LORA.artifact
BASE_BYTES = 100_000
_STRING = 8


def make_adapter(folder: Path, base: Path, **options: Any) -> Path:
    """Write an adapter for all linear layers of a model, large enough to change its logits; options are peft's."""
    plain = {"target_modules": "all-linear", "lora_alpha": 160}
    return families.make_adapter(
        folder, base, method=Method.LORA, base_dtype="float32", dtype="float32", **{**plain, **options}
    )


def write_pair(model: Path, adapter: Path, output: Path) -> Path:
    """Write the base and an adapter for it as a folder of GGUF-LoRA."""
    from edgetune_jobs.models.adapters import adapter_layers
    from edgetune_jobs.models.folder import LocalModelFolder
    from edgetune_jobs.tensors import streamed_model
    from edgetune_jobs.tensors.formats.gguf.layout import lay_out
    from edgetune_jobs.tensors.formats.gguf.lora import write_adapter

    file = write_gguf(model, output).rename(output / BASE_FILE)
    base = streamed_model.stored_model(LocalModelFolder(model, "model"))
    layout = lay_out(base.layout.config, base.layout.tensors)
    matrices = streamed_model.lora_matrices(adapter, adapter_layers.read_adapter_config(adapter), base.layout)
    write_adapter(output / ADAPTER_FILE, layout, matrices, "adapter", fingerprint(file).sha256)
    shutil.copy(model / "config.json", output)
    return output


@dataclass
class PublishedAdapters(PublishedModel):
    """A model in a store whose versions are adapters in GGUF-LoRA for one base; the files are small."""

    base: bytes = b"GGUF" + struct.pack("<I", 3) + b"the base".ljust(BASE_BYTES)
    named_base: str = ""
    """SHA-256 of the base that adapters are for, if it is another one."""

    def _quantized(self, digest: str) -> Manifest:
        """Write the output of a quantize stage as it does: the base only if the store lacks it."""
        upload = StageUpload(self.store, Stage.QUANTIZE, digest)
        path, shared = f"{LORA}/{BASE_FILE}", base_gguf_digest(RESOLVED.base)
        entry = upload.find_shared(path, shared)
        if entry is None:
            with upload.create_shared(path, shared, len(self.base)) as file:
                file.write(self.base)
            entry = upload.find_shared(path, shared)
        assert entry is not None
        folder = self.folder / digest / LORA
        folder.mkdir(parents=True)
        (folder / ADAPTER_FILE).write_bytes(adapter_bytes(self.named_base or entry.sha256, self.made))
        (folder / "config.json").write_text("{}")
        artifacts, files = upload.add_artifacts(StageOutput(artifacts=(LORA,)), folder.parent)
        manifest = Manifest(
            result=Result(stage=Stage.QUANTIZE, digest=digest, artifacts=artifacts),
            files=files,
            created_at="2026-11-24T08:00:00+00:00",
        )
        return write_manifest_once(self.store, Stage.QUANTIZE, digest, manifest)


def adapter_bytes(base_sha256: str, seed: int) -> bytes:
    """The metadata of an adapter for a base, and some bytes that depend on a seed."""
    values: Mapping[str, str] = {"general.architecture": "llama", "general.type": "adapter", BASE_SHA256: base_sha256}
    pairs = b"".join(_text(key) + struct.pack("<I", _STRING) + _text(value) for key, value in values.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + pairs + bytes([seed]) * 1000


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
