"""Files of records: what was appended comes back, whatever was cut, overlaps, was damaged, or is in use."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convla.experiments import Study, read_outcomes, records, session
from convla.experiments.folder import ResultsError, ResultsFolder
from convla.experiments.records import HEADER, DamagedRecordError, RecordFile, key_of
from convla.experiments.session import Watcher
from tests.interrupts import interrupted

KEY = key_of("mine")


def _rows(start: int, stop: int) -> list[np.ndarray]:
    return [np.arange(start, stop, dtype=float), np.arange(2 * start, 2 * stop).reshape(-1, 2)]


def _filled(path: Path, *spans: tuple[int, int]) -> RecordFile:
    file = RecordFile(path, KEY)
    for span in spans:
        file.append(*span, _rows(*span))
    file.flush()
    return file


def _read(file: RecordFile, size: int) -> None:
    """Every row once, in order."""
    pieces = [arrays for _, arrays in file.rows(0, size)]
    for index, wanted in enumerate(_rows(0, size)):
        np.testing.assert_array_equal(np.concatenate([piece[index] for piece in pieces]), wanted)


class TestRows:
    def test_they_come_back_in_order_whoever_reads(self, tmp_path: Path) -> None:
        written = _filled(tmp_path / "a", (7, 12), (0, 3), (3, 7))
        for file in (written, RecordFile(tmp_path / "a", KEY)):
            assert (len(file), file.missing(12), file.missing(15)) == (3, [], [(12, 15)])
            _read(file, 12)
            _read(file, 5)

    def test_records_that_overlap_count_once(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for trial in range(30):
            ends = np.sort(rng.integers(0, 40, (rng.integers(1, 9), 2)), axis=1)
            file = _filled(tmp_path / str(trial), *((int(a), int(b) + 1) for a, b in ends))
            covered = np.zeros(50, dtype=bool)
            for a, b in ends:
                covered[a : b + 1] = True
            missing = np.zeros(50, dtype=bool)
            for a, b in file.missing(50):
                assert a < b
                missing[a:b] = True
            np.testing.assert_array_equal(missing, ~covered)
            whole = int(np.argmin(covered))
            if whole:
                _read(file, whole)
            with pytest.raises(IndexError, match=f"lacks row {whole}"):
                _read(file, 50)

    def test_records_of_another_key_are_passed_over_and_kept(self, tmp_path: Path) -> None:
        other = RecordFile(tmp_path / "a", key_of("other"))
        other.append(0, 5, [np.zeros(5)])
        mine = RecordFile(tmp_path / "a", KEY)
        assert (len(mine), mine.damaged, mine.missing(5)) == (0, 0, [(0, 5)])
        mine.append(0, 5, _rows(0, 5))
        assert len(RecordFile(tmp_path / "a", key_of("other"))) == len(RecordFile(tmp_path / "a", KEY)) == 1


class TestDamage:
    @pytest.mark.command
    def test_every_flipped_byte_is_found_and_costs_one_record(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        spans = ((0, 2), (2, 4), (4, 6))
        _filled(path, *spans)
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            file = RecordFile(path, KEY)
            if not file.missing(6):  # its header is whole
                with pytest.raises(DamagedRecordError):
                    _read(file, 6)
            assert file.damaged == 1, place
            (span,) = file.missing(6)
            assert span in spans
            file.append(*span, _rows(*span))
            _read(file, 6)
            _read(RecordFile(path, KEY), 6)

    def test_an_end_that_was_cut_off_is_taken_off(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        _filled(path, (0, 2), (2, 4))
        whole = path.read_bytes()
        for size in range(len(whole) // 2 + 1, len(whole), 11):
            path.write_bytes(whole[:size])
            file = RecordFile(path, KEY)
            assert (file.damaged, file.missing(4)) == (1, [(2, 4)])
            file.append(2, 4, _rows(2, 4))
            assert path.read_bytes() == whole

    def test_damaged_records_are_all_found_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        file = _filled(path, *((row, row + 1) for row in range(8)))
        data, size = bytearray(path.read_bytes()), path.stat().st_size // 8
        for row in (1, 2, 6):
            data[row * size + HEADER + 20] ^= 1
        path.write_bytes(data)
        read = []
        with pytest.raises(DamagedRecordError):
            read.extend(stop for stop, _ in file.rows(0, 8))
        assert (read, file.damaged, file.missing(8)) == ([1], 3, [(1, 3), (6, 7)])

    def test_rows_that_other_records_have_are_not_lost_with_a_damaged_one(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        _filled(path, (0, 2), (2, 8), (8, 9))
        data = bytearray(path.read_bytes())
        place = data.index(_rows(2, 8)[0].tobytes())
        data[place] ^= 1
        path.write_bytes(data)
        file = RecordFile(path, KEY)
        with pytest.raises(DamagedRecordError):
            _read(file, 9)
        for span in ((2, 3), (3, 7), (7, 8)):  # run again in other parts, none of which reaches as far
            file.append(*span, _rows(*span))
        _read(file, 9)
        again = RecordFile(path, KEY)  # which does not know yet
        assert [stop for stop, _ in again.rows(0, 9)] == [2, 3, 7, 8, 9]
        assert again.damaged == 1

    def test_a_header_that_leads_backwards_is_none(self, tmp_path: Path) -> None:
        fields = records.FIELDS.pack(records.MAGIC, KEY, 0, 2, -HEADER, bytes(16))
        (tmp_path / "a").write_bytes(fields + hashlib.blake2b(fields, digest_size=records.CHECK).digest())
        file = RecordFile(tmp_path / "a", KEY)
        assert (len(file), file.damaged) == (0, 1)


class TestFolders:
    @pytest.mark.command
    def test_two_runs_in_one_folder_are_refused(self, tmp_path: Path) -> None:
        study = Study(N=3, M=8, loss="kernel", learning_rate=0.01, iterations=2, repetitions=10)
        script = (
            "import sys; from pathlib import Path; from convla.experiments.folder import ResultsFolder\n"
            f"with ResultsFolder({str(tmp_path)!r}, {study.identity!r}).locked():\n"
            "    print('in', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            with pytest.raises(
                ResultsError, match=f"in use by another run, process {other.pid} on .*: wait for its end"
            ):
                study.run(tmp_path)
            other.kill()
        study.run(tmp_path)  # a run that was killed holds nothing

    def test_a_link_in_place_of_a_file_is_not_followed(self, tmp_path: Path) -> None:
        folder = ResultsFolder(tmp_path / "out", {})
        (tmp_path / "victim").write_text("precious")
        (folder.path / "runs" / "unit.records").symlink_to(tmp_path / "victim")
        with pytest.raises(ResultsError, match=r"unit\.records cannot be read"):
            folder.records("unit", {})
        (folder.path / "runs" / "lock").symlink_to(tmp_path / "victim")
        with pytest.raises(ResultsError, match="cannot be written"), folder.locked():
            pass
        assert (tmp_path / "victim").read_text() == "precious"


class _Told(Watcher):
    def __init__(self) -> None:
        self.planned: list[tuple[int, int]] = []
        self.ran: list[tuple[int, int]] = []

    def plan(self, parts: int, saved: int) -> None:
        self.planned.append((parts, saved))

    def finish(self, part) -> None:  # type: ignore[no-untyped-def]
        self.ran.append((part.start, part.stop))


class TestResuming:
    STUDY = Study(N=3, M=8, loss="kernel", learning_rate=0.01, iterations=2, repetitions=100)

    def _resumed(self, folder: Path, study: Study, part: int) -> _Told:
        told = _Told()
        study.run(folder, part=part, resume=True, watcher=told)
        study.run(folder.with_name("whole"))
        assert (folder / "results.csv").read_bytes() == (folder.with_name("whole") / "results.csv").read_bytes()
        return told

    def test_repetitions_count_whatever_part_they_were_cut_in(self, tmp_path: Path) -> None:
        folder = tmp_path / "cut"
        self.STUDY.repeated(50).run(folder, part=20)
        told = self._resumed(folder, self.STUDY, 32)
        assert told.planned == [(6, 3)]
        assert told.ran == [(50, 64), (64, 96), (96, 100)]
        assert sum(outcome.repetitions for _, outcome in read_outcomes(folder)) == 100
        assert self._resumed(folder, self.STUDY.repeated(30), 7).ran == []

    def test_a_setting_is_found_in_another_study(self, tmp_path: Path) -> None:
        folder = tmp_path / "grown"
        self.STUDY.run(folder)
        grown = Study(N=[5, 3], M=8, loss="kernel", learning_rate=0.01, iterations=2, repetitions=100)
        assert self._resumed(folder, grown, 100).planned == [(2, 1)]

    def test_what_is_there_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.STUDY.run(tmp_path, part=10)
        read = []
        arrays = records._arrays
        monkeypatch.setattr(records, "_arrays", lambda file, place: read.append(place) or arrays(file, place))
        self.STUDY.run(tmp_path, part=10, resume=True)
        assert len(read) == len(set(read)) == 10

    def test_damaged_rows_are_run_again_and_counted_once(self, tmp_path: Path) -> None:
        folder = tmp_path / "damaged"
        self.STUDY.run(folder, part=10)
        (path,) = (folder / "runs").glob("*.records")
        data, size = bytearray(path.read_bytes()), path.stat().st_size // 10
        data[3 * size + HEADER + 200] ^= 1  # arrays of the fourth, and the header of the eighth
        data[7 * size + 9] ^= 1
        path.write_bytes(data)
        told = self._resumed(folder, self.STUDY, 10)
        assert sorted(told.ran) == [(30, 40), (70, 80)]

    def test_a_disk_that_keeps_nothing_whole_ends_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(records, "_arrays", lambda *_: None)
        with pytest.raises(ResultsError, match="what is written there comes back as something else"):
            self.STUDY.run(tmp_path)

    def test_an_interrupt_while_it_is_told_what_ended_tells_nothing_twice(self, tmp_path: Path) -> None:
        class Interrupted(_Told):
            def finish(self, part) -> None:  # type: ignore[no-untyped-def]
                super().finish(part)
                if len(self.ran) == 3:
                    raise KeyboardInterrupt

        told = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            self.STUDY.run(tmp_path, part=10, watcher=told)
        assert len(told.ran) == len(set(told.ran)) >= 3
        again = _Told()
        self.STUDY.run(tmp_path, part=10, resume=True, watcher=again)
        assert again.planned[0][1] >= len(told.ran)  # what was told as saved is
        assert not {*told.ran} & {*again.ran}
        self._is_whole(tmp_path)

    def test_an_interrupt_while_parts_are_handed_over_loses_none_that_was_told(self, tmp_path: Path) -> None:
        came, moment = True, 0
        while came:
            moment += 1
            folder, told = tmp_path / str(moment), _Told()
            run = functools.partial(self.STUDY.run, folder, part=20, watcher=told)
            came = interrupted(moment, run, session, functions=("hand_over",))
            again = _Told()
            self.STUDY.run(folder, part=20, resume=True, watcher=again)
            assert not {*told.ran} & {*again.ran}
            self._is_whole(folder)
        assert moment > 10

    @staticmethod
    def _is_whole(folder: Path) -> None:
        assert sum(outcome.repetitions for _, outcome in read_outcomes(folder)) == 100
