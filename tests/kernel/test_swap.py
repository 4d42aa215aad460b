from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.errors import ConfigError
from llmasos.kernel.swap import Swap, page_key, root_key
from llmasos.kernel.swap_files import HEADER_BYTES, MAX_OPEN_FILES, SegmentFolder
from tests.kernel.swapping import AtOnce, Disk, Later

SIZE = 64
ROOT = root_key("model", 4)


def key(number: int) -> bytes:
    return page_key(ROOT, [number])


def content(number: int) -> bytes:
    return bytes([number % 256]) * SIZE


def got(swap: Swap, number: int, size: int = SIZE) -> bytes | None:
    """A page as it comes back, or None."""
    content = bytearray(size)
    [is_found] = swap.read([(key(number), memoryview(content))], now=lambda: 0.0).wait()
    return bytes(content) if is_found else None


def swap_on(disk: Disk, **options: object) -> Swap:
    return Swap(disk, writer=AtOnce(), readers=AtOnce(), **options)  # type: ignore[arg-type]


def test_what_is_put_comes_back_also_after_a_restart() -> None:
    disk = Disk()
    swap = swap_on(disk)
    for number in range(5):
        swap.put(key(number), content(number))
    for again in (swap, swap_on(disk)):
        assert [got(again, n) for n in range(5)] == [content(n) for n in range(5)]
    assert got(swap, 99) is None


def test_keys_tell_models_adapters_and_page_sizes_apart() -> None:
    roots = {root_key("model", 4), root_key("other", 4), root_key("model", 8)}
    assert len({*roots, root_key("model", 4, "adapter")}) == 4
    assert page_key(ROOT, [1, 2]) != page_key(page_key(ROOT, [1]), [2])


def test_a_page_that_waits_to_be_written_can_be_had_already() -> None:
    later = Later()
    swap = Swap(Disk(), writer=later)
    swap.put(key(1), content(1))
    assert got(swap, 1) == content(1)
    assert swap.status.num_written == 0
    later.run()
    assert (swap.status.num_written, got(swap, 1)) == (1, content(1))


def test_a_disk_that_cannot_keep_up_costs_pages_and_not_the_engine() -> None:
    swap = Swap(Disk(), writer=Later(), max_pending_bytes=SIZE)
    swap.put(key(1), content(1))
    swap.put(key(2), content(2))
    assert swap.has(key(1))
    assert not swap.has(key(2))


@given(st.data())
def test_no_damage_to_a_file_gets_past_the_checks(data: st.DataObject) -> None:
    disk = Disk()
    swap = swap_on(disk)
    for number in range(4):
        swap.put(key(number), content(number))
    name = data.draw(st.sampled_from(disk.names()))
    file = disk.files[name]
    how = data.draw(st.sampled_from(["flip", "cut", "zero", "vanish", "swap"]))
    place = data.draw(st.integers(0, len(file) - 1))
    if how == "flip":
        file[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del file[place:]
    elif how == "zero":
        file[place:] = bytes(len(file) - place)
    elif how == "vanish":
        disk.remove(name)
    else:
        record = HEADER_BYTES + SIZE
        file[:record], file[record : 2 * record] = file[record : 2 * record], file[:record]
    for again in (swap, swap_on(disk)):
        for number in range(4):
            found = got(again, number)
            assert found is None or bytes(found) == content(number)
            assert found is not None or not again.has(key(number)), "it is asked for only once"


def test_pages_that_follow_each_other_are_fetched_ahead_in_one_go() -> None:
    disk = Disk()
    swap = swap_on(disk)
    for number in range(6):
        swap.put(key(number), content(number))
    swap.read_ahead([key(number) for number in (2, 1, 5, 99, 3)])
    record = HEADER_BYTES + SIZE
    name = disk.names()[0]
    assert disk.ahead == [(name, record, 3 * record), (name, 5 * record, record)]
    disk.read_error = OSError(errno.EIO, "Input/output error")
    swap.read_ahead([key(0)])


def test_pages_are_read_in_the_order_on_the_disk_and_answered_in_that_of_the_question() -> None:
    disk = Disk()
    swap = swap_on(disk)
    for number in range(4):
        swap.put(key(number), content(number))
    targets = [(key(number), memoryview(bytearray(SIZE))) for number in (3, 99, 0, 2)]
    reads = swap.read(targets, now=lambda: 0.0)
    assert reads.wait() == [True, False, True, True]
    assert disk.offsets == sorted(disk.offsets)
    assert [bytes(target) for _, target in targets] == [
        content(3),
        bytes(SIZE),
        content(0),
        content(2),
    ]


@pytest.mark.parametrize("how", ["exchange rows", "cancel out in a column", "lose a row"])
def test_damage_that_a_sum_would_not_see_is_found_out(how: str) -> None:
    disk = Disk()
    swap = swap_on(disk)
    page = b"".join(bytes([row + 1]) * 4096 for row in range(4)) + b"tail"
    swap.put(key(1), page)
    assert got(swap, 1, len(page)) == page
    [file] = disk.files.values()
    rows = [slice(HEADER_BYTES + 4096 * row, HEADER_BYTES + 4096 * (row + 1)) for row in range(4)]
    if how == "exchange rows":
        file[rows[0]], file[rows[1]] = file[rows[1]], file[rows[0]]
    elif how == "cancel out in a column":
        file[rows[0].start] += 1
        file[rows[1].start] -= 1
    else:
        file[rows[2]] = bytes(4096)
    assert got(swap, 1, len(page)) is None


def test_segments_stay_open_between_reads_and_a_deleted_one_is_let_go(tmp_path: Path) -> None:
    folder = SegmentFolder(tmp_path)
    names = [f"{number:08}.seg" for number in range(2 * MAX_OPEN_FILES)]
    for name in names:
        folder.append(name, [name.encode()])
    target = memoryview(bytearray(12))
    for name in names + names:
        assert folder.read_into(name, 0, [target[:5], target[5:]]) == 12
        assert bytes(target) == name.encode()
    folder.remove(names[-1])
    with pytest.raises(FileNotFoundError):
        folder.read_into(names[-1], 0, [target])
    folder.close()
    assert folder.read_into(names[0], 4, [target]) == 8
    folder.close()


def test_host_memory_keeps_pages_from_the_disk_until_others_push_them_out() -> None:
    disk = Disk()
    swap = swap_on(disk, host_bytes=3 * SIZE)
    for number in range(3):
        swap.put(key(number), content(number))
    assert disk.files == {}
    assert [got(swap, number) for number in range(3)] == [content(number) for number in range(3)]
    swap.put(key(3), content(3))
    assert swap.status.num_written == 1
    assert disk.offsets == []
    assert got(swap, 0) == content(0), "pushed out, so it comes from the disk"
    assert len(disk.offsets) == 1
    assert got(swap, 0) == content(0), "and stays in memory for a while"
    assert len(disk.offsets) == 1
    assert swap.status.num_bytes == 3 * SIZE + 2 * (SIZE + HEADER_BYTES)


def test_what_host_memory_holds_is_written_before_the_kernel_ends() -> None:
    disk = Disk()
    swap = swap_on(disk, host_bytes=100 * SIZE)
    for number in range(5):
        swap.put(key(number), content(number))
    swap.close()
    assert [got(swap_on(disk), number) for number in range(5)] == [content(n) for n in range(5)]
    swap_on(disk).clear()
    assert not swap_on(disk).has(key(1))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), st.integers(0, 5))
