"""The process of a stage or a clean-up: from its environment to its termination message and exit code."""

import importlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO, TypeVar

from pydantic import ValidationError

from edgetune_contract.clean_up import CleanUpRequest, CleanUpResult
from edgetune_contract.request import Request, Result
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.runtime.clean_up import clean_up
from edgetune_jobs.runtime.failures import BUG, exit_code_of, failed_result, failure_of
from edgetune_jobs.runtime.ranks.plan import plan_ranks
from edgetune_jobs.runtime.settings import Settings, prepare_process, termination_log
from edgetune_jobs.runtime.signals import StopSignals
from edgetune_jobs.runtime.stage_run import StageCode, StageRun
from edgetune_jobs.store.access import StorageAccess

logger = logging.getLogger(__name__)

AnyRequest = TypeVar("AnyRequest", Request, CleanUpRequest)


def load_stage_code(stage: Stage) -> StageCode:
    """The functions of the stage's module; other stages' modules are not imported. Only prepare has a `recheck`."""
    module = importlib.import_module(f"edgetune_jobs.stages.{stage}")
    recheck = module.recheck if stage is Stage.PREPARE else None
    return StageCode(module.run, recheck, plan_ranks if stage is Stage.TRAIN else None)


def run_stage(
    environment: Mapping[str, str],
    signals: StopSignals,
    stream: TextIO,
    load_code: Callable[[Stage], StageCode] = load_stage_code,
) -> int:
    """Run the stage that the environment describes, and write its result to the termination log.

    Args:
        environment: see Settings.
        signals: installed signal handlers, which can interrupt the stage.
        stream: gets the progress as JSON lines.
        load_code: returns the functions that do the stage's work.

    Returns:
        The exit code of the contract.
    """
    request: Request | None = None
    try:
        with signals.immediate():
            settings = Settings.from_environment(environment)
            request = _decode(settings.request, Request)
            result = _run_in_folder(request, settings, signals, stream, load_code)
        _log_result(result)
    except BaseException as error:
        result = failed_result(request, error)
        logger.error("%s", _log_message(error, result), exc_info=_is_bug(result))
    _write_termination_message(termination_log(environment), result)
    return exit_code_of(result)


def run_clean_up(environment: Mapping[str, str], signals: StopSignals) -> int:
    """Run the clean-up that the environment describes, and write its result to the termination log.

    Args:
        environment: see Settings; its request is a CleanUpRequest.
        signals: installed signal handlers, which can interrupt the clean-up.

    Returns:
        The exit code of the contract.
    """
    try:
        with signals.immediate():
            settings = Settings.from_environment(environment)
            request = _decode(settings.request, CleanUpRequest)
            result = clean_up(StorageAccess(request.store, settings.credentials_folder).open_store(), request.name)
    except BaseException as error:
        result = CleanUpResult(failure=failure_of(error))
        logger.error("%s", _log_message(error, result), exc_info=_is_bug(result))
    _write_termination_message(termination_log(environment), result)
    return exit_code_of(result)


def _log_result(result: Result) -> None:
    """Log what a successful stage reports; later, only its manifest has it."""
    logger.info("%s %s", result.stage, "was already done" if result.cached else f"is done in {result.seconds:.1f} s")
    for name, value in {**result.facts, **{name: f"{value:g}" for name, value in result.metrics.items()}}.items():
        logger.info("%s: %s", name, value)
    for warning in result.warnings:
        logger.warning("%s", warning)


def _log_message(error: BaseException, result: Result | CleanUpResult) -> BaseException | str:
    return error if _is_bug(result) or result.failure is None else result.failure.message


def _is_bug(result: Result | CleanUpResult) -> bool:
    return exit_code_of(result) == BUG


def _decode(text: str, kind: type[AnyRequest]) -> AnyRequest:
    if not text:
        raise InvalidInput("EDGETUNE_REQUEST is not set: set it to the request as JSON")
    try:
        return kind.decode(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        raise InvalidInput(
            f"EDGETUNE_REQUEST is not a valid request for this image: {problems}; use images of one version for the "
            "operator and the stages"
        ) from error


def _run_in_folder(
    request: Request,
    settings: Settings,
    signals: StopSignals,
    stream: TextIO,
    load_code: Callable[[Stage], StageCode],
) -> Result:
    """Run in a new folder below the work folder; the new folder is removed at the end."""
    try:
        settings.work_folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{request.stage}-", dir=settings.work_folder))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InvalidInput(
            f"EDGETUNE_WORK_DIR: cannot write to {settings.work_folder}: {error.strerror}; set it to a writable folder"
        ) from error
    try:
        reads_hub = request.stage is Stage.PREPARE and request.parameters.base_model.is_on_hub
        prepare_process(folder, online=reads_hub)
        return StageRun(request, settings, signals, stream, load_code, folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_termination_message(path: Path, result: Result | CleanUpResult) -> None:
    try:
        path.write_bytes(result.encode())
    except OSError as error:
        # The exit code remains valid. Without a message, the operator runs the stage again, which finds the manifest.
        logger.error("cannot write the result to %s: %s", path, error.strerror)
