"""Files that cannot be read: a command ends with code 2, names the file, and nothing goes on reading it."""

import gzip
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

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


SPELLED = load_settings(Path(__file__).resolve().parents[1] / "config" / "orders.toml").input
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


@pytest.mark.parametrize("rows", [0, 4_000])
def test_an_error_that_the_parser_loses_is_no_end_of_the_file(monkeypatch, tmp_path, rows):
    "Arrow parses ahead in threads of its own: under load, an error there has come out as an end of the rows."
    whole = readers.CsvFile.batches

    def batches(self):
        try:
            yield from whole(self)
        except pa.ArrowInvalid:
            return

    monkeypatch.setattr(readers.CsvFile, "batches", batches)
    (tmp_path / "wide.csv").write_bytes(HEAD + ROWS * rows + WIDE)
    with pytest.raises(ValueError, match="wide.csv is not a whole CSV file"):
        list(readers.read_csv(readers.Source(str(tmp_path / "wide.csv"), 0, 1, False, False), ["id"], SPELLED))


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
        list(readers.read_csv(source, ["id"], SPELLED))
    reads = Slow.reads
    time.sleep(0.2)
    assert Slow.reads == reads


def test_a_file_that_is_left_before_its_end(monkeypatch, tmp_path):
    monkeypatch.setattr(readers, "open_source", lambda source: Slow(HEAD + b"p,2025-03-02,ann,1,0\n" * 4_000_000))
    source = readers.Source(str(tmp_path / "slow.csv"), 0, 1, False, False)
    rows = readers.read_csv(source, ["id"], SPELLED)
    next(rows)
    next(rows)
    rows.close()
    reads = Slow.reads
    time.sleep(0.2)
    assert Slow.reads == reads


# --- input that is not read is named ----------------------------------------------------------------------------------


def rows_of(name: str) -> bytes:
    "One row of its own for each file."
    return HEAD + b"%s,2025-03-02 10:00:00,ann,1.50,0\n" % name.encode().replace(b"/", b"_")


def parquet_row(name: str) -> bytes:
    sink = io.BytesIO()
    row = {"id": [name], "at": ["2025-03-02"], "who": ["ann"], "amount": [1.5], "fraud": [0]}
    pq.write_table(pa.table(row), sink)
    return sink.getvalue()


# name in a folder -> whether a folder's files of that name are read
IN_A_FOLDER = {
    "a.csv": True,
    "X.CSV.GZ": True,
    "May.Csv": True,
    "deep/er/b.csv": True,
    "upper.PARQUET": True,
    "c.parq": True,
    "spaced name.csv": True,
    "Übersicht.csv": True,
    "_part.csv": False,
    ".hidden.csv": False,
    "_done/c.csv": False,
    "june.xlsx": False,
    "july.csv.zip": False,
    "rows.jsonl": False,
    "notes.txt": False,
    "data": False,
    "old.csv.bak": False,
    "a.csv~": False,
}


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        packed = gzip.compress if name.lower().endswith(".gz") else bytes
        made = parquet_row if name.lower().endswith(("parquet", "parq")) else rows_of
        (folder / name).write_bytes(packed(made(name)))


def test_of_a_folder_each_file_is_read_or_named(payments, tmp_path):
    fill(tmp_path / "in", IN_A_FOLDER)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    fill(tmp_path / "other", ["one.csv"])
    (tmp_path / "in" / "link.csv").symlink_to(tmp_path / "other" / "one.csv")
    done = as_json("ingest", *payments, "--input", tmp_path / "in")
    left = {name for name, taken in IN_A_FOLDER.items() if not taken} | {"linked", "gone.csv"}
    assert {path.removeprefix(f"{tmp_path}/in/") for path in done["files_skipped"]} == left
    assert done["events"] == done["files"] == sum(IN_A_FOLDER.values()) + 1
    assert f"{len(left)} files beside the input were not read" in done["note"]


