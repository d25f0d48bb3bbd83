import itertools
import time

import pytest

from chat_server import chat_server, said
from mapo.errors import MapoError
from mapo.score.scorers import endpoint
from mapo.score.scorers.endpoint import KEY, Endpoint, NoAnswer

ASKED = [{"role": "user", "content": "Well?"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "SECONDS_TO_WAIT", (0, 0))
    monkeypatch.delenv(KEY, raising=False)


def in_turn(*answers):
    left = list(answers)
    return lambda body: left.pop(0) if left else said("yes")


def even(answer):
    return int(answer) if answer.isdigit() and int(answer) % 2 == 0 else None


def test_an_answer_is_what_is_made_of_it_and_asked_for_until_it_is_one():
    with chat_server(in_turn(said("3"), (502, ""), said("4"))) as (url, asked):
        assert Endpoint("x", url, "m").ask(ASKED, even) == 4
    assert [body["messages"] for _, _, body in asked] == [ASKED] * 3


@pytest.mark.parametrize(
    ("answer", "kind", "tries"),
    [
        (said("3"), "nonsense", 3), ((200, "{}"), "nonsense", 3), ((200, "<html>"), "nonsense", 3),
        ((400, "policy"), "nonsense", 3), ((200, "[" * 100_000), "nonsense", 3), ((500, "oops"), "silent", 3), ((429, "slower"), "silent", 3),
        ((401, "no"), "refused", 1), ((404, "nobody"), "refused", 1), ((307, ""), "refused", 1),
    ],
)  # fmt: skip
def test_no_answer_says_which_kind_it_is(answer, kind, tries):
    with chat_server(lambda body: answer) as (url, asked):
        with pytest.raises(NoAnswer) as failure:
            Endpoint("x", url, "m").ask(ASKED, even)
        assert (failure.value.kind, len(asked)) == (kind, tries)


def test_silence_and_a_server_that_hangs_up_are_waited_for(monkeypatch):
    monkeypatch.setattr(endpoint, "SECONDS_TO_ANSWER", 0.3)
    with chat_server(in_turn(0.6, 0.0, said("2"))) as (url, asked):
        assert Endpoint("x", url, "m").ask(ASKED, even) == 2 and len(asked) == 3


def trickle():
    for _ in range(100):
        time.sleep(0.1)
        yield " "


def test_an_answer_that_trickles_in_for_ever_is_silence(monkeypatch):
    monkeypatch.setattr(endpoint, "SECONDS_TO_ANSWER", 0.4)
    with chat_server(lambda body: (200, trickle())) as (url, asked):
        with pytest.raises(NoAnswer, match="not ended in time") as failure:
            Endpoint("x", url, "m").ask(ASKED, even)
        assert (failure.value.kind, len(asked)) == ("silent", 3)


def test_an_answer_without_end_is_not_read_into_memory():
    sent = []
    with chat_server(lambda body: (200, (sent.append(1) or part for part in itertools.repeat(" " * 1_000_000)))) as (
        url,
        asked,
    ):
        with pytest.raises(NoAnswer, match="more than 4,000,000 bytes") as failure:
            Endpoint("x", url, "m").ask(ASKED, even)
        assert (failure.value.kind, len(asked)) == ("nonsense", 3)
    assert len(sent) < 60


def test_the_key_is_sent_and_never_told(monkeypatch):
    monkeypatch.setenv(KEY, " s3cret\n")
    with chat_server(lambda body: (400, "the key s3cret is old")) as (url, asked):
        with pytest.raises(NoAnswer, match=r"400 the key \(key\) is old"):
            Endpoint("x", url, "m").ask(ASKED, even)
        assert {key for _, key, _ in asked} == {"Bearer s3cret"}
    monkeypatch.setenv(KEY, "s3cret\nX-More: 1")
    with pytest.raises(MapoError, match="x: MAPO_ENDPOINT_KEY holds characters that no key has") as failure:
        Endpoint("x", "http://127.0.0.1:9/v1", "m").ask(ASKED, even)
    assert "s3cret" not in str(failure.value)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:80",
        "file:///etc/passwd",
        "http://",
        "http://a:b@c/v1",
        "http://c/v1?key=b",
        "http://[::1",
        "http://c:d/v1",
    ],
)
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(MapoError, match=r"^x: "):
        Endpoint("x", url, "m")
