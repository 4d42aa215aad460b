"""The kernel's random histories again, over a swap on a disk that rots, loses files and fills up.

Whatever happens to the disk, every process says what it would have said alone, and numbers are conserved.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from tests.kernel.swapping import Disk, swapping_machine
from tests.kernel.test_kernel_machine import PROMPTS, KernelMachine

SHARES = st.floats(0, 1, exclude_max=True)


class SwapKernelMachine(KernelMachine):
    @initialize(
        num_pages=st.integers(4, 16),
        page_size=st.integers(1, 4),
        budget=st.integers(1, 9),
        max_bytes=st.integers(100, 5000),
        has_views=st.booleans(),
    )
    def boot(
        self, num_pages: int, page_size: int, budget: int, max_bytes: int, has_views: bool
    ) -> None:
        self.disk = Disk()
        self.machine = swapping_machine(
            self.disk,
            num_pages=num_pages,
            page_size=page_size,
            step_tokens=budget,
            context_length=40,
            max_bytes=max_bytes,
            has_views=has_views,
        )
        self.kernel = self.machine.kernel

    @rule(data=st.data(), prompts=st.lists(PROMPTS, min_size=1, max_size=4))
    def crowd(self, data: st.DataObject, prompts: list[str]) -> None:
        """Newcomers who talk, so that there is never memory for all."""
        for prompt in prompts:
            self.generate(self.spawn(prompt), data, max_tokens=8)
        self.work(12)

    @rule(data=st.data(), share=st.floats(0, 1))
    def everyone_goes_on(self, data: st.DataObject, share: float) -> None:
        """Contexts that were parked meanwhile are wanted back."""
        for process in self.machine.processes:
            if process.exit is None:
                self.generate(process, data, max_tokens=2)
        self.work(int(30 * share))

    @rule(data=st.data())
    def forks_go_on(self, data: st.DataObject) -> None:
        """While those they were copied from stand idle: pages are copied, and then given up."""
        for process in self.machine.processes:
            if process.exit is None and (context := self.pick(process, data)):
                fork = self.kernel.fork_context(process, context)
                self.generate_in(process, fork, 3)
        self.work(4)

    @rule()
    def everyone_idle_is_parked(self) -> None:
        if self.flight is None:
            for _, context in list(self.kernel._idle_contexts()):
                self.kernel.pager.park(context)

    @rule(how=st.sampled_from(["flip", "cut", "lose", "fill", "fail", "mend"]), place=SHARES)
    def the_disk_misbehaves(self, how: str, place: float) -> None:
        disk = self.disk
        for name in disk.names():
            file = disk.files[name]
            if how == "flip" and file:
                file[int(place * len(file))] ^= 1 << int(place * 100) % 8
            elif how == "cut":
                del file[int(place * len(file)) :]
            elif how == "lose" and place < 0.5:
                disk.remove(name)
        if how == "fill":
            disk.capacity = sum(map(len, disk.files.values())) + int(300 * place)
        if how in ("fail", "mend"):
            disk.read_error = OSError(5, "Input/output error") if how == "fail" else None


def test_no_history_and_no_disk_changes_what_anybody_says() -> None:
    run_state_machine_as_test(
        SwapKernelMachine,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None),
    )
