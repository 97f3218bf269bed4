"""Files that cannot be read: whatever is wrong with one, a command ends with code 2 and names it, and nothing of the process is left reading."""

import gzip
import io
import json
import re
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.command_line import as_json, call, payments_in
from support.waiting import LONG

from fraud_poc.core.events import Actor
from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import load_settings
from fraud_poc.data import readers
from fraud_poc.live.label_files import file_changes
from fraud_poc.live.predict import read_raw_events

HEAD = b"id,at,who,amount,fraud\n"
ROWS = b"".join(b"p%d,2025-03-02 10:00:00,ann,%d.50,0\n" % (n, n + 1) for n in range(50))
WIDE = b"w,2025-03-02 10:00:00," + b"x" * 40_000_000 + b",1,0\n"
FEW = b"\n".join(b"a," + bytes([97 + n % 26]) * 300 for n in range(60_000))


def parquet_bytes():
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": [str(n) for n in range(5000)], "at": ["2025-03-02"] * 5000}), sink)
    return sink.getvalue()


WHOLE = parquet_bytes()
# name of the file -> its bytes
BAD = {
    "empty.csv": b"",
    "empty.csv.gz": b"",
    "empty.parquet": b"",
    "blank.csv": b"\n\n\n",
    "cut.csv.gz": gzip.compress(HEAD + ROWS * 50)[:-30],
    "checksum.csv.gz": gzip.compress(HEAD + ROWS)[:-8] + b"\0" * 8,
    "tail.csv.gz": gzip.compress(HEAD + ROWS) + b"no gzip",
    "wide.csv": HEAD + ROWS + WIDE,
    "wide.csv.gz": gzip.compress(HEAD + ROWS * 4_000 + WIDE),
    "quote.csv": HEAD + ROWS + b'q,"' + WIDE,
    "widehead.csv": b"x" * 40_000_000 + HEAD,
    "utf16.csv": (HEAD + ROWS).decode().encode("utf-16"),
    "zeros.csv": b"\0" * 100_000,
    "noise.csv": bytes(range(256)) * 500,
    "noise.parquet": bytes(range(256)) * 500,
    "cut.parquet": WHOLE[:-20],
    "middle.parquet": WHOLE[:40] + b"\xff" * 400 + WHOLE[440:],
    "head.parquet": b"PAR1",
    "columns.csv": b"id,when,who\n1,2,3\n",
    "twice.csv": b"id,id,at,who,amount,fraud\n" + ROWS,
}


@pytest.fixture
def payments(root, tmp_path):
    return payments_in(root, tmp_path)


