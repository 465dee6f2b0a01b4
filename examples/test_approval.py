"""How to test a workflow: no database, no waiting, three days in milliseconds.

The fixture `workflow_env` comes with the package. ``pytest --durable-crash`` replays each run after
every event; ``pytest --durable-dsn ...`` runs the same tests on PostgreSQL (where three days would
be three days, so these tests skip there).
"""

from approval import GIVE_UP_AFTER, REMIND_AFTER, Decision, Expense, approval, send_mail

from durable.testing import WorkflowEnvironment

LUNCH = Expense("Ann", 1_200)
LAPTOP = Expense("Ann", 200_000)


async def test_small_sums_need_nobody(workflow_env: WorkflowEnvironment) -> None:
    mails = workflow_env.mock(send_mail, None)
    assert await workflow_env.execute(approval, LUNCH) == "approved: small"
    assert mails.call_count == 0


async def test_the_boss_decides(workflow_env: WorkflowEnvironment) -> None:
    handle = await workflow_env.start(approval, LAPTOP)
    assert await handle.vars() == {"waiting_for": "boss"}
    await handle.signal("decision", Decision("Bob", True))
    assert await handle.result() == "approved: Bob"


async def test_a_reminder_goes_out_after_a_day(workflow_env: WorkflowEnvironment) -> None:
    mails = workflow_env.mock(send_mail, None)
    handle = await workflow_env.start(approval, LAPTOP)
    await workflow_env.advance(REMIND_AFTER)
    assert mails.args == ("boss", "Ann still waits")
    await handle.signal("decision", Decision("Bob", False))
    assert await handle.result() == "refused: Bob"


async def test_no_answer_is_a_refusal(workflow_env: WorkflowEnvironment) -> None:
    begin = workflow_env.now
    assert await workflow_env.execute(approval, LAPTOP) == "refused: no answer"
    assert workflow_env.now - begin == GIVE_UP_AFTER
