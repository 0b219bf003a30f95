"""Some seconds of chaos, and that a run notices what it is there to notice. `make chaos` runs as long as asked."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from tests.chaos.checks import Findings, check, check_erased, check_sealed, check_sqlite
from tests.chaos.driver import Options, Run
from tests.chaos.kind import Told, insist
from tests.chaos.kinds import KINDS, plan_of
from tests.chaos.kinds_of_data import secret_of
from tests.chaos.schedule import CALM_AT_THE_END_S, FIRST_FAULT_S, schedule
from tests.chaos.sink import Sink

from llama_deploy import Deployment, ServiceContext, service
from llama_deploy.client import Client
from llama_deploy.errors import ConnectionLostError


def test_a_seed_gives_the_same_faults_and_the_same_tasks() -> None:
    first, again, other = (schedule(seed, duration_s=120, instances=3, clients=2) for seed in (1, 1, 2))
    assert first == again != other
    assert {fault.kind for fault in first} == {"kill", "stop", "terminate"}
    assert {"plane-0", "instance-0", "client-0"} <= {fault.target for fault in first}
    assert all(FIRST_FAULT_S <= fault.at_s < 120 - CALM_AT_THE_END_S for fault in first)
    plans = [plan_of(1, number) for number in range(1000)]
    assert plans == [plan_of(1, number) for number in range(1000)] != [plan_of(2, number) for number in range(1000)]
    assert {plan.kind for plan in plans} == set(KINDS)
    assert len({plan.task_id for plan in plans}) == 1000


@pytest.mark.slow
async def test_some_seconds_of_chaos() -> None:
    report = await Run(Options(duration_s=12, tasks=400, seed=7)).carry_out()
    assert not report.problems, report.render()
    assert report.figures["told"] == 400
    assert {kind.split()[1] for kind in report.figures["faults"]} >= {"plane", "instance", "client"}
    assert not report.folder.exists()


async def test_asking_goes_on_through_outages() -> None:
    answers = iter([ConnectionLostError("gone"), ConnectionLostError("gone"), "here"])

    async def call() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await insist(call) == "here"


async def test_what_differs_is_noticed(tmp_path: Path) -> None:
    """One honest task, then every lie that can be told about it."""
    sink = Sink(tmp_path / "sink.db")
    plan = next(plan for plan in (plan_of(1, number) for number in range(1000)) if plan.kind == "stream")

    @service
    async def tell(context: ServiceContext, events: int, pause_s: float) -> int:
        for number in range(events):
            context.stream({"attempt": context.attempt, "number": number})
        sink.effect(context.step_id, "tell", events)
        return events

    async with Deployment([tell], store=tmp_path / "store.db", quiet=True) as deployment:
        client: Client = deployment.client
        honest = await KINDS["stream"].do(client, plan)
        events = list(honest.events or ())

        async def problems(*told: Told) -> list[str]:
            findings = Findings()
            await check(client, [plan], told, tmp_path / "sink.db", findings)
            return findings.problems

        assert await problems(honest) == []
        lies = {
            "expected": Told(plan.number, honest.task_id, "completed", -1, events=events),
            "listed as": Told(plan.number, honest.task_id, "failed", honest.output, events=events),
            "followed live": Told(plan.number, honest.task_id, "completed", honest.output, events=events[:-1]),
            "a stream that nobody wrote": Told(plan.number, honest.task_id, "completed", honest.output),
            "further tasks have": Told(
                plan.number, honest.task_id, "completed", honest.output, events=events, others=[honest]
            ),
            "not there": Told(plan.number, "elsewhere", "completed", honest.output, events=events),
        }
        for noticed, told in lies.items():
            assert any(noticed in problem for problem in await problems(told)), noticed
        assert any("nobody was told" in problem for problem in await problems())
        assert any("told of the same task twice" in problem for problem in await problems(honest, honest))
        sink.effect("nobody:1", "tell", 1)
        assert any("an effect of tell, sent to None" in problem for problem in await problems(honest))
        sink._connection.execute("DELETE FROM effects")
        assert any("without an effect" in problem for problem in await problems(honest))
        sink.effect(f"{honest.task_id}:1", "tell", 0)
        assert any("its effect was 0" in problem for problem in await problems(honest))
        sink.hear("news", json.dumps({"data": {"task_id": honest.task_id, "state": "failed", "output": None}}))
        assert any("that nobody asked for" in problem for problem in await problems(honest))
        sink.hear("news", "something else")
        assert any("told differently 1 times" in problem for problem in await problems(honest))
    sink.close()


def test_an_open_step_in_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE deliveries (step_id TEXT)")
    findings = Findings()
    check_sqlite(path, findings)
    assert findings.problems == []
    connection.execute("INSERT INTO deliveries VALUES ('t:1')")
    connection.commit()
    connection.close()
    check_sqlite(path, findings)
    assert len(findings.problems) == 1


def test_what_was_erased_and_stands_in_the_file_is_noticed(tmp_path: Path) -> None:
    plan = next(plan for plan in (plan_of(1, number) for number in range(1000)) if plan.kind == "erased")
    path = tmp_path / "store.db"
    path.write_bytes(b"nothing of it")
    findings = Findings()
    check_erased(path, [plan], findings)
    assert findings.problems == []
    (tmp_path / "store.db-wal").write_bytes(b"..." + secret_of(plan).encode() + b"...")
    check_erased(path, [plan], findings)
    assert len(findings.problems) == 1


async def test_a_history_in_clear_is_noticed_where_the_store_is_encrypted(tmp_path: Path) -> None:
    @service
    def echo(text: str) -> str:
        return text

    (tmp_path / "keys").write_text("1" * 64)
    for name, keys in (("sealed.db", tmp_path / "keys"), ("clear.db", None)):
        async with Deployment([echo], store=tmp_path / name, encryption_key_file=keys, quiet=True) as deployment:
            await deployment.run("echo", text="hello")
        findings = Findings()
        check_sealed(tmp_path / name, findings)
        assert len(findings.problems) == (keys is None)


def test_a_report_is_json_first(tmp_path: Path) -> None:
    run = Run(Options(folder=tmp_path))
    assert json.loads(json.dumps(run._figures([])))["tasks"] == 10_000
