"""What pages share: their look, small pictures inside them, plots as SVG."""
