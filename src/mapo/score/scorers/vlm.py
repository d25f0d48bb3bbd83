"""A judge that sees and reads: a vision-language model gives 1 … 10 for how well a picture is what was asked for.

``vlm@FOLDER`` or ``vlm@OWNER/NAME`` is a model of Qwen2-VL's kind on this machine; ``vlm@endpoint:URL#MODEL`` is one
behind an OpenAI-compatible server, to which the pictures are sent. The question is the file ``vlm.txt`` beside this
module, or the one that the environment variable ``MAPO_VLM_TEMPLATE`` names. An answer without such a number gives no
score.
"""

from __future__ import annotations

import base64
import importlib.resources
import inspect
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from mapo.devices import best_device
from mapo.errors import MapoError, count, reason
from mapo.files import sha256
from mapo.pretrained import CHAT, MODEL, Repository
from mapo.sample.folder import png_bytes
from mapo.score.scorers import Unfinished, check_inputs
from mapo.score.scorers.endpoint import ASKED_AT_ONCE, Endpoint, NoAnswer
from mapo.texts import read_text

TEMPLATE = "MAPO_VLM_TEMPLATE"  # the environment variable with the path of a question of the user's own
QWEN = Repository("Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac")
KINDS = ("qwen2_vl", "qwen2_5_vl")
MOST_TOKENS = 64
MOST_SILENT = 8  # pictures in a row without any answer, before an endpoint counts as gone
NAMED = 5


class BackEnd(Protocol):
    """Where the model is."""

    name: str
    revision: str

    def __call__(self, pictures: Sequence[Image], questions: Sequence[str]) -> list[tuple[int | None, str]]:
        """The score of each picture, or None and why there is none."""


class VlmScore:
    """1 … 10, or None where the model gave no number; higher is better.

    As a judge of pairs it is asked with the prefix of the chosen picture, and where it only has to pass a threshold it
    sees the chosen picture alone.
    """

    metrics: tuple[str, ...] = ("vlm_score",)
    needs = ((QWEN, MODEL), (QWEN, CHAT))
    needs_reference = False
    whole_prompts = False
    judges_request = True

    def __init__(self, source: str | None = None) -> None:
        self.template = read_template()
        self.version = f"1 template {sha256(self.template.encode())[:8]}"
        self.back_end: BackEnd = open_back_end(source)
        self.name, self.revision = self.back_end.name, self.back_end.revision
        self.asked, self.missing = 0, list[tuple[str, str]]()

    def __call__(
        self, pictures: Sequence[Image], prompts: Sequence[str], references: object = None
    ) -> Mapping[str, Sequence[float | None]]:
        """What the model thinks of each picture, one picture at a time."""
        check_inputs("vlm", pictures, prompts)
        questions = [self.template.replace("{prompt}", prompt.replace("<|", "< |")) for prompt in prompts]
        said = self.back_end(pictures, questions)
        self.asked += len(said)
        self.missing += [(p, why) for p, (score, why) in zip(prompts, said, strict=True) if score is None]
        return {"vlm_score": [None if score is None else float(score) for score, _ in said]}

    def notes(self) -> list[str]:
        """One sentence on the pictures without a score, the first five named."""
        if not self.missing:
            return []
        named = [f"{textwrap.shorten(p, 60)!r} ({textwrap.shorten(why, 120)})" for p, why in self.missing[:NAMED]]
        more = f"; and {len(self.missing) - NAMED} more" if len(self.missing) > NAMED else ""
        return [
            f"{self.name}: {len(self.missing)} of {count(self.asked, 'picture')} "
            f"{'has' if len(self.missing) == 1 else 'have'} no score, as no number from 1 to 10 came "
            f"back: {'; '.join(named)}{more}"
        ]


def read_template() -> str:
    """The question with ``{prompt}`` in it: the package's own, or the user's."""
    own = os.environ.get(TEMPLATE)
    if not own:
        return (importlib.resources.files("mapo.score.scorers") / "vlm.txt").read_text("utf-8")
    try:
        text = read_text(Path(own).expanduser())
    except (OSError, ValueError) as error:
        raise MapoError(f"vlm: the template {own} ({TEMPLATE}) cannot be read ({error}).") from None
    if "{prompt}" not in text:
        raise MapoError(f"vlm: the template {own} ({TEMPLATE}) has no {{prompt}} in it, where each prompt goes.")
    return text


def read_score(answer: str) -> int | None:
    """The number behind "score:", or an answer that is nothing but a number; whole and 1 … 10, else None.

    Where "score:" stands more than once with different things behind it, nobody knows which was meant: None.
    """
    text = re.sub(r"<think>.*?(?:</think>|$)", "", answer, flags=re.DOTALL).strip()
    words = re.findall(r"\bscore[\"'*_\s]*[:=][\"'*_\s]*(\S+)", text, re.IGNORECASE) or [text]
    numbers = [re.fullmatch(r"[*_]*(\d{1,2})(?:\s*/\s*10)?[.,;}\"'*_]*", word) for word in words]
    said = {int(number[1]) if number else None for number in numbers}
    (score,) = said if len(said) == 1 else (None,)
    return score if score is not None and 1 <= score <= 10 else None


def open_back_end(source: str | None) -> BackEnd:
    """A model on this machine or behind an endpoint."""
    if source is None or not source.startswith("endpoint:"):
        return LocalVlm(source)
    url, _, model = source.removeprefix("endpoint:").partition("#")
    if not model:
        raise MapoError("vlm@endpoint: name the model at that address: vlm@endpoint:URL#MODEL.")
    return RemoteVlm(url, model)


