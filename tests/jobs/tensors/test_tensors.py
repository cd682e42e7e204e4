"""Streaming tensor by tensor: any model is planned, written and read back; invalid models are refused."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune_contract.spec import Method
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.folder import LocalModelFolder
from edgetune_jobs.models.safetensors_header import Tensor, read_header
from edgetune_jobs.models.weights import read_tensors
from edgetune_jobs.stages import merge, quantize
from edgetune_jobs.tensors import nf4, weight_stream
from edgetune_jobs.tensors.merged_rows import ModelWeights
from edgetune_jobs.tensors.row_reader import Buffers
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor, TensorGroup, plan_files
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter
from edgetune_jobs.tensors.unquantized_encoder import StoredEncoder, plan_stored
from support.families import make_adapter, make_model
from support.stage_context import FolderStreams, RecordedProgress, stage_context
from support.tiny_runs import tiny_parameters

pytestmark = pytest.mark.usefixtures("two_threads")

# __metadata__ is not the name of a tensor.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
DTYPES = st.sampled_from(["F32", "F16", "BF16"])
MODELS = st.dictionaries(NAMES, st.tuples(DTYPES, SHAPES, st.integers(0, 3)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
def part_of(content: bytes) -> Callable[[int, int], bytes]:
    return lambda start, length: content[start : start + length]


@given(
    tensors=st.lists(st.tuples(NAMES, st.sampled_from(["F32", "BF16", "I8", "U8"]), SHAPES), unique_by=lambda t: t[0]),
    max_file_bytes=st.integers(1, 400),
)
def test_headers_of_planned_files_describe_exactly_their_bytes(
    tensors: list[tuple[str, str, tuple[int, ...]]], max_file_bytes: int
) -> None:
    groups = [TensorGroup(PlannedTensor(*tensor)) for tensor in tensors]

    files = plan_files(groups, max_file_bytes)

    found: dict[str, Tensor] = {}
    for file in files:
        content = file.header + bytes(file.bytes - len(file.header))
        found |= read_header(part_of(content), file.bytes, file.name)
        assert sum(group.bytes for group in file.groups) <= max_file_bytes or len(file.groups) == 1
    assert [(name, found[name].dtype, found[name].shape) for name, _, _ in tensors] == tensors


@settings(max_examples=40, deadline=None)
@given(model=MODELS, dtype=st.sampled_from(["float32", "float16", "bfloat16"]), max_file_bytes=st.integers(1, 2000))
def test_any_model_is_written_unchanged(
    tmp_path_factory: pytest.TempPathFactory, model: dict[str, Any], dtype: str, max_file_bytes: int
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("model")
    tensors = write_model(folder / "in", model)
    stored = read_tensors(LocalModelFolder(folder / "in", "the model"))
    files = plan_files(plan_stored(stored, dtype), max_file_bytes)
    weights = ModelWeights(LocalModelFolder(folder / "in", "the model"), stored, dtype)

    with SafetensorsWriter(files, FolderStreams(folder), "out") as writer:
        weight_stream.stream(
            weights, [StoredEncoder(writer)], workers=2, progress=RecordedProgress(), stop=threading.Event()
        )
        writer.finish()

    found = {name: each for file in (folder / "out").glob("*.safetensors") for name, each in load_file(file).items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor.to(getattr(torch, dtype))) for name, tensor in tensors.items())
    if len(files) > 1:
        index = json.loads((folder / "out/model.safetensors.index.json").read_text())
        assert index["weight_map"] == {tensor.name: file.name for file in files for tensor in file.tensors}


def write_model(folder: Path, model: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Write a model with random tensors, each in its shard; returns the tensors."""
    from safetensors.torch import save_file

    folder.mkdir()
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {name: torch.randn(shape).to(dtypes[dtype]) for name, (dtype, shape, _) in model.items()}
    shards = {name: f"shard-{shard}.safetensors" for name, (_, _, shard) in model.items()}
    for shard in set(shards.values()):
        save_file({name: tensor for name, tensor in tensors.items() if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return tensors


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    blocks=st.integers(1, 6),
    scale=st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    zeros=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_nf4_and_back_is_bitwise_equal_to_bitsandbytes(
    rows: int, blocks: int, scale: float, dtype: torch.dtype, zeros: int, seed: int
) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, blocks * nf4.BLOCK, generator=generator) * scale).to(dtype)
    weight[:zeros] = 0
    expected = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))

    flat, found = weight.view(-1), torch.empty_like(weight)
    scales = nf4.block_scales(flat)
    rounded = nf4.round_scales(scales, torch.get_num_threads())
    nf4.round_blocks(flat, scales, rounded, found.view(-1))

    assert torch.equal(found, expected)


def test_nf4_rounds_values_at_a_bound_as_bitsandbytes_does() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes = torch.tensor(nf4._CODES)
    bounds = (codes[1:] + codes[:-1]) / 2
    around = [torch.nextafter(bounds, torch.full((), end)) for end in (-1.0, 1.0)]
    weight = torch.ones(nf4.BLOCK)  # the largest magnitude, by which the others are divided
    weight[: 3 * len(bounds)] = torch.cat([bounds, *around])
    expected = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4")).view(-1)

    scales, found = nf4.block_scales(weight), torch.empty_like(weight)
    nf4.round_blocks(weight, scales, scales, found)

    assert torch.equal(found, expected)


