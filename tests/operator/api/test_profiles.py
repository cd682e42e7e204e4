"""Profiles: reading the platform team's file, and the settings of each stage."""

from pathlib import Path

import pytest

from edgetune_contract.access.s3_service import ChecksumMode
from edgetune_contract.stages import Stage
from edgetune_contract.training import TrainingSpec
from edgetune_operator.api.profiles.profile import InvalidProfiles, Profile, ProfileStore, load_profiles
from edgetune_operator.api.profiles.resources import DEFAULT_RESOURCES, Resources


def write(folder: Path, text: str) -> Path:
    """A profiles file."""
    path = folder / "profiles.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_profile_needs_only_a_bucket(tmp_path: Path) -> None:
    profiles = load_profiles(write(tmp_path, "profiles: {default: {store: {uri: 's3://artifacts/edgetune'}}}"))

    assert profiles == {"default": Profile(store=ProfileStore(uri="s3://artifacts/edgetune"))}


def test_field_names_are_written_as_in_kubernetes(tmp_path: Path) -> None:
    text = """
profiles:
  a100:
    store: {uri: s3://b, pathStyle: true, checksums: WhenRequired, credentialsSecret: s3}
    resources: {train: {limits: {nvidia.com/gpu: 1}}}
    nodeSelector: {gpu: a100}
"""
    profile = load_profiles(write(tmp_path, text))["a100"]

    assert profile.store.checksums is ChecksumMode.WHEN_REQUIRED
    assert profile.resources_for(Stage.TRAIN) == Resources(limits={"nvidia.com/gpu": 1})
    assert profile.resources_for(Stage.MERGE) == DEFAULT_RESOURCES[Stage.MERGE]


SMALL, LARGE = 2 * 2**30, 2 * 2**30 + 1
STORE = ProfileStore(uri="s3://artifacts/edgetune")


@pytest.mark.parametrize(("size", "gpus"), [(None, 0), (SMALL, 0), (LARGE, 1)])
def test_evaluate_has_a_gpu_for_a_base_above_the_profiles_size(size: int | None, gpus: int) -> None:
    profile = Profile(store=STORE).for_base(size)

    assert profile.resources_for(Stage.EVALUATE).gpus == gpus
    assert profile.resources_for(Stage.MERGE) == DEFAULT_RESOURCES[Stage.MERGE]


def test_a_profile_with_a_larger_size_evaluates_on_a_cpu() -> None:
    profile = Profile(store=STORE, evaluate_on_gpu_above="16Gi")

    assert profile.for_base(LARGE) == profile


def test_resources_of_evaluate_in_the_profile_decide_for_themselves() -> None:
    own = {Stage.EVALUATE: Resources(requests={"cpu": 8})}

    assert Profile(store=STORE, resources=own).for_base(LARGE).resources == own


FOUR = {Stage.TRAIN: Resources(requests={"cpu": 8, "nvidia.com/gpu": 4}, limits={"nvidia.com/gpu": 4})}


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (TrainingSpec(), 4),
        (TrainingSpec(batch_size=6), 3),
        (TrainingSpec(gpus=1), 1),
        (TrainingSpec(gpus=8), 8),
    ],
    ids=["all", "as many as divide the batch", "one", "more, up to maxGpus"],
)
def test_a_training_gets_the_gpus_that_it_asks_for(training: TrainingSpec, expected: int) -> None:
    profile = Profile(store=STORE, resources=FOUR, max_gpus=8)

    found = profile.for_training(training).resources_for(Stage.TRAIN)

    assert found.requests == {"cpu": 8, "nvidia.com/gpu": expected}
    assert found.limits == {"nvidia.com/gpu": expected}
    assert profile.most_gpus == 8
    assert Profile(store=STORE, resources=FOUR).most_gpus == 4


def test_a_training_without_a_gpu_keeps_its_resources() -> None:
    profile = Profile(store=STORE, resources={Stage.TRAIN: Resources(requests={"cpu": 8})})

    assert profile.for_training(TrainingSpec()) == profile
    assert profile.most_gpus == 0


