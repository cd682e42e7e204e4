"""Headers of safetensors files: files of the library are read, invalid headers are refused with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.safetensors_header import DTYPE_BITS, Tensor, parse_header, read_header
from support.base_folder import header_of, llama_shapes, safetensors_bytes

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def read(content: bytes) -> dict[str, Tensor]:
    return read_header(
        lambda start, length: content[start : start + length], len(content), "spec.baseModel: m.safetensors"
    )


def refusal(content: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(content)
    message = str(caught.value)
    assert message.startswith("spec.baseModel: m.safetensors is not a valid safetensors file: ")
    assert message.endswith("; save or copy the model again")
    return message


def test_a_file_of_the_library_gives_the_tensors_that_the_library_reads(tmp_path: Path) -> None:
    import numpy
    from safetensors import safe_open
    from safetensors.numpy import save_file

    arrays = {
        "a": numpy.zeros((3, 5), numpy.float32),
        "b": numpy.zeros((), numpy.float16),
        "empty": numpy.zeros((0, 7), numpy.int8),
        "c": numpy.zeros((4,), numpy.bool_),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    tensors = read(path.read_bytes())
    with safe_open(path, framework="numpy") as file:
        assert set(tensors) == set(file.keys())
        for name in file.keys():  # noqa: SIM118 - not a mapping
            assert list(tensors[name].shape) == file.get_slice(name).get_shape()
            assert tensors[name].dtype == file.get_slice(name).get_dtype()
    assert (tensors["b"].numbers, tensors["empty"].numbers) == (1, 0)


def test_a_handwritten_header_gives_its_tensors() -> None:
    shapes = llama_shapes()
    tensors = read(safetensors_bytes(header_of(shapes), sum(2 * _numbers(shape) for shape in shapes.values())))
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file has 0 bytes, too few for a header"),
        (b"1234567", "the file has 7 bytes, too few for a header"),
        (b"\xff" * 8 + b"{}", "the header length is 18,446,744,073,709,551,615 bytes, but the file has 10 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "the header length is 9,223,372,036,854,775,808 bytes"),
        ((3).to_bytes(8, "little") + b"{}", "the header length is 3 bytes, but the file has 10 bytes"),
        ((2).to_bytes(8, "little") + b"[]", "the header does not start with {"),
        ((0).to_bytes(8, "little"), "the header does not start with {"),
        ((2).to_bytes(8, "little") + b"{\xff", "the header is not valid UTF-8"),
        ((2).to_bytes(8, "little") + b"{,", "the header is invalid JSON"),
        ((400_000).to_bytes(8, "little") + b'{"a":' * 80_000, "the header is invalid JSON: nested too deeply"),
        (safetensors_bytes({}, 1), "no tensor covers 1 byte at the end"),
    ],
)
def test_a_wrong_length_or_invalid_json_is_refused(content: bytes, reason: str) -> None:
    assert reason in refusal(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "F33"}, "tensor 'a' has the unknown dtype 'F33'"),
        ({"dtype": ["F32"]}, "has the unknown dtype"),
        ({"shape": [2, -2]}, "has an invalid shape"),
        ({"shape": [2, True]}, "has an invalid shape"),
        ({"shape": [2, 2.0]}, "has an invalid shape"),
        ({"shape": "22"}, "has an invalid shape"),
        ({"shape": [2**64]}, "has an invalid shape"),
        ({"shape": [1] * 65}, "has an invalid shape"),
        ({"shape": [2**62] * 64}, "but shape [4611686018427387904, 4611686018427387904"),
        ({"shape": [2, 3]}, "has 16 bytes, but shape [2, 3] in F32 requires 24"),
        ({"data_offsets": [0, 2**63]}, "has invalid data_offsets"),
        ({"data_offsets": [16, 0]}, "has invalid data_offsets"),
        ({"data_offsets": [0]}, "has invalid data_offsets"),
        ({"data_offsets": None}, "has invalid data_offsets"),
        ({"data_offsets": [4, 20]}, "no tensor covers 4 bytes before tensor 'a'"),
        (
            {"shape": [2**60], "data_offsets": [0, 2**62]},
            "ends at byte 4,611,686,018,427,387,904, but the file has only 16",
        ),
        ({"extra": 1}, "tensor 'a' must have exactly dtype, shape and data_offsets"),
    ],
)
def test_an_invalid_entry_is_refused_with_the_name_of_the_tensor(change: dict[str, Any], reason: str) -> None:
    assert read(safetensors_bytes({"a": ENTRY}, 16))
    assert reason in refusal(safetensors_bytes({"a": {**ENTRY, **change}}, 16))


def test_tensors_that_overlap_or_share_a_name_are_refused() -> None:
    overlapping = {"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 24]}}
    assert "tensor 'b' overlaps another tensor" in refusal(safetensors_bytes(overlapping, 24))
    twice = b'{"a":%s,"a":%s}' % (json.dumps(ENTRY).encode(), json.dumps(ENTRY).encode())
    assert "duplicate field 'a'" in refusal(len(twice).to_bytes(8, "little") + twice + bytes(16))


@pytest.mark.parametrize("metadata", [[], {"format": 1}, "pt"])
def test_metadata_that_is_not_a_map_of_strings_is_refused(metadata: object) -> None:
    assert "__metadata__ is not a map of strings" in refusal(safetensors_bytes({"__metadata__": metadata}, 0))


def test_a_truncated_file_is_refused() -> None:
    whole = safetensors_bytes({"a": ENTRY}, 16)
    assert "has only 12 bytes of tensors and may be truncated" in refusal(whole[:-4])


def test_a_header_that_cannot_be_read_in_full_is_refused() -> None:
    whole = safetensors_bytes({"a": ENTRY}, 16)
    with pytest.raises(InvalidInput, match="the file ends in its header, after 10 of"):
        read_header(
            lambda start, length: whole[start : start + min(length, 10)], len(whole), "spec.baseModel: m.safetensors"
        )


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_the_library_accepts_every_dtype(dtype: str) -> None:
    from safetensors import deserialize

    content = safetensors_bytes(
        {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, DTYPE_BITS[dtype]]}}, DTYPE_BITS[dtype]
    )
    assert read(content)["a"].dtype == dtype
    assert deserialize(content)[0][0] == "a"  # type: ignore[no-untyped-call]


@given(content=st.binary(max_size=300))
@example(content=b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
def test_random_bytes_are_refused_or_read(content: bytes) -> None:
    try:
        read(content)
    except InvalidInput as error:
        str(error).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(sorted(DTYPE_BITS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "__metadata__", "dtype", "shape", "data_offsets"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(header=st.dictionaries(st.text(max_size=5), JSON, max_size=4), data_bytes=st.integers(0, 2**64))
def test_random_headers_are_refused_or_read(header: dict[str, object], data_bytes: int) -> None:
    try:
        tensors = parse_header(json.dumps(header).encode(), data_bytes, "spec.baseModel: m.safetensors")
    except InvalidInput as error:
        str(error).encode()
    else:
        assert sum(tensor.end - tensor.begin for tensor in tensors.values()) == data_bytes


@given(position=st.integers(0, 200), byte=st.integers(0, 255))
def test_one_damaged_byte_is_refused_or_changes_only_names_and_dtypes(position: int, byte: int) -> None:
    whole = bytearray(safetensors_bytes({"a": ENTRY, "b": {**ENTRY, "data_offsets": [16, 32]}}, 32))
    whole[position % len(whole)] = byte
    try:
        tensors = read(bytes(whole))
    except InvalidInput:
        return
    assert sorted((tensor.begin, tensor.end) for tensor in tensors.values()) == [(0, 16), (16, 32)]


def _numbers(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
