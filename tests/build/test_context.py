import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mapo.build.context as module
from mapo.build.context import Contexts, clean, open_rewriter
from mapo.captions.clean import without_style
from mapo.score.scorers import endpoint
from mapo.score.scorers.endpoint import KEY

PROMPTS = ["a fox, 8k", "an owl", "a red square"]


@pytest.mark.parametrize(
    ("prompt", "context"),
    [
        ("a highly detailed digital painting of a fox in a forest, trending on artstation, by Greg Rutkowski, 8k",
         "a fox in a forest"),
        ("A cat in the style of Van Gogh", "A cat"),
        ("Portrait of a knight, oil on canvas, masterpiece", "a knight"),
        ("cartoon dog running on the beach", "dog running on the beach"),
        ("two men playing chess, art by Alphonse Mucha and Klimt, cinematic lighting", "two men playing chess"),
        ("A photo of an astronaut riding a horse on mars.", "an astronaut riding a horse on mars"),
        ("an anime fox", "a fox"),
        ("a city at night. cyberpunk. rain", "a city at night, rain"),
        ("watercolor", ""),
        ("a painting", ""),
        ("a small red circle on a gray background", "a small red circle on a gray background"),
    ],
)  # fmt: skip
def test_rules_take_out_the_style_words_that_they_know(prompt, context):
    assert without_style(prompt) == context


@given(st.text(max_size=200))
def test_rules_read_any_text_and_leave_no_empty_parts(text):
    assert all(part.strip() for part in without_style(text).split(", ")) or not without_style(text)


@pytest.mark.parametrize(
    ("answer", "context"),
    [
        ('"A fox in a forest."\nI left out the style.', "A fox in a forest."),
        ("<think>The user wants\nsomething</think>\n\nA fox.", "A fox."),
        ("<think>never ends", ""),
        ("  \n ", ""),
        ("word " * 101, ""),
    ],
)
def test_an_answer_is_its_first_line_after_thinking_aloud(answer, context):
    assert clean(answer) == context


@pytest.mark.parametrize(
    ("how", "model", "message"),
    [
        ("rule", None, "Write rules, local:MODEL, endpoint:URL or none"),
        ("local:", None, "Write rules"),
        ("local:./nowhere", None, "there is no folder ./nowhere"),
        ("rules", "m", "--context-model goes with"),
        ("endpoint:http://localhost/v1", None, "needs --context-model"),
        ("endpoint:localhost:80", "m", "has no address such as http"),
        ("endpoint:http://me:secret@localhost/v1", "m", f"the key belongs in {KEY}"),
        ("endpoint:http://localhost/v1?key=secret", "m", f"the key belongs in {KEY}"),
    ],
)
def test_ways_that_make_no_sense_are_refused_without_repeating_a_secret(how, model, message):
    from mapo.errors import MapoError

    with pytest.raises(MapoError, match=message) as failure:
        open_rewriter(how, model)
    assert "secret" not in str(failure.value)


def test_contexts_are_kept_as_they_come_and_go_on_after_an_interruption(tmp_path):
    asked = []

    class Cut:
        name = "cut"

        def __init__(self, most):
            self.most = most

        def __call__(self, prompts):
            for prompt in prompts[: self.most]:
                asked.append(prompt)
                yield prompt, prompt.upper()
            if len(prompts) > self.most:
                raise KeyboardInterrupt

    own = tmp_path / "part" / "contexts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        list(Contexts(Cut(2), [], own).ensure(PROMPTS))
    with own.open("a") as file:
        file.write('{"prompt": "a red squ')  # torn
    contexts = Contexts(Cut(9), [own], own)
    assert list(contexts.ensure(PROMPTS)) == PROMPTS[2:] and asked == PROMPTS
    assert [Contexts(Cut(0), [own], own)[p] for p in PROMPTS] == [p.upper() for p in PROMPTS]
    assert Contexts(None, [], own)["an owl"] == "an owl"


# A local instruction model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny model with random weights and a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mapo.lab.mini.parts import make_tokenizer

    folder = tmp_path_factory.mktemp("llama") / "model"
    tokenizer = make_tokenizer(folder.parent / "tokenizer")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.model_max_length = 2048
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_model_answers_every_prompt_the_same_way_each_time(llama, monkeypatch):
    monkeypatch.setattr(module, "MOST_TOKENS", 8)
    monkeypatch.setattr(module, "ASKED_AT_ONCE", 2)
    rewriter = open_rewriter(f"local:{llama}")
    first, second = dict(rewriter(PROMPTS)), dict(rewriter(PROMPTS))
    assert list(first) == PROMPTS and first == second
    assert any(first.values())
    assert rewriter.name == f"local:{llama}"


