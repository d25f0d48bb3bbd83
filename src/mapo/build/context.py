"""Context prompts: what a prompt shows, without the words about how it is drawn.

``rules`` takes out style words that it knows, and knows no others; ``local:MODEL`` asks an instruction model on this
machine; ``endpoint:URL`` asks an OpenAI-compatible server. A prompt of which nothing is left has the context "".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from mapo.captions.clean import without_style
from mapo.devices import best_device
from mapo.errors import MapoError, reason
from mapo.score.scorers.endpoint import ASKED_AT_ONCE, Endpoint, NoAnswer
from mapo.texts import append_lines, read_lines

MOST_WORDS, MOST_TOKENS = 100, 200
INSTRUCTION = (
    "You are given a prompt for a picture. Say in one plain sentence what the picture shows: who or what, where, doing "
    "what, with which colours and things. Leave out everything about how it is made: style, medium, artist, camera, "
    "lighting, quality, resolution, the names of websites and programs. Invent nothing. Answer with that sentence only."
)


class Rewriter(Protocol):
    """What turns prompts into context prompts."""

    name: str  # with its version or model, as the set's provenance keeps it

    def __call__(self, prompts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Each prompt with its context as they are done, in any order."""


def open_rewriter(how: str, model: str | None = None) -> Rewriter | None:
    """``none``, ``rules``, ``local:MODEL`` or ``endpoint:URL`` (with the name of a model there)."""
    kind, _, rest = how.partition(":")
    if model and kind != "endpoint":
        raise MapoError("--context-model goes with --context endpoint:URL; a local model is named by local:MODEL.")
    if how == "none":
        return None
    if how == "rules":
        return Rules()
    if kind == "local" and rest:
        return LocalWriter(rest)
    if kind == "endpoint" and rest:
        return RemoteWriter(rest, model)
    raise MapoError(f"--context {how!r} is not known. Write rules, local:MODEL, endpoint:URL or none.")


class Rules:
    """A list of rules: it takes out the style words that stand in it, and leaves all others."""

    name = "rules 1 (a list of style words)"

    def __call__(self, prompts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Each prompt in turn."""
        for prompt in prompts:
            yield prompt, without_style(prompt)


def clean(answer: str) -> str:
    """A model's answer as a context prompt: its first line after any thinking aloud; "" where it is none."""
    text = re.sub(r"<think>.*?(?:</think>|$)", "", answer, flags=re.DOTALL)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = " ".join(line.strip("\"'“”‘’*` ").split())
    return line if len(line.split()) <= MOST_WORDS else ""


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]


class LocalWriter:
    """An instruction model of transformers; its most likely answer, so the same prompts give the same contexts.

    It is in memory only while a call lasts: pictures are made afterwards.
    """

    def __init__(self, model: str) -> None:
        if not Path(model).is_dir() and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
            raise MapoError(f"--context: there is no folder {model}. Give a folder with a model, or a hub id.")
        self.model = model
        self.name = f"local:{model}"

    def __call__(self, prompts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """In portions of eight."""
        import torch

        tokenizer, model = self._load(best_device())
        for start in range(0, len(prompts), ASKED_AT_ONCE):
            batch = prompts[start : start + ASKED_AT_ONCE]
            texts = [
                tokenizer.apply_chat_template(
                    _messages(p), tokenize=False, add_generation_prompt=True, enable_thinking=False
                )
                for p in batch
            ]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
            with torch.inference_mode():
                made = model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
            answers = tokenizer.batch_decode(made[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            yield from zip(batch, map(clean, answers), strict=True)

    def _load(self, device: str) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto", use_safetensors=True)
        except Exception as error:
            raise MapoError(f"--context: the model {self.model} cannot be loaded ({reason(error)}).") from None
        if not tokenizer.chat_template:
            raise MapoError(
                f"--context: {self.model} has no chat template, so it follows no instructions. Give another."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, model.to(device).eval()


class RemoteWriter:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(self, url: str, model: str | None) -> None:
        self.endpoint = Endpoint("--context", url, model or "")
        if not model:
            raise MapoError("--context endpoint:URL needs --context-model: the name of the model at that address.")
        self.name = f"endpoint:{url} {model}"

    def __call__(self, prompts: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Eight questions at a time."""
        pool = ThreadPoolExecutor(ASKED_AT_ONCE)
        try:
            asked = {pool.submit(self.ask, prompt): prompt for prompt in prompts}
            for done in as_completed(asked):
                yield asked[done], clean(done.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, prompt: str) -> str:
        """The answer to one question; tried again while the server is busy or out of reach."""
        try:
            return self.endpoint.ask(_messages(prompt), str)
        except NoAnswer as failure:
            raise MapoError(
                f"--context: {self.endpoint.url} gave no answer ({failure}). Contexts so far are kept; mend it "
                "and give the same command again."
            ) from None


class Contexts:
    """The contexts of a build's prompts in ``contexts.jsonl`` files; a torn last line counts as not there."""

    def __init__(self, rewriter: Rewriter | None, known: Sequence[Path], own: Path) -> None:
        self.rewriter, self.own = rewriter, own
        self._of: dict[str, str] = {}
        for path in known:
            for row in read_lines(path):
                if isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("context"), str):
                    self._of.setdefault(row["prompt"], row["context"])

    def ensure(self, prompts: Sequence[str]) -> Iterator[str]:
        """Rewrite those of ``prompts`` that have no context yet, keeping each at once; yields them as they are done."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._of]
        if self.rewriter is None or not missing:
            return
        self.own.parent.mkdir(parents=True, exist_ok=True)
        for prompt, context in self.rewriter(missing):
            append_lines(self.own, [{"prompt": prompt, "context": context, "by": self.rewriter.name}])
            self._of[prompt] = context
            yield prompt

    def __getitem__(self, prompt: str) -> str:
        """The context of a prompt; without a rewriter the prompt itself."""
        return prompt if self.rewriter is None else self._of[prompt]
