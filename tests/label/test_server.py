"""The server gives nothing away and takes votes from its page only."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from browser import serving
from starlette.testclient import TestClient

from data_fixtures import PICTURES, encoded, make_set, noise
from mapo.errors import MapoError
from mapo.files import sha256
from mapo.label import server as module
from mapo.label.blind import of_folders, of_pairs
from mapo.label.server import make_app, serve
from mapo.label.votes import VoteLog, read_votes
from mapo.pages.server import is_loopback
from mapo.pairs.pairs import PairSet, PairWriter, decode_picture
from mapo.pairs.splits import prompt_id
from mapo.sample.folder import ImageRow, append_images

HERE = "http://127.0.0.1:8000"
TOKEN = "a-token-of-20-letters"


@pytest.fixture
def pairs(tmp_path: Path) -> PairSet:
    return make_set(tmp_path / "set", 6)


def client_of(pairs: PairSet, log: VoteLog, address: str = HERE, **rest: Any) -> TestClient:
    return TestClient(make_app(of_pairs(pairs), log, **rest), address, raise_server_exceptions=True)


@pytest.fixture
def log(pairs: PairSet) -> Iterator[VoteLog]:
    with VoteLog(pairs.folder / "votes.jsonl") as log:
        yield log


def state(client: TestClient, name: str = "ann") -> Any:
    return client.get("/state", params={"annotator": name}).json()


def send(client: TestClient, path: str = "/vote", **values: Any) -> Any:
    return client.post(path, json={"annotator": "ann", **values}, headers={"Origin": str(client.base_url).rstrip("/")})


# ------------------------------------------------------------------ votes


def test_a_vote_is_on_disk_when_it_is_acknowledged_and_leads_to_the_next_pair(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    first, second = state(client)["tasks"][:2]
    said = send(client, pair=first["pair"], vote="left").json()
    (kept,) = read_votes(pairs.folder / "votes.jsonl")
    assert (kept.annotator, kept.pair, kept.left, kept.right, kept.vote) == (
        "ann", first["pair"], first["left"], first["right"], "left",
    )  # fmt: skip
    assert said["tasks"][0] == second and (said["done"], said["total"]) == (1, 6)
    assert said["last"] == {"pair": first["pair"], "vote": "left"}


def test_a_vote_that_is_sent_twice_or_for_another_pair_is_kept_once(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    first, second, third = state(client)["tasks"][:3]
    assert send(client, pair=first["pair"], vote="left").status_code == 200
    assert send(client, pair=first["pair"], vote="left").status_code == 409
    assert send(client, pair=third["pair"], vote="left").status_code == 409
    assert send(client, pair=second["pair"], vote="both").status_code == 409
    assert state(client)["done"] == len(log.lines) == 1


def test_undo_takes_back_one_vote_after_the_other_even_after_a_restart(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    tasks = state(client)["tasks"][:3]
    for task in tasks:
        send(client, pair=task["pair"], vote="tie")
    assert send(client, "/undo", pair=tasks[2]["pair"]).json()["tasks"][0] == tasks[2]
    assert send(client, "/undo", pair=tasks[2]["pair"]).status_code == 409  # pressed twice
    client = client_of(pairs, log)
    assert state(client)["last"]["pair"] == tasks[1]["pair"]
    assert send(client, "/undo", pair=tasks[1]["pair"]).json()["tasks"][0] == tasks[1]
    assert [v.pair for v in read_votes(log.path)] == [tasks[0]["pair"]]
    assert send(client, "/undo", pair=tasks[0]["pair"]).json()["last"] is None
    assert send(client, "/undo", pair=tasks[0]["pair"]).status_code == 409
    assert [v.vote for v in log.lines] == ["tie"] * 3 + ["undo"] * 3


def test_all_pairs_judged_leaves_nothing_to_judge(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    seen = []
    while tasks := state(client)["tasks"]:
        seen.append(tasks[0]["prompt"])
        send(client, pair=tasks[0]["pair"], vote="skip")
    assert sorted(seen) == [f"prompt {k}" for k in range(6)]
    assert (state(client)["done"], state(client, "bob")["done"]) == (6, 0)


def test_annotators_at_the_same_time_do_not_lose_or_mix_votes(tmp_path: Path) -> None:
    pairs = make_set(tmp_path / "many", 25)
    names = [f"person {k}" for k in range(4)]
    barrier = threading.Barrier(len(names))

    def judge_all(url: str, name: str) -> None:
        import urllib.request

        def call(path: str, **values: str) -> Any:
            headers = {"Content-Type": "application/json", "Origin": url.rstrip("/")}
            body = json.dumps({"annotator": name, **values}).encode() if values else None
            with urllib.request.urlopen(urllib.request.Request(url + path, body, headers)) as answer:
                return json.load(answer)

        barrier.wait()
        found = call(f"state?annotator={name.replace(' ', '+')}")
        while found["tasks"]:
            found = call("vote", pair=found["tasks"][0]["pair"], vote="left")

    with serving(pairs.folder) as url, ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: judge_all(url, name), names))
    lines = (pairs.folder / "votes.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 25
    votes = read_votes(pairs.folder / "votes.jsonl")
    assert {name: len({v.pair for v in votes if v.annotator == name}) for name in names} == dict.fromkeys(names, 25)


def test_a_full_disk_is_said_and_the_pair_stays(pairs: PairSet, log: VoteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(pairs, log)
    task = state(client)["tasks"][0]

    def full(vote: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "append", full)
    answer = send(client, pair=task["pair"], vote="left")
    assert answer.status_code == 507 and "No space left on device" in answer.json()["error"]
    assert state(client)["tasks"][0] == task


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, "a\x00b", "\u202eevil"])
def test_names_that_cannot_be_seen_are_refused(name: str, pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    answer = send(client, annotator=name, pair=state(client)["tasks"][0]["pair"], vote="left")
    assert answer.status_code == 400 and "cannot be an annotator's name" in answer.json()["error"]
    assert log.lines == []


def test_a_name_is_one_however_it_is_typed_and_the_one_of_the_command_counts(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    assert state(client, " Zoe\u0308  B ")["annotator"] == "Zoë B"
    assert client.get("/state").json() == {"ask": True}
    fixed = client_of(pairs, log, annotator="ann")
    assert fixed.get("/state").json()["annotator"] == state(fixed, "bob")["annotator"] == "ann"
    assert fixed.get("/state").json()["fixed"] is True and state(client)["fixed"] is False


# ------------------------------------------------------------------ what is served


def test_only_the_page_and_the_pictures_of_the_set_are_served(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    assert {client.get(path).status_code for path in ("/", "/page.css", "/page.js")} == {200}
    name = pairs.image_names()[0]
    assert client.get(f"/picture/{name}").status_code == 200
    for path in (
        "/votes.jsonl", "/set.json", "/pairs.parquet", "/page.html", "/server.py", "/../set.json", "/%2e%2e/set.json",
        "/picture/", f"/picture/{name[:-1]}", f"/picture/{name}/", f"/picture/{name.upper()}", "/picture/..%2fset.json",
        "/picture/%2fetc%2fpasswd", "/picture/set.json", f"/picture/{'0' * 64}", "/docs", "/openapi.json", "/static/",
    ):  # fmt: skip
        assert client.get(path, follow_redirects=False).status_code in (404, 307), path
        assert client.get(path).status_code == 404 or path.rstrip("/").endswith(name), path
    assert {client.request(m, "/", headers={"Origin": HERE}).status_code for m in ("POST", "PUT", "DELETE")} == {405}
    assert client.get("/vote").status_code == 405


def test_a_picture_is_sent_as_its_pixels_without_the_file_that_it_was(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "made by a secret model", 6  # description; turned
    jpeg = encoded(noise(1), "JPEG", exif=exif)
    with PairWriter(tmp_path / "set", {}) as writer:
        writer.add_pair("p", jpeg, encoded(noise(2)))
    pairs = PairSet(tmp_path / "set")
    with VoteLog(tmp_path / "set" / "votes.jsonl") as log:
        answers = [client_of(pairs, log).get(f"/picture/{name}") for name in (pairs[0].chosen, pairs[0].rejected)]
    assert [a.headers["content-type"] for a in answers] == ["image/png"] * 2
    assert b"secret" in jpeg and b"secret" not in answers[0].content
    assert decode_picture(answers[0].content).tobytes() == decode_picture(jpeg).tobytes()
    assert decode_picture(answers[0].content).size == (16, 24)


def test_a_picture_that_cannot_be_read_names_no_folder_to_the_page(tmp_path: Path, heard: Any) -> None:
    for side, data in (("before", PICTURES[0]), ("after", PICTURES[1])):
        append_images(tmp_path / side, [ImageRow("0.png", prompt_id("p"), "p", 0, 0, sha256(data), "m")], [data])
    material = of_folders(tmp_path / "before", tmp_path / "after")
    (tmp_path / "after" / "0.png").write_bytes(b"gone")
    with VoteLog(tmp_path / "votes.jsonl") as log:
        answer = TestClient(make_app(material, log), HERE).get(f"/picture/{sha256(PICTURES[1])}")
    assert answer.status_code == 500 and "after" not in answer.text
    assert "after" in heard()


def test_every_answer_forbids_what_the_page_does_not_need(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    for path in ("/", "/page.js", "/state", "/nowhere", f"/picture/{pairs.image_names()[0]}"):
        headers = client.get(path).headers
        rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
        assert rules["default-src"] == rules["frame-ancestors"] == rules["form-action"] == "'none'"
        assert rules["script-src"] == rules["img-src"] == rules["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    refused = client.get("/", headers={"Host": "evil.example"})
    assert "content-security-policy" in refused.headers


def test_the_page_needs_nothing_from_elsewhere_and_puts_no_text_in_as_html() -> None:
    page = Path(module.__file__).parent
    html, css = (page.joinpath(f"page.{end}").read_text() for end in ("html", "css"))
    script = "\n".join(page.joinpath(name).read_text() for name in module.SCRIPTS)
    assert {path.name for path in page.glob("*.js")} == {*module.SCRIPTS}
    assert "://" not in html + css + script and "//" not in html + css
    assert 'href="/' not in html and 'src="/' not in html and '"/' not in script.replace('"/min"', "")
    assert not any(
        word in script for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
    )


# ------------------------------------------------------------------ who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.5", "", "localhost.evil"]
)
def test_another_name_that_points_here_is_refused(host: str, pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    for path in ("/", "/state?annotator=ann", f"/picture/{pairs.image_names()[0]}"):
        assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9123", "127.0.0.1", "[::1]:8000", "LOCALHOST:1"])
def test_a_tunnel_may_end_at_any_port_of_ones_own_machine(host: str, pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    task = state(client)["tasks"][0]
    body = {"annotator": "ann", "pair": task["pair"], "vote": "tie"}
    answer = client.post("/vote", json=body, headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:8001", "http://localhost:8000", ""]
)
def test_a_vote_from_another_page_is_refused(origin: str | None, pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log)
    body = {"annotator": "ann", "pair": state(client)["tasks"][0]["pair"], "vote": "left"}
    headers = {} if origin is None else {"Origin": origin}
    for path in ("/vote", "/undo"):
        assert client.post(path, json=body, headers=headers).status_code == 403
    assert log.lines == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"annotator": "ann"}', "application/json"),
        (b"[]", "application/json"),
        (b"no json", "application/json"),
        (b'{"annotator": 3, "pair": "x", "vote": "left"}', "application/json"),
        (b'{"annotator": "ann", "pair": "x", "vote": "left"}', "text/plain"),
        (b"[" * 4000, "application/json"),
        (b'{"annotator": "' + b"x" * 5000 + b'"}', "application/json"),
        (b"\xff\xfe", "application/json"),
    ],
)
def test_what_the_page_never_sends_is_refused(content: bytes, kind: str, pairs: PairSet, log: VoteLog) -> None:
    headers = {"Origin": HERE, "Content-Type": kind}
    assert client_of(pairs, log).post("/vote", content=content, headers=headers).status_code == 400
    assert log.lines == []


def test_with_a_token_nothing_is_served_without_it_and_a_cookie_keeps_it(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log, token=TOKEN)
    for path in ("/", "/page.js", "/state", f"/picture/{pairs.image_names()[0]}"):
        assert client.get(path).status_code == 403
        assert client.get(path, params={"token": "wrong"}).status_code == 403
        assert client.get(path, params={"token": TOKEN[:-1]}).status_code == 403
        assert client.get(path, params={"token": "ä"}).status_code == 403
    assert "set-cookie" not in client.get("/", params={"token": "wrong"}).headers
    cookie = client.get("/", params={"token": TOKEN}).headers["set-cookie"]
    assert cookie == f"mapo-label={TOKEN}; HttpOnly; SameSite=Strict; Path=/"
    assert client.get("/").status_code == 200
    assert send(client, pair=state(client)["tasks"][0]["pair"], vote="left").status_code == 200
    client.cookies.set("mapo-label", "wrong")
    assert TestClient(client.app, HERE, cookies={"mapo-label": "wrong"}).get("/").status_code == 403


def test_beyond_this_machine_an_address_in_digits_and_the_given_name_are_right(pairs: PairSet, log: VoteLog) -> None:
    client = client_of(pairs, log, token=TOKEN, host="gpu7.example.org")
    right = ["gpu7.example.org:8000", "10.0.0.5:8000", "[fe80::1]:8000", "localhost:8000", socket.gethostname()]
    for host, status in [*((h, 200) for h in right), ("evil.example", 403)]:
        assert client.get("/", params={"token": TOKEN}, headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(("host", "own"), [
    ("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
    ("10.0.0.1", False), ("localhost.example", False), ("", False),
])  # fmt: skip
def test_what_counts_as_this_machine_only(host: str, own: bool) -> None:
    assert is_loopback(host) is own


# ------------------------------------------------------------------ the command


def test_the_printed_address_opens_and_ctrl_c_ends_without_an_error(pairs: PairSet) -> None:
    import urllib.request

    command = [sys.executable, "-m", "mapo", "label", str(pairs.folder), "--port", "0", "--token", TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    url = line.split(" at ")[1].split()[0]
    assert line.startswith("6 pairs to judge at http://127.0.0.1:") and url.endswith(f"/?token={TOKEN}")
    with urllib.request.urlopen(url) as answer:
        assert b"page.js" in answer.read()
        assert answer.headers["set-cookie"].startswith(f"mapo-label-{url.split(':')[2].split('/')[0]}=")
    second = subprocess.run([*command[:5], "--port", "0"], capture_output=True, text=True)
    assert second.returncode == 2 and "Another `mapo label` is writing to" in second.stderr
    process.send_signal(signal.SIGINT)
    said, wrong = process.communicate(timeout=60)
    assert process.returncode == 0 and said.startswith(
        f"0 votes in {pairs.folder}/votes.jsonl; the same command goes on"
    )
    assert TOKEN not in said + wrong and wrong == ""  # nothing logged


def test_bound_elsewhere_a_token_is_made(pairs: PairSet, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "listen", lambda host, port: socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    for _ in range(2):
        serve(of_pairs(pairs), pairs.folder / "votes.jsonl", host="0.0.0.0", say=said.append)
    tokens = [line.split("?token=")[1].split()[0] for line in said if "?token=" in line]
    assert len(tokens) == 2 and tokens[0] != tokens[1] and min(map(len, tokens)) >= 20
    assert socket.gethostname() in said[0]


def test_what_cannot_be_served_is_one_sentence(pairs: PairSet, tmp_path: Path) -> None:
    material, votes = of_pairs(pairs), pairs.folder / "votes.jsonl"
    with pytest.raises(MapoError, match="--token must have 8 characters"):
        serve(material, votes, token="short")
    with pytest.raises(MapoError, match="--token must have"):
        serve(material, votes, token="a b; c=d; e")
    with pytest.raises(MapoError, match="cannot be an annotator's name"):
        serve(material, votes, annotator="\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MapoError, match=f"Cannot listen on 127.0.0.1 port {port} .* Choose another --port"):
            serve(material, votes, port=port)


def test_votes_on_one_comparison_are_not_mixed_with_another(tmp_path: Path) -> None:
    for side, data in (("a", PICTURES[0]), ("b", PICTURES[1]), ("c", PICTURES[2])):
        append_images(tmp_path / side, [ImageRow("0.png", prompt_id("p"), "p", 0, 0, sha256(data), "m")], [data])
    votes = tmp_path / "votes.jsonl"
    with VoteLog(votes) as log:
        client = TestClient(make_app(of_folders(tmp_path / "a", tmp_path / "b"), log), HERE)
        send(client, pair=state(client)["tasks"][0]["pair"], vote="left")
    with pytest.raises(MapoError, match="holds votes on 1 pair of other pictures than these. Choose another --out"):
        serve(of_folders(tmp_path / "a", tmp_path / "c"), votes)
