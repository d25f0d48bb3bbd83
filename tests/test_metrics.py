from mapo.metrics import append, cut_back


def test_the_log_is_cut_back_to_the_checkpoint_and_half_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append(path, {"step": step, "loss": 0.5})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    cut_back(path, 2)
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.5}\n'
    cut_back(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()