def test_whatever_tier_a_page_is_in_it_comes_back_whole(
    moves: list[tuple[bool, int]], num_in_host: int
) -> None:
    disk = Disk()
    swap = swap_on(disk, host_bytes=num_in_host * SIZE)
    known = set()
    for is_put, number in moves:
        if is_put:
            swap.put(key(number), content(number))
            known.add(number)
        assert (got(swap, number) == content(number)) is (number in known)
    swap.flush()
    assert {number for number in range(10) if swap_on(disk).has(key(number))} == known


def test_a_page_of_another_size_is_none() -> None:
    swap = swap_on(Disk())
    swap.put(key(1), content(1))
    assert got(swap, 1, SIZE + 1) is None
    assert swap.status.num_bad == 1


def test_a_full_disk_turns_writing_off_and_what_is_stored_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk(capacity=3 * (SIZE + HEADER_BYTES) - 10)
    swap = swap_on(disk)
    for number in range(5):
        swap.put(key(number), content(number))
    assert [swap.has(key(n)) for n in range(5)] == [True, True, False, False, False]
    assert "No space left" in swap.status.warning
    assert "Swap is off" in caplog.text
    assert got(swap_on(disk), 1) == content(1)
    assert not swap_on(disk).has(key(2)), "the torn page is not in the index"


def test_a_disk_that_cannot_be_read_has_no_pages() -> None:
    disk = Disk()
    swap = swap_on(disk)
    swap.put(key(1), content(1))
    disk.read_error = OSError(errno.EIO, "Input/output error")
    assert got(swap, 1) is None
    assert not swap_on(disk).has(key(1))


def test_the_least_recently_used_segment_goes_when_there_is_no_room() -> None:
    record = SIZE + HEADER_BYTES
    swap = swap_on(Disk(), max_bytes=4 * record)
    for number in range(4):
        swap.put(key(number), content(number))
    got(swap, 0)
    swap.put(key(4), content(4))
    assert [swap.has(key(n)) for n in range(5)] == [True, False, True, True, True]
    assert swap.status.num_bytes <= 4 * record


def test_a_page_larger_than_the_swap_is_let_go() -> None:
    swap = swap_on(Disk(), max_bytes=10)
    swap.put(key(1), content(1))
    assert not swap.has(key(1))
    assert swap.is_writable


def test_segments_lie_in_a_folder_that_is_the_users_alone(tmp_path: Path) -> None:
    swap = Swap.in_folder(tmp_path / "swap")
    for number in range(50):
        swap.put(key(number), content(number))
    swap.close()
    assert (tmp_path / "swap").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "swap").iterdir())
    again = Swap.in_folder(tmp_path / "swap")
    assert [got(again, n) for n in range(50)] == [content(n) for n in range(50)]
    again.clear()
    assert not os.listdir(tmp_path / "swap")
    again.close()


def test_files_that_are_not_segments_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    swap = Swap(SegmentFolder(tmp_path), max_bytes=1, writer=AtOnce(), readers=AtOnce())
    swap.clear()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_swap_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="swap folder"):
        Swap.in_folder(tmp_path / "file" / "swap")
