"""From pairs to a run: the loop, the step, objectives, the run folder."""
