"""What holds rows: tables, text, Arrow, tars. ``rows.py`` is the way in, ``shape.py`` what each of them offers."""
