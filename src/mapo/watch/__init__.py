"""Looking at a training run while it goes on: its page, and what other rooms do for it meanwhile."""