@pytest.mark.parametrize(
    "names, events, left",
    [
        (["in"], 2, ["june.xlsx"]),
        (["in/a.csv", "more.csv"], 2, []),
        (["in", "in/a.csv", "more.csv"], 3, ["june.xlsx"]),  # each once
        (["i*"], 2, ["june.xlsx"]),  # a glob that finds a folder
        (["in/*/*.csv", "in/a.csv"], 2, []),
    ],
)
def test_of_several_inputs_all_are_read(payments, tmp_path, names, events, left):
    fill(tmp_path, ["in/a.csv", "in/b/b.csv", "more.csv", "in/june.xlsx"])
    done = as_json("ingest", *payments, *[word for name in names for word in ("--input", tmp_path / name)])
    assert done["events"] == events == done["files"] and done["repeats"] == 0
    assert [path.rpartition("/")[2] for path in done["files_skipped"]] == left
    labels = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for number, path in enumerate(labels):
        path.write_text(f"id,fraud\nunknown{number},1\n")
    done = call("ingest", *payments, "--labels", labels[0], "--labels", labels[1], "--json")
    assert json.loads(done.stdout)["labels_read"] == 2


@pytest.mark.parametrize(
    "words", [["--config", "x.toml", "--config", "y.toml"], ["--until", "2025-01-01"] * 2], ids=" ".join
)
def test_an_option_that_is_given_twice_is_rejected(words):
    failed = call("features", *words)
    assert failed.exit_code == 2 and f"{words[0]} is given 2 times" in failed.stderr


# first bytes -> what the message tells to do
FOREIGN = {
    b"PK\x03\x04rest": "save the sheet as CSV",
    b"\xd0\xcf\x11\xe0\xa1\xb1": "save the sheet as CSV",
    b"BZh91AY&SY....": "pack it by gzip",
    b"\xfd7zXZ\0....": "pack it by gzip",
    b"\x28\xb5\x2f\xfd....": "pack it by gzip",
    b"7z\xbc\xaf\x27\x1c": "unpack it",
    b"SQLite format 3\0": "as CSV",
    b"ARROW1\0\0": "as Parquet",
    b"Obj\x01....": "as Parquet",
}


@pytest.mark.parametrize("name", ["plain.csv", "plain.parquet", "plain"])
@pytest.mark.parametrize("head", FOREIGN, ids=str)
def test_a_file_of_a_foreign_kind_is_rejected_with_what_to_do(tmp_path, head, name):
    (tmp_path / name).write_bytes(head + b"\0" * 100)
    with pytest.raises(ValueError, match=re.escape(name)) as failed:
        readers.schema_of(readers.find_sources(str(tmp_path / name))[0], SPELLED)
    assert FOREIGN[head] in str(failed.value)


@pytest.mark.parametrize("text", ['{"id": 1}\n', '[{"id": 1}]', "  [\n {}]"])
def test_json_is_no_input_of_ingest(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match="x.csv is JSON: save it as CSV or Parquet"):
        readers.find_sources(str(tmp_path / "x.csv"))


def test_a_parquet_file_is_one_whatever_its_name(payments, tmp_path):
    (tmp_path / "rows.csv").write_bytes(parquet_row("p1"))
    assert as_json("ingest", *payments, "--input", tmp_path / "rows.csv")["events"] == 1


# --- files of which nothing was taken ---------------------------------------------------------------------------------


def test_a_file_of_rejected_rows_ends_with_1_and_says_so_first(payments, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.csv").write_bytes(HEAD + ROWS)
    (tmp_path / "in" / "may.csv").write_bytes(HEAD + b"x1,in May,ann,1,0\nx2,in May,ann,2,0\n")
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


def test_rows_whose_ids_are_taken_end_with_1(payments, tmp_path):
    (tmp_path / "in.csv").write_bytes(HEAD + ROWS)
    as_json("ingest", *payments, "--input", tmp_path / "in.csv")
    (tmp_path / "again.csv").write_bytes(HEAD + ROWS.replace(b".50,", b".75,"))
    done = call("ingest", *payments, "--input", tmp_path / "again.csv")
    count = len(ROWS.splitlines())
    assert done.exit_code == 1 and f"error: all {count} rows were rejected ({count} x " in done.stderr
