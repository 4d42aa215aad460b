"""The kernel's random histories again, over a swap on a disk that rots, loses files and fills up.

Whatever happens to the disk, every process says what it would have said alone, and numbers are conserved.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests.kernel.swapping import Disk, swapping_machine
from tests.kernel.test_kernel_machine import KernelMachine


class SwapKernelMachine(KernelMachine):
    @initialize(
        num_pages=st.integers(4, 16),
        page_size=st.integers(1, 4),
        budget=st.integers(1, 9),
        max_bytes=st.integers(100, 5000),
    )
    def boot(self, num_pages: int, page_size: int, budget: int, max_bytes: int) -> None:
        self.disk = Disk()
        self.machine = swapping_machine(
            self.disk,
            num_pages=num_pages,
            page_size=page_size,
            step_tokens=budget,
            context_length=40,
            max_bytes=max_bytes,
        )
        self.kernel = self.machine.kernel

    @rule(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def flip_a_bit_in_every_file(self, place: float, bit: int) -> None:
        for file in self.disk.files.values():
            if file:
                file[int(place * len(file))] ^= 1 << bit

    @rule(share=st.floats(0, 1))
    def cut_every_file(self, share: float) -> None:
        for file in self.disk.files.values():
            del file[int(share * len(file)) :]

    @rule()
    def lose_a_file(self) -> None:
        for name in self.disk.names()[:1]:
            self.disk.remove(name)

    @rule(more=st.integers(0, 300))
    def fill_the_disk(self, more: int) -> None:
        self.disk.capacity = sum(map(len, self.disk.files.values())) + more

    @rule(fails=st.booleans())
    def reading_fails(self, fails: bool) -> None:
        self.disk.read_error = OSError(5, "Input/output error") if fails else None

    @rule()
    def park_everyone_idle(self) -> None:
        if self.flight is None:
            for _, context in list(self.kernel._idle_contexts()):
                self.kernel.pager.park(context)


TestSwapKernelMachine = SwapKernelMachine.TestCase
TestSwapKernelMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