@pytest.mark.parametrize("name, content", [("plain.csv.gz", HEAD + ROWS), ("packed.CSV", gzip.compress(HEAD + ROWS))])
def test_the_content_says_whether_a_file_is_packed(payments, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert as_json("ingest", *payments, "--input", tmp_path / name)["events"] == 50


def given(folder, name):
    (folder / name).write_bytes(BAD[name])
    return folder / name


@pytest.mark.parametrize("name", BAD)
def test_ingest_of_a_bad_file_ends_with_2_and_names_it(payments, tmp_path, name):
    done = call("ingest", *payments, "--input", given(tmp_path, name))
    assert done.exit_code == 2 and name in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out" / "log" / "manifest.json").exists()


TEXTS = {  # of labels, and of orders to score
    "cut.csv.gz": gzip.compress(b"id,fraud\n" + b"p1,1\n" * 50)[:-10],
    "latin.csv": b"id,fraud\np1,\xe9\n",
    "wide.csv": b"id,fraud\np1," + b"1" * 200_000 + b"\n",
    "utf16.csv": "id,fraud\np1,1\n".encode("utf-16"),
    "cut.parquet": WHOLE[:-20],
    "noise.csv": bytes(range(256)) * 50,
}


@pytest.mark.parametrize("name", TEXTS)
def test_labels_and_orders_of_a_bad_file(root, payments, tmp_path, name):
    "`labels` and `score` read files row by row, by readers of their own: the same kinds of bad files, the same end."
    settings = load_settings(tmp_path / "payments.toml")
    (tmp_path / name).write_bytes(TEXTS[name])
    reader, path = EventReader(settings, bytes(32)), str(tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(name)):
        list(file_changes(settings, reader, path, Actor("command line")))
    with pytest.raises(ValueError, match=re.escape(name)):
        read_raw_events(path, reader)


def test_json_that_is_nested_without_end(payments, tmp_path):
    settings = load_settings(tmp_path / "payments.toml")
    (tmp_path / "deep.json").write_text('{"id": "p1"}\n{"id": ' + "[" * 100_000 + "\n")
    reader, path = EventReader(settings, bytes(32)), str(tmp_path / "deep.json")
    (_, problems) = [item for _, item in file_changes(settings, reader, path, Actor("command line"))]
    assert "JSON is nested too deeply" in problems[0].msg
    with pytest.raises(ValueError, match="deep.json cannot be read"):
        read_raw_events(path, reader)


@pytest.mark.parametrize("name", ["wide.csv.gz", "quote.csv", "cut.csv.gz", "middle.parquet"])
def test_the_process_ends_with_2_as_well(root, payments, tmp_path, name):
    "A thread of the reader that outlives the command would abort the interpreter: exit code 134."
    command = [sys.executable, "-c", "from fraud_poc.cli import app; app()", "ingest", *map(str, payments)]
    ended = subprocess.run(
        [*command, "--input", given(tmp_path, name)], cwd=root, capture_output=True, text=True, timeout=LONG
    )
    assert ended.returncode == 2 and name in ended.stderr and "Fatal" not in ended.stderr, ended.stderr[-2_000:]


class Slow(io.RawIOBase):
    "A file whose reads take long, and are counted."

    reads = 0

    def __init__(self, content):
        self.content = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        Slow.reads += 1
        time.sleep(0.02)
        return self.content.readinto(memoryview(buffer)[: 1 << 18])


@pytest.mark.parametrize("rows", [0, 1, 20_000])
def test_nothing_reads_a_file_after_it_failed(monkeypatch, tmp_path, rows):
    monkeypatch.setattr(readers, "open_source", lambda source: Slow(HEAD + b"p,2025-03-02,ann,1,0\n" * rows + WIDE))
    source = readers.Source(str(tmp_path / "slow.csv"), 0, 1, False, False)
    with pytest.raises(ValueError, match="slow.csv is not a whole CSV file"):
        list(readers.read_csv(source, ["id"]))
    reads = Slow.reads
    time.sleep(0.2)
    assert Slow.reads == reads


def test_a_file_that_is_left_before_its_end(monkeypatch, tmp_path):
    monkeypatch.setattr(readers, "open_source", lambda source: Slow(HEAD + b"p,2025-03-02,ann,1,0\n" * 4_000_000))
    source = readers.Source(str(tmp_path / "slow.csv"), 0, 1, False, False)
    rows = readers.read_csv(source, ["id"])
    next(rows)
    next(rows)
    rows.close()
    reads = Slow.reads
    time.sleep(0.2)
    assert Slow.reads == reads


# --- files of which nothing was taken -----------------------------------------------------------------------------------------------------------


def test_a_file_of_rejected_rows_ends_with_1_and_says_so_first(payments, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.csv").write_bytes(HEAD + ROWS)
    (tmp_path / "in" / "may.csv").write_bytes(HEAD + b"x1,03/05/2025,ann,1,0\nx2,04/05/2025,ann,2,0\n")
    done = call("ingest", *payments, "--input", tmp_path / "in")
    first = next(line for line in done.stderr.splitlines() if not line.startswith("ingest"))
    assert done.exit_code == 1 and first.startswith("error: every row of ") and "may.csv was rejected (2 x " in first
    done = call("ingest", *payments, "--input", tmp_path / "in" / "may.csv", "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["ok"] is False
    (tmp_path / "in" / "may.csv").write_bytes(HEAD)
    assert as_json("ingest", *payments, "--input", tmp_path / "in")["files_rejected"] == []


def test_labels_that_fit_no_event_end_with_1(payments, tmp_path):
    (tmp_path / "in.csv").write_bytes(HEAD + ROWS)
    as_json("ingest", *payments, "--input", tmp_path / "in.csv")
    (tmp_path / "labels.csv").write_text("id,fraud\nother1,1\nother2,0\n")
    done = call("ingest", *payments, "--labels", tmp_path / "labels.csv")
    assert done.exit_code == 1 and "error: all 2 labels were rejected" in done.stderr
