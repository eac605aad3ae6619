"""datasets/generic: labels from one moment to another, ELAN's and Datavyu's among them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_recordings import (
    add_images,
    column,
    make_clip,  # noqa: F401 – a fixture
    make_folder,  # noqa: F401 – a fixture
    make_raw,  # noqa: F401 – a fixture
    read,
    values,
    write,
    write_video,
)

from aupipe.facs import AUSet
from aupipe.schema import DataError

SPAN = "media_id,path,kind,subject_id,coded_aus,coded_from_s,coded_to_s\na,videos/a.mp4,video,P1,{},{},{}\n"


def test_events_in_a_coded_span(raw):
    """Frames of 40 ms, coded from 0.08 s to 0.36 s, which are frames 2 to 8; AU 4 is not coded."""
    write(raw / "media.csv", SPAN.format("1+12", 0.08, 0.36))
    rows = "a,AU12,0.16,0.28,0.2,C,L\na,1,0.24,0.24,,,\n"
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s,apex_s,intensity,side\n" + rows)
    table = read(raw, preset="interval", strict=True)
    no = None
    assert values(table, "AU12_c") == [no, no, 0, 0, 1, 1, 1, 0, 0, no]
    assert values(table, "AU12_r") == [no, no, 0, 0, 3, 3, 3, 0, 0, no]
    assert values(table, "AU01_c") == [no, no, 0, 0, 0, 0, 1, 0, 0, no], "an event at one moment is in one frame"
    assert values(table, "AU01_r") == [no, no, 0, 0, 0, 0, no, 0, 0, no], "present, but not scored"
    assert table["AU04_c"].null_count == 10


def test_rounded_bounds_do_not_move_an_event(raw):
    write_video(raw / "videos/a.mp4", 30, rate=30)
    bounds = [(first, last) for first in range(28) for last in range(first + 1, 30)]
    write(raw / "media.csv", SPAN.format("1", "", ""))
    for first, last in random.Random(0).sample(bounds, 12):
        write(raw / "labels.csv", f"media_id,au,onset_s,offset_s\na,1,{first / 30:.3f},{last / 30:.3f}\n")
        assert values(read(raw, preset="interval", strict=True), "AU01_c") == [int(first <= n < last) for n in range(30)]


def test_without_coded_aus_absence_is_not_known(raw, caplog):
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,12,0.1,0.2\n")
    table = read(raw, preset="interval")
    assert values(table, "AU12_c").count(1) == 3
    assert values(table, "AU12_c").count(0) == 0
    assert "only presences are known" in caplog.text
    with pytest.raises(DataError, match="only presences are known"):
        read(raw, preset="interval", strict=True)
    assert values(read(raw, preset="interval", coded_aus=[12], strict=True), "AU12_c").count(0) == 7


def test_overlapping_events_merge_by_the_larger(raw):
    write(raw / "media.csv", SPAN.format("1+12", "", ""))
    rows = ["a,12,0,0.20,2", "a,12,0.12,0.28,4", "a,12,0.16,0.20,", "a,12L,0.32,0.36,1"]
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s,intensity\n" + "\n".join(rows))
    table = read(raw, preset="interval", threshold=2)
    assert values(table, "AU12_r") == [2, 2, 2, 4, 4, 4, 4, 0, 1, 0]
    assert values(table, "AU12_c") == [1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "an intensity of 1 is below the threshold"


def test_events_beyond_the_end_are_clipped(raw, caplog):
    write(raw / "media.csv", SPAN.format("1", "", ""))
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,1,0.2,0.41\n")
    expected = [0] * 5 + [1] * 5
    assert values(read(raw, preset="interval", strict=True), "AU01_c") == expected, "less than a frame is no oddity"
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,1,0.2,7\na,1,8,9\n")
    assert values(read(raw, preset="interval"), "AU01_c") == expected
    assert "2 events reach beyond the end of 'a'; clipped" in caplog.text
    with pytest.raises(DataError, match="reach beyond the end"):
        read(raw, preset="interval", strict=True)


def test_events_outside_the_coded_span(raw, caplog):
    write(raw / "media.csv", SPAN.format("1", "0.2", ""))
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,1,0.1,0.3\n")
    assert values(read(raw, preset="interval"), "AU01_c") == [None] * 5 + [1, 1, 0, 0, 0]
    assert "outside the coded span" in caplog.text


def test_coded_recording_without_an_event(raw, clip):
    write(raw / "videos/b.mp4", clip)
    write(raw / "media.csv", "media_id,path,subject_id,coded_aus\na,videos/a.mp4,P1,1\nb,videos/b.mp4,P2,1\n")
    write(raw / "labels.csv", "media_id,au,onset_s,offset_s\na,1,0,1\n")
    table = read(raw, preset="interval", aus=AUSet((1,)))
    assert values(table, "AU01_c")[10:] == [0] * 10, "it says itself that it was coded"
    write(raw / "media.csv", "media_id,path,subject_id\na,videos/a.mp4,P1\nb,videos/b.mp4,P2\n")
    table = read(raw, preset="interval", aus=AUSet((1,)), coded_aus=[1])
    assert values(table, "AU01_c")[10:] == [None] * 10, "nobody says that it was coded"
    for name in "ab":
        write(raw / f"l/{name}.csv", "au,onset_s,offset_s\n" + "1,0,0.2\n" * (name == "a"))
    table = read(raw, preset="interval", aus=AUSet((1,)), coded_aus=[1], labels="l/{media_id}.csv", strict=True)
    assert values(table, "AU01_c") == [1] * 5 + [0] * 15, "it has a file, and that is empty"


def test_events_in_frame_numbers_include_both_ends(folder):
    write(folder / "labels.csv", "media_id,aus,OnsetFrame,OffsetFrame\na,4+L12C,6,8\n")
    table = read(folder, preset="facs_strings", coded_aus=[1, 4, 12], strict=True)
    assert column(table, "AU12_r") == {5: 0, 6: 3, 7: 3, 8: 3, 9: 0, 10: 0}
    assert column(table, "AU04_c") == {5: 0, 6: 1, 7: 1, 8: 1, 9: 0, 10: 0}
    assert column(table, "AU01_c") == dict.fromkeys(range(5, 11), 0)


EVENTS = "media_id,au,onset_s,offset_s,intensity,side\na,12,0.1,0.2,2,L\na,1,0.1,0.2,,\n"
EVENT_ERRORS = {
    "backwards": (EVENTS.replace("a,1,0.1", "a,1,0.3"), "line 3: the offset 0.2 lies before the onset 0.3"),
    "no AU": (EVENTS.replace("a,1,", "a,smile,"), "line 3: 'smile' is no AU"),
    "not coded": (EVENTS.replace("a,1,", "a,4,"), "line 3: AU 4 is coded here, but not among the coded_aus"),
    "intensity": (EVENTS.replace(",2,L", ",7,L"), "line 2: '7' is no intensity of AU 12"),
    "side": (EVENTS.replace(",2,L", ",2,up"), "line 2: 'up' is no side"),
    "onset": (EVENTS.replace("a,1,0.1", "a,1,soon"), "line 3: 'soon' is not a time"),
    "negative": (EVENTS.replace("a,1,0.1", "a,1,-1"), "line 3: '-1' is not a time"),
    "no onset": (EVENTS.replace("onset_s", "start"), "line 1: there are no columns onset_s and offset_s"),
    "no au": (EVENTS.replace(",au,", ",unit,"), "line 1: there is no column au"),
}


@pytest.mark.parametrize("error", EVENT_ERRORS)
def test_malformed_events_name_file_and_line(raw, error):
    content, message = EVENT_ERRORS[error]
    write(raw / "labels.csv", content)
    with pytest.raises(DataError, match=rf"labels\.csv, {message}"):
        read(raw, preset="interval", coded_aus=[1, 12])


ELAN_NAMES = ["Tier", "Participant", "Begin Time - hh:mm:ss.ms", "Begin Time - ss.msec", "End Time - hh:mm:ss.ms"]
ELAN_NAMES += ["End Time - ss.msec", "Duration - hh:mm:ss.ms", "Duration - ss.msec", "Annotation"]


def elan(*annotations, names=True):
    rows = [ELAN_NAMES] if names else []
    for tier, begin, end, value in annotations:
        clocks = [f"00:00:{begin:06.3f}", f"{begin}", f"00:00:{end:06.3f}", f"{end}", "00:00:00.100", "0.1"]
        rows.append([tier, "", *clocks, value])
    return "\n".join("\t".join(row) for row in rows) + "\n"


@pytest.mark.parametrize("names", [True, False])
def test_elan(raw, caplog, names):
    text = elan(("AU12", 0.08, 0.2, "C"), ("1L", 0.0, 0.08, ""), ("Speech", 0, 0.4, 'he said "6"'), names=names)
    write(raw / "a.txt", text)
    table = read(raw, preset="elan", labels="a.txt", coded_aus=[1, 12])
    assert values(table, "AU12_r") == [0, 0, 3, 3, 3, 0, 0, 0, 0, 0]
    assert values(table, "AU01_c") == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert "the tiers Speech hold no FACS codes" in caplog.text


def test_elan_values_as_facs_strings(raw):
    write(raw / "a.txt", elan(("FACS", 0.0, 0.2, "4+12C"), ("FACS", 0.2, 0.4, "1?+12")).replace("\t\t", "\tp\t"))
    table = read(raw, preset="elan", labels="a.txt", coded_aus=[1, 4, 12], strict=True)
    assert values(table, "AU01_c") == [0] * 5 + [None] * 5
    assert values(table, "AU04_c") == [1] * 5 + [0] * 5
    assert values(table, "AU12_r") == [3] * 5 + [None] * 5
    write(raw / "a.txt", elan(("codes", 0.0, 0.2, "4+12C")))
    assert values(read(raw, preset="elan", labels="a.txt", tiers=["Codes"]), "AU12_c")[:6] == [1] * 5 + [None]
    with pytest.raises(DataError, match=r"a\.txt has no tier of an AU among 'codes'.*option tiers"):
        read(raw, preset="elan", labels="a.txt")
    write(raw / "a.txt", elan(("AU12", 0.0, 0.2, "wide")))
    with pytest.raises(DataError, match=r"a\.txt, line 2: 'wide' is no intensity of AU 12"):
        read(raw, preset="elan", labels="a.txt")
    assert values(read(raw, preset="elan", labels="a.txt", unknown_codes=["wide"], coded_aus=[12]), "AU12_c")[:6] == [
        None
    ] * 5 + [0]


def test_elan_that_cannot_be_read(raw):
    write(raw / "a.txt", "AU12\t0.1\t0.2\tC\n")
    with pytest.raises(DataError, match=r"a\.txt has no begin and end times as hh:mm:ss\.ms"):
        read(raw, preset="elan", labels="a.txt")
    write(raw / "a.txt", elan(("AU12", 0.0, 0.2, "C")).replace("00:00:00.000", "noon"))
    with pytest.raises(DataError, match=r"a\.txt, line 2: 'noon' is not a time"):
        read(raw, preset="elan", labels="a.txt")


def test_datavyu(raw):
    write(raw / "long.csv", "file,column,onset,offset,ordinal,code01\na.opf,AU12,80,200,1,3\na.opf,AU1,0,80,1,x\n")
    expected = [0, 0, 3, 3, 3, 0, 0, 0, 0, 0]
    table = read(raw, preset="datavyu", labels="long.csv", coded_aus=[1, 12], strict=True)
    assert values(table, "AU12_r") == expected
    assert values(table, "AU01_c") == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    names = "AU12.ordinal,AU12.onset,AU12.offset,AU12.intensity,AU1.ordinal,AU1.onset,AU1.offset,AU1.code01"
    write(raw / "wide.csv", f"{names}\n1,80,200,3,1,0,40,\n,,,,2,40,80,x\n")
    assert read(raw, preset="datavyu", labels="wide.csv", coded_aus=[1, 12], strict=True) == table
    write(raw / "long.csv", "file,column,onset,offset,ordinal,code01\na.opf,AU12,80,20,1,3\n")
    with pytest.raises(DataError, match=r"long\.csv, line 2: the offset 0\.02 lies before the onset 0\.08"):
        read(raw, preset="datavyu", labels="long.csv")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 40), st.sampled_from([None, 1, 2, 5])), max_size=6),
    span=st.tuples(st.integers(0, 40), st.integers(41, 100)),
)
def test_events_are_what_a_plain_loop_makes_of_them(tmp_path_factory, events, span):
    """Times in hundredths of a second on eight images, ten a second; no event is too short to hold a frame's middle."""
    raw = tmp_path_factory.mktemp("events")
    add_images(raw / "a", range(8))
    first, last = (n / 100 for n in span)
    write(
        raw / "media.csv", f"media_id,path,subject_id,fps,coded_aus,coded_from_s,coded_to_s\na,a,P1,10,12,{first},{last}\n"
    )
    events = [(start, start + length + 10, level) for start, length, level in events]
    rows = [f"a,12,{start / 100},{stop / 100},{'' if level is None else level}" for start, stop, level in events]
    write(raw / "labels.csv", "\n".join(["media_id,au,onset_s,offset_s,intensity", *rows]))
    table = read(raw, aus=AUSet((12,)), preset="interval", threshold=2)
    scored = any(level is not None for *_, level in events)
    for n in range(8):
        middle = 10 * n + 5
        here = [level for start, stop, level in events if start <= middle < stop]
        levels = [level for level in here if level is not None]
        inside = span[0] <= middle < span[1]
        present = any(level is None or level >= 2 for level in here)
        assert values(table, "AU12_c")[n] == (int(present) if inside else None)
        expected = max(levels) if levels else 0 if scored and not here else None
        assert values(table, "AU12_r")[n] == (expected if inside else None)
