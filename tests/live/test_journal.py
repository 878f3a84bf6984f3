"""A journal replays to the same commands; a torn tail is its end, damage is found."""

from __future__ import annotations

import pathlib
import random
import struct
import zlib

import msgspec
import pytest

from tests.dispatch.dispatch_world import World, arrived, configured, factory, finished, up
from tokenworks.core.errors import ConfigInvalid, JournalInvalid
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.events import Ticked
from tokenworks.dispatch.journal_format import JOURNAL_FORMAT, commands_digest
from tokenworks.dispatch.journal_records import JournalEntry, JournalStart
from tokenworks.live.journal import JournalWriter, journal_files, read_journal, replay


def frame(payload: bytes) -> bytes:
    length = len(payload)
    return struct.pack("<II", length, zlib.crc32(payload, length)) + payload


def written(directory: pathlib.Path, seed: int = 3, steps: int = 120, **sizes: int) -> World:
    """A random world whose events are in a journal."""
    world = World(seed)
    for _ in range(steps):
        world.step()
    writer = JournalWriter(directory, **sizes)
    dispatcher = Dispatcher()
    for now_ns, event, commands in world.log:
        assert dispatcher.handle(now_ns, event) == commands
        writer.write(now_ns, event, commands, dispatcher)
    writer.close()
    return world


def offsets(data: bytes) -> list[int]:
    """Where each record begins, and the end."""
    found = [0]
    while found[-1] < len(data):
        found.append(found[-1] + 8 + struct.unpack_from("<I", data, found[-1])[0])
    return found


def test_what_was_written_is_read_and_replayed(tmp_path: pathlib.Path) -> None:
    world = written(tmp_path / "journal")
    (path,) = journal_files(tmp_path / "journal")
    start, *entries = read_journal(path)
    assert isinstance(start, JournalStart)
    assert (start.header.format, start.header.sequence) == (JOURNAL_FORMAT, 1)
    assert start.snapshot == Dispatcher().snapshot()
    assert [(e.now_ns, e.event) for e in entries if isinstance(e, JournalEntry)] == [
        (now_ns, event) for now_ns, event, _ in world.log
    ]
    result = replay(path)
    assert result.first_difference is None
    assert result.events == len(world.log)
    assert result.commands == sum(len(commands) for _, _, commands in world.log)


def test_every_file_replays_alone(tmp_path: pathlib.Path) -> None:
    world = written(tmp_path, bytes_max=2_000, files_max=1_000)
    results = [replay(path) for path in journal_files(tmp_path)]
    assert len(results) > 3
    assert all(result.first_difference is None for result in results)
    assert sum(result.events for result in results) == len(world.log)


def test_old_files_go(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    written(tmp_path, bytes_max=500, files_max=2)
    first, last = journal_files(tmp_path)
    number = int(last.stem[-10:])
    assert int(first.stem[-10:]) == number - 1
    assert replay(first).first_difference is None
    assert (tmp_path / "notes.txt").exists()
    written(tmp_path, steps=0)
    assert journal_files(tmp_path)[-1].name == f"journal-{number + 1:010d}.twj"


def test_a_journal_may_begin_in_the_middle(tmp_path: pathlib.Path) -> None:
    dispatcher = factory(up(), arrived("r"))
    writer = JournalWriter(tmp_path)
    for event in (arrived("s"), finished("r"), Ticked()):
        writer.write(0, event, dispatcher.handle(0, event), dispatcher)
    writer.flush()
    (path,) = journal_files(tmp_path)
    assert replay(path).events == 2
    assert replay(path).first_difference is None
    writer.close()
    writer.close()


def test_nothing_written_is_no_file(tmp_path: pathlib.Path) -> None:
    writer = JournalWriter(tmp_path / "a" / "b")
    writer.flush()
    writer.close()
    assert journal_files(tmp_path / "a" / "b") == []
    assert journal_files(tmp_path / "missing") == []


def test_what_is_not_flushed_may_be_lost_but_replays(tmp_path: pathlib.Path) -> None:
    dispatcher, writer = Dispatcher(), JournalWriter(tmp_path)
    writer.write(0, configured(), dispatcher.handle(0, configured()), dispatcher)
    (path,) = journal_files(tmp_path)
    assert replay(path).events == 0
    writer.close()
    assert replay(path).events == 1


def test_a_file_that_a_flush_has_filled_is_followed_by_another(tmp_path: pathlib.Path) -> None:
    dispatcher, writer = Dispatcher(), JournalWriter(tmp_path, bytes_max=4_000)
    writer.write(0, configured(), dispatcher.handle(0, configured()), dispatcher)
    for now_ns in range(300):  # never so many between two flushes as are encoded at once
        writer.write(now_ns, Ticked(), dispatcher.handle(now_ns, Ticked()), dispatcher)
        writer.flush()
    writer.close()
    files = journal_files(tmp_path)
    assert len(files) > 1
    assert sum(replay(path).events for path in files) == 301
    assert max(path.stat().st_size for path in files[1:]) < 4_000 + 2 * files[0].stat().st_size


def test_events_wait_to_be_encoded_together(tmp_path: pathlib.Path) -> None:
    dispatcher, writer = Dispatcher(), JournalWriter(tmp_path)
    writer.write(0, configured(), dispatcher.handle(0, configured()), dispatcher)
    (path,) = journal_files(tmp_path)
    while path.stat().st_size < 20_000:  # a buffer's worth is handed to the system by itself
        writer.write(1, Ticked(), dispatcher.handle(1, Ticked()), dispatcher)
    assert not replay(path).first_difference
    writer.close()
    result = replay(path)
    assert result.first_difference is None
    assert result.events == dispatcher.counts()["events"]


def test_a_tail_torn_anywhere_is_the_end(tmp_path: pathlib.Path) -> None:
    written(tmp_path, steps=6)
    (path,) = journal_files(tmp_path)
    data = path.read_bytes()
    starts = offsets(data)
    events = replay(path).events
    edges = {start + by for start in starts for by in (-1, 0, 1, 4, 8, 9)}
    for size in sorted((edges | set(range(0, len(data), 41))) & set(range(len(data)))):
        path.write_bytes(data[:size])
        whole = sum(start <= size for start in starts[1:])
        result = replay(path)
        assert result.first_difference is None
        # Header and snapshot, then an event and its digest in turn.
        assert result.events == max(0, whole - 1) // 2 <= events


def test_an_event_without_its_answer_is_read(tmp_path: pathlib.Path) -> None:
    written(tmp_path, steps=6)
    (path,) = journal_files(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: offsets(data)[-2]])
    entry = list(read_journal(path))[-1]
    assert isinstance(entry, JournalEntry)
    assert entry.commands_digest is None


