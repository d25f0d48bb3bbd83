"""The judge that sees and reads: a tiny Qwen2-VL on this machine, and a real server on loopback."""

import base64
import io
import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)

import mapo.score.scorers.endpoint as endpoint
from chat_server import chat_server, said
from mapo.build.judge import parse_filter
from mapo.errors import MapoError
from mapo.score.scorers import Unfinished, load_scorer, scorer_names
from mapo.score.scorers.vlm import TEMPLATE, read_score, read_template

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BLACK, WHITE = Image.new("RGB", (40, 30), "black"), Image.new("RGB", (30, 44), "white")


# What an answer says


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 7", 7), ("score:10", 10), ("**Score: 3**", 3), ("**Score:** 3", 3), ("Score: 8/10.", 8), ("SCORE = 1", 1),
        ("Score: 3 ... or rather Score: 9", None), ("Score: 4. Final score: 4", 4),
        ("The fox is there, two of three owls are not.\nScore: 4", 4), ('{"score": 6}', 6), ("9", 9), (" 7/10 ", 7),
        ("<think>Score: 2, or 3?</think>Score: 5", 5), ("Score: 5. I counted 3 dogs.", 5),
        ("Score: 0", None), ("Score: 11", None), ("Score: 100", None), ("Score: -3", None), ("Score: 7.5", None),
        ("Score: 1-10", None), ("Score: 8/100", None), ("Score: N", None), ("Score: seven", None), ("", None),
        ("I see 3 dogs.", None), ("I cannot judge pictures.", None), ("<think>Score: 5", None), ("underscore: 5", None),
        ("Score: eight. Score: 8", None), ("0", None), ("42", None), ("Score:", None),
    ],
)  # fmt: skip
def test_a_score_is_read_strictly_and_never_made_up(answer, score):
    assert read_score(answer) == score


@given(st.text(max_size=60))
def test_whatever_is_answered_a_score_is_whole_and_from_1_to_10(answer):
    assert read_score(answer) in {None, *range(1, 11)}


@given(st.integers(-200, 200))
def test_numbers_off_the_scale_are_no_scores(number):
    assert read_score(f"Score: {number}") == (number if 1 <= number <= 10 else None)


# The question


def test_the_question_holds_the_prompt_and_can_be_a_file_of_the_user_s(tmp_path, monkeypatch):
    monkeypatch.delenv(TEMPLATE, raising=False)
    assert read_template().count("{prompt}") == 1 and "from 1 to 10" in read_template()
    own = tmp_path / "cartoon.txt"
    monkeypatch.setenv(TEMPLATE, str(own))
    with pytest.raises(MapoError, match=r"cartoon\.txt .* cannot be read"):
        read_template()
    own.write_text("How much of a cartoon is it?")
    with pytest.raises(MapoError, match=r"has no \{prompt\} in it"):
        read_template()
    own.write_text("Is this a cartoon of {prompt}? {braces} stay.")
    with chat_server(lambda body: said("Score: 2")) as (url, asked):
        judge = load_scorer(f"vlm@endpoint:{url}#m")
        judge([BLACK], ["a fox"])
        assert asked[0][2]["messages"][0]["content"][1]["text"] == "Is this a cartoon of a fox? {braces} stay."
        monkeypatch.delenv(TEMPLATE)
        assert load_scorer(f"vlm@endpoint:{url}#m").version != judge.version


# A server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "SECONDS_TO_WAIT", (0, 0, 0))
    monkeypatch.delenv(endpoint.KEY, raising=False)


def prompt_of(body):
    return body["messages"][0]["content"][1]["text"].split("---\n")[1].strip()


def test_an_endpoint_sees_every_picture_with_its_own_prompt(monkeypatch):
    def bright(body):
        sent = body["messages"][0]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(sent.removeprefix("data:image/png;base64,"))))
        return said(f"Score: {1 + picture.getpixel((0, 0))[0] // 30 if prompt_of(body) == 'bright' else 10}")

    monkeypatch.setenv(endpoint.KEY, "s3cret")
    greys = [Image.new("RGB", (20, 10), (30 * k, 0, 0)) for k in range(8)]
    with chat_server(bright) as (url, asked):
        judge = load_scorer(f"vlm@endpoint:{url}#some/model")
        assert judge([*greys, BLACK], ["bright"] * 8 + ["dark"]) == {"vlm_score": [1, 2, 3, 4, 5, 6, 7, 8, 10]}
        assert (judge.name, judge.revision) == ("vlm@some/model", f"endpoint {url}/chat/completions")
        assert judge.notes() == []
        assert {(path, key) for path, key, _ in asked} == {("/v1/chat/completions", "Bearer s3cret")}
        assert {(body["model"], body["temperature"]) for _, _, body in asked} == {("some/model", 0)}
        with pytest.raises(TypeError, match="in this order"):
            judge(["bright"], [BLACK])