def test_only_a_returned_buffer_is_used_again() -> None:
    buffers = Buffers(100)
    first, second = buffers.take(40), buffers.take(100)
    first_place = first.data_ptr()

    buffers.give_back(first.view(torch.float32))
    buffers.give_back(torch.zeros(100, dtype=torch.uint8))

    assert buffers.take(100).data_ptr() == first_place
    assert buffers.take(100).data_ptr() not in (first_place, second.data_ptr())


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in one file, a base in shards, and an adapter for both."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "whole", "llama", tied=False, dtype="bfloat16")
    make_model(folder / "shards", "llama", tied=False, dtype="bfloat16", shards=3)
    options = {"base_dtype": "bfloat16", "dtype": "float32", "target_modules": "all-linear"}
    make_adapter(folder / "adapter", folder / "whole", method=Method.LORA, **options)
    return folder


def edit_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of the header of model.safetensors that keeps the header's length if possible."""

    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        change(header)
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * max(0, end - 8 - len(encoded))
        file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[end:])

    return edit


def offsets(name: str, begin: int, end: int) -> Callable[[Path], None]:
    return edit_header(lambda header: header[name].update(data_offsets=[begin, end]))


def repeat_name(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip()[:-1] + b',"lm_head.weight":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def leave_out_of_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"]["model.norm.weight"]
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != shard}
    path.write_text(json.dumps(index))


NORM = "model.norm.weight"
DEFECTS = [
    ("whole", offsets(NORM, 0, 256), "overlaps another tensor|no tensor covers"),
    ("whole", offsets(NORM, 2**40, 2**40 + 256), "no tensor covers|ends at byte"),
    ("whole", offsets(NORM, 2**63, 2**63 + 256), "has invalid data_offsets"),
    ("whole", offsets(NORM, -256, 0), "has invalid data_offsets"),
    ("whole", edit_header(lambda header: header[NORM].update(shape=[2**62, 4])), "but shape"),
    ("whole", repeat_name, "lm_head.weight"),
    ("whole", lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "the header length is"),
    ("shards", leave_out_of_index, "is incomplete"),
    ("shards", lambda folder: next(folder.glob("*-00002-*")).unlink(), "lists 1 missing file"),
]


@pytest.mark.parametrize(("base", "damage", "message"), DEFECTS)
def test_an_invalid_base_is_refused_before_anything_is_written(
    models_folder: Path, tmp_path: Path, base: str, damage: Callable[[Path], Any], message: str
) -> None:
    folder = Path(shutil.copytree(models_folder / base, tmp_path / "base"))
    damage(folder)
    inputs = {"base": folder, "adapter": models_folder / "adapter"}
    context = stage_context(Stage.MERGE, tiny_parameters(), tmp_path / "merge", inputs)

    with pytest.raises(InvalidInput, match=message):
        merge.run(context)
    assert not list(context.output.iterdir())


def test_an_adapter_for_another_base_is_refused(models_folder: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "qwen3", tied=False, dtype="bfloat16")
    inputs = {"base": other, "adapter": models_folder / "adapter"}
    context = stage_context(Stage.MERGE, tiny_parameters(), tmp_path / "merge", inputs)

    with pytest.raises(InvalidInput, match=r"does not match the base model: model\.layers\.0\.self_attn\.k_proj has"):
        merge.run(context)
    assert not list(context.output.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_the_error_about_weights_that_are_not_finite_names_the_tensor(
    models_folder: Path, tmp_path: Path, name: str, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(models_folder / "whole", tmp_path / "merged"))
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "quantize", {"merged": folder})

    with pytest.raises(InvalidInput, match=f"{name} contains NaN or infinity"):
        quantize.run(context)
    assert not list(context.output.iterdir())


@pytest.mark.parametrize("is_rounded", [False, True], ids=["as stored", "through NF4"])
def test_a_weight_that_exceeds_the_dtype_of_the_model_is_not_reported_as_damaged(
    models_folder: Path, tmp_path: Path, is_rounded: bool
) -> None:
    from safetensors.torch import load_file, save_file

    name = "model.layers.1.mlp.up_proj.weight"
    folder = Path(shutil.copytree(models_folder / "whole", tmp_path / "base"))
    stored = load_file(folder / "model.safetensors")
    stored[name][2, 3] = -1e5
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    model = LocalModelFolder(folder, "spec.baseModel")
    tensors = read_tensors(model)
    weights = ModelWeights(model, tensors, "float16", through_nf4=frozenset({name} if is_rounded else ()))
    tensor = next(tensor for tensor in tensors if tensor.name == name)
    prepared = weights.prepare(tensor) if is_rounded else None

    with pytest.raises(
        InvalidInput, match=r"up_proj\.weight has a value of magnitude 99840, .* the maximum of float16 \(65504\)"
    ):
        weights.rows(tensor, 0, tensor.rows, prepared)


def test_a_file_that_changes_while_it_is_read_is_refused(models_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models_folder / "whole", tmp_path / "base"))
    model = LocalModelFolder(folder, "spec.baseModel")
    tensors = read_tensors(model)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")

    with pytest.raises(InvalidInput, match=r"model\.safetensors was changed while it was read"):
        ModelWeights(model, tensors, "bfloat16").rows(tensors[0], 0, 1, None)