@pytest.mark.parametrize(
    ("train", "expected"),
    [({"amd.com/gpu": 1}, {"amd.com/gpu": 1}), ({"cpu": 8}, {}), ({"nvidia.com/gpu": 0}, {})],
)
def test_evaluate_has_one_gpu_of_the_kind_of_train(train: dict[str, int], expected: dict[str, int]) -> None:
    profile = Profile(store=STORE, resources={Stage.TRAIN: Resources(limits=dict(train))})

    assert profile.for_base(LARGE).resources_for(Stage.EVALUATE).limits == expected


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({"nvidia.com/gpu": 2}, 2),
        ({"amd.com/gpu": "1"}, 1),
        ({"nvidia.com/mig-1g.10gb": 3}, 3),
        ({"gpu.intel.com/i915": 1}, 1),
        ({"volcano.sh/gpu-memory": "8Gi", "nvidia.com/gpumem": "8000", "nvidia.com/gpu": 1}, 1),
        ({"gpu.intel.com/memory.max": "8Gi"}, 0),
        ({"cpu": "8", "memory": "8Gi"}, 0),
    ],
)
def test_whole_gpus_are_counted_but_not_shares_of_their_memory(resources: dict[str, str | int], gpus: int) -> None:
    assert Resources(limits=resources).gpus == gpus


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("profiles: {default: {}}", "profiles.default.store: Field required"),
        ("profiles: {default: {store: {uri: 'gs://b'}}}", "profiles.default.store.uri: String should match pattern"),
        (
            "profiles: {default: {store: {uri: 's3://b'}, gpu: 1}}",
            "profiles.default.gpu: unknown field",
        ),
        (
            "profiles: {default: {store: {uri: 's3://b', endpont: x}}}",
            "profiles.default.store.endpont: unknown field; did you mean 'endpoint'?",
        ),
        (
            "profiles: {default: {store: {uri: 's3://b'}, image: {pullPolicy: allways}}}",
            "did you mean 'Always'?",
        ),
        ("profiles: {default: {store: {uri: 's3://b'}, resources: {test: {}}}}", "profiles.default.resources.test"),
        *(
            (f"profiles: {{default: {{store: {{uri: 's3://b'}}, {text}}}}}", f"profiles.default{problem}")
            for text, problem in (
                (
                    "ttlSecondsAfterFinished: 0",
                    ".ttlSecondsAfterFinished: Input should be greater than or",
                ),
                ("terminationGracePeriodSeconds: 0", ".terminationGracePeriodSeconds: Input should be greater than or"),
                ("image: {pullPolicy: Sometimes}", ".image.pullPolicy: Input should be 'Always', 'IfNotPresent' or"),
                (
                    "resources: {train: {limits: {nvidia.com/gpu: 1Gi}}}",
                    ".resources.train: nvidia.com/gpu must be a whole number, is '1Gi'",
                ),
                (
                    "env: {EDGETUNE_REQUEST: x}",
                    ": env: EDGETUNE_REQUEST is reserved: the operator sets it; remove it",
                ),
                ("env: {HF_HUB_OFFLINE: '0'}", ": env: HF_HUB_OFFLINE is reserved: the operator sets it; remove it"),
                (
                    "resources: {merge: {requests: {nvidia.com/gpu: 2}}}",
                    ": resources.merge: nvidia.com/gpu is 2, but only train and evaluate use several GPUs; set it to 1",
                ),
                (
                    "resources: {evaluate: {requests: {nvidia.com/mig-1g.5gb: 2}}}",
                    ": resources.evaluate: nvidia.com/mig-1g.5gb is 2, but a process sees only one slice of a GPU; set "
                    "it to 1",
                ),
                (
                    "resources: {train: {limits: {nvidia.com/mig-1g.5gb: 2}}}",
                    ": resources.train: nvidia.com/mig-1g.5gb is 2, but a process sees only one slice of a GPU; set it "
                    "to 1",
                ),
                (
                    "resources: {train: {limits: {nvidia.com/gpu: 1, amd.com/gpu: 1}}}",
                    ": resources.train: 2 GPUs, but a stage uses GPUs of one kind; remove the others",
                ),
                (
                    "maxGpus: 2, resources: {train: {limits: {nvidia.com/gpu: 4}}}",
                    ": maxGpus is 2, but resources.train has 4 GPUs; raise or remove maxGpus",
                ),
                (
                    "maxGpus: 2, resources: {train: {limits: {cpu: 4}}}",
                    ": maxGpus needs whole GPUs in the requests or limits of resources.train; remove it",
                ),
                (
                    "maxNodes: 2, resources: {train: {limits: {nvidia.com/gpu: 4}, nodes: 3}}",
                    ": maxNodes is 2, but resources.train has 3 nodes; raise or remove it",
                ),
                (
                    "resources: {train: {limits: {nvidia.com/gpu: 8}, nodes: 9}}",
                    ": resources.train: 8 GPUs on each of 9 nodes, but at most 64 train together",
                ),
                (
                    "maxNodes: 2, resources: {train: {limits: {nvidia.com/mig-1g.5gb: 1}}}",
                    ": maxNodes: the slices of a GPU cannot train together; remove it",
                ),
                (
                    "maxNodes: 2, resources: {train: {limits: {cpu: 4}}}",
                    ": maxNodes needs GPUs in resources.train, for which spec.training.gpus asks; remove it",
                ),
                (
                    "resources: {merge: {limits: {cpu: 4}, nodes: 2}}",
                    ": resources.merge.nodes is 2, but only train uses several; set it to 1",
                ),
                ("maxGpus: 0", ".maxGpus: Input should be greater than or equal to 1"),
                ("sizing: {memory: {min: 8Gi, max: 4Gi}}", ".sizing.memory: min 8Gi is more than max 4Gi"),
                ("sizing: {memory: {max: much}}", ".sizing.memory.max: String should match pattern"),
                ("cache: {size: 1Ti}", ".cache: cache needs either hostPath or persistentVolumeClaim"),
                (
                    "cache: {size: 1Ti, hostPath: /a, persistentVolumeClaim: b}",
                    ".cache: cache needs either hostPath or persistentVolumeClaim",
                ),
                ("env: {A-B: x}", ": env: 'A-B' is not a valid name for an environment variable"),
                (
                    "caBundleConfigMap: ca, env: {SSL_CERT_FILE: /x}",
                    ": env: SSL_CERT_FILE conflicts with caBundleConfigMap, which sets it; remove one of the two",
                ),
                ("queue: {name: gpu, topology: {}}", ".queue.topology: topology needs either required or preferred"),
                (
                    "queue: {name: gpu, topology: {required: a, preferred: b}}",
                    ".queue.topology: topology needs either required or preferred",
                ),
                (
                    "queue: {name: gpu, topology: {required: the rack}}",
                    ".queue.topology.required: String should match pattern",
                ),
                (
                    "queue: {name: gpu, topology: {required: rack}}, "
                    "podAnnotations: {kueue.x-k8s.io/podset-preferred-topology: rack}",
                    ": podAnnotations: kueue.x-k8s.io/podset-preferred-topology conflicts with queue.topology, which "
                    "sets one; remove one of the two",
                ),
                (
                    "podLabels: {edgetune.dev/uid: x}",
                    ": podLabels: edgetune.dev/uid is reserved: the operator sets it; remove it",
                ),
            )
        ),
        ("profiles: [", "line 1: is not valid YAML: expected the node content"),
        (
            "a: &a [x, x]\n"
            + "".join(f"{n}: &{n} [{f'*{p}, ' * 9}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
            "has more than 50,000 values, which include those that aliases repeat",
        ),
        ("profiles: {default: {}, default: {}}", "line 1: is not valid YAML: duplicate key 'default'"),
        ("", "the document: Input should be a valid dictionary"),
    ],
)
def test_an_invalid_file_is_refused_with_its_name_and_the_field_path(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(InvalidProfiles) as refused:
        load_profiles(path)

    assert str(refused.value).startswith(f"{path}: ")
    assert problem in str(refused.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidProfiles, match=r"none\.yaml: No such file or directory"):
        load_profiles(tmp_path / "none.yaml")


def test_a_file_that_is_not_utf8_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("profiles: é".encode("latin-1"))

    with pytest.raises(InvalidProfiles, match=r"latin\.yaml: is not valid YAML"):
        load_profiles(path)


def test_each_namespace_has_its_own_folder_in_the_bucket() -> None:
    store = ProfileStore(uri="s3://artifacts/edgetune/", endpoint="http://minio:9000", region="eu", path_style=True)

    location = store.for_namespace("team-a")

    assert location.uri == "s3://artifacts/edgetune/team-a"
    assert (location.endpoint, location.region, location.path_style) == ("http://minio:9000", "eu", True)
