"""Names of Jobs and label values: valid for any object's name, and different for different inputs."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.stages import Stage
from edgetune_operator.api.names import job_name, label_value, service_name
from edgetune_operator.api.profiles.gpu_split import MOST_NODES

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
SERVICE_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# Object names that Kubernetes accepts: DNS labels separated by dots, at most 253 characters.
object_names = st.lists(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True), min_size=1, max_size=4
).map(lambda parts: ".".join(parts)[:253].rstrip(".-"))
digests = st.binary(max_size=8).map(lambda content: hashlib.sha256(content).hexdigest())


@given(name=object_names, stage=st.sampled_from(Stage), digest=digests)
def test_a_jobs_name_is_a_dns_label_of_at_most_63_characters(name: str, stage: Stage, digest: str) -> None:
    found = job_name(name, stage, digest)

    assert len(found) <= 63
    assert DNS_LABEL.fullmatch(found)


@given(
    one=st.tuples(object_names, st.sampled_from(Stage), digests),
    other=st.tuples(object_names, st.sampled_from(Stage), digests),
)
def test_different_inputs_give_different_job_names(one: tuple[str, Stage, str], other: tuple[str, Stage, str]) -> None:
    assert (job_name(*one) == job_name(*other)) is (one == other)


@given(name=object_names)
def test_an_objects_name_becomes_a_valid_label_value(name: str) -> None:
    assert len(label_value(name)) <= 63
    assert LABEL_VALUE.fullmatch(label_value(name))


@given(one=object_names, other=object_names)
def test_different_objects_have_different_label_values(one: str, other: str) -> None:
    assert (label_value(one) == label_value(other)) is (one == other)


@given(name=object_names, digest=digests)
def test_the_pods_of_a_training_on_the_most_nodes_have_valid_host_names(name: str, digest: str) -> None:
    host = f"{job_name(name, Stage.TRAIN, digest)}-{MOST_NODES - 1}"

    assert len(host) <= 63
    assert DNS_LABEL.fullmatch(host)


@given(name=object_names, digest=digests)
def test_the_name_of_a_service_begins_with_a_letter_and_is_that_of_its_job_if_it_can_be(name: str, digest: str) -> None:
    job = job_name(name, Stage.TRAIN, digest)
    found = service_name(job)

    assert SERVICE_NAME.fullmatch(found)
    assert (found == job) is job[0].isalpha()
    assert not found.startswith("peers-") or len(found) == len("peers-") + 20 or found == job


def test_a_short_name_is_unchanged() -> None:
    assert job_name("sensor-faults", Stage.TRAIN, "d" * 64) == "sensor-faults-train-dddddddddd"
    assert label_value("sensor-faults") == "sensor-faults"


@pytest.mark.parametrize("pair", [("a.b", "a-b"), ("x" * 44, "x" * 45), ("x" * 43 + "-a", "x" * 43 + "-b")])
def test_long_names_with_the_same_beginning_give_different_job_names(pair: tuple[str, str]) -> None:
    one, other = (job_name(name, Stage.QUANTIZE, "d" * 64) for name in pair)

    assert one != other
    assert len(one) <= 63


@pytest.mark.parametrize("name", ["a.b", "x" * 253, "a-0123abcd", "a.b-0123abcd", label_value("a.b")])
def test_an_object_that_is_named_as_another_one_is_shortened_has_other_jobs(name: str) -> None:
    other = label_value(name)

    assert label_value(other) != other
    assert job_name(other, Stage.TRAIN, "d" * 64) != job_name(name, Stage.TRAIN, "d" * 64)
