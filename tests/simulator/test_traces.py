"""Trace loaders: each public format from a few rows, and what is said of rows that are wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from accelgen.simulator.rows import Rows
from accelgen.simulator.traces import VARIABLE, TraceError, find_trace, read_trace

COMPACT = "arrived_at,prompt_tokens,output_tokens\n3.5,100,10\n2.0,50,5\n"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 2999, "input_length": 700, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3000, "input_length": 800, "output_length": 3, "hash_ids": [0, 15]}
"""
SESSIONS = """session_id,prompt_tokens,output_tokens,prefix_tokens_shared_with_prev,think_time
a,100,10,0,0.0
a,150,20,96,12.0
b,40,4,0,
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def read(folder: Path, name: str, text: str) -> Rows:
    return read_trace(write(folder, name, text))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_compact(tmp_path: Path, name: str) -> None:
    rows = read(tmp_path, name, COMPACT)
    assert rows.at_s is not None and rows.at_s.tolist() == [0.0, 1.5]
    assert rows.prompt.tolist() == [50, 100] and rows.output.tolist() == [5, 10]
    assert rows.name == "t" and len(rows.digest) == 16


def test_a_set_of_lengths_has_no_times(tmp_path: Path) -> None:
    rows = read(tmp_path, "l.csv", "prompt_tokens,output_tokens\n3,0\n4,2\n5,3\n")
    assert rows.at_s is None and rows.output.tolist() == [1, 2, 3]  # a length of 0 counts as 1
    assert rows.half("tune").prompt.tolist() == [3, 5] and rows.half("report").prompt.tolist() == [
        4
    ]


def test_azure(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.csv", AZURE)
    assert rows.at_s is not None and rows.at_s == pytest.approx([0, 0.052])
    assert rows.prompt.tolist() == [4808, 3180] and rows.output.tolist() == [10, 8]


def test_azure_of_2024_has_time_zones(tmp_path: Path) -> None:
    text = AZURE.replace("9600,", "96+00:00,").replace("3.97", "3.97")
    rows = read(tmp_path, "a.csv", text)
    assert rows.at_s is not None and rows.at_s == pytest.approx([0, 0.052])


def test_burstgpt_leaves_failures_out(tmp_path: Path) -> None:
    rows = read(tmp_path, "b.csv", BURSTGPT)
    assert rows.at_s is not None and rows.at_s.tolist() == [0, 40]
    assert rows.output.tolist() == [18, 230]


def test_mooncake_spreads_its_times(tmp_path: Path) -> None:
    path = write(tmp_path, "m.jsonl", MOONCAKE)
    rows, again, other = read_trace(path), read_trace(path), read_trace(path, seed=1)
    assert rows.at_s is not None and again.at_s is not None and other.at_s is not None
    assert rows.at_s[0] == 0 and np.all(np.diff(rows.at_s) > 0) and rows.at_s[-1] < 6
    assert rows.at_s.tolist() == again.at_s.tolist() != other.at_s.tolist()
    assert rows.prefixes == [(0, 1, 2), (0, 14), (0, 15)] and rows.prefix_block == 512


def test_mooncake_as_csv_with_times_of_its_own(tmp_path: Path) -> None:
    text = "arrived_at,prompt_tokens,output_tokens,hash_ids\n0.5,600,2,0 1\n1.5,9,2,7\n"
    rows = read(tmp_path, "m.csv", text)
    assert (
        rows.at_s is not None and rows.at_s.tolist() == [0, 1] and rows.prefixes == [(0, 1), (7,)]
    )


def test_sessions(tmp_path: Path) -> None:
    rows = read(tmp_path, "s.csv", SESSIONS)
    assert rows.prompt.tolist() == [100, 40] and rows.later is not None
    [stage] = rows.later[0]
    assert (stage.prompt, stage.think_s, stage.shared) == (150, 12.0, 96) and rows.later[1] == ()


def test_halves_in_time(tmp_path: Path) -> None:
    text = "arrived_at,prompt_tokens,output_tokens\n" + "".join(
        f"{i},{i + 1},1\n" for i in range(5)
    )
    rows = read(tmp_path, "t.csv", text)
    tune, report = rows.half("tune"), rows.half("report")
    assert tune.prompt.tolist() == [1, 2] and report.prompt.tolist() == [3, 4, 5]
    assert report.at_s is not None and report.at_s.tolist() == [0, 1, 2]
    assert len(rows.half("all")) == 5


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", COMPACT + "x,1,1\n", "row 4, column arrived_at: 'x' is not a number"),
        ("t.csv", COMPACT + "1,,1\n", "row 4, column prompt_tokens: '' is not a number"),
        ("t.csv", COMPACT + "1,-2,1\n", "row 4, column prompt_tokens: -2 is not between 0 and"),
        ("t.csv", COMPACT + "1,2\n", "row 4, column output_tokens: there is nothing in it"),
        ("t.csv", COMPACT + "1,2,3.5\n", "row 4, column output_tokens: 3.5 is not a number of tokens"),
        ("t.csv", COMPACT + "1,2,nan\n", "row 4, column output_tokens: nan is not between"),
        ("t.csv", COMPACT + "1,2,3,4\n", "row 4: there are more cells than columns"),
        ("t.csv", "a,b\n1,2\n", "row 1: the columns a, b are those of no known format"),
        ("t.csv", "arrived_at,prompt_tokens,output_tokens\n", "there is no request in it"),
        ("t.csv", AZURE + "yesterday,1,1\n", "row 4, column TIMESTAMP: 'yesterday' is not a date"),
        ("t.jsonl", MOONCAKE + "{\n", "row 4: not JSON"),
        ("t.jsonl", MOONCAKE + "[]\n", "row 4: not a JSON object"),
        ("t.jsonl", MOONCAKE.replace("[0, 14]", '"x"'), "row 2, column hash_ids: not a list"),
        ("t.jsonl", MOONCAKE.replace("700", '"x"'), "row 2, column input_length: 'x' is not a number"),
    ],
)  # fmt: skip
def test_errors_name_file_row_and_column(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(TraceError) as found:
        read(tmp_path, name, text)
    assert words in str(found.value) and str(tmp_path / name) in str(found.value)
    assert "\n" not in str(found.value)


def test_what_is_no_gzip_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_text(COMPACT)
    with pytest.raises(TraceError, match="t.csv.gz: Not a gzipped file"):
        read_trace(path)


def test_traces_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "azure2023_conv.csv.gz", COMPACT)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(TraceError, match=f"{VARIABLE} can name a folder"):
        find_trace("azure2023_conv")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert find_trace("azure2023_conv") == find_trace("azure2023_conv.csv") == path
    assert find_trace(str(path)) == path
    with pytest.raises(TraceError, match="'azure2023_cov'.*did you mean azure2023_conv"):
        find_trace("azure2023_cov")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(TraceError, match="is no folder"):
        find_trace("azure2023_conv")