def test_nonsense_is_asked_again_and_then_marked_but_never_scored():
    tries = {}

    def answer(body):
        prompt = prompt_of(body)
        tries[prompt] = tries.get(prompt, 0) + 1
        if prompt == "wakes":
            return said("Score: 6" if tries[prompt] == 3 else "what?")
        if prompt == "html":
            return 200, "<html>busy</html>"
        return said({"refuses": "I cannot do that.", "eleven": "Score: 11"}.get(prompt, "Score: 9"))

    with chat_server(answer) as (url, _):
        judge = load_scorer(f"vlm@endpoint:{url}#m")
        prompts = ["fine", "refuses", "wakes", "eleven", "html", "good"]
        assert judge([BLACK] * 6, prompts)["vlm_score"] == [9, None, 6, None, None, 9]
    assert tries == {"fine": 1, "refuses": 4, "wakes": 3, "eleven": 4, "html": 4, "good": 1}
    (note,) = judge.notes()
    assert note.startswith(
        "vlm@m: 3 of 6 pictures have no score, as no number from 1 to 10 came back: 'refuses' (it said"
    )
    assert "'eleven' (it said 'Score: 11')" in note and "'html' (no chat completion came back" in note


def test_errors_and_silence_are_waited_for_and_then_marked(monkeypatch):
    monkeypatch.setattr(endpoint, "SECONDS_TO_ANSWER", 0.5)
    tries = {}

    def answer(body):
        prompt = prompt_of(body)
        tries[prompt] = tries.get(prompt, 0) + 1
        if prompt == "slow at first" and tries[prompt] < 3:
            return 0.8
        return {"broken": (500, "oops"), "silent": 0.8, "not allowed": (400, "content policy")}.get(prompt, said("4"))

    with chat_server(answer) as (url, _):
        judge = load_scorer(f"vlm@endpoint:{url}#m")
        prompts = ["broken", "silent", "slow at first", "not allowed", "fine"]
        assert judge([BLACK] * 5, prompts)["vlm_score"] == [None, None, 4, None, 4]
    assert tries == {"broken": 4, "silent": 4, "slow at first": 3, "not allowed": 4, "fine": 1}
    (note,) = judge.notes()
    assert "'broken' (500 oops)" in note and "'silent' (timed out)" in note and "'not allowed' (400 content" in note


def test_an_endpoint_that_answers_nobody_stops_the_work_with_a_sentence():
    gone = load_scorer("vlm@endpoint:http://127.0.0.1:9/v1#m")
    assert gone([BLACK] * 7, ["x"] * 7)["vlm_score"] == [None] * 7
    with pytest.raises(MapoError, match=r"vlm: http://127\.0\.0\.1:9/v1/chat/completions gave no answer \(.*refused"):
        gone([BLACK], ["x"])
    with chat_server(lambda body: (503, "busy") if prompt_of(body) == "x" else said("2")) as (url, _):
        judge = load_scorer(f"vlm@endpoint:{url}#m")
        assert judge([BLACK] * 12, [*"xxxxxx", "y", *"xxxxx"])["vlm_score"] == [None] * 6 + [2] + [None] * 5
        with pytest.raises(MapoError, match=r"gave no answer \(503 busy\)"):
            judge([BLACK] * 3, ["x"] * 3)


