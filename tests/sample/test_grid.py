"""A grid shows each picture in its place."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mapo.cli import cli
from mapo.errors import MapoError
from mapo.pairs.splits import prompt_id
from mapo.sample.beside import Beside
from mapo.sample.folder import ImageRow, append_images, png_bytes, sha256
from mapo.sample.grid import GAP, LINE, MOST_ROWS, TEXT_WIDTH, pictures_of, write_grid

COLOURS = {(p, s, m): (60 * p + 10, 40 * s + 20, m) for p in range(3) for s in range(4) for m in (0, 200)}


def make(folder, number: int, size=(64, 32), prompts=3, seeds=4):
    rows, data = [], []
    for p in range(prompts):
        for s in range(seeds):
            png = png_bytes(Image.new("RGB", size, (60 * p % 256 + 10, 40 * s + 20, number)))
            name = prompt_id(f"prompt {p}")
            rows.append(ImageRow(f"{name}-{s}.png", name, f"prompt {p}", s, 0, sha256(png), folder.name))
            data.append(png)
    append_images(folder, rows, data)
    return folder


def at(grid: Image.Image, row: int, column: int, width: int, height: int, lines: int = 1) -> tuple[int, ...]:
    left, top = TEXT_WIDTH + GAP + column * (width + GAP), lines * LINE + 2 * GAP + row * (height + GAP)
    cell = np.asarray(grid.crop((left, top, left + width, top + height))).reshape(-1, 3)
    assert (cell == cell[0]).all()
    return tuple(map(int, cell[0]))


def test_prompts_are_rows_and_seeds_are_columns(tmp_path):
    folder, prompts = make(tmp_path / "a", 0), [f"prompt {p}" for p in range(3)]
    write_grid(tmp_path / "grid.png", [pictures_of(folder, prompts, [1, 3])], prompts, [1, 3])
    grid = Image.open(tmp_path / "grid.png")
    width, height = 128, 64  # 64 × 32, enlarged by 2
    assert grid.size == (TEXT_WIDTH + 2 * (width + GAP) + GAP, LINE + 2 * GAP + 3 * (height + GAP))
    for row in range(3):
        for column, seed in enumerate((1, 3)):
            assert at(grid, row, column, width, height) == (60 * row + 10, 40 * seed + 20, 0)
    text = np.asarray(grid.convert("L"))
    assert text[: LINE + GAP, TEXT_WIDTH:].min() < 100 and text[LINE + 2 * GAP :, :TEXT_WIDTH].min() < 100


def test_folders_stand_beside_each_other_for_every_seed(tmp_path):
    prompts = ["prompt 0", "prompt 1"]
    columns = [pictures_of(make(tmp_path / n, k, (512, 512)), prompts, [0, 1]) for n, k in (("a", 0), ("b", 200))]
    write_grid(tmp_path / "grid.png", columns, prompts, [0, 1])
    grid = Image.open(tmp_path / "grid.png")
    assert [at(grid, 1, c, 256, 256, 2)[1:] for c in range(4)] == [(20, 0), (20, 200), (60, 0), (60, 200)]


def test_a_heading_has_a_line_for_the_folder_and_one_for_the_seed_so_that_small_pictures_cut_none(tmp_path):
    columns = [pictures_of(make(tmp_path / n, 0, (48, 48)), ["prompt 0"], [0, 1]) for n in ("before", "after")]
    write_grid(tmp_path / "grid.png", columns, ["prompt 0"], [0, 1])
    dark = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))[:, TEXT_WIDTH + GAP :] < 100
    for column in range(4):  # both lines have letters, and none of them ends at the edge of its column
        words = dark[:, column * (96 + GAP) :][:, :96]
        for line in (words[GAP : GAP + LINE], words[GAP + LINE : GAP + 2 * LINE]):
            assert line.any() and not line[:, 80:].any()


def test_a_grid_that_would_be_endless_shows_the_first_and_says_so(tmp_path, heard):
    prompts = [f"prompt {p}" for p in range(MOST_ROWS + 2)]
    folder = make(tmp_path / "a", 0, (8, 8), MOST_ROWS + 2, 1)
    write_grid(tmp_path / "grid.png", [pictures_of(folder, prompts, [0])], prompts, [0])
    assert "grid.png shows the first 40 of 42 prompts and 1 of 1 seed." in heard()


def test_a_long_prompt_is_cut_within_its_cell(tmp_path):
    long = "word " * 300 + "x" * 400
    png = png_bytes(Image.new("RGB", (64, 64)))
    row = ImageRow("a.png", prompt_id(long), long, 0, 0, sha256(png), "m")
    append_images(tmp_path / "a", [row], [png])
    write_grid(tmp_path / "grid.png", [pictures_of(tmp_path / "a", [long], [0])], [long], [0])
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    assert (
        pixels[:, TEXT_WIDTH - 2 : TEXT_WIDTH + GAP].min() == 255
        or pixels[LINE + GAP :, TEXT_WIDTH - 2 : TEXT_WIDTH].min() == 255
    )


def test_the_command_draws_the_grid_and_refuses_before_drawing_where_a_folder_lacks_pictures(tmp_path, sdxl):
    (tmp_path / "p.txt").write_text("a red circle\na blue star\n")
    words = ["sample", "--model", str(sdxl), "--prompts", str(tmp_path / "p.txt"), "--steps", "1", "--seeds", "0-1"]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "a"), "--grid", "--cfg", "3"])
    assert done.exit_code == 0, done.output
    assert f"they are laid out in {tmp_path}/a/grid.png" in done.output
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "b"), "--compare", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    one, two = (Image.open(tmp_path / k / "grid.png").width - TEXT_WIDTH - GAP for k in "ab")
    assert two == 2 * one
    again = CliRunner().invoke(
        cli, [*words[:-1], "0-2", "--out", str(tmp_path / "c"), "--compare", str(tmp_path / "a")]
    )
    assert isinstance(again.exception, MapoError) and not (tmp_path / "c").exists()
    assert "a lacks 2 pictures of these prompts and seeds, the first of them 'a red circle' with seed 2" in str(
        again.exception
    )


@pytest.mark.parametrize("folder", ["nothing"])
def test_a_folder_to_compare_that_is_not_there_is_told(tmp_path, folder):
    with pytest.raises(MapoError, match="nothing"):
        pictures_of(tmp_path / folder, ["p"], [0])


def test_above_a_grid_stand_pictures_to_learn_from_and_under_a_prompt_its_kind(tmp_path):
    prompts = ["prompt 0", "prompt 1"]
    column = [pictures_of(make(tmp_path / "a", 0, (96, 96)), prompts, [0, 1])]
    for number in range(3):
        Image.new("RGB", (96, 96), (7 * number, 250, 9)).save(tmp_path / f"{number}.png")
    own = [tmp_path / f"{number}.png" for number in range(3)]
    kinds = {prompt_id("prompt 0"): "caption, held out"}
    write_grid(tmp_path / "plain.png", column, prompts, [0, 1])
    Image.new("RGB", (96, 96), (0, 0, 0)).save(tmp_path / "unsafe.png")
    more = Beside("Your pictures", [tmp_path / "unsafe.png", *own], kinds, veiled=[tmp_path / "unsafe.png"])
    write_grid(tmp_path / "grid.png", column, prompts, [0, 1], more)
    assert [tuple(Image.open(path).getpixel((0, 0))) for path in own] == [(7 * number, 250, 9) for number in range(3)]
    plain, grid = (np.asarray(Image.open(tmp_path / name)) for name in ("plain.png", "grid.png"))
    above = 2 * (96 + GAP) + 2 * GAP
    assert grid.shape == (plain.shape[0] + above, *plain.shape[1:])
    for number in range(3):
        down, across = divmod(number, 2)
        cell = grid[GAP + down * (96 + GAP) + 48, TEXT_WIDTH + GAP + across * (96 + GAP) + 48]
        assert tuple(map(int, cell)) == (7 * number, 250, 9)
    below, rest = plain.copy(), grid[above:]
    assert (below[:, TEXT_WIDTH:] == rest[:, TEXT_WIDTH:]).all()
    second = LINE + 2 * GAP + 96 + GAP
    assert (below[second:] == rest[second:]).all() and (below[:second] != rest[:second]).any()
