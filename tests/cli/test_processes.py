"""Child processes end as the Job controller and the kubelet end Pods."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import edgetune_cli.local.processes as processes
from edgetune_operator.decisions.observe import JobState, observe
from support.process_jobs import process_job

SAY_READY = 'print(\'{"say": "ready"}\', flush=True)'


def run(job: processes.ProcessJob) -> Any:
    """Run a Job to its end and observe it as a pass would."""
    asyncio.run(job.run())
    return observation(job)


async def stop_when_ready(job: processes.ProcessJob, ready: asyncio.Event) -> None:
    task = asyncio.create_task(job.run())
    await asyncio.wait_for(ready.wait(), timeout=30)
    await job.stop()
    await asyncio.wait_for(task, timeout=30)


def failing_once(marker: Path, exit_code: int) -> str:
    return (
        f"import pathlib; marker = pathlib.Path({str(marker)!r}); tried = marker.exists(); marker.touch()\n"
        f"raise SystemExit(0 if tried else {exit_code})"
    )


def observation(job: processes.ProcessJob) -> Any:
    document = {
        "metadata": {"name": "sensor-faults", "namespace": "team-a", "uid": "8b2c3f5e-0000-4000-8000-000000000001"}
    }
    return observe(document, [job.to_dict()], job.pods, None).jobs[0]


def test_exit_0_completes_the_job_and_the_termination_message_arrives(tmp_path: Path) -> None:
    script = "import os; open(os.environ['EDGETUNE_TERMINATION_LOG'], 'w').write('all done')"
    job = run(process_job(script, tmp_path))
    assert job.state is JobState.COMPLETE
    assert [(pod.exit_code, pod.message) for pod in job.pods] == [(0, "all done")]


@pytest.mark.parametrize("name", ["EDGETUNE_IMAGE", "EDGETUNE_GPUS", "EDGETUNE_NODES", "EDGETUNE_RENDEZVOUS"])
def test_a_process_of_this_machine_gets_no_image_name_and_no_number_of_gpus_and_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name, raising=False)
    log = "open(os.environ['EDGETUNE_TERMINATION_LOG'], 'w')"
    job = process_job(f"import os; {log}.write(os.environ.get('{name}', 'none'))", tmp_path)
    job.manifest["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": name, "value": "1"})

    assert run(job).pods[0].message == "none"


def test_only_the_last_4096_bytes_of_a_termination_message_arrive(tmp_path: Path) -> None:
    script = "import os; open(os.environ['EDGETUNE_TERMINATION_LOG'], 'w').write('x' * 5000 + 'end')"
    job = run(process_job(script, tmp_path))
    assert len(job.pods[0].message) == 4096
    assert job.pods[0].message.endswith("xend")


@pytest.mark.parametrize("exit_code", [10, 11, 13])
def test_a_permanent_failure_fails_the_job_at_once(tmp_path: Path, exit_code: int) -> None:
    job = run(process_job(f"raise SystemExit({exit_code})", tmp_path))
    assert (job.state, job.reason) == (JobState.FAILED, "PodFailurePolicy")
    assert [pod.exit_code for pod in job.pods] == [exit_code]


@pytest.mark.parametrize("exit_code", [1, 12, 14])
def test_other_failures_are_retried_up_to_the_retry_limit(tmp_path: Path, exit_code: int) -> None:
    job = run(process_job(f"raise SystemExit({exit_code})", tmp_path, retryLimit=2))
    assert (job.state, job.reason) == (JobState.FAILED, "BackoffLimitExceeded")
    assert [pod.exit_code for pod in job.pods] == [exit_code] * 3


def test_a_transient_error_is_retried(tmp_path: Path) -> None:
    marker = tmp_path / "tried"
    script = failing_once(marker, 14)
    job = run(process_job(script, tmp_path))
    assert job.state is JobState.COMPLETE
    assert [pod.exit_code for pod in job.pods] == [14, 0]


def test_an_interrupted_attempt_runs_again_and_does_not_count(tmp_path: Path) -> None:
    marker = tmp_path / "tried"
    script = failing_once(marker, 75)
    job = run(process_job(script, tmp_path, retryLimit=0))
    assert job.state is JobState.COMPLETE
    assert [pod.interrupted for pod in job.pods] == [True, False]


def test_a_killed_process_counts_as_exit_code_137_with_the_last_log_lines(tmp_path: Path) -> None:
    script = "import os, sys; print('about to die', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    job = run(process_job(script, tmp_path, retryLimit=0))
    assert job.pods[0].exit_code == 137
    assert "about to die" in job.pods[0].message


def test_a_stage_past_its_deadline_is_stopped_and_the_job_fails_with_deadline_exceeded(tmp_path: Path) -> None:
    job = process_job("import time; time.sleep(60)", tmp_path)
    job.manifest["spec"]["activeDeadlineSeconds"] = 0.5
    ended = run(job)
    assert (ended.state, ended.reason) == (JobState.FAILED, "DeadlineExceeded")


def test_stop_sends_sigterm_and_waits_for_the_stage_to_end_by_itself(tmp_path: Path) -> None:
    script = (
        f"import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n{SAY_READY}\ntime.sleep(60)"
    )
    ready = asyncio.Event()
    job = process_job(script, tmp_path, on_line=lambda _: ready.set())

    asyncio.run(stop_when_ready(job, ready))
    assert [pod.exit_code for pod in observation(job).pods] == [75]
    assert observation(job).state is JobState.LIVE


def test_stop_kills_a_stage_that_ignores_sigterm_after_the_grace_period(tmp_path: Path) -> None:
    script = f"import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SAY_READY}\ntime.sleep(60)"
    ready = asyncio.Event()
    job = process_job(script, tmp_path, on_line=lambda _: ready.set())
    job.manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 0.2

    asyncio.run(stop_when_ready(job, ready))
    assert [pod.exit_code for pod in observation(job).pods] == [137]


def test_lines_that_are_not_json_objects_are_ignored(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    run(process_job("print('hello'); print('3'); print('{\"say\": \"hi\"}')", tmp_path, on_line=lines.append))
    assert lines == [{"say": "hi"}]


def test_the_log_of_a_successful_attempt_has_messages_progress_and_what_is_not_json(tmp_path: Path) -> None:
    progress = {"progress": {"stage": "train", "done": 2, "total": 3, "unit": "steps", "figures": {"loss": 0.51239}}}
    last = {"progress": {**progress["progress"], "done": 3}}
    script = (
        "import json, sys\nfor value in ({'say': 'training'}, *json.loads(sys.argv[1])): print(json.dumps(value))\n"
        "print('hello'); print('an old warning', file=sys.stderr)"
    )
    job = process_job(f"import sys; sys.argv = ['', {json.dumps([progress, progress, last])!r}]\n{script}", tmp_path)
    run(job)

    lines = job.log.read_text(encoding="utf-8").splitlines()
    assert "an old warning" in lines, "standard error as it is"
    assert sorted(line.split(" ", 1)[1] for line in lines if line[:2] == "20") == sorted(
        [
            f"attempt 1 of {job.name} begins",
            "training",
            "2 of 3 steps, loss 0.5124",
            "hello",
            "3 of 3 steps, loss 0.5124",
            "attempt 1 ended with exit code 0",
        ]
    )


def test_what_a_terminal_would_obey_is_escaped_in_the_log_and_a_message_is_one_line(tmp_path: Path) -> None:
    say = json.dumps({"say": "reading \x1b[2Ja\u202eb.jsonl\n2026-01-01T00:00:00Z done"})
    job = process_job(f"print('plain \\x1b]0;title\\x07'); print({say!r})", tmp_path)
    run(job)

    lines = [line.split(" ", 1)[1] for line in job.log.read_text(encoding="utf-8").splitlines()]
    assert lines[1:3] == ["plain \\u001b]0;title\\u0007", r"reading \u001b[2Ja\u202eb.jsonl\n2026-01-01T00:00:00Z done"]


def test_a_stage_imports_nothing_from_the_folder_in_which_the_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('a file of the user was run')")
    monkeypatch.chdir(tmp_path)
    job = process_job("import colorsys", tmp_path)
    run(job)

    assert [pod.exit_code for pod in observation(job).pods] == [0]


def test_a_further_attempt_appends_to_the_log_and_reports_only_its_own_lines(tmp_path: Path) -> None:
    marker = tmp_path / "tried"
    script = (
        f"import pathlib, sys; marker = pathlib.Path({str(marker)!r}); tried = marker.exists(); marker.touch()\n"
        "print('second' if tried else 'first', file=sys.stderr, flush=True)\nraise SystemExit(1)"
    )
    job = process_job(script, tmp_path, retryLimit=1)
    run(job)

    assert [pod.message for pod in observation(job).pods] == ["first\n", "second\n"]
    log = job.log.read_text(encoding="utf-8")
    assert log.index("first") < log.index("second")


def test_the_work_folder_of_an_attempt_is_removed(tmp_path: Path) -> None:
    script = "import os, pathlib; (pathlib.Path(os.environ['EDGETUNE_WORK_DIR']) / 'big').write_text('x')"
    run(process_job(script, tmp_path))
    assert not list((tmp_path / "work").iterdir())


def test_stop_during_the_backoff_ends_the_job_at_once(tmp_path: Path) -> None:
    job = process_job("raise SystemExit(14)", tmp_path, backoff_seconds=600)

    async def stop_in_backoff() -> None:
        task = asyncio.create_task(job.run())
        async with asyncio.timeout(30):
            while not job.status.get("failed"):
                await asyncio.sleep(0.01)
            await job.stop()
            await task

    asyncio.run(stop_in_backoff())
    assert [pod.exit_code for pod in observation(job).pods] == [14]


def test_stop_while_the_process_is_starting_leaves_no_process_behind(tmp_path: Path) -> None:
    job = process_job("import time; time.sleep(60)", tmp_path)

    async def stop_at_once() -> None:
        task = asyncio.create_task(job.run())
        await asyncio.sleep(0)
        await job.stop()
        await asyncio.wait_for(task, timeout=30)

    asyncio.run(stop_at_once())
    assert {pod.exit_code for pod in observation(job).pods} <= {143}


def test_a_process_that_cannot_start_fails_the_job_with_the_path_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where a folder is needed")
    job = run(process_job("", tmp_path))
    assert (job.state, job.reason) == (JobState.FAILED, "ProcessNotStarted")
    place = tmp_path / "work" / "1" / "work"
    assert job.message == f"{place}: Not a directory; fix this, then run the command again"
