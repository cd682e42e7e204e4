"""Scenarios in which an object is deleted with its artifacts."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

from edgetune_contract.clean_up import CleanUpResult
from edgetune_contract.stages import Stage
from edgetune_operator.api.names import Key
from edgetune_operator.decisions.deletion import CLEAN_UP_SECONDS
from edgetune_operator.reconcile import DeletionPass, run_once
from support.builders import UID, JobBuilder, ObjectBuilder, PodBuilder, lora_fine_tune
from support.scenario import PROFILE, TICK, Scenario

JOB = f"sensor-faults-clean-up-{UID.replace('-', '')[:10]}"
STORE = "s3://artifacts/edgetune/team-a"
LEFT = (
    f"{STORE}/models/sensor-faults/ and the stage outputs marked in {STORE}/uses/*/*/sensor-faults are left; "
    "the next object of this name that is deleted with Delete removes them"
)
LIMIT = timedelta(seconds=PROFILE.termination_grace_period_seconds + CLEAN_UP_SECONDS + 60)


class Deletion(Scenario):
    """A scenario whose object can be deleted."""

    def delete(self) -> None:
        """A user deletes the object."""
        self.cluster.document["metadata"]["deletionTimestamp"] = self.cluster.timestamp()
        self.cluster.document["metadata"]["generation"] += 1

    def step(self) -> DeletionPass:
        """One pass over the deleted object."""
        self.cluster.now += TICK
        done = asyncio.run(run_once(self.cluster, Key("team-a", "sensor-faults"), self.profiles, self.cluster.now))
        assert isinstance(done, DeletionPass), done
        return done

    @property
    def finalizers(self) -> list[str]:
        """The object's finalizers."""
        found: list[str] = self.cluster.document["metadata"].get("finalizers", [])
        return found

    def end_clean_up(self, pod: Callable[[PodBuilder], PodBuilder], job: Callable[[JobBuilder], JobBuilder]) -> None:
        """The clean-up's Pod and Job end in some way."""
        name = self.cluster.pods_of(JOB)[-1]
        self.cluster.pods[name] = pod(PodBuilder(JOB, name, now=self.cluster.timestamp())).build()
        self.cluster.jobs[JOB]["status"] = job(JobBuilder(Stage.PUBLISH, "", name=JOB)).status


def with_delete() -> ObjectBuilder:
    """An object with deletionPolicy Delete."""
    return lora_fine_tune().with_spec("deletionPolicy", "Delete")


def succeeded(**figures: int) -> Callable[[PodBuilder], PodBuilder]:
    """The clean-up's Pod succeeds and reports these figures."""
    return lambda pod: pod.ended(0, CleanUpResult(**figures).encode().decode())


def complete(job: JobBuilder) -> JobBuilder:
    """The clean-up's Job is complete."""
    return job.complete()


def published_with_delete() -> Deletion:
    """A published object with deletionPolicy Delete whose Jobs were removed by their time to live."""
    scenario = Deletion(with_delete())
    scenario.finish_all()
    scenario.cluster.remove_ended_jobs()
    return scenario