@pytest.mark.parametrize("zeros", [1, 8, 5_000])
def test_blocks_that_were_never_filled_are_a_torn_tail(tmp_path: pathlib.Path, zeros: int) -> None:
    world = written(tmp_path, steps=6)
    (path,) = journal_files(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(zeros))
    assert replay(path).events == len(world.log)


def test_a_changed_byte_in_the_middle_is_found(tmp_path: pathlib.Path) -> None:
    written(tmp_path, steps=6)
    (path,) = journal_files(tmp_path)
    data = path.read_bytes()
    last = offsets(data)[-2]
    dice = random.Random(5)
    for at in range(last):
        damaged = bytearray(data)
        damaged[at] ^= dice.randrange(1, 256)
        path.write_bytes(damaged)
        with pytest.raises(JournalInvalid):
            replay(path)
    for at in range(last, len(data)):  # in the last record, a length looks like a torn tail
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        if at >= last + 4:
            with pytest.raises(JournalInvalid):
                replay(path)


HEADER = b"H" + msgspec.msgpack.encode({"format": 1, "package_version": "x", "sequence": 1})
SNAPSHOT = b"S" + Dispatcher().snapshot()
EVENT = b"E" + msgspec.msgpack.encode((0, configured()))
DIGEST = b"C" + commands_digest([])


@pytest.mark.parametrize(
    ("payloads", "said"),
    [
        ([SNAPSHOT], "does not begin with a journal header"),
        ([b"Hwrong"], "cannot be read"),
        ([HEADER.replace(b"format\x01", b"format\x02")], "journal format 2"),
        ([HEADER, EVENT], "does not begin with a snapshot"),
        ([HEADER, b"S", EVENT], "this version cannot read"),
        ([HEADER, SNAPSHOT, DIGEST], "out of place"),
        ([HEADER, SNAPSHOT, EVENT, DIGEST, DIGEST], "out of place"),
        ([HEADER, SNAPSHOT, EVENT, HEADER], "out of place"),
        ([HEADER, SNAPSHOT, b"E\xc0", EVENT], "cannot be read"),
        ([HEADER, SNAPSHOT, b"X"], "damaged"),
    ],
)
def test_records_out_of_place_are_found(
    tmp_path: pathlib.Path, payloads: list[bytes], said: str
) -> None:
    path = tmp_path / "journal-0000000001.twj"
    path.write_bytes(b"".join(frame(payload) for payload in payloads))
    with pytest.raises(JournalInvalid, match=said):
        replay(path)


def test_an_event_whose_answer_was_lost_is_followed_by_another(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "journal-0000000001.twj"
    ticked = b"E" + msgspec.msgpack.encode((1, Ticked()))
    path.write_bytes(b"".join(map(frame, (HEADER, SNAPSHOT, EVENT, ticked, DIGEST))))
    assert replay(path).events == 2


def test_the_first_difference_is_shown(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "journal-0000000001.twj"
    wrong = b"C" + b"another!"
    path.write_bytes(b"".join(map(frame, (HEADER, SNAPSHOT, EVENT, wrong, EVENT, wrong))))
    result = replay(path)
    assert result.events == 0
    difference = result.first_difference
    assert difference is not None
    assert (difference.index, difference.event, difference.commands) == (0, configured(), [])
    assert difference.digest_recorded == b"another!"
    assert difference.digest_replayed == commands_digest([])


@pytest.mark.parametrize("sizes", [{"bytes_max": 0}, {"files_max": 0}])
def test_sizes_are_positive(tmp_path: pathlib.Path, sizes: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        JournalWriter(tmp_path, **sizes)


def test_a_folder_that_is_none_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigInvalid, match="cannot be used"):
        JournalWriter(tmp_path / "file")

    def refuse(_: pathlib.Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    with pytest.raises(ConfigInvalid, match="Permission denied"):
        journal_files(tmp_path)