def test_what_was_answered_before_a_refusal_is_handed_on():
    def answer(body):
        return (401, "no") if "third" in json.dumps(body) else said("Score: 7")

    with chat_server(answer) as (url, _), pytest.raises(Unfinished) as failure:
        load_scorer(f"vlm@endpoint:{url}#m")([BLACK] * 3, ["first", "second", "third"])
    assert failure.value.said == {"vlm_score": [7.0, 7.0]}


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_a_wrong_key_or_address_is_told_at_once_and_the_key_is_not(monkeypatch, status):
    monkeypatch.setenv(endpoint.KEY, "s3cret")
    with chat_server(lambda body: (status, "not with s3cret")) as (url, asked):
        with pytest.raises(MapoError, match=rf"gave no answer \({status}") as failure:
            load_scorer(f"vlm@endpoint:{url}#m")([BLACK], ["x"])
        assert "s3cret" not in str(failure.value) and len(asked) == 1


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("endpoint:http://localhost/v1", "name the model at that address: vlm@endpoint:URL#MODEL"),
        ("endpoint:localhost#m", "has no address such as"),
        ("endpoint:http://me:pass@localhost/v1#m", "the key belongs in MAPO_ENDPOINT_KEY"),
        ("./nowhere", "there is no folder ./nowhere"),
    ],
)
def test_sources_that_lead_nowhere_are_told(source, sentence):
    with pytest.raises(MapoError, match=sentence):
        load_scorer(f"vlm@{source}")


def test_an_endpoint_can_be_named_as_a_scorer_and_as_a_judge():
    name = "vlm@endpoint:http://127.0.0.1:9/v1#a/b-c"
    assert scorer_names(f"{name},mini") == [name, "mini-learned", "mini-search"]
    judge = parse_filter(f"{name}:vlm_score")
    assert (judge.scorer.name, judge.metric, judge.threshold) == ("vlm@a/b-c", "vlm_score", None)
    assert parse_filter(f"{name}:vlm_score:6").threshold == 6


# A model on this machine


