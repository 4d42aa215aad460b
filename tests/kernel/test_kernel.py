from __future__ import annotations

import pytest

from llmasos.kernel.abi import FinishReason
from llmasos.kernel.errors import (
    ContextTooLong,
    CoreFailed,
    Failed,
    InvalidArguments,
    KernelBug,
    LimitExceeded,
    OutOfMemory,
)
from llmasos.kernel.scripted import ScriptedCore, queue
from tests.kernel.machine import Machine, continuation


def test_many_processes_generate_in_one_batch_what_each_would_alone() -> None:
    machine = Machine()
    jobs = [machine.generate(f"prompt number {n}", max_tokens=20) for n in range(12)]
    machine.run()
    for number, job in enumerate(jobs):
        assert job.result.text == continuation(f"prompt number {number}", 20)
        assert job.result.finish is FinishReason.LENGTH


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    machine = Machine()
    jobs = [machine.generate("the very same prompt for all of us", max_tokens=1) for _ in range(6)]
    machine.run()
    assert len({job.result.text for job in jobs}) == 1
    length = len("the very same prompt for all of us")
    assert machine.kernel.num_tokens_computed < length + 6 * machine.core.info.page_size
    assert sum(process.usage.tokens_cached for process in machine.processes) > 4 * 30


def test_a_long_prompt_does_not_stall_the_replies_of_others() -> None:
    machine = Machine(step_tokens=8, num_pages=200)
    short = machine.generate("hi", max_tokens=30)
    machine.step()
    machine.generate("x" * 160, max_tokens=1)
    before = machine.process_of(short).usage.tokens_out
    for _ in range(10):
        machine.step()
    assert machine.process_of(short).usage.tokens_out == before + 10


def test_a_pool_for_one_serves_many_one_after_another() -> None:
    machine = Machine(num_pages=8)
    jobs = [machine.generate(f"{n} is my own prompt", max_tokens=8) for n in range(6)]
    machine.run()
    for number, job in enumerate(jobs):
        assert job.result.text == continuation(f"{number} is my own prompt", 8)


def test_what_outgrows_the_pool_fails_alone() -> None:
    machine = Machine(num_pages=8)
    large = machine.generate("grows without end", max_tokens=500)
    small = machine.generate("small", max_tokens=4)
    machine.run()
    assert isinstance(large.error, OutOfMemory)
    assert small.result.text == continuation("small", 4)


def test_a_prompt_larger_than_the_pool_is_refused_at_once() -> None:
    machine = Machine(num_pages=2)
    with pytest.raises(OutOfMemory):
        machine.generate("x" * 60)


def test_a_prompt_longer_than_the_window_changes_nothing() -> None:
    machine = Machine(context_length=20)
    process, context = machine.context("fits")
    with pytest.raises(ContextTooLong):
        machine.kernel.append(process, context, [1] * 100)
    assert len(context.tokens) == 4


def test_generation_ends_at_the_window() -> None:
    machine = Machine(context_length=20)
    job = machine.generate("0123456789", max_tokens=100)
    machine.run()
    assert job.result.finish is FinishReason.WINDOW
    assert len(job.context.tokens) == 20


def test_an_empty_context_cannot_generate() -> None:
    with pytest.raises(InvalidArguments):
        Machine().generate("")


def test_one_job_at_a_time_works_on_a_context() -> None:
    machine = Machine()
    job = machine.generate("once")
    with pytest.raises(InvalidArguments):
        machine.generate_in(job.process, job.context)


def test_the_end_token_ends_a_reply_and_stays_in_the_context() -> None:
    machine = Machine(ScriptedCore(queue(["Bonjour ☕"]), num_pages=64))
    job = machine.generate("<", max_tokens=50, chat=True)
    machine.run()
    assert (job.result.text, job.result.finish) == ("Bonjour ☕", FinishReason.STOP)
    assert job.context.tokens[-1] in machine.tokenizer.eos_ids


def test_a_stop_string_is_not_shown() -> None:
    machine = Machine(ScriptedCore(queue(["one two three"]), num_pages=64))
    job = machine.generate("<", max_tokens=50, chat=True, stop=("two",))
    machine.run()
    assert (job.result.text, job.result.finish) == ("one ", FinishReason.STOP_STRING)
    assert machine.tokenizer.decode(job.context.tokens[-4:]) == "one "


def test_chunks_join_to_the_text() -> None:
    machine = Machine(ScriptedCore(queue(["naïve 👩‍🚀 text"]), num_pages=64))
    job = machine.generate("<", max_tokens=80, chat=True)
    machine.run()
    assert "".join(chunk.text for chunk in machine.chunks[job]) == job.result.text
    assert not any("\N{REPLACEMENT CHARACTER}" in chunk.text for chunk in machine.chunks[job])


