"""Numbers for pictures: the table, and the scorers."""