class RemoteVlm:
    """A model behind an endpoint; what weights are behind its name, nobody knows, so the address is the revision."""

    def __init__(self, url: str, model: str) -> None:
        self.endpoint = Endpoint("vlm", url, model)
        self.name, self.revision = f"vlm@{model}", f"endpoint {self.endpoint.url}"
        self.silent = 0

    def __call__(self, pictures: Sequence[Image], questions: Sequence[str]) -> list[tuple[int | None, str]]:
        """Eight questions at a time, a few tries each."""
        pool = ThreadPoolExecutor(ASKED_AT_ONCE)
        result: list[tuple[int | None, str]] = []
        try:
            for done in [pool.submit(self._ask, p, q) for p, q in zip(pictures, questions, strict=True)]:
                score, failure = done.result()
                self.silent = self.silent + 1 if failure and failure.kind == "silent" else 0
                if failure and (failure.kind == "refused" or self.silent >= MOST_SILENT):
                    silence = f"vlm: {self.endpoint.url} gave no answer ({failure})."
                    raise Unfinished(
                        f"{silence} Mend it and give the same command again.",
                        {"vlm_score": [None if score is None else float(score) for score, _ in result]},
                    )
                result.append((score, str(failure or "")))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return result

    def _ask(self, picture: Image, question: str) -> tuple[int | None, NoAnswer | None]:
        url = "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        try:
            return self.endpoint.ask([{"role": "user", "content": content}], read_score), None
        except NoAnswer as failure:
            return None, failure


class LocalVlm:
    """A model of Qwen2-VL's kind; its most likely answer, for one picture at a time, so that none depends on another.

    It is put together from picture processor and tokenizer, as its own processor wants one for videos too, which needs
    torchvision. Weights are loaded when they are first asked for.
    """

    def __init__(self, source: str | None) -> None:
        from mapo.pretrained import find_files, load_processor, quiet, read_json_object
        from mapo.score.scorers.similarity import join

        weights = source or QWEN
        model, chat = (find_files("vlm", weights, files) for files in (MODEL, CHAT))
        self.folder = model.folder
        self.name, self.revision = f"vlm@{model.name}" if source else "vlm", join(model.revision, chat.revision)
        self.config = read_json_object("vlm", self.folder / "config.json")
        if (kind := self.config.get("model_type")) not in KINDS:
            raise MapoError(
                f"vlm: {self.folder} is a model of the kind {kind}; on this machine it can be {' or '.join(KINDS)}. "
                "Serve others and give vlm@endpoint:URL#MODEL."
            )
        self.processor = load_processor("vlm", self.folder)
        try:
            import transformers

            with quiet():
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        except Exception as error:
            raise MapoError(f"vlm: the tokenizer in {self.folder} is damaged ({reason(error)}).") from None
        beside = self.folder / "chat_template.json"
        if not self.tokenizer.chat_template and beside.is_file():
            self.tokenizer.chat_template = read_json_object("vlm", beside).get("chat_template")
        if not self.tokenizer.chat_template:
            raise MapoError(f"vlm: {self.folder} has no chat template, so it follows no instructions. Give another.")

    @cached_property
    def model(self) -> Any:
        """The network, in the precision of its file."""

        from mapo.pretrained import load_model

        model = load_model("vlm", self.folder, "AutoModelForImageTextToText", dtype="auto")
        return model.eval().to(best_device())

    def __call__(self, pictures: Sequence[Image], questions: Sequence[str]) -> list[tuple[int | None, str]]:
        """The most likely answer to each."""
        return [self._ask(picture, question) for picture, question in zip(pictures, questions, strict=True)]

    def _ask(self, picture: Image, question: str) -> tuple[int | None, str]:
        import torch

        from mapo.pretrained import quiet

        with quiet(), torch.inference_mode():
            try:
                inputs = self.inputs(picture, question)
            except ValueError as error:  # such as a picture two hundred times as long as wide
                return None, str(error)
            made = self.generate(**inputs)
        answer = self.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        score = read_score(answer)
        return score, "" if score is not None else f"it said {answer[:160]!r}"

    @property
    def generate(self) -> Any:
        """Greedy, whatever the model's folder advises: a penalty for repeating would punish the scale's numbers."""
        none = dict.fromkeys(("temperature", "top_p", "top_k"))
        return partial(
            self.model.generate,
            max_new_tokens=MOST_TOKENS,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            **none,
        )

    def inputs(self, picture: Image, question: str) -> dict[str, Any]:
        """Token ids "1 t" with a place for each patch of the picture, and the patches, as Qwen2-VL's own processor
        makes them."""
        import torch

        seen = self.processor(images=[picture], return_tensors="pt", input_data_format="channels_last")
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        one = int(self.model.config.image_token_id)
        mark = self.tokenizer.convert_ids_to_tokens(one)
        if text.count(mark) != 1:
            raise MapoError(
                f"vlm: the chat template in {self.folder} makes no place for a picture. Give another model."
            )
        places = int(seen["image_grid_thw"].prod()) // self.processor.merge_size**2
        tokens = self.tokenizer(text.replace(mark, mark * places), return_tensors="pt", add_special_tokens=False)
        ids = tokens["input_ids"]
        found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **seen}
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:  # since transformers 5
            found["mm_token_type_ids"] = (ids == one).int()
        return {name: value.to(self.model.device) for name, value in found.items()}