def test_a_local_model_without_a_chat_template_is_refused(llama, tmp_path):
    import shutil

    from mapo.errors import MapoError

    shutil.copytree(llama, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(MapoError, match="has no chat template"):
        list(open_rewriter(f"local:{tmp_path / 'm'}")(PROMPTS))
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(MapoError, match="cannot be loaded"):
        list(open_rewriter(f"local:{tmp_path / 'm'}")(PROMPTS))


# An endpoint


@pytest.fixture
def server(monkeypatch):
    """A real server on loopback; ``answers`` are (status, body) in turn, then every prompt in capitals."""
    asked, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            said = {"choices": [{"message": {"content": body["messages"][-1]["content"].upper()}}]}
            status, said = answers.pop(0) if answers else (200, json.dumps(said))
            self.send_response(status)
            if status == 307:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, *args):
            pass

    monkeypatch.setattr(endpoint, "SECONDS_TO_WAIT", (0, 0, 0))
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1", asked, answers
    found.shutdown()
    found.server_close()


def test_an_endpoint_is_asked_for_each_prompt_with_the_key_of_the_environment(server, monkeypatch):
    url, asked, _ = server
    monkeypatch.setenv(KEY, "s3cret")
    rewriter = open_rewriter(f"endpoint:{url}", "some-model")
    assert dict(rewriter(PROMPTS)) == {p: p.upper() for p in PROMPTS}
    assert {(path, key) for path, key, _ in asked} == {("/v1/chat/completions", "Bearer s3cret")}
    assert {body["model"] for _, _, body in asked} == {"some-model"}
    assert rewriter.name == f"endpoint:{url} some-model"
    monkeypatch.delenv(KEY)
    assert dict(open_rewriter(f"endpoint:{url}/chat/completions", "m")(PROMPTS[:1])) == {"a fox, 8k": "A FOX, 8K"}
    assert asked[-1][:2] == ("/v1/chat/completions", None)


def test_a_busy_server_is_asked_again_and_a_refusal_is_told_without_the_key(server, monkeypatch):
    from mapo.errors import MapoError

    url, asked, answers = server
    monkeypatch.setenv(KEY, "s3cret")
    rewriter = open_rewriter(f"endpoint:{url}", "m")
    answers += [(503, "busy"), (429, "slower")]
    assert dict(rewriter(["an owl"])) == {"an owl": "AN OWL"} and len(asked) == 3
    answers += [(401, "the key s3cret is wrong")]
    with pytest.raises(MapoError, match=r"gave no answer \(401 the key \(key\) is wrong\)"):
        list(rewriter(["an owl"]))
    answers += [(500, "no")] * 4
    with pytest.raises(MapoError, match=r"500 no"):
        list(rewriter(["an owl"]))
    assert len(asked) == 8
    answers += [(200, "[]")] * 4
    with pytest.raises(MapoError, match="no chat completion came back"):
        list(rewriter(["an owl"]))


def test_the_key_follows_no_redirect(server, monkeypatch):
    from mapo.errors import MapoError

    url, asked, answers = server
    monkeypatch.setenv(KEY, "s3cret")
    answers += [(307, "")]
    with pytest.raises(MapoError, match="307"):
        list(open_rewriter(f"endpoint:{url}", "m")(["an owl"]))
    assert [path for path, _, _ in asked] == ["/v1/chat/completions"]


def test_a_server_that_is_not_there_is_named(monkeypatch):
    from mapo.errors import MapoError

    monkeypatch.setattr(endpoint, "SECONDS_TO_WAIT", (0,))
    with pytest.raises(MapoError, match=r"http://127.0.0.1:9/v1/chat/completions gave no answer"):
        list(open_rewriter("endpoint:http://127.0.0.1:9/v1", "m")(["an owl"]))


def test_the_key_is_written_into_no_file_of_a_build(server, tmp_path, sdxl, monkeypatch):
    from mapo.build.build import build
    from mapo.build.recipe import read_recipe
    from mapo.pairs import PairSet

    url, _, _ = server
    monkeypatch.setenv(KEY, "s3cret-of-the-endpoint")
    build(
        read_recipe("pick-style-cartoon"), str(sdxl), PROMPTS, 3, tmp_path / "p",
        context=f"endpoint:{url}", context_model="m", steps=1, images_per_batch=4,
    )  # fmt: skip
    assert [p.prompt for p in PairSet(tmp_path / "p")] == [p.upper() for p in PROMPTS]
    assert not any(b"s3cret" in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
