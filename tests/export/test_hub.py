"""The card says what the set records, and the hub is given just the folder."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import DatasetCard, HfApi
from PIL import Image

from data_fixtures import BLUE, GREEN, PICTURES, RED, files_below, make_set
from mapo import __version__
from mapo.cli import cli
from mapo.errors import MapoError
from mapo.export.pairs import export_pairs, export_to_hub, parse_licences
from mapo.pairs import PairSet, PairWriter
from mapo.pairs.provenance import flat, sources

PROVENANCE = {
    "recipe": {
        "name": "pick-style-cartoon",
        "about": "cartoons | over *photos*",
        "chosen": {"prefix": "Disney style."},
    },
    "model": "/home/somebody/models/sdxl-mine",
    "revision": "abc123",
    "sampler": "EulerDiscreteScheduler",
    "sampling": {"steps": 25, "guidance": 5.0, "negative_prompt": ""},
    "prompts": "/home/somebody/prompts.txt",
    "judges": ["pickscore:pickscore (version 1, weights a4e4)", "clip:clip_score:20 (version 1)"],
    "counts": {"tried": 80, "judged_out": 14},
}


def write(folder: Path, sensitive: bool = False, provenance: dict[str, Any] = PROVENANCE) -> PairSet:
    with PairWriter(folder, provenance, sensitive=sensitive) as writer:
        for k in range(60):
            meta = {"chosen": {"model": "/home/somebody/models/sdxl-mine", "prefix": "/imagine", "seed": k}}
            writer.add_pair(f"Bär {k}", PICTURES[k % 6], PICTURES[(k + 1) % 6], source="pick-style-cartoon", meta=meta)
        writer.add_pair("tie", RED, BLUE, preference=0.5, split="train")
        writer.add_pair("graded", RED, GREEN, preference=0.7, weight=2.0, split="train")
    return PairSet(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    return write(tmp_path_factory.mktemp("sets") / "my pairs")


def card_of(folder: Path) -> DatasetCard:
    return DatasetCard((folder / "README.md").read_text("utf-8"))


def row_of(card: DatasetCard, name: str) -> str:
    (line,) = [line for line in card.text.splitlines() if line.startswith(f"| {name} |")]
    return line.removeprefix(f"| {name} |").removesuffix("|").strip()


def test_load_dataset_opens_it_by_its_card_and_pictures_are_pictures(
    pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_pairs(pairs, "hub", tmp_path / "hf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {
        split: sum(p.split == split for p in pairs) for split in ("train", "validation", "test")
    }
    row = found["train"][0]
    assert all(isinstance(row[side], Image.Image) for side in ("chosen", "rejected"))
    assert row["prompt"] == next(p.prompt for p in pairs if p.split == "train")


def test_the_front_matter_is_what_the_hub_reads(pairs: PairSet, tmp_path: Path) -> None:
    export_pairs(pairs, "hub", tmp_path / "hf", licence="cc-by-4.0")
    data = card_of(tmp_path / "hf").data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["task_categories"] == ["text-to-image"]
    assert "preference" in data["tags"] and "not-for-all-audiences" not in data["tags"]
    assert data["size_categories"] == ["n<1K"]
    counts = {split: sum(p.split == split for p in pairs) for split in ("train", "validation", "test")}
    info = data["dataset_info"]
    assert {s["name"]: s["num_examples"] for s in info["splits"]} == counts
    assert info["download_size"] == sum(f.stat().st_size for f in (tmp_path / "hf" / "data").iterdir())
    assert {f["name"]: f["dtype"] for f in info["features"]}["chosen"] == "image"
    (config,) = data["configs"]
    for file in config["data_files"]:
        assert list((tmp_path / "hf").glob(file["path"])), file


def test_the_body_says_what_the_set_records_and_nothing_of_this_machine(pairs: PairSet, tmp_path: Path) -> None:
    export_pairs(pairs, "hub", tmp_path / "hf", repo="me/cartoons")
    card = card_of(tmp_path / "hf")
    train = [p for p in pairs if p.split == "train"]
    assert row_of(card, "train") == f"{len(train)} | 1 | {len(train)}"
    assert "6 different pictures. Preferences between a tie and sure: 1. Weights other than 1: 1." in card.text
    assert row_of(card, "recipe · name") == "pick-style-cartoon"
    assert row_of(card, "recipe · about") == r"cartoons \| over \*photos\*"
    assert row_of(card, "recipe · chosen · prefix") == "Disney style."
    assert row_of(card, "revision") == "abc123" and row_of(card, "sampling · steps") == "25"
    assert row_of(card, "judges") == (r"pickscore:pickscore (version 1, weights a4e4); clip:clip\_score:20 (version 1)")
    assert row_of(card, "counts · judged\\_out") == "14"
    assert f"mapo {__version__}, `mapo export my pairs --to hub`" in card.text and pairs.fingerprint() in card.text
    assert 'load_dataset("me/cartoons")' in card.text and "Sensitive" not in card.text
    for path in (tmp_path / "hf").rglob("*.*"):
        assert b"/home/somebody" not in path.read_bytes(), path
    assert row_of(card, "model") == "sdxl-mine"
    facts = json.loads((tmp_path / "hf" / "mapo.json").read_text())
    assert facts["set"] == pairs.fingerprint() and facts["provenance"]["model"] == "sdxl-mine"


def test_the_card_counts_one_pair_and_several(pairs: PairSet, tmp_path: Path) -> None:
    for opened, words in ((make_set(tmp_path / "one", 1), "1 pair"), (pairs, f"{len(pairs)} pairs")):
        export_pairs(opened, "hub", tmp_path / words)
        assert f"\n{words} of pictures for teaching" in card_of(tmp_path / words).text


def test_only_folders_in_a_pairs_meta_are_shortened(pairs: PairSet, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export_pairs(pairs, "hub", tmp_path / "hf")
    rows = pq.read_table(tmp_path / "hf" / "data").to_pylist()
    metas = {row["id"]: json.loads(row["meta"]) for row in rows}
    for pair in pairs:
        if pair.meta:
            assert metas[pair.id] == {"chosen": {**pair.meta["chosen"], "model": "sdxl-mine"}}


def test_a_set_of_the_built_in_model_says_its_licence_and_not_the_model_that_the_recipe_would_have_taken():
    provenance = {"model": "mini", "recipe": {"name": "x", "model": "big/model", "context": False}}
    assert list(flat(provenance)) == [("model", "mini"), ("recipe · name", "x"), ("recipe · context", "no")]
    assert ("recipe · model", "big/model") in list(flat({"recipe": provenance["recipe"]}))
    assert sources(SimpleNamespace(info={"provenance": provenance}), {}) == {"mini": "apache-2.0"}


def test_licences_are_the_users_or_the_sets_own_and_otherwise_unknown(pairs: PairSet, tmp_path: Path) -> None:
    export_pairs(pairs, "hub", tmp_path / "a")
    card = card_of(tmp_path / "a")
    assert card.data.license == "unknown" and "This set: unknown." in card.text
    licences = card.text[card.text.index("## Licences") :]
    assert "| sdxl-mine | unknown |" in licences and "| prompts.txt | unknown |" in licences
    export_pairs(pairs, "hub", tmp_path / "b", source_licences=parse_licences(["sdxl-mine=openrail++"]))
    text = card_of(tmp_path / "b").text
    assert "| sdxl-mine | openrail++ |" in text and "| prompts.txt | unknown |" in text
    with pytest.raises(MapoError, match="was not made from 'sdxl-main'. Did you mean 'sdxl-mine'"):
        export_pairs(pairs, "hub", tmp_path / "c", source_licences={"sdxl-main": "mit"})
    assert not (tmp_path / "c").exists()
    imported = write(tmp_path / "set", provenance={"imported": "o/n", "format": "pickapic", "licence": "mit"})
    export_pairs(imported, "hub", tmp_path / "d")
    assert "| o/n | mit |" in card_of(tmp_path / "d").text
    bare = write(tmp_path / "bare", provenance={})
    export_pairs(bare, "hub", tmp_path / "e")
    assert "The set does not say." in card_of(tmp_path / "e").text
    with pytest.raises(MapoError, match="does not record what it was made from"):
        export_pairs(bare, "hub", tmp_path / "f", source_licences={"x": "mit"})


@pytest.mark.parametrize("text", ["x", "=mit", "x=", " = "])
def test_a_licence_without_its_source_is_refused(text: str) -> None:
    with pytest.raises(MapoError, match="write SOURCE=LICENSE"):
        parse_licences([text])


def test_a_sensitive_set_says_so_in_its_tags_and_above_everything(tmp_path: Path) -> None:
    export_pairs(write(tmp_path / "set", sensitive=True), "hub", tmp_path / "hf")
    card = card_of(tmp_path / "hf")
    assert "not-for-all-audiences" in card.data.tags
    assert card.text.index("**Sensitive.**") < card.text.index("## What is in it")


class Hub:
    """Stands for the hub behind ``HfApi``: keeps what it is given, and takes only calls that HfApi would take."""

    def __init__(self, there: Any = None, fails: Exception | None = None) -> None:
        self.there, self.fails, self.calls = there, fails, list[tuple[str, dict[str, Any]]]()
        self.uploaded: dict[str, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            bound = inspect.signature(getattr(HfApi, name)).bind(None, *given, **named)
            arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
            self.calls.append((name, arguments))
            if name == "upload_folder":
                if self.fails:
                    raise self.fails
                folder = Path(arguments["folder_path"])
                self.uploaded = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            answers = {"repo_exists": self.there is not None, "dataset_info": self.there}
            return answers.get(name, f"https://hub/{arguments.get('repo_id')}")

        return call


def there(*files: str, private: bool = False) -> SimpleNamespace:
    return SimpleNamespace(private=private, siblings=[SimpleNamespace(rfilename=f) for f in (".gitattributes", *files)])


@pytest.mark.parametrize("private", [None, True])
def test_the_hub_gets_the_folder_as_it_lies_there(pairs: PairSet, tmp_path: Path, private: bool | None) -> None:
    api, out = Hub(), tmp_path / "hf"
    counts, address = export_to_hub(pairs, out, "me/cartoons", private=private, api=api, licence="mit")
    assert counts["pairs"] == len(pairs) and address == "https://hub/me/cartoons"
    names = [name for name, _ in api.calls]
    assert names == ["whoami", "repo_exists", "create_repo", "upload_folder"]
    created, sent = api.calls[2][1], api.calls[3][1]
    assert (created["repo_id"], created["repo_type"], created["private"]) == ("me/cartoons", "dataset", bool(private))
    assert (sent["repo_id"], sent["repo_type"], sent["folder_path"]) == ("me/cartoons", "dataset", out)
    assert not any("token" in arguments for _, arguments in api.calls)
    assert api.uploaded.keys() == {f for f in files_below(out) if (out / f).is_file()}
    assert {"README.md", "mapo.json", "data/train-00000-of-00001.parquet"} <= api.uploaded.keys()


def test_a_folder_that_was_looked_at_and_mended_is_uploaded_as_it_lies_there(pairs: PairSet, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    export_to_hub(pairs, out, None)
    (out / "README.md").write_text((out / "README.md").read_text() + "\nMended by hand.\n")
    assert 'load_dataset("OWNER/NAME")' in card_of(out).text
    api = Hub()
    counts, _ = export_to_hub(pairs, out, "me/cartoons", api=api)
    assert b'load_dataset("me/cartoons")' in api.uploaded["README.md"]
    assert counts == {} and api.uploaded["README.md"].endswith(b"\nMended by hand.\n")
    with pytest.raises(MapoError, match=r"write the licences into its README\.md"):
        export_to_hub(pairs, out, "me/cartoons", api=Hub(), licence="mit")


def test_a_folder_of_another_set_is_neither_uploaded_nor_written_over(pairs: PairSet, tmp_path: Path) -> None:
    export_pairs(make_set(tmp_path / "set", 3), "hub", tmp_path / "hf")
    api = Hub()
    with pytest.raises(MapoError, match="already exists"):
        export_to_hub(pairs, tmp_path / "hf", "me/cartoons", api=api)
    assert "upload_folder" not in [name for name, _ in api.calls]


def test_an_upload_that_was_cut_off_goes_on_with_the_same_command(pairs: PairSet, tmp_path: Path) -> None:
    with pytest.raises(MapoError, match=r"the hub refused or could not be reached \(the line is dead\)"):
        export_to_hub(pairs, tmp_path / "hf", "me/c", api=Hub(fails=ConnectionError("the line is dead.")))
    again = Hub(there=there())  # made, and empty
    counts, _ = export_to_hub(pairs, tmp_path / "hf", "me/c", api=again)
    assert counts == {} and "README.md" in again.uploaded


@pytest.mark.parametrize(
    ("repo", "private", "state", "sentence"),
    [
        ("cartoons", None, None, "write owner/name"),
        ("a/b/c", None, None, "write owner/name"),
        ("me/c", None, there("data/x.parquet", "README.md"), r"holds files already \(data/x.parquet and 1 more\)"),
        ("me/c", None, there("README.md"), r"holds a file already \(README.md\)"),
        ("me/c", True, there(), "is there already and public, against --private"),
        ("me/c", False, there(private=True), "is there already and private, against --public"),
    ],
)
def test_what_would_go_wrong_is_told_before_anything_is_written(
    pairs: PairSet, tmp_path: Path, repo: str, private: bool | None, state: Any, sentence: str
) -> None:
    api = Hub(there=state)
    with pytest.raises(MapoError, match=sentence):
        export_to_hub(pairs, tmp_path / "hf", repo, private=private, api=api)
    assert not (tmp_path / "hf").exists()
    assert {name for name, _ in api.calls} <= {"whoami", "repo_exists", "dataset_info"}


def test_a_sensitive_set_is_not_public_by_accident(tmp_path: Path) -> None:
    pairs, api = write(tmp_path / "set", sensitive=True), Hub()
    with pytest.raises(MapoError, match="marked sensitive: say --private, or --public"):
        export_to_hub(pairs, tmp_path / "hf", "me/c", api=api)
    assert api.calls == [] and not (tmp_path / "hf").exists()
    export_to_hub(pairs, tmp_path / "hf", "me/c", private=True, api=api)
    assert ("create_repo", True) in [(name, arguments.get("private")) for name, arguments in api.calls]


def test_without_a_login_the_real_client_is_told_in_one_sentence(
    pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(MapoError, match="Type: hf auth login"):
        export_to_hub(pairs, tmp_path / "hf", "me/c", api=HfApi(endpoint="http://127.0.0.1:9"))


def test_a_hub_that_cannot_be_reached_is_one_sentence_without_the_token(pairs: PairSet, tmp_path: Path) -> None:
    api = HfApi(endpoint="http://127.0.0.1:9", token="hf_secret")
    with pytest.raises(MapoError, match="could not be reached") as refused:
        export_to_hub(pairs, tmp_path / "hf", "me/c", api=api)
    assert "hf_secret" not in str(refused.value) and "\n" not in str(refused.value)


def test_the_command_writes_beside_the_set_and_says_what_is_next(tmp_path: Path) -> None:
    from click.testing import CliRunner

    write(tmp_path / "pairs")
    done = CliRunner().invoke(cli, ["export", str(tmp_path / "pairs"), "--to", "hub", "--license", "mit"])
    assert done.exit_code == 0, done.output
    assert f"62 pairs (1 tie) in {tmp_path / 'pairs-hub'}" in done.output
    assert f"read {tmp_path / 'pairs-hub'}/README.md, then upload with --repo OWNER/NAME" in done.output
    assert card_of(tmp_path / "pairs-hub").data.license == "mit"


def test_a_set_that_is_the_working_folder_is_exported_beside_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    write(tmp_path / "pairs")
    (tmp_path / "pairs" / "below").mkdir()
    for here, name in ((tmp_path / "pairs", "."), (tmp_path / "pairs" / "below", "..")):
        monkeypatch.chdir(here)
        done = CliRunner().invoke(cli, ["export", name, "--to", "hub"])
        assert done.exit_code == 0, done.output
        (tmp_path / "pairs-hub").rename(tmp_path / f"done in {here.name}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "hub", "--license", "MIT licence"], "--license is 'MIT licence'; write the hub's name for it"),
        (["--to", "preference", "--out", "x", "--license", "mit"], "--license is for --to hub alone"),
        (["--to", "pickapic", "--out", "x", "--private"], "--private is for --to hub alone"),
        (["--to", "pickapic", "--out", "x", "--source-license", "a=b"], "--source-license is for --to hub alone"),
        (["--to", "preference"], "Give --out"),
    ],
)
def test_flags_of_the_hub_are_not_ignored_elsewhere(tmp_path: Path, words: list[str], sentence: str) -> None:
    from click.testing import CliRunner

    make_set(tmp_path / "pairs", 2)
    done = CliRunner().invoke(cli, ["export", str(tmp_path / "pairs"), *words])
    assert isinstance(done.exception, MapoError) and sentence in str(done.exception)
