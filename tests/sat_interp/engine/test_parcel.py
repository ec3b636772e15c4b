from __future__ import annotations

import json
import sys

import pytest

from sat_interp.engine.job import Command, Shipment
from sat_interp.engine.parcel import collect, install, pack, place, translate
from sat_interp.engine.worker import SENT, perform


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("/a/b", "/new"),
        ("/a/b/c.txt", "/new/c.txt"),
        ("--data=/a/b,/a/b2:text", "--data=/new,/out/b2:text"),
        ("/a/b [untrained]", "/new [untrained]"),
        ('{"data": "/a/b:text"}', '{"data": "/new:text"}'),
        ("/a/bc /x/a/b /a", "/out/bc /x/a/b /out"),
    ],
)
def test_paths_are_replaced_where_they_stand_alone_or_begin_a_longer_one(text, made):
    assert translate(text, {"/a/b": "/new", "/a": "/out"}) == made


def test_what_replaces_a_path_is_not_replaced_again():
    assert translate("/tmp/x", {"/tmp/x": "/tmp/cache/x", "/tmp": "/other"}) == "/tmp/cache/x"


def test_a_path_with_letters_that_json_escapes():
    text = json.dumps({"data": '/té"xt'})
    assert json.loads(translate(text, {'/té"xt': "/new"})) == {"data": "/new"}


@pytest.fixture
def shipment(tmp_path):
    """A command that copies a text to its output, its settings beside the text's."""
    text, model, out = tmp_path / "text.txt", tmp_path / "model", tmp_path / "res"
    text.write_text("a story")
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"data": str(text)}))
    (out / "m-0").mkdir(parents=True)
    (out / "m-0" / "lm-old.json").write_text("{}")
    inputs = {text: {"": text}, model: {"config.json": model / "config.json"}}
    command = Command("stub", [str(model), f"--out={out}"])
    return Shipment(command, inputs, out, r"[^/]+/.*", r"[^/]+/lm-[^/]*\.json", ["m-0/lm-old.json"])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A machine with a cache of its own and a command in place of Python."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("SAT_INTERP_CACHE", str(cache))
    path = tmp_path / "stub"
    path.write_text(
        "#!/usr/bin/env python3\n"
        "import json, os, pathlib, sys\n"
        "model, out = sys.argv[3], sys.argv[4].removeprefix('--out=')\n"
        "data = json.load(open(model + '/config.json'))['data']\n"
        "assert os.path.exists(out + '/m-0/lm-old.json')\n"
        "home = pathlib.Path(out, 'm-0'); (home / 'sae' / 'x').mkdir(parents=True, exist_ok=True)\n"
        "(home / 'sae' / 'x' / 'w').write_text(open(data).read())\n"
        "(home / 'lm-1.json').write_text(json.dumps({'data': data, 'threads': "
        "os.environ['OMP_NUM_THREADS'], 'own': os.environ['OWN']}))\n"
        "(home / '.lm.tmp').write_text('')\n"
        "pathlib.Path(out, 'table.md').write_text('')\n"
        "print('at work')\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return cache


def test_a_command_runs_where_none_of_its_files_are(shipment, elsewhere, tmp_path):
    parcel, files = pack(shipment, 3, {"OWN": "1"})
    contents = {digest: path.read_bytes() for digest, path in files.items()}
    assert set(contents) == parcel.hashes
    for tree in shipment.inputs:  # it must not be read where it was
        tree.rename(tree.with_name(f"{tree.name}-gone"))
    asked: list[str] = []

    def fetch(digest: str) -> bytes:
        asked.append(digest)
        return [contents[digest]]

    delivery = perform(parcel, fetch)
    assert (delivery.end.reason, delivery.log) == ("", b"at work\n")
    assert set(delivery.files) == {"m-0/lm-old.json", "m-0/lm-1.json", "m-0/sae/x/w"}
    record = json.loads(delivery.files["m-0/lm-1.json"])
    assert record == {"data": str(tmp_path / "text.txt"), "threads": "3", "own": "1"}
    assert delivery.files["m-0/sae/x/w"] == b"a story"
    assert (elsewhere / "jobs" / parcel.key / SENT).exists()
    n = len(asked)
    perform(parcel, fetch)
    assert len(asked) == n  # all inputs are there, by their hashes


def test_a_changed_text_or_option_is_another_job(shipment, tmp_path):
    keys = [pack(shipment, 1, {})[0].key, pack(shipment, 1, {"OWN": "1"})[0].key]
    (tmp_path / "text.txt").write_text("another story")
    keys.append(pack(shipment, 1, {})[0].key)
    assert len(set(keys)) == 3
    assert pack(shipment, 7, {})[0].key == keys[2]


def test_what_arrives_damaged_is_refused(shipment, tmp_path):
    parcel, _ = pack(shipment, 1, {})
    with pytest.raises(OSError, match="arrived damaged"):
        place(parcel.trees, tmp_path / "cache", lambda digest: [b"something else"])
    assert not (tmp_path / "cache" / "text.txt").exists()


def test_another_version_of_the_package_is_named(shipment, elsewhere, monkeypatch):
    parcel, _ = pack(shipment, 1, {})
    monkeypatch.setattr("sat_interp.engine.worker.own_version", lambda: "0.0.1")
    end = perform(parcel, lambda digest: [b""]).end
    assert end.is_final
    assert "has sat-interp 0.0.1, and this machine" in end.reason


def test_a_record_is_written_once_and_after_all_else(tmp_path, monkeypatch):
    files = {"m/lm-1.json": b"first", "m/sae/x/w": b"weights", "m/sae/x/cfg.json": b"{}"}
    order = []
    from sat_interp.engine import parcel

    real = parcel.write_atomically
    monkeypatch.setattr(
        parcel, "write_atomically", lambda path, data: order.append(path) or real(path, data)
    )
    pattern = r"[^/]+/lm-[^/]*\.json"
    install(files, tmp_path, pattern, False)
    assert order[-1] == tmp_path / "m/lm-1.json"
    assert (tmp_path / "m/sae/x/w").read_bytes() == b"weights"
    again = {**files, "m/lm-1.json": b"second", "m/sae/x/w": b"changed"}
    install(again, tmp_path, pattern, False)
    assert (tmp_path / "m/lm-1.json").read_bytes() == b"first"
    assert (tmp_path / "m/sae/x/w").read_bytes() == b"changed"
    install(again, tmp_path, pattern, True)
    assert (tmp_path / "m/lm-1.json").read_bytes() == b"second"
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".tmp", ".old")]


def test_hidden_files_and_those_not_kept_do_not_come_back(tmp_path):
    for name in ("a/x.txt", "a/.lock", "checkpoints/s/x", ".tmp/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert set(collect(tmp_path, r"(?!checkpoints/).*", {})) == {"a/x.txt"}
