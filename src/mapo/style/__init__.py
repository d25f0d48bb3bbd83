"""From a folder of pictures to a style: the ordinary verbs, one after the other, in one folder."""
