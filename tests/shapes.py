"""What checks the shapes that functions name in their annotations; a whole number may stand for another."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
