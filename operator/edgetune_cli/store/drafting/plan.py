"""`edgetune plan`: what changed objects would run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgetune_cli.documents.many import SHOWN_INPUT, STANDARD_INPUT, FileObject, read_contents
from edgetune_cli.documents.single import UnusableFile
from edgetune_cli.documents.validate_command import Filenames, read_files
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.cluster import local_profile
from edgetune_cli.local.objects import nearby_run, not_run
from edgetune_cli.options import DEFAULT_WORK_DIR, Profiles, WorkDir, read_profiles
from edgetune_cli.output import DataFormat, note, print_data, say
from edgetune_cli.planning.before import AppliedObjects, LocalRuns, NotReadable, finished_objects, live_objects
from edgetune_cli.planning.planner import ObjectPlan, plan_object, removed_objects
from edgetune_cli.planning.reports import json_value, markdown_lines, text_lines
from edgetune_cli.store.commands import call_jobs
from edgetune_cli.store.view import open_store_view
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.spec_check import parse_spec


class PlanFormat(StrEnum):
    """Output format of `edgetune plan`."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"
    MARKDOWN = "markdown"


class PlanStatus(IntEnum):
    """Exit codes of `edgetune plan --exit-code`, beside those of all commands."""

    NOTHING_RUNS = 0
    RUNS = 3
    ASKS_FOR_GPU = 4


def plan(
    filename: Filenames,
    older: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="The objects before the change: file or folder, repeatable. Without a status, they count as finished.",
            show_default=False,
        ),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Compare with the objects of a cluster; uses kubectl.")] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Also look in the store for the output of other runs.")
    ] = False,
    output: Annotated[PlanFormat, typer.Option("--output", "-o", help="Output format.")] = PlanFormat.TEXT,
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code", help="Exit with 0 if nothing runs, 3 if a stage runs, 4 if a GPU is asked for, 1 if refused."
        ),
    ] = False,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    context: Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig, for --live.")] = None,
    kubeconfig: Annotated[str | None, typer.Option("--kubeconfig", help="Path of the kubeconfig, for --live.")] = None,
) -> None:
    """Print which stages a run would execute, why, and about what they take, without running anything.

    It decides as a run would: from the last run on this machine, or from the objects before the change. It assumes that
    inputs are unchanged and that every stage succeeds. Estimates are figures of earlier runs.
    """
    if older and live:
        fail("give either --from or --live", ExitStatus.UNUSABLE_INPUT)
    if (context or kubeconfig) and not live:
        fail("--context and --kubeconfig are for --live: add it", ExitStatus.UNUSABLE_INPUT)
    if [*filename, *(older or ())].count(STANDARD_INPUT) > 1:
        fail("standard input can be read once: give - either to -f or to --from", ExitStatus.UNUSABLE_INPUT)
    folder = workdir.resolve()
    usable = read_profiles(profiles, folder)
    objects = _valid(filename)
    options = tuple(f"--{name}={value}" for name, value in (("context", context), ("kubeconfig", kubeconfig)) if value)
    before = _before(objects, older or [], live, options, folder, knows_store=profiles is not None or store)

    def profile_of(spec: LoraFineTuneSpec) -> Mapping[str, Profile]:
        # In a pull request, the profiles of the platform team are often not at hand.
        is_assumed = profiles is None and not isinstance(before, LocalRuns)
        return {spec.profile: local_profile(folder)} if is_assumed else usable

    opened = open_store_view if store else None
    plans = call_jobs(lambda: [plan_object(each, before, profile_of, opened) for each in objects])
    if isinstance(before, LocalRuns):
        _note_runs_elsewhere(objects, before)
        plans = [
            replace(each, warnings=(*_missing_here(found), *each.warnings))
            for each, found in zip(plans, objects, strict=True)
        ]
    was = before.documents if isinstance(before, AppliedObjects) and not live else {}
    removed = removed_objects(was, {each.key for each in objects})
    if output is PlanFormat.MARKDOWN:
        print_data(None, DataFormat.TEXT, markdown_lines(plans, removed))
    else:
        print_data(json_value(plans, removed), DataFormat(output.value), text_lines(plans, removed))
    raise typer.Exit(_exit_status(plans) if exit_code else ExitStatus.OK)


def _note_runs_elsewhere(objects: Sequence[FileObject], runs: LocalRuns) -> None:
    """Say why an object that was run counts as one that never was."""
    for each in objects:
        nearby = None if runs.read(each.key) or each.file == SHOWN_INPUT else nearby_run(Path(each.file), each.key)
        if nearby is not None:
            note(not_run(runs.folder, each.title, nearby))


def _missing_here(found: FileObject) -> tuple[str, ...]:
    """What an object needs that this machine lacks; in a cluster, the stages run in images."""
    from edgetune_jobs.errors import InvalidInput
    from edgetune_jobs.evaluation.edge.budget import check_measurable
    from edgetune_jobs.evaluation.edge.runtimes import missing_runtime
    from edgetune_jobs.tensors.formats.suitability import check_quantizer

    warnings, parameters = [], parse_spec(found.document["spec"]).parameters
    for check in (check_quantizer, check_measurable):
        try:
            check(parameters)
        except InvalidInput as error:
            warnings.append(f"{error}: a run on this machine fails here")
    if not warnings:
        missing = ((each, missing_runtime(each)) for each in parameters.quantization.formats)
        warnings += [f"{each.artifact} is not loaded by its runtime here: {why}" for each, why in missing if why]
    return tuple(warnings)


def _valid(filenames: list[str]) -> tuple[FileObject, ...]:
    contents = read_files(filenames)
    if contents.problems:
        fail("\n".join(map(str, contents.problems)), ExitStatus.UNUSABLE_INPUT)
    return _each_once(contents.objects)


def _each_once(objects: tuple[FileObject, ...]) -> tuple[FileObject, ...]:
    """The objects; exits with an error if one of them is there twice, such as in two overlays."""
    found: dict[Key, FileObject] = {}
    for each in objects:
        other = found.setdefault(each.key, each)
        if other is not each:
            places = f"{other.file}:{other.line} and {each.file}:{each.line}"
            fail(f"{each.title} is there twice: {places}; plan what is applied together", ExitStatus.UNUSABLE_INPUT)
    return objects


def _older(filenames: list[str]) -> tuple[FileObject, ...]:
    """The valid objects before the change; there may be none."""
    try:
        contents = read_contents(filenames)
    except UnusableFile as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)
    for problem in contents.problems:
        say(f"{problem}; before the change, the object counts as not there", err=True)
    return _each_once(tuple(each for each in contents.objects if not each.problems))


def _before(
    objects: tuple[FileObject, ...],
    older: list[str],
    live: bool,
    options: tuple[str, ...],
    folder: Path,
    knows_store: bool,
) -> LocalRuns | AppliedObjects:
    if older:
        return finished_objects(_older(older), knows_store)
    if not live:
        return LocalRuns(folder)
    try:
        return live_objects(tuple(each.key for each in objects), options, knows_store)
    except NotReadable as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)


def _exit_status(plans: list[ObjectPlan]) -> int:
    if any(each.is_refused for each in plans):
        return ExitStatus.NEGATIVE
    if any(each.asks_for_gpu for each in plans):
        return PlanStatus.ASKS_FOR_GPU
    return PlanStatus.RUNS if any(each.running for each in plans) else PlanStatus.NOTHING_RUNS