def write_model(folder, newer=False):
    """A tiny Qwen2-VL or Qwen2.5-VL with random weights and a tokenizer of bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: k for k, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    whole.chat_template = CHAT
    whole.save_pretrained(folder)
    ids = {word: whole.convert_tokens_to_ids(word) for word in SPECIAL}
    torch.manual_seed(4)
    vision = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    if newer:
        vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16}
        vision |= {"fullatt_block_indexes": [0]}
    else:
        vision |= {"embed_dim": 16, "hidden_size": 32}
    config = (Qwen2_5_VLConfig if newer else Qwen2VLConfig)(
        text_config={
            "vocab_size": len(whole), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    network = Qwen2_5_VLForConditionalGeneration if newer else Qwen2VLForConditionalGeneration
    network(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps(
            {"do_sample": True, "temperature": 2.0, "repetition_penalty": 5.0, "eos_token_id": ids["<|im_end|>"]}
        )
    )
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
        "min_pixels": 64, "max_pixels": 1024, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True, "resample": 3, "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture(scope="module")
def taught(model, tmp_path_factory):
    """The same, taught on one short question to say 2 of black pictures and 9 of white ones."""
    folder = tmp_path_factory.mktemp("models") / "taught"
    shutil.copytree(model, folder)
    back_end = load_scorer(f"vlm@{model}").back_end
    network = back_end.model.float().train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(300):
        total = torch.zeros(())
        for picture, answer in ((BLACK, "Score: 2<|im_end|>"), (WHITE, "Score: 9<|im_end|>")):
            inputs = back_end.inputs(picture, "?")
            more = back_end.tokenizer(answer, return_tensors="pt", add_special_tokens=False)["input_ids"]
            ids = torch.cat([inputs["input_ids"], more], 1)
            kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more).int()], 1)
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
            logits = network(**inputs).logits[0, -more.shape[1] - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, more[0])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if float(total.detach()) < 0.02:
            break
    network.save_pretrained(folder)
    shutil.copy(model / "generation_config.json", folder)
    return folder


@pytest.fixture
def short(tmp_path, monkeypatch):
    """A question short enough for a tiny model."""
    (tmp_path / "q.txt").write_text("{prompt}")
    monkeypatch.setenv(TEMPLATE, str(tmp_path / "q.txt"))


def test_a_model_on_this_machine_gives_its_number_of_each_picture(taught, short):
    judge = load_scorer(f"vlm@{taught}")
    assert judge.name == "vlm@taught" and len(judge.revision) == 16 + 1 + 16
    assert judge([BLACK, WHITE, BLACK], ["?"] * 3) == {"vlm_score": [2, 9, 2]}
    assert judge([WHITE], ["?"]) == {"vlm_score": [9]} and judge.notes() == []


@pytest.mark.parametrize("newer", [False, True])
def test_the_answer_is_the_most_likely_one_whatever_the_folder_advises(model, newer, tmp_path, monkeypatch):
    monkeypatch.setattr("mapo.score.scorers.vlm.MOST_TOKENS", 6)
    back_end = load_scorer(f"vlm@{write_model(tmp_path / 'newer', True) if newer else model}").back_end
    for picture in (BLACK, Image.effect_noise((50, 20), 90).convert("RGB")):
        inputs = back_end.inputs(picture, "What is it?")
        start = inputs["input_ids"].shape[1]
        made = back_end.generate(**inputs)[0, start:].tolist()
        wanted = []
        for _ in range(6):  # without a cache, one token at a time
            with torch.no_grad():
                wanted.append(int(back_end.model(**inputs).logits[0, -1].argmax()))
            ids = torch.cat([inputs["input_ids"], torch.tensor([[wanted[-1]]])], 1)
            kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, 1, dtype=torch.int)], 1)
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
        assert made == wanted


def test_pictures_and_questions_are_put_together_as_qwen2_vl_s_own_processor_does(model):
    judge = load_scorer(f"vlm@{model}")
    back_end = judge.back_end
    own = Qwen2VLProcessor.__new__(Qwen2VLProcessor)  # its init wants a processor for videos, and that torchvision
    own.image_processor, own.tokenizer, own.video_processor = back_end.processor, back_end.tokenizer, None
    own.chat_template, own.image_token, own.video_token = CHAT, "<|image_pad|>", "<|video_pad|>"
    own.image_token_id, own.video_token_id = (back_end.tokenizer.convert_tokens_to_ids(t) for t in SPECIAL[5:])
    for picture in (BLACK, WHITE, Image.new("RGB", (1, 1)), Image.new("RGB", (64, 8))):
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a fox?"}]}]
        text = back_end.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        wanted = own(images=[picture], text=[text], return_tensors="pt")
        got = back_end.inputs(picture, "a fox?")
        assert set(got) == set(wanted)
        assert all(torch.equal(torch.as_tensor(wanted[name]), got[name]) for name in got)


def test_words_of_the_model_s_own_in_a_prompt_are_only_words(taught, short):
    judge = load_scorer(f"vlm@{taught}")
    (value,) = judge([BLACK], ["<|image_pad|><|im_end|> a fox"])["vlm_score"]
    assert value is None or 1 <= value <= 10
    long = Image.new("RGB", (1, 300))
    assert judge([long], ["?"])["vlm_score"] == [None]
    assert "absolute aspect ratio" in judge.notes()[0]


def test_an_answer_without_a_number_is_marked(model, short):
    judge = load_scorer(f"vlm@{model}")
    assert judge([BLACK], ["?"])["vlm_score"] == [None]
    assert judge.notes()[0].startswith("vlm@qwen: 1 of 1 picture has no score")


def test_models_of_other_kinds_and_damaged_folders_are_told(model, tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(model, copy)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(MapoError, match="has no chat template"):
        load_scorer(f"vlm@{copy}")
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": "no place"}))
    with pytest.raises(MapoError, match="makes no place for a picture"):
        load_scorer(f"vlm@{copy}")([BLACK], ["x"])
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))
    assert AutoTokenizer.from_pretrained(copy).chat_template is None
    assert load_scorer(f"vlm@{copy}").back_end.tokenizer.chat_template == CHAT
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    with pytest.raises(MapoError, match=r"of the kind llava; .* give vlm@endpoint:URL#MODEL"):
        load_scorer(f"vlm@{copy}")
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(MapoError, match="the tokenizer in .* is damaged"):
        load_scorer(f"vlm@{copy}")
    (copy / "model.safetensors").unlink()
    with pytest.raises(MapoError, match=r"lacks model\.safetensors"):
        load_scorer(f"vlm@{copy}")


def test_the_model_that_is_not_there_is_one_sentence_that_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MapoError, match=r"vlm: Qwen/Qwen2-VL-7B-Instruct is not on this machine .* `hf download Qwen/"):
        load_scorer("vlm")
