"""A page that says whether one model's pictures are better than another's."""
