"""Replies survive threads and kills; a damaged database is one clear line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evaluations.suite.neurons.examiners.replies import Replies, default_path, request_key
from sat_interp._util.errors import UserError


def test_what_was_kept_is_there_again(tmp_path: Path):
    path = tmp_path / "deep" / "replies.sqlite"
    reply = {"text": "“dogs”\n", "levels": [[2, "1", {"1": -0.5}]]}
    kept = Replies(path)
    kept.put("a", reply)
    kept.close()
    again = Replies(path)
    assert again.get("a") == reply
    assert again.get("b") is None
    assert len(again) == 1


def test_the_default_place_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path))
    assert default_path() == tmp_path / "examiner" / "replies.sqlite"


def test_a_key_is_of_the_whole_request_and_not_of_its_order():
    request = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5}
    assert request_key(request) == request_key(dict(reversed(request.items())))
    for other in ({"model": "n"}, {"messages": []}, {"max_tokens": 6}, {"temperature": 0}):
        assert request_key({**request, **other}) != request_key(request)


def test_threads_and_processes_share_a_file(tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    stores = [Replies(path), Replies(path)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: stores[n % 2].put(str(n), {"n": n}), range(60)))
    assert [Replies(path).get(str(n)) for n in range(60)] == [{"n": n} for n in range(60)]


def test_a_killed_process_has_lost_nothing_it_had_put(tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from evaluations.suite.neurons.examiners.replies import Replies\n"
        "kept = Replies(Path(sys.argv[1]))\n"
        "for n in range(10**6):\n"
        "    kept.put(str(n), {'n': n}); print(n, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[5],
    )
    assert process.stdout is not None
    done = 0
    for line in process.stdout:
        done = int(line)
        if done == 20:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    kept = Replies(path)
    assert all(kept.get(str(n)) == {"n": n} for n in range(done + 1))


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"damaged .*move the file away") as caught:
        Replies(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_database_that_is_cut_short_is_one_line(tmp_path: Path):
    path = tmp_path / "replies.sqlite"
    kept = Replies(path)
    for n in range(50):
        kept.put(str(n), {"text": os.urandom(2000).hex()})
    kept.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff" * 4096)

    def read() -> None:
        again = Replies(path)
        for n in range(50):
            again.get(str(n))

    with pytest.raises(UserError, match="replies") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use the stored replies"):
        Replies(tmp_path / "file" / "replies.sqlite")


FULL = ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 100000", "disk is full")
READ_ONLY = ("PRAGMA query_only = 1", "PRAGMA query_only = 0", "attempt to write a readonly")


@pytest.mark.parametrize(("start", "end", "reason"), [FULL, READ_ONLY], ids=["full", "read-only"])
def test_a_disk_that_takes_nothing_is_one_line_and_loses_nothing(
    start: str, end: str, reason: str, tmp_path: Path
):
    path = tmp_path / "replies.sqlite"
    kept = Replies(path)
    kept.put("a", {"text": "A"})
    kept._database.execute(start)
    large = {"text": os.urandom(20_000).hex()}
    for _ in range(2):
        with pytest.raises(
            UserError, match=f"cannot use the stored replies in .*{reason}"
        ) as caught:
            kept.put("b", large)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert kept.get("a") == Replies(path).get("a") == {"text": "A"}
        assert kept.get("b") is None
        assert len(kept) == 1
    kept._database.execute(end)
    kept.put("b", large)
    assert Replies(path).get("b") == large


def test_an_invalid_reply_that_cannot_be_deleted_is_one_line(tmp_path: Path):
    kept = Replies(tmp_path / "replies.sqlite")
    kept.put("a", "no reply")
    kept._database.execute(READ_ONLY[0])
    with pytest.raises(UserError, match=r"replies\.sqlite: attempt to write a readonly"):
        kept.get("a", lambda reply: isinstance(reply, dict))


@pytest.mark.parametrize("place", ["directory", "/proc/none/replies.sqlite", "/dev/full"])
def test_a_place_that_cannot_hold_a_database_is_one_line(place: str, tmp_path: Path):
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match="cannot use the stored replies|are damaged") as caught:
        Replies(tmp_path / place)
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)