def test_a_limit_of_sampled_tokens_is_exact() -> None:
    machine = Machine(tokens_out=5)
    job = machine.generate("count", max_tokens=50)
    machine.run()
    assert isinstance(job.error, LimitExceeded)
    assert machine.process_of(job).usage.tokens_out == 5


def test_a_failing_slice_fails_its_process_alone() -> None:
    machine = Machine()
    bad = machine.generate("bad prompt", max_tokens=4)
    good = machine.generate("good prompt", max_tokens=4)
    machine.core.fails = lambda piece: "nan" if piece.tokens[0] == ord("b") else None
    machine.run()
    assert isinstance(bad.error, CoreFailed)
    assert good.result.text == continuation("good prompt", 4)


class BrokenMatcher:
    """A grammar that breaks when it is asked for a mask, or when a token arrives."""

    is_finished = False

    def __init__(self, where: str) -> None:
        self._where = where

    def mask(self) -> None:
        if self._where == "mask":
            raise Failed("the grammar broke")

    def accept(self, token_id: int) -> None:
        raise Failed("the grammar broke")


@pytest.mark.parametrize("where", ["mask", "accept"])
def test_a_broken_grammar_fails_its_process_alone(where: str) -> None:
    machine = Machine()
    good = machine.generate("good prompt", max_tokens=4)
    bad = machine.generate("bad prompt", max_tokens=4)
    bad._matcher = BrokenMatcher(where)  # type: ignore[assignment]
    machine.run()
    assert isinstance(bad.error, Failed)
    assert good.result.text == continuation("good prompt", 4)


def test_a_failed_step_fails_its_jobs_and_the_kernel_goes_on() -> None:
    machine = Machine()
    job = machine.generate("doomed")
    plan = machine.kernel.plan()
    assert plan is not None
    machine.kernel.abandon(plan, "out of memory")
    machine.check()
    assert isinstance(job.error, CoreFailed)
    other = machine.generate("doomed", max_tokens=3)
    machine.run()
    assert other.result.text == continuation("doomed", 3)


def test_an_interrupt_keeps_what_was_said() -> None:
    machine = Machine()
    job = machine.generate("talk on and on", max_tokens=100)
    for _ in range(6):
        machine.step()
    machine.kernel.interrupt(job)
    assert job.result.finish is FinishReason.INTERRUPTED
    assert job.result.text == continuation("talk on and on", len(job.result.text))
    assert len(job.result.text) > 3


def test_an_interrupt_in_flight_waits_for_the_commit() -> None:
    machine = Machine()
    job = machine.generate("talk", max_tokens=100)
    plan = machine.kernel.plan()
    assert plan is not None
    machine.kernel.interrupt(job)
    assert not job.is_done
    machine.kernel.commit(plan, machine.core.execute(plan.step), 0.1)
    assert job.is_done
    machine.check()


def test_a_process_killed_in_flight_frees_every_page_in_the_commit() -> None:
    machine = Machine()
    job = machine.generate("about to die", max_tokens=100)
    plan = machine.kernel.plan()
    assert plan is not None
    machine.kill(job.process)
    assert machine.kernel.pool.num_held > 0
    machine.kernel.commit(plan, machine.core.execute(plan.step), 0.1)
    assert machine.kernel.pool.num_held == 0
    machine.check()


def test_a_stopped_process_gets_no_model_time_and_goes_on_where_it_was() -> None:
    machine = Machine()
    job = machine.generate("stop and go", max_tokens=10)
    machine.step()
    job.process.stopped = True
    assert machine.kernel.plan() is None
    job.process.stopped = False
    machine.run()
    assert job.result.text == continuation("stop and go", 10)


def test_scores_are_the_log_likelihood_of_each_candidate() -> None:
    machine = Machine()
    likely = continuation("which one", 6)
    scores = machine.score("which one", [likely, "banana", likely[:3]])
    assert scores[0] == (-0.125,) * 6
    assert scores[2] == (-0.125,) * 3
    assert sum(scores[1]) < -20


def test_scoring_the_same_candidates_again_gives_the_same_scores() -> None:
    machine = Machine(page_size=2)
    first = machine.score("which one is it", ["abcdefgh", "abcdxxxx"])
    assert machine.score("which one is it", ["abcdefgh", "abcdxxxx"]) == first


def test_two_steps_at_once_are_a_kernel_bug() -> None:
    machine = Machine()
    machine.generate("a")
    machine.kernel.plan()
    with pytest.raises(KernelBug):
        machine.kernel.plan()


def test_old_records_are_forgotten_and_the_accounts_still_balance() -> None:
    machine = Machine(num_finished_kept=3)
    for number in range(8):
        job = machine.generate(f"{number}", max_tokens=3)
        machine.run()
        machine.kill(job.process)
    assert len(machine.kernel.processes) == 3
    machine.check()
