"""What can be seen of a training while it goes on: held-out pairs, alarms, pictures, other programs' curves."""
